// SPDX-License-Identifier: GPL-2.0

//! Update of the module under live TDs: TDH.SYS.{SHUTDOWN, UPDATE}, what is handed over, and the
//! MRTD contexts that say which release began a TD.
//!
//! PAMT, TDR, TDCS, TDVPS and S-EPT pages stay as they are. Of the module's own state the owners
//! of the HKIDs with what is left of their write-backs, the TDMRs and whether the PAMT is dynamic
//! are handed over; from hand-off version 1 on also how many TDs are being built.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::machine::{sys_state, Machine, Sys, MAX_LPS};
use super::mem_sept::check_version;
use super::numbers::{leaf, op, st, Res};
use super::observer::Observer;
use super::platform::{Platform, Regs};
use super::td::{tdcs_word, Tdcs};

/// RCX of SYS.SHUTDOWN: not while a TD is being built.
const AVOID_SENSITIVE: u64 = 1 << 16;
const HANDOFF_VERSION: u64 = 0xFFFF;
/// First hand-off version with the number of TDs that are being built.
const WITH_BUILDS: u64 = 1;
/// Feature of SYS.INIT and SYS.UPDATE: TDs that another release began to build are refused.
const UPDATE_COMPATIBILITY: u64 = 1 << 47;
/// MRTD context of TDs, 0 where a release knows none.
const CONTEXT: u64 = 1;

/// A logical processor that is in the module, or in a guest.
pub(crate) struct Inside<'m>(Option<&'m AtomicU64>);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if let Some(busy) = self.0 {
            busy.store(0, Ordering::Release);
        }
    }
}

impl Sys {
    /// What of a module that was shut down is not handed over is gone.
    fn forget(&self) {
        let clear = |word: &AtomicU64| word.store(0, Ordering::Relaxed);
        let tdmr_locks = self.tdmrs.iter().map(|t| &t.lock);
        let wb = self.wb.iter().flat_map(|w| [&w.lock, &w.next, &w.hkids]);
        self.lp_done.iter().for_each(clear);
        self.lp_last_vcpu.iter().for_each(clear);
        tdmr_locks.chain(wb).for_each(clear);
        [&self.lp_count, &self.key_packages, &self.compatible]
            .into_iter()
            .for_each(clear);
        [&self.lock, &self.kot_lock, &self.ket_lock]
            .into_iter()
            .for_each(clear);
    }
}

impl<P: Platform, O: Observer> Machine<P, O> {
    /// `lp` is in the module until this is dropped.
    pub(crate) fn inside(&self, lp: u32) -> Inside<'_> {
        let busy = self.sys.lp_busy.get(lp as usize);
        if let Some(busy) = busy {
            // Before the state is read: SHUTDOWN sees this, or the LP sees SHUTDOWN.
            busy.store(1, Ordering::SeqCst);
        }
        Inside(busy)
    }

    /// Whether a processor other than `lp` is in the module.
    fn others_are_inside(&self, lp: u32) -> bool {
        let mut others = (0..MAX_LPS as u32).zip(&self.sys.lp_busy);
        others.any(|(n, busy)| n != lp && busy.load(Ordering::SeqCst) != 0)
    }

    /// TDH.SYS.SHUTDOWN. RCX: hand-off version, in some versions bit 16: not while a TD is being
    /// built.
    #[inline(never)]
    pub(crate) fn sys_hand_off(&self, lp: u32, r: &Regs) -> Res<()> {
        let rules = self.rules();
        let flags = if rules.update_compatibility {
            AVOID_SENSITIVE
        } else {
            0
        };
        let version = r.rcx & HANDOFF_VERSION;
        let newest = rules.handoff.version;
        let possible = (rules.handoff.oldest..=newest).contains(&version);
        let wanted = version == newest || !rules.handoff.no_downgrade;
        if r.rcx & !(HANDOFF_VERSION | flags) != 0 || !possible || !wanted {
            return Err(st::OPERAND_INVALID | op::RCX);
        }
        let _lock = self.sys_lock()?;
        // Who comes from now on is turned away. A fatal error of one who is inside stays one.
        self.go(sys_state::READY, sys_state::STOPPING)?;
        let builds = self.sys.builds.load(Ordering::Relaxed);
        let refused = if self.others_are_inside(lp) {
            Some(st::SYS_BUSY)
        } else if r.rcx & AVOID_SENSITIVE != 0 && builds != 0 {
            Some(st::UPDATE_COMPATIBILITY_SENSITIVE | (builds << 16))
        } else {
            None
        };
        if let Some(status) = refused {
            self.go(sys_state::STOPPING, sys_state::READY)?;
            return Err(status);
        }

        self.before_commit(leaf::SYS_SHUTDOWN, 0);
        if version < WITH_BUILDS {
            self.sys.builds.store(0, Ordering::Relaxed);
        }
        // 0 is none.
        let handed = version.wrapping_add(1);
        self.sys.handed_off.store(handed, Ordering::Relaxed);
        self.go(sys_state::STOPPING, sys_state::SHUTDOWN)
    }

    /// From one state of the module to another.
    fn go(&self, from: u64, to: u64) -> Res<()> {
        self.sys
            .state
            .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst)
            .map_err(|_| st::SYS_SHUTDOWN)?;
        Ok(())
    }

    /// A module of another version takes the place of one that was shut down. Nobody may call
    /// the module meanwhile. False if it was not shut down, or there is no version of that name.
    pub(crate) fn install(&self, name: &str) -> bool {
        if self.sys.state.load(Ordering::Acquire) != sys_state::SHUTDOWN {
            return false;
        }
        if !self.set_version(name) {
            return false;
        }
        self.sys.forget();
        self.sys.state.store(sys_state::NEW, Ordering::Release);
        true
    }

    /// Version of what was handed over, if anything was that has not been taken.
    pub(crate) fn handed_off(&self) -> Option<u64> {
        self.sys.handed_off.load(Ordering::Relaxed).checked_sub(1)
    }

    /// TDH.SYS.UPDATE. In version 1 R9: features to enable, R10: 0.
    #[inline(never)]
    pub(crate) fn sys_update(&self, version: u8, r: &Regs) -> Res<()> {
        let _lock = self.sys_lock()?;
        let lps = self.sys.lp_count.load(Ordering::Relaxed);
        let state = self.sys.state.load(Ordering::Acquire);
        if state != sys_state::INITIALIZED || lps < u64::from(self.p.config().lps) {
            return Err(st::SYS_STATE_INCORRECT);
        }
        let known = self.rules().handoff.oldest..=self.rules().handoff.version;
        if !self.handed_off().is_some_and(|v| known.contains(&v)) {
            return Err(st::SYS_INVALID_HANDOFF);
        }
        check_version(version)?;
        if version > 0 {
            self.enable(r)?;
            if r.r10 != 0 {
                return Err(st::OPERAND_INVALID | op::R10);
            }
        }

        self.before_commit(leaf::SYS_UPDATE, 0);
        self.sys.handed_off.store(0, Ordering::Relaxed);
        self.sys.state.store(sys_state::READY, Ordering::Release);
        Ok(())
    }

    /// R9 of SYS.INIT and SYS.UPDATE, version 1: features to enable.
    pub(crate) fn enable(&self, r: &Regs) -> Res<()> {
        if !self.rules().update_compatibility {
            return Ok(());
        }
        if r.r9 & !self.rules().features0 != 0 {
            return Err(st::OPERAND_INVALID | op::R9);
        }
        let on = u64::from(r.r9 & UPDATE_COMPATIBILITY != 0);
        self.sys.compatible.store(on, Ordering::Relaxed);
        Ok(())
    }

    /// A TD is built from now on.
    pub(crate) fn begin_context(&self, tdcs: &Tdcs<'_>) {
        if self.rules().update_compatibility {
            tdcs.set(tdcs_word::MRTD_CONTEXT, CONTEXT);
            tdcs.set(tdcs_word::COUNTED, 1);
            self.sys.builds.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// It is built, or never will be. The TDR is held exclusively.
    pub(crate) fn end_context(&self, tdcs: &Tdcs<'_>) {
        if tdcs.get(tdcs_word::COUNTED) != 0 {
            tdcs.set(tdcs_word::COUNTED, 0);
            self.sys.builds.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Fails for a TD that a release without contexts began, where that is asked for.
    pub(crate) fn check_context(&self, tdcs: &Tdcs<'_>) -> Res<()> {
        let asked = self.sys.compatible.load(Ordering::Relaxed) != 0;
        if asked && tdcs.get(tdcs_word::MRTD_CONTEXT) != CONTEXT {
            return Err(st::INCOMPATIBLE_MRTD_CONTEXT);
        }
        Ok(())
    }
}
