// SPDX-License-Identifier: GPL-2.0

//! What the software TDX module needs from its surroundings.
//!
//! [`Platform`] is the machine: memory by physical address, time, pending
//! interrupts, CPUID. [`GuestRun`] is the processor in SEAM non-root mode: it
//! executes a TD's code until something happens that the module must decide.
//! All decisions are taken by the core (`vcpu.rs`, `guestop.rs`); a `GuestRun`
//! only executes, so that the same rules hold for every implementation.

#![expect(unsafe_code, reason = "an unsafe trait")]

use core::ptr::NonNull;

/// Size in bytes of the page that all control structures are made of.
pub const PAGE_SIZE: u64 = 4096;

/// Number of pages of a TDVPS: the TDVPR and five TDH.VP.ADDCX pages.
pub const TDVPS_PAGES: usize = 6;
/// TDVPS page 0: the TDVPR, state of the core. A `GuestRun` must not touch it.
pub const TDVPS_TDVPR: usize = 0;
/// TDVPS page 1: for the `GuestRun`, meant for a VMCS.
pub const TDVPS_VMCS: usize = 1;
/// TDVPS page 2: for the `GuestRun`, meant for a virtual-APIC page.
pub const TDVPS_VAPIC: usize = 2;
/// TDVPS page 3: the virtualization-exception information area, in the layout
/// of the VMX architecture (bytes 0-3 exit reason, 4-7 FFFFFFFFh while an
/// exception is outstanding, 8 qualification, 16 linear address, 24 guest
/// physical address), because the CPU may write it by itself. Bytes 64-127
/// belong to the core, which keeps there what the architecture lacks.
pub const TDVPS_VE_INFO: usize = 3;
/// TDVPS page 4: for the `GuestRun`, meant for the extended register state.
pub const TDVPS_XSAVE: usize = 4;
/// TDVPS page 5: for the `GuestRun`, meant for the combined EPT root.
pub const TDVPS_EPT_ROOT: usize = 5;

/// Fixed properties of the machine. Read often, so it is plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Lowest physical address bit that holds a HKID (12..=58). 52 on a CPU
    /// that takes no physical address bit away for it.
    pub hkid_start_bit: u32,
    /// Number of HKID bits above `hkid_start_bit` (0..=6).
    pub hkid_bits: u32,
    /// Whether S-EPT entries may hold HKIDs: false where a CPU walks them to which these
    /// address bits are reserved.
    pub hkid_in_entries: bool,
    /// First private HKID.
    pub private_hkid_min: u16,
    /// Last private HKID (inclusive). At most 63.
    pub private_hkid_max: u16,
    /// Base of the SEAM range, which no PAGE.ADD source may touch; with size 0
    /// there is none.
    pub seamrr_base: u64,
    /// Size of the SEAM range in bytes.
    pub seamrr_size: u64,
    /// Number of processor packages (1..=8): KEY.CONFIG and CACHE.WB are
    /// complete when each of them has made the call.
    pub packages: u32,
    /// Number of logical processors that must run SYS.LP.INIT before SYS.CONFIG.
    pub lps: u32,
    /// TSC ticks of the time after which a guest whose TDCALLs are refused is stopped with
    /// HOST_PRIORITY_BUSY_TIMEOUT: one second on hardware, until TDH.MNG.WR changes it.
    pub hp_lock_timeout: u64,
}

/// The machine under the module. Called concurrently from all CPUs, also with
/// interrupts off: no method may sleep or allocate.
///
/// # Safety
///
/// A pointer returned by [`Platform::page`] is aligned to 4096 and stays valid
/// for reads and writes of 4096 bytes as long as `self` lives, and all other
/// accesses to that memory by this program are atomic or made by a device or a
/// guest.
pub unsafe trait Platform: Sync {
    /// Where the 4 KiB page at physical address `pa` can be accessed, or `None`
    /// if there is no memory. `pa` is page aligned and carries no HKID.
    fn page(&self, pa: u64) -> Option<NonNull<u8>>;

    /// Zeroes the page at `pa`, which nothing else uses at the moment. False if the
    /// platform leaves that to the core, which does it word by word.
    fn clear_page(&self, _pa: u64) -> bool {
        false
    }

    /// Properties of the machine; the answer never changes.
    fn config(&self) -> Config;

    /// The time-stamp counter of the calling CPU.
    fn tsc(&self) -> u64;

    /// The package of logical processor `lp`, below [`Config::packages`].
    fn package_of(&self, lp: u32) -> u32;

    /// Whether an interrupt waits on the calling CPU: polled by the 2 MiB accept.
    fn interrupt_pending(&self) -> bool;

    /// The same for interruptible leaves of the host. A host that calls with interrupts
    /// off is not interrupted.
    fn host_interrupt_pending(&self) -> bool {
        false
    }

    /// Keeps the CPU busy for `us` microseconds (at most 1,000,000), for an observer
    /// that delays. A platform with a clock is more exact than this loop.
    fn pause(&self, us: u64) {
        for _ in 0..us.saturating_mul(50) {
            core::hint::spin_loop();
        }
    }

    /// CPUID of the machine as EAX, EBX, ECX, EDX; the core masks it for TDs.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];

    /// Random number for values that must be unpredictable, `None` without
    /// entropy.
    fn random(&self) -> Option<u64>;

    /// A page changed its owner: to be made inaccessible, or accessible again,
    /// by any other path. Does nothing unless a platform checks such accesses.
    fn page_owner_changed(&self, _pa: u64, _pages: u64, _private: bool) {}
}

/// Registers of a SEAMCALL, `struct tdx_module_args` of Linux in its order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regs {
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// R8.
    pub r8: u64,
    /// R9.
    pub r9: u64,
    /// R10.
    pub r10: u64,
    /// R11.
    pub r11: u64,
    /// R12.
    pub r12: u64,
    /// R13.
    pub r13: u64,
    /// R14.
    pub r14: u64,
    /// R15.
    pub r15: u64,
    /// RBX.
    pub rbx: u64,
    /// RDI.
    pub rdi: u64,
    /// RSI.
    pub rsi: u64,
}

/// Register file of a vCPU as a [`GuestRun`] loads it before and stores it after
/// running. RSP, RFLAGS, segments, control registers and MSRs stay with the
/// `GuestRun`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestRegs {
    /// General registers by architectural number: 0 RAX, 1 RCX, 2 RDX, 3 RBX,
    /// 4 unused (RSP is the `GuestRun`'s), 5 RBP, 6 RSI, 7 RDI, 8-15 R8-R15.
    pub gpr: [u64; 16],
    /// RIP. After an exit it points at the instruction that exited; the core
    /// moves it on itself where the instruction is complete.
    pub rip: u64,
    /// CR4, for CPUID. Stored by the `GuestRun` at an exit, ignored at an entry.
    pub cr4: u64,
    /// CPL was not 0, for CPUID. Likewise.
    pub user: bool,
}

/// State of a vCPU after TDH.VP.INIT: 32-bit protected mode, flat segments,
/// paging off, RIP FFFFFFF0h, interrupts off.
#[derive(Clone, Copy, Debug)]
pub struct VcpuInit {
    /// The vCPU, as it will be given to [`GuestRun::run`].
    pub vcpu: Vcpu,
    /// Initial register file: RIP, EBX = GPA width, RCX = R8 = the value given to
    /// VP.INIT, ESI = vCPU index, RDX = CPU family/model/stepping.
    pub regs: GuestRegs,
}

/// A vCPU as the `GuestRun` sees it. Physical addresses carry no HKID.
#[derive(Clone, Copy, Debug)]
pub struct Vcpu {
    /// The TDR, which names the TD.
    pub tdr: u64,
    /// Pages of the TDVPS, see `TDVPS_*`. The TDVPR names the vCPU.
    pub pages: [u64; TDVPS_PAGES],
    /// Page of the TDCS with the MSR bitmaps (all ones at ADDCX), shared by the
    /// vCPUs of the TD; the `GuestRun` may clear bits of MSRs that it switches.
    pub msr_bitmap: u64,
    /// Root page of the S-EPT.
    pub sept_root: u64,
    /// Levels of the S-EPT: 4 or 5.
    pub sept_levels: u32,
    /// The bit that makes a guest physical address shared: 47 or 51.
    pub shared_bit: u32,
    /// Field 203Ch: root page of the shared EPT, 0 while not set.
    pub shared_ept: u64,
    /// Field 2016h: posted-interrupt descriptor, 0 while not set.
    pub pi_desc: u64,
    /// Field 0002h: notification vector of posted interrupts.
    pub pi_nv: u16,
    /// Field 4000h: bits of the pin-based controls that the host asked for.
    pub pin_based: u32,
    /// Added to the TSC for the guest.
    pub tsc_offset: u64,
    /// Multiplier of the TSC, 1 << 48 is one.
    pub tsc_multiplier: u64,
    /// ATTRIBUTES of the TD.
    pub attributes: u64,
    /// XFAM of the TD: what XCR0 and IA32_XSS may hold.
    pub xfam: u64,
    /// Index of the vCPU in its TD.
    pub index: u32,
    /// Its x2APIC identifier: that of TDH.VP.INIT version 1, else the index.
    pub x2apic_id: u32,
    /// The logical processor that executes it now.
    pub lp: u32,
}

/// An event that the vCPU takes before its next instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inject {
    /// None. An event whose delivery the last exit interrupted is delivered again.
    None,
    /// Virtualization exception, vector 20 without error code; the information
    /// area in page `TDVPS_VE_INFO` is already filled in.
    Ve,
    /// A hardware exception: #GP(0) is `(13, Some(0))`, #UD `(6, None)`.
    Exception(u8, Option<u32>),
    /// A non-maskable interrupt.
    Nmi,
}

/// How to enter the guest.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Event to inject.
    pub inject: Inject,
    /// The translations that this CPU holds for the TD must be dropped first
    /// (INVEPT): the TD epoch moved, or another vCPU ran here.
    pub flush: bool,
    /// First entry of a TDH.VP.ENTER, as opposed to a return to the guest after
    /// an exit that the core answered. State that the host may have changed
    /// (shared EPT root, posted interrupts) is refreshed then, and the combined
    /// EPT root at every entry.
    pub first: bool,
    /// XCR0 of the guest.
    pub xcr0: u64,
}

/// Why the guest stopped. RIP in [`GuestRegs`] is that of the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestExit {
    /// An EPT violation that the CPU did not turn into a #VE by itself.
    EptViolation {
        /// Guest physical address including the shared bit.
        gpa: u64,
        /// Guest linear address, if bit 7 of the qualification is set.
        gla: u64,
        /// VMX exit qualification.
        qualification: u64,
    },
    /// The EPT was misconfigured at this guest physical address.
    EptMisconfig {
        /// Guest physical address.
        gpa: u64,
    },
    /// TDCALL; leaf and operands in the registers. `user` if CPL was not 0.
    Tdcall {
        /// Executed at CPL above 0, which earns #GP.
        user: bool,
    },
    /// An instruction that exits: CPUID (10), HLT (12), I/O (30), RDMSR (31),
    /// WRMSR (32), XSETBV (55) and so on.
    Instruction {
        /// VMX basic exit reason.
        reason: u32,
        /// VMX exit qualification.
        qualification: u64,
        /// Length of the instruction in bytes.
        len: u32,
        /// VMX instruction information.
        info: u32,
    },
    /// External interrupt, acknowledged: bits 7:0 vector, bit 31 valid. With
    /// `info` 0 it still waits to be taken by the host.
    Interrupt {
        /// VM-exit interruption information.
        info: u32,
    },
    /// A non-maskable interrupt of the host, `info` as for `Interrupt`.
    Nmi {
        /// VM-exit interruption information.
        info: u32,
    },
    /// The guest has had its share (preemption timer, step bound): goes to the
    /// host as OTHER_SMI, after which Linux just enters again.
    Preempted,
    /// Triple fault.
    TripleFault,
    /// The guest could not be entered or left in an unknown way: VMX basic exit
    /// reason and an implementation's own detail. The vCPU is dead after it.
    Failed {
        /// VMX basic exit reason, FFFFh if VM entry itself failed.
        reason: u16,
        /// Detail for a log.
        detail: u64,
    },
}

/// The `GuestRun` has no means to run this vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable;

/// The processor that executes TDs. Methods are called with the vCPU's TDVPR
/// lock held: exclusive for `init`, shared but on one CPU only for the others.
pub trait GuestRun<P: Platform>: Sync {
    /// TDH.VP.INIT: prepare pages `TDVPS_VMCS`.. of the vCPU. An error makes
    /// VP.INIT fail with OPERAND_BUSY|TDVPR.
    fn init(&self, p: &P, init: &VcpuInit) -> Result<(), Unavailable>;

    /// The vCPU leaves this logical processor (TDH.VP.FLUSH): write cached state
    /// back to its pages (VMCLEAR).
    fn flush(&self, p: &P, vcpu: &Vcpu);

    /// Execute until the next exit. Interrupts are off in the host.
    fn run(&self, p: &P, vcpu: &Vcpu, entry: Entry, regs: &mut GuestRegs) -> GuestExit;
}
