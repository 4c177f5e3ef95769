// SPDX-License-Identifier: GPL-2.0

//! Module parameters, checked once at load and read when a TD is created.

use core::sync::atomic::{AtomicU32, Ordering};
use kernel::prelude::*;

use crate::sept::{BUILD_TRIES, FAULT_TRIES};

/// Default of `fault_tries`, which is its largest value too: more tries could set off the TDX
/// module's zero-step mitigation.
pub(crate) const DEFAULT_FAULT_TRIES: u32 = FAULT_TRIES;

static FAULT_TRIES_NOW: AtomicU32 = AtomicU32::new(DEFAULT_FAULT_TRIES);

/// Takes the values given at load.
///
/// # Errors
///
/// `EINVAL` and a line in the log for a value out of range.
pub(crate) fn set(fault_tries: u32) -> Result {
    if !(BUILD_TRIES..=DEFAULT_FAULT_TRIES).contains(&fault_tries) {
        pr_err!("fault_tries={fault_tries} is not in {BUILD_TRIES}..{DEFAULT_FAULT_TRIES}\n");
        return Err(EINVAL);
    }
    FAULT_TRIES_NOW.store(fault_tries, Ordering::Relaxed);
    Ok(())
}

/// Tries of one SEAMCALL in a fault.
pub(crate) fn fault_tries() -> u32 {
    FAULT_TRIES_NOW.load(Ordering::Relaxed)
}
