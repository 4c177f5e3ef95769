// SPDX-License-Identifier: GPL-2.0

//! What a vCPU is to do after a map that found contention, and after a VP.ENTER that did.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::bindings::{self, tdx_mirror_action, tdx_mirror_vcpu};
use crate::sept::ZERO_STEP_THRESHOLD;
use crate::tdx::status::{OperandId, TdxStatus};

/// Local retries of one fault.
const LOCAL_ROUNDS: u32 = 8;

/// Conditions under which a fault is not retried here.
const LEAVE: u32 = bindings::TDX_MIRROR_FAULT_SIGNAL
    | bindings::TDX_MIRROR_FAULT_SLOT_GONE
    | bindings::TDX_MIRROR_FAULT_ROOT_GONE
    | bindings::TDX_MIRROR_FAULT_VM_DEAD;

/// The figures of one TD.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) local_retries: AtomicU64,
    pub(super) local_giveups: AtomicU64,
    pub(super) held: AtomicU64,
    pub(super) vp_enter_busy: AtomicU64,
    pub(super) vp_enter_busy_other: AtomicU64,
}

fn inc(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Progress {
    pub(super) fn fault_retry(
        &self,
        vcpu: &mut tdx_mirror_vcpu,
        gfn: u64,
        conditions: u32,
    ) -> tdx_mirror_action {
        if vcpu.rounds == 0 || vcpu.gfn != gfn {
            vcpu.gfn = gfn;
            vcpu.rounds = 0;
        }
        if conditions & LEAVE == 0
            && (conditions & bindings::TDX_MIRROR_FAULT_EVENT == 0 || vcpu.held)
            && vcpu.rounds < LOCAL_ROUNDS
        {
            vcpu.rounds = vcpu.rounds.saturating_add(1);
            inc(&self.local_retries);
            return bindings::TDX_MIRROR_AGAIN;
        }
        vcpu.rounds = 0;
        inc(&self.local_giveups);
        if conditions & bindings::TDX_MIRROR_FAULT_PREFAULT != 0 || conditions & LEAVE != 0 {
            return bindings::TDX_MIRROR_EXIT;
        }
        if vcpu.faults.saturating_add(1) < ZERO_STEP_THRESHOLD {
            return bindings::TDX_MIRROR_ENTER;
        }
        if !vcpu.held {
            vcpu.held = true;
            inc(&self.held);
        }
        bindings::TDX_MIRROR_EXIT
    }

    pub(super) fn fault_done(&self, vcpu: &mut tdx_mirror_vcpu, gfn: u64) {
        if vcpu.gfn == gfn {
            vcpu.rounds = 0;
            vcpu.held = false;
        }
    }

    pub(super) fn vp_enter_busy(&self, status: u64) -> tdx_mirror_action {
        let status = TdxStatus::new(status);
        if status.is_operand_busy() && status.operand() == OperandId::SEPT_TREE {
            inc(&self.vp_enter_busy);
            // SAFETY: May be called in any context.
            unsafe { bindings::tdx_mirror_warn_vp_enter(status.raw()) };
        } else {
            inc(&self.vp_enter_busy_other);
        }
        bindings::TDX_MIRROR_ENTER
    }
}
