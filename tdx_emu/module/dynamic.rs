// SPDX-License-Identifier: GPL-2.0

//! Dynamic PAMT: the 4K entries of a 2M range are in a pair of pages that the host brings when the
//! range is first used in 4K pages, and takes back.
//!
//! The 2M entry of a range with a pair has type PAMT: word 0 is lock (15:0), type (20:16) and PFN
//! of the first page (63:28), word 1 the number of 4K pages in use (9:0) and PFN of the second
//! page (63:28). Pages of pairs have no owner and no entry: of each 4K page there is a bit where
//! a static PAMT has the 4K entries, which is set for them and for reserved pages.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::lock::Mode;
use super::machine::Machine;
use super::mem::{Page, WORDS};
use super::numbers::{leaf, op, st, Res};
use super::observer::Observer;
use super::pamt::{pt, PamtEntry, PamtLock, WalkError};
use super::platform::{Platform, Regs};
use super::tdmr::PAMT_ENTRY_SIZE;
use super::tree::offset_mask;

/// In an address that the host gets back: nothing of the pair of that range is in use any more.
pub(crate) const PAIR_IS_EMPTY: u64 = 1 << 62;
/// RDMD, type of a 2M entry: the range has a pair.
pub(crate) const HAS_PAIR: u64 = 1 << 63;

const PFN_SHIFT: u32 = 28;
const COUNT: u64 = 0x3FF;
/// Number of 4K entries in the first page.
const IN_FIRST: usize = WORDS / 2;

impl PamtEntry<'_> {
    /// The pages of a pair; for an entry of type PAMT.
    pub(crate) fn pair(&self) -> [u64; 2] {
        [self.head(), self.block_epoch()].map(|word| word >> PFN_SHIFT << 12)
    }

    /// 4K pages of the range that are in use; likewise.
    pub(crate) fn in_use(&self) -> u64 {
        self.block_epoch() & COUNT
    }

    /// From now on the range has a pair.
    pub(crate) fn set_pair(&self, [first, second]: [u64; 2], in_use: u64) {
        self.set_block_epoch((second >> 12 << PFN_SHIFT) | in_use);
        self.set_type(pt::PAMT, first >> 12 << PFN_SHIFT);
    }
}

impl PamtLock<'_> {
    /// A 4K page of the range comes into use.
    pub(crate) fn count(&self) {
        if let Some(node) = &self.node {
            node.second_word().fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One goes out of use. Returns what the host is told of the pair.
    pub(crate) fn uncount(&self) -> u64 {
        let Some(node) = &self.node else { return 0 };
        match node.second_word().fetch_sub(1, Ordering::Relaxed) & COUNT {
            1 => PAIR_IS_EMPTY,
            _ => 0,
        }
    }
}

/// Pages that a leaf was given for a pair, with the operands they came in.
type PairOperands = [(u64, u64); 2];

impl<P: Platform, O: Observer> Machine<P, O> {
    pub(crate) fn is_dynamic(&self) -> bool {
        self.sys.dynamic_pamt.load(Ordering::Relaxed) != 0
    }

    /// The bit of a page: the word and the mask. `None` if it is in no TDMR.
    fn pamt_bit(&self, pa: u64) -> Option<(&AtomicU64, u64)> {
        let (at, bit) = self.sys.tdmr_of(pa)?.bit_address(pa);
        let page = Page::at(&self.p, at)?;
        Some((page.word((at & 0xFFF) as usize / 8), 1 << bit))
    }

    /// Whether a page is in a pair or reserved.
    pub(crate) fn is_pamt_page(&self, pa: u64) -> bool {
        let bit = self.pamt_bit(pa);
        bit.is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Sets the bit of a page. False if it was set.
    fn set_pamt_bit(&self, pa: u64) -> bool {
        let bit = self.pamt_bit(pa);
        bit.is_some_and(|(word, bit)| word.fetch_or(bit, Ordering::Relaxed) & bit == 0)
    }

    /// Clears the bit of a page.
    fn clear_pamt_bit(&self, pa: u64) {
        if let Some((word, bit)) = self.pamt_bit(pa) {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Whether no page of the 2M range at `pa` is in a pair or reserved.
    pub(crate) fn has_no_pamt_page(&self, pa: u64) -> bool {
        (0..512u64).all(|i| !self.is_pamt_page(pa | (i << 12)))
    }

    /// Physical address of the entry of a 4K page in the pair that `node` names.
    pub(crate) fn place_in_pair(&self, node: &PamtEntry<'_>, pa: u64) -> Option<u64> {
        let pages = (node.kind() == pt::PAMT).then(|| node.pair())?;
        let index = (pa >> 12) & (WORDS as u64 - 1);
        let page = pages.get(index as usize / IN_FIRST)?;
        Some(page | (index % IN_FIRST as u64 * PAMT_ENTRY_SIZE))
    }

    /// That entry.
    pub(crate) fn entry_in_pair(&self, node: &PamtEntry<'_>, pa: u64) -> Option<PamtEntry<'_>> {
        let at = self.place_in_pair(node, pa)?;
        let page = Page::at(&self.p, at)?;
        Some(PamtEntry::new(page, (at & 0xFFF) as usize / 8))
    }

    /// Operand checks of the pages for a pair.
    fn check_pair(&self, pages: PairOperands) -> Res<()> {
        for (pa, op) in pages {
            self.check_pa(pa, 0, op)?;
            if self.sys.tdmr_of(pa).is_none() {
                return Err(st::OPERAND_ADDR_RANGE_ERROR | op);
            }
        }
        Ok(())
    }

    /// Takes two free pages for a pair. Those inside of `own`, a 2M range whose entry the caller
    /// has exclusively, are free if they are not in another pair.
    fn claim_pair(&self, pages: PairOperands, own: Option<u64>) -> Res<()> {
        let mut locks = [None, None];
        for ((pa, op), slot) in pages.into_iter().zip(&mut locks) {
            if own == Some(pa & !offset_mask(1)) {
                continue;
            }
            let lock = self.pamt_walk(pa, 0, Mode::Shared).map_err(|e| match e {
                WalkError::Range => st::OPERAND_ADDR_RANGE_ERROR | op,
                WalkError::Busy => st::OPERAND_BUSY | op,
            })?;
            if lock.entry.kind() != pt::NDA {
                return Err(st::PAGE_NOT_FREE | op);
            }
            *slot = Some(lock);
        }
        let [(first, first_op), (second, second_op)] = pages;
        if !self.set_pamt_bit(first) {
            return Err(st::PAGE_NOT_FREE | first_op);
        }
        if !self.set_pamt_bit(second) {
            self.clear_pamt_bit(first);
            return Err(st::PAGE_NOT_FREE | second_op);
        }
        Ok(())
    }

    /// DEMOTE of a 2M page, whose entry the caller has exclusively: takes the pages in R12 and R13
    /// for its pair.
    pub(crate) fn claim_pair_of_demote(&self, r: &Regs) -> Res<[u64; 2]> {
        let pages = [(r.r12, op::R12), (r.r13, op::R13)];
        self.check_pair(pages)?;
        self.claim_pair(pages, None)?;
        Ok([r.r12, r.r13])
    }

    /// Fills a pair with entries of one owner, or of nobody, and tells that the pages are the
    /// module's.
    pub(crate) fn fill_pair(&self, pages: [u64; 2], kind: u8, owner: u64) -> Res<()> {
        for pa in pages {
            let page = Page::at(&self.p, pa).ok_or_else(|| self.fatal())?;
            for i in 0..IN_FIRST {
                let entry = PamtEntry::new(page, i << 1);
                entry.reset(pt::NDA);
                entry.assign(kind, owner);
            }
            self.owner_changed(pa, 1, true);
        }
        Ok(())
    }

    /// The pages of a pair are the host's again.
    pub(crate) fn return_pair(&self, pages: [u64; 2]) {
        for pa in pages {
            self.clear_pamt_bit(pa);
            self.owner_changed(pa, 1, false);
        }
    }

    /// The operand of PAMT.ADD and PAMT.REMOVE: a 2M range with level 1.
    fn pair_range(&self, rcx: u64) -> Res<u64> {
        let range = rcx & !7;
        if rcx & 7 != 1 {
            return Err(st::OPERAND_INVALID | op::RCX);
        }
        self.check_pa(range, 1, op::RCX)?;
        Ok(range)
    }

    /// Locks the 2M entry of a range exclusively, or that of a 1G page that it is in.
    fn lock_range(&self, range: u64) -> Res<PamtLock<'_>> {
        self.pamt_walk(range, 1, Mode::Exclusive)
            .map_err(|e| match e {
                WalkError::Range => st::OPERAND_ADDR_RANGE_ERROR | op::RCX,
                WalkError::Busy => st::OPERAND_BUSY | op::RCX,
            })
    }

    /// TDH.PHYMEM.PAMT.ADD. RCX: 2M range and level, RDX, R8: pages.
    #[inline(never)]
    pub(crate) fn phymem_pamt_add(&self, r: &Regs) -> Res<()> {
        self.check_dynamic()?;
        let range = self.pair_range(r.rcx)?;
        let pages = [(r.rdx, op::RDX), (r.r8, op::R8)];
        self.check_pair(pages)?;
        let lock = self.lock_range(range)?;
        if lock.size != 1 || lock.entry.kind() != pt::NDA {
            return Err(st::HPA_RANGE_NOT_FREE | op::RCX);
        }
        self.claim_pair(pages, Some(range))?;

        self.before_commit(leaf::PHYMEM_PAMT_ADD, 0);
        let pages = [r.rdx, r.r8];
        self.fill_pair(pages, pt::NDA, 0)?;
        lock.entry.set_pair(pages, 0);
        Ok(())
    }

    /// TDH.PHYMEM.PAMT.REMOVE. RCX: 2M range and level; out RDX, R8: pages.
    #[inline(never)]
    pub(crate) fn phymem_pamt_remove(&self, r: &mut Regs) -> Res<()> {
        self.check_dynamic()?;
        let range = self.pair_range(r.rcx)?;
        let lock = self.lock_range(range)?;
        if lock.size != 1 || lock.entry.kind() != pt::PAMT {
            return Err(st::NO_PAMT_PAGE_PAIR | op::RCX);
        }
        let pages = lock.entry.pair();
        for (n, pa) in (0..2).zip(pages) {
            let page = Page::at(&self.p, pa).ok_or_else(|| self.fatal())?;
            let mut entries = (0..IN_FIRST).map(|i| PamtEntry::new(page, i << 1));
            if entries.any(|e| e.kind() != pt::NDA) {
                return Err(st::PAMT_PAGE_NOT_EMPTY | n);
            }
        }

        self.before_commit(leaf::PHYMEM_PAMT_REMOVE, 0);
        lock.entry.forget_pair();
        self.return_pair(pages);
        (r.rdx, r.r8) = (pages[0], pages[1]);
        Ok(())
    }

    /// There are these leaves only where SYS.CONFIG asked for them.
    fn check_dynamic(&self) -> Res<()> {
        match self.is_dynamic() {
            true => Ok(()),
            false => Err(st::OPERAND_INVALID | op::RAX),
        }
    }
}
