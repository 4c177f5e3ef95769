// SPDX-License-Identifier: GPL-2.0

//! What the module does when a guest stops: to the host, or back into the guest.

#![forbid(unsafe_code)]

use super::entered::{Entered, Next, GP};
use super::machine::Machine;
use super::numbers::{exit, st};
use super::observer::Observer;
use super::platform::{Entry, GuestExit, Inject, Platform, Regs, PAGE_SIZE};
use super::tree::State;
use super::ve::VeInfo;
use super::vp::{vcpu_state, word};

/// Extended exit qualification, type in bits 3:0.
const EXT_PENDING: u64 = 6;
/// The host sees bits of the exit qualification other than the linear-address ones.
const QUALIFICATION: u64 = !0x1F80;

impl Entered<'_> {
    /// The guest stopped: decides what happens. `Some(rax)`: the host gets the CPU, its
    /// registers are set, and this must be dropped. `None`: run the guest again.
    #[inline(never)]
    pub(crate) fn event<P: Platform, O: Observer>(
        &mut self,
        m: &Machine<P, O>,
        why: GuestExit,
        r: &mut Regs,
    ) -> Option<u64> {
        self.tdvps.note_progress(self.regs.rip);
        self.tdvps.set(word::FAULTED, 0);
        self.entry = Entry {
            inject: Inject::None,
            flush: false,
            first: false,
            xcr0: self.tdvps.get(word::XCR0),
        };
        match self.decide(m, why) {
            Next::Resume => {
                self.take_nmi(m);
                None
            }
            Next::Inject(event) => {
                self.entry.inject = event;
                None
            }
            Next::Exit(rax, out) => {
                let trap = rax == st::HOST_PRIORITY_BUSY_TIMEOUT;
                self.tdvps.set(word::TRAPPED, u64::from(trap));
                *r = out;
                Some(rax)
            }
            Next::Dead(rax) => {
                self.tdvps.set(word::STATE, vcpu_state::DISABLED);
                *r = Regs::default();
                Some(rax)
            }
        }
    }

    fn decide<P: Platform, O: Observer>(&mut self, m: &Machine<P, O>, why: GuestExit) -> Next {
        let plain = |rax: u64, r9: u32| {
            Next::Exit(
                rax,
                Regs {
                    r9: u64::from(r9),
                    ..Regs::default()
                },
            )
        };
        match why {
            GuestExit::EptViolation {
                gpa,
                gla,
                qualification,
            } => self.ept_violation(m, gpa, gla, qualification),
            GuestExit::EptMisconfig { gpa } => {
                m.fatal();
                Next::Exit(
                    exit::EPT_MISCONFIG,
                    Regs {
                        r8: gpa,
                        ..Regs::default()
                    },
                )
            }
            GuestExit::Tdcall { user: true } => Next::Inject(GP),
            GuestExit::Tdcall { user: false } => self.tdcall(m),
            GuestExit::Instruction {
                reason,
                qualification,
                len,
                info,
            } => self.instruction(m, reason, qualification, len, info),
            GuestExit::Interrupt { info: 0 } | GuestExit::Preempted => plain(exit::OTHER_SMI, 0),
            GuestExit::Interrupt { info } => plain(exit::EXTERNAL_INTERRUPT, info),
            GuestExit::Nmi { info } => plain(exit::EXCEPTION_NMI, info),
            GuestExit::TripleFault => Next::Dead(st::NON_RECOVERABLE_VCPU | exit::TRIPLE_FAULT),
            GuestExit::Failed { reason, .. } => {
                Next::Dead(st::NON_RECOVERABLE_VCPU | u64::from(reason))
            }
        }
    }

    /// An access that the EPT does not allow.
    fn ept_violation<P: Platform, O: Observer>(
        &mut self,
        m: &Machine<P, O>,
        gpa: u64,
        gla: u64,
        qualification: u64,
    ) -> Next {
        let mut out = Regs {
            rcx: qualification & QUALIFICATION,
            r8: gpa & !(PAGE_SIZE - 1),
            ..Regs::default()
        };
        if self.tdcs.is_private(gpa) {
            let Some(walk) = self.tdcs.root().walk(&m.p, gpa, 0) else {
                return Next::Dead(m.fatal());
            };
            if State::of(walk.raw).is_some_and(State::is_acceptable) {
                if !self.tdcs.pending_ve_disabled() {
                    let reason = exit::EPT_VIOLATION as u32;
                    let info = VeInfo {
                        reason,
                        qualification,
                        gla,
                        gpa,
                        instruction: 0,
                    };
                    return self.inject_ve(m, info);
                }
                out.rdx = EXT_PENDING;
            }
            self.tdvps.note_fault(self.regs.rip, out.r8);
            for (w, v) in [
                (word::FAULT_QUALIFICATION, qualification),
                (word::FAULT_GPA, gpa),
                (word::FAULT_GLA, gla),
                (word::FAULTED, 1),
            ] {
                self.tdvps.set(w, v);
            }
        }
        Next::Exit(exit::EPT_VIOLATION, out)
    }
}
