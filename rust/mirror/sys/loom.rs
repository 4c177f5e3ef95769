// SPDX-License-Identifier: GPL-2.0

//! loom: modelled atomics.
//!
//! A modelled atomic is no plain word, so a table cannot be laid over a page; tables are small
//! to keep the number of modelled objects low.  Entries that do not exist are never reached by
//! the low GFNs that the models use.

pub use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Entries of one table in a model.
pub const TABLE_CELLS: usize = 2;
