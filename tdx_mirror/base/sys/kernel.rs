// SPDX-License-Identifier: GPL-2.0

//! The kernel: `core`'s atomics and tables of one page.

#![forbid(unsafe_code)]

pub use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Entries of one table: a page of 8-byte entries.
pub const TABLE_CELLS: usize = 512;

const _: () = assert!(TABLE_CELLS * size_of::<AtomicU64>() == 4096);
