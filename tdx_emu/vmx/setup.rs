// SPDX-License-Identifier: GPL-2.0

//! VMCS content: the controls, and the fields of a vCPU before its first entry.

use super::ept;
use super::ffi::{self, HostFields, VmxError};
use super::vmcs::{field, Current};
use crate::module::{Vcpu, TDVPS_VAPIC, TDVPS_VE_INFO};

const MSR_VMX_BASIC: u32 = 0x480;
const MSR_VMX_MISC: u32 = 0x485;
const MSR_VMX_SECONDARY: u32 = 0x48b;
const MSR_VMX_EPT_VPID: u32 = 0x48c;
const BASIC_TRUE_CONTROLS: u64 = 1 << 55;
/// Single extent: 4-level walks, write-back, INVEPT with the global type.
const EPT_NEEDED: u64 = 1 << 6 | 1 << 14 | 1 << 20 | 1 << 26;

const fn bits(list: &[u32]) -> u32 {
    let mut value = 0;
    let mut rest = list;
    while let [first, tail @ ..] = rest {
        value |= 1 << *first;
        rest = tail;
    }
    value
}

/// External interrupts and NMIs exit, virtual NMIs, preemption timer. Posted
/// interrupts are moved by hand, see `posted.rs`.
const PIN: u32 = bits(&[0, 3, 5, 6]);
/// TSC offset, HLT, MWAIT, RDPMC exiting, TPR shadow, all I/O, MSR bitmaps, MONITOR
/// exiting, secondary controls.
const CPU: u32 = bits(&[3, 7, 10, 11, 21, 24, 28, 29, 31]);
/// EPT, RDTSCP, virtual x2APIC, WBINVD exiting, unrestricted guest, APIC-register
/// virtualization, virtual-interrupt delivery, INVPCID, #VE, XSAVES.
const SECONDARY: u32 = bits(&[1, 3, 4, 6, 7, 8, 9, 12, 18, 20]);
/// Save debug controls, 64-bit host, acknowledge interrupts, PAT and EFER.
const EXIT: u32 = bits(&[2, 9, 15, 18, 19, 20, 21]);
/// Load debug controls, PAT and EFER.
const ENTRY: u32 = bits(&[2, 14, 15]);

const CR0_PE: u64 = 1;
const CR0_NE: u64 = 1 << 5;
const CR4_MCE: u64 = 1 << 6;
const CR4_VMXE: u64 = 1 << 13;
const CR4_SMXE: u64 = 1 << 14;
const EFER_SCE_LME_NXE: u64 = 0x901;
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
const UD_VECTOR: u32 = 6;

/// Controls that this CPU accepts and that do what is needed.
#[derive(Clone, Copy)]
pub(super) struct Controls {
    pub(super) revision: u32,
    pub(super) timer_shift: u32,
    pin: u32,
    cpu: u32,
    secondary: u32,
    exit: u32,
    entry: u32,
}

/// Capability MSRs: bits that must be 1 in the low half, bits that may be 1 in the
/// high half. `None` if a wanted bit may not be 1.
fn adjust(wanted: u32, msr: u32) -> Option<u32> {
    // SAFETY: The caller has found VMX, which brings these MSRs.
    let capability = unsafe { ffi::capability(msr) };
    let allowed = (capability >> 32) as u32;
    (wanted & !allowed == 0).then_some((wanted | capability as u32) & allowed)
}

impl Controls {
    /// Asks the CPU; `None` if it lacks VMX or a feature of it.
    pub(super) fn probe() -> Option<Self> {
        if !ffi::supported() {
            return None;
        }
        // SAFETY: These MSRs exist with VMX; that with the EPT capabilities if EPT
        // can be turned on, which `adjust` has found.
        let basic = unsafe { ffi::capability(MSR_VMX_BASIC) };
        // SAFETY: As above.
        let misc = unsafe { ffi::capability(MSR_VMX_MISC) };
        let shift = if basic & BASIC_TRUE_CONTROLS != 0 {
            12
        } else {
            0
        };

        let controls = Self {
            revision: (basic & 0x7fff_ffff) as u32,
            timer_shift: (misc & 0x1f) as u32,
            pin: adjust(PIN, 0x481 + shift)?,
            cpu: adjust(CPU, 0x482 + shift)?,
            exit: adjust(EXIT, 0x483 + shift)?,
            entry: adjust(ENTRY, 0x484 + shift)?,
            secondary: adjust(SECONDARY, MSR_VMX_SECONDARY)?,
        };
        // SAFETY: As above.
        let ept = unsafe { ffi::capability(MSR_VMX_EPT_VPID) };
        (ept & EPT_NEEDED == EPT_NEEDED).then_some(controls)
    }
}

/// Writes what changes from CPU to CPU and from process to process, as far as it
/// differs from what the VMCS holds, `old`.
pub(super) fn write_host(vm: &Current, old: &mut HostFields) -> Result<(), VmxError> {
    let new = ffi::host_fields();
    for (f, old, new) in [
        (field::HOST_CR0, old.cr0, new.cr0),
        (field::HOST_CR3, old.cr3, new.cr3),
        (field::HOST_CR4, old.cr4, new.cr4),
        (field::HOST_CS_SELECTOR, old.cs, new.cs),
        (field::HOST_SS_SELECTOR, old.ss, new.ss),
        (field::HOST_TR_SELECTOR, old.tr, new.tr),
        (field::HOST_FS_BASE, old.fs_base, new.fs_base),
        (field::HOST_GS_BASE, old.gs_base, new.gs_base),
        (field::HOST_TR_BASE, old.tr_base, new.tr_base),
        (field::HOST_GDTR_BASE, old.gdt_base, new.gdt_base),
        (field::HOST_IDTR_BASE, old.idt_base, new.idt_base),
        (field::HOST_SYSENTER_CS, old.sysenter_cs, new.sysenter_cs),
        (field::HOST_SYSENTER_ESP, old.sysenter_esp, new.sysenter_esp),
        (field::HOST_SYSENTER_EIP, old.sysenter_eip, new.sysenter_eip),
        (field::HOST_EFER, old.efer, new.efer),
        (field::HOST_PAT, old.pat, new.pat),
    ] {
        if old != new {
            vm.write(f, new)?;
        }
    }
    *old = new;
    Ok(())
}

/// Writes all other fields once, before the first entry.
pub(super) fn write_first(vm: &Current, controls: &Controls, vcpu: &Vcpu) -> Result<(), VmxError> {
    let page = |i: usize| vcpu.pages.get(i).copied().ok_or(VmxError::Fail);

    for (f, value) in [
        (field::PIN_CONTROLS, u64::from(controls.pin)),
        (field::CPU_CONTROLS, u64::from(controls.cpu)),
        (field::SECONDARY_CONTROLS, u64::from(controls.secondary)),
        (field::EXIT_CONTROLS, u64::from(controls.exit)),
        (field::ENTRY_CONTROLS, u64::from(controls.entry)),
        (field::EXCEPTION_BITMAP, 1 << UD_VECTOR),
        (field::MSR_BITMAP, vcpu.msr_bitmap),
        (field::VIRTUAL_APIC_PAGE, page(TDVPS_VAPIC)?),
        (field::VE_INFORMATION, page(TDVPS_VE_INFO)?),
        (
            field::EPT_POINTER,
            ept::pointer(vcpu).ok_or(VmxError::Fail)?,
        ),
        (field::TSC_OFFSET, vcpu.tsc_offset),
        (field::VMCS_LINK_POINTER, u64::MAX),
        // The guest may not leave VMX operation or turn on what it has no use
        // for; it reads VMXE as 0 as in any machine without VMX.
        (field::CR0_MASK, CR0_NE),
        (field::CR0_SHADOW, CR0_NE),
        (field::CR4_MASK, CR4_VMXE | CR4_SMXE),
        (field::CR4_SHADOW, 0),
    ] {
        vm.write(f, value)?;
    }
    for f in [
        field::CR3_TARGET_COUNT,
        field::EXIT_MSR_STORE_COUNT,
        field::EXIT_MSR_LOAD_COUNT,
        field::ENTRY_MSR_LOAD_COUNT,
        field::ENTRY_INTR_INFO,
        field::TPR_THRESHOLD,
        field::XSS_EXIT_BITMAP,
        field::EOI_EXIT_BITMAP0,
        field::EOI_EXIT_BITMAP0 + 2,
        field::EOI_EXIT_BITMAP0 + 4,
        field::EOI_EXIT_BITMAP0 + 6,
        field::HOST_FS_BASE,
        field::HOST_GS_BASE,
        field::HOST_SYSENTER_CS,
        field::HOST_SYSENTER_ESP,
        field::HOST_SYSENTER_EIP,
        field::HOST_ES_SELECTOR,
        field::HOST_DS_SELECTOR,
        field::HOST_FS_SELECTOR,
        field::HOST_GS_SELECTOR,
        field::GUEST_INTR_STATUS,
        field::GUEST_INTERRUPTIBILITY,
        field::GUEST_ACTIVITY,
        field::GUEST_PENDING_DEBUG,
        field::GUEST_DEBUGCTL,
        field::GUEST_SYSENTER_CS,
        field::GUEST_SYSENTER_ESP,
        field::GUEST_SYSENTER_EIP,
        field::GUEST_CR3,
        field::GUEST_RSP,
        field::GUEST_GDTR_BASE,
        field::GUEST_IDTR_BASE,
    ] {
        vm.write(f, 0)?;
    }
    write_guest(vm)
}

/// Guest state of a new TD vCPU: flat 32-bit protected mode, paging off.
fn write_guest(vm: &Current) -> Result<(), VmxError> {
    const CODE: u64 = 0xc09b;
    const DATA: u64 = 0xc093;
    const LDT: u64 = 0x1_0082;
    const TSS: u64 = 0x8b;

    // ES, CS, SS, DS, FS, GS, LDTR, TR: limit and access rights; base and selector 0.
    let segments = [
        (0xffff_ffff, DATA),
        (0xffff_ffff, CODE),
        (0xffff_ffff, DATA),
        (0xffff_ffff, DATA),
        (0xffff_ffff, DATA),
        (0xffff_ffff, DATA),
        (0xffff, LDT),
        (0xffff, TSS),
    ];
    let mut offset = 0u64;
    for (limit, access) in segments {
        let at = |first: u64| first.wrapping_add(offset);
        vm.write(at(field::GUEST_ES_SELECTOR), 0)?;
        vm.write(at(field::GUEST_ES_BASE), 0)?;
        vm.write(at(field::GUEST_ES_LIMIT), limit)?;
        vm.write(at(field::GUEST_ES_ACCESS), access)?;
        offset = offset.wrapping_add(2);
    }
    for (f, value) in [
        (field::GUEST_GDTR_LIMIT, 0xffff),
        (field::GUEST_IDTR_LIMIT, 0xffff),
        (field::GUEST_CR0, CR0_PE | CR0_NE),
        (field::GUEST_CR4, CR4_MCE | CR4_VMXE),
        (field::GUEST_EFER, EFER_SCE_LME_NXE),
        (field::GUEST_PAT, PAT_RESET),
        (field::GUEST_DR7, 0x400),
        (field::GUEST_RFLAGS, 2),
    ] {
        vm.write(f, value)?;
    }
    Ok(())
}
