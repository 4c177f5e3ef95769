// SPDX-License-Identifier: GPL-2.0

//! A frozen entry as a value: whoever has it may change the external entry, nobody else.

#![forbid(unsafe_code)]

use super::cell::{
    Seen,
    SpteCell, //
};
use super::external::{
    ExtError,
    ExternalPt, //
};
use super::lock::Shared;
use super::spte::{
    IllegalTransition,
    Spte,
    Transition, //
};
use super::table::{
    self,
    OwnedTable,
    PageMap, //
};
use crate::base::addr::Pfn;
use crate::base::level::Position;
use crate::base::td::Phase;
use core::mem::ManuallyDrop;

/// The exclusive right to change one entry under mmu_lock held for read.
///
/// Dropping it restores the old value, so an early return leaves nothing frozen.
#[derive(Debug)]
#[must_use]
pub struct FrozenSpte<'t> {
    cell: &'t SpteCell,
    old: Spte,
    at: Position,
}

/// Why a change of a frozen entry did not happen; the entry has its old value again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrozenError {
    /// The external table did not do it.
    External(ExtError),
    /// The change is a bug.
    Illegal(Spte, IllegalTransition),
}

impl<'t> FrozenSpte<'t> {
    /// Freezes the entry, if it still has the value `seen`.
    ///
    /// # Errors
    ///
    /// The value that the entry has now; it is what the caller goes on with.
    pub fn freeze(
        _l: &'t Shared<'_>,
        cell: &'t SpteCell,
        at: Position,
        seen: Spte,
    ) -> Result<Self, Seen<'t>> {
        cell.try_freeze(seen)?;
        Ok(Self {
            cell,
            old: seen,
            at,
        })
    }

    /// Maps `pfn` in the external table, then in the mirror.
    ///
    /// # Errors
    ///
    /// Neither is mapped; the entry is rolled back.
    pub fn map_leaf<E: ExternalPt>(
        self,
        l: &Shared<'_>,
        ext: &E,
        phase: Phase,
        pfn: Pfn,
    ) -> Result<(), FrozenError> {
        let new = Spte::leaf(pfn, self.at.level());
        match Transition::classify(self.old, new, self.at.level()) {
            Ok(Transition::MapLeaf(_)) => (),
            Ok(_) => return Err(FrozenError::Illegal(new, IllegalTransition::OverPresent)),
            Err(why) => return Err(FrozenError::Illegal(new, why)),
        }
        ext.map_leaf(l, phase, self.at, pfn)
            .map_err(FrozenError::External)?;
        _ = self.thaw(new);
        Ok(())
    }

    /// Links `owned` in the external table, then in the mirror. Returns the entry's new value.
    ///
    /// # Errors
    ///
    /// Neither is linked, the entry is rolled back, and the pages are the caller's again.
    pub fn link_table<E: ExternalPt, M: PageMap>(
        self,
        l: &Shared<'_>,
        ext: &E,
        phase: Phase,
        map: &M,
        owned: OwnedTable,
    ) -> Result<Seen<'t>, (FrozenError, OwnedTable)> {
        let (page, external) = owned.into_parts();
        let new = Spte::table(map.pfn_of(page));
        let back = |e, external| (e, OwnedTable::from_parts(page, external));
        match Transition::classify(self.old, new, self.at.level()) {
            Ok(Transition::LinkTable(_)) => (),
            Ok(_) => {
                let why = IllegalTransition::OverPresent;
                return Err(back(FrozenError::Illegal(new, why), external));
            }
            Err(why) => return Err(back(FrozenError::Illegal(new, why), external)),
        }
        let assigned = ext
            .link_table(l, phase, self.at, external)
            .map_err(|(e, external)| back(FrozenError::External(e), external))?;
        table::pair(map, page, assigned);
        Ok(self.thaw(new))
    }

    /// Ends the freeze with a new value instead of the old one.
    fn thaw(self, new: Spte) -> Seen<'t> {
        ManuallyDrop::new(self).cell.thaw(new)
    }
}

impl Drop for FrozenSpte<'_> {
    fn drop(&mut self) {
        _ = self.cell.thaw(self.old);
    }
}
