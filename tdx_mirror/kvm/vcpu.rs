// SPDX-License-Identifier: GPL-2.0

//! What a vCPU does next after a map or a VP.ENTER that met contention: the policy of
//! [`crate::sept::progress`] on the notes that KVM keeps with each vCPU.

use kernel::prelude::*;

use super::entry::Mirror;
use crate::base::addr::Gfn;
use crate::bindings::{self, tdx_mirror_action, tdx_mirror_vcpu};
use crate::sept::progress::{Action, Conditions, Notes};
use crate::tdx::status::TdxStatus;

const _: () = {
    assert!(Conditions::SIGNAL.bits() == bindings::TDX_MIRROR_FAULT_SIGNAL);
    assert!(Conditions::EVENT.bits() == bindings::TDX_MIRROR_FAULT_EVENT);
    assert!(Conditions::SLOT_GONE.bits() == bindings::TDX_MIRROR_FAULT_SLOT_GONE);
    assert!(Conditions::ROOT_GONE.bits() == bindings::TDX_MIRROR_FAULT_ROOT_GONE);
    assert!(Conditions::VM_DEAD.bits() == bindings::TDX_MIRROR_FAULT_VM_DEAD);
    assert!(Conditions::PREFAULT.bits() == bindings::TDX_MIRROR_FAULT_PREFAULT);
};

fn as_kvm(action: Action) -> tdx_mirror_action {
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
        rounds: vcpu.rounds,
        gfn: vcpu.gfn,
        held: vcpu.held,
    };
    let result = f(&mut notes);
    vcpu.rounds = notes.rounds;
    vcpu.gfn = notes.gfn;
    vcpu.held = notes.held;
    result
}

impl Mirror {
    /// Judges a fault that was not served.
    pub(crate) fn fault_retry(
        &self,
        vcpu: &mut tdx_mirror_vcpu,
        gfn: u64,
        conditions: u32,
    ) -> tdx_mirror_action {
        let now = Conditions::from_bits(conditions);
        let owes = Gfn::new(gfn).is_some_and(|gfn| self.sept().owes(gfn));
        let action = with_notes(vcpu, |notes| {
            self.progress().fault_retry(notes, gfn, now, owes)
        });
        if action == Action::Kill && conditions & bindings::TDX_MIRROR_FAULT_VM_DEAD == 0 {
            pr_err!("the VM ends, as vp_enter_policy=kill says: gfn {gfn:#x} cannot be mapped\n");
            self.hooks().bug_vm();
        }
        as_kvm(action)
    }

    /// A fault was served or ended in an error.
    pub(crate) fn fault_done(&self, vcpu: &mut tdx_mirror_vcpu, gfn: u64) {
        with_notes(vcpu, |notes| self.progress().fault_done(notes, gfn));
    }

    /// Judges a VP.ENTER that found something busy.
    pub(crate) fn vp_enter_busy(
        &self,
        vcpu: &mut tdx_mirror_vcpu,
        status: u64,
    ) -> tdx_mirror_action {
        let busy = self.progress().vp_enter_busy(TdxStatus::new(status));
        if busy.action == Action::Kill {
            if busy.report {
                pr_err!(
                    "the VM ends, as vp_enter_policy=kill says: TDH.VP.ENTER answered {status:#x}\n"
                );
            }
            self.hooks().bug_vm();
        } else if busy.report {
            let faults = vcpu.faults;
            pr_warn!(
                "TDH.VP.ENTER found the S-EPT busy, report this line: answer {status:#x} after {faults} faults\n"
            );
            // A guest and its userspace can bring that about by themselves, and must not be able
            // to cause a kernel warning.
            if !with_notes(vcpu, |notes| notes.may_be_listed()) {
                // SAFETY: May be called in any context.
                unsafe { bindings::tdx_mirror_warn_vp_enter() };
            }
        }
        as_kvm(busy.action)
    }
}
