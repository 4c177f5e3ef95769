// SPDX-License-Identifier: GPL-2.0

//! A vCPU inside its guest, and what can follow when the guest stops.

#![forbid(unsafe_code)]

use super::pamt::PamtLock;
use super::platform::{Entry, GuestRegs, Inject, Regs, Vcpu};
use super::td::{Tdcs, Tdr};
use super::update::Inside;
use super::vp::{word, Tdvps};

/// A vCPU inside the guest. TDR and TDVPR stay locked shared and the vCPU counts in
/// its epoch until this is dropped.
pub(crate) struct Entered<'m> {
    pub(crate) vcpu: Vcpu,
    pub(crate) entry: Entry,
    pub(crate) regs: GuestRegs,
    pub(crate) tdvps: Tdvps<'m>,
    pub(crate) tdcs: Tdcs<'m>,
    pub(crate) _inside: Inside<'m>,
    pub(crate) _tdr: Tdr<'m>,
    pub(crate) _tdvpr: PamtLock<'m>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.tdvps.store_regs(&self.regs);
        self.tdcs.leave_epoch(self.tdvps.get(word::EPOCH));
    }
}

impl Entered<'_> {
    pub(crate) fn advance(&mut self, len: u64) {
        self.regs.rip = self.regs.rip.wrapping_add(len);
    }
}

/// What follows an exit.
pub(crate) enum Next {
    Resume,
    Inject(Inject),
    /// To the host, with RAX and the other registers.
    Exit(u64, Regs),
    /// To the host with RAX; the vCPU will never run again.
    Dead(u64),
}

pub(crate) const GP: Inject = Inject::Exception(13, Some(0));
pub(crate) const UD: Inject = Inject::Exception(6, None);
pub(crate) const DOUBLE_FAULT: Inject = Inject::Exception(8, Some(0));

/// End of a TDCALL.
pub(crate) enum Outcome {
    /// Back to the guest with RAX.
    Done(u64),
    /// Back to the guest with RAX and RIP as they are: the instruction runs again.
    Again,
    /// To the host, with RAX and the other registers.
    Exit(u64, Regs),
}

/// Registers that TDG.VP.VMCALL can pass, in the order of their numbers.
pub(crate) fn host_reg(r: &mut Regs, number: usize) -> Option<&mut u64> {
    Some(match number {
        1 => &mut r.rcx,
        2 => &mut r.rdx,
        3 => &mut r.rbx,
        6 => &mut r.rsi,
        7 => &mut r.rdi,
        8 => &mut r.r8,
        9 => &mut r.r9,
        10 => &mut r.r10,
        11 => &mut r.r11,
        12 => &mut r.r12,
        13 => &mut r.r13,
        14 => &mut r.r14,
        15 => &mut r.r15,
        _ => return None,
    })
}

/// Numbers of the registers that a VMCALL may name.
pub(crate) fn masked(mask: u64) -> impl Iterator<Item = usize> {
    (0..16usize).filter(move |&i| (mask >> i) & 1 != 0)
}
