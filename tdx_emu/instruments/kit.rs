// SPDX-License-Identifier: GPL-2.0

//! The instruments that a module is fitted with, at the points where it lets itself be observed.

#![forbid(unsafe_code)]

use super::rules::{Delay, Table};
use super::stats::{Count, Stats};
use super::subject::hkid_of;
use super::violation::{Violation, Wrong, NO_LEAF};
use super::watch::Watch;
use crate::module::machine::Machine;
use crate::module::{Event, Observer, Platform, PAGE_SIZE};

/// What counts, disturbs and checks.
pub(crate) struct Instruments {
    pub(crate) stats: Stats,
    /// The rules of the fault injection.
    pub(crate) rules: Table,
    pub(crate) watch: Watch,
}

/// A module with instruments, without its guests.
pub(crate) type Watched<P> = Machine<P, Instruments>;

impl Instruments {
    pub(crate) const fn new() -> Self {
        Instruments {
            stats: Stats::new(),
            rules: Table::new(),
            watch: Watch::new(),
        }
    }

    /// Counts a violation; the first one is remembered.
    pub(crate) fn violation(&self, what: Wrong, leaf: u16, tdr: u64, at: u64) -> Violation {
        let v = Violation {
            what: what as u64,
            leaf,
            tdr,
            at,
        };
        self.stats.add(Count::InvariantErrors);
        self.watch.remember(&v);
        v
    }

    /// Pages are about to go back to the host: no lock in them stays held.
    fn drop_held_in<P: Platform>(&self, p: &P, pa: u64, pages: u64) {
        for slot in self.rules.in_use() {
            let inside = |at: u64| at.wrapping_sub(pa) < pages.wrapping_mul(PAGE_SIZE);
            if slot.held.word().is_some_and(|at| at != 0 && inside(at)) {
                slot.held.let_go_in_page(p);
            }
        }
    }
}

impl Observer for Instruments {
    fn happened(&self, event: Event) {
        self.stats.add(match event {
            Event::GuestEntry => Count::GuestEntries,
            Event::GuestTdcall => Count::GuestTdcalls,
            Event::GuestAccept => Count::GuestAccepts,
            Event::GuestVe => Count::GuestVe,
            Event::Fatal => {
                self.violation(Wrong::Fatal, NO_LEAF, 0, 0);
                return;
            }
        });
    }

    #[inline]
    fn before_commit<P: Platform>(&self, p: &P, leaf: u16, tdr: u64) {
        let wait = |delay| match delay {
            Delay::Microseconds(us) => p.pause(us),
            Delay::Instructions(n) => {
                for _ in 0..n {
                    core::hint::spin_loop();
                }
            }
        };
        self.rules.delay(leaf, || hkid_of(p, tdr), wait);
    }

    #[inline]
    fn interrupts<P: Platform>(&self, p: &P, leaf: u16, tdr: u64) -> bool {
        self.rules.interrupt(leaf, || hkid_of(p, tdr))
    }

    #[inline]
    fn refuses<P: Platform>(&self, p: &P, leaf: u16, rcx: u64, tdr: u64) -> Option<u64> {
        self.rules.fail(leaf, rcx, || hkid_of(p, tdr))
    }

    fn owner_changed<P: Platform>(&self, p: &P, pa: u64, pages: u64, private: bool) {
        if !private {
            self.drop_held_in(p, pa, pages);
        }
        self.stats.pages_owned(pages, private);
    }

    #[inline]
    fn outside<R>(&self, guest: impl FnOnce() -> R) -> R {
        self.watch.outside(guest)
    }
}
