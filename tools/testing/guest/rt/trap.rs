// SPDX-License-Identifier: GPL-2.0
//! Exceptions: #VE is turned into a TDG.VP.VMCALL, all others end the TD.

use crate::{abi, start, tdcall, va, SHARED_BIT};

const VECTOR_VE: u64 = 20;

/// Why the TDX module injected a #VE (a VMX exit reason).
const REASON_EPT_VIOLATION: u64 = 48;

/// What the stubs of `start` push.
#[repr(C)]
pub struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rcx: u64,
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Every exception of a payload comes here.
pub extern "C" fn trap(frame: &mut Frame) {
    if frame.vector != VECTOR_VE {
        tdcall::fatal(
            abi::FATAL_EXCEPTION,
            frame.vector << 32 | (frame.error & 0xffff_ffff),
            frame.rip,
        );
    }
    let info = match tdcall::ve_info() {
        Ok(info) => info,
        Err(status) => tdcall::fatal(abi::FATAL_VE, status, 0),
    };
    let vcpu = start::this_vcpu();
    // SAFETY: the area is this vCPU's own.
    unsafe { (*vcpu).ve_count += 1 };

    let error = match info.reason {
        tdcall::CPUID => ve_cpuid(frame),
        tdcall::HLT => tdcall::request(tdcall::HLT, 0, 0, 0, 0).0,
        tdcall::IO => ve_io(frame, info.qualification),
        tdcall::RDMSR => ve_rdmsr(frame),
        tdcall::WRMSR => {
            let value = frame.rdx << 32 | (frame.rax & 0xffff_ffff);
            tdcall::request(tdcall::WRMSR, frame.rcx & 0xffff_ffff, value, 0, 0).0
        }
        REASON_EPT_VIOLATION if info.gpa & SHARED_BIT == 0 => {
            // The page is there but not accepted: accept it, repeat the access.
            accept_pending(info.gpa);
            return;
        }
        REASON_EPT_VIOLATION => ve_mmio(frame, info.gpa),
        reason => tdcall::fatal(abi::FATAL_VE, reason, info.gpa),
    };
    if error != 0 {
        // SAFETY: as above.
        unsafe { (*vcpu).ve_error = error };
    }
    let length = match info.reason {
        // The length is not reported for EPT violations.
        REASON_EPT_VIOLATION => Insn::at(frame.rip).length,
        _ => info.insn & 0xf,
    };
    frame.rip += length;
}

fn accept_pending(gpa: u64) {
    for _ in 0..crate::ops::BUSY_LIMIT {
        let status = tdcall::accept(gpa & !0xfff);
        match status & tdcall::CLASS {
            0 | tdcall::PAGE_ALREADY_ACCEPTED => return,
            tdcall::OPERAND_BUSY => continue,
            _ => tdcall::fatal(abi::FATAL_VE, status, gpa),
        }
    }
    tdcall::fatal(abi::FATAL_VE, tdcall::OPERAND_BUSY, gpa)
}

fn ve_cpuid(frame: &mut Frame) -> u64 {
    let mut regs = [
        0,
        tdcall::CPUID,
        frame.rax & 0xffff_ffff,
        frame.rcx & 0xffff_ffff,
        0,
        0,
    ];
    let status = tdcall::vmcall(&mut regs);
    if status != 0 || regs[0] != 0 {
        return status | regs[0];
    }
    frame.rax = regs[2] & 0xffff_ffff;
    frame.rbx = regs[3] & 0xffff_ffff;
    frame.rcx = regs[4] & 0xffff_ffff;
    frame.rdx = regs[5] & 0xffff_ffff;
    0
}

fn ve_rdmsr(frame: &mut Frame) -> u64 {
    let (error, value) = tdcall::request(tdcall::RDMSR, frame.rcx & 0xffff_ffff, 0, 0, 0);
    frame.rax = value & 0xffff_ffff;
    frame.rdx = value >> 32;
    error
}

/// `qualification`: bits 2:0 size - 1, bit 3 direction (1: in), bits 31:16 port.
fn ve_io(frame: &mut Frame, qualification: u64) -> u64 {
    let size = (qualification & 7) + 1;
    let port = qualification >> 16 & 0xffff;
    let mask = low_bytes(size);
    if qualification & 8 == 0 {
        return tdcall::request(tdcall::IO, size, 1, port, frame.rax & mask).0;
    }
    let (error, value) = tdcall::request(tdcall::IO, size, 0, port, 0);
    merge(&mut frame.rax, value, size);
    error
}

fn ve_mmio(frame: &mut Frame, gpa: u64) -> u64 {
    let insn = Insn::at(frame.rip);
    if insn.length == 0 {
        tdcall::fatal(abi::FATAL_VE, REASON_EPT_VIOLATION, gpa);
    }
    if insn.store {
        let value = frame.rax & low_bytes(insn.size);
        return tdcall::request(tdcall::MMIO, insn.size, 1, gpa, value).0;
    }
    let (error, value) = tdcall::request(tdcall::MMIO, insn.size, 0, gpa, 0);
    merge(&mut frame.rax, value, insn.size);
    error
}

/// The low `size` bytes.
fn low_bytes(size: u64) -> u64 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => !0,
    }
}

/// Loads `size` bytes into a register as the CPU does.
fn merge(register: &mut u64, value: u64, size: u64) {
    let mask = low_bytes(size);
    *register = match size {
        4 => value & mask,
        _ => (*register & !mask) | (value & mask),
    };
}

/// One of the eight forms of `mov rax, [rdi]` and `mov [rdi], rax` that
/// `ops` uses for MMIO; length 0 for anything else.
struct Insn {
    length: u64,
    size: u64,
    store: bool,
}

impl Insn {
    fn at(rip: u64) -> Self {
        let byte = |n: u64| {
            // SAFETY: the code that just trapped is readable, and followed by
            // more bytes of the image.
            unsafe { ((rip + n) as *const u8).read() }
        };
        let (prefix, size) = match byte(0) {
            0x66 => (1, 2),
            0x48 => (1, 8),
            _ => (0, 4),
        };
        let (store, size) = match byte(prefix) {
            0x88 => (true, 1),
            0x89 => (true, size),
            0x8a => (false, 1),
            0x8b => (false, size),
            _ => (false, 0),
        };
        // ModRM: register RAX, memory at RDI without displacement.
        let length = match (size, byte(prefix + 1)) {
            (1..=8, 0x07) => prefix + 2,
            _ => 0,
        };
        Self {
            length,
            size,
            store,
        }
    }
}

/// Reads `size` bytes at the shared GPA with the instruction that `Insn` knows.
pub fn mmio_read(gpa: u64, size: u64) -> u64 {
    let at = va(gpa | SHARED_BIT);
    let mut value: u64 = 0;
    // SAFETY: the address is mapped in the payload's page tables; the access
    // traps or reads memory that is shared with the VMM.
    unsafe {
        match size {
            1 => core::arch::asm!("mov al, [rdi]", in("rdi") at, inout("rax") value),
            2 => core::arch::asm!("mov ax, [rdi]", in("rdi") at, inout("rax") value),
            4 => core::arch::asm!("mov eax, [rdi]", in("rdi") at, inout("rax") value),
            _ => core::arch::asm!("mov rax, [rdi]", in("rdi") at, inout("rax") value),
        }
    }
    value
}

/// Writes `size` bytes at the shared GPA with the instruction that `Insn` knows.
pub fn mmio_write(gpa: u64, size: u64, value: u64) {
    let at = va(gpa | SHARED_BIT);
    // SAFETY: as in `mmio_read`.
    unsafe {
        match size {
            1 => core::arch::asm!("mov [rdi], al", in("rdi") at, in("rax") value),
            2 => core::arch::asm!("mov [rdi], ax", in("rdi") at, in("rax") value),
            4 => core::arch::asm!("mov [rdi], eax", in("rdi") at, in("rax") value),
            _ => core::arch::asm!("mov [rdi], rax", in("rdi") at, in("rax") value),
        }
    }
}
