// SPDX-License-Identifier: GPL-2.0

//! What may be switched on while the module runs. Off, each site of a fault or a zap costs one
//! static branch.

use kernel::{
    bindings::static_key_false,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

use crate::bindings;

/// `struct tdx_mirror_switches`.
#[repr(C)]
struct Switches {
    recording: static_key_false,
    timing: static_key_false,
}

// Nothing is read of it but its keys, by address.
#[allow(improper_ctypes)]
extern "C" {
    static tdx_mirror_switches: Switches;
}

/// Whether maps and zaps are written down.
#[inline(always)]
pub(crate) fn recording() -> bool {
    // SAFETY: The key is one of `switches.c`, whose structure has this layout.
    unsafe { kernel::static_branch_unlikely!(tdx_mirror_switches, Switches, recording) }
}

/// Whether freezes are timed.
#[inline(always)]
pub(crate) fn timing() -> bool {
    // SAFETY: The key is one of `switches.c`, whose structure has this layout.
    unsafe { kernel::static_branch_unlikely!(tdx_mirror_switches, Switches, timing) }
}

/// Switches [`recording()`]. Sleeps.
pub(crate) fn set_recording(on: bool) {
    // SAFETY: Called in task context.
    unsafe { bindings::tdx_mirror_switch_recording(on) };
}

/// Switches [`timing()`]. Sleeps.
pub(crate) fn set_timing(on: bool) {
    // SAFETY: Called in task context.
    unsafe { bindings::tdx_mirror_switch_timing(on) };
}

/// Off by default: all vCPUs are kept out of the guest while a part of the S-EPT is read.
static READS_SEPT: Atomic<bool> = Atomic::new(false);

/// Whether the files `map` and `audit` of a TD may read the S-EPT.
pub(crate) fn reads_sept() -> bool {
    READS_SEPT.load(Relaxed)
}

/// Switches [`reads_sept()`].
pub(crate) fn set_reads_sept(on: bool) {
    READS_SEPT.store(on, Relaxed);
}
