// SPDX-License-Identifier: GPL-2.0

//! TD epoch: which vCPUs may still hold translations of a blocked page.
//!
//! A vCPU counts in REFCOUNT[epoch & 1] of the epoch it entered in. TRACK starts
//! a new epoch once nobody is left from the one before the current; so a page
//! blocked in epoch e is safe when the TD is past e and nobody of e runs.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::lock::Mode;
use super::machine::Machine;
use super::numbers::{leaf, op, op_state, st, Res};
use super::observer::Observer;
use super::platform::{Platform, Regs};
use super::td::{tdcs_word, Tdcs};

impl<'m> Tdcs<'m> {
    pub(crate) fn epoch(&self) -> u64 {
        self.word(tdcs_word::EPOCH).load(Ordering::SeqCst)
    }

    pub(crate) fn refcount(&self, epoch: u64) -> &'m AtomicU64 {
        self.word(tdcs_word::REFCOUNT + (epoch & 1) as usize)
    }

    /// Whether no vCPU can hold a translation from before a block in `blocked`.
    pub(crate) fn is_tracked(&self, blocked: u64) -> bool {
        let now = self.epoch();
        match now.checked_sub(blocked) {
            _ if blocked >> 63 != 0 => false,
            Some(0) | None => false,
            Some(1) => self.refcount(blocked).load(Ordering::SeqCst) == 0,
            Some(_) => true,
        }
    }

    /// A vCPU is about to enter: counts it and returns the epoch it counts in.
    pub(crate) fn enter_epoch(&self) -> Res<u64> {
        let _lock = self.lock_epoch(Mode::Shared)?;
        let e = self.epoch();
        self.refcount(e).fetch_add(1, Ordering::SeqCst);
        Ok(e)
    }

    /// The vCPU that entered in `e` has left.
    pub(crate) fn leave_epoch(&self, e: u64) {
        self.refcount(e).fetch_sub(1, Ordering::SeqCst);
    }
}

impl<P: Platform, O: Observer> Machine<P, O> {
    /// TDH.MEM.TRACK. RCX: TDR.
    #[inline(never)]
    pub(crate) fn mem_track(&self, r: &Regs) -> Res<()> {
        let td = self.begin(r.rcx, op::RCX, op_state::TRACK)?;
        let _lock = td.tdcs.lock_epoch(Mode::Exclusive)?;
        let e = td.tdcs.epoch();
        if td.tdcs.refcount(e ^ 1).load(Ordering::SeqCst) != 0 {
            return Err(st::PREVIOUS_TLB_EPOCH_BUSY);
        }
        self.before_commit(leaf::MEM_TRACK, td.tdr.pa);
        td.tdcs
            .word(tdcs_word::EPOCH)
            .store(e.wrapping_add(1), Ordering::SeqCst);
        Ok(())
    }
}
