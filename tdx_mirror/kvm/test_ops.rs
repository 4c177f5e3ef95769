// SPDX-License-Identifier: GPL-2.0

//! What tests ask of a mirror beyond the contract with KVM, `struct tdx_mirror_test_ops`.

use core::ptr::NonNull;
use kernel::ffi::c_int;

use super::entry::td_of;
use crate::base::addr::Gfn;
use crate::bindings::{
    self,
    tdx_mirror,
    tdx_mirror_stats,
    tdx_mirror_test_ops, //
};
use crate::mirror::spte::Spte;
use crate::watch::stats;

/// Looks a GFN up, see `struct tdx_mirror_test_ops`.
///
/// # Safety
///
/// As of [`td_of`]; `level` is NULL or valid for a write.
unsafe extern "C" fn walk(mirror: *mut tdx_mirror, gfn: u64, level: *mut c_int) -> u64 {
    // SAFETY: By the safety requirements.
    let td = unsafe { td_of(mirror) };
    let found = td.and_then(|td| td.walk(Gfn::new(gfn)?));
    let (spte, at) = found.map_or((Spte::NON_PRESENT, 0), |(at, spte)| {
        (spte, at.level().as_kvm())
    });
    if let Some(level) = NonNull::new(level) {
        // SAFETY: By the safety requirements.
        unsafe { level.write(at) };
    }
    spte.raw()
}

/// Figures of one TD, see `struct tdx_mirror_test_ops`.
///
/// # Safety
///
/// As of [`td_of`]; `out` is NULL or valid for a write.
unsafe extern "C" fn figures(mirror: *mut tdx_mirror, out: *mut tdx_mirror_stats) {
    // SAFETY: By the safety requirements.
    if let (Some(td), Some(out)) = (unsafe { td_of(mirror) }, NonNull::new(out)) {
        // SAFETY: By the safety requirements.
        unsafe { out.write(stats::of(td)) };
    }
}

static OPS: tdx_mirror_test_ops = tdx_mirror_test_ops {
    size: size_of::<tdx_mirror_test_ops>() as u32,
    version: bindings::TDX_MIRROR_TEST_OPS_VERSION,
    walk: Some(walk),
    stats: Some(figures),
};

/// The entry points; exported by `tdx_mirror/kvm/exports.c`.
#[no_mangle]
pub(crate) extern "C" fn tdx_mirror_get_test_ops() -> *const tdx_mirror_test_ops {
    &OPS
}
