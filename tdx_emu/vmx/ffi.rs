// SPDX-License-Identifier: GPL-2.0

//! VMX instructions, from `tdx_emu/kernel/emu.h`, as safe functions where they are.

use core::ffi::c_int;

/// The instruction failed, or VMX is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VmxError {
    /// VMfail: an operand or the content of the VMCS was bad.
    Fail,
    /// #UD or #GP: VMX was turned off, as at power-off.
    Fault,
    /// The calling context's segments cannot be restored after an exit.
    Refused,
}

/// `struct emu_gprs`.
#[repr(C)]
#[derive(Default)]
pub(super) struct Gprs {
    pub(super) gpr: [u64; 16],
    pub(super) cr2: u64,
}

/// `struct emu_guest`.
#[repr(C)]
pub(super) struct Guest {
    pub(super) xcr0: u64,
    pub(super) xfam: u64,
    pub(super) msrs: [u64; 6],
    pub(super) drs: [u64; 5],
}

/// `struct emu_host_fields`.
#[repr(C)]
#[derive(Default)]
pub(super) struct HostFields {
    pub(super) cr0: u64,
    pub(super) cr3: u64,
    pub(super) cr4: u64,
    pub(super) cs: u64,
    pub(super) ss: u64,
    pub(super) tr: u64,
    pub(super) fs_base: u64,
    pub(super) gs_base: u64,
    pub(super) tr_base: u64,
    pub(super) gdt_base: u64,
    pub(super) idt_base: u64,
    pub(super) sysenter_cs: u64,
    pub(super) sysenter_esp: u64,
    pub(super) sysenter_eip: u64,
    pub(super) efer: u64,
    pub(super) pat: u64,
}

// The layouts are checked on the C side, tdx_emu/kernel/abi_check.c, against
// these numbers.
const _: () = assert!(core::mem::size_of::<Gprs>() == 136);
const _: () = assert!(core::mem::size_of::<Guest>() == 104);
const _: () = assert!(core::mem::size_of::<HostFields>() == 128);

extern "C" {
    fn emu_vmx_supported() -> bool;
    fn emu_vmx_msr(msr: u32) -> u64;
    fn emu_vmx_vmclear(pa: u64) -> c_int;
    fn emu_vmx_vmptrld(pa: u64) -> c_int;
    fn emu_vmx_vmptrst(pa: *mut u64) -> c_int;
    fn emu_vmx_vmread(field: u64, value: *mut u64) -> c_int;
    fn emu_vmx_vmwrite(field: u64, value: u64) -> c_int;
    fn emu_vmx_invept_all() -> c_int;
    fn emu_vmx_host_fields(fields: *mut HostFields);
    fn emu_vmx_enter(regs: *mut Gprs, guest: *mut Guest, xsave: *mut u8, launch: bool) -> c_int;
}

fn result(code: c_int) -> Result<(), VmxError> {
    match code {
        0 => Ok(()),
        1 => Err(VmxError::Fail),
        2 => Err(VmxError::Fault),
        _ => Err(VmxError::Refused),
    }
}

/// Whether the CPU has VMX and XSAVE.
pub(super) fn supported() -> bool {
    // SAFETY: Reads CPU feature flags only.
    unsafe { emu_vmx_supported() }
}

/// Reads a VMX capability MSR, 480h to 491h.
///
/// # Safety
///
/// The MSR must exist: [`supported`] and what the capability bits say.
pub(super) unsafe fn capability(msr: u32) -> u64 {
    // SAFETY: The MSR exists by the contract of this function; reading it has no
    // side effect.
    unsafe { emu_vmx_msr(msr) }
}

/// VMCLEAR of the VMCS at `pa`.
///
/// # Safety
///
/// `pa` must be a page that nothing but the VMCS uses.
pub(super) unsafe fn vmclear(pa: u64) -> Result<(), VmxError> {
    // SAFETY: The CPU writes only to that page, which is given up to it.
    result(unsafe { emu_vmx_vmclear(pa) })
}

/// VMPTRLD of the VMCS at `pa`.
///
/// # Safety
///
/// `pa` must be a page that nothing but the VMCS uses and that stays so until
/// another VMCS is current; interrupts must be off until then, as code in them
/// takes the current VMCS for its own.
pub(super) unsafe fn vmptrld(pa: u64) -> Result<(), VmxError> {
    // SAFETY: See the contract of this function.
    result(unsafe { emu_vmx_vmptrld(pa) })
}

/// Physical address of the current VMCS, all ones if there is none.
pub(super) fn vmptrst() -> Result<u64, VmxError> {
    let mut pa = 0;
    // SAFETY: The pointer is valid for the call; the instruction changes nothing
    // else, and if VMX is off its #UD is caught.
    result(unsafe { emu_vmx_vmptrst(&mut pa) })?;
    Ok(pa)
}

/// VMREAD from the current VMCS.
pub(super) fn vmread(field: u64) -> Result<u64, VmxError> {
    let mut value = 0;
    // SAFETY: As for `vmptrst`.
    result(unsafe { emu_vmx_vmread(field, &mut value) })?;
    Ok(value)
}

/// VMWRITE to the current VMCS.
///
/// # Safety
///
/// The current VMCS must be the caller's, and the value one under which the next
/// VM entry and exit with it are sound.
pub(super) unsafe fn vmwrite(field: u64, value: u64) -> Result<(), VmxError> {
    // SAFETY: See the contract of this function.
    result(unsafe { emu_vmx_vmwrite(field, value) })
}

/// Drops all translations that this CPU derived from any EPT.
pub(super) fn invept_all() -> Result<(), VmxError> {
    // SAFETY: Dropping cached translations is always allowed.
    result(unsafe { emu_vmx_invept_all() })
}

/// Host state of this CPU for the VMCS.
pub(super) fn host_fields() -> HostFields {
    let mut fields = HostFields::default();
    // SAFETY: The pointer is valid for the call, which reads registers.
    unsafe { emu_vmx_host_fields(&mut fields) };
    fields
}

/// One VM entry with the current VMCS, up to the next VM exit.
///
/// # Safety
///
/// The current VMCS must be complete: its host state fields hold for this CPU
/// and its EPT maps no memory that the guest must not reach. Interrupts must be
/// off. `xsave` must point to 64-byte aligned memory for the state components
/// in `guest.xfam`, in the standard format, which nobody else uses.
pub(super) unsafe fn enter(
    regs: &mut Gprs,
    guest: &mut Guest,
    xsave: *mut u8,
    launch: bool,
) -> Result<(), VmxError> {
    // SAFETY: See the contract of this function.
    result(unsafe { emu_vmx_enter(regs, guest, xsave, launch) })
}
