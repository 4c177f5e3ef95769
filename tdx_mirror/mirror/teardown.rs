// SPDX-License-Identifier: GPL-2.0

//! The end of a mirror, under mmu_lock held for write: the HKID is released, so that no vCPU can
//! use the S-EPT any more and the TDX module gives pages back without BLOCK and TRACK.

use super::cursor::Slot;
use super::error::{Bug, Leak};
use super::external::ExternalPt;
use super::lock::Exclusive;
use super::mmu::{Mirror, Vm};
use super::spte::{Spte, SpteKind, Transition};
use super::table::{self, Table};
use crate::base::addr::{Gfn, Pfn};
use crate::base::level::{Level, Position};
use crate::base::stats::Count;

impl<E: ExternalPt, V: Vm> Mirror<E, V> {
    /// Reclaims all tables but the root, children first.  The HKID is released and no map runs;
    /// RCU readers may.  Whatever cannot be reclaimed is leaked and counted.
    pub fn teardown(&self, x: &Exclusive<'_>) {
        self.empty_table(x, self.root.table(x), self.config.root_level(), 0);
        self.uncount_root();
    }

    /// Unlinks and reclaims what hangs below `table`.  The levels bound the recursion:
    /// five calls at most.
    fn empty_table(&self, x: &Exclusive<'_>, table: &Table, level: Level, gfn: u64) {
        let mut next = gfn;
        for cell in table.cells() {
            let Some(first) = Gfn::new(next) else {
                return;
            };
            next = next.saturating_add(level.pages());
            let at = Position::covering(first, level);
            let spte = cell.load();
            let slot = Slot { at, cell, spte };
            match slot.kind() {
                SpteKind::NonPresent => (),
                SpteKind::Table(pfn) => self.remove_table(x, &slot, pfn),
                SpteKind::Quarantined(pfn) => self.resolve(x, at, pfn),
                kind => {
                    self.bugged(Bug::Unexpected { at, found: spte });
                    if let SpteKind::Leaf(pfn) | SpteKind::Blocked(pfn) = kind {
                        self.quarantine(x, &slot, pfn);
                        self.resolve(x, at, pfn);
                    }
                }
            }
        }
    }

    /// Empties the table that `slot` links to, unlinks it and gives its pages back.
    fn remove_table(&self, x: &Exclusive<'_>, slot: &Slot<'_>, pfn: Pfn) {
        let at = slot.at;
        if let (Some(child), Some(below)) =
            (table::child(&self.vm, x, slot.spte, at), at.level().child())
        {
            self.empty_table(x, child, below, at.gfn().as_u64());
        }
        match Transition::classify(slot.spte, Spte::NON_PRESENT, at.level()) {
            Ok(Transition::UnlinkTable(_)) => {
                slot.cell.replace(x, Spte::NON_PRESENT);
                self.vm.spte_changed(at, slot.spte, Spte::NON_PRESENT);
            }
            _ => self.bugged(Bug::Unexpected {
                at,
                found: slot.spte,
            }),
        }
        self.free_table(x, at, pfn);
    }

    /// Reclaims the S-EPT page of an unlinked table and gives the mirror's back.
    fn free_table(&self, x: &Exclusive<'_>, at: Position, pfn: Pfn) {
        let Some((page, external)) = table::divorce(&self.vm, x, pfn) else {
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
    fn resolve(&self, x: &Exclusive<'_>, at: Position, pfn: Pfn) {
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
