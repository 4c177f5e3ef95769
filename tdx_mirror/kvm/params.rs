// SPDX-License-Identifier: GPL-2.0

//! Module parameters, checked once at load and read when a TD is created.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

use crate::bindings;
use crate::mirror::mmu::ZAP_BATCH;
use crate::sept::progress::Policy;
use crate::sept::{
    BUILD_TRIES,
    FAULT_TRIES, //
};

/// Default of `fault_tries`, which is its largest value too: more tries could set off the TDX
/// module's zero-step mitigation.
pub(crate) const DEFAULT_FAULT_TRIES: u32 = FAULT_TRIES;
/// Default of `zap_batch`, which is its largest value too.
pub(crate) const DEFAULT_ZAP_BATCH: u32 = ZAP_BATCH;

static FAULT_TRIES_NOW: Atomic<u32> = Atomic::new(DEFAULT_FAULT_TRIES);
static ZAP_BATCH_NOW: Atomic<u32> = Atomic::new(DEFAULT_ZAP_BATCH);
static POLICY_NOW: Atomic<u32> = Atomic::new(Policy::Warn as u32);

/// Takes the values given at load; `vp_enter_policy` is a parameter of the C part.
///
/// # Errors
///
/// `EINVAL` and a line in the log for a value out of range.
pub(crate) fn set(fault_tries: u32, zap_batch: u32) -> Result {
    in_range("fault_tries", fault_tries, BUILD_TRIES, DEFAULT_FAULT_TRIES)?;
    in_range("zap_batch", zap_batch, 1, DEFAULT_ZAP_BATCH)?;
    let name = policy_name();
    let Some(policy) = Policy::from_name(name) else {
        pr_err!("vp_enter_policy={name} is none of count, warn, kill: choose one of these\n");
        return Err(EINVAL);
    };
    FAULT_TRIES_NOW.store(fault_tries, Relaxed);
    ZAP_BATCH_NOW.store(zap_batch, Relaxed);
    POLICY_NOW.store(policy as u32, Relaxed);
    Ok(())
}

/// What `vp_enter_policy` was set to; empty if that is no text.
fn policy_name() -> &'static str {
    let mut len = 0u32;
    // SAFETY: `len` may be written.
    let name = unsafe { bindings::tdx_mirror_vp_enter_policy(&mut len) };
    // SAFETY: There are `len` bytes at `name`, which do not change after load and stay until the
    // module is unloaded.
    let bytes = unsafe { core::slice::from_raw_parts(name.cast::<u8>(), len as usize) };
    core::str::from_utf8(bytes).unwrap_or("")
}

fn in_range(name: &str, value: u32, min: u32, max: u32) -> Result {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    pr_err!("{name}={value} is not in {min}..{max}: choose another value\n");
    Err(EINVAL)
}

/// Tries of one SEAMCALL in a fault.
pub(crate) fn fault_tries() -> u32 {
    FAULT_TRIES_NOW.load(Relaxed)
}

/// Leaves that are zapped with one TRACK.
pub(crate) fn zap_batch() -> u32 {
    ZAP_BATCH_NOW.load(Relaxed)
}

/// What is done about a vCPU without progress.
pub(crate) fn vp_enter_policy() -> Policy {
    match POLICY_NOW.load(Relaxed) {
        count if count == Policy::Count as u32 => Policy::Count,
        kill if kill == Policy::Kill as u32 => Policy::Kill,
        _ => Policy::Warn,
    }
}
