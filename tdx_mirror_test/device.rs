// SPDX-License-Identifier: GPL-2.0
//! The software TDX module of the test device: the one instance of it, on memory of the device's
//! own, with the interpreter as the processor of the guests.

mod ffi;

use core::ptr::NonNull;

use crate::instruments::{Instrumented, StatName};
use crate::module::interp::Interpreter;
use crate::module::{Config, Platform, Regs};
use kernel::error::to_result;
use kernel::prelude::*;

/// The memory of the device, see `tdx_mirror_test/pool.c`.
struct Pool;

// SAFETY: The C side answers addresses of whole, aligned pages that it frees only when no SEAMCALL
// comes any more. Nobody else touches pages that the TDX module owns, and the parameters of a call
// are not written during the call.
unsafe impl Platform for Pool {
    fn page(&self, pa: u64) -> Option<NonNull<u8>> {
        ffi::page(pa)
    }

    fn config(&self) -> Config {
        Config {
            hkid_start_bit: 46,
            hkid_bits: 6,
            hkid_in_entries: true,
            private_hkid_min: 16,
            private_hkid_max: 63,
            seamrr_base: 0,
            seamrr_size: 0,
            packages: 1,
            lps: ffi::nr_lps(),
            hp_lock_timeout: ffi::tsc_hz(),
        }
    }

    fn tsc(&self) -> u64 {
        ffi::tsc()
    }

    fn package_of(&self, _lp: u32) -> u32 {
        0
    }

    fn interrupt_pending(&self) -> bool {
        ffi::interrupt_pending()
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        ffi::cpuid(leaf, subleaf)
    }

    fn random(&self) -> Option<u64> {
        Some(ffi::random())
    }
}

static MODULE: Instrumented<Pool, Interpreter> = Instrumented::new(Pool, Interpreter);

/// Brings the software TDX module up and registers the device.
pub(crate) fn start() -> Result {
    to_result(ffi::init())?;
    pr_info!("software TDX module for tests is up, TD code runs on the interpreter\n");
    Ok(())
}

/// Undoes `start`. No file is open, so there is no TD.
pub(crate) fn stop() {
    ffi::exit();
}

/// A SEAMCALL of the device.
///
/// # Safety
///
/// `args` must be valid for reads and writes; preemption must be off, `lp` the calling CPU.
#[no_mangle]
unsafe extern "C" fn tdx_test_seamcall(lp: u32, leaf: u64, args: *mut Regs) -> u64 {
    // SAFETY: By the contract; `Regs` has the layout of `struct tdx_module_args`.
    MODULE.seamcall(lp, leaf, unsafe { &mut *args })
}

/// `struct tdx_test_counters`.
#[repr(C)]
#[derive(Default)]
struct Counters {
    present: u64,
    removed: u64,
    accepts: u64,
    owned: u64,
    errors: u64,
}

/// The counters of the software TDX module.
///
/// # Safety
///
/// `out` must be valid for a write.
#[no_mangle]
unsafe extern "C" fn tdx_test_counters(out: *mut Counters) {
    let mut c = Counters::default();
    MODULE.stats().each(|name, value| match name {
        StatName::Plain("leaf_present_transitions") => c.present = value,
        StatName::Plain("leaf_removed") => c.removed = value,
        StatName::Plain("guest_accepts") => c.accepts = value,
        StatName::Plain("pamt_pages_owned") => c.owned = value,
        StatName::Plain("invariant_errors") => c.errors = value,
        _ => {}
    });
    // SAFETY: By the contract.
    unsafe { out.write(c) };
}

/// Loads a script of the fault injection. 0 or -EINVAL. Callers take turns.
///
/// # Safety
///
/// `script` must be valid for reads of `len` bytes.
#[no_mangle]
unsafe extern "C" fn tdx_test_inject(script: *const u8, len: usize) -> core::ffi::c_int {
    // SAFETY: By the contract.
    let script = unsafe { core::slice::from_raw_parts(script, len) };
    match MODULE.inject().load(script) {
        Ok(()) => 0,
        Err(_) => EINVAL.to_errno(),
    }
}
