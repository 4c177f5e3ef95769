// SPDX-License-Identifier: GPL-2.0

//! The mirror of one TD: map under mmu_lock held for read, zap and teardown under it for write.

use super::addr::{Gfn, GfnRange, Pfn};
use super::cell::SpteCell;
use super::cursor::{self, Cursor, Slot};
use super::error::{Bug, ConfigError, Leak, MapError, MapOutcome, RetryReason};
use super::external::{ExtError, ExtFailure, ExternalPt};
use super::frozen::{FrozenError, FrozenSpte};
use super::level::{Level, Position};
use super::lock::{Exclusive, Shared, TablesStay};
use super::spte::{KvmEncoding, Spte, SpteKind, Transition};
use super::stats::Stats;
use super::sys::{AtomicBool, Ordering};
use super::table::{self, OwnedTable, PageMap, PageSupplier, Root, Table};

/// Entries that a zap looks at before it asks whether to yield the lock.
const ZAP_BATCH: u32 = 512;

/// What the mirror needs of the VM.  Nothing here sleeps but [`yield_lock()`](Self::yield_lock).
pub trait Vm: PageMap {
    /// Ends the VM for a broken invariant and reports it.
    fn bug(&self, bug: &Bug);
    /// Reports a page that is never given back.
    fn leaked(&self, leak: &Leak);
    /// Keeps `pfn` from the allocator: the TDX module may still own it.
    fn hold_page(&self, pfn: Pfn);
    /// A mirror page came into use (`linked`) or went out of it.
    fn account(&self, page: super::addr::PagePtr, linked: bool);
    /// A leaf at `level` was mapped (`mapped`) or is so no more.
    fn page_stats(&self, level: Level, mapped: bool);
    /// Whether mmu_lock, held for write, should be yielded now.
    fn need_resched(&self) -> bool;
    /// Lets go of mmu_lock, held for write, for a moment.
    fn yield_lock(&self, x: &mut Exclusive<'_>);
}

/// The shape of a mirror.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    gfn_bits: u32,
    root_level: Level,
}

impl Config {
    /// GFNs below `1 << gfn_bits` under a root at `root_level`, which is above 4K.
    ///
    /// # Errors
    ///
    /// The root's level, or that it does not resolve `gfn_bits` bits.
    pub fn new(gfn_bits: u32, root_level: Level) -> Result<Self, ConfigError> {
        if root_level == Level::L4K {
            return Err(ConfigError::RootLevel);
        }
        if gfn_bits == 0 || gfn_bits > root_level.gfn_bits() || gfn_bits > super::addr::FRAME_BITS {
            return Err(ConfigError::GfnBits);
        }
        Ok(Self {
            gfn_bits,
            root_level,
        })
    }

    /// The shape of a TD's mirror, as the C contract gives it: 4 or 5 levels, KVM's encoding.
    ///
    /// # Errors
    ///
    /// As [`new()`](Self::new), or another encoding than the mirror's.
    pub fn for_td(gfn_bits: u32, root_level: u32, kvm: KvmEncoding) -> Result<Self, ConfigError> {
        if kvm != KvmEncoding::OURS {
            return Err(ConfigError::Encoding);
        }
        match root_level {
            4 => Self::new(gfn_bits, Level::L512G),
            5 => Self::new(gfn_bits, Level::L256T),
            _ => Err(ConfigError::RootLevel),
        }
    }

    /// The number of GFNs.
    fn limit(self) -> u64 {
        // At most FRAME_BITS by construction.
        1u64.checked_shl(self.gfn_bits).unwrap_or(0)
    }
}

/// The mirror page table of one TD.
#[derive(Debug)]
pub struct Mirror<E: ExternalPt, V: Vm> {
    config: Config,
    root: Root,
    ext: E,
    vm: V,
    bugged: AtomicBool,
    /// Whether the root is part of the account still.
    root_counted: AtomicBool,
    stats: Stats,
}

/// Why a map stops: with an outcome or with an error.
enum Stop {
    Retry(RetryReason),
    Fail(MapError),
}

impl<E: ExternalPt, V: Vm> Mirror<E, V> {
    /// An empty mirror with the table `root`.
    pub fn new(config: Config, ext: E, vm: V, root: Root) -> Self {
        let stats = Stats::default();
        stats.tables.inc();
        vm.account(root.page(), true);
        Self {
            config,
            root,
            ext,
            vm,
            bugged: AtomicBool::new(false),
            root_counted: AtomicBool::new(true),
            stats,
        }
    }

    /// The external table.
    pub fn external(&self) -> &E {
        &self.ext
    }

    /// The VM.
    pub fn vm(&self) -> &V {
        &self.vm
    }

    /// The figures.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Whether an invariant was broken; every map fails from then on.
    pub fn is_bugged(&self) -> bool {
        self.bugged.load(Ordering::Relaxed)
    }

    /// Maps `gfn` to `pfn` at `level`, linking the tables that lack.  Only 4K pages are mapped.
    ///
    /// Never loops, never sleeps, and takes pages from `pages` alone.  What it cannot do because
    /// of somebody else it leaves to the caller's retry, with nothing frozen.
    ///
    /// # Errors
    ///
    /// See [`MapError`].  The leaf is not mapped, in neither table.
    pub fn map<P: PageSupplier>(
        &self,
        l: &Shared<'_>,
        pages: &mut P,
        gfn: Gfn,
        pfn: Pfn,
        level: Level,
    ) -> Result<MapOutcome, MapError> {
        if gfn.as_u64() >= self.config.limit() || level != Level::L4K {
            return Err(MapError::Invalid);
        }
        if self.is_bugged() {
            return Err(MapError::Bugged);
        }
        let mut table = self.root.table(l);
        let mut here = self.config.root_level;
        // At most four rounds, one for each level above the leaf's.
        while let (true, Some(below)) = (here > level, here.child()) {
            match self.descend(l, pages, table, Position::covering(gfn, here)) {
                Ok(next) => table = next,
                Err(stop) => return self.stopped(stop),
            }
            here = below;
        }
        self.map_leaf(l, table, Position::covering(gfn, here), pfn)
            .or_else(|stop| self.stopped(stop))
    }

    /// Unmaps the leaves in `range`.  Cannot fail: a page that the TDX module may still own is
    /// quarantined, and the VM ends.  Returns the number of leaves that were zapped.
    ///
    /// Only with `may_yield` is mmu_lock let go of, between two leaves and with no leaf half done.
    pub fn zap_range(&self, x: &mut Exclusive<'_>, range: GfnRange, may_yield: bool) -> u64 {
        let Some(range) = range.below(self.config.limit()) else {
            return 0;
        };
        let mut cursor = Cursor::new(range);
        let mut zapped = 0u64;
        loop {
            if !self.zap_batch(x, &mut cursor, range, &mut zapped, may_yield) {
                return zapped;
            }
            self.vm.yield_lock(x);
        }
    }

    /// Reclaims all tables but the root, children first.  The HKID is released and no map runs;
    /// RCU readers may.  Whatever cannot be reclaimed is leaked and counted.
    pub fn teardown(&self, x: &Exclusive<'_>) {
        self.empty_table(x, self.root.table(x), self.config.root_level, 0);
        self.uncount_root();
    }

    /// The entry that ends the walk for `gfn`, and its value; `None` for a GFN out of range.
    pub fn walk<L: TablesStay>(&self, l: &L, gfn: Gfn) -> Option<(Position, Spte)> {
        if gfn.as_u64() >= self.config.limit() {
            return None;
        }
        let slot = cursor::find(&self.vm, l, self.root.table(l), self.config.root_level, gfn)?;
        if slot.kind() == SpteKind::Frozen {
            self.stats.frozen_seen.inc();
        }
        Some((slot.at, slot.spte))
    }

    /// Gives the root back after [`teardown()`](Self::teardown).  No walker is left.
    pub fn destroy(self) -> (E, V) {
        self.uncount_root();
        let Self { root, ext, vm, .. } = self;
        vm.put_table(root.into_page());
        (ext, vm)
    }

    /// Takes the root out of the account, once: KVM expects that balanced after the teardown.
    fn uncount_root(&self) {
        if self.root_counted.swap(false, Ordering::Relaxed) {
            self.stats.tables.dec();
            self.vm.account(self.root.page(), false);
        }
    }

    fn stopped(&self, stop: Stop) -> Result<MapOutcome, MapError> {
        match stop {
            Stop::Retry(reason) => {
                if reason == RetryReason::Frozen {
                    self.stats.frozen_seen.inc();
                }
                Ok(MapOutcome::Retry(reason))
            }
            Stop::Fail(error) => Err(error),
        }
    }

    /// The table below the entry `at` of `table`, linked now if it was not.
    fn descend<'t, P: PageSupplier>(
        &self,
        l: &'t Shared<'_>,
        pages: &mut P,
        table: &'t Table,
        at: Position,
    ) -> Result<&'t Table, Stop> {
        let cell = self.cell(table, at)?;
        let mut seen = cell.load();
        if seen.kind(at.level()) == SpteKind::NonPresent {
            // A lost race leaves the winner's value, which cannot be non-present: what follows
            // goes on with that instead of with what was read before.
            match FrozenSpte::freeze(l, cell, at, seen) {
                Ok(frozen) => seen = self.link(l, pages, frozen, at)?,
                Err(now) => seen = now,
            }
        }
        match seen.kind(at.level()) {
            SpteKind::Table(_) => table::child(&self.vm, l, seen, at)
                .ok_or_else(|| self.fail(Bug::Unexpected { at, found: seen })),
            SpteKind::Frozen => Err(Stop::Retry(RetryReason::Frozen)),
            _ => Err(self.fail(Bug::Unexpected { at, found: seen })),
        }
    }

    /// Links a new table at the frozen entry; answers the entry's value.
    fn link<P: PageSupplier>(
        &self,
        l: &Shared<'_>,
        pages: &mut P,
        frozen: FrozenSpte<'_>,
        at: Position,
    ) -> Result<Spte, Stop> {
        self.stats.frozen.inc();
        let Some(owned) = OwnedTable::take(pages, &self.vm) else {
            return Err(Stop::Retry(RetryReason::NoPage));
        };
        let page = owned.page();
        match frozen.link_table(l, &self.ext, &self.vm, owned) {
            Ok(linked) => {
                self.stats.tables.inc();
                self.vm.account(page, true);
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
        table: &Table,
        at: Position,
        pfn: Pfn,
    ) -> Result<MapOutcome, Stop> {
        let cell = self.cell(table, at)?;
        let mut seen = cell.load();
        if seen.kind(at.level()) == SpteKind::NonPresent {
            match FrozenSpte::freeze(l, cell, at, seen) {
                Ok(frozen) => {
                    self.stats.frozen.inc();
                    frozen
                        .map_leaf(l, &self.ext, pfn)
                        .map_err(|error| self.refused(at, seen, error))?;
                    self.stats.mapped.inc();
                    self.stats.leaf_transitions.inc();
                    self.vm.page_stats(at.level(), true);
                    return Ok(MapOutcome::Fixed);
                }
                Err(now) => seen = now,
            }
        }
        match seen.kind(at.level()) {
            SpteKind::Leaf(mapped) if mapped == pfn => {
                self.stats.spurious.inc();
                Ok(MapOutcome::Spurious)
            }
            SpteKind::Frozen => Err(Stop::Retry(RetryReason::Frozen)),
            // The GFN's page may still be the TDX module's: no other page may be put there.
            SpteKind::Quarantined(_) => Err(Stop::Fail(MapError::Bugged)),
            SpteKind::Leaf(_) => {
                let new = Spte::leaf(pfn, at.level());
                Err(self.illegal(at, seen, new))
            }
            _ => Err(self.fail(Bug::Unexpected { at, found: seen })),
        }
    }

    /// One batch of a zap; answers whether the lock is to be yielded and more may follow.
    fn zap_batch(
        &self,
        x: &Exclusive<'_>,
        cursor: &mut Cursor,
        range: GfnRange,
        zapped: &mut u64,
        may_yield: bool,
    ) -> bool {
        let mut looked = 0u32;
        let root = self.root.table(x);
        while let Some(slot) = cursor.next(&self.vm, x, root, self.config.root_level) {
            if self.zap_slot(x, &slot, range) {
                *zapped = zapped.saturating_add(1);
                looked = ZAP_BATCH;
            }
            looked = looked.saturating_add(1);
            if looked >= ZAP_BATCH && may_yield {
                looked = 0;
                if self.vm.need_resched() {
                    return true;
                }
            }
        }
        false
    }

    /// Zaps what is at `slot`; answers whether a leaf was zapped.
    fn zap_slot(&self, x: &Exclusive<'_>, slot: &Slot<'_>, range: GfnRange) -> bool {
        match slot.kind() {
            SpteKind::NonPresent | SpteKind::Quarantined(_) => false,
            SpteKind::Leaf(pfn) if range.contains_entry(slot.at.gfn(), slot.at.level()) => {
                self.zap_leaf(x, slot, pfn)
            }
            SpteKind::Blocked(pfn) => {
                // No zap leaves a blocked leaf behind, so the external state is in doubt.
                self.fail(Bug::Unexpected {
                    at: slot.at,
                    found: slot.spte,
                });
                self.quarantine(x, slot, pfn);
                false
            }
            SpteKind::Frozen | SpteKind::Leaf(_) | SpteKind::Table(_) | SpteKind::Malformed => {
                self.fail(Bug::Unexpected {
                    at: slot.at,
                    found: slot.spte,
                });
                false
            }
        }
    }

    fn zap_leaf(&self, x: &Exclusive<'_>, slot: &Slot<'_>, pfn: Pfn) -> bool {
        match self.remove(x, slot, pfn) {
            Ok(()) => {
                self.set(x, slot.cell, slot.at, Spte::NON_PRESENT);
                self.stats.zapped.inc();
                self.vm.page_stats(slot.at.level(), false);
                true
            }
            Err(failure) => {
                self.fail(Bug::External {
                    at: slot.at,
                    failure,
                });
                self.quarantine(x, slot, pfn);
                self.vm.page_stats(slot.at.level(), false);
                false
            }
        }
    }

    /// Takes the page of `slot` away from the TD: block, track, remove.
    fn remove(&self, x: &Exclusive<'_>, slot: &Slot<'_>, pfn: Pfn) -> Result<(), ExtFailure> {
        if self.ext.needs_tracking(x) {
            self.ext.block_leaf(x, slot.at)?;
            self.set(x, slot.cell, slot.at, Spte::blocked(pfn));
            self.ext.track(x)?;
        }
        self.ext.zap_leaf(x, slot.at, pfn)
    }

    fn quarantine(&self, x: &Exclusive<'_>, slot: &Slot<'_>, pfn: Pfn) {
        self.set(x, slot.cell, slot.at, Spte::quarantined(pfn));
        self.vm.hold_page(pfn);
        self.stats.quarantined.inc();
    }

    /// Writes an entry under mmu_lock held for write.
    fn set(&self, x: &Exclusive<'_>, cell: &SpteCell, at: Position, new: Spte) {
        let old = cell.load();
        match Transition::classify(old, new, at.level()) {
            Ok(_) => cell.replace(x, new),
            Err(_) => drop(self.illegal(at, old, new)),
        }
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
            match spte.kind(level) {
                SpteKind::NonPresent => (),
                SpteKind::Table(pfn) => {
                    if let (Some(child), Some(below)) =
                        (table::child(&self.vm, x, spte, at), level.child())
                    {
                        self.empty_table(x, child, below, first.as_u64());
                    }
                    self.set(x, cell, at, Spte::NON_PRESENT);
                    self.free_table(x, at, pfn);
                }
                SpteKind::Quarantined(pfn) => {
                    // The page was held back when it was quarantined; now nobody will resolve it.
                    self.stats.leaked.inc();
                    self.vm.leaked(&Leak::Data { at, pfn });
                }
                SpteKind::Leaf(pfn) | SpteKind::Blocked(pfn) => {
                    self.fail(Bug::Unexpected { at, found: spte });
                    self.vm.hold_page(pfn);
                    self.stats.leaked.inc();
                    self.vm.leaked(&Leak::Data { at, pfn });
                }
                SpteKind::Frozen | SpteKind::Malformed => {
                    self.fail(Bug::Unexpected { at, found: spte });
                }
            }
        }
    }

    /// Reclaims the S-EPT page of an unlinked table and gives the mirror's back.
    fn free_table(&self, x: &Exclusive<'_>, at: Position, pfn: Pfn) {
        let Some((page, external)) = table::divorce(&self.vm, x, pfn) else {
            return;
        };
        match external.map(|page| self.ext.free_table(x, page)) {
            Some(Ok(free)) => self.vm.put_external(free.into_page()),
            Some(Err(lost)) => {
                // Dropping the page is what leaks it.
                self.stats.leaked.inc();
                self.vm.leaked(&Leak::SeptTable {
                    at,
                    failure: lost.failure,
                });
            }
            None => drop(self.fail(Bug::NoEntry { at })),
        }
        self.stats.tables.dec();
        self.vm.account(page, false);
        self.vm.put_table_deferred(page);
    }

    fn cell<'t>(&self, table: &'t Table, at: Position) -> Result<&'t SpteCell, Stop> {
        table.cell(at).ok_or_else(|| self.fail(Bug::NoEntry { at }))
    }

    /// What an unsuccessful change of a frozen entry means for the map.
    fn refused(&self, at: Position, old: Spte, error: FrozenError) -> Stop {
        match error {
            FrozenError::External(ExtError::Contended(operand)) => {
                Stop::Retry(RetryReason::Contended(operand))
            }
            FrozenError::External(ExtError::BuildContended(operand)) => {
                Stop::Fail(MapError::Busy(operand))
            }
            FrozenError::External(ExtError::Failed(failure)) => {
                self.fail(Bug::External { at, failure })
            }
            FrozenError::Illegal(new, why) => self.fail(Bug::Transition { at, old, new, why }),
        }
    }

    fn illegal(&self, at: Position, old: Spte, new: Spte) -> Stop {
        match Transition::classify(old, new, at.level()) {
            Err(why) => self.fail(Bug::Transition { at, old, new, why }),
            Ok(_) => self.fail(Bug::Unexpected { at, found: old }),
        }
    }

    fn fail(&self, bug: Bug) -> Stop {
        self.bugged.store(true, Ordering::Relaxed);
        self.vm.bug(&bug);
        Stop::Fail(MapError::Bugged)
    }
}
