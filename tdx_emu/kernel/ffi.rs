// SPDX-License-Identifier: GPL-2.0

//! The machine, from `tdx_emu/kernel/emu.h`, as safe functions.

use core::ffi::{c_int, c_void};
use core::ptr::NonNull;

/// `struct seq_file`.
#[repr(C)]
pub(super) struct SeqFile {
    _opaque: [u8; 0],
}

extern "C" {
    fn emu_this_cpu() -> u32;
    fn emu_nr_cpus() -> u32;
    fn emu_package_of(cpu: u32) -> u32;
    fn emu_nr_packages() -> u32;
    fn emu_phys_bits() -> u32;
    fn emu_keyid_partitioning() -> u64;
    fn emu_tsc() -> u64;
    fn emu_tsc_hz() -> u64;
    fn emu_interrupt_pending() -> bool;
    fn emu_interrupts_on() -> bool;
    fn emu_pause(us: u64);
    fn emu_cpuid(leaf: u32, subleaf: u32, out: *mut u32);
    fn emu_random(value: *mut u64) -> bool;
    fn emu_page(pa: u64) -> *mut c_void;
    fn emu_clear_page(pa: u64) -> bool;
    fn emu_register() -> c_int;
    fn emu_rebooting() -> bool;
    fn emu_check_level() -> u32;
    fn emu_version_is(name: *const u8, len: usize) -> bool;
    fn emu_seq_value(m: *mut SeqFile, name: *const u8, len: usize, value: u64);
    fn emu_seq_text(m: *mut SeqFile, text: *const u8, len: usize);
    fn emu_seq_td(m: *mut SeqFile, tdr: u64, hkid: u64, vcpus: u64, children: u64, mrtd: *const u8);
    fn emu_debugfs_init() -> c_int;
    fn emu_debugfs_exit();
}

/// Wraps a C function that only reads the machine's state.
macro_rules! readers {
    ($($(#[$doc:meta])* $name:ident => $c:ident($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {
        $($(#[$doc])*
        pub(super) fn $name($($arg: $ty),*) -> $ret {
            // SAFETY: Takes any values and only reads registers and kernel variables.
            unsafe { $c($($arg),*) }
        })*
    };
}

readers! {
    /// The calling CPU; stable while preemption is off.
    this_cpu => emu_this_cpu() -> u32;
    /// CPUs that SYS.LP.INIT must run on.
    nr_cpus => emu_nr_cpus() -> u32;
    /// Package of a CPU.
    package_of => emu_package_of(cpu: u32) -> u32;
    /// Number of packages.
    nr_packages => emu_nr_packages() -> u32;
    /// Physical address bits without those of a KeyID.
    phys_bits => emu_phys_bits() -> u32;
    /// MSR 87h: MKTME KeyIDs in the low, TDX KeyIDs in the high half; 0 without.
    keyid_partitioning => emu_keyid_partitioning() -> u64;
    /// The time-stamp counter.
    tsc => emu_tsc() -> u64;
    /// Its frequency in Hz.
    tsc_hz => emu_tsc_hz() -> u64;
    /// Whether the local APIC holds an interrupt back.
    interrupt_pending => emu_interrupt_pending() -> bool;
    /// Whether interrupts are on.
    interrupts_on => emu_interrupts_on() -> bool;
    /// Whether the machine is going down.
    rebooting => emu_rebooting() -> bool;
    /// Module parameter `check`.
    check_level => emu_check_level() -> u32;
}

/// Whether module parameter `version` is `name`.
pub(super) fn version_is(name: &str) -> bool {
    // SAFETY: The text is valid for its length.
    unsafe { emu_version_is(name.as_ptr(), name.len()) }
}

/// CPUID as EAX, EBX, ECX, EDX.
pub(super) fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut out = [0; 4];
    // SAFETY: The pointer is to four writable values.
    unsafe { emu_cpuid(leaf, subleaf, out.as_mut_ptr()) };
    out
}

/// Keeps the CPU busy for `us` microseconds.
pub(super) fn pause(us: u64) {
    // SAFETY: Takes any value and only passes time.
    unsafe { emu_pause(us) }
}

/// A random number of the CPU.
pub(super) fn random() -> Option<u64> {
    let mut value = 0;
    // SAFETY: The pointer is valid for a write.
    unsafe { emu_random(&mut value) }.then_some(value)
}

/// The page at `pa` in the direct map.
pub(super) fn page(pa: u64) -> Option<NonNull<u8>> {
    // SAFETY: Computes an address only.
    NonNull::new(unsafe { emu_page(pa) }.cast())
}

/// Zeroes the page at `pa`; false if there is none.
///
/// # Safety
///
/// Nothing but the TDX module may use the page.
pub(super) unsafe fn clear_page(pa: u64) -> bool {
    // SAFETY: Writes to that page only, if it exists; nobody else uses it by the contract.
    unsafe { emu_clear_page(pa) }
}

/// Attaches this module to the kernel's hook, which runs the TDX bring-up. 0 or a
/// negative errno.
pub(super) fn register() -> c_int {
    // SAFETY: Process context, in module init; `tdx_emu_seamcall` is ready.
    unsafe { emu_register() }
}

/// Creates the debugfs files. 0 or a negative errno.
pub(super) fn debugfs_init() -> c_int {
    // SAFETY: Process context; the callbacks work from now on.
    unsafe { emu_debugfs_init() }
}

/// Removes the debugfs files.
pub(super) fn debugfs_exit() {
    // SAFETY: Process context; takes a failed or missing `debugfs_init` as well.
    unsafe { emu_debugfs_exit() }
}

/// Prints `name value` into a seq_file.
///
/// # Safety
///
/// `m` must be the seq_file that the caller was given.
pub(super) unsafe fn seq_value(m: *mut SeqFile, name: &[u8], value: u64) {
    // SAFETY: The name is valid for its length; `m` by the contract.
    unsafe { emu_seq_value(m, name.as_ptr(), name.len(), value) }
}

/// Prints text into a seq_file.
///
/// # Safety
///
/// `m` must be the seq_file that the caller was given.
pub(super) unsafe fn seq_text(m: *mut SeqFile, text: &str) {
    // SAFETY: The text is valid for its length; `m` by the contract.
    unsafe { emu_seq_text(m, text.as_ptr(), text.len()) }
}

/// Prints a line about a TD into a seq_file.
///
/// # Safety
///
/// `m` must be the seq_file that the caller was given.
pub(super) unsafe fn seq_td(
    m: *mut SeqFile,
    tdr: u64,
    hkid: u64,
    vcpus: u64,
    children: u64,
    mrtd: &[u8; 48],
) {
    // SAFETY: The digest has the 48 bytes that are read; `m` by the contract.
    unsafe { emu_seq_td(m, tdr, hkid, vcpus, children, mrtd.as_ptr()) }
}
