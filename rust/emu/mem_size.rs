// SPDX-License-Identifier: GPL-2.0
//! TDH.MEM.PAGE.{PROMOTE, DEMOTE}: between a table of 512 mappings and one large one.

use super::abi::{op, op_state, st, Res};
use super::lock::{Busy, Mode};
use super::mem::{Page, WORDS};
use super::mem_page::{leaf_page, take_operands};
use super::mem_sept::{check_version, no_l2_pages, tdr_and_flag};
use super::pamt::{pt, PamtEntry};
use super::platform::{Platform, Regs};
use super::sys::Machine;
use super::td::state_error;
use super::tree::{shift, table, unblocked, EntryRef, State, HPA};

/// Host locks on the first `count` entries of a table.
struct ChildLocks<'m> {
    page: Page<'m>,
    level: u8,
    count: usize,
}

impl<'m> ChildLocks<'m> {
    fn entry(&self, i: usize) -> EntryRef<'m> {
        EntryRef::new(self.page, i, self.level)
    }
    /// Locks the next entry and returns its value.
    fn lock_next(&mut self) -> Result<u64, Busy> {
        let lock = self.entry(self.count).lock_host()?;
        let raw = lock.raw();
        lock.forget();
        self.count = self.count.wrapping_add(1);
        Ok(raw)
    }
}

impl Drop for ChildLocks<'_> {
    fn drop(&mut self) {
        for i in 0..self.count {
            self.entry(i).unlock();
        }
    }
}

impl<P: Platform> Machine<P> {
    /// TDH.MEM.PAGE.PROMOTE. RCX: GPA and level, RDX: TDR; out RCX: the freed S-EPT
    /// page.
    #[inline(never)]
    pub(crate) fn mem_page_promote(&self, version: u8, r: &mut Regs) -> Res<()> {
        let (rcx, rdx) = take_operands(r);
        no_l2_pages(version, r);
        check_version(version)?;
        let td = self.begin(rdx, op::RDX, op_state::CHANGE)?;
        let t = self.target(&td, rcx, 1..=2, Mode::Shared, r)?;
        let (entry, state) = self.lock_entry(t.entry, r)?;
        if !state.is_table() {
            return Err(state_error(st::EPT_ENTRY_STATE_INCORRECT, &entry, r));
        }
        let sept_pa = entry.raw() & HPA;
        let sept = self.pamt_implicit(sept_pa, 0, Mode::Exclusive, op::RCX)?;
        self.check_tracked(&td, &entry, state, &sept.entry, r)?;
        let page = Page::at(&self.p, sept_pa).ok_or_else(|| self.fatal())?;
        let mut locks = ChildLocks {
            page,
            level: t.at.level.saturating_sub(1),
            count: 0,
        };
        let merged = match mergeable(&mut locks, t.at.level) {
            Ok(Some(v)) => v,
            Ok(None) => return Err(state_error(st::EPT_INVALID_PROMOTE_CONDITIONS, &entry, r)),
            Err(Busy) => return Err(state_error(st::OPERAND_BUSY, &entry, r)),
        };
        if self.p.interrupt_pending() {
            (r.rcx, r.rdx) = (rcx, rdx);
            return Err(st::INTERRUPTED_RESTARTABLE);
        }
        self.pamt_promote(merged & HPA, t.at.level)?;

        entry.set(merged);
        // The table is gone: its entries stay as they are.
        locks.count = 0;
        sept.entry.release();
        self.owner_changed(sept_pa, 1, false);
        td.tdr.sub_children(1);
        r.rcx = sept_pa;
        Ok(())
    }

    /// The PAMT entry of the large page takes over what its 512 parts agree on.
    fn pamt_promote(&self, pa: u64, size: u8) -> Res<()> {
        let parent = self.pamt_entry(pa, size).ok_or_else(|| self.fatal())?;
        let _lock = parent
            .lock(Mode::Exclusive)
            .map_err(|_| st::OPERAND_BUSY | op::RCX)?;
        let first = self.pamt_part(pa, size, 0)?;
        let (kind, owner) = (first.kind(), first.owner());
        let mut agree = parent.kind() == pt::NDA;
        for i in 0..WORDS as u64 {
            let part = self.pamt_part(pa, size, i)?;
            agree &= part.kind() == kind && part.owner() == owner;
        }
        if !agree {
            return Err(self.fatal());
        }
        parent.assign(kind, owner);
        for i in 0..WORDS as u64 {
            self.pamt_part(pa, size, i)?.release();
        }
        Ok(())
    }

    /// PAMT entry of the `i`th part of a page of `size` (1 or 2).
    fn pamt_part(&self, pa: u64, size: u8, i: u64) -> Res<PamtEntry<'_>> {
        let part = size.saturating_sub(1);
        self.pamt_entry(pa | (i << shift(part)), part)
            .ok_or_else(|| self.fatal())
    }

    /// TDH.MEM.PAGE.DEMOTE. RCX: GPA and level, RDX: TDR and L2 flag, R8: page for the
    /// table.
    #[inline(never)]
    pub(crate) fn mem_page_demote(&self, r: &mut Regs) -> Res<()> {
        let (rcx, rdx) = take_operands(r);
        let (tdr, _) = tdr_and_flag(rdx)?;
        let td = self.begin(tdr, op::RDX, op_state::CHANGE)?;
        let t = self.target(&td, rcx, 1..=2, Mode::Shared, r)?;
        let (entry, state) = self.lock_entry(t.entry, r)?;
        if !state.may_demote() {
            return Err(state_error(st::EPT_ENTRY_STATE_INCORRECT, &entry, r));
        }
        let level = t.at.level;
        let large_pa = leaf_page(entry.raw(), level);
        let large = self
            .pamt_entry(large_pa, level)
            .ok_or_else(|| self.fatal())?;
        self.check_tracked(&td, &entry, state, &large, r)?;
        let sept = self.lock_explicit(r.r8, 0, pt::NDA, Mode::Exclusive, op::R8)?;
        let page = Page::at(&self.p, r.r8).ok_or(st::OPERAND_ADDR_RANGE_ERROR | op::R8)?;
        let small = unblocked(entry.raw() & !HPA, state);
        for i in 0..WORDS {
            page.set(
                i,
                small | large_pa | ((i as u64) << shift(level.saturating_sub(1))),
            );
        }
        if self.p.interrupt_pending() {
            (r.rcx, r.rdx) = (rcx, rdx);
            return Err(st::INTERRUPTED_RESTARTABLE);
        }
        self.pamt_demote(large_pa, level)?;

        // Unlike other new pages this one keeps its old block epoch.
        sept.entry.assign(pt::EPT, td.tdr.pa);
        self.owner_changed(r.r8, 1, true);
        td.tdr.add_children(1);
        entry.set(table(r.r8));
        Ok(())
    }

    /// The 512 parts of a large page take over its type and owner.
    fn pamt_demote(&self, pa: u64, size: u8) -> Res<()> {
        let parent = self.pamt_implicit(pa, size, Mode::Exclusive, op::RCX)?;
        let (kind, owner) = (parent.entry.kind(), parent.entry.owner());
        for i in 0..WORDS as u64 {
            self.pamt_part(pa, size, i)?.assign_new(kind, owner);
        }
        parent.entry.release();
        Ok(())
    }
}

/// Locks the children and compares them: the merged entry, or `None` if they do not
/// make one page.
fn mergeable(locks: &mut ChildLocks<'_>, level: u8) -> Result<Option<u64>, Busy> {
    let step = 1u64 << shift(level.saturating_sub(1));
    let first = locks.lock_next()?;
    let aligned = first & HPA & super::tree::offset_mask(level) == 0;
    if !aligned || !matches!(State::of(first), Some(State::Mapped | State::Pending)) {
        return Ok(None);
    }
    for i in 1..WORDS as u64 {
        if locks.lock_next()? != first.wrapping_add(i.wrapping_mul(step)) {
            return Ok(None);
        }
    }
    Ok(Some(first))
}
