// SPDX-License-Identifier: GPL-2.0

//! Zero-step mitigation: a host that keeps a vCPU faulting at one RIP learns
//! secrets, so from the seventh fault on VP.ENTER first makes sure, with the S-EPT
//! held, that every page in question is there.

#![forbid(unsafe_code)]

use super::lock::TreeLock;
use super::machine::Machine;
use super::numbers::Res;
use super::observer::Observer;
use super::platform::Platform;
use super::td::Tdcs;
use super::tree::{self, PS, RWX};
use super::vp::{word, Tdvps};

/// Faults at one RIP that are only counted.
pub(crate) const THRESHOLD: u64 = 6;
/// Distinct pages that are remembered.
const MAX_GPAS: u64 = 32;

/// What the filter says.
pub(crate) enum Verdict<'m> {
    /// Enter; the tree lock, if any, is held until just before.
    Enter(Option<TreeLock<'m>>),
    /// This page would fault again: exit without entering.
    Fault(u64),
}

impl Tdvps<'_> {
    fn clear_steps(&self) {
        self.set(word::ZS_COUNT, 0);
        self.set(word::ZS_LEN, 0);
    }

    fn gpas(&self) -> impl Iterator<Item = u64> + '_ {
        let n = self.get(word::ZS_LEN).min(MAX_GPAS) as usize;
        (0..n).map(|i| self.get(word::ZS_LIST.wrapping_add(i)))
    }

    /// At every VM exit: progress ends the suspicion.
    pub(crate) fn note_progress(&self, rip: u64) {
        if rip != self.get(word::ZS_RIP) {
            self.clear_steps();
        }
    }

    /// At a TD exit for an EPT violation on a private page.
    pub(crate) fn note_fault(&self, rip: u64, gpa: u64) {
        self.note_progress(rip);
        let count = self.get(word::ZS_COUNT);
        if count < THRESHOLD {
            self.set(word::ZS_COUNT, count.wrapping_add(1));
            return;
        }
        let n = self.get(word::ZS_LEN);
        if n < MAX_GPAS && !self.gpas().any(|g| g == gpa) {
            self.set(word::ZS_LIST.wrapping_add(n as usize), gpa);
            self.set(word::ZS_LEN, n.wrapping_add(1));
        }
    }
}

impl<P: Platform, O: Observer> Machine<P, O> {
    /// At VP.ENTER, before the guest runs.
    pub(crate) fn filter_steps<'m>(&self, v: &Tdvps<'_>, tdcs: &Tdcs<'m>) -> Res<Verdict<'m>> {
        v.set(word::ZS_RIP, v.get(word::RIP));
        if v.get(word::ZS_LEN) == 0 {
            return Ok(Verdict::Enter(None));
        }
        let lock = tdcs.lock_tree(tdcs.rules.tree.vp_enter)?;
        let fault = v.gpas().find(|&gpa| !self.is_accessible(tdcs, gpa));
        Ok(match fault {
            Some(gpa) => Verdict::Fault(gpa),
            None => Verdict::Enter(Some(lock)),
        })
    }

    /// Whether every level of the walk allows all accesses. A pending page does not; in some
    /// versions it does no harm if the access is a #VE of the guest.
    fn is_accessible(&self, tdcs: &Tdcs<'_>, gpa: u64) -> bool {
        // The walk goes on only through entries with some access; tables have all or none.
        let walk = tdcs.root().walk(&self.p, gpa, 0);
        let ve = tdcs.rules.pending_is_no_step && !tdcs.pending_ve_disabled();
        walk.is_some_and(|w| {
            let state = tree::State::of(w.raw);
            let mapped = w.raw & PS != 0 && w.raw & RWX == RWX && state.is_some();
            mapped || ve && state.is_some_and(tree::State::is_acceptable)
        })
    }
}
