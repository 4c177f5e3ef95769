// SPDX-License-Identifier: GPL-2.0

//! Pages of the mirror as tables of entries, and who owns them.
//!
//! A linked table is reached through the PFN in its parent's entry, as in KVM. Beside each
//! mirror table but the root stands one S-EPT page, its companion. It is kept with the mirror
//! page (in the kernel in `page->private` of the mirror's page), so that no side structure has
//! to be allocated under mmu_lock and so that the pair lives and dies together.

use super::cell::{
    Seen,
    SpteCell, //
};
use super::external::{
    Assigned,
    ExternalPage,
    Free, //
};
use super::lock::{
    Exclusive,
    TablesStay, //
};
use super::spte::{
    Spte,
    SpteKind, //
};
use crate::base::addr::{
    PagePtr,
    Pfn, //
};
use crate::base::level::Position;
use crate::base::sys::TABLE_CELLS;

/// A table: its entries, and nothing else.
#[derive(Debug)]
#[repr(C)]
pub struct Table {
    cells: [SpteCell; TABLE_CELLS],
}

impl Table {
    /// What the tests on the host have for a page: every entry is `v`.
    #[cfg(not(CONFIG_RUST))]
    pub fn filled(v: Spte) -> Self {
        Self {
            cells: core::array::from_fn(|_| SpteCell::new(v)),
        }
    }

    /// The entry for `at`, which is `None` only where a model has fewer entries than a page.
    pub fn cell(&self, at: Position) -> Option<&SpteCell> {
        self.cells.get(at.level().index(at.gfn()))
    }

    /// All entries in order.
    pub fn cells(&self) -> impl Iterator<Item = &SpteCell> {
        self.cells.iter()
    }
}

/// Where pages are, the one word that is kept with each, and where they go back to.
///
/// # Safety
///
/// * [`pfn_of()`](Self::pfn_of) and [`page_at()`](Self::page_at) are inverse to each other for
///   every page that a [`PageSupplier`] hands out.
/// * [`companion()`](Self::companion) returns what [`set_companion()`](Self::set_companion) was
///   last given for the page, `None` for a page fresh from its supplier.
/// * A page given to [`put_table_deferred()`](Self::put_table_deferred) stays as it is until all
///   RCU read-side critical sections that are open now have ended.
pub unsafe trait PageMap {
    /// The frame of `page`.
    fn pfn_of(&self, page: PagePtr) -> Pfn;
    /// The page of `pfn`. Reads no memory.
    fn page_at(&self, pfn: Pfn) -> Option<PagePtr>;
    /// Keeps `with` beside `page`.
    ///
    /// # Safety
    ///
    /// A [`PageSupplier`] has handed `page` out, and nobody has put it.
    unsafe fn set_companion(&self, page: PagePtr, with: Option<PagePtr>);
    /// What was kept beside `page`.
    ///
    /// # Safety
    ///
    /// As of [`set_companion()`](Self::set_companion).
    unsafe fn companion(&self, page: PagePtr) -> Option<PagePtr>;
    /// Takes back a mirror page.
    ///
    /// # Safety
    ///
    /// A [`PageSupplier`] has handed `page` out, nobody has put it, and no walker can meet it any
    /// more.
    unsafe fn put_table(&self, page: PagePtr);
    /// Takes back a mirror page, once no walk can be at it.
    ///
    /// # Safety
    ///
    /// A [`PageSupplier`] has handed `page` out, nobody has put it, and no entry links to it.
    unsafe fn put_table_deferred(&self, page: PagePtr);
    /// Takes back a page of the S-EPT.
    ///
    /// # Safety
    ///
    /// A [`PageSupplier`] has handed `page` out, nobody has put it, and the TDX module does not own
    /// it.
    unsafe fn put_external(&self, page: PagePtr);
}

/// Pages for new tables; KVM's pre-filled caches of one vCPU. Neither sleeps nor fails for long.
///
/// # Safety
///
/// A page from [`take_table()`](Self::take_table) is 4 KiB, aligned to its size, valid for reads
/// and writes until it is put, and touched by nobody else; on the host it is a [`Table`].
pub unsafe trait PageSupplier {
    /// A page for a mirror table.
    fn take_table(&mut self) -> Option<PagePtr>;
    /// A page for a table of the S-EPT; the kernel does not touch it once it is linked.
    fn take_external(&mut self) -> Option<PagePtr>;
}

/// A mirror page that is in no table, with a page for the S-EPT. Owned: nobody else sees either.
#[derive(Debug)]
#[must_use]
pub struct OwnedTable {
    page: PagePtr,
    external: ExternalPage<Free>,
}

impl OwnedTable {
    /// An empty table, or `None` if `pages` lacks one of the two pages.
    pub fn take<P: PageSupplier, M: PageMap>(pages: &mut P, map: &M) -> Option<Self> {
        let page = pages.take_table()?;
        let Some(external) = pages.take_external() else {
            // SAFETY: It was handed out just now.
            unsafe { map.put_table(page) };
            return None;
        };
        // SAFETY: By the contract of the supplier; nobody else has it.
        for cell in unsafe { overlay(page) }.cells() {
            cell.init(Spte::NON_PRESENT);
        }
        Some(Self {
            page,
            external: ExternalPage::new(external),
        })
    }

    /// Gives both pages back.
    pub fn put<M: PageMap>(self, map: &M) {
        // SAFETY: Owned, and so in no table.
        unsafe { map.put_table(self.page) };
        put_external(map, self.external);
    }

    /// The mirror's page, for the account.
    pub fn page(&self) -> PagePtr {
        self.page
    }

    /// The S-EPT's page, for the account.
    pub fn external_page(&self) -> PagePtr {
        self.external.operand()
    }

    /// The mirror's page and the S-EPT's.
    pub(super) fn into_parts(self) -> (PagePtr, ExternalPage<Free>) {
        (self.page, self.external)
    }

    /// Puts together what [`into_parts()`](Self::into_parts) took apart; the table is empty still.
    pub(super) fn from_parts(page: PagePtr, external: ExternalPage<Free>) -> Self {
        Self { page, external }
    }
}

/// The root of a mirror. It has no companion: the S-EPT's root is one of the TD's control pages.
///
/// # Invariants
///
/// `page` is one that a [`PageSupplier`] may hand out, until the mirror puts it, which it does when
/// it is dropped with this.
#[derive(Debug)]
pub struct Root {
    page: PagePtr,
}

// SAFETY: the page is reached by shared reference only, its entries are atomics, and all writes
// are ordered by mmu_lock and the freeze.
unsafe impl Send for Root {}
// SAFETY: as above.
unsafe impl Sync for Root {}

impl Root {
    /// Makes an empty table of `page`, which belongs to the mirror from now on.
    ///
    /// # Safety
    ///
    /// The page is one that a [`PageSupplier`] may hand out, until the mirror puts it.
    pub unsafe fn new(page: PagePtr) -> Self {
        // SAFETY: By the safety requirements.
        for cell in unsafe { overlay(page) }.cells() {
            cell.init(Spte::NON_PRESENT);
        }
        // INVARIANT: By the safety requirements.
        Self { page }
    }

    /// The table, for as long as no table can be freed.
    pub fn table<'t, L: TablesStay>(&'t self, _l: &'t L) -> &'t Table {
        // SAFETY: By the type invariant, for as long as this is borrowed.
        unsafe { overlay(self.page) }
    }

    /// The page, for the account.
    pub fn page(&self) -> PagePtr {
        self.page
    }

    /// Gives the page back, as the last thing that is done with the root: for the drop of the mirror
    /// that has it, which no walker outlives.
    pub(super) fn put<M: PageMap>(&mut self, map: &M) {
        // SAFETY: By the type invariant; nobody borrows the root, and whoever drops it does not again.
        unsafe { map.put_table(self.page) };
    }
}

/// The mirror page of a table that was unlinked and taken apart. Owned, but for RCU readers.
#[derive(Debug)]
#[must_use]
pub(super) struct Unlinked(PagePtr);

impl Unlinked {
    /// The page, for the account.
    pub(super) fn page(&self) -> PagePtr {
        self.0
    }

    /// Gives the page back when no walk can be at it.
    pub(super) fn put<M: PageMap>(self, map: &M) {
        // SAFETY: `unpair()` made it of a page that no entry links to, and this is its only end.
        unsafe { map.put_table_deferred(self.0) };
    }
}

/// Gives back a page of the S-EPT.
pub(super) fn put_external<M: PageMap>(map: &M, page: ExternalPage<Free>) {
    // SAFETY: By its type the page is the kernel's, and whoever had it gives it up.
    unsafe { map.put_external(page.into_page()) };
}

/// The table that an entry at `at` pointed to when it had the value `seen`, if it pointed to one.
pub(super) fn child<'t, M: PageMap, L: TablesStay>(
    map: &M,
    _l: &'t L,
    seen: Seen<'t>,
    at: Position,
) -> Option<&'t Table> {
    let SpteKind::Table(pfn) = seen.spte().kind(at.level()) else {
        return None;
    };
    let page = map.page_at(pfn)?;
    // SAFETY: An entry had the value, so that by the invariant of `SpteCell` the frame is that of
    // the page of an `OwnedTable`, which `page_at()` finds. No table is freed for `'t`: the evidence
    // says so, and that the entry's own table is there still.
    Some(unsafe { overlay(page) })
}

/// Keeps the assigned S-EPT page with its mirror page, before the link is published.
pub(super) fn pair<M: PageMap>(map: &M, page: PagePtr, external: ExternalPage<Assigned>) {
    // SAFETY: The caller has the page from an `OwnedTable`, and is about to link it.
    unsafe { map.set_companion(page, Some(external.into_companion())) };
}

/// Takes an unlinked table apart: its page and its S-EPT page, which exists unless it was lost.
pub(super) fn unpair<M: PageMap>(
    map: &M,
    _x: &Exclusive<'_>,
    seen: Seen<'_>,
    at: Position,
) -> Option<(Unlinked, Option<ExternalPage<Assigned>>)> {
    let SpteKind::Table(pfn) = seen.spte().kind(at.level()) else {
        return None;
    };
    let page = map.page_at(pfn)?;
    // SAFETY: An entry had the value, so that by the invariant of `SpteCell` the page is that of an
    // `OwnedTable`. It is put once, after this.
    let external = unsafe { map.companion(page) }.map(ExternalPage::from_companion);
    // SAFETY: As above.
    unsafe { map.set_companion(page, None) };
    Some((Unlinked(page), external))
}

/// Reads `page` as a table.
///
/// # Safety
///
/// A [`PageSupplier`] has handed `page` out as that of a table, and it is not put for `'t`.
unsafe fn overlay<'t>(page: PagePtr) -> &'t Table {
    // SAFETY: By the contract of `PageSupplier` such a page is valid, aligned and touched through
    // this type only, whose entries are atomics; every bit pattern is a valid entry.
    unsafe { &*page.as_ptr().cast::<Table>() }
}
