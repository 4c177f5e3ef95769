// SPDX-License-Identifier: GPL-2.0

//! The kernel's atomics, by the memory model of the kernel (LKMM).

#![forbid(unsafe_code)]

use kernel::sync::atomic::Atomic;

pub use kernel::sync::atomic::{
    Acquire,
    Full,
    Relaxed,
    Release, //
};

/// An entry, or a word that has its order.
pub type AtomicU64 = Atomic<u64>;

/// A condition.
pub type AtomicBool = Atomic<bool>;

/// A word on which no order rests.
pub type PlainU64 = Atomic<u64>;
