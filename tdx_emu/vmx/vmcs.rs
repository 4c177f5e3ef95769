// SPDX-License-Identifier: GPL-2.0

//! The VMCS: field encodings and the time during which one of ours is current.

use core::marker::PhantomData;

use super::ffi::{self, VmxError};

/// VMCS field encodings (SDM volume 3, appendix B).
pub(super) mod field {
    pub(crate) const GUEST_ES_SELECTOR: u64 = 0x0800;
    pub(crate) const GUEST_INTR_STATUS: u64 = 0x0810;
    pub(crate) const HOST_ES_SELECTOR: u64 = 0x0c00;
    pub(crate) const HOST_CS_SELECTOR: u64 = 0x0c02;
    pub(crate) const HOST_SS_SELECTOR: u64 = 0x0c04;
    pub(crate) const HOST_DS_SELECTOR: u64 = 0x0c06;
    pub(crate) const HOST_FS_SELECTOR: u64 = 0x0c08;
    pub(crate) const HOST_GS_SELECTOR: u64 = 0x0c0a;
    pub(crate) const HOST_TR_SELECTOR: u64 = 0x0c0c;
    pub(crate) const MSR_BITMAP: u64 = 0x2004;
    pub(crate) const TSC_OFFSET: u64 = 0x2010;
    pub(crate) const VIRTUAL_APIC_PAGE: u64 = 0x2012;
    pub(crate) const EPT_POINTER: u64 = 0x201a;
    pub(crate) const EOI_EXIT_BITMAP0: u64 = 0x201c;
    pub(crate) const VE_INFORMATION: u64 = 0x202a;
    pub(crate) const XSS_EXIT_BITMAP: u64 = 0x202c;
    pub(crate) const GUEST_PHYSICAL_ADDRESS: u64 = 0x2400;
    pub(crate) const VMCS_LINK_POINTER: u64 = 0x2800;
    pub(crate) const GUEST_DEBUGCTL: u64 = 0x2802;
    pub(crate) const GUEST_PAT: u64 = 0x2804;
    pub(crate) const GUEST_EFER: u64 = 0x2806;
    pub(crate) const HOST_PAT: u64 = 0x2c00;
    pub(crate) const HOST_EFER: u64 = 0x2c02;
    pub(crate) const PIN_CONTROLS: u64 = 0x4000;
    pub(crate) const CPU_CONTROLS: u64 = 0x4002;
    pub(crate) const EXCEPTION_BITMAP: u64 = 0x4004;
    pub(crate) const CR3_TARGET_COUNT: u64 = 0x400a;
    pub(crate) const EXIT_CONTROLS: u64 = 0x400c;
    pub(crate) const EXIT_MSR_STORE_COUNT: u64 = 0x400e;
    pub(crate) const EXIT_MSR_LOAD_COUNT: u64 = 0x4010;
    pub(crate) const ENTRY_CONTROLS: u64 = 0x4012;
    pub(crate) const ENTRY_MSR_LOAD_COUNT: u64 = 0x4014;
    pub(crate) const ENTRY_INTR_INFO: u64 = 0x4016;
    pub(crate) const ENTRY_ERROR_CODE: u64 = 0x4018;
    pub(crate) const ENTRY_INSTRUCTION_LEN: u64 = 0x401a;
    pub(crate) const TPR_THRESHOLD: u64 = 0x401c;
    pub(crate) const SECONDARY_CONTROLS: u64 = 0x401e;
    pub(crate) const INSTRUCTION_ERROR: u64 = 0x4400;
    pub(crate) const EXIT_REASON: u64 = 0x4402;
    pub(crate) const EXIT_INTR_INFO: u64 = 0x4404;
    pub(crate) const IDT_VECTORING_INFO: u64 = 0x4408;
    pub(crate) const IDT_VECTORING_ERROR_CODE: u64 = 0x440a;
    pub(crate) const EXIT_INSTRUCTION_LEN: u64 = 0x440c;
    pub(crate) const EXIT_INSTRUCTION_INFO: u64 = 0x440e;
    pub(crate) const GUEST_ES_LIMIT: u64 = 0x4800;
    pub(crate) const GUEST_GDTR_LIMIT: u64 = 0x4810;
    pub(crate) const GUEST_IDTR_LIMIT: u64 = 0x4812;
    pub(crate) const GUEST_ES_ACCESS: u64 = 0x4814;
    pub(crate) const GUEST_SS_ACCESS: u64 = 0x4818;
    pub(crate) const GUEST_INTERRUPTIBILITY: u64 = 0x4824;
    pub(crate) const GUEST_ACTIVITY: u64 = 0x4826;
    pub(crate) const GUEST_SYSENTER_CS: u64 = 0x482a;
    pub(crate) const PREEMPTION_TIMER: u64 = 0x482e;
    pub(crate) const HOST_SYSENTER_CS: u64 = 0x4c00;
    pub(crate) const CR0_MASK: u64 = 0x6000;
    pub(crate) const CR4_MASK: u64 = 0x6002;
    pub(crate) const CR0_SHADOW: u64 = 0x6004;
    pub(crate) const CR4_SHADOW: u64 = 0x6006;
    pub(crate) const EXIT_QUALIFICATION: u64 = 0x6400;
    pub(crate) const GUEST_LINEAR_ADDRESS: u64 = 0x640a;
    pub(crate) const GUEST_CR0: u64 = 0x6800;
    pub(crate) const GUEST_CR3: u64 = 0x6802;
    pub(crate) const GUEST_CR4: u64 = 0x6804;
    pub(crate) const GUEST_ES_BASE: u64 = 0x6806;
    pub(crate) const GUEST_CS_BASE: u64 = 0x6808;
    pub(crate) const GUEST_GDTR_BASE: u64 = 0x6816;
    pub(crate) const GUEST_IDTR_BASE: u64 = 0x6818;
    pub(crate) const GUEST_DR7: u64 = 0x681a;
    pub(crate) const GUEST_RSP: u64 = 0x681c;
    pub(crate) const GUEST_RIP: u64 = 0x681e;
    pub(crate) const GUEST_RFLAGS: u64 = 0x6820;
    pub(crate) const GUEST_PENDING_DEBUG: u64 = 0x6822;
    pub(crate) const GUEST_SYSENTER_ESP: u64 = 0x6824;
    pub(crate) const GUEST_SYSENTER_EIP: u64 = 0x6826;
    pub(crate) const HOST_CR0: u64 = 0x6c00;
    pub(crate) const HOST_CR3: u64 = 0x6c02;
    pub(crate) const HOST_CR4: u64 = 0x6c04;
    pub(crate) const HOST_FS_BASE: u64 = 0x6c06;
    pub(crate) const HOST_GS_BASE: u64 = 0x6c08;
    pub(crate) const HOST_TR_BASE: u64 = 0x6c0a;
    pub(crate) const HOST_GDTR_BASE: u64 = 0x6c0c;
    pub(crate) const HOST_IDTR_BASE: u64 = 0x6c0e;
    pub(crate) const HOST_SYSENTER_ESP: u64 = 0x6c10;
    pub(crate) const HOST_SYSENTER_EIP: u64 = 0x6c12;
}

/// No VMCS is current.
const NONE: u64 = u64::MAX;

/// While it lives, a VMCS of ours is the current one of this CPU. KVM does not
/// know: it keeps in memory which of its VMCSs is current, so that one is put
/// back by `Drop`. Ours is cleared then, and with that free to be used on any
/// CPU; the price is a VMLAUNCH where a VMRESUME would do.
pub(super) struct Current {
    pa: u64,
    previous: u64,
    /// The state is this CPU's.
    _not_send: PhantomData<*mut ()>,
}

impl Current {
    /// Makes the VMCS at `pa` current.
    ///
    /// # Safety
    ///
    /// `pa` must be a page with a VMCS revision identifier that nothing else
    /// uses, not current on another CPU. Interrupts must be off for the life of the result.
    pub(super) unsafe fn load(pa: u64) -> Result<Self, VmxError> {
        let previous = ffi::vmptrst()?;
        let current = Current {
            pa,
            previous,
            _not_send: PhantomData,
        };
        // SAFETY: The page holds this VMCS only. Clearing brings it into a
        // defined state if the CPU has never seen it.
        unsafe { ffi::vmclear(pa)? };
        // SAFETY: As above; `Drop` makes the previous one current again, and
        // interrupts are off until then.
        unsafe { ffi::vmptrld(pa)? };
        Ok(current)
    }

    /// Reads a field.
    pub(super) fn read(&self, field: u64) -> Result<u64, VmxError> {
        ffi::vmread(field)
    }

    /// Reads a 32-bit field.
    pub(super) fn read32(&self, field: u64) -> Result<u32, VmxError> {
        Ok(ffi::vmread(field)? as u32)
    }

    /// Writes a field. What makes an entry sound is checked where it is entered,
    /// in `Vmx::run`.
    pub(super) fn write(&self, field: u64, value: u64) -> Result<(), VmxError> {
        // SAFETY: The VMCS is ours while `self` lives; a value takes effect at an
        // entry only, whose contract asks for sound ones.
        unsafe { ffi::vmwrite(field, value) }
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        // SAFETY: The page is still ours. An error means that VMX is off, and
        // with it the VMCS not current any more.
        let _ = unsafe { ffi::vmclear(self.pa) };
        if self.previous != NONE {
            // SAFETY: It was current, with interrupts off ever since, so that
            // its owner cannot have let it go.
            let _ = unsafe { ffi::vmptrld(self.previous) };
        }
    }
}
