// SPDX-License-Identifier: GPL-2.0

//! Bad accesses from Rust and bad calls to and from it, for `bad.c`: shows that the kernel's
//! sanitizers see Rust code too.

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

/// Answers 0. C calls it as if it returned an enum, which has the same ABI and another type.
#[no_mangle]
extern "C" fn tdx_mirror_bad_rust_answer() -> u32 {
    0
}

/// Calls `answer`, which C defines as a function that returns an enum.
///
/// # Safety
///
/// `answer` must be a function without arguments that returns 32 bits in EAX. That its type is
/// another one is what the caller wants to be told by kCFI.
#[no_mangle]
unsafe extern "C" fn tdx_mirror_bad_rust_call(answer: unsafe extern "C" fn() -> u32) -> u32 {
    // SAFETY: The caller says that it is a function with this ABI.
    unsafe { answer() }
}
