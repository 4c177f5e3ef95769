// SPDX-License-Identifier: GPL-2.0

//! TDCALL: the leaves of a guest.

#![forbid(unsafe_code)]

use super::entered::{host_reg, masked, Entered, Next, Outcome};
use super::instruction::{CPUID_VE_KERNEL, CPUID_VE_USER};
use super::machine::Machine;
use super::metadata;
use super::numbers::{exit, guest_leaf, op, st, Res, GUEST};
use super::observer::{Event, Observer};
use super::platform::{Platform, Regs};
use super::td::tdcs_word;
use super::td_field::CONFIG_NO_RBP_MOD;
use super::vp::{word, VMCALL_PENDING};

/// Bytes of TDCALL.
const TDCALL_LEN: u64 = 4;

impl Entered<'_> {
    /// The guest executed TDCALL.
    pub(crate) fn tdcall<P: Platform, O: Observer>(&mut self, m: &Machine<P, O>) -> Next {
        m.observer.happened(Event::GuestTdcall);
        let (leaf, rcx) = (named(self.regs.gpr[0]), self.regs.gpr[1]);
        let result = match m.observer.refuses(&m.p, leaf, rcx, self.vcpu.tdr) {
            Some(status) => Err(status),
            None => self.dispatch(m),
        };
        let call = match result {
            Ok(call) => call,
            Err(status) => Outcome::Done(status),
        };
        match call {
            Outcome::Done(status) if status & st::CLASS == st::BUSY_HOST_PRIORITY => {
                let timeout = self.tdcs.hp_lock_timeout(m.p.config().hp_lock_timeout);
                self.yielded(m.p.tsc(), timeout, status)
            }
            Outcome::Done(status) => {
                self.tdvps.set(word::HP_SINCE, 0);
                self.regs.gpr[0] = status;
                self.advance(TDCALL_LEN);
                Next::Resume
            }
            Outcome::Again => {
                self.tdvps.set(word::HP_SINCE, 0);
                Next::Resume
            }
            Outcome::Exit(rax, out) => Next::Exit(rax, out),
        }
    }

    /// The guest had to yield to the host's priority: it sees a plain busy status, and
    /// if that goes on for too long, the host is told.
    fn yielded(&mut self, now: u64, timeout: u64, status: u64) -> Next {
        self.regs.gpr[0] = st::OPERAND_BUSY | status & !st::CLASS;
        self.advance(TDCALL_LEN);
        let since = self.tdvps.get(word::HP_SINCE);
        if since == 0 {
            self.tdvps.set(word::HP_SINCE, now.max(1));
        } else if now.wrapping_sub(since) >= timeout {
            self.tdvps.set(word::HP_SINCE, 0);
            return Next::Exit(st::HOST_PRIORITY_BUSY_TIMEOUT, Regs::default());
        }
        Next::Resume
    }

    fn dispatch<P: Platform, O: Observer>(&mut self, m: &Machine<P, O>) -> Res<Outcome> {
        let leaf = self.regs.gpr[0];
        match leaf {
            guest_leaf::VP_VMCALL => self.vmcall(),
            guest_leaf::VP_INFO => Ok(self.vp_info()),
            guest_leaf::MR_RTMR_EXTEND => self.rtmr_extend(m).map(Outcome::Done),
            guest_leaf::VP_VEINFO_GET => self.veinfo_get(m).map(Outcome::Done),
            guest_leaf::VP_CPUIDVE_SET => self.cpuidve_set(),
            guest_leaf::MR_REPORT => self.mr_report(m).map(Outcome::Done),
            guest_leaf::MEM_PAGE_ACCEPT => self.page_accept(m),
            guest_leaf::VM_RD => {
                let value = m.td_field(&self.tdcs, self.regs.gpr[2]);
                self.regs.gpr[8] = 0;
                self.regs.gpr[8] = value.ok_or(st::METADATA_FIELD_NOT_READABLE | op::RDX)?;
                Ok(Outcome::Done(st::SUCCESS))
            }
            guest_leaf::VM_WR => {
                let g = &self.regs.gpr;
                let old = m.set_td_field(&self.tdcs, g[2], g[8], g[9])?;
                self.regs.gpr[8] = old;
                Ok(Outcome::Done(st::SUCCESS))
            }
            guest_leaf::SYS_RD => {
                let value = metadata::global(m.rules(), m.p.config(), self.regs.gpr[2]);
                self.regs.gpr[8] = 0;
                self.regs.gpr[8] = value.ok_or(st::METADATA_FIELD_NOT_READABLE | op::RDX)?;
                Ok(Outcome::Done(st::SUCCESS))
            }
            _ => Err(st::OPERAND_INVALID | op::RAX),
        }
    }

    /// TDG.VP.VMCALL. RCX: mask of the registers that the host gets and answers in.
    fn vmcall(&mut self) -> Res<Outcome> {
        let mask = self.regs.gpr[1];
        let keep_rbp = self.tdcs.get(tdcs_word::CONFIG_FLAGS) & CONFIG_NO_RBP_MOD != 0;
        // RAX, RCX and RSP cannot be passed; bits 31:16 are XMM registers, which are not.
        let reserved = !0xFFFF_FFEC | (u64::from(keep_rbp) << 5);
        if mask & reserved != 0 {
            return Err(st::OPERAND_INVALID | op::RCX);
        }
        let mut out = Regs::default();
        for i in masked(mask) {
            if let (Some(to), Some(from)) = (host_reg(&mut out, i), self.regs.gpr.get(i)) {
                *to = *from;
            }
        }
        out.rcx = mask;
        self.tdvps.set(word::VMCALL, mask | VMCALL_PENDING);
        self.advance(TDCALL_LEN);
        Ok(Outcome::Exit(exit::TDCALL, out))
    }

    /// TDG.VP.INFO.
    fn vp_info(&mut self) -> Outcome {
        let vcpus = self.tdcs.get(tdcs_word::NUM_VCPUS);
        let max = self.tdcs.get(tdcs_word::MAX_VCPUS);
        let g = &mut self.regs.gpr;
        g[1] = u64::from(self.vcpu.shared_bit) + 1;
        g[2] = self.vcpu.attributes;
        g[8] = vcpus & 0xFFFF_FFFF | (max << 32);
        g[9] = u64::from(self.vcpu.index);
        g[10] = 1; // TDG.SYS.RD is there
        g[11] = 0;
        Outcome::Done(st::SUCCESS)
    }

    /// TDG.VP.CPUIDVE.SET. RCX: bit 0 has CPUID cause #VE at CPL 0, bit 1 at other CPLs.
    fn cpuidve_set(&mut self) -> Res<Outcome> {
        let when = self.regs.gpr[1];
        if when & !(CPUID_VE_KERNEL | CPUID_VE_USER) != 0 {
            return Err(st::OPERAND_INVALID | op::RCX);
        }
        self.tdvps.set(word::CPUID_VE, when);
        Ok(Outcome::Done(st::SUCCESS))
    }
}

/// A TDCALL's leaf where host leaves are named as well.
fn named(rax: u64) -> u16 {
    GUEST | (rax as u16 & !GUEST)
}
