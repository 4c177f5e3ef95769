// SPDX-License-Identifier: GPL-2.0
//! TDH.PHYMEM.PAGE.{RECLAIM, WBINVD, RDMD}.

use core::sync::atomic::Ordering;

use super::abi::{lc, op, st, Res};
use super::lock::Mode;
use super::mem::Page;
use super::mem_page::pages;
use super::pamt::{pt, PamtLock, WalkError};
use super::platform::{Platform, Regs};
use super::sys::Machine;
use super::td::Tdr;

impl<P: Platform> Machine<P> {
    /// Locks the entry that owns the page, whatever its size.
    fn lock_any(&self, pa: u64, mode: Mode) -> Res<PamtLock<'_>> {
        self.check_pa(pa, 0, op::RCX)?;
        self.pamt_walk(pa, 0, mode).map_err(|e| match e {
            WalkError::Range => st::OPERAND_ADDR_RANGE_ERROR | op::RCX,
            WalkError::Busy => st::OPERAND_BUSY | op::RCX,
        })
    }

    /// TDH.PHYMEM.PAGE.RECLAIM. RCX: page; out RCX: type, RDX: owner, R8: size.
    #[inline(never)]
    pub(crate) fn phymem_page_reclaim(&self, r: &mut Regs) -> Res<()> {
        let pa = take_page(r);
        let lock = self.lock_any(pa, Mode::Exclusive)?;
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
        if kind == pt::TDR {
            // Its own entry is the lock that is held.
            self.check_tdr_unused(pa)?;
        } else {
            let owner = self.lock_owner(&entry, Mode::Shared)?;
            if owner.lifecycle() != lc::TEARDOWN {
                return Err(st::LIFECYCLE_STATE_INCORRECT);
            }
            owner.sub_children(pages(lock.size));
        }
        entry.release();
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
        self.lock_explicit(pa, 0, pt::NDA, Mode::Shared, op::RCX)?;
        Ok(())
    }

    /// TDH.PHYMEM.PAGE.RDMD. RCX: page; out RCX: type, RDX: owner, R8: size, R9: block
    /// epoch of data and S-EPT pages.
    #[inline(never)]
    pub(crate) fn phymem_page_rdmd(&self, r: &mut Regs) -> Res<()> {
        let pa = take_page(r);
        let lock = self.lock_any(pa, Mode::Shared)?;
        let kind = lock.entry.kind();
        if kind == pt::RSVD {
            return Err(st::PAGE_METADATA_INCORRECT | op::RCX);
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
