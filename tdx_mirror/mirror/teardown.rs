// SPDX-License-Identifier: GPL-2.0

//! The end of a mirror, under mmu_lock held for write: the HKID is released, so that no vCPU can
//! use the S-EPT any more and the TDX module gives pages back without BLOCK and TRACK.
//!
//! A large TD has millions of pages to reclaim, and mmu_lock keeps preemption off. So the lock is
//! yielded every few calls to whoever waits. All that a teardown remembers meanwhile is a GFN.

#![forbid(unsafe_code)]

use super::cursor::Slot;
use super::entry::{
    Entry,
    Leaf,
    State,
    TableEntry,
    UnlinkedTable, //
};
use super::error::{
    Bug,
    Leak, //
};
use super::external::ExternalPt;
use super::lock::Exclusive;
use super::mmu::{
    Mirror,
    Vm,
    HOLD_STRETCH, //
};
use super::table::{
    self,
    Table, //
};
use crate::base::addr::{
    Gfn,
    Pfn, //
};
use crate::base::level::{
    Level,
    Position, //
};
use crate::base::stats::Count;
use core::ops::ControlFlow;

/// How far a teardown is.
struct Done {
    /// Entries but tables that end at or below this frame number are done. A table is done when no
    /// entry links to it.
    below: u64,
    /// Calls before the next look. Between two calls lie no more entries than those of one table at
    /// each level.
    left: u32,
}

impl Done {
    /// Nothing is.
    fn new() -> Self {
        Self {
            below: 0,
            left: HOLD_STRETCH,
        }
    }

    /// One more call was made. Whether it is time to look.
    fn call(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            return false;
        }
        self.left = HOLD_STRETCH;
        true
    }
}

impl<E: ExternalPt, V: Vm> Mirror<E, V> {
    /// Reclaims all tables but the root, children first. The HKID is released and no map runs;
    /// RCU readers may. Whatever cannot be reclaimed is leaked and counted. mmu_lock is let go of in
    /// between when somebody waits for it; nobody maps or zaps meanwhile.
    pub fn teardown(&self, x: &mut Exclusive<'_>) {
        let mut done = Done::new();
        let level = self.config.root_level();
        while self
            .empty_table(x, self.root.table(x), level, 0, &mut done)
            .is_break()
        {
            self.vm.yield_lock(x);
        }
        self.uncount_root();
    }

    /// Unlinks and reclaims what hangs below `table`, whose first entry is for `gfn`, or breaks off
    /// where mmu_lock is to be yielded. The levels bound the recursion: five calls at most.
    fn empty_table<'t>(
        &self,
        x: &'t Exclusive<'_>,
        table: &'t Table,
        level: Level,
        gfn: u64,
        done: &mut Done,
    ) -> ControlFlow<()> {
        let mut end = gfn;
        for cell in table.cells() {
            let Some(first) = Gfn::new(end) else {
                break;
            };
            end = end.saturating_add(level.pages());
            let at = Position::covering(first, level);
            let entry = match Slot::load(x, at, cell).entry() {
                Entry::NonPresent => continue,
                Entry::Table(table) => {
                    self.remove_table(x, table, done)?;
                    self.someone_waits(done)?;
                    continue;
                }
                entry => entry,
            };
            if end <= done.below {
                continue;
            }
            done.below = end;
            match entry {
                Entry::Leaf(leaf) => self.left_over(x, leaf),
                Entry::Blocked(leaf) => self.left_over(x, leaf),
                Entry::Quarantined(pfn) => self.reclaim(x, at, pfn),
                Entry::NonPresent | Entry::Table(_) | Entry::Stray => {
                    let found = cell.load().spte();
                    self.bugged(Bug::Unexpected { at, found });
                }
            }
            self.someone_waits(done)?;
        }
        ControlFlow::Continue(())
    }

    /// Breaks off if it is time to look and somebody waits.
    fn someone_waits(&self, done: &mut Done) -> ControlFlow<()> {
        if done.call() && self.vm.need_resched() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// A leaf that no zap has removed before the teardown. Its page may have been freed, and be
    /// another's: it is held only while the TDX module may own it, and if it is not free.
    #[cold]
    fn left_over<S: State>(&self, x: &Exclusive<'_>, leaf: Leaf<'_, S>) {
        let (at, pfn) = (leaf.at(), leaf.pfn());
        let found = leaf.spte();
        self.bugged(Bug::Unexpected { at, found });
        self.give_up(x, leaf);
        match self.ext.reclaim_leaf(x, at, pfn) {
            Ok(()) => self.stats.resolved.inc(),
            Err(failure) => {
                self.vm.hold_page(pfn);
                self.leak(&Leak::Data { at, pfn, failure });
            }
        }
    }

    /// Empties the table that `table` links to, unlinks it and gives its pages back, or breaks off
    /// before that.
    fn remove_table<'t>(
        &self,
        x: &'t Exclusive<'_>,
        table: TableEntry<'t>,
        done: &mut Done,
    ) -> ControlFlow<()> {
        let at = table.at();
        if let (Some(child), Some(below)) = (table.child(&self.vm, x), at.level().child()) {
            self.empty_table(x, child, below, at.gfn().as_u64(), done)?;
        }
        let unlinked = self.unlink(x, table);
        self.free_table(x, unlinked);
        ControlFlow::Continue(())
    }

    /// Reclaims the S-EPT page of an unlinked table and gives the mirror's back.
    fn free_table(&self, x: &Exclusive<'_>, table: UnlinkedTable<'_>) {
        let at = table.at();
        let Some((page, external)) = table.unpair(&self.vm, x) else {
            return;
        };
        if let Some(external) = external {
            // Out of the account either way: a page that is lost is no table any more.
            self.stats.external_tables.dec();
            self.vm.account_external(external.operand(), false);
            match self.ext.free_table(x, external) {
                Ok(free) => table::put_external(&self.vm, free),
                Err(lost) => {
                    // Dropping the page is what leaks it.
                    let failure = lost.failure;
                    self.leak(&Leak::SeptTable { at, failure });
                }
            }
        } else {
            self.bugged(Bug::NoEntry { at });
        }
        self.stats.tables.dec();
        self.vm.account(page.page(), false);
        page.put(&self.vm);
    }

    /// Tries once to get the quarantined page `pfn` back; else it stays held for ever.
    fn reclaim(&self, x: &Exclusive<'_>, at: Position, pfn: Pfn) {
        match self.ext.reclaim_leaf(x, at, pfn) {
            Ok(()) => {
                self.stats.resolved.inc();
                self.vm.release_page(pfn);
            }
            Err(failure) => self.leak(&Leak::Data { at, pfn, failure }),
        }
    }

    /// A page that is never given back.
    pub(super) fn leak(&self, leak: &Leak) {
        self.stats.leaked.inc();
        self.vm.leaked(leak);
    }
}
