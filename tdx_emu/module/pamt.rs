// SPDX-License-Identifier: GPL-2.0

//! PAMT: who owns each page of the TDMRs, at which size.
//!
//! An entry has two words: word 0 is lock (15:0), page type (20:16) and owner
//! PFN (63:24); word 1 is the epoch of the last RANGE.BLOCK. A page is owned at
//! one size only; of a large owned page the smaller entries are NDA. Where the 4K entries of a
//! dynamic PAMT are, and what says that they are there, is in `dynamic.rs`.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::lock::{Busy, Mode, ShareXHp};
use super::machine::Machine;
use super::mem::{Page, WORDS};
use super::numbers::{st, Res};
use super::observer::Observer;
use super::platform::{Platform, PAGE_SIZE};

/// Page types.
pub(crate) mod pt {
    pub(crate) const NDA: u8 = 0;
    pub(crate) const RSVD: u8 = 1;
    pub(crate) const REG: u8 = 3;
    pub(crate) const TDR: u8 = 4;
    pub(crate) const TDCX: u8 = 5;
    pub(crate) const TDVPR: u8 = 6;
    pub(crate) const EPT: u8 = 8;
    /// Of a 2M range: its 4K entries are in a pair of pages.
    pub(crate) const PAMT: u8 = 15;
}

const LOCK_BITS: u64 = 0xFFFF;
const TYPE_SHIFT: u32 = 16;
const TYPE: u64 = 0x1F;
const OWNER_SHIFT: u32 = 24;

/// One entry.
#[derive(Clone, Copy)]
pub(crate) struct PamtEntry<'m> {
    page: Page<'m>,
    word: usize,
}

impl<'m> PamtEntry<'m> {
    pub(crate) fn new(page: Page<'m>, word: usize) -> Self {
        PamtEntry { page, word }
    }

    pub(crate) fn head(&self) -> u64 {
        self.page.get(self.word)
    }

    pub(crate) fn kind(&self) -> u8 {
        ((self.head() >> TYPE_SHIFT) & TYPE) as u8
    }

    /// Physical address of the owner's TDR.
    pub(crate) fn owner(&self) -> u64 {
        self.head() >> OWNER_SHIFT << 12
    }

    pub(crate) fn block_epoch(&self) -> u64 {
        self.page.get(self.word.wrapping_add(1))
    }

    pub(crate) fn set_block_epoch(&self, e: u64) {
        self.page.set(self.word.wrapping_add(1), e);
    }

    /// The word with the block epoch, or with the number of pages in use.
    pub(crate) fn second_word(&self) -> &'m AtomicU64 {
        self.page.word(self.word.wrapping_add(1))
    }

    /// Replaces type and owner.
    pub(crate) fn assign(&self, kind: u8, owner_pa: u64) {
        self.set_type(kind, owner_pa >> 12 << OWNER_SHIFT);
    }

    /// Replaces the type and what is above it; lock bits may change meanwhile and are kept.
    pub(crate) fn set_type(&self, kind: u8, above: u64) {
        let v = (u64::from(kind) << TYPE_SHIFT) | above;
        let w = self.page.word(self.word);
        let mut old = w.load(Ordering::Relaxed);
        while let Err(seen) = w.compare_exchange_weak(
            old,
            old & LOCK_BITS | v,
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            old = seen;
        }
    }

    /// A new owner, never blocked yet.
    pub(crate) fn assign_new(&self, kind: u8, owner_pa: u64) {
        self.set_block_epoch(0);
        self.assign(kind, owner_pa);
    }

    /// Gives the page back. Owner and epoch stay behind, as in the real module.
    pub(crate) fn release(&self) {
        self.assign(pt::NDA, self.owner());
    }

    /// The range has no pair any more. What named it stays behind.
    pub(crate) fn forget_pair(&self) {
        let above = self.head() & !(LOCK_BITS | TYPE << TYPE_SHIFT);
        self.set_type(pt::NDA, above);
    }

    /// As TDMR.INIT leaves it.
    pub(crate) fn reset(&self, kind: u8) {
        self.page.set(self.word, u64::from(kind) << TYPE_SHIFT);
        self.set_block_epoch(0);
    }

    pub(crate) fn lock(self, mode: Mode) -> Result<ShareXHp<'m>, Busy> {
        ShareXHp::try_lock(self.page.word(self.word), mode)
    }
}

/// A locked entry with the locks of its parents; fields are released in order.
pub(crate) struct PamtLock<'m> {
    _leaf: ShareXHp<'m>,
    _parents: [Option<ShareXHp<'m>>; 2],
    pub(crate) entry: PamtEntry<'m>,
    /// Size class of the entry: 0 = 4K, 1 = 2M, 2 = 1G.
    pub(crate) size: u8,
    /// The 2M entry that names the pair with this 4K entry, if it is in one.
    pub(crate) node: Option<PamtEntry<'m>>,
}

impl PamtLock<'_> {
    /// Gives the page, which is free, to an owner.
    pub(crate) fn assign(&self, kind: u8, owner_pa: u64) {
        self.count();
        self.entry.assign(kind, owner_pa);
    }

    /// The same with a page that was never blocked yet.
    pub(crate) fn assign_new(&self, kind: u8, owner_pa: u64) {
        self.count();
        self.entry.assign_new(kind, owner_pa);
    }

    /// Gives the page back. Returns what the host is told of its pair.
    pub(crate) fn release(&self) -> u64 {
        self.entry.release();
        self.uncount()
    }
}

/// The entries of the 512 parts of a large page: two whole pages of the PAMT.
pub(crate) struct PamtParts<'m>([Page<'m>; 2]);

impl<'m> PamtParts<'m> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = PamtEntry<'m>> {
        let of = |page| (0..WORDS / 2).map(move |i| PamtEntry::new(page, i << 1));
        let [low, high] = self.0;
        of(low).chain(of(high))
    }

    pub(crate) fn first(&self) -> PamtEntry<'m> {
        PamtEntry::new(self.0[0], 0)
    }
}

/// Why a walk of the PAMT failed.
pub(crate) enum WalkError {
    /// Not in an initialised part of a TDMR.
    Range,
    Busy,
}

impl From<Busy> for WalkError {
    fn from(_: Busy) -> Self {
        WalkError::Busy
    }
}

impl<P: Platform, O: Observer> Machine<P, O> {
    /// The entry of `pa` (no HKID) at `size`, without any lock. There is none of a 4K page
    /// whose range has no pair.
    pub(crate) fn pamt_entry(&self, pa: u64, size: u8) -> Option<PamtEntry<'_>> {
        self.entry_and_node(pa, size).map(|(entry, _)| entry)
    }

    /// Its physical address.
    pub(crate) fn pamt_entry_address(&self, pa: u64, size: u8) -> Option<u64> {
        if size > 0 || !self.is_dynamic() {
            return Some(self.sys.tdmr_of(pa)?.entry_address(pa, size));
        }
        let node = self.pamt_entry(pa, 1)?;
        self.place_in_pair(&node, pa)
    }

    /// The same with the 2M entry that names the pair that it is in.
    fn entry_and_node(&self, pa: u64, size: u8) -> Option<(PamtEntry<'_>, Option<PamtEntry<'_>>)> {
        if size == 0 && self.is_dynamic() {
            let node = self.pamt_entry(pa, 1)?;
            return Some((self.entry_in_pair(&node, pa)?, Some(node)));
        }
        let at = self.sys.tdmr_of(pa)?.entry_address(pa, size);
        let entry = PamtEntry::new(Page::at(&self.p, at)?, (at as usize & 0xFFF) / 8);
        Some((entry, None))
    }

    /// The entries of the parts of the page at `pa` of `size` (1 or 2), without any lock.
    pub(crate) fn pamt_parts(&self, pa: u64, size: u8) -> Option<PamtParts<'_>> {
        if size == 1 && self.is_dynamic() {
            let node = self.pamt_entry(pa, 1).filter(|e| e.kind() == pt::PAMT)?;
            let [low, high] = node.pair();
            return Some(PamtParts([
                Page::at(&self.p, low)?,
                Page::at(&self.p, high)?,
            ]));
        }
        let part = size.saturating_sub(1);
        let at = self.sys.tdmr_of(pa)?.entry_address(pa, part);
        let low = Page::at(&self.p, at)?;
        Some(PamtParts([
            low,
            Page::at(&self.p, at.wrapping_add(PAGE_SIZE))?,
        ]))
    }

    /// Locks the entry that owns `pa`, at `target` size or above, and its parents
    /// shared.
    pub(crate) fn pamt_walk(
        &self,
        pa: u64,
        target: u8,
        mode: Mode,
    ) -> Result<PamtLock<'_>, WalkError> {
        let mut parents = [None, None];
        for (slot, size) in [(0, 2), (1, 1)] {
            let entry = self.pamt_entry(pa, size).ok_or(WalkError::Range)?;
            let mut lock = entry.lock(Mode::Shared)?;
            // Without a pair the range is used as a whole, if at all.
            let whole = size == 1 && self.is_dynamic() && entry.kind() != pt::PAMT;
            if size == target || entry.kind() == pt::REG || whole {
                if mode == Mode::Exclusive {
                    lock.promote()?;
                }
                return Ok(PamtLock {
                    _leaf: lock,
                    _parents: parents,
                    entry,
                    size,
                    node: None,
                });
            }
            if let Some(p) = parents.get_mut(slot) {
                *p = Some(lock);
            }
        }
        let (entry, node) = self.entry_and_node(pa, 0).ok_or(WalkError::Range)?;
        let lock = entry.lock(mode)?;
        Ok(PamtLock {
            _leaf: lock,
            _parents: parents,
            entry,
            size: 0,
            node,
        })
    }

    /// The entry of a page that the module itself knows to be owned at `size`;
    /// its parents are not locked.
    pub(crate) fn pamt_implicit(
        &self,
        pa: u64,
        size: u8,
        mode: Mode,
        op: u64,
    ) -> Res<PamtLock<'_>> {
        let found = self.entry_and_node(pa, size);
        let (entry, node) = found.ok_or_else(|| self.fatal())?;
        if matches!(entry.kind(), pt::NDA | pt::RSVD) {
            return Err(self.fatal());
        }
        let lock = entry.lock(mode).map_err(|Busy| st::OPERAND_BUSY | op)?;
        Ok(PamtLock {
            _leaf: lock,
            _parents: [None, None],
            entry,
            size,
            node,
        })
    }

    /// Checks a physical address that the host passed: aligned to `size`, no HKID,
    /// in range.
    pub(crate) fn check_pa(&self, pa: u64, size: u8, op: u64) -> Res<()> {
        let c = self.p.config();
        let hkid = ((1u64 << (c.hkid_bits & 7)) - 1) << (c.hkid_start_bit & 63);
        if pa & super::tree::offset_mask(size) != 0 || pa & hkid != 0 || pa >> 52 != 0 {
            return Err(st::OPERAND_INVALID | op);
        }
        Ok(())
    }

    /// Memory that the host passes for reading: aligned (`mask`: bits that must be 0), with
    /// a shared HKID, outside SEAMRR. That it is no TD's is not checked.
    pub(crate) fn shared_page(&self, pa: u64, mask: u64, op: u64) -> Res<Page<'_>> {
        let c = self.p.config();
        let plain = self.strip_hkid(pa);
        let hkid = (pa ^ plain) >> (c.hkid_start_bit & 63);
        let in_seamrr = plain.wrapping_sub(c.seamrr_base) < c.seamrr_size;
        let private = hkid >= u64::from(c.private_hkid_min);
        if pa & mask != 0 || plain >> 52 != 0 || in_seamrr || private {
            return Err(st::OPERAND_INVALID | op);
        }
        Page::at(&self.p, plain).ok_or(st::OPERAND_INVALID | op)
    }

    /// `pa` without HKID bits.
    pub(crate) fn strip_hkid(&self, pa: u64) -> u64 {
        let c = self.p.config();
        pa & !(((1u64 << (c.hkid_bits & 7)) - 1) << (c.hkid_start_bit & 63))
    }

    /// Locks the PAMT entry of a page that the host names, and checks that it is of
    /// type `kind` at `size`. A free 4K page needs a pair for its range.
    pub(crate) fn lock_explicit(
        &self,
        pa: u64,
        size: u8,
        kind: u8,
        mode: Mode,
        op: u64,
    ) -> Res<PamtLock<'_>> {
        self.check_pa(pa, size, op)?;
        let lock = self.pamt_walk(pa, size, mode).map_err(|e| match e {
            WalkError::Range => st::OPERAND_ADDR_RANGE_ERROR | op,
            WalkError::Busy => st::OPERAND_BUSY | op,
        })?;
        let found = lock.entry.kind();
        if lock.size > size && found == pt::NDA && kind == pt::NDA {
            return Err(st::MISSING_PAMT_PAGE_PAIR | op);
        }
        let in_pair = lock.node.is_some() && self.is_pamt_page(pa);
        if lock.size != size || found != kind || in_pair {
            return Err(st::PAGE_METADATA_INCORRECT | op);
        }
        Ok(lock)
    }

    /// Whether all 4K entries of the 2M range at `pa` are free. They are not locked:
    /// whoever owns one holds the 2M entry shared, which the caller has exclusively.
    pub(crate) fn small_pages_free(&self, pa: u64) -> bool {
        if self.is_dynamic() {
            return self.has_no_pamt_page(pa);
        }
        (0..512u64).all(|i| {
            self.pamt_entry(pa | (i << 12), 0)
                .is_some_and(|e| e.kind() == pt::NDA)
        })
    }
}
