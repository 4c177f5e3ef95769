// SPDX-License-Identifier: GPL-2.0
//! How long SEAMCALLs take, for benchmarks: what an operation takes beside that is the kernel's.
//!
//! Off unless the module parameter `cycles` is set.  TSC ticks, so emulated instructions on a CPU
//! whose clock they are; TDH.VP.ENTER includes what the guest executes.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use super::ffi;
use crate::emu::LEAF_NAMES;

/// Leaf numbers are below this.
const LEAVES: usize = 72;
/// CPUs that have a sum of their own; those above have none.
const CPUS: usize = 16;

static BY_LEAF: [AtomicU64; LEAVES] = [const { AtomicU64::new(0) }; LEAVES];
static BY_CPU: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];

/// The time of a call, if calls are timed.
pub(super) struct Start(u64);

/// A call begins.
pub(super) fn start() -> Option<Start> {
    ffi::cycles_wanted().then(|| Start(ffi::tsc()))
}

impl Start {
    /// The call, of `leaf` on `cpu`, ends.
    pub(super) fn end(self, cpu: u32, leaf: u64) {
        let took = ffi::tsc().wrapping_sub(self.0);
        for sum in [
            BY_LEAF.get(usize::from(leaf as u16)),
            BY_CPU.get(cpu as usize),
        ]
        .into_iter()
        .flatten()
        {
            sum.fetch_add(took, Ordering::Relaxed);
        }
    }
}

/// Name of a sum; `Display` prints it as one word.
pub(super) enum Name {
    Leaf(u16, &'static str),
    Cpu(usize),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaf(n, name) => write!(f, "leaf_{n}_{name}_cycles"),
            Self::Cpu(n) => write!(f, "cpu_{n}_cycles"),
        }
    }
}

/// Calls `f` with each sum, if calls are timed.
pub(super) fn each(mut f: impl FnMut(Name, u64)) {
    if !ffi::cycles_wanted() {
        return;
    }
    for &(number, name) in LEAF_NAMES {
        if let Some(sum) = BY_LEAF.get(usize::from(number)) {
            f(Name::Leaf(number, name), sum.load(Ordering::Relaxed));
        }
    }
    for (n, sum) in BY_CPU.iter().enumerate() {
        f(Name::Cpu(n), sum.load(Ordering::Relaxed));
    }
}

/// Zeroes the sums.
pub(super) fn reset() {
    for sum in BY_LEAF.iter().chain(&BY_CPU) {
        sum.store(0, Ordering::Relaxed);
    }
}
