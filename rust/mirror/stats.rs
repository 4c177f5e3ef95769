// SPDX-License-Identifier: GPL-2.0

//! Counters.  No decision rests on them, so they are relaxed and, under loom, not modelled.

use core::sync::atomic::{AtomicU64, Ordering};

/// A figure that any thread may change; exact once nobody works on the TD.
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

/// What the mirror counts; the calls of each hook are counted by the external table.
#[derive(Debug, Default)]
pub struct Stats {
    /// Leaves mapped.
    pub mapped: Counter,
    /// Leaves zapped.
    pub zapped: Counter,
    /// Leaf transitions from non-present to present.
    pub leaf_transitions: Counter,
    /// Operations that bailed out at a frozen entry.
    pub frozen_seen: Counter,
    /// Maps that found the leaf mapped to that PFN.
    pub spurious: Counter,
    /// Entries frozen, whether thawed to a new value or rolled back.
    pub frozen: Counter,
    /// Data pages that the TDX module may still own; their entries refuse any fault.
    pub quarantined: Counter,
    /// Pages never given back to the allocator.
    pub leaked: Counter,
    /// Mirror table pages in use, the root included.
    pub tables: Counter,
    /// S-EPT pages in use, without the root, which is one of the TD's control pages.
    pub external_tables: Counter,
    /// Quarantined pages that the teardown could reclaim.
    pub resolved: Counter,
    /// Batches of leaves that were zapped with one TRACK, or without one while the TD is built.
    pub zap_batches: Counter,
}
