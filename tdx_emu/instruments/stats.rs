// SPDX-License-Identifier: GPL-2.0

//! Counters. Relaxed atomics: they order nothing.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use crate::module::numbers::{leaf, st, LEAF_NAMES};

/// Leaf numbers are below this.
const LEAVES: usize = 72;

/// Counters other than those of leaves.
#[derive(Clone, Copy)]
pub(crate) enum Count {
    Busy,
    PresentTransitions,
    Removed,
    GuestEntries,
    GuestTdcalls,
    GuestAccepts,
    GuestVe,
    Injected,
    InvariantErrors,
}

const NAMES: [&str; 9] = [
    "busy",
    "leaf_present_transitions",
    "leaf_removed",
    "guest_entries",
    "guest_tdcalls",
    "guest_accepts",
    "guest_ve",
    "injected",
    "invariant_errors",
];

/// What happened since the module was loaded or the counters were reset.
pub struct Stats {
    calls: [AtomicU64; LEAVES],
    ok: [AtomicU64; LEAVES],
    unknown: AtomicU64,
    counts: [AtomicU64; NAMES.len()],
    /// Pages that are neither free nor reserved. Not reset.
    owned: AtomicU64,
}

impl Stats {
    pub(crate) const fn new() -> Stats {
        Stats {
            calls: [const { AtomicU64::new(0) }; LEAVES],
            ok: [const { AtomicU64::new(0) }; LEAVES],
            unknown: AtomicU64::new(0),
            counts: [const { AtomicU64::new(0) }; NAMES.len()],
            owned: AtomicU64::new(0),
        }
    }

    pub(crate) fn add(&self, c: Count) {
        if let Some(n) = self.counts.get(c as usize) {
            n.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a finished leaf.
    pub(crate) fn leaf_done(&self, number: u16, status: u64) {
        let i = usize::from(number);
        let (Some(calls), Some(ok)) = (self.calls.get(i), self.ok.get(i)) else {
            self.unknown.fetch_add(1, Ordering::Relaxed);
            return;
        };
        calls.fetch_add(1, Ordering::Relaxed);
        if status & st::CLASS == st::OPERAND_BUSY {
            self.add(Count::Busy);
        }
        if status >> 63 != 0 {
            return;
        }
        ok.fetch_add(1, Ordering::Relaxed);
        if status != 0 {
            return;
        }
        match number {
            leaf::MEM_PAGE_ADD | leaf::MEM_PAGE_AUG => self.add(Count::PresentTransitions),
            leaf::MEM_PAGE_REMOVE => self.add(Count::Removed),
            _ => {}
        }
    }

    pub(crate) fn pages_owned(&self, n: u64, private: bool) {
        if private {
            self.owned.fetch_add(n, Ordering::Relaxed);
        } else {
            self.owned.fetch_sub(n, Ordering::Relaxed);
        }
    }

    /// Calls `f` with the name and value of every counter. Names of leaves are given
    /// as `leaf_<number>_<name>` with `_calls` or `_ok` as the third argument.
    pub fn each(&self, mut f: impl FnMut(StatName, u64)) {
        let load = |a: Option<&AtomicU64>| a.map_or(0, |a| a.load(Ordering::Relaxed));
        for &(number, name) in LEAF_NAMES {
            let i = usize::from(number);
            f(StatName::LeafCalls(number, name), load(self.calls.get(i)));
            f(StatName::LeafOk(number, name), load(self.ok.get(i)));
        }
        for (name, value) in NAMES.iter().zip(&self.counts) {
            f(StatName::Plain(name), value.load(Ordering::Relaxed));
        }
        f(
            StatName::Plain("unknown_leaf"),
            self.unknown.load(Ordering::Relaxed),
        );
        f(
            StatName::Plain("pamt_pages_owned"),
            self.owned.load(Ordering::Relaxed),
        );
    }

    /// Zeroes everything but `pamt_pages_owned`, which is a state.
    pub fn reset(&self) {
        let all = self.calls.iter().chain(&self.ok).chain(&self.counts);
        for a in all.chain([&self.unknown]) {
            a.store(0, Ordering::Relaxed);
        }
    }
}

/// Name of a counter; `Display` prints it as one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatName {
    /// Calls of a leaf.
    LeafCalls(u16, &'static str),
    /// Calls of a leaf that did not fail.
    LeafOk(u16, &'static str),
    /// Any other counter.
    Plain(&'static str),
}

impl core::fmt::Display for StatName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            StatName::LeafCalls(n, name) => write!(f, "leaf_{n}_{name}_calls"),
            StatName::LeafOk(n, name) => write!(f, "leaf_{n}_{name}_ok"),
            StatName::Plain(name) => f.write_str(name),
        }
    }
}
