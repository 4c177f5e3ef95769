// SPDX-License-Identifier: GPL-2.0

//! What is counted of the mirror.

#![forbid(unsafe_code)]

use crate::base::stats::counters;

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
