// SPDX-License-Identifier: GPL-2.0

//! The atomics that the protocol runs on, and the size of a table.
//!
//! They are the kernel's in name and meaning: each access names its ordering by a type, and a
//! cmpxchg that fails is relaxed, so that only what depends on its value is ordered after it.
//!
//! In a kernel that inlines the helpers of Rust they are the kernel crate's. In another one each
//! access of `kernel::sync::atomic` is a call into C, of which a walk would make five and a map
//! seven. There they are `core`'s, behind the same interface: C code touches none of these words,
//! so that no C barrier has to pair with theirs, and the instructions are those of the helpers.
//! The same goes for the host. Under loom they are loom's, which explores the interleavings of the
//! shipped source.

#![forbid(unsafe_code)]

#[cfg(CONFIG_RUST_INLINE_HELPERS)]
mod kernel;
#[cfg(CONFIG_RUST_INLINE_HELPERS)]
pub use self::kernel::{
    Acquire,
    AtomicBool,
    AtomicU64,
    Full,
    PlainU64,
    Relaxed,
    Release, //
};

#[cfg(not(CONFIG_RUST_INLINE_HELPERS))]
mod words;
#[cfg(not(CONFIG_RUST_INLINE_HELPERS))]
pub use self::words::{
    Acquire,
    AtomicBool,
    AtomicU64,
    Full,
    PlainU64,
    Relaxed,
    Release, //
};

#[cfg(all(loom, not(CONFIG_RUST)))]
mod loom;
#[cfg(all(loom, not(CONFIG_RUST)))]
pub use self::loom::TABLE_CELLS;

/// Entries of one table: a page of 8-byte entries.
#[cfg(not(all(loom, not(CONFIG_RUST))))]
pub const TABLE_CELLS: usize = 512;

#[cfg(not(all(loom, not(CONFIG_RUST))))]
const _: () = assert!(TABLE_CELLS * size_of::<AtomicU64>() == 4096);
