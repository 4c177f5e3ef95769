// SPDX-License-Identifier: GPL-2.0
//! The TDCALL leaves that the payloads use.

use core::arch::asm;

/// Value of R10..R15 for, and after, a TDG.VP.VMCALL.
pub type Vmcall = [u64; 6];

/// R11 of a TDG.VP.VMCALL: reasons of VMX exits, or 10000h and up.
pub const CPUID: u64 = 10;
pub const HLT: u64 = 12;
pub const IO: u64 = 30;
pub const RDMSR: u64 = 31;
pub const WRMSR: u64 = 32;
pub const MMIO: u64 = 48;
pub const MAP_GPA: u64 = 0x10001;
const FATAL_ERROR: u64 = 0x10003;

/// R10 of a TDG.VP.VMCALL: to be repeated from the address in R11.
pub const VMCALL_RETRY: u64 = 1;

/// Class of the statuses that ask for a repetition.
pub const OPERAND_BUSY: u64 = 0x8000_0200_0000_0000;
/// Class of the status of a page that was accepted before.
pub const PAGE_ALREADY_ACCEPTED: u64 = 0x0000_0b0a_0000_0000;
/// Bits of a status that name its class.
pub const CLASS: u64 = 0xffff_ffff_0000_0000;

/// TDG.VP.VMCALL: hands R10..R15 to the VMM and takes them back.
pub fn vmcall(regs: &mut Vmcall) -> u64 {
    let [mut r10, mut r11, mut r12, mut r13, mut r14, mut r15] = *regs;
    let status: u64;
    // SAFETY: leaf 0 with only R10..R15 in the mask changes nothing but these,
    // RAX and RCX, and the memory that the VMM shares.
    unsafe {
        asm!(".byte 0x66, 0x0f, 0x01, 0xcc",
            inout("rax") 0u64 => status, inout("rcx") 0xfc00u64 => _,
            inout("r10") r10, inout("r11") r11, inout("r12") r12,
            inout("r13") r13, inout("r14") r14, inout("r15") r15,
            options(nostack));
    }
    *regs = [r10, r11, r12, r13, r14, r15];
    status
}

/// A standard request to the VMM.  Returns R10 (0 is success) and R11.
pub fn request(leaf: u64, r12: u64, r13: u64, r14: u64, r15: u64) -> (u64, u64) {
    let mut regs = [0, leaf, r12, r13, r14, r15];
    let status = vmcall(&mut regs);
    if status != 0 {
        return (status, 0);
    }
    (regs[0], regs[1])
}

/// What TDG.VP.VEINFO.GET tells.
pub struct VeInfo {
    pub reason: u64,
    pub qualification: u64,
    pub gpa: u64,
    /// instruction length, bits 31:0
    pub insn: u64,
}

/// TDG.VP.VEINFO.GET, or the status if there is no information.
pub fn ve_info() -> Result<VeInfo, u64> {
    let (status, reason, qualification, gpa, insn): (u64, u64, u64, u64, u64);
    // SAFETY: leaf 3 only loads registers.
    unsafe {
        asm!(".byte 0x66, 0x0f, 0x01, 0xcc",
            inout("rax") 3u64 => status, out("rcx") reason, out("rdx") qualification,
            out("r8") _, out("r9") gpa, out("r10") insn, out("r11") _,
            options(nomem, nostack));
    }
    match status {
        0 => Ok(VeInfo {
            reason: reason & 0xffff_ffff,
            qualification,
            gpa,
            insn,
        }),
        _ => Err(status),
    }
}

/// TDG.VP.INFO: GPAW, attributes, vCPU index << 32 | vCPUs.
pub fn vp_info() -> Result<[u64; 3], u64> {
    let (status, gpaw, attributes, vcpus, index): (u64, u64, u64, u64, u64);
    // SAFETY: leaf 1 only loads registers.
    unsafe {
        asm!(".byte 0x66, 0x0f, 0x01, 0xcc",
            inout("rax") 1u64 => status, out("rcx") gpaw, out("rdx") attributes,
            out("r8") vcpus, out("r9") index, out("r10") _, out("r11") _,
            options(nomem, nostack));
    }
    match status {
        0 => Ok([gpaw & 0x3f, attributes, index << 32 | (vcpus & 0xffff_ffff)]),
        _ => Err(status),
    }
}

/// TDG.MEM.PAGE.ACCEPT of the page at `gpa_level` (level in bits 2:0).
pub fn accept(gpa_level: u64) -> u64 {
    let status: u64;
    // SAFETY: leaf 6 makes a page of the TD usable; it changes no page that
    // is in use.
    unsafe {
        asm!(".byte 0x66, 0x0f, 0x01, 0xcc",
            inout("rax") 6u64 => status, inout("rcx") gpa_level => _,
            out("rdx") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            options(nostack));
    }
    status
}

/// Reports a fatal error to the VMM.
pub fn fatal(code: u64, r13: u64, r14: u64) -> ! {
    loop {
        request(FATAL_ERROR, code, r13, r14, 0);
    }
}

/// Writes `value` to `port`.  Returns R10.
pub fn port_out(port: u16, size: u64, value: u64) -> u64 {
    request(IO, size, 1, u64::from(port), value).0
}
