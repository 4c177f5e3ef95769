// SPDX-License-Identifier: GPL-2.0

//! What a vCPU does next after a map or a VP.ENTER that met contention: the policy of
//! [`crate::sept::progress`] on the notes that KVM keeps with each vCPU.

use kernel::{
    ffi::c_int,
    prelude::*, //
};

use super::td::Td;
use crate::base::addr::Gfn;
use crate::base::td::{
    Operand,
    RetryReason, //
};
use crate::bindings::{
    self,
    tdx_mirror_vcpu, //
};
use crate::kernel::warn;
use crate::sept::progress::{
    Action,
    Conditions,
    End,
    Notes,
    Why, //
};
use crate::tdx::status::TdxStatus;

const _: () = {
    assert!(Conditions::SIGNAL.bits() == bindings::TDX_MIRROR_FAULT_SIGNAL);
    assert!(Conditions::EVENT.bits() == bindings::TDX_MIRROR_FAULT_EVENT);
    assert!(Conditions::SLOT_GONE.bits() == bindings::TDX_MIRROR_FAULT_SLOT_GONE);
    assert!(Conditions::VM_DEAD.bits() == bindings::TDX_MIRROR_FAULT_VM_DEAD);
    assert!(Conditions::PREFAULT.bits() == bindings::TDX_MIRROR_FAULT_PREFAULT);
};

/// The bits of `map()` that say why it asks for a retry.
pub(super) const fn reason_bits(reason: RetryReason) -> u32 {
    match reason {
        RetryReason::Frozen => bindings::TDX_MIRROR_RETRY_FROZEN,
        RetryReason::NoPage => bindings::TDX_MIRROR_RETRY_NO_PAGE,
        RetryReason::Contended(Operand::SeptTree) => bindings::TDX_MIRROR_RETRY_SEPT_TREE,
        RetryReason::Contended(Operand::SeptEntry) => bindings::TDX_MIRROR_RETRY_SEPT_ENTRY,
        RetryReason::Contended(Operand::TdEpoch) => bindings::TDX_MIRROR_RETRY_TD_EPOCH,
        RetryReason::Contended(Operand::PreviousEpoch) => bindings::TDX_MIRROR_RETRY_PREVIOUS_EPOCH,
        RetryReason::Contended(Operand::Tdr) => bindings::TDX_MIRROR_RETRY_TDR,
        RetryReason::Contended(Operand::Other) => bindings::TDX_MIRROR_RETRY_OTHER,
    }
}

/// The reason that KVM hands back, or `None` if there is none with these bits.
const fn why(bits: u32) -> Option<Why> {
    Some(Why::Mirror(match bits {
        bindings::TDX_MIRROR_RETRY_INVALIDATION => return Some(Why::Invalidation),
        bindings::TDX_MIRROR_RETRY_FROZEN => RetryReason::Frozen,
        bindings::TDX_MIRROR_RETRY_NO_PAGE => RetryReason::NoPage,
        bindings::TDX_MIRROR_RETRY_SEPT_TREE => RetryReason::Contended(Operand::SeptTree),
        bindings::TDX_MIRROR_RETRY_SEPT_ENTRY => RetryReason::Contended(Operand::SeptEntry),
        bindings::TDX_MIRROR_RETRY_TD_EPOCH => RetryReason::Contended(Operand::TdEpoch),
        bindings::TDX_MIRROR_RETRY_PREVIOUS_EPOCH => RetryReason::Contended(Operand::PreviousEpoch),
        bindings::TDX_MIRROR_RETRY_TDR => RetryReason::Contended(Operand::Tdr),
        bindings::TDX_MIRROR_RETRY_OTHER => RetryReason::Contended(Operand::Other),
        _ => return None,
    }))
}

/// Whether the bits for `reason` are where `map()` has them, and lead back to it.
#[allow(dead_code)] // Only assertions at compile time ask.
const fn survives(reason: RetryReason) -> bool {
    let bits = reason_bits(reason);
    bits & !bindings::TDX_MIRROR_MAP_REASON == 0
        && match why(bits) {
            Some(Why::Mirror(back)) => reason_bits(back) == bits,
            _ => false,
        }
}

const _: () = {
    assert!(survives(RetryReason::Frozen));
    assert!(survives(RetryReason::NoPage));
    assert!(survives(RetryReason::Contended(Operand::SeptTree)));
    assert!(survives(RetryReason::Contended(Operand::SeptEntry)));
    assert!(survives(RetryReason::Contended(Operand::TdEpoch)));
    assert!(survives(RetryReason::Contended(Operand::PreviousEpoch)));
    assert!(survives(RetryReason::Contended(Operand::Tdr)));
    assert!(survives(RetryReason::Contended(Operand::Other)));
};

fn as_kvm(action: Action) -> u32 {
    match action {
        Action::Again => bindings::TDX_MIRROR_AGAIN,
        Action::Enter => bindings::TDX_MIRROR_ENTER,
        Action::Exit => bindings::TDX_MIRROR_EXIT,
        Action::Kill => bindings::TDX_MIRROR_KILL,
    }
}

/// Runs `f` on a copy of the notes, so that KVM's structure stays the only shared thing.
fn with_notes<R>(vcpu: &mut tdx_mirror_vcpu, f: impl FnOnce(&mut Notes) -> R) -> R {
    let mut notes = Notes {
        faults: vcpu.faults,
        repeats: vcpu.repeats,
        rounds: vcpu.rounds,
        waits: vcpu.waits,
        gfn: vcpu.gfn,
        spurious: vcpu.spurious,
        accept: vcpu.accept,
        held: vcpu.held,
    };
    let result = f(&mut notes);
    vcpu.rounds = notes.rounds;
    vcpu.waits = notes.waits;
    vcpu.gfn = notes.gfn;
    vcpu.spurious = notes.spurious;
    vcpu.held = notes.held;
    result
}

/// Judges a fault that was not served. `None` if KVM gave a reason that is none.
pub(super) fn fault_retry(
    td: &Td,
    vcpu: &mut tdx_mirror_vcpu,
    gfn: u64,
    conditions: u32,
    reason: u32,
) -> Option<u32> {
    let why = why(reason)?;
    let now = Conditions::from_bits(conditions);
    let owes = || Gfn::new(gfn).is_some_and(|gfn| td.sept().owes(gfn));
    let action = with_notes(vcpu, |notes| {
        td.progress().fault_retry(notes, gfn, now, why, owes)
    });
    if action == Action::Kill && conditions & bindings::TDX_MIRROR_FAULT_VM_DEAD == 0 {
        pr_err!("the VM ends, as vp_enter_policy=kill says: gfn {gfn:#x} cannot be mapped\n");
        td.hooks().bug_vm();
    }
    Some(as_kvm(action))
}

/// A fault was served or ended in an error.
pub(super) fn fault_done(
    td: &Td,
    vcpu: &mut tdx_mirror_vcpu,
    gfn: u64,
    conditions: u32,
    outcome: c_int,
) -> u32 {
    let now = Conditions::from_bits(conditions);
    let end = match outcome {
        ..0 => End::Error,
        _ if outcome as u32 == bindings::TDX_MIRROR_MAP_SPURIOUS => End::Spurious,
        _ => End::Mapped,
    };
    let done = with_notes(vcpu, |notes| td.progress().fault_done(notes, gfn, now, end));
    if done.report {
        let (number, pid, faults) = (td.number(), td.pid(), vcpu.faults);
        pr_warn!(
            "TD {number} of process {pid}: the TDX module keeps a vCPU out since its {faults} faults at one instruction, though gfn {gfn:#x} is mapped by now; it goes on once another vCPU accepts that page, else the TD is to be ended\n"
        );
    }
    as_kvm(done.action)
}

/// Judges a VP.ENTER that found something busy.
pub(super) fn vp_enter_busy(td: &Td, vcpu: &mut tdx_mirror_vcpu, status: u64) -> u32 {
    let busy = td.progress().vp_enter_busy(TdxStatus::new(status));
    if busy.action == Action::Kill {
        if busy.report {
            pr_err!(
                "the VM ends, as vp_enter_policy=kill says: TDH.VP.ENTER answered {status:#x}\n"
            );
        }
        td.hooks().bug_vm();
    } else if busy.report {
        let faults = vcpu.faults;
        pr_warn!(
            "TDH.VP.ENTER found the S-EPT busy, report this line: answer {status:#x} after {faults} faults\n"
        );
        // A guest and its userspace can bring that about by themselves, and must not be able
        // to cause a kernel warning.
        if !with_notes(vcpu, |notes| notes.may_be_listed()) {
            warn::vp_enter();
        }
    }
    as_kvm(busy.action)
}
