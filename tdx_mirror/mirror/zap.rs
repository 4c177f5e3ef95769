// SPDX-License-Identifier: GPL-2.0

//! Zapping ranges, under mmu_lock held for write.
//!
//! The leaves of a batch are blocked one after the other, then there is one TRACK and one kick of
//! the vCPUs for all of them, then they are removed.  A batch is remembered as the range of GFNs
//! that it covers and the state of the entries in it: Blocked means blocked by this batch, because
//! no batch is left half done and nobody else writes an entry meanwhile.

use super::cursor::{Cursor, Slot};
use super::error::Bug;
use super::external::{ExtFailure, ExternalPt};
use super::lock::Exclusive;
use super::mmu::{Mirror, Vm, ZAP_BATCH};
use super::spte::{Spte, SpteKind, Transition};
use crate::base::addr::{GfnRange, Pfn};
use crate::base::level::Position;
use crate::base::stats::Count;

/// Entries without a leaf that end a batch, so that a zap of a large range with little in it asks
/// as often whether to yield as one of a full range.
const ZAP_EMPTY: u32 = ZAP_BATCH;

/// A batch under way.  Its end is seen by the external table on every way out.
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
}

impl<E: ExternalPt, V: Vm> Mirror<E, V> {
    /// Unmaps the leaves in `range`.  Cannot fail: a page that the TDX module may still own is
    /// quarantined, and the VM ends.  Returns the number of leaves that were zapped.
    ///
    /// Only with `may_yield` is mmu_lock let go of, between two batches and with none half done.
    pub fn zap_range(&self, x: &mut Exclusive<'_>, range: GfnRange, may_yield: bool) -> u64 {
        let Some(range) = range.below(self.config.limit()) else {
            return 0;
        };
        self.pay_debts(x);
        let mut cursor = Cursor::new(range);
        let mut zapped = 0u64;
        loop {
            let batch = self.zap_batch(x, &mut cursor, range);
            zapped = zapped.saturating_add(batch.removed);
            if batch.last {
                return zapped;
            }
            if may_yield && self.vm.need_resched() {
                self.vm.yield_lock(x);
            }
        }
    }

    /// Pays all that is owed to the guest: nobody is left who could stand in the way.
    fn pay_debts(&self, x: &Exclusive<'_>) {
        let _batch = InBatch(&self.ext, x);
        if let Err((at, failure)) = self.ext.pay_debts(x) {
            self.bugged(Bug::External { at, failure });
        }
    }

    /// Zaps one batch: both passes, with nothing half done afterwards.
    fn zap_batch(&self, x: &Exclusive<'_>, cursor: &mut Cursor, range: GfnRange) -> Batch {
        let _batch = InBatch(&self.ext, x);
        let track = self.ext.needs_tracking(x);
        let start = cursor.position();
        let mut batch = self.first_pass(x, cursor, range, track);
        if let Some(first) = batch.blocked {
            let end = cursor.position().min(range.end());
            if let Some(covered) = GfnRange::new(start, end) {
                batch.removed = self.second_pass(x, covered, first);
            }
        }
        if batch.leaves > 0 {
            self.stats.zap_batches.inc();
            self.batch_sizes.add(u64::from(batch.leaves));
        }
        batch
    }

    /// Changes an entry under mmu_lock held for write: the external entry first, if the change is
    /// one that it follows, then the mirror's.  It needs no page and no freeze, and is part of a
    /// batch that the caller ends.
    ///
    /// # Errors
    ///
    /// What is wrong; the mirror's entry is as it was.  The caller reports it.
    pub fn change(&self, x: &Exclusive<'_>, slot: &Slot<'_>, new: Spte) -> Result<Transition, Bug> {
        let (at, old) = (slot.at, slot.spte);
        let change = Transition::classify(old, new, at.level()).map_err(|why| Bug::Transition {
            at,
            old,
            new,
            why,
        })?;
        match change {
            // Present to present and what has no external side: no hook, BLOCK included.
            Transition::Same | Transition::TouchLeaf(_) | Transition::Quarantine(_) => Ok(()),
            Transition::BlockLeaf(_) => self.ext.block_leaf(x, at),
            Transition::RemoveLeaf(pfn) => self.ext.zap_leaf(x, at, pfn),
            // A mapper's, who freezes, or the teardown's.
            Transition::Freeze
            | Transition::MapLeaf(_)
            | Transition::LinkTable(_)
            | Transition::UnlinkTable(_) => return Err(Bug::Unexpected { at, found: old }),
        }
        .map_err(|failure| Bug::External { at, failure })?;
        self.follow(x, slot, new);
        Ok(change)
    }

    /// Blocks the leaves of a batch or, where `track` says that this is not needed, removes them.
    fn first_pass(
        &self,
        x: &Exclusive<'_>,
        cursor: &mut Cursor,
        range: GfnRange,
        track: bool,
    ) -> Batch {
        let mut batch = Batch::default();
        let mut empty = 0u32;
        let mut entries = cursor.entries(x, self.root.table(x), self.config.root_level());
        while batch.leaves < self.config.zap_batch() && empty < ZAP_EMPTY {
            let Some(slot) = entries.next(&self.vm) else {
                batch.last = true;
                break;
            };
            match slot.kind() {
                SpteKind::Leaf(pfn) if range.contains_entry(slot.at.gfn(), slot.at.level()) => {
                    batch.leaves = batch.leaves.saturating_add(1);
                    if !track {
                        batch.removed = batch.removed.saturating_add(self.remove(x, &slot, pfn));
                    } else if self.block(x, &slot, pfn) {
                        batch.blocked.get_or_insert(slot.at);
                    }
                }
                SpteKind::NonPresent | SpteKind::Quarantined(_) => empty = empty.saturating_add(1),
                _ => {
                    empty = empty.saturating_add(1);
                    self.unexpected(x, slot);
                }
            }
        }
        batch.last |= cursor.position() >= range.end();
        batch
    }

    /// Tracks and removes the blocked leaves in `covered`, of which `first` is the first.  Returns
    /// how many were removed; the others are quarantined.
    fn second_pass(&self, x: &Exclusive<'_>, covered: GfnRange, first: Position) -> u64 {
        let tracked = match self.ext.track(x) {
            Ok(()) => true,
            Err(failure) => {
                // vCPUs may still use what is blocked: none of it can be removed.
                self.bugged(Bug::External { at: first, failure });
                false
            }
        };
        let mut cursor = Cursor::new(covered);
        let mut removed = 0u64;
        let mut entries = cursor.entries(x, self.root.table(x), self.config.root_level());
        while let Some(slot) = entries.next(&self.vm) {
            match slot.kind() {
                SpteKind::Blocked(pfn) if tracked => {
                    removed = removed.saturating_add(self.remove(x, &slot, pfn));
                }
                SpteKind::Blocked(pfn) => self.untracked(x, slot, pfn),
                _ => (),
            }
        }
        removed
    }

    // Both passes know from the entry's kind what they do to it: leaf to blocked, leaf or blocked to
    // non-present.  So these two classify nothing, which `change()` would do for each page twice.

    /// Blocks a leaf; answers whether it is.
    fn block(&self, x: &Exclusive<'_>, slot: &Slot<'_>, pfn: Pfn) -> bool {
        match self.ext.block_leaf(x, slot.at) {
            Ok(()) => {
                self.follow(x, slot, Spte::blocked(pfn));
                true
            }
            Err(failure) => self.refused_zap(x, *slot, pfn, failure),
        }
    }

    /// Removes a leaf, blocked or not; answers how many were removed.
    fn remove(&self, x: &Exclusive<'_>, slot: &Slot<'_>, pfn: Pfn) -> u64 {
        match self.ext.zap_leaf(x, slot.at, pfn) {
            Ok(()) => {
                self.follow(x, slot, Spte::NON_PRESENT);
                self.stats.zapped.inc();
                self.vm.page_stats(slot.at.level(), false);
                1
            }
            Err(failure) => self.refused_zap(x, *slot, pfn, failure).into(),
        }
    }

    /// The mirror's entry follows the external one.
    fn follow(&self, x: &Exclusive<'_>, slot: &Slot<'_>, new: Spte) {
        slot.cell.replace(x, new);
        self.vm.spte_changed(slot.at, slot.spte, new);
    }

    /// The external table did not block or remove a leaf, which must not fail.  Answers `false`.
    #[cold]
    fn refused_zap(
        &self,
        x: &Exclusive<'_>,
        slot: Slot<'_>,
        pfn: Pfn,
        failure: ExtFailure,
    ) -> bool {
        self.bugged(Bug::External {
            at: slot.at,
            failure,
        });
        self.quarantine(x, &slot, pfn);
        false
    }

    /// A blocked leaf stays, because the TRACK failed.
    #[cold]
    #[inline(never)]
    fn untracked(&self, x: &Exclusive<'_>, slot: Slot<'_>, pfn: Pfn) {
        self.quarantine(x, &slot, pfn);
    }

    /// An entry that cannot be there under mmu_lock held for write, or a leaf that is larger than
    /// what is zapped of it.
    #[cold]
    #[inline(never)]
    fn unexpected(&self, x: &Exclusive<'_>, slot: Slot<'_>) {
        self.bugged(Bug::Unexpected {
            at: slot.at,
            found: slot.spte,
        });
        if let SpteKind::Blocked(pfn) = slot.kind() {
            // No batch leaves one behind, so the external state is in doubt.
            self.quarantine(x, &slot, pfn);
        }
    }

    /// Gives up the leaf at `slot`, whose page the TDX module may still own.
    pub(super) fn quarantine(&self, x: &Exclusive<'_>, slot: &Slot<'_>, pfn: Pfn) {
        if let Err(bug) = self.change(x, slot, Spte::quarantined(pfn)) {
            self.bugged(bug);
            return;
        }
        self.vm.hold_page(pfn);
        self.vm.quarantined(slot.at, pfn);
        self.vm.page_stats(slot.at.level(), false);
        self.stats.quarantined.inc();
    }
}
