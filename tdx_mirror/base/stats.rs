// SPDX-License-Identifier: GPL-2.0

//! Counters. No decision rests on them, so they are relaxed and, under loom, not modelled.
//!
//! What a counter is, the user says: one word here, one word of each CPU in the kernel, where a
//! word that all CPUs write would be what a fault waits for most. Counters that are told apart by a
//! number come as a row, which in the kernel is as small as one of them.

#![forbid(unsafe_code)]

use super::sys::{
    PlainU64,
    Relaxed, //
};
use core::fmt;

/// A figure that any thread may change; exact once nobody works on the TD.
pub trait Count: fmt::Debug {
    /// `N` of them that belong together.
    type Row<const N: usize>: CountRow;
    /// One more.
    fn inc(&self);
    /// One fewer.
    fn dec(&self);
    /// The value now.
    fn get(&self) -> u64;
}

/// Counters in a row, told apart by their index.
pub trait CountRow: fmt::Debug {
    /// One more at `index`, if the row has it.
    fn inc(&self, index: usize);
    /// The value now at `index`, 0 if the row does not have it.
    fn get(&self, index: usize) -> u64;
}

impl<C: Count, const N: usize> CountRow for [C; N] {
    fn inc(&self, index: usize) {
        if let Some(count) = <[C]>::get(self, index) {
            count.inc();
        }
    }

    fn get(&self, index: usize) -> u64 {
        <[C]>::get(self, index).map_or(0, Count::get)
    }
}

/// A counter that is one word.
#[derive(Debug)]
#[repr(transparent)]
pub struct Counter(PlainU64);

impl Default for Counter {
    fn default() -> Self {
        Self::new()
    }
}

impl Counter {
    /// A counter at 0.
    pub const fn new() -> Self {
        Self(PlainU64::new(0))
    }

    /// A row of counters at 0.
    pub fn row<const N: usize>() -> [Self; N] {
        core::array::from_fn(|_| Self::new())
    }

    /// One more.
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// One fewer.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Count for Counter {
    type Row<const N: usize> = [Self; N];

    fn inc(&self) {
        Counter::inc(self);
    }

    fn dec(&self) {
        Counter::dec(self);
    }

    fn get(&self) -> u64 {
        Counter::get(self)
    }
}

/// Defines a structure of counters that one function makes.
macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name<C> {
            $($(#[$field_doc])* pub $field: C,)*
        }

        impl<C> $name<C> {
            /// Counters that `make` makes, all 0.
            pub fn new(mut make: impl FnMut() -> C) -> Self {
                Self {
                    $($field: make(),)*
                }
            }
        }
    };
}
pub(crate) use counters;

/// How often each value came, by powers of two: bucket `n` counts the values from `1 << n` up to
/// `(2 << n) - 1`, bucket 0 also 0, the last one also all that are larger.
#[derive(Debug)]
pub struct Histogram<C: Count, const N: usize> {
    buckets: C::Row<N>,
}

impl<C: Count, const N: usize> Histogram<C, N> {
    /// A histogram of counters that are all 0.
    pub fn new(buckets: C::Row<N>) -> Self {
        Self { buckets }
    }

    /// Counts `value`.
    pub fn add(&self, value: u64) {
        let bucket = value.checked_ilog2().unwrap_or(0) as usize;
        self.buckets.inc(bucket.min(N.saturating_sub(1)));
    }

    /// The buckets in order.
    pub fn buckets(&self) -> impl Iterator<Item = u64> + '_ {
        (0..N).map(|bucket| self.buckets.get(bucket))
    }
}
