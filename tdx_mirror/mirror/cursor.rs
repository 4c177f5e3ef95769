// SPDX-License-Identifier: GPL-2.0

//! A walk over the entries of a range, in order and without recursion.

#![forbid(unsafe_code)]

use super::cell::{
    Seen,
    SpteCell, //
};
use super::lock::TablesStay;
use super::spte::{
    Spte,
    SpteKind, //
};
use super::table::{
    self,
    PageMap,
    Table, //
};
use crate::base::addr::{
    Gfn,
    GfnRange, //
};
use crate::base::level::{
    Level,
    Position, //
};
use core::marker::PhantomData;

/// An entry that ends the walk for a GFN, anything but a link to a table, met with the evidence `L`.
#[derive(Debug)]
pub struct Slot<'t, L: TablesStay> {
    /// Which entry.
    pub at: Position,
    /// Its memory.
    pub cell: &'t SpteCell,
    seen: Seen<'t>,
    under: PhantomData<&'t L>,
}

impl<'t, L: TablesStay> Slot<'t, L> {
    /// The entry `at` in `cell`, as it is now.
    pub(super) fn load(_l: &'t L, at: Position, cell: &'t SpteCell) -> Self {
        Self {
            at,
            cell,
            seen: cell.load(),
            under: PhantomData,
        }
    }

    /// Its value when it was met.
    pub fn spte(&self) -> Spte {
        self.seen.spte()
    }

    /// The same, as evidence that it was met.
    pub(super) fn seen(&self) -> Seen<'t> {
        self.seen
    }

    /// What the entry was when it was met.
    pub fn kind(&self) -> SpteKind {
        self.spte().kind(self.at.level())
    }

    /// The first frame number after the entry.
    pub fn end(&self) -> u64 {
        let gfn = self.at.gfn().as_u64();
        gfn.saturating_add(self.at.level().pages())
    }
}

/// Walks from `root` to the entry that ends the walk for `gfn`.
///
/// `None` only where a model has no such entry, or a link leads nowhere.
pub fn find<'t, M: PageMap, L: TablesStay>(
    map: &M,
    l: &'t L,
    root: &'t Table,
    root_level: Level,
    gfn: Gfn,
) -> Option<Slot<'t, L>> {
    descend(map, l, (root, root_level), gfn).map(|(slot, _)| slot)
}

/// Walks from `from`, a table with the level of its entries, to the entry that ends the walk for
/// `gfn`; returns the entry's table too.
fn descend<'t, M: PageMap, L: TablesStay>(
    map: &M,
    l: &'t L,
    from: (&'t Table, Level),
    gfn: Gfn,
) -> Option<(Slot<'t, L>, &'t Table)> {
    let (mut table, mut level) = from;
    // At most five rounds: the level falls in each, and at 4K nothing is a table.
    loop {
        let at = Position::covering(gfn, level);
        let cell = table.cell(at)?;
        let slot = Slot::load(l, at, cell);
        match (slot.spte().kind(level), level.child()) {
            (SpteKind::Table(_), Some(below)) => {
                table = table::child(map, l, slot.seen, at)?;
                level = below;
            }
            _ => return Some((slot, table)),
        }
    }
}

/// Where a walk over the entries of a range is.
///
/// It keeps a GFN only, no pointer, so it may live on while the lock is yielded.
#[derive(Debug)]
pub struct Cursor {
    next: u64,
    end: u64,
}

impl Cursor {
    /// A cursor at the start of `range`.
    pub fn new(range: GfnRange) -> Self {
        Self {
            next: range.start(),
            end: range.end(),
        }
    }

    /// The first frame number that no entry was met for, or one past the range.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// The entries from here on, for as long as no table can be freed.
    pub fn entries<'c, 't, L: TablesStay>(
        &'c mut self,
        l: &'t L,
        root: &'t Table,
        root_level: Level,
    ) -> Entries<'c, 't, L> {
        Entries {
            cursor: self,
            l,
            root: (root, root_level),
            last: None,
        }
    }
}

/// The entries that end the walk for the GFNs of a range, each once, in order of GFN.
#[derive(Debug)]
pub struct Entries<'c, 't, L: TablesStay> {
    cursor: &'c mut Cursor,
    l: &'t L,
    root: (&'t Table, Level),
    /// The table of the entry met last, and the level of its entries. The next entry is in it too
    /// or below it, unless it was the last one of the table, so that one walk serves a table.
    last: Option<(&'t Table, Level)>,
}

impl<'t, L: TablesStay> Entries<'_, 't, L> {
    /// The next entry, or `None` at the end of the range.
    #[inline]
    pub fn next<M: PageMap>(&mut self, map: &M) -> Option<Slot<'t, L>> {
        if self.cursor.next >= self.cursor.end {
            return None;
        }
        let gfn = Gfn::new(self.cursor.next)?;
        match self.last {
            // Nearly always: one more leaf, or room for one, of the table that the last one was
            // in.
            Some((table, Level::L4K)) if Level::L4K.index(gfn) != 0 => {
                let at = Position::covering(gfn, Level::L4K);
                let cell = table.cell(at)?;
                self.cursor.next = gfn.as_u64().saturating_add(1);
                Some(Slot::load(self.l, at, cell))
            }
            _ => self.walk(map, gfn),
        }
    }

    /// The entry for `gfn`, by a walk from the lowest table that is known to lead there.
    #[inline(never)]
    fn walk<M: PageMap>(&mut self, map: &M, gfn: Gfn) -> Option<Slot<'t, L>> {
        let from = match self.last {
            Some((table, level)) if level.index(gfn) != 0 => (table, level),
            _ => self.root,
        };
        let (slot, table) = descend(map, self.l, from, gfn)?;
        self.last = Some((table, slot.at.level()));
        // Always further: the entry covers `next`, so it ends after it.
        self.cursor.next = slot.end();
        Some(slot)
    }
}
