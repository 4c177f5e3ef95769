// SPDX-License-Identifier: GPL-2.0

//! Whether the mirror and the external table say the same, entry by entry, and what is frozen.

#![forbid(unsafe_code)]

use super::external::{
    ExtFailure,
    External,
    ExternalPt, //
};
use super::lock::{
    Exclusive,
    TablesStay, //
};
use super::mmu::{
    Mirror,
    Vm, //
};
use super::spte::SpteKind;
use super::zap::InBatch;
use crate::base::addr::Gfn;
use crate::base::level::Position;

/// An entry that ends the mirror's walk, and what the external table has there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compared {
    /// Which entry.
    pub at: Position,
    /// The mirror's.
    pub kind: SpteKind,
    /// The other one, or why it cannot be read.
    pub external: Result<External, ExtFailure>,
}

impl Compared {
    /// Whether both say the same. With mmu_lock held for write nothing is frozen or blocked.
    pub fn agrees(&self) -> bool {
        match (self.kind, self.external) {
            (SpteKind::NonPresent, Ok(External::Free)) => true,
            (SpteKind::Leaf(a), Ok(External::Leaf { pfn, blocked, .. })) => a == pfn && !blocked,
            // Whether the TDX module still owns the page is what is not known.
            (SpteKind::Quarantined(_), Ok(External::Free)) => true,
            (SpteKind::Quarantined(a), Ok(External::Leaf { pfn, .. })) => a == pfn,
            _ => false,
        }
    }
}

impl<E: ExternalPt, V: Vm> Mirror<E, V> {
    /// Compares up to `entries` entries from the one for the frame number `from` on, of which the
    /// free ones only with `free`; `visit` is called for each. Returns the frame number to go on
    /// with, `None` at the end.
    ///
    /// A table that the mirror has and the external table lacks shows at the entries below it, one
    /// that only the external table has at the mirror's free entry.
    pub fn compare(
        &self,
        x: &Exclusive<'_>,
        from: u64,
        entries: u32,
        free: bool,
        visit: &mut dyn FnMut(&Compared),
    ) -> Option<u64> {
        let _batch = InBatch(&self.ext, x);
        let phase = self.ext.phase(x);
        let mut next = from;
        for _ in 0..entries {
            let slot = self.slot(x, Gfn::new(next)?)?;
            if free || slot.kind() != SpteKind::NonPresent {
                visit(&Compared {
                    at: slot.at,
                    kind: slot.kind(),
                    external: self.ext.read_entry(x, phase, slot.at),
                });
            }
            next = slot.end();
        }
        Some(next)
    }

    /// The entries that end the walk, from the one for the frame number `from` on, at most
    /// `entries`; `visit` is called for each. Returns as [`compare()`](Self::compare).
    pub fn look<L: TablesStay>(
        &self,
        l: &L,
        from: u64,
        entries: u32,
        visit: &mut dyn FnMut(Position, SpteKind),
    ) -> Option<u64> {
        let mut next = from;
        for _ in 0..entries {
            let slot = self.slot(l, Gfn::new(next)?)?;
            visit(slot.at, slot.kind());
            next = slot.end();
        }
        Some(next)
    }
}
