// SPDX-License-Identifier: GPL-2.0

//! One entry of a mirror table in memory.

#![forbid(unsafe_code)]

use super::lock::Exclusive;
use super::spte::Spte;
use crate::base::sys::{
    Acquire,
    AtomicU64,
    Full,
    Relaxed,
    Release, //
};
use core::{
    fmt,
    marker::PhantomData, //
};

/// A value that an entry had, as evidence: who has one has read it, and not made it up. It lasts as
/// the entry's memory does, so that it is forgotten before a table can be freed.
///
/// # Invariants
///
/// It was read from a [`SpteCell`], or written to one, that stays for `'t`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen<'t>(Spte, PhantomData<&'t ()>);

impl Seen<'_> {
    /// The value.
    pub fn spte(self) -> Spte {
        self.0
    }
}

/// The memory of an entry. This is the only code that touches it.
///
/// # Invariants
///
/// A link to a table names the page of an [`OwnedTable`](super::table::OwnedTable): only
/// [`FrozenSpte::link_table()`](super::frozen::FrozenSpte::link_table) puts one into an entry.
#[repr(transparent)]
pub struct SpteCell(AtomicU64);

impl SpteCell {
    /// An entry outside any table page, for tests on the host.
    #[cfg(not(CONFIG_RUST))]
    pub fn new(v: Spte) -> Self {
        Self(AtomicU64::new(v.raw()))
    }

    /// The value now. Acquire: who finds a table finds its entries too.
    pub fn load(&self) -> Seen<'_> {
        // INVARIANT: Read.
        Seen(Spte::from_raw(self.0.load(Acquire)), PhantomData)
    }

    /// Takes the entry, if it still has the value `seen`, against all who hold mmu_lock for read.
    ///
    /// # Errors
    ///
    /// The value that another mapper put there first.
    pub(super) fn try_freeze(&self, seen: Spte) -> Result<(), Seen<'_>> {
        // A full barrier: the SEAMCALL must not move before the entry is taken. If another mapper
        // was faster, its table is reached through the value alone, which orders the walk after it.
        self.0
            .cmpxchg(seen.raw(), Spte::FROZEN.raw(), Full)
            .map(drop)
            // INVARIANT: Read.
            .map_err(|now| Seen(Spte::from_raw(now), PhantomData))
    }

    /// Ends the freeze with the value `v`. Release: pairs with [`load()`](Self::load).
    ///
    /// Only for who froze the entry, so that nobody else writes it in between.
    pub(super) fn thaw(&self, v: Spte) -> Seen<'_> {
        self.0.store(v.raw(), Release);
        // INVARIANT: Written.
        Seen(v, PhantomData)
    }

    /// Writes the entry; nobody else can, so no cmpxchg is needed. RCU readers may watch.
    pub(super) fn replace(&self, _x: &Exclusive<'_>, v: Spte) {
        self.0.store(v.raw(), Release);
    }

    /// Sets an entry of a table that is not linked yet. The link publishes it.
    pub(super) fn init(&self, v: Spte) {
        self.0.store(v.raw(), Relaxed);
    }
}

impl fmt::Debug for SpteCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.load().spte().fmt(f)
    }
}
