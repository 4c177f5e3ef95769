// SPDX-License-Identifier: GPL-2.0

//! The external table as the mirror sees it: its operations, and the lock that each needs.

#![forbid(unsafe_code)]

use super::lock::{
    Exclusive,
    MmuLocked,
    Shared, //
};
use crate::base::addr::{
    PagePtr,
    Pfn, //
};
use crate::base::level::Position;
use crate::base::stats::Counter;
use crate::base::td::{
    Operand,
    Phase, //
};
use core::{
    fmt,
    marker::PhantomData,
    mem::ManuallyDrop, //
};

/// A completion status of the external table with its extended words, for the report.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ExtFailure {
    /// Name of the operation.
    pub op: &'static str,
    /// Completion status, as in RAX.
    pub status: u64,
    /// RCX on return: S-EPT entry, or page type.
    pub ext1: u64,
    /// RDX on return: level and state, or owner.
    pub ext2: u64,
    /// R8 on return: page size.
    pub ext3: u64,
}

impl fmt::Debug for ExtFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {:#018x}, rcx {:#x}, rdx {:#x}, r8 {:#x}",
            self.op, self.status, self.ext1, self.ext2, self.ext3
        )
    }
}

/// An entry of the external table, as it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum External {
    /// Nothing mapped.
    Free,
    /// A table of the next level.
    Table,
    /// A page.
    Leaf {
        /// The page.
        pfn: Pfn,
        /// The guest has not accepted it.
        pending: bool,
        /// It is blocked.
        blocked: bool,
    },
    /// None of these: the state's number.
    Other(u8),
}

/// Why an operation on the external table did not happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExtError {
    /// Contention for the whole budget: the caller may retry.
    Contended(Operand),
    /// Anything else: a bug.
    Failed(ExtFailure),
}

/// State of an [`ExternalPage`]: the kernel owns it.
#[derive(Debug)]
pub enum Free {}

/// State of an [`ExternalPage`]: the TDX module owns it.
#[derive(Debug)]
pub enum Assigned {}

mod sealed {
    pub trait State {
        const ASSIGNED: bool;
    }
    impl State for super::Free {
        const ASSIGNED: bool = false;
    }
    impl State for super::Assigned {
        const ASSIGNED: bool = true;
    }
}

/// A page for an S-EPT table.
///
/// Dropping an assigned page leaks it and counts, because the kernel must not touch it; dropping
/// a free one leaks it as well, so it is to be handed back with [`into_page()`](Self::into_page).
#[must_use]
pub struct ExternalPage<S: sealed::State> {
    page: PagePtr,
    state: PhantomData<S>,
}

/// Assigned pages that were dropped, of all TDs.
static DROPPED: Counter = Counter::new();

/// The number of assigned pages that were dropped, and so leaked, since the module was loaded.
pub fn dropped_pages() -> u64 {
    DROPPED.get()
}

impl<S: sealed::State> ExternalPage<S> {
    fn make(page: PagePtr) -> Self {
        Self {
            page,
            state: PhantomData,
        }
    }

    fn defuse(self) -> PagePtr {
        ManuallyDrop::new(self).page
    }

    /// The page as an operand of a SEAMCALL.
    pub fn operand(&self) -> PagePtr {
        self.page
    }
}

impl ExternalPage<Free> {
    /// A page that a supplier gave.
    pub fn new(page: PagePtr) -> Self {
        Self::make(page)
    }

    /// The page, to give it back to its supplier.
    pub fn into_page(self) -> PagePtr {
        self.defuse()
    }

    /// The TDX module took the page. For implementations of [`ExternalPt`].
    pub fn assigned(self) -> ExternalPage<Assigned> {
        ExternalPage::make(self.defuse())
    }
}

impl ExternalPage<Assigned> {
    /// The TDX module gave the page back. For implementations of [`ExternalPt`].
    pub fn reclaimed(self) -> ExternalPage<Free> {
        ExternalPage::make(self.defuse())
    }

    /// Puts the page into the care of the mirror table that it stands beside.
    pub(super) fn into_companion(self) -> PagePtr {
        self.defuse()
    }

    /// Takes the page out of the care of its mirror table.
    pub(super) fn from_companion(page: PagePtr) -> Self {
        Self::make(page)
    }
}

impl<S: sealed::State> Drop for ExternalPage<S> {
    fn drop(&mut self) {
        if S::ASSIGNED {
            DROPPED.inc();
        }
    }
}

impl<S: sealed::State> fmt::Debug for ExternalPage<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if S::ASSIGNED {
            "assigned page"
        } else {
            "free page"
        })
    }
}

/// A page that could not be reclaimed; it is dropped by whoever reports this, so leaked.
#[derive(Debug)]
#[must_use]
pub struct Leaked {
    /// The page, still the TDX module's.
    pub page: ExternalPage<Assigned>,
    /// What the reclaim answered.
    pub failure: ExtFailure,
}

/// The external table. Operations neither sleep nor allocate.
///
/// What depends on the [`Phase`] is given it, so that all of an entry point sees the same one.
pub trait ExternalPt {
    /// The phase of the TD, which does not change while the lock is held.
    fn phase<L: MmuLocked>(&self, l: &L) -> Phase;

    /// Makes `page` the table below the free entry `at`, whose parents are all linked.
    ///
    /// # Errors
    ///
    /// Why not, and the page.
    fn link_table(
        &self,
        l: &Shared<'_>,
        phase: Phase,
        at: Position,
        page: ExternalPage<Free>,
    ) -> Result<ExternalPage<Assigned>, (ExtError, ExternalPage<Free>)>;

    /// Maps `pfn` at the free entry `at`.
    ///
    /// # Errors
    ///
    /// Why not; the external entry is free still.
    fn map_leaf(
        &self,
        l: &Shared<'_>,
        phase: Phase,
        at: Position,
        pfn: Pfn,
    ) -> Result<(), ExtError>;

    /// Somebody gave up on an entry before, and the guest waits until the entry is locked once
    /// more: does that for one such entry, if it can be done at once.
    fn pay_debt(&self, l: &Shared<'_>, phase: Phase);

    /// As [`pay_debt()`](Self::pay_debt), for all such entries and with certainty.
    ///
    /// # Errors
    ///
    /// An entry whose lock is held though nobody is left who could hold it.
    fn pay_debts(&self, x: &Exclusive<'_>, phase: Phase) -> Result<(), (Position, ExtFailure)>;

    /// Ends a batch of operations under mmu_lock held for write, whatever became of them: vCPUs
    /// that one of these held out of the guest may enter again.
    fn end_batch(&self, x: &Exclusive<'_>);

    /// Reads the entry `at`, for a comparison. Part of a batch, as a change is, until the end of
    /// which all vCPUs stay out of the guest.
    ///
    /// # Errors
    ///
    /// Why not, above all because there is no table that has it.
    fn read_entry(
        &self,
        x: &Exclusive<'_>,
        phase: Phase,
        at: Position,
    ) -> Result<External, ExtFailure>;

    /// Blocks the leaf `at` of a TD that [runs](Phase::Run) against new translations; one that is
    /// blocked stays so.
    ///
    /// # Errors
    ///
    /// Why not; the entry may be used by vCPUs still.
    fn block_leaf(&self, x: &Exclusive<'_>, at: Position) -> Result<(), ExtFailure>;

    /// Starts a new epoch and has all vCPUs leave the old one: no translation of a blocked leaf
    /// is cached by a vCPU afterwards.
    ///
    /// # Errors
    ///
    /// Why not.
    fn track(&self, x: &Exclusive<'_>) -> Result<(), ExtFailure>;

    /// Takes `pfn` away from the TD and writes its cache lines back. Of a TD that
    /// [runs](Phase::Run), the leaf is blocked and tracked.
    ///
    /// # Errors
    ///
    /// Why not; the TDX module may still own the page.
    fn zap_leaf(
        &self,
        x: &Exclusive<'_>,
        phase: Phase,
        at: Position,
        pfn: Pfn,
    ) -> Result<(), ExtFailure>;

    /// Reclaims `pfn`, which may still be mapped at `at`, once the HKID is released.
    ///
    /// # Errors
    ///
    /// Why not; the TDX module may still own the page.
    fn reclaim_leaf(&self, x: &Exclusive<'_>, at: Position, pfn: Pfn) -> Result<(), ExtFailure>;

    /// Reclaims the page of a table whose children are all reclaimed; the HKID is released.
    ///
    /// # Errors
    ///
    /// The page and why it is lost.
    fn free_table(
        &self,
        x: &Exclusive<'_>,
        page: ExternalPage<Assigned>,
    ) -> Result<ExternalPage<Free>, Leaked>;
}
