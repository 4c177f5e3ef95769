// SPDX-License-Identifier: GPL-2.0

//! The figures of a TD beyond `struct tdx_mirror_stats`, and their sums over all TDs.

use core::fmt;
use kernel::prelude::*;

use super::stats;
use crate::base::stats::Count;
use crate::base::td::Operand;
use crate::bindings::tdx_mirror_stats;
use crate::kernel::tsc;
use crate::kvm::td::Td;
use crate::kvm::vm::FREEZES;
use crate::mirror::mmu::BATCH_SIZES;
use crate::sept::BY_OPERAND;
use crate::tdx::call::{
    Kind,
    FIGURES, //
};

const FAULTS: [&str; 7] = [
    "fixed",
    "spurious",
    "frozen",
    "contended",
    "no_page",
    "invalid",
    "bugged",
];
/// Why faults were to be tried again, once for each time that KVM asks what to do.
const RETRIES: [&str; 4] = ["invalidation", "frozen", "contended", "no_page"];
const CLASSES: [&str; 4] = ["success", "busy", "failed", "noted"];
const NUMBER: usize = FAULTS.len()
    + RETRIES.len()
    + CLASSES.len() * FIGURES.len()
    + 1
    + 2 * BY_OPERAND
    + BATCH_SIZES
    + FREEZES;

/// The figures, in the order in which they are written.
#[derive(Zeroable)]
pub(crate) struct Figures([u64; NUMBER]);

impl Figures {
    /// All 0.
    pub(crate) const ZERO: Self = Self([0; NUMBER]);

    /// All 0, not on the stack, for which they are too many.
    pub(crate) fn boxed() -> Result<KBox<Self>, fmt::Error> {
        KBox::init(pin_init::init_zeroed(), GFP_KERNEL_ACCOUNT).map_err(|_: Error| fmt::Error)
    }

    /// Adds others.
    pub(crate) fn add_sum(&mut self, other: &Self) {
        for (sum, value) in self.0.iter_mut().zip(&other.0) {
            *sum = sum.wrapping_add(*value);
        }
    }

    /// Adds those of a TD.
    pub(crate) fn add(&mut self, td: &Td) {
        let mut slots = self.0.iter_mut();
        let mut put = |value: u64| {
            if let Some(slot) = slots.next() {
                *slot = slot.wrapping_add(value);
            }
        };
        let mirror = td.mirror().stats();
        put(mirror.mapped.get());
        put(mirror.spurious.get());
        put(mirror.maps_frozen.get());
        put(mirror.maps_contended.get());
        put(mirror.maps_no_page.get());
        put(mirror.maps_invalid.get());
        put(mirror.maps_bugged.get());
        let vcpus = td.progress().stats();
        put(vcpus.why_invalidation.get());
        put(vcpus.why_frozen.get());
        put(vcpus.why_contended.get());
        put(vcpus.why_no_page.get());
        let calls = td.sept().calls();
        // By a range: enumerate() counts with a check, whose panic the linker would keep.
        for (label, (made, failed, informational)) in (0..FIGURES.len()).zip(calls.each()) {
            let contended = calls.retries.each().chain_of(calls.giveups.each());
            let busy = contended
                .filter(|(of, _, _)| *of == label)
                .fold(0u64, |sum, (_, _, count)| sum.wrapping_add(count));
            let others = busy.wrapping_add(failed).wrapping_add(informational);
            // Calls are counted before their answers, by CPUs that do not wait for the reader.
            put(made.saturating_sub(others));
            put(busy);
            put(failed);
            put(informational);
        }
        put(calls.made(Kind::PageAdd));
        calls.retries.each().for_each(|(_, _, count)| put(count));
        calls.giveups.each().for_each(|(_, _, count)| put(count));
        td.mirror().batch_sizes().buckets().for_each(&mut put);
        td.mirror().vm().freezes().buckets().for_each(&mut put);
    }

    /// Writes one `name value` per line; of what comes in many kinds only what is not 0.
    pub(crate) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut values = self.0.iter().copied();
        let mut next = || values.next().unwrap_or(0);
        for name in FAULTS {
            writeln!(f, "faults_{name} {}", next())?;
        }
        for name in RETRIES {
            writeln!(f, "fault_retries_{name} {}", next())?;
        }
        for label in FIGURES {
            for class in CLASSES {
                writeln!(f, "seamcall_{label}_{class} {}", next())?;
            }
        }
        writeln!(f, "seamcall_page_add {}", next())?;
        for what in ["retries", "giveups"] {
            for label in FIGURES {
                for operand in Operand::ALL.map(Operand::label) {
                    match next() {
                        0 => (),
                        count => writeln!(f, "{what}_{label}_{operand} {count}")?,
                    }
                }
            }
        }
        for bucket in 0..BATCH_SIZES {
            writeln!(f, "batch_{} {}", power(bucket), next())?;
        }
        for bucket in 0..FREEZES {
            match next() {
                0 => (),
                count => writeln!(f, "freeze_cycles_{} {count}", power(bucket))?,
            }
        }
        Ok(())
    }
}

fn power(bucket: usize) -> u64 {
    u32::try_from(bucket)
        .ok()
        .and_then(|bucket| 1u64.checked_shl(bucket))
        .unwrap_or(0)
}

/// `Iterator::chain()`, whose name the prelude of the kernel gives to something else as well.
trait ChainOf: Iterator + Sized {
    fn chain_of<I: Iterator<Item = Self::Item>>(self, other: I) -> core::iter::Chain<Self, I> {
        Iterator::chain(self, other)
    }
}

impl<I: Iterator> ChainOf for I {}

/// Writes what follows from `struct tdx_mirror_stats`: pages and memory, as they are.
pub(crate) fn write_memory(stats: &tdx_mirror_stats, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    const PAGE: u64 = 4096;
    let gone = stats.zapped.wrapping_add(stats.quarantined);
    writeln!(f, "pages_mapped {}", stats.mapped.saturating_sub(gone))?;
    let held = stats.quarantined.saturating_sub(stats.resolved);
    writeln!(f, "pages_quarantined {held}")?;
    writeln!(f, "pages_leaked {}", stats.leaked)?;
    writeln!(f, "bytes_mirror {}", stats.tables.wrapping_mul(PAGE))?;
    let external = stats.external_tables.wrapping_mul(PAGE);
    writeln!(f, "bytes_external {external}")?;
    writeln!(f, "tsc_khz {}", tsc::khz())
}

/// Writes all figures of a TD. Sleeps.
pub(crate) fn write_td(td: &Td, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "td {}", td.number())?;
    writeln!(f, "pid {}", td.pid())?;
    writeln!(f, "tid {}", td.tid())?;
    writeln!(f, "finalized {}", u8::from(td.hooks().is_finalized()))?;
    let stats = stats::of(td);
    stats::write(&stats, f)?;
    write_memory(&stats, f)?;
    let mut figures = Figures::boxed()?;
    figures.add(td);
    figures.write(f)
}
