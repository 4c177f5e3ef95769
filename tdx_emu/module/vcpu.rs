// SPDX-License-Identifier: GPL-2.0

//! TDH.VP.ENTER: the way into a guest.

#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::entered::{host_reg, masked, Entered};
use super::lock::Mode;
use super::machine::Machine;
use super::numbers::{exit, leaf, op, op_state, st, Res};
use super::observer::Observer;
use super::platform::{Entry, Inject, Platform, Regs};
use super::td::{tdcs_word, Tdcs};
use super::vp::{vcpu_state, word, LockedVcpu, Tdvps};
use super::zerostep::Verdict;

/// RCX of VP.ENTER: after an exit for HOST_PRIORITY_BUSY_TIMEOUT, whether the guest should
/// try again; becomes bit 60 of its status.
const RECOVERABLE: u64 = 1 << 52;
/// RCX of VP.ENTER: resume L1 after an exit of an L2 VM, of which there are none.
const RESUME_L1: u64 = 1 << 53;
pub(crate) const ENTER_FLAGS: u64 = RECOVERABLE | RESUME_L1;
/// In a completion status: the host thinks that trying again helps.
const RECOVERABLE_HINT: u64 = 1 << 60;

/// Result of an attempt to enter that the module answers by itself.
#[expect(clippy::large_enum_variant, reason = "there is no heap to box it on")]
pub(crate) enum Enter<'m> {
    Guest(Entered<'m>),
    /// An exit without having entered, with the registers already set.
    Emulated(u64),
}

impl<P: Platform, O: Observer> Machine<P, O> {
    /// Everything of TDH.VP.ENTER that precedes the guest. RCX: TDVPR and flags.
    #[inline(never)]
    pub(crate) fn vp_enter_begin(&self, lp: u32, r: &mut Regs) -> Res<Enter<'_>> {
        if r.rcx & (0xFFC0_0000_0000_0FFF) != 0 {
            return Err(st::OPERAND_INVALID | op::RCX);
        }
        let pa = r.rcx & !ENTER_FLAGS;
        let mut v = self.ready_vcpu(pa)?;
        let new_here = associate(&v.tdvps, &v.tdcs, lp)?;
        let trapped = v.tdvps.get(word::TRAPPED) != 0;
        let hint = r.rcx & RECOVERABLE != 0;
        if hint && !trapped || r.rcx & RESUME_L1 != 0 {
            return Err(st::OPERAND_INVALID | op::RCX);
        }
        let epoch = v.tdcs.enter_epoch()?;
        let stale = v.tdvps.get(word::EPOCH) != epoch;
        v.tdvps.set(word::EPOCH, epoch);
        // From here on the vCPU counts, and dropping `e` undoes it.
        let mut e = Entered {
            vcpu: v.tdvps.describe(&v.tdr, &v.tdcs, lp),
            entry: Entry {
                inject: Inject::None,
                flush: stale || new_here,
                first: true,
                xcr0: v.tdvps.get(word::XCR0),
            },
            regs: v.tdvps.load_regs(),
            tdvps: v.tdvps,
            tdcs: v.tdcs,
            _inside: self.inside(lp),
            _tdr: v.tdr,
            _tdvpr: v.lock,
        };
        let tree_lock = match self.filter_steps(&e.tdvps, &e.tdcs)? {
            Verdict::Enter(lock) => lock,
            Verdict::Fault(gpa) => {
                e.tdvps.set(word::TRAPPED, 0);
                *r = Regs {
                    rcx: 2,
                    r8: gpa,
                    ..Regs::default()
                };
                return Ok(Enter::Emulated(exit::EPT_VIOLATION));
            }
        };
        self.before_commit(leaf::VP_ENTER, e.vcpu.tdr);
        if tree_lock.is_some() {
            e.notify_of_steps(self);
        }
        v.op_lock = None;
        if let Some(last) = self.sys.lp_last_vcpu.get(lp as usize) {
            e.entry.flush |= last.swap(pa, Ordering::Relaxed) != pa;
        }
        e.take_answer(r);
        if trapped {
            e.regs.gpr[0] &= !RECOVERABLE_HINT;
            e.regs.gpr[0] |= if hint { RECOVERABLE_HINT } else { 0 };
        }
        e.take_nmi(self);
        drop(tree_lock);
        Ok(Enter::Guest(e))
    }

    /// A vCPU that can run, with its TD, in a state in which it may.
    fn ready_vcpu(&self, pa: u64) -> Res<LockedVcpu<'_>> {
        let allowed = Some(op_state::VP_ENTER);
        let v = self.lock_vcpu(pa, op::RCX, Mode::Shared, Mode::Shared, allowed)?;
        if !v.tdvps.is_complete() {
            return Err(st::TDCX_NUM_INCORRECT);
        }
        if v.tdvps.get(word::STATE) != vcpu_state::READY {
            return Err(st::VCPU_STATE_INCORRECT);
        }
        Ok(v)
    }
}

/// Binds the vCPU to `lp`. Returns whether it was not bound to any before.
fn associate(v: &Tdvps<'_>, tdcs: &Tdcs<'_>, lp: u32) -> Res<bool> {
    if v.is_on(lp) {
        return Ok(false);
    }
    // Two LPs may try at once: the TDVPR is only held shared.
    v.word(word::ASSOC)
        .compare_exchange(
            0,
            u64::from(lp).wrapping_add(1),
            Ordering::Relaxed,
            Ordering::Relaxed,
        )
        .map_err(|_| st::VCPU_ASSOCIATED)?;
    tdcs.word(tdcs_word::NUM_ASSOC)
        .fetch_add(1, Ordering::Relaxed);
    Ok(true)
}

impl Entered<'_> {
    /// If the last exit was a TDG.VP.VMCALL: the host's registers are its results.
    fn take_answer(&mut self, r: &mut Regs) {
        let mask = self.tdvps.get(word::VMCALL);
        if mask == 0 {
            return;
        }
        self.tdvps.set(word::VMCALL, 0);
        for i in masked(mask) {
            if let (Some(from), Some(to)) = (host_reg(r, i), self.regs.gpr.get_mut(i)) {
                *to = *from;
            }
        }
        self.regs.gpr[0] = st::SUCCESS;
    }
}
