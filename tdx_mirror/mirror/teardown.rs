// SPDX-License-Identifier: GPL-2.0

//! The end of a mirror, under mmu_lock held for write: the HKID is released, so that no vCPU can
//! use the S-EPT any more and the TDX module gives pages back without BLOCK and TRACK.

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
    Vm, //
};
use super::table::Table;
use crate::base::addr::{
    Gfn,
    Pfn, //
};
use crate::base::level::{
    Level,
    Position, //
};
use crate::base::stats::Count;

impl<E: ExternalPt, V: Vm> Mirror<E, V> {
    /// Reclaims all tables but the root, children first. The HKID is released and no map runs;
    /// RCU readers may. Whatever cannot be reclaimed is leaked and counted.
    pub fn teardown(&self, x: &Exclusive<'_>) {
        self.empty_table(x, self.root.table(x), self.config.root_level(), 0);
        self.uncount_root();
    }

    /// Unlinks and reclaims what hangs below `table`. The levels bound the recursion:
    /// five calls at most.
    fn empty_table(&self, x: &Exclusive<'_>, table: &Table, level: Level, gfn: u64) {
        let mut next = gfn;
        for cell in table.cells() {
            let Some(first) = Gfn::new(next) else {
                return;
            };
            next = next.saturating_add(level.pages());
            let at = Position::covering(first, level);
            let slot = Slot::load(x, at, cell);
            let found = slot.spte;
            match slot.entry() {
                Entry::NonPresent => (),
                Entry::Table(table) => self.remove_table(x, table),
                Entry::Quarantined(pfn) => self.reclaim(x, at, pfn),
                Entry::Stray => self.bugged(Bug::Unexpected { at, found }),
                Entry::Leaf(leaf) => self.left_over(x, leaf),
                Entry::Blocked(leaf) => self.left_over(x, leaf),
            }
        }
    }

    /// A leaf that no zap has removed before the teardown.
    #[cold]
    fn left_over<S: State>(&self, x: &Exclusive<'_>, leaf: Leaf<'_, S>) {
        let (at, pfn) = (leaf.at(), leaf.pfn());
        let found = leaf.spte();
        self.bugged(Bug::Unexpected { at, found });
        self.quarantine(x, leaf);
        self.reclaim(x, at, pfn);
    }

    /// Empties the table that `table` links to, unlinks it and gives its pages back.
    fn remove_table(&self, x: &Exclusive<'_>, table: TableEntry<'_>) {
        let at = table.at();
        if let (Some(child), Some(below)) = (table.child(&self.vm, x), at.level().child()) {
            self.empty_table(x, child, below, at.gfn().as_u64());
        }
        let unlinked = self.unlink(x, table);
        self.free_table(x, unlinked);
    }

    /// Reclaims the S-EPT page of an unlinked table and gives the mirror's back.
    fn free_table(&self, x: &Exclusive<'_>, table: UnlinkedTable) {
        let at = table.at();
        let Some((page, external)) = table.unpair(&self.vm, x) else {
            return;
        };
        if let Some(external) = external {
            // Out of the account either way: a page that is lost is no table any more.
            self.stats.external_tables.dec();
            self.vm.account_external(external.operand(), false);
            match self.ext.free_table(x, external) {
                Ok(free) => self.vm.put_external(free.into_page()),
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
        self.vm.account(page, false);
        self.vm.put_table_deferred(page);
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

    fn leak(&self, leak: &Leak) {
        self.stats.leaked.inc();
        self.vm.leaked(leak);
    }
}
