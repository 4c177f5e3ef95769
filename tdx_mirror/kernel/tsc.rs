// SPDX-License-Identifier: GPL-2.0

//! The clock of what is timed.

use crate::bindings;

/// The TSC now.
pub(crate) fn cycles() -> u64 {
    // SAFETY: Reads a register, in any context.
    unsafe { bindings::tdx_mirror_cycles() }
}

/// Ticks of the TSC in a millisecond.
pub(crate) fn khz() -> u32 {
    // SAFETY: Reads a variable, in any context.
    unsafe { bindings::tdx_mirror_tsc_khz() }
}
