// SPDX-License-Identifier: GPL-2.0

//! Bad accesses from Rust, for `bad.c`: shows that the kernel's sanitizer sees Rust code too.

/// Reads the byte `at` bytes behind `start`.
///
/// # Safety
///
/// `start` must be an address of the kernel's direct map, and so must the byte read. That the byte
/// belongs to no live object is what the caller wants to be told by KASAN.
#[no_mangle]
unsafe extern "C" fn tdx_mirror_bad_rust_read(start: *const u8, at: usize) -> u8 {
    // SAFETY: The caller says that the address is mapped; a volatile read has no other effect.
    unsafe { start.wrapping_add(at).read_volatile() }
}
