// SPDX-License-Identifier: GPL-2.0

//! The module's WARN sites. Each is a function of its own, which the trace names.

use crate::bindings;

/// A TD broke: shows who called. Once since load.
pub(crate) fn bug() {
    // SAFETY: May be called in any context.
    unsafe { bindings::tdx_mirror_warn_bug() };
}

/// An entry point got what no caller that keeps to the contract gives. Once since load.
pub(crate) fn parameter() {
    // SAFETY: As in `bug()`.
    unsafe { bindings::tdx_mirror_warn_parameter() };
}

/// The TDX module lists a GPA of a vCPU that cannot have had as many faults. Once since load.
pub(crate) fn vp_enter() {
    // SAFETY: As in `bug()`.
    unsafe { bindings::tdx_mirror_warn_vp_enter() };
}

/// Somebody still uses a TD whose HKID is released. Once since load.
pub(crate) fn reclaim_busy() {
    // SAFETY: As in `bug()`.
    unsafe { bindings::tdx_mirror_warn_reclaim_busy() };
}
