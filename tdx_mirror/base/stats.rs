// SPDX-License-Identifier: GPL-2.0

//! Counters.  No decision rests on them, so they are relaxed and, under loom, not modelled.
//!
//! What a counter is, the user says: one word here, one word of each CPU in the kernel, where a
//! word that all CPUs write would be what a fault waits for most.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// A figure that any thread may change; exact once nobody works on the TD.
pub trait Count: fmt::Debug {
    /// One more.
    fn inc(&self);
    /// One fewer.
    fn dec(&self);
    /// The value now.
    fn get(&self) -> u64;
}

/// A counter that is one word.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter at 0.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more.
    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One fewer.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Count for Counter {
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
pub struct Histogram<C, const N: usize> {
    buckets: [C; N],
}

impl<C: Count, const N: usize> Histogram<C, N> {
    /// A histogram whose counters `make` makes, all 0.
    pub fn new(mut make: impl FnMut() -> C) -> Self {
        Self {
            buckets: core::array::from_fn(|_| make()),
        }
    }

    /// Counts `value`.
    pub fn add(&self, value: u64) {
        let bucket = value.checked_ilog2().unwrap_or(0) as usize;
        if let Some(count) = self.buckets.get(bucket).or(self.buckets.last()) {
            count.inc();
        }
    }

    /// The buckets in order.
    pub fn buckets(&self) -> impl Iterator<Item = u64> + '_ {
        self.buckets.iter().map(Count::get)
    }
}

counters! {
    /// What the mirror counts; the calls of each hook are counted by the external table.
    Stats {
        /// Leaves mapped.
        mapped,
        /// Leaves zapped.
        zapped,
        /// Leaf transitions from non-present to present.
        leaf_transitions,
        /// Operations that bailed out at a frozen entry.
        frozen_seen,
        /// Maps that found the leaf mapped to that PFN.
        spurious,
        /// Maps that may be tried again because somebody else held an entry.
        maps_frozen,
        /// Maps that may be tried again because the TDX module was busy.
        maps_contended,
        /// Maps that may be tried again because there was no page for a table.
        maps_no_page,
        /// Maps of a GFN or level out of range.
        maps_invalid,
        /// Maps that found contention while the TD is built.
        maps_busy,
        /// Maps that found the VM bugged, or made it so.
        maps_bugged,
        /// Entries frozen, whether thawed to a new value or rolled back.
        frozen,
        /// Data pages that the TDX module may still own; their entries refuse any fault.
        quarantined,
        /// Pages never given back to the allocator.
        leaked,
        /// Mirror table pages in use, the root included.
        tables,
        /// S-EPT pages in use, without the root, which is one of the TD's control pages.
        external_tables,
        /// Quarantined pages that the teardown could reclaim.
        resolved,
        /// Batches of leaves that were zapped with one TRACK, or without one while the TD is built.
        zap_batches,
    }
}
