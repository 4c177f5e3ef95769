// SPDX-License-Identifier: GPL-2.0

//! Mapping one page, under mmu_lock held for read.

#![forbid(unsafe_code)]

use super::cell::{
    Seen,
    SpteCell, //
};
use super::error::{
    Bug,
    MapError,
    MapOutcome,
    RetryReason, //
};
use super::external::{
    ExtError,
    ExternalPt, //
};
use super::frozen::{
    FrozenError,
    FrozenSpte, //
};
use super::lock::Shared;
use super::mmu::{
    Mirror,
    Vm, //
};
use super::spte::{
    IllegalTransition,
    Spte,
    SpteKind,
    Transition, //
};
use super::table::{
    self,
    OwnedTable,
    PageSupplier,
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
use crate::base::td::Phase;

/// Why a map bails out before the leaf is mapped.
enum Bail {
    Retry(RetryReason),
    Fail(MapError),
}

impl<E: ExternalPt, V: Vm> Mirror<E, V> {
    /// Maps `gfn` to `pfn` at `level`, linking the tables that lack. Only 4K pages are mapped.
    ///
    /// `phase` is the TD's, read with this lock held.
    ///
    /// Never loops, never sleeps, and takes pages from `pages` alone. What it cannot do because
    /// of somebody else it leaves to the caller's retry, with nothing frozen.
    ///
    /// # Errors
    ///
    /// See [`MapError`]. The leaf is not mapped, in neither table.
    pub fn map<P: PageSupplier>(
        &self,
        l: &Shared<'_>,
        phase: Phase,
        pages: &mut P,
        gfn: Gfn,
        pfn: Pfn,
        level: Level,
    ) -> Result<MapOutcome, MapError> {
        if gfn.as_u64() >= self.config.limit() || level != Level::L4K {
            return self.bail(Bail::Fail(MapError::Invalid));
        }
        if self.is_bugged() {
            return self.bail(Bail::Fail(MapError::Bugged));
        }
        self.ext.pay_debt(l, phase);
        let mut table = self.root.table(l);
        let mut here = self.config.root_level();
        // At most four rounds, one for each level above the leaf's.
        while let (true, Some(below)) = (here > level, here.child()) {
            match self.descend(l, phase, pages, table, Position::covering(gfn, here)) {
                Ok(next) => table = next,
                Err(why) => return self.bail(why),
            }
            here = below;
        }
        self.map_leaf(l, phase, table, Position::covering(gfn, here), pfn)
            .or_else(|why| self.bail(why))
    }

    #[cold]
    fn bail(&self, why: Bail) -> Result<MapOutcome, MapError> {
        let stats = &self.stats;
        match why {
            Bail::Retry(reason) => {
                match reason {
                    RetryReason::Frozen => {
                        stats.frozen_seen.inc();
                        stats.maps_frozen.inc();
                    }
                    RetryReason::Contended(_) => stats.maps_contended.inc(),
                    RetryReason::NoPage => stats.maps_no_page.inc(),
                }
                Ok(MapOutcome::Retry(reason))
            }
            Bail::Fail(error) => {
                match error {
                    MapError::Invalid => stats.maps_invalid.inc(),
                    MapError::Bugged => stats.maps_bugged.inc(),
                }
                Err(error)
            }
        }
    }

    /// The table below the entry `at` of `table`, linked now if it was not.
    fn descend<'t, P: PageSupplier>(
        &self,
        l: &'t Shared<'_>,
        phase: Phase,
        pages: &mut P,
        table: &'t Table,
        at: Position,
    ) -> Result<&'t Table, Bail> {
        let cell = self.cell(table, at)?;
        let mut seen = cell.load();
        if seen.spte().kind(at.level()) == SpteKind::NonPresent {
            // Filled before the freeze, which others wait for.
            let Some(owned) = OwnedTable::take(pages, &self.vm) else {
                return Err(Bail::Retry(RetryReason::NoPage));
            };
            // A lost race leaves the winner's value, which cannot be non-present: what follows
            // goes on with that instead of with what was read before.
            match FrozenSpte::freeze(l, cell, at, seen.spte()) {
                Ok(frozen) => seen = self.link(l, phase, owned, frozen, at)?,
                Err(now) => {
                    owned.put(&self.vm);
                    seen = now;
                }
            }
        }
        let found = seen.spte();
        match found.kind(at.level()) {
            SpteKind::Table(_) => table::child(&self.vm, l, seen, at)
                .ok_or_else(|| self.fail(Bug::Unexpected { at, found })),
            SpteKind::Frozen => Err(Bail::Retry(RetryReason::Frozen)),
            _ => Err(self.fail(Bug::Unexpected { at, found })),
        }
    }

    /// Links the new table at the frozen entry; returns the entry's value.
    fn link<'t>(
        &self,
        l: &Shared<'_>,
        phase: Phase,
        owned: OwnedTable,
        frozen: FrozenSpte<'t>,
        at: Position,
    ) -> Result<Seen<'t>, Bail> {
        self.stats.frozen.inc();
        let (page, external) = (owned.page(), owned.external_page());
        let begun = self.vm.freeze_begins();
        let linked = frozen.link_table(l, &self.ext, phase, &self.vm, owned);
        self.vm.freeze_ended(begun);
        match linked {
            Ok(linked) => {
                self.vm.spte_changed(at, Spte::NON_PRESENT, linked.spte());
                self.stats.tables.inc();
                self.vm.account(page, true);
                self.stats.external_tables.inc();
                self.vm.account_external(external, true);
                Ok(linked)
            }
            Err((error, owned)) => {
                owned.put(&self.vm);
                Err(self.refused(at, Spte::NON_PRESENT, error))
            }
        }
    }

    fn map_leaf(
        &self,
        l: &Shared<'_>,
        phase: Phase,
        table: &Table,
        at: Position,
        pfn: Pfn,
    ) -> Result<MapOutcome, Bail> {
        let cell = self.cell(table, at)?;
        let mut seen = cell.load().spte();
        if seen.kind(at.level()) == SpteKind::NonPresent {
            match FrozenSpte::freeze(l, cell, at, seen) {
                Ok(frozen) => {
                    self.stats.frozen.inc();
                    let begun = self.vm.freeze_begins();
                    let mapped = frozen.map_leaf(l, &self.ext, phase, pfn);
                    self.vm.freeze_ended(begun);
                    mapped.map_err(|error| self.refused(at, seen, error))?;
                    let new = Spte::leaf(pfn, at.level());
                    self.vm.spte_changed(at, seen, new);
                    self.stats.mapped.inc();
                    self.stats.leaf_transitions.inc();
                    self.vm.page_stats(at.level(), true);
                    return Ok(MapOutcome::Fixed);
                }
                Err(now) => seen = now.spte(),
            }
        }
        match seen.kind(at.level()) {
            SpteKind::Leaf(mapped) if mapped == pfn => {
                self.stats.spurious.inc();
                Ok(MapOutcome::Spurious)
            }
            SpteKind::Frozen => Err(Bail::Retry(RetryReason::Frozen)),
            // Another page: a bug, and which one the classification says. A quarantined entry
            // refuses even the page that it had, which may still be the TDX module's.
            _ => Err(self.illegal(at, seen, Spte::leaf(pfn, at.level()))),
        }
    }

    fn cell<'t>(&self, table: &'t Table, at: Position) -> Result<&'t SpteCell, Bail> {
        table.cell(at).ok_or_else(|| self.fail(Bug::NoEntry { at }))
    }

    /// What an unsuccessful change of a frozen entry means for the map.
    fn refused(&self, at: Position, old: Spte, error: FrozenError) -> Bail {
        match error {
            FrozenError::External(ExtError::Contended(operand)) => {
                Bail::Retry(RetryReason::Contended(operand))
            }
            FrozenError::External(ExtError::Failed(failure)) => {
                self.fail(Bug::External { at, failure })
            }
            FrozenError::Illegal(new, why) => self.fail(Bug::Transition { at, old, new, why }),
        }
    }

    /// A map to a leaf, where something else than nothing is mapped.
    fn illegal(&self, at: Position, old: Spte, new: Spte) -> Bail {
        let why = Transition::classify(old, new, at.level())
            .err()
            .unwrap_or(IllegalTransition::OverPresent);
        self.fail(Bug::Transition { at, old, new, why })
    }

    fn fail(&self, bug: Bug) -> Bail {
        self.bugged(bug);
        Bail::Fail(MapError::Bugged)
    }
}
