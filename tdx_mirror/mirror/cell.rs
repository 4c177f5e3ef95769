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
use core::fmt;

/// The memory of an entry. This is the only code that touches it.
#[repr(transparent)]
pub struct SpteCell(AtomicU64);

impl SpteCell {
    /// An entry outside any table page, for tests on the host.
    #[cfg(not(CONFIG_RUST))]
    pub fn new(v: Spte) -> Self {
        Self(AtomicU64::new(v.raw()))
    }

    /// The value now. Acquire: who finds a table finds its entries too.
    pub fn load(&self) -> Spte {
        Spte::from_raw(self.0.load(Acquire))
    }

    /// Takes the entry, if it still has the value `seen`, against all who hold mmu_lock for read.
    ///
    /// # Errors
    ///
    /// The value that another mapper put there first.
    pub(super) fn try_freeze(&self, seen: Spte) -> Result<(), Spte> {
        // A full barrier: the SEAMCALL must not move before the entry is taken. If another mapper
        // was faster, its table is reached through the value alone, which orders the walk after it.
        self.0
            .cmpxchg(seen.raw(), Spte::FROZEN.raw(), Full)
            .map(drop)
            .map_err(Spte::from_raw)
    }

    /// Ends the freeze with the value `v`. Release: pairs with [`load()`](Self::load).
    ///
    /// Only for who froze the entry, so that nobody else writes it in between.
    pub(super) fn thaw(&self, v: Spte) {
        self.0.store(v.raw(), Release);
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
        self.load().fmt(f)
    }
}
