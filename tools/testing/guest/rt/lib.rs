// SPDX-License-Identifier: GPL-2.0
//! What every payload needs: start-up, TDCALLs, the #VE handler, a panic handler.
//!
//! A payload is a crate of its own with one entry,
//! `extern "C" fn td_main(vcpu: u32, param: u64) -> !`, called on each vCPU in
//! long mode with interrupts off.  `vcpu` is the vCPU's index, `param` the low
//! half of the RCX that the VMM gave to `KVM_TDX_INIT_VCPU`.
//!
//! Memory: virtual addresses below 512 GiB are private GPAs, the next 512 GiB
//! are the same GPAs with the shared bit.  No address is ever translated
//! otherwise, so a GPA is used as a pointer (see [`va`]).
#![no_std]

pub mod abi;
pub mod ops;
pub mod start;
pub mod tdcall;
pub mod trap;

/// The GPA bit that selects shared memory (TDs with 4-level EPT).
pub const SHARED_BIT: u64 = 1 << 47;

/// Virtual address of the shared alias of GPA 0.
const SHARED_VA: u64 = 1 << 39;

/// Virtual address of `gpa`, which may carry the shared bit.
pub fn va(gpa: u64) -> u64 {
    if gpa & SHARED_BIT != 0 {
        (gpa & !SHARED_BIT) + SHARED_VA
    } else {
        gpa
    }
}

/// GPA that the virtual address `va` stands for.
pub fn gpa(va: u64) -> u64 {
    if va & SHARED_VA != 0 {
        (va & !SHARED_VA) | SHARED_BIT
    } else {
        va
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let line = match info.location() {
        Some(at) => u64::from(at.line()),
        None => 0,
    };
    tdcall::fatal(abi::FATAL_PANIC, line, 0)
}
