// SPDX-License-Identifier: GPL-2.0

//! From VMX exits to the exits that the core knows, by a table.

use super::ept;
use super::ffi::VmxError;
use super::vmcs::{field, Current};
use super::walk;
use crate::module::{GuestExit, Platform, Vcpu};

const VALID: u32 = 1 << 31;
const ERROR_CODE_VALID: u32 = 1 << 11;
const ENTRY_FAILED: u32 = 1 << 31;
const TYPE_NMI: u32 = 2;
const TYPE_HARDWARE: u32 = 3;
const UD: u8 = 6;
const DF: u8 = 8;
const GP: u8 = 13;
const PF: u8 = 14;
const VE: u8 = 20;
/// Interruptibility: blocking by STI, MOV SS and NMI.
const NMI_BLOCKING: u32 = 0xb;
const BLOCKING_BY_NMI: u64 = 8;
/// Exit qualification: the exit interrupted an IRET that ended the blocking of NMIs.
const UNBLOCKED_NMI: u64 = 1 << 12;
/// Processor-based control: exit as soon as the guest can take an NMI.
const NMI_WINDOW: u32 = 1 << 22;

/// What is to be done about an exit reason.
#[derive(Clone, Copy)]
enum Kind {
    /// Exception or NMI.
    Exception,
    /// External interrupt.
    Interrupt,
    /// Triple fault.
    TripleFault,
    /// EPT violation.
    EptViolation,
    /// EPT misconfiguration.
    EptMisconfig,
    /// The guest can take the NMI that waits.
    NmiWindow,
    /// The preemption timer ran out.
    Timer,
    /// An instruction about which the core decides.
    Instruction,
    /// A change of a control register bit that the guest does not own.
    Forbidden,
    /// Exit that the controls do not ask for.
    Unexpected,
}

/// By basic exit reason; what is not listed is unexpected.
const KINDS: &[(u16, Kind)] = &[
    (0, Kind::Exception),
    (1, Kind::Interrupt),
    (2, Kind::TripleFault),
    (8, Kind::NmiWindow),
    (10, Kind::Instruction), // CPUID
    (11, Kind::Instruction), // GETSEC
    (12, Kind::Instruction), // HLT
    (13, Kind::Instruction), // INVD
    (15, Kind::Instruction), // RDPMC
    (18, Kind::Instruction), // VMCALL
    (19, Kind::Instruction), // VMCLEAR and the other VMX instructions
    (20, Kind::Instruction),
    (21, Kind::Instruction),
    (22, Kind::Instruction),
    (23, Kind::Instruction),
    (24, Kind::Instruction),
    (25, Kind::Instruction),
    (26, Kind::Instruction),
    (27, Kind::Instruction),
    (28, Kind::Forbidden),
    (30, Kind::Instruction), // I/O
    (31, Kind::Instruction), // RDMSR
    (32, Kind::Instruction), // WRMSR
    (36, Kind::Instruction), // MWAIT
    (39, Kind::Instruction), // MONITOR
    (48, Kind::EptViolation),
    (49, Kind::EptMisconfig),
    (50, Kind::Instruction), // INVEPT
    (52, Kind::Timer),
    (53, Kind::Instruction), // INVVPID
    (54, Kind::Instruction), // WBINVD
    (55, Kind::Instruction), // XSETBV
];

/// Has the guest take an exception at the next entry.
fn raise(vm: &Current, vector: u8, code: Option<u32>) -> Result<(), VmxError> {
    raise_event(vm, TYPE_HARDWARE, vector, code)
}

/// Has the guest take an exception that the core raises. If the exit came during the
/// delivery of another exception, the rules of the double fault apply: #VE counts as
/// a page fault. False if that other exception was a #DF, which is a triple fault: to
/// deliver it once more could go on for ever, and no interrupt gets in between.
pub(super) fn raise_fault(vm: &Current, vector: u8, code: Option<u32>) -> Result<bool, VmxError> {
    let first = vm.read32(field::ENTRY_INTR_INFO)?;
    let delivering = first & VALID != 0 && first >> 8 & 7 == TYPE_HARDWARE;
    let serious = matches!(vector, DF | PF | VE) || is_contributory(vector);
    let (vector, code) = match first as u8 {
        DF if delivering && serious => return Ok(false),
        PF | VE if delivering && serious => (DF, Some(0)),
        first if delivering && is_contributory(first) && is_contributory(vector) => (DF, Some(0)),
        _ => (vector, code),
    };
    raise(vm, vector, code)?;
    Ok(true)
}

/// #DE, #TS, #NP, #SS, #GP.
fn is_contributory(vector: u8) -> bool {
    matches!(vector, 0 | 10..=13)
}

/// Has the guest take an NMI at the next entry, or as soon as it can if `wait` is set: behind
/// an event whose delivery goes on first, and after the end of another NMI.
pub(super) fn raise_nmi(vm: &Current, wait: bool) -> Result<(), VmxError> {
    let blocked = vm.read32(field::GUEST_INTERRUPTIBILITY)? & NMI_BLOCKING != 0
        || vm.read32(field::ENTRY_INTR_INFO)? & VALID != 0;
    let controls = vm.read32(field::CPU_CONTROLS)? & !NMI_WINDOW;
    if wait && blocked {
        return vm.write(field::CPU_CONTROLS, u64::from(controls | NMI_WINDOW));
    }
    vm.write(field::CPU_CONTROLS, u64::from(controls))?;
    raise_event(vm, TYPE_NMI, 2, None)
}

/// Whether the guest is at a privilege level other than 0.
pub(super) fn is_user(vm: &Current) -> Result<bool, VmxError> {
    Ok(vm.read32(field::GUEST_SS_ACCESS)? >> 5 & 3 != 0)
}

fn raise_event(vm: &Current, kind: u32, vector: u8, code: Option<u32>) -> Result<(), VmxError> {
    let mut info = VALID | kind << 8 | u32::from(vector);
    if let Some(code) = code {
        info |= ERROR_CODE_VALID;
        vm.write(field::ENTRY_ERROR_CODE, u64::from(code))?;
    }
    vm.write(field::ENTRY_INTR_INFO, u64::from(info))
}

fn block_nmis(vm: &Current, block: bool) -> Result<(), VmxError> {
    let state = vm.read(field::GUEST_INTERRUPTIBILITY)? & !BLOCKING_BY_NMI;
    let bit = if block { BLOCKING_BY_NMI } else { 0 };
    vm.write(field::GUEST_INTERRUPTIBILITY, state | bit)
}

/// The exit came while an event was being delivered: deliver it again.
fn keep_event(vm: &Current) -> Result<(), VmxError> {
    let info = vm.read32(field::IDT_VECTORING_INFO)?;
    if info & VALID == 0 {
        return Ok(());
    }
    if info & ERROR_CODE_VALID != 0 {
        let code = vm.read(field::IDT_VECTORING_ERROR_CODE)?;
        vm.write(field::ENTRY_ERROR_CODE, code)?;
    }
    if info >> 8 & 7 == TYPE_NMI {
        // Not delivered yet, so it does not block itself.
        block_nmis(vm, false)?;
    }
    // Software interrupts and exceptions: RIP is that of the instruction.
    let len = vm.read(field::EXIT_INSTRUCTION_LEN)?;
    vm.write(field::ENTRY_INSTRUCTION_LEN, len)?;
    // Bit 12 is undefined in the one field and must be 0 in the other.
    vm.write(field::ENTRY_INTR_INFO, u64::from(info & !(1 << 12)))
}

fn exception<P: Platform>(p: &P, vcpu: &Vcpu, vm: &Current) -> Result<Option<GuestExit>, VmxError> {
    let info = vm.read32(field::EXIT_INTR_INFO)?;
    if info >> 8 & 7 == TYPE_NMI {
        return Ok(Some(GuestExit::Nmi { info }));
    }
    if info & 0xff != u32::from(UD) {
        return Ok(Some(GuestExit::Failed {
            reason: 0,
            detail: u64::from(info),
        }));
    }
    if walk::at_tdcall(p, vcpu, vm)? {
        let user = is_user(vm)?;
        return Ok(Some(GuestExit::Tdcall { user }));
    }
    raise(vm, UD, None)?;
    Ok(None)
}

/// What the last exit means; `None` if the guest can go on at once.
pub(super) fn decode<P: Platform>(
    p: &P,
    vcpu: &Vcpu,
    vm: &Current,
    copied: &mut ept::Copied,
) -> Result<Option<GuestExit>, VmxError> {
    let full = vm.read32(field::EXIT_REASON)?;
    let reason = full as u16;
    let qualification = vm.read(field::EXIT_QUALIFICATION)?;

    if full & ENTRY_FAILED != 0 {
        return Ok(Some(GuestExit::Failed {
            reason,
            detail: qualification,
        }));
    }
    keep_event(vm)?;

    let kind = KINDS
        .iter()
        .find(|(r, _)| *r == reason)
        .map_or(Kind::Unexpected, |(_, kind)| *kind);
    Ok(Some(match kind {
        Kind::Exception => return exception(p, vcpu, vm),
        Kind::NmiWindow => {
            raise_nmi(vm, false)?;
            return Ok(None);
        }
        Kind::Forbidden => {
            raise(vm, GP, Some(0))?;
            return Ok(None);
        }
        Kind::Interrupt => GuestExit::Interrupt {
            info: vm.read32(field::EXIT_INTR_INFO)?,
        },
        Kind::TripleFault => GuestExit::TripleFault,
        Kind::EptViolation => {
            let gpa = vm.read(field::GUEST_PHYSICAL_ADDRESS)?;
            let delivering = vm.read32(field::IDT_VECTORING_INFO)? & VALID != 0;
            if qualification & UNBLOCKED_NMI != 0 && !delivering {
                block_nmis(vm, true)?;
            }
            if ept::refresh_entry(p, vcpu, copied, gpa) == Some(true) {
                return Ok(None);
            }
            GuestExit::EptViolation {
                gpa,
                gla: vm.read(field::GUEST_LINEAR_ADDRESS)?,
                qualification,
            }
        }
        Kind::EptMisconfig => GuestExit::EptMisconfig {
            gpa: vm.read(field::GUEST_PHYSICAL_ADDRESS)?,
        },
        Kind::Timer => GuestExit::Preempted,
        Kind::Instruction => GuestExit::Instruction {
            reason: u32::from(reason),
            qualification,
            len: vm.read32(field::EXIT_INSTRUCTION_LEN)?,
            info: vm.read32(field::EXIT_INSTRUCTION_INFO)?,
        },
        Kind::Unexpected => GuestExit::Failed {
            reason,
            detail: qualification,
        },
    }))
}
