// SPDX-License-Identifier: GPL-2.0

//! What tests ask of a mirror beyond the contract with KVM, `struct tdx_mirror_test_ops`.

use core::ptr::NonNull;
use kernel::ffi::c_int;

use super::entry::mirror_of;
use crate::bindings::{
    self,
    tdx_mirror,
    tdx_mirror_stats,
    tdx_mirror_test_ops, //
};
use crate::mirror::spte::Spte;

/// Looks a GFN up, see `struct tdx_mirror_test_ops`.
///
/// # Safety
///
/// As of [`mirror_of`]; `level` is NULL or valid for a write.
unsafe extern "C" fn walk(mirror: *mut tdx_mirror, gfn: u64, level: *mut c_int) -> u64 {
    // SAFETY: By the safety requirements.
    let (spte, at) = match unsafe { mirror_of(mirror) } {
        Some(mirror) => mirror.walk(gfn),
        None => (Spte::NON_PRESENT, 0),
    };
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
/// As of [`mirror_of`]; `out` is NULL or valid for a write.
unsafe extern "C" fn stats(mirror: *mut tdx_mirror, out: *mut tdx_mirror_stats) {
    // SAFETY: By the safety requirements.
    if let (Some(mirror), Some(out)) = (unsafe { mirror_of(mirror) }, NonNull::new(out)) {
        // SAFETY: By the safety requirements.
        unsafe { out.write(mirror.stats()) };
    }
}

static OPS: tdx_mirror_test_ops = tdx_mirror_test_ops {
    size: size_of::<tdx_mirror_test_ops>() as u32,
    version: bindings::TDX_MIRROR_TEST_OPS_VERSION,
    walk: Some(walk),
    stats: Some(stats),
};

/// The entry points; exported by `tdx_mirror/kvm/exports.c`.
#[no_mangle]
pub(crate) extern "C" fn tdx_mirror_get_test_ops() -> *const tdx_mirror_test_ops {
    &OPS
}
