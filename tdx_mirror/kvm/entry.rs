// SPDX-License-Identifier: GPL-2.0

//! The entry points that KVM calls, `struct tdx_mirror_ops`.
//!
//! Numbers and pointers become types here and errors become an errno. Everything that comes in is
//! checked, because nothing behind the edge may panic. Locks are asserted with lockdep when the
//! evidence tokens are made.

use core::ptr::NonNull;
use kernel::{
    error::code,
    ffi::{
        c_int,
        c_void, //
    },
    prelude::*,
    sync::Arc, //
};

use super::hooks::Hooks;
use super::td::Td;
use super::vcpu;
use super::vm::Caches;
use crate::base::addr::{
    Gfn,
    GfnRange,
    Pfn,
    FRAME_BITS, //
};
use crate::base::level::Level;
use crate::base::sys::{
    AtomicBool,
    Relaxed, //
};
use crate::bindings::{
    self,
    tdx_mirror,
    tdx_mirror_backend,
    tdx_mirror_ops,
    tdx_mirror_vcpu, //
};
use crate::kernel::{
    switches,
    warn, //
};
use crate::mirror::error::{
    MapError,
    MapOutcome, //
};
use crate::watch::registry;
use crate::watch::trace;

/// Whether a TD was offered since the module was loaded: the one sign that the running KVM has
/// the hooks, TDX and a `kvm_intel.tdx_mirror` that chooses this module.
static OFFERED: AtomicBool = AtomicBool::new(false);

/// Reports a caller that breaks the contract. A GFN that is only too large for the TD is no such
/// case: userspace may ask KVM for it.
fn bad_parameter() -> c_int {
    warn::parameter();
    code::EINVAL.to_errno()
}

/// The TD behind KVM's pointer, which is that of an `Arc`, or `None` for NULL.
///
/// # Safety
///
/// `mirror` is NULL or came from `create()`, and KVM does not destroy it during `'a`.
pub(super) unsafe fn td_of<'a>(mirror: *mut tdx_mirror) -> Option<&'a Td> {
    // SAFETY: By the safety requirements.
    unsafe { mirror.cast::<Td>().as_ref() }
}

/// Makes the TD that `backend` asks for, registers it and opens its files.
///
/// # Safety
///
/// As of [`Hooks::new`]; the returned TD is what must not outlive `backend`.
unsafe fn make(backend: *const tdx_mirror_backend) -> Result<Arc<Td>> {
    // SAFETY: By the safety requirements.
    let hooks = unsafe { Hooks::new(backend) }.map_err(|refusal| {
        pr_err!(
            "mirror refused: {refusal}; build kvm_intel and this module from the same sources\n"
        );
        EINVAL
    })?;
    let config = hooks.config();
    let td = Td::new(registry::next_number(), hooks)?;
    let live = registry::add(td.clone())?;
    if switches::recording() {
        td.recorder()
            .create(config.gfn_bits(), config.root_level().as_kvm());
    }
    live.open_files();
    if !OFFERED.xchg(true, Relaxed) {
        pr_info!("KVM handed over a TD, the first one since this module was loaded\n");
    }
    Ok(td)
}

/// Creates a mirror, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// `backend` is what [`Hooks::new`] asks for until `destroy()` returns, `err` is NULL or valid for
/// a write.
unsafe extern "C" fn create(
    backend: *const tdx_mirror_backend,
    err: *mut c_int,
) -> *mut tdx_mirror {
    // SAFETY: The contract says that the backend lives until `destroy()` returns.
    match unsafe { make(backend) } {
        Ok(td) => Arc::into_raw(td).cast_mut().cast(),
        Err(error) => {
            if let Some(err) = NonNull::new(err) {
                // SAFETY: KVM gave a place for it.
                unsafe { err.write(error.to_errno()) };
            }
            core::ptr::null_mut()
        }
    }
}

/// Maps one page, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// As of [`td_of`]; `mmu_lock` is held for read and the page suppliers serve `vcpu`.
unsafe extern "C" fn map(
    mirror: *mut tdx_mirror,
    vcpu: *mut c_void,
    gfn: u64,
    pfn: u64,
    level: c_int,
) -> c_int {
    // SAFETY: The contract says that the mirror lives and that mmu_lock is held for read.
    let Some(td) = (unsafe { td_of(mirror) }) else {
        return bad_parameter();
    };
    let (Some(gfn), Some(pfn), Some(level @ Level::L4K)) =
        (Gfn::new(gfn), Pfn::new(pfn), Level::from_kvm(level))
    else {
        return bad_parameter();
    };
    // SAFETY: By the safety requirements.
    let shared = unsafe { td.lock().assume_read() };
    // SAFETY: By the safety requirements.
    let mut pages = unsafe { Caches::new(td.hooks(), vcpu) };
    let phase = td.mirror().phase(&shared);
    let outcome = match td.mirror().map(&shared, phase, &mut pages, gfn, pfn, level) {
        Ok(MapOutcome::Fixed) => bindings::TDX_MIRROR_MAP_FIXED as c_int,
        Ok(MapOutcome::Spurious) => bindings::TDX_MIRROR_MAP_SPURIOUS as c_int,
        Ok(MapOutcome::Retry(reason)) => {
            (bindings::TDX_MIRROR_MAP_RETRY | vcpu::reason_bits(reason)) as c_int
        }
        Err(MapError::Invalid) => code::EINVAL.to_errno(),
        Err(MapError::Bugged) => code::EIO.to_errno(),
    };
    if trace::fault::is_on() {
        let (gfn, pfn) = (gfn.as_u64(), pfn.as_u64());
        trace::fault::emit(td.number(), gfn, pfn, trace::level(level), outcome);
    }
    if switches::recording() {
        let (gfn, pfn) = (gfn.as_u64(), pfn.as_u64());
        let level = level.as_kvm();
        td.recorder()
            .map(phase, vcpu.addr(), gfn, pfn, level, outcome);
    }
    outcome
}

/// Unmaps a range, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// As of [`td_of`]; `mmu_lock` is held for write.
unsafe extern "C" fn zap_range(
    mirror: *mut tdx_mirror,
    start: u64,
    end: u64,
    can_yield: bool,
) -> u64 {
    // SAFETY: The contract says that the mirror lives and that mmu_lock is held for write.
    let Some(td) = (unsafe { td_of(mirror) }) else {
        return 0;
    };
    // No GFN is larger; what lies between the TD's last one and this limit the mirror skips.
    let Some(range) = GfnRange::new(start, end.min(1 << FRAME_BITS)) else {
        return 0;
    };
    // SAFETY: By the safety requirements.
    let mut exclusive = unsafe { td.lock().assume_write() };
    let phase = td.mirror().phase(&exclusive);
    let zapped = td
        .mirror()
        .zap_range(&mut exclusive, phase, range, can_yield);
    if trace::zap::is_on() {
        trace::zap::emit(td.number(), range.start(), range.end(), zapped);
    }
    if switches::recording() {
        // Once more: the TD may have been finalized while the zap had let go of mmu_lock.
        let phase = td.mirror().phase(&exclusive);
        td.recorder().zap(phase, range.start(), range.end(), zapped);
    }
    zapped
}

/// Gives back all tables, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// As of [`td_of`]; `mmu_lock` is held for write.
unsafe extern "C" fn teardown(mirror: *mut tdx_mirror) {
    // SAFETY: The contract says that the mirror lives and that mmu_lock is held for write.
    let Some(td) = (unsafe { td_of(mirror) }) else {
        return;
    };
    // SAFETY: By the safety requirements.
    let mut exclusive = unsafe { td.lock().assume_write() };
    td.mirror().teardown(&mut exclusive);
    if switches::recording() {
        td.recorder().teardown();
    }
}

/// Frees a mirror, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// `mirror` is NULL or came from [`create()`] and is used by nobody any more.
unsafe extern "C" fn destroy(mirror: *mut tdx_mirror) {
    if mirror.is_null() {
        return;
    }
    // SAFETY: It came from `Arc::into_raw()` in `create()`, and KVM gives it up with this call.
    let td = unsafe { Arc::from_raw(mirror.cast::<Td>().cast_const()) };
    registry::remove(&td);
    if switches::recording() {
        td.recorder().destroy();
    }
    // The registry and the files let go of their references: this is the last one.
    drop(td);
}

/// The notes behind KVM's pointer, or `None` for NULL.
///
/// # Safety
///
/// `vcpu` is NULL or points to notes that nobody else uses during `'a`.
unsafe fn notes_of<'a>(vcpu: *mut tdx_mirror_vcpu) -> Option<&'a mut tdx_mirror_vcpu> {
    // SAFETY: By the safety requirements.
    unsafe { vcpu.as_mut() }
}

/// Judges a fault that is to be retried, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// As of [`td_of`] and [`notes_of`].
unsafe extern "C" fn fault_retry(
    mirror: *mut tdx_mirror,
    vcpu: *mut tdx_mirror_vcpu,
    gfn: u64,
    conditions: u32,
    reason: u32,
) -> u32 {
    // SAFETY: The contract says that the mirror lives and that the notes are the caller's.
    let action = match unsafe { (td_of(mirror), notes_of(vcpu)) } {
        (Some(td), Some(notes)) => vcpu::fault_retry(td, notes, gfn, conditions, reason),
        _ => None,
    };
    action.unwrap_or_else(|| {
        bad_parameter();
        bindings::TDX_MIRROR_EXIT
    })
}

/// Ends a fault, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// As of [`td_of`] and [`notes_of`].
unsafe extern "C" fn fault_done(
    mirror: *mut tdx_mirror,
    vcpu: *mut tdx_mirror_vcpu,
    gfn: u64,
    conditions: u32,
    outcome: c_int,
) -> u32 {
    // SAFETY: The contract says that the mirror lives and that the notes are the caller's.
    match unsafe { (td_of(mirror), notes_of(vcpu)) } {
        (Some(td), Some(notes)) => vcpu::fault_done(td, notes, gfn, conditions, outcome),
        _ => {
            bad_parameter();
            bindings::TDX_MIRROR_EXIT
        }
    }
}

/// Judges a VP.ENTER that found something busy, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// As of [`td_of`] and [`notes_of`].
unsafe extern "C" fn vp_enter_busy(
    mirror: *mut tdx_mirror,
    vcpu: *mut tdx_mirror_vcpu,
    status: u64,
) -> u32 {
    // SAFETY: The contract says that the mirror lives and that the notes are the caller's.
    match unsafe { (td_of(mirror), notes_of(vcpu)) } {
        (Some(td), Some(notes)) => vcpu::vp_enter_busy(td, notes, status),
        _ => {
            bad_parameter();
            bindings::TDX_MIRROR_ENTER
        }
    }
}

/// Ends the files, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// As of [`td_of`].
unsafe extern "C" fn end_files(mirror: *mut tdx_mirror) {
    // SAFETY: The contract says that the mirror lives.
    if let Some(td) = unsafe { td_of(mirror) } {
        registry::end_files(td);
    }
}

static OPS: tdx_mirror_ops = tdx_mirror_ops {
    size: size_of::<tdx_mirror_ops>() as u32,
    abi_version: bindings::TDX_MIRROR_ABI_VERSION,
    create: Some(create),
    map: Some(map),
    zap_range: Some(zap_range),
    teardown: Some(teardown),
    destroy: Some(destroy),
    fault_retry: Some(fault_retry),
    fault_done: Some(fault_done),
    vp_enter_busy: Some(vp_enter_busy),
    end_files: Some(end_files),
};

/// The entry points; exported by `tdx_mirror/kvm/exports.c`.
#[no_mangle]
pub(crate) extern "C" fn tdx_mirror_get_ops() -> *const tdx_mirror_ops {
    &OPS
}
