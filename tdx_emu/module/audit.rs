// SPDX-License-Identifier: GPL-2.0

//! Checks of everything that a TD has: its whole S-EPT against the whole PAMT.
//!
//! There is no memory for a set of pages, so sets are compared by their number of pages
//! and by a sum of hashes of their addresses: a page that is reachable twice, or owned
//! and not reachable, changes the sums.

use super::check::{Finding, Violation, Wrong};
use super::mem::{Page, WORDS};
use super::pamt::{pt, PamtEntry};
use super::platform::{Platform, PAGE_SIZE};
use super::sys::{Machine, Tdmr};
use super::td::tdr_word;
use super::tree::shift;

/// Leaf number of a violation that no call made.
const NO_LEAF: u16 = 0xFFFF;

/// A set of pages.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// 4K units.
    pages: u64,
    hash: u64,
}

impl Sums {
    pub(crate) fn add(&mut self, pa: u64, size: u8) {
        let key = (pa | u64::from(size)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let hash = (key ^ (key >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        self.hash = self.hash.wrapping_add(hash ^ (hash >> 32));
        self.pages = self.pages.wrapping_add(1 << (9 * (u32::from(size) & 3)));
    }
}

/// What the PAMT gives to a TD.
#[derive(Default)]
struct Owned {
    /// Data and S-EPT pages.
    mapped: Sums,
    /// Control pages, but for the TDR.
    control: Sums,
}

impl<P: Platform> Machine<P> {
    /// Checks all TDs, if nobody disturbs. `None`: somebody did.
    pub(crate) fn audit(&self) -> Option<Result<(), Violation>> {
        let (alone, ticket) = self.watch.come();
        let mut bad = None;
        let found = self.each_owned(|pa, size, entry| {
            let kind = entry.kind();
            let owner = if kind == pt::TDR { pa } else { entry.owner() };
            let result = match kind {
                pt::TDR => self.audit_td(pa),
                _ => self.check_owner(pa, size, &entry),
            };
            result.inspect_err(|_| bad = Some(owner))
        });
        let undisturbed = alone && self.watch.undisturbed(ticket);
        self.watch.go();
        if !undisturbed {
            return None;
        }
        Some(found.map_err(|(what, at)| self.violation(what, NO_LEAF, bad.unwrap_or(0), at)))
    }

    /// Calls `f` for each PAMT entry that gives a page to somebody.
    fn each_owned<'m>(&'m self, mut f: impl FnMut(u64, u8, PamtEntry<'m>) -> Finding) -> Finding {
        for tdmr in self.sys.tdmrs() {
            for size in 0..3u8 {
                self.each_owned_in(tdmr, size, &mut f)?;
            }
        }
        Ok(())
    }

    fn each_owned_in<'m>(
        &'m self,
        tdmr: &Tdmr,
        size: u8,
        f: &mut impl FnMut(u64, u8, PamtEntry<'m>) -> Finding,
    ) -> Finding {
        const ENTRIES: u64 = PAGE_SIZE / 16;
        let (base, end) = tdmr.initialised();
        let step = ENTRIES << shift(size);
        let mut from = base;
        while from < end {
            let at = tdmr.entry_address(from, size);
            let page = Page::at(&self.p, at).ok_or((Wrong::NoMemory, at))?;
            for i in 0..ENTRIES {
                let pa = from.wrapping_add(i << shift(size));
                let entry = PamtEntry::new(page, (i as usize) << 1);
                if pa < end && !matches!(entry.kind(), pt::NDA | pt::RSVD) {
                    f(pa, size, entry)?;
                }
            }
            from = from.wrapping_add(step);
        }
        Ok(())
    }

    /// A page that is no TDR: its owner is one, and it is owned at this size only.
    fn check_owner(&self, pa: u64, size: u8, entry: &PamtEntry<'_>) -> Finding {
        let owner = self.pamt_entry(entry.owner(), 0);
        if owner.map(|o| o.kind()) != Some(pt::TDR) {
            return Err((Wrong::Orphan, pa));
        }
        for larger in size.wrapping_add(1)..3 {
            let above = self.pamt_entry(pa, larger);
            if above.is_some_and(|e| e.kind() != pt::NDA) {
                return Err((Wrong::OwnedTwice, pa));
            }
        }
        Ok(())
    }

    /// Everything of the TD with this TDR.
    #[inline(never)]
    pub(crate) fn audit_td(&self, tdr: u64) -> Finding {
        let mut owned = Owned::default();
        self.each_owned(|pa, size, entry| {
            let kind = entry.kind();
            if kind == pt::TDR || entry.owner() != tdr {
                return Ok(());
            }
            match kind {
                pt::REG | pt::EPT => owned.mapped.add(pa, size),
                _ => owned.control.add(pa, size),
            }
            self.check_owner(pa, size, &entry)
        })?;
        let page = Page::at(&self.p, tdr).ok_or((Wrong::NoMemory, tdr))?;
        let children = page.get(tdr_word::CHLDCNT);
        if children != owned.mapped.pages.wrapping_add(owned.control.pages) {
            return Err((Wrong::Children, children));
        }
        let Some(root) = self.live_root(tdr) else {
            return Ok(());
        };
        let mut reachable = Sums::default();
        self.audit_table(tdr, root.pa, root.level, &mut reachable)?;
        if reachable != owned.mapped {
            return Err((Wrong::Reachable, reachable.pages));
        }
        Ok(())
    }

    /// A table and all below it.
    fn audit_table(&self, tdr: u64, pa: u64, level: u8, sums: &mut Sums) -> Finding {
        let table = Page::at(&self.p, pa).ok_or((Wrong::NoMemory, pa))?;
        for i in 0..WORDS {
            if let Some(child) = self.check_entry(tdr, table.get(i), level, sums)? {
                self.audit_table(tdr, child, level.saturating_sub(1), sums)?;
            }
        }
        Ok(())
    }
}
