// SPDX-License-Identifier: GPL-2.0

//! Entries as values under mmu_lock held for write: what an entry is decides what may become of it.
//!
//! A present leaf is blocked, a blocked one removed, either is quarantined, and a table is unlinked.
//! Each step takes the value of the state before it, so that another order does not compile, and
//! no value is classified a second time. No step makes a leaf of a leaf, or calls a hook for one:
//! bits that change in a present leaf reach neither BLOCK nor a removal.
//!
//! Beside [`FrozenSpte`](super::frozen::FrozenSpte) this is the only code that writes an entry of a
//! linked table.

#![forbid(unsafe_code)]

use super::cell::{
    Seen,
    SpteCell, //
};
use super::cursor::Slot;
use super::error::{
    Bug,
    Leak, //
};
use super::external::{
    Assigned,
    ExtFailure,
    ExternalPage,
    ExternalPt, //
};
use super::lock::Exclusive;
use super::mmu::{
    Mirror,
    Vm, //
};
use super::spte::{
    Spte,
    SpteKind, //
};
use super::table::{
    self,
    PageMap,
    Table,
    Unlinked, //
};
use crate::base::addr::Pfn;
use crate::base::level::Position;
use crate::base::stats::Count;
use crate::base::td::Phase;
use core::marker::PhantomData;

/// The TD is not finalized: no vCPU has run, so that a leaf goes without BLOCK and TRACK.
#[derive(Debug)]
pub struct Building<'b>(PhantomData<&'b ()>);

/// The batch under way has not been tracked: it may block, and remove nothing.
#[derive(Debug)]
pub struct Untracked<'b>(PhantomData<&'b ()>);

/// The batch under way is tracked: no vCPU uses what it blocked, and it blocks nothing more.
#[derive(Debug)]
pub struct Tracked<'b>(PhantomData<&'b ()>);

/// How the leaves of a batch go.
#[derive(Debug)]
pub enum ZapMode<'b> {
    /// Each at once.
    Direct(Building<'b>),
    /// All blocked, then tracked, then removed.
    Batched(Untracked<'b>),
}

impl<'b> ZapMode<'b> {
    /// The mode of the batch `batch` in this phase of the TD.
    pub(super) fn of<B>(_batch: &'b B, phase: Phase) -> Self {
        match phase {
            Phase::Build => Self::Direct(Building(PhantomData)),
            Phase::Run => Self::Batched(Untracked(PhantomData)),
        }
    }
}

impl<'b> Untracked<'b> {
    /// Tracks what the batch has blocked.
    ///
    /// # Errors
    ///
    /// Why it is not: vCPUs may use it still.
    pub(super) fn track<E: ExternalPt>(
        self,
        x: &Exclusive<'_>,
        ext: &E,
    ) -> Result<Tracked<'b>, ExtFailure> {
        ext.track(x).map(|()| Tracked(PhantomData))
    }
}

/// State of a [`Leaf`]: the external entry maps the page.
#[derive(Debug)]
pub enum Present {}

/// State of a [`Leaf`]: the external entry is blocked.
#[derive(Debug)]
pub enum Blocked {}

pub(super) use self::sealed::State;

mod sealed {
    use super::{
        Blocked,
        Building,
        Phase,
        Present,
        Tracked, //
    };

    pub trait State {
        /// What has to hold before a leaf in this state is removed.
        type Removable<'b>;
        /// The phase of a TD whose leaves are removed in this state.
        const PHASE: Phase;
    }
    impl State for Present {
        type Removable<'b> = Building<'b>;
        const PHASE: Phase = Phase::Build;
    }
    impl State for Blocked {
        type Removable<'b> = Tracked<'b>;
        const PHASE: Phase = Phase::Run;
    }
}

/// The memory of an entry and the value that it has. Nobody else writes it for `'t`.
#[derive(Debug)]
struct Place<'t> {
    at: Position,
    cell: &'t SpteCell,
    spte: Spte,
}

impl Place<'_> {
    /// The mirror's entry follows the external one.
    fn follow<V: Vm>(&self, x: &Exclusive<'_>, vm: &V, new: Spte) {
        self.cell.replace(x, new);
        vm.spte_changed(self.at, self.spte, new);
    }
}

/// A leaf in the state `S`.
#[derive(Debug)]
pub struct Leaf<'t, S: State> {
    place: Place<'t>,
    pfn: Pfn,
    state: PhantomData<S>,
}

/// A leaf that is mapped.
pub type LeafEntry<'t> = Leaf<'t, Present>;

/// A leaf that is blocked.
pub type BlockedEntry<'t> = Leaf<'t, Blocked>;

impl<'t, S: State> Leaf<'t, S> {
    fn new(place: Place<'t>, pfn: Pfn) -> Self {
        Self {
            place,
            pfn,
            state: PhantomData,
        }
    }

    /// Which entry.
    pub fn at(&self) -> Position {
        self.place.at
    }

    /// Its value.
    pub fn spte(&self) -> Spte {
        self.place.spte
    }

    /// The page.
    pub fn pfn(&self) -> Pfn {
        self.pfn
    }
}

/// A link to a table.
#[derive(Debug)]
pub struct TableEntry<'t> {
    place: Place<'t>,
    seen: Seen<'t>,
}

impl<'t> TableEntry<'t> {
    /// Which entry.
    pub fn at(&self) -> Position {
        self.place.at
    }

    /// The table.
    pub(super) fn child<M: PageMap>(&self, map: &M, x: &'t Exclusive<'_>) -> Option<&'t Table> {
        table::child(map, x, self.seen, self.place.at)
    }
}

/// A table that no entry links to, whose pages are to be freed.
#[derive(Debug)]
#[must_use]
pub struct UnlinkedTable<'t> {
    at: Position,
    seen: Seen<'t>,
}

impl UnlinkedTable<'_> {
    /// The entry that linked to it.
    pub fn at(&self) -> Position {
        self.at
    }

    /// Its page and its S-EPT page, which exists unless it was lost.
    pub(super) fn unpair<M: PageMap>(
        self,
        map: &M,
        x: &Exclusive<'_>,
    ) -> Option<(Unlinked, Option<ExternalPage<Assigned>>)> {
        table::unpair(map, x, self.seen, self.at)
    }
}

/// An entry that was met under mmu_lock held for write.
#[derive(Debug)]
pub enum Entry<'t> {
    /// Nothing is mapped.
    NonPresent,
    /// A mapped page.
    Leaf(LeafEntry<'t>),
    /// A page that is blocked.
    Blocked(BlockedEntry<'t>),
    /// A table.
    Table(TableEntry<'t>),
    /// A page that is given up, until the teardown.
    Quarantined(Pfn),
    /// What cannot be there: a frozen entry, or no value of the mirror's.
    Stray,
}

impl<'t> Slot<'t, Exclusive<'_>> {
    /// The entry as a value.
    #[inline(always)]
    pub fn entry(self) -> Entry<'t> {
        let (kind, seen) = (self.kind(), self.seen());
        let place = Place {
            at: self.at,
            cell: self.cell,
            spte: self.spte(),
        };
        match kind {
            SpteKind::NonPresent => Entry::NonPresent,
            SpteKind::Leaf(pfn) => Entry::Leaf(Leaf::new(place, pfn)),
            SpteKind::Blocked(pfn) => Entry::Blocked(Leaf::new(place, pfn)),
            SpteKind::Table(_) => Entry::Table(TableEntry { place, seen }),
            SpteKind::Quarantined(pfn) => Entry::Quarantined(pfn),
            SpteKind::Frozen | SpteKind::Malformed => Entry::Stray,
        }
    }
}

/// What became of a leaf that was to be blocked.
#[derive(Debug)]
#[must_use]
pub enum BlockOutcome<'t> {
    /// It is blocked.
    Blocked(BlockedEntry<'t>),
    /// It is quarantined, and the VM ends.
    Quarantined,
}

/// What became of a leaf that was to be removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum RemoveOutcome {
    /// It is removed, and the page is the kernel's.
    Removed,
    /// It is quarantined, and the VM ends.
    Quarantined,
}

impl<E: ExternalPt, V: Vm> Mirror<E, V> {
    /// Blocks a leaf.
    #[inline]
    pub fn block<'t>(
        &self,
        x: &Exclusive<'_>,
        _batch: &Untracked<'_>,
        leaf: LeafEntry<'t>,
    ) -> BlockOutcome<'t> {
        match self.ext.block_leaf(x, leaf.place.at) {
            Ok(()) => {
                let Leaf { mut place, pfn, .. } = leaf;
                let spte = Spte::blocked(pfn);
                place.follow(x, &self.vm, spte);
                place.spte = spte;
                BlockOutcome::Blocked(Leaf::new(place, pfn))
            }
            Err(failure) => {
                self.refused_zap(x, leaf, failure);
                BlockOutcome::Quarantined
            }
        }
    }

    /// Removes a leaf: one that is blocked and tracked or, while the TD is built, a present one.
    #[inline]
    pub fn remove<S: State>(
        &self,
        x: &Exclusive<'_>,
        _removable: &S::Removable<'_>,
        leaf: Leaf<'_, S>,
    ) -> RemoveOutcome {
        match self.ext.zap_leaf(x, S::PHASE, leaf.place.at, leaf.pfn) {
            Ok(()) => {
                leaf.place.follow(x, &self.vm, Spte::NON_PRESENT);
                self.stats.zapped.inc();
                self.vm.page_stats(leaf.place.at.level(), false);
                RemoveOutcome::Removed
            }
            Err(failure) => {
                self.refused_zap(x, leaf, failure);
                RemoveOutcome::Quarantined
            }
        }
    }

    /// The external table did not block or remove a leaf, which must not fail.
    #[cold]
    fn refused_zap<S: State>(&self, x: &Exclusive<'_>, leaf: Leaf<'_, S>, failure: ExtFailure) {
        let at = leaf.place.at;
        self.bugged(Bug::External { at, failure });
        self.quarantine(x, leaf);
    }

    /// Gives up a leaf whose page the TDX module may still own. A page that cannot be kept from the
    /// allocator, because it is free already, is beyond help.
    #[cold]
    #[inline(never)]
    pub fn quarantine<S: State>(&self, x: &Exclusive<'_>, leaf: Leaf<'_, S>) {
        let (at, pfn) = (leaf.at(), leaf.pfn());
        if self.vm.hold_page(pfn) {
            self.give_up(x, leaf);
            self.vm.quarantined(at, pfn);
        } else {
            leaf.place.follow(x, &self.vm, Spte::NON_PRESENT);
            self.vm.page_stats(at.level(), false);
            self.leak(&Leak::Freed { at, pfn });
        }
    }

    /// A leaf becomes a quarantined page, which it depends on the caller whether it is held.
    pub(super) fn give_up<S: State>(&self, x: &Exclusive<'_>, leaf: Leaf<'_, S>) {
        let Leaf { place, pfn, .. } = leaf;
        place.follow(x, &self.vm, Spte::quarantined(pfn));
        self.vm.page_stats(place.at.level(), false);
        self.stats.quarantined.inc();
    }

    /// Unlinks a table, whose entries have been emptied.
    pub fn unlink<'t>(&self, x: &Exclusive<'_>, table: TableEntry<'t>) -> UnlinkedTable<'t> {
        let TableEntry { place, seen } = table;
        place.follow(x, &self.vm, Spte::NON_PRESENT);
        UnlinkedTable { at: place.at, seen }
    }
}
