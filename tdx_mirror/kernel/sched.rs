// SPDX-License-Identifier: GPL-2.0

//! The scheduler.

use crate::bindings;

/// Gives way to another thread if that is due. Sleeps, so no lock may be held.
pub(crate) fn cond_resched() {
    // SAFETY: Called in task context by code that holds no lock; the kernel checks that in debug
    // builds.
    unsafe { bindings::tdx_mirror_cond_resched() };
}

/// Sleeps for a millisecond or two, or until a signal.
pub(crate) fn pause() {
    // SAFETY: As in `cond_resched()`.
    unsafe { bindings::tdx_mirror_pause() };
}
