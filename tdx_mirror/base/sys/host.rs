// SPDX-License-Identifier: GPL-2.0

//! The host: the same as in the kernel, so that the tests run what ships.

#![forbid(unsafe_code)]

pub use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Entries of one table: a page of 8-byte entries.
pub const TABLE_CELLS: usize = 512;

const _: () = assert!(TABLE_CELLS * size_of::<AtomicU64>() == 4096);
