// SPDX-License-Identifier: GPL-2.0

//! What a vCPU keeps in its TDVPS pages between entries.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use super::ept::{self, Copied};
use super::ffi::{Guest, HostFields};
use crate::module::{
    Platform, Vcpu, VcpuInit, TDVPS_EPT_ROOT, TDVPS_VAPIC, TDVPS_VMCS, TDVPS_XSAVE,
};

/// State components that fit the XSAVE area: x87, SSE, AVX, AVX-512 and PKRU. The
/// supervisor ones and AMX would need more than this module saves.
const XFAM_SUPPORTED: u64 = 0x2e7;

/// Where [`State`] lies in the XSAVE page, behind the area for `XFAM_SUPPORTED`.
const STATE_OFFSET: usize = 3072;
/// Offset of MXCSR in the area and its reset value.
const MXCSR_WORD: usize = 24 / 8;
const MXCSR_RESET: u64 = 0x1f80;
const DR6_RESET: u64 = 0xffff_0ff0;

/// vCPU state that is neither in the VMCS nor with the core.
#[repr(C)]
pub(super) struct State {
    /// The VMCS has all its fields.
    pub(super) ready: bool,
    /// CR2 of the guest.
    pub(super) cr2: u64,
    /// Switched by hand around each entry.
    pub(super) guest: Guest,
    /// Host state that the VMCS has.
    pub(super) host: HostFields,
    /// Content of the combined EPT root.
    pub(super) copied: Copied,
}

const _: () = assert!(STATE_OFFSET + core::mem::size_of::<State>() <= 4096);

/// The pages of one vCPU, used by one CPU at a time.
pub(super) struct Pages {
    /// Physical address of the VMCS.
    pub(super) vmcs: u64,
    xsave: NonNull<u8>,
}

impl Pages {
    /// The pages of `vcpu`; `None` if it names no memory.
    pub(super) fn of<P: Platform>(p: &P, vcpu: &Vcpu) -> Option<Self> {
        let vmcs = *vcpu.pages.get(TDVPS_VMCS)?;
        p.page(vmcs)?;
        Some(Self {
            vmcs,
            xsave: p.page(*vcpu.pages.get(TDVPS_XSAVE)?)?,
        })
    }

    /// The XSAVE area.
    pub(super) fn xsave(&self) -> *mut u8 {
        self.xsave.as_ptr()
    }

    /// The state behind the XSAVE area.
    ///
    /// # Safety
    ///
    /// The caller must be the only user of the vCPU, as `GuestRun` grants, and
    /// must not hold another reference from here.
    pub(super) unsafe fn state(&mut self) -> &mut State {
        // SAFETY: The page has 4096 bytes and the state fits behind its offset,
        // which is a multiple of its alignment. Each of its fields but `ready`
        // takes any bits, and `init` has cleared that one.
        unsafe { &mut *self.xsave.as_ptr().add(STATE_OFFSET).cast::<State>() }
    }
}

fn fill(page: &[AtomicU64], value: u64) {
    for word in page {
        word.store(value, Ordering::Relaxed);
    }
}

/// Puts the pages of a vCPU into their first state. The VMCS fields follow at the
/// first entry: here interrupts may be on, and a VMCS must not be current then.
pub(super) fn init<P: Platform>(p: &P, init: &VcpuInit, revision: u32) -> Option<()> {
    let vcpu = &init.vcpu;
    if vcpu.xfam & !XFAM_SUPPORTED != 0 {
        return None;
    }

    let vmcs = ept::table(p, *vcpu.pages.get(TDVPS_VMCS)?)?;
    fill(vmcs, 0);
    vmcs.first()?.store(u64::from(revision), Ordering::Relaxed);

    fill(ept::table(p, *vcpu.pages.get(TDVPS_EPT_ROOT)?)?, 0);

    let vapic = ept::table(p, *vcpu.pages.get(TDVPS_VAPIC)?)?;
    fill(vapic, 0);
    for (register, value) in [
        (0x20, u64::from(vcpu.x2apic_id)),
        (0x30, 0x0005_0014),
        (0xf0, 0xff),
        (0x320, 0x1_0000),
        (0x350, 0x1_0000),
        (0x360, 0x1_0000),
        (0x370, 0x1_0000),
    ] {
        vapic.get(register / 8)?.store(value, Ordering::Relaxed);
    }

    let xsave = ept::table(p, *vcpu.pages.get(TDVPS_XSAVE)?)?;
    fill(xsave, 0);
    xsave.get(MXCSR_WORD)?.store(MXCSR_RESET, Ordering::Relaxed);

    let mut pages = Pages::of(p, vcpu)?;
    // SAFETY: VP.INIT holds the vCPU exclusively, and no other reference exists.
    let state = unsafe { pages.state() };
    state.ready = false;
    state.guest.xcr0 = 1;
    state.guest.xfam = vcpu.xfam;
    state.guest.drs = [0, 0, 0, 0, DR6_RESET];

    open_msrs(p, vcpu.msr_bitmap)
}

/// Lets the guest access by itself those MSRs that the CPU or this module
/// switches. All others exit, above all the TSC, which is the host's as well.
fn open_msrs<P: Platform>(p: &P, bitmap: u64) -> Option<()> {
    const READ: u64 = 0;
    const WRITE: u64 = 0x800;

    let words = ept::table(p, bitmap)?;
    // Vcpus of a TD are initialized in parallel and share the page.
    let open = |what: u64, msr: u32| {
        let high = if msr >= 0xc000_0000 { 0x400 } else { 0 };
        let bit = (what + high) * 8 + u64::from(msr & 0x1fff);
        if let Some(word) = words.get((bit / 64) as usize) {
            word.fetch_and(!(1 << (bit % 64)), Ordering::Relaxed);
        }
    };

    // TSC, EFER; virtual x2APIC: TPR, PPR, ISR, TMR, IRR. The VMM has the others.
    for msr in [0x10, 0xc000_0080, 0x808, 0x80a] {
        open(READ, msr);
    }
    for msr in 0x810..0x828 {
        open(READ, msr);
    }
    // TPR, EOI, SELF_IPI.
    for msr in [0x808, 0x80b, 0x83f] {
        open(WRITE, msr);
    }
    // SYSENTER, PAT, STAR, LSTAR, FMASK, FS, GS and KERNEL_GS base, TSC_AUX.
    for msr in [
        0x174,
        0x175,
        0x176,
        0x277,
        0xc000_0081,
        0xc000_0082,
        0xc000_0084,
        0xc000_0100,
        0xc000_0101,
        0xc000_0102,
        0xc000_0103,
    ] {
        open(READ, msr);
        open(WRITE, msr);
    }
    Some(())
}
