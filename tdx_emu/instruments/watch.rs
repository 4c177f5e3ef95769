// SPDX-License-Identifier: GPL-2.0

//! Who is in the module, so that a check knows whether what it saw counts, and the first thing that
//! was found wrong.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::violation::Violation;

/// How much is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CheckLevel {
    /// Nothing.
    Off = 0,
    /// After each call what it touched, now and then everything.
    Touched = 1,
    /// Everything after each call.
    Everything = 2,
}

/// State of the checks.
pub(crate) struct Watch {
    level: AtomicU64,
    /// Calls in the module, without those whose guest is running.
    inside: AtomicU64,
    /// Counts entries into the module, by calls and by exits of guests.
    entries: AtomicU64,
    /// The first violation: what (and leaf << 8), TDR, where.
    first: [AtomicU64; 3],
}

impl Watch {
    pub(crate) const fn new() -> Watch {
        Watch {
            level: AtomicU64::new(cfg!(debug_assertions) as u64),
            inside: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            first: [const { AtomicU64::new(0) }; 3],
        }
    }

    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.level.load(Ordering::Relaxed) != 0
    }

    /// To be called before the first SEAMCALL only.
    pub(crate) fn set_level(&self, level: CheckLevel) {
        self.level.store(level as u64, Ordering::Relaxed);
    }

    /// A call, or a guest's exit, comes into the module. Returns whether nobody else is
    /// in it, and a ticket.
    pub(crate) fn come(&self) -> (bool, u64) {
        let alone = self.inside.fetch_add(1, Ordering::SeqCst) == 0;
        let ticket = self.entries.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
        (alone, ticket)
    }

    /// The caller of [`Watch::come`] leaves the module.
    pub(crate) fn go(&self) {
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    /// A new ticket for a call that is in the module.
    pub(crate) fn again(&self) -> u64 {
        self.entries.fetch_add(1, Ordering::SeqCst).wrapping_add(1)
    }

    /// Whether everything is looked at after each call.
    pub(crate) fn is_thorough(&self) -> bool {
        self.level.load(Ordering::Relaxed) >= CheckLevel::Everything as u64
    }

    /// Whether the caller is the only one in the module.
    pub(crate) fn is_last(&self) -> bool {
        self.inside.load(Ordering::SeqCst) == 1
    }

    /// Runs a guest, which is outside of the module.
    #[inline]
    pub(crate) fn outside<R>(&self, guest: impl FnOnce() -> R) -> R {
        if !self.is_on() {
            return guest();
        }
        self.go();
        let why = guest();
        self.come();
        why
    }

    /// Whether nobody came since the ticket.
    pub(crate) fn undisturbed(&self, ticket: u64) -> bool {
        self.entries.load(Ordering::SeqCst) == ticket
    }

    /// The first violation.
    pub(crate) fn first(&self) -> Option<Violation> {
        let [what, tdr, at] = &self.first;
        let head = what.load(Ordering::Acquire);
        (head & 0xFF != 0).then(|| Violation {
            what: head & 0xFF,
            leaf: (head >> 8) as u16,
            tdr: tdr.load(Ordering::Relaxed),
            at: at.load(Ordering::Relaxed),
        })
    }

    /// Keeps a violation, if it is the first.
    pub(crate) fn remember(&self, v: &Violation) {
        /// Somebody is writing.
        const CLAIMED: u64 = 1 << 32;
        let [what, tdr, at] = &self.first;
        let order = Ordering::Relaxed;
        if what.compare_exchange(0, CLAIMED, order, order).is_err() {
            return;
        }
        tdr.store(v.tdr, order);
        at.store(v.at, order);
        what.store(v.what | (u64::from(v.leaf) << 8), Ordering::Release);
    }
}
