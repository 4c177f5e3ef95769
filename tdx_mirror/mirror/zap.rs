// SPDX-License-Identifier: GPL-2.0

//! Zapping ranges, under mmu_lock held for write.
//!
//! The leaves of a batch are blocked one after the other, then there is one TRACK and one kick of
//! the vCPUs for all of them, then they are removed. A batch is remembered as the range of GFNs
//! that it covers and the state of the entries in it: Blocked means blocked by this batch, because
//! no batch is left half done and nobody else writes an entry meanwhile.

#![forbid(unsafe_code)]

use super::cursor::Cursor;
use super::entry::{
    BlockOutcome,
    Entry,
    RemoveOutcome,
    Untracked,
    ZapMode, //
};
use super::error::Bug;
use super::external::ExternalPt;
use super::lock::Exclusive;
use super::mmu::{
    Mirror,
    Vm,
    HOLD_STRETCH,
    ZAP_BATCH, //
};
use super::spte::Spte;
use crate::base::addr::GfnRange;
use crate::base::level::Position;
use crate::base::stats::Count;
use crate::base::td::Phase;

/// Entries without a leaf that end a batch, so that a zap of a large range with little in it asks
/// as often whether to yield as one of a full range.
const ZAP_EMPTY: u32 = ZAP_BATCH;

/// A batch under way. Its end is seen by the external table on every way out.
pub(super) struct InBatch<'b, E: ExternalPt>(pub &'b E, pub &'b Exclusive<'b>);

impl<E: ExternalPt> Drop for InBatch<'_, E> {
    fn drop(&mut self) {
        self.0.end_batch(self.1);
    }
}

/// What became of a batch.
#[derive(Default)]
struct Batch {
    /// Leaves that were met.
    leaves: u32,
    /// Leaves that are removed; while the TD is built, the first pass does that.
    removed: u64,
    /// The first leaf that is blocked.
    blocked: Option<Position>,
    /// The range ends with this batch.
    last: bool,
    /// It was ended early, because somebody waits for mmu_lock.
    cut: bool,
}

impl<E: ExternalPt, V: Vm> Mirror<E, V> {
    /// Unmaps the leaves in `range`. Cannot fail: a page that the TDX module may still own is
    /// quarantined, and the VM ends. Returns the number of leaves that were zapped.
    ///
    /// `phase` is the TD's, read with this lock held. Only with `may_yield` is mmu_lock let go of,
    /// between two batches and with none half done; the TD may be finalized meanwhile.
    pub fn zap_range(
        &self,
        x: &mut Exclusive<'_>,
        mut phase: Phase,
        range: GfnRange,
        may_yield: bool,
    ) -> u64 {
        let Some(range) = range.below(self.config.limit()) else {
            return 0;
        };
        self.pay_debts(x, phase);
        let mut cursor = Cursor::new(range);
        let mut zapped = 0u64;
        loop {
            let batch = self.zap_batch(x, phase, &mut cursor, range, may_yield);
            zapped = zapped.saturating_add(batch.removed);
            if batch.last {
                return zapped;
            }
            if batch.cut || may_yield && self.vm.need_resched() {
                self.vm.yield_lock(x);
                phase = self.ext.phase(x);
            }
        }
    }

    /// Pays all that is owed to the guest: nobody is left who could stand in the way.
    fn pay_debts(&self, x: &Exclusive<'_>, phase: Phase) {
        let _batch = InBatch(&self.ext, x);
        if let Err((at, failure)) = self.ext.pay_debts(x, phase) {
            self.bugged(Bug::External { at, failure });
        }
    }

    /// Zaps one batch: both passes, with nothing half done afterwards.
    fn zap_batch(
        &self,
        x: &Exclusive<'_>,
        phase: Phase,
        cursor: &mut Cursor,
        range: GfnRange,
        may_yield: bool,
    ) -> Batch {
        let under_way = InBatch(&self.ext, x);
        let mode = ZapMode::of(&under_way, phase);
        let start = cursor.position();
        let mut batch = self.first_pass(x, cursor, range, &mode, may_yield);
        if let (ZapMode::Batched(untracked), Some(first)) = (mode, batch.blocked) {
            let end = cursor.position().min(range.end());
            if let Some(covered) = GfnRange::new(start, end) {
                batch.removed = self.second_pass(x, untracked, covered, first);
            }
        }
        if batch.leaves > 0 {
            self.stats.zap_batches.inc();
            self.batch_sizes.add(u64::from(batch.leaves));
        }
        batch
    }

    /// Blocks the leaves of a batch or, while the TD is built, removes them.
    fn first_pass(
        &self,
        x: &Exclusive<'_>,
        cursor: &mut Cursor,
        range: GfnRange,
        mode: &ZapMode<'_>,
        may_yield: bool,
    ) -> Batch {
        let mut batch = Batch::default();
        let mut empty = 0u32;
        let mut entries = cursor.entries(x, self.root.table(x), self.config.root_level());
        while batch.leaves < self.config.zap_batch() && empty < ZAP_EMPTY {
            let Some(slot) = entries.next(&self.vm) else {
                batch.last = true;
                break;
            };
            let (at, found) = (slot.at, slot.spte());
            match slot.entry() {
                Entry::Leaf(leaf) if range.contains_entry(at.gfn(), at.level()) => {
                    batch.leaves = batch.leaves.saturating_add(1);
                    match mode {
                        ZapMode::Direct(building) => {
                            if self.remove(x, building, leaf) == RemoveOutcome::Removed {
                                batch.removed = batch.removed.saturating_add(1);
                            }
                        }
                        ZapMode::Batched(untracked) => {
                            if let BlockOutcome::Blocked(_) = self.block(x, untracked, leaf) {
                                batch.blocked.get_or_insert(at);
                            }
                        }
                    }
                    if may_yield && batch.leaves % HOLD_STRETCH == 0 && self.vm.need_resched() {
                        batch.cut = true;
                        break;
                    }
                }
                Entry::NonPresent | Entry::Quarantined(_) => empty = empty.saturating_add(1),
                entry => {
                    empty = empty.saturating_add(1);
                    self.unexpected(x, at, found, entry);
                }
            }
        }
        batch.last |= cursor.position() >= range.end();
        batch
    }

    /// Tracks and removes the blocked leaves in `covered`, of which `first` is the first. Returns
    /// how many were removed; the others are quarantined.
    fn second_pass(
        &self,
        x: &Exclusive<'_>,
        untracked: Untracked<'_>,
        covered: GfnRange,
        first: Position,
    ) -> u64 {
        let tracked = match untracked.track(x, &self.ext) {
            Ok(tracked) => Some(tracked),
            Err(failure) => {
                // vCPUs may still use what is blocked: none of it can be removed.
                self.bugged(Bug::External { at: first, failure });
                None
            }
        };
        let mut cursor = Cursor::new(covered);
        let mut removed = 0u64;
        let mut entries = cursor.entries(x, self.root.table(x), self.config.root_level());
        while let Some(slot) = entries.next(&self.vm) {
            if let Entry::Blocked(leaf) = slot.entry() {
                match &tracked {
                    Some(tracked) => {
                        if self.remove(x, tracked, leaf) == RemoveOutcome::Removed {
                            removed = removed.saturating_add(1);
                        }
                    }
                    None => self.quarantine(x, leaf),
                }
            }
        }
        removed
    }

    /// An entry that cannot be there under mmu_lock held for write, or a leaf that is larger than
    /// what is zapped of it.
    #[cold]
    #[inline(never)]
    fn unexpected(&self, x: &Exclusive<'_>, at: Position, found: Spte, entry: Entry<'_>) {
        self.bugged(Bug::Unexpected { at, found });
        if let Entry::Blocked(leaf) = entry {
            // No batch leaves one behind, so the external state is in doubt.
            self.quarantine(x, leaf);
        }
    }
}
