// SPDX-License-Identifier: GPL-2.0

//! TDH.PHYMEM.CACHE.WB and TDH.PHYMEM.PAGE.{RECLAIM, WBINVD, RDMD}.

#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::dynamic::HAS_PAIR;
use super::lock::{Mode, ShareX};
use super::machine::{kot, Machine};
use super::mem::Page;
use super::mem_page::pages;
use super::numbers::{lc, leaf, op, st, Res};
use super::observer::Observer;
use super::pamt::{pt, PamtLock, WalkError};
use super::platform::{Platform, Regs};
use super::td::Tdr;

/// Parts in which CACHE.WB writes the caches of a package back: between two of them it looks
/// for interrupts.
const CACHE_PARTS: u64 = 8;

impl<P: Platform, O: Observer> Machine<P, O> {
    /// TDH.PHYMEM.CACHE.WB on each package. RCX: 0 to start, 1 to go on after an interrupt.
    #[inline(never)]
    pub(crate) fn phymem_cache_wb(&self, lp: u32, r: &Regs) -> Res<()> {
        if r.rcx > 1 {
            return Err(st::OPERAND_INVALID | op::RCX);
        }
        let package = self.p.package_of(lp);
        let wb = self.sys.wb.get(package as usize);
        let wb = wb.ok_or(st::OPERAND_BUSY | op::WBCACHE)?;
        let _wb = ShareX::try_lock(&wb.lock, Mode::Exclusive)
            .map_err(|_| st::OPERAND_BUSY | op::WBCACHE)?;
        let _kot = self.lock_kot(Mode::Shared)?;
        let mut part = wb.next.load(Ordering::Relaxed);
        if r.rcx == 0 {
            part = 0;
            wb.next.store(0, Ordering::Relaxed);
            let flushed = self.flushed_hkids();
            if flushed == 0 {
                return Err(st::NO_HKID_READY_TO_WBCACHE);
            }
            wb.hkids.store(flushed, Ordering::Relaxed);
        } else if part == 0 {
            return Err(st::WBCACHE_RESUME_ERROR);
        }
        // There are no caches to write back: only the time passes.
        for done in part.wrapping_add(1)..CACHE_PARTS {
            if self.host_interrupted(leaf::PHYMEM_CACHE_WB, 0) {
                wb.next.store(done, Ordering::Relaxed);
                return Err(st::INTERRUPTED_RESUMABLE);
            }
        }

        self.before_commit(leaf::PHYMEM_CACHE_WB, 0);
        wb.next.store(0, Ordering::Relaxed);
        let hkids = wb.hkids.load(Ordering::Relaxed);
        for (hkid, pending) in self.sys.wb_pending.iter().enumerate() {
            if (hkids >> (hkid & 63)) & 1 != 0 {
                pending.fetch_and(!(1 << (package & 63)), Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// HKIDs whose caches have to be written back before they are free, as a bit mask.
    fn flushed_hkids(&self) -> u64 {
        let kot = self.sys.kot.iter().enumerate();
        kot.filter(|(_, k)| k.load(Ordering::Relaxed) == kot::FLUSHED)
            .fold(0, |mask, (hkid, _)| mask | (1 << (hkid & 63)))
    }

    /// Locks the entry that owns the page, whatever its size, but not below `size`.
    fn lock_any(&self, pa: u64, size: u8, mode: Mode) -> Res<PamtLock<'_>> {
        self.check_pa(pa, size, op::RCX)?;
        self.pamt_walk(pa, size, mode).map_err(|e| match e {
            WalkError::Range => st::OPERAND_ADDR_RANGE_ERROR | op::RCX,
            WalkError::Busy => st::OPERAND_BUSY | op::RCX,
        })
    }

    /// TDH.PHYMEM.PAGE.RECLAIM. RCX: page; out RCX: type, RDX: owner, R8: size.
    #[inline(never)]
    pub(crate) fn phymem_page_reclaim(&self, r: &mut Regs) -> Res<()> {
        let pa = take_page(r);
        let lock = self.lock_any(pa, 0, Mode::Exclusive)?;
        let entry = lock.entry;
        let kind = entry.kind();
        if matches!(kind, pt::NDA | pt::RSVD) {
            return Err(st::PAGE_METADATA_INCORRECT | op::RCX);
        }
        r.rcx = u64::from(kind);
        r.rdx = entry.owner();
        r.r8 = u64::from(lock.size);
        if pa & super::tree::offset_mask(lock.size) != 0 {
            return Err(st::OPERAND_INVALID | op::RCX);
        }
        // Of a TDR its own entry is the lock that is held.
        let owner = match kind {
            pt::TDR => {
                self.check_tdr_unused(pa)?;
                None
            }
            _ => Some(self.lock_owner(&entry, Mode::Shared)?),
        };
        if owner
            .as_ref()
            .is_some_and(|o| o.lifecycle() != lc::TEARDOWN)
        {
            return Err(st::LIFECYCLE_STATE_INCORRECT);
        }

        let tdr = owner.as_ref().map_or(pa, |o| o.pa);
        self.before_commit(leaf::PHYMEM_PAGE_RECLAIM, tdr);
        if let Some(owner) = owner {
            owner.sub_children(pages(lock.size));
        }
        r.r9 = lock.release();
        self.owner_changed(pa, pages(lock.size), false);
        Ok(())
    }

    fn check_tdr_unused(&self, pa: u64) -> Res<()> {
        let page = Page::at(&self.p, pa).ok_or_else(|| self.fatal())?;
        if Tdr::lifecycle_in(&page) != lc::TEARDOWN {
            return Err(st::LIFECYCLE_STATE_INCORRECT);
        }
        if Tdr::children_in(&page).load(Ordering::Relaxed) != 0 {
            return Err(st::TD_ASSOCIATED_PAGES_EXIST);
        }
        Ok(())
    }

    /// TDH.PHYMEM.PAGE.WBINVD. RCX: page with any HKID; it must be owned by nobody.
    #[inline(never)]
    pub(crate) fn phymem_page_wbinvd(&self, r: &Regs) -> Res<()> {
        let pa = self.strip_hkid(r.rcx);
        match self.lock_explicit(pa, 0, pt::NDA, Mode::Shared, op::RCX) {
            // Nobody needs the range in 4K pages, so the page is free, unless it is in a pair.
            Err(status) if status & st::CLASS == st::MISSING_PAMT_PAGE_PAIR => {
                match self.is_pamt_page(pa) {
                    true => Err(st::PAGE_METADATA_INCORRECT | op::RCX),
                    false => Ok(()),
                }
            }
            lock => lock.map(drop),
        }
    }

    /// The operand of RDMD: a page and, if the version has that, the smallest size to report in
    /// bits 2:0. Sizes above 4K are for a dynamic PAMT.
    fn page_and_size(&self, raw: u64) -> Res<(u64, u8)> {
        if !self.rules().rdmd_size {
            return Ok((raw, 0));
        }
        let size = (raw & 7) as u8;
        let largest = if self.is_dynamic() { 2 } else { 0 };
        if raw & 0xFF8 != 0 || raw >> 52 != 0 || size > largest {
            return Err(st::OPERAND_INVALID | op::RCX);
        }
        Ok((raw & !7, size))
    }

    /// TDH.PHYMEM.PAGE.RDMD. RCX: page of any type; out RCX: type, RDX: owner, R8: size, R9: block
    /// epoch of data and S-EPT pages.
    #[inline(never)]
    pub(crate) fn phymem_page_rdmd(&self, r: &mut Regs) -> Res<()> {
        let raw = take_page(r);
        let (pa, size) = self.page_and_size(raw)?;
        let lock = self.lock_any(pa, size, Mode::Shared)?;
        let kind = lock.entry.kind();
        if self.is_dynamic() {
            if size == 0 && self.is_pamt_page(pa) {
                r.rcx = pt::PAMT.into();
                return Ok(());
            }
            if kind == pt::PAMT {
                let [first, second] = lock.entry.pair();
                r.rcx = HAS_PAIR | u64::from(kind);
                (r.r8, r.r10, r.r11) = (lock.size.into(), first, second);
                return Ok(());
            }
        }
        r.rcx = u64::from(kind);
        r.rdx = lock.entry.owner();
        r.r8 = u64::from(lock.size);
        if matches!(kind, pt::REG | pt::EPT) {
            r.r9 = lock.entry.block_epoch();
        }
        Ok(())
    }
}

/// RCX as passed; RCX, RDX and R8..R11 are zeroed.
fn take_page(r: &mut Regs) -> u64 {
    let pa = r.rcx;
    (r.rcx, r.rdx, r.r8, r.r9, r.r10, r.r11) = (0, 0, 0, 0, 0, 0);
    pa
}
