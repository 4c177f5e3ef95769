// SPDX-License-Identifier: GPL-2.0
//! The C side of the test device, from `tdx_mirror_test/test.h`, as safe functions.

use core::ffi::{c_int, c_void};
use core::ptr::NonNull;

extern "C" {
    fn tdx_test_page(pa: u64) -> *mut c_void;
    fn tdx_test_nr_lps() -> u32;
    fn tdx_test_tsc() -> u64;
    fn tdx_test_tsc_hz() -> u64;
    fn tdx_test_interrupt_pending() -> bool;
    fn tdx_test_cpuid(leaf: u32, subleaf: u32, out: *mut u32);
    fn tdx_test_random() -> u64;
    fn tdx_test_init() -> c_int;
    fn tdx_test_exit();
}

/// Wraps C functions that take nothing.
macro_rules! safe {
    ($($(#[$doc:meta])* $name:ident => $c:ident() $(-> $ret:ty)?;)*) => {
        $($(#[$doc])*
        pub(super) fn $name() $(-> $ret)? {
            // SAFETY: Takes nothing and keeps nothing of ours; init and exit are called by module
            // init and exit, the others at any time.
            unsafe { $c() }
        })*
    };
}

safe! {
    /// CPUs that SYS.LP.INIT is called for.
    nr_lps => tdx_test_nr_lps() -> u32;
    /// The time-stamp counter.
    tsc => tdx_test_tsc() -> u64;
    /// Its frequency in Hz.
    tsc_hz => tdx_test_tsc_hz() -> u64;
    /// Whether a vCPU is wanted out of the guest.
    interrupt_pending => tdx_test_interrupt_pending() -> bool;
    /// A random number.
    random => tdx_test_random() -> u64;
    /// Brings the TDX module up on memory of the device, and registers that. 0 or a negative
    /// errno. Once, by module init.
    init => tdx_test_init() -> c_int;
    /// Unregisters the device and frees its memory. After a successful `init`.
    exit => tdx_test_exit();
}

/// CPUID as EAX, EBX, ECX, EDX.
pub(super) fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut out = [0; 4];
    // SAFETY: The pointer is to four writable values.
    unsafe { tdx_test_cpuid(leaf, subleaf, out.as_mut_ptr()) };
    out
}

/// The page at `pa` of the device's own memory.
pub(super) fn page(pa: u64) -> Option<NonNull<u8>> {
    // SAFETY: Computes an address only.
    NonNull::new(unsafe { tdx_test_page(pa) }.cast())
}
