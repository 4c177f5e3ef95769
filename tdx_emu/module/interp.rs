// SPDX-License-Identifier: GPL-2.0

//! A guest processor without VMX: executes a small instruction set of its own from
//! the TD's private memory, through the same S-EPT that hardware would walk.
//!
//! An instruction is four bytes, operation and registers a, b, c, followed by a
//! 64-bit little-endian immediate where the operation has one. Addresses are
//! guest physical; instructions are aligned to four bytes, data to eight. Registers
//! have their architectural numbers; 4 (RSP) does not exist.

#![forbid(unsafe_code)]

use super::mem::Page;
use super::platform::{
    Entry, GuestExit, GuestRegs, GuestRun, Inject, Platform, Unavailable, Vcpu, VcpuInit,
    TDVPS_VE_INFO, TDVPS_VMCS,
};
use super::tree::{shift, HPA, PS, RWX};

/// Operations, the first byte of an instruction.
pub mod code {
    /// Nothing.
    pub const NOP: u8 = 0;
    /// a = immediate.
    pub const MOVI: u8 = 1;
    /// a = b.
    pub const MOV: u8 = 2;
    /// a = b + immediate.
    pub const ADDI: u8 = 3;
    /// a = memory at b + immediate.
    pub const LOAD: u8 = 4;
    /// Memory at b + immediate = a.
    pub const STORE: u8 = 5;
    /// Jump to immediate.
    pub const JMP: u8 = 6;
    /// Jump to immediate if a and b are equal.
    pub const JEQ: u8 = 7;
    /// Jump to immediate if a and b differ.
    pub const JNE: u8 = 8;
    /// The handler of #VE is at immediate.
    pub const SETVE: u8 = 9;
    /// Return from the handler of #VE; the return address is a + immediate.
    pub const RETVE: u8 = 10;
    /// a = where the last #VE came from.
    pub const VERIP: u8 = 11;
    /// An instruction that exits with VMX reason immediate, for example 10 for CPUID.
    pub const EXIT: u8 = 12;
    /// Triple fault.
    pub const FAULT: u8 = 13;
    /// TDCALL, with the bytes of the real one: 66 0F 01 CC.
    pub const TDCALL: u8 = 0x66;
}

/// Instructions between two looks at the outside world.
const SLICE: u32 = 64;
/// Slices after which the host gets the CPU back.
const SLICES: u32 = 256;

const READ: u64 = 1;
const WRITE: u64 = 2;
const EXECUTE: u64 = 4;

/// Words of page `TDVPS_VMCS`, which is this processor's own.
mod own {
    pub(super) const VE_HANDLER: usize = 0;
    pub(super) const VE_RIP: usize = 1;
}

/// The processor.
pub struct Interpreter;

/// What an instruction did.
enum Step {
    Next,
    Exit(GuestExit),
    /// #VE taken by the processor itself.
    Ve,
}

struct Cpu<'a, P> {
    p: &'a P,
    vcpu: &'a Vcpu,
    own: Page<'a>,
    /// Address bits of an EPT entry, without those of a HKID.
    address: u64,
}

impl<P: Platform> GuestRun<P> for Interpreter {
    fn init(&self, _p: &P, _init: &VcpuInit) -> Result<(), Unavailable> {
        Ok(())
    }

    fn flush(&self, _p: &P, _vcpu: &Vcpu) {}

    fn run(&self, p: &P, vcpu: &Vcpu, entry: Entry, regs: &mut GuestRegs) -> GuestExit {
        let Some(own) = Page::at(p, vcpu.pages[TDVPS_VMCS]) else {
            return GuestExit::Failed {
                reason: 0xFFFF,
                detail: 0,
            };
        };
        // A guest that makes nothing but TDCALLs comes back here after each of them and must not
        // keep the CPU. With an event to inject the poll waits, or the event would be lost.
        if entry.inject == Inject::None && !entry.first && p.interrupt_pending() {
            return GuestExit::Interrupt { info: 0 };
        }
        let c = p.config();
        let hkid = ((1u64 << (c.hkid_bits & 7)) - 1) << (c.hkid_start_bit & 63);
        let address = HPA & !hkid;
        let cpu = Cpu {
            p,
            vcpu,
            own,
            address,
        };
        match entry.inject {
            Inject::Ve if !cpu.take_ve(regs) => return GuestExit::TripleFault,
            // No handler can be installed for these.
            Inject::Exception(..) => return GuestExit::TripleFault,
            Inject::None | Inject::Ve | Inject::Nmi => {}
        }
        for _ in 0..SLICES {
            for _ in 0..SLICE {
                match cpu.step(regs) {
                    Step::Next => {}
                    Step::Exit(why) => return why,
                    Step::Ve if cpu.take_ve(regs) => {}
                    Step::Ve => return GuestExit::TripleFault,
                }
            }
            if p.interrupt_pending() {
                return GuestExit::Interrupt { info: 0 };
            }
        }
        GuestExit::Preempted
    }
}

impl<P: Platform> Cpu<'_, P> {
    /// Goes to the handler of #VE, if there is one.
    fn take_ve(&self, regs: &mut GuestRegs) -> bool {
        let handler = self.own.get(own::VE_HANDLER);
        self.own.set(own::VE_RIP, regs.rip);
        regs.rip = handler;
        handler != 0
    }

    fn step(&self, regs: &mut GuestRegs) -> Step {
        match self.execute(regs) {
            Ok(why) => why.map_or(Step::Next, Step::Exit),
            Err(step) => step,
        }
    }

    fn execute(&self, regs: &mut GuestRegs) -> Result<Option<GuestExit>, Step> {
        let head = self.fetch(regs.rip)?;
        let [op, a, b, _] = head.to_le_bytes();
        let (a, b) = (usize::from(a & 15), usize::from(b & 15));
        let at = regs.rip;
        match op {
            code::NOP => regs.rip = at.wrapping_add(4),
            code::TDCALL => return Ok(Some(GuestExit::Tdcall { user: false })),
            code::MOV => {
                regs.gpr[a] = regs.gpr[b];
                regs.rip = at.wrapping_add(4);
            }
            code::VERIP => {
                regs.gpr[a] = self.own.get(own::VE_RIP);
                regs.rip = at.wrapping_add(4);
            }
            code::FAULT => return Ok(Some(GuestExit::TripleFault)),
            _ => {
                let lo = self.fetch(at.wrapping_add(4))?;
                let hi = self.fetch(at.wrapping_add(8))?;
                let imm = (u64::from(hi) << 32) | u64::from(lo);
                return self.execute_long(regs, op, a, b, imm);
            }
        }
        Ok(None)
    }

    /// Instructions of twelve bytes.
    fn execute_long(
        &self,
        regs: &mut GuestRegs,
        op: u8,
        a: usize,
        b: usize,
        imm: u64,
    ) -> Result<Option<GuestExit>, Step> {
        let g = &mut regs.gpr;
        let mut next = regs.rip.wrapping_add(12);
        match op {
            code::MOVI => g[a & 15] = imm,
            code::ADDI => g[a & 15] = g[b & 15].wrapping_add(imm),
            code::LOAD => {
                let (page, word) = self.access(g[b & 15].wrapping_add(imm), READ)?;
                g[a & 15] = page.get(word);
            }
            code::STORE => {
                let (page, word) = self.access(g[b & 15].wrapping_add(imm), WRITE)?;
                page.set(word, g[a & 15]);
            }
            code::JMP => next = imm,
            code::JEQ if g[a & 15] == g[b & 15] => next = imm,
            code::JNE if g[a & 15] != g[b & 15] => next = imm,
            code::JEQ | code::JNE => {}
            code::SETVE => self.own.set(own::VE_HANDLER, imm),
            code::RETVE => next = g[a & 15].wrapping_add(imm),
            code::EXIT => {
                let reason = imm as u32;
                let why = GuestExit::Instruction {
                    reason,
                    qualification: 0,
                    len: 12,
                    info: 0,
                };
                return Ok(Some(why));
            }
            _ => return Ok(Some(GuestExit::TripleFault)),
        }
        regs.rip = next;
        Ok(None)
    }

    fn fetch(&self, at: u64) -> Result<u32, Step> {
        if at & 3 != 0 {
            return Err(Step::Exit(GuestExit::TripleFault));
        }
        let (page, word) = self.translate(at, EXECUTE)?;
        Ok((page.get(word) >> (at & 4).wrapping_mul(8)) as u32)
    }

    /// The word that an aligned data access reaches.
    fn access(&self, gpa: u64, how: u64) -> Result<(Page<'_>, usize), Step> {
        if gpa & 7 != 0 {
            return Err(Step::Exit(GuestExit::TripleFault));
        }
        self.translate(gpa, how)
    }

    /// Walks the S-EPT or the shared EPT as the CPU does, without a TLB.
    fn translate(&self, gpa: u64, how: u64) -> Result<(Page<'_>, usize), Step> {
        let shared = (gpa >> (self.vcpu.shared_bit & 63)) & 1 != 0;
        let mut pa = if shared {
            self.vcpu.shared_ept
        } else {
            self.vcpu.sept_root
        };
        let mut level = self.vcpu.sept_levels.saturating_sub(1) as u8;
        let mut allowed = RWX;
        let mut raw = 1 << 63;
        let lost = || Step::Exit(GuestExit::EptMisconfig { gpa });
        while pa != 0 {
            let index = (gpa >> shift(level)) as usize;
            raw = Page::at(self.p, pa).ok_or_else(lost)?.get(index);
            allowed &= raw;
            if allowed & how == 0 {
                break;
            }
            if level == 0 || raw & PS != 0 {
                let offset = gpa & super::tree::offset_mask(level);
                let page =
                    Page::at(self.p, (raw & self.address).wrapping_add(offset)).ok_or_else(lost)?;
                return Ok((page, (gpa & 0xFFF) as usize / 8));
            }
            pa = raw & self.address;
            level = level.saturating_sub(1);
        }
        // Bits 7 and 8: the linear address, which is the physical one, is valid.
        let qualification = how | ((allowed & RWX) << 3) | (3 << 7);
        if shared && raw >> 63 == 0 {
            return Err(self.raise_ve(gpa, qualification));
        }
        Err(Step::Exit(GuestExit::EptViolation {
            gpa,
            gla: gpa,
            qualification,
        }))
    }

    /// An EPT violation whose entry does not suppress #VE: the CPU fills in the
    /// information area, unless it is in use.
    fn raise_ve(&self, gpa: u64, qualification: u64) -> Step {
        let Some(info) = Page::at(self.p, self.vcpu.pages[TDVPS_VE_INFO]) else {
            return Step::Exit(GuestExit::TripleFault);
        };
        if info.get(0) >> 32 != 0 {
            return Step::Exit(GuestExit::EptViolation {
                gpa,
                gla: gpa,
                qualification,
            });
        }
        info.set(1, qualification);
        info.set(2, gpa);
        info.set(3, gpa);
        info.set(0, 48 | (0xFFFF_FFFF << 32));
        Step::Ve
    }
}
