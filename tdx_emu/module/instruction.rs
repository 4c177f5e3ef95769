// SPDX-License-Identifier: GPL-2.0

//! Instructions that the CPU does not execute in a TD by itself: answered here, or
//! an exception for the guest.

#![forbid(unsafe_code)]

use super::cpuid;
use super::entered::{Entered, Next, GP, UD};
use super::machine::Machine;
use super::msr::Access;
use super::numbers::{exit, st};
use super::observer::Observer;
use super::platform::Platform;
use super::td::tdcs_word;
use super::ve::VeInfo;
use super::vp::word;

/// Bits of TDG.VP.CPUIDVE.SET.
pub(crate) const CPUID_VE_KERNEL: u64 = 1;
pub(crate) const CPUID_VE_USER: u64 = 2;

impl Entered<'_> {
    pub(crate) fn instruction<P: Platform, O: Observer>(
        &mut self,
        m: &Machine<P, O>,
        reason: u32,
        qualification: u64,
        len: u32,
        info: u32,
    ) -> Next {
        let answer = match reason {
            exit::CPUID => self.cpuid(m),
            exit::RDMSR => self.rdmsr(m),
            exit::WRMSR => self.wrmsr(m),
            exit::XSETBV => self.xsetbv(),
            // GETSEC, RSM, VMX instructions, ENCLS, ENCLV, SEAMCALL.
            11 | 17 | 18..=27 | 50 | 53 | 59 | 60 | 70 | 76 => return Next::Inject(UD),
            // HLT, INVD, RDPMC, I/O, MWAIT, MONITOR, WBINVD.
            12 | 13 | 15 | 30 | 36 | 39 | 54 => Access::Ve,
            _ => return Next::Dead(st::NON_RECOVERABLE_VCPU | u64::from(reason & 0xFFFF)),
        };
        match answer {
            Access::Done(()) => {
                self.advance(u64::from(len));
                Next::Resume
            }
            Access::Refused => Next::Inject(GP),
            Access::Ve => self.inject_ve(
                m,
                VeInfo {
                    reason,
                    qualification,
                    instruction: (u64::from(info) << 32) | u64::from(len),
                    ..VeInfo::default()
                },
            ),
        }
    }

    fn cpuid<P: Platform, O: Observer>(&mut self, m: &Machine<P, O>) -> Access<()> {
        let asked = if self.regs.user {
            CPUID_VE_USER
        } else {
            CPUID_VE_KERNEL
        };
        if self.tdvps.get(word::CPUID_VE) & asked != 0 {
            return Access::Ve;
        }
        let view = cpuid::View {
            x2apic_id: self.vcpu.x2apic_id,
            xcr0: self.tdvps.get(word::XCR0),
            xss: self.tdvps.get(word::XSS),
            cr4: self.regs.cr4,
            topology_hidden: !self.tdcs.topology_enumerated(),
        };
        let (leaf, sub) = (self.regs.gpr[0] as u32, self.regs.gpr[1] as u32);
        let Some([a, b, c, d]) = cpuid::virtualise(&m.p, &self.tdcs, leaf, sub, view) else {
            return Access::Ve;
        };
        let g = &mut self.regs.gpr;
        (g[0], g[1], g[2], g[3]) = (a.into(), c.into(), d.into(), b.into());
        Access::Done(())
    }

    fn rdmsr<P: Platform, O: Observer>(&mut self, m: &Machine<P, O>) -> Access<()> {
        match self.read_msr(m, self.regs.gpr[1] as u32) {
            Access::Done(value) => {
                self.regs.gpr[0] = value & 0xFFFF_FFFF;
                self.regs.gpr[2] = value >> 32;
                Access::Done(())
            }
            Access::Refused => Access::Refused,
            Access::Ve => Access::Ve,
        }
    }

    fn wrmsr<P: Platform, O: Observer>(&mut self, m: &Machine<P, O>) -> Access<()> {
        self.write_msr(m, self.regs.gpr[1] as u32, self.edx_eax())
    }

    fn edx_eax(&self) -> u64 {
        self.regs.gpr[0] & 0xFFFF_FFFF | (self.regs.gpr[2] << 32)
    }

    fn xsetbv(&mut self) -> Access<()> {
        let value = self.edx_eax();
        let avx = value & 6 == 4;
        let avx512 = !matches!(value & 0xE0, 0 | 0xE0) || value & 0xE0 != 0 && value & 4 == 0;
        let amx = !matches!((value >> 17) & 3, 0 | 3);
        let allowed = self.tdcs.get(tdcs_word::XFAM) & cpuid::XCR0_BITS;
        let index = self.regs.gpr[1] as u32;
        if index != 0 || value & 1 == 0 || value & !allowed != 0 || avx || avx512 || amx {
            return Access::Refused;
        }
        self.tdvps.set(word::XCR0, value);
        self.entry.xcr0 = value;
        Access::Done(())
    }
}
