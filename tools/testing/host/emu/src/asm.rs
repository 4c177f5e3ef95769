// SPDX-License-Identifier: GPL-2.0

//! Writes programs for the interpreter.

use crate::module::interp::code;

pub const RAX: u8 = 0;
pub const RCX: u8 = 1;
pub const RDX: u8 = 2;
pub const RBX: u8 = 3;
pub const RBP: u8 = 5;
pub const R8: u8 = 8;
pub const R9: u8 = 9;
pub const R10: u8 = 10;
pub const R11: u8 = 11;
pub const R12: u8 = 12;
pub const R13: u8 = 13;
pub const R14: u8 = 14;
pub const R15: u8 = 15;

/// A program that starts at `base`.
pub struct Asm {
    base: u64,
    bytes: Vec<u8>,
}

/// An immediate that is not known yet.
#[must_use]
pub struct Fixup(usize);

impl Asm {
    pub fn new(base: u64) -> Asm {
        Asm {
            base,
            bytes: Vec::new(),
        }
    }

    pub fn here(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn short(&mut self, op: u8, a: u8, b: u8) -> &mut Asm {
        self.bytes.extend([op, a, b, 0]);
        self
    }

    fn long(&mut self, op: u8, a: u8, b: u8, imm: u64) -> &mut Asm {
        self.short(op, a, b).bytes.extend(imm.to_le_bytes());
        self
    }

    pub fn movi(&mut self, a: u8, imm: u64) -> &mut Asm {
        self.long(code::MOVI, a, 0, imm)
    }

    pub fn mov(&mut self, a: u8, b: u8) -> &mut Asm {
        self.short(code::MOV, a, b)
    }

    pub fn addi(&mut self, a: u8, b: u8, imm: u64) -> &mut Asm {
        self.long(code::ADDI, a, b, imm)
    }

    pub fn load(&mut self, a: u8, b: u8, imm: u64) -> &mut Asm {
        self.long(code::LOAD, a, b, imm)
    }

    pub fn store(&mut self, a: u8, b: u8, imm: u64) -> &mut Asm {
        self.long(code::STORE, a, b, imm)
    }

    pub fn jmp(&mut self, to: u64) -> &mut Asm {
        self.long(code::JMP, 0, 0, to)
    }

    pub fn jeq(&mut self, a: u8, b: u8, to: u64) -> &mut Asm {
        self.long(code::JEQ, a, b, to)
    }

    pub fn jne(&mut self, a: u8, b: u8, to: u64) -> &mut Asm {
        self.long(code::JNE, a, b, to)
    }

    /// A jump that [`Asm::land`] completes.
    pub fn jeq_later(&mut self, a: u8, b: u8) -> Fixup {
        self.jeq(a, b, 0);
        Fixup(self.bytes.len() - 8)
    }

    pub fn setve_later(&mut self) -> Fixup {
        self.long(code::SETVE, 0, 0, 0);
        Fixup(self.bytes.len() - 8)
    }

    pub fn land(&mut self, f: Fixup) -> &mut Asm {
        let to = self.here().to_le_bytes();
        self.bytes[f.0..f.0 + 8].copy_from_slice(&to);
        self
    }

    pub fn verip(&mut self, a: u8) -> &mut Asm {
        self.short(code::VERIP, a, 0)
    }

    pub fn retve(&mut self, a: u8, imm: u64) -> &mut Asm {
        self.long(code::RETVE, a, 0, imm)
    }

    /// An instruction that exits with a VMX reason.
    pub fn exit(&mut self, reason: u64) -> &mut Asm {
        self.long(code::EXIT, 0, 0, reason)
    }

    pub fn fault(&mut self) -> &mut Asm {
        self.short(code::FAULT, 0, 0)
    }

    pub fn tdcall(&mut self, leaf: u64) -> &mut Asm {
        self.movi(RAX, leaf);
        self.bytes.extend([0x66, 0x0F, 0x01, 0xCC]);
        self
    }

    /// TDG.VP.VMCALL with R10 = 0 and R11 = function, passing R10..R15.
    pub fn vmcall(&mut self, function: u64) -> &mut Asm {
        self.movi(RCX, 0xFC00)
            .movi(R10, 0)
            .movi(R11, function)
            .tdcall(0)
    }
}
