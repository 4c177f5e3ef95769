// SPDX-License-Identifier: GPL-2.0
//! The parameter block, shared memory between a payload and the VMM.
//!
//! One block per vCPU, at the GPA that the vCPU got in RCX (without the shared
//! bit; accessed through the shared alias): a [`Header`], then up to
//! [`MAX_OPS`] times [`Op`].  The C twin is `guest_ops.h` of the selftests.

/// Value of `Header::magic`, written by the VMM.
pub const MAGIC: u32 = 0x5044_4f54;

/// Bytes of one parameter block.
pub const BLOCK_SIZE: u64 = 16384;

/// Ops in a block.
pub const MAX_OPS: u32 = ((BLOCK_SIZE - 64) / 64) as u32;

/// Port to which a vCPU writes the number of finished ops (32 bit) at the end
/// of its list.  When the VMM re-enters, the list starts anew.
pub const PORT_DONE: u16 = 0x7d0;

/// Port to which `hello` writes its text, one byte at a time.
pub const PORT_TEXT: u16 = 0x7d8;

/// What the VMM and the payload know about a run.
#[repr(C)]
pub struct Header {
    /// [`MAGIC`]
    pub magic: u32,
    /// length of the list
    pub nr_ops: u32,
    /// ops finished, written by the payload after each
    pub done: u32,
    /// index of the vCPU, written by the payload
    pub vcpu: u32,
    /// #VE exceptions taken since start
    pub ve_count: u64,
    /// counts while [`OP_LOOP`] and [`OP_BARRIER`] run
    pub heartbeat: u64,
    /// ends [`OP_LOOP`] when the VMM makes it non-zero
    pub stop: u64,
    pub reserved: [u64; 3],
}

/// One operation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Op {
    /// one of `OP_*`
    pub code: u32,
    /// `FLAG_*`
    pub flags: u32,
    /// operands, see `OP_*`
    pub arg: [u64; 3],
    /// 0, or what failed first: a TDX status or `ERR_*`
    pub status: u64,
    /// results, see `OP_*`
    pub res: [u64; 3],
}

const _: () = assert!(core::mem::size_of::<Header>() == 64);
const _: () = assert!(core::mem::size_of::<Op>() == 64);

/// arg: GPA, pages.  Reads the first word of each page; a page that is still
/// pending is accepted by the #VE handler.
pub const OP_TOUCH: u32 = 1;
/// arg: GPA, pages, level.  res\[0\]: pages accepted, res\[1\]: pages that were
/// accepted already, res\[2\]: busy answers.
pub const OP_ACCEPT: u32 = 2;
/// arg: GPA, pages, seed.  Fills the pages with the pattern.
pub const OP_STORE: u32 = 3;
/// arg: GPA, pages, seed.  res\[0\]: wrong words, res\[1\]: GPA of the first,
/// res\[2\]: what was read there.
pub const OP_VERIFY: u32 = 4;
/// arg: GPA, pages.  As [`OP_VERIFY`], expects zeros.
pub const OP_VERIFY_ZERO: u32 = 5;
/// arg: GPA (with the shared bit: to shared), bytes.  MapGPA until all is
/// done; res\[0\]: address at which it failed, res\[1\]: retries.
pub const OP_MAP_GPA: u32 = 6;
/// arg: port, size, value.
pub const OP_PORT_OUT: u32 = 7;
/// arg: port, size.  res\[0\]: value.
pub const OP_PORT_IN: u32 = 8;
/// arg: GPA without the shared bit, size.  res\[0\]: value.
pub const OP_MMIO_READ: u32 = 9;
/// arg: GPA without the shared bit, size, value.
pub const OP_MMIO_WRITE: u32 = 10;
/// arg: leaf, subleaf.  res\[0\]: EBX:EAX, res\[1\]: EDX:ECX.
pub const OP_CPUID: u32 = 11;
/// arg: MSR.  res\[0\]: value.
pub const OP_RDMSR: u32 = 12;
/// arg: MSR, -, value.
pub const OP_WRMSR: u32 = 13;
/// arg: 1 if interrupts shall not wake the vCPU.  Returns when the VMM wakes it.
pub const OP_HALT: u32 = 14;
/// arg: turns (0: until `Header::stop`).  Counts `Header::heartbeat`.
pub const OP_LOOP: u32 = 15;
/// TDG.VP.INFO.  res\[0\]: GPAW, res\[1\]: attributes, res\[2\]: vCPU index << 32 | vCPUs.
pub const OP_VP_INFO: u32 = 16;
/// arg: RCX of a TDG.MEM.PAGE.ACCEPT, taken as it is.
pub const OP_RAW_ACCEPT: u32 = 17;
/// arg: R11, R12, R13 and res\[1\], res\[2\]: R14, R15 of a TDG.VP.VMCALL, taken
/// as they are.  status: R10; res\[0\]: R11.
pub const OP_RAW_VMCALL: u32 = 18;
/// arg: GPA of a shared word, count.  Adds one to it, waits until it is `count`.
pub const OP_BARRIER: u32 = 19;
/// arg: code.  Reports a fatal error; does not return.
pub const OP_FATAL: u32 = 20;
/// Loads an empty IDT and traps: triple fault; does not return.
pub const OP_TRIPLE_FAULT: u32 = 21;

/// [`OP_PORT_OUT`], [`OP_PORT_IN`], [`OP_MMIO_READ`], [`OP_MMIO_WRITE`],
/// [`OP_CPUID`], [`OP_RDMSR`], [`OP_WRMSR`]: ask the VMM by TDG.VP.VMCALL
/// instead of executing the instruction.
pub const FLAG_VMCALL: u32 = 1;
/// [`OP_TOUCH`]: write instead of read.
pub const FLAG_WRITE: u32 = 2;

/// No such op, or an operand that makes no sense.
pub const ERR_OP: u64 = 0x1_0001;
/// The pattern was not found.
pub const ERR_MISMATCH: u64 = 0x1_0002;
/// The TDX module answered busy too often.
pub const ERR_BUSY: u64 = 0x1_0003;
/// The VMM answered "retry" too often.
pub const ERR_RETRY: u64 = 0x1_0004;
/// The #VE handler's request to the VMM failed.
pub const ERR_VE: u64 = 0x1_0005;

/// Codes of the fatal-error report (bits 31:0 of R12; details in R13, R14).
/// A Rust panic; R13: line.
pub const FATAL_PANIC: u64 = 0x101;
/// An exception other than #VE; R13: vector << 32 | error code, R14: RIP.
pub const FATAL_EXCEPTION: u64 = 0x102;
/// A #VE that cannot be handled; R13: exit reason, R14: GPA.
pub const FATAL_VE: u64 = 0x103;
/// The parameter block has no magic; R13: its GPA.
pub const FATAL_PARAM: u64 = 0x104;
/// [`OP_FATAL`]; R13: code.
pub const FATAL_OP: u64 = 0x105;

/// The word that [`OP_STORE`] puts at `gpa` (without the shared bit).
pub fn pattern(gpa: u64, seed: u64) -> u64 {
    (gpa ^ seed.rotate_left(32) ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
