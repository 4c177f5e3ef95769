// SPDX-License-Identifier: GPL-2.0

//! loom: modelled atomics.
//!
//! A modelled atomic is no plain word, so a table cannot be laid over a page; tables are small
//! to keep the number of modelled objects low. Entries that do not exist are never reached by
//! the low GFNs that the models use.

#![forbid(unsafe_code)]

use loom::sync::atomic::AtomicUsize;

pub use loom::sync::atomic::{
    AtomicBool,
    Ordering, //
};

/// Entries of one table in a model.
pub const TABLE_CELLS: usize = 2;

/// An entry's word, every two accesses of which are tried in both orders.
///
/// loom remembers only the last access of an object, and of loads only that there was one; of two
/// loads and the cmpxchg of a third thread it may skip an order. The counter is changed with each
/// access, so that no order is skipped. It is relaxed: it orders nothing, and a load may still
/// answer any value that the memory model allows.
#[derive(Debug)]
pub struct AtomicU64 {
    word: loom::sync::atomic::AtomicU64,
    accesses: AtomicUsize,
}

impl AtomicU64 {
    /// A word with the value `v`.
    pub fn new(v: u64) -> Self {
        Self {
            word: loom::sync::atomic::AtomicU64::new(v),
            accesses: AtomicUsize::new(0),
        }
    }

    fn accessed(&self) {
        self.accesses.fetch_add(1, Ordering::Relaxed);
    }

    /// As that of the atomic.
    pub fn load(&self, order: Ordering) -> u64 {
        self.accessed();
        self.word.load(order)
    }

    /// As that of the atomic.
    pub fn store(&self, v: u64, order: Ordering) {
        self.accessed();
        self.word.store(v, order);
    }

    /// As that of the atomic.
    ///
    /// # Errors
    ///
    /// The value that is there, if it is not `current`.
    pub fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.accessed();
        self.word.compare_exchange(current, new, success, failure)
    }
}
