// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.SEPT.{ADD, REMOVE, RD} and TDH.MEM.RANGE.{BLOCK, UNBLOCK}.

#![forbid(unsafe_code)]

use super::lock::Mode;
use super::machine::Machine;
use super::mem::{Page, WORDS};
use super::mem_page::{leaf_page, take_operands};
use super::numbers::{leaf, op, op_state, st, Res};
use super::observer::Observer;
use super::pamt::{pt, PamtEntry};
use super::platform::{Platform, Regs};
use super::td::{state_error, Td};
use super::tree::{blocked, details, table, unblocked, State, FREE, HPA};

/// "No page" in R8..R11.
pub(crate) const NONE: u64 = u64::MAX;
/// In R8..R11 of version 1: ignored in, out: the page was not needed.
const NOT_NEEDED: u64 = 1 << 63;

/// TDR operand with a flag in bit 0: (TDR, flag).
pub(crate) fn tdr_and_flag(rdx: u64) -> Res<(u64, bool)> {
    if rdx & 0xFFF0_0000_0000_0FFE != 0 {
        return Err(st::OPERAND_INVALID | op::RDX);
    }
    Ok((rdx & !1, rdx & 1 != 0))
}

/// Leaves with a version 1 refuse any higher one themselves.
pub(crate) fn check_version(version: u8) -> Res<()> {
    if version > 1 {
        return Err(st::OPERAND_INVALID | op::RAX);
    }
    Ok(())
}

impl<P: Platform, O: Observer> Machine<P, O> {
    /// TDH.MEM.SEPT.ADD. RCX: GPA and level, RDX: TDR and allow-existing flag, R8:
    /// page; version 1 also R9..R11: pages of L2 VMs, of which there are none.
    ///
    /// Version 1 returns R8..R11 also with an error: without the bit that says that a page
    /// was not needed, or with it where that is known already.
    #[inline(never)]
    pub(crate) fn mem_sept_add(&self, version: u8, r: &mut Regs) -> Res<()> {
        let (rcx, rdx) = take_operands(r);
        check_version(version)?;
        let given = r.r8;
        if version > 0 {
            for page in [&mut r.r8, &mut r.r9, &mut r.r10, &mut r.r11] {
                if *page != NONE {
                    *page &= !NOT_NEEDED;
                }
            }
        }
        let (tdr, allow_existing) = tdr_and_flag(rdx)?;
        let td = self.begin(tdr, op::RDX, op_state::SEPT_ADD)?;
        let t = self.target(
            &td,
            rcx,
            1..=td.tdcs.root().level,
            td.tdcs.rules.tree.sept_add,
            r,
        )?;
        let (entry, state) = self.lock_entry(t.entry, r)?;
        let wrong_state = |r: &mut Regs| state_error(st::EPT_ENTRY_STATE_INCORRECT, &entry, r);
        if !matches!(state, State::Free | State::NlMapped) {
            return Err(wrong_state(r));
        }
        let pa = given & !NOT_NEEDED;
        let page = match state {
            _ if given == NONE && version == 0 => return Err(st::OPERAND_INVALID | op::R8),
            State::Free if given == NONE => return Err(wrong_state(r)),
            State::Free => Some(self.lock_explicit(pa, 0, pt::NDA, Mode::Exclusive, op::R8)?),
            _ if given != NONE && !allow_existing => return Err(wrong_state(r)),
            _ => None,
        };
        if version > 0 {
            if page.is_none() && given != NONE {
                r.r8 = pa | NOT_NEEDED;
            }
            check_no_l2_pages(r)?;
        }
        let Some(page) = page else { return Ok(()) };
        let child = Page::at(&self.p, pa).ok_or(st::OPERAND_ADDR_RANGE_ERROR | op::R8)?;

        self.before_commit(leaf::MEM_SEPT_ADD, td.tdr.pa);
        child.fill(FREE);
        page.assign_new(pt::EPT, td.tdr.pa);
        self.owner_changed(pa, 1, true);
        td.tdr.add_children(1);
        entry.replace(table(pa));
        if version > 0 {
            r.r8 = NONE;
        }
        Ok(())
    }

    /// TDH.MEM.SEPT.REMOVE. RCX: GPA and level, RDX: TDR; out RCX: page.
    #[inline(never)]
    pub(crate) fn mem_sept_remove(&self, version: u8, r: &mut Regs) -> Res<()> {
        let (rcx, rdx) = take_operands(r);
        no_l2_pages(version, r);
        check_version(version)?;
        let td = self.begin(rdx, op::RDX, op_state::SEPT_ANY)?;
        let t = self.target(
            &td,
            rcx,
            1..=td.tdcs.root().level,
            td.tdcs.rules.tree.sept_remove,
            r,
        )?;
        let (entry, state) = self.lock_entry(t.entry, r)?;
        if !state.is_table() {
            return Err(state_error(st::EPT_ENTRY_STATE_INCORRECT, &entry, r));
        }
        let hpa = entry.raw() & HPA;
        let page = self.pamt_implicit(hpa, 0, Mode::Exclusive, op::RCX)?;
        self.check_tracked(&td, &entry, (state, entry.raw()), &page.entry, r)?;
        let child = Page::at(&self.p, hpa).ok_or_else(|| self.fatal())?;
        // By state: a host's failed attempt to lock a free entry leaves its priority there.
        if (0..WORDS).any(|i| State::of(child.get(i)) != Some(State::Free)) {
            return Err(state_error(st::EPT_PAGE_NOT_FREE, &entry, r));
        }

        self.before_commit(leaf::MEM_SEPT_REMOVE, td.tdr.pa);
        entry.replace(FREE);
        let hint = page.release();
        self.owner_changed(hpa, 1, false);
        td.tdr.sub_children(1);
        r.rcx = hpa | hint;
        Ok(())
    }

    /// TDH.MEM.SEPT.RD. RCX: GPA and level, RDX: TDR, bit 0 asks for L2 attributes,
    /// which only debug TDs have. Out RCX, RDX: the entry.
    #[inline(never)]
    pub(crate) fn mem_sept_rd(&self, r: &mut Regs) -> Res<()> {
        let (rcx, rdx) = take_operands(r);
        let td = self.begin(rdx & !1, op::RDX, op_state::SEPT_ANY)?;
        if rdx & 1 != 0 {
            return Err(st::OPERAND_INVALID | op::RDX);
        }
        let t = self.target(
            &td,
            rcx,
            0..=td.tdcs.root().level,
            td.tdcs.rules.tree.sept_rd,
            r,
        )?;
        let (entry, _) = self.lock_entry(t.entry, r)?;
        self.before_commit(leaf::MEM_SEPT_RD, td.tdr.pa);
        details(r, entry.raw(), t.at.level);
        Ok(())
    }

    /// The PAMT entry that carries the block epoch of an entry: that of the page it
    /// maps, or of the table.
    fn epoch_holder(&self, raw: u64, level: u8, state: State) -> Res<PamtEntry<'_>> {
        let (pa, size) = match state.is_table() {
            true => (raw & HPA, 0),
            false => (leaf_page(raw, level), level),
        };
        self.pamt_entry(pa, size).ok_or_else(|| self.fatal())
    }

    /// TDH.MEM.RANGE.BLOCK. RCX: GPA and level, RDX: TDR.
    #[inline(never)]
    pub(crate) fn mem_range_block(&self, r: &mut Regs) -> Res<()> {
        let (rcx, rdx) = take_operands(r);
        let td = self.begin(rdx, op::RDX, op_state::CHANGE)?;
        let t = self.target(
            &td,
            rcx,
            0..=td.tdcs.root().level,
            td.tdcs.rules.tree.range_block,
            r,
        )?;
        let (entry, state) = self.lock_entry(t.entry, r)?;
        if state.is_blocked() {
            return Err(state_error(st::GPA_RANGE_ALREADY_BLOCKED, &entry, r));
        }
        if !state.may_block() {
            return Err(state_error(st::EPT_ENTRY_STATE_INCORRECT, &entry, r));
        }
        let holder = self.epoch_holder(entry.raw(), t.at.level, state)?;

        self.before_commit(leaf::MEM_RANGE_BLOCK, td.tdr.pa);
        entry.replace(blocked(entry.raw(), t.at.level, state));
        // After the entry: a vCPU that enters in this epoch may still have walked the old entry,
        // one of the next cannot.
        holder.set_block_epoch(td.tdcs.epoch());
        Ok(())
    }

    /// TDH.MEM.RANGE.UNBLOCK. RCX: GPA and level, RDX: TDR.
    #[inline(never)]
    pub(crate) fn mem_range_unblock(&self, r: &mut Regs) -> Res<()> {
        let (rcx, rdx) = take_operands(r);
        let td: Td<'_> = self.begin(rdx, op::RDX, op_state::CHANGE)?;
        let t = self.target(
            &td,
            rcx,
            0..=td.tdcs.root().level,
            td.tdcs.rules.tree.range_unblock,
            r,
        )?;
        let (entry, state) = self.lock_entry(t.entry, r)?;
        if !state.is_blocked() {
            return Err(state_error(st::EPT_ENTRY_STATE_INCORRECT, &entry, r));
        }
        let holder = self.epoch_holder(entry.raw(), t.at.level, state)?;
        if td.tdcs.tracking_required() && !td.tdcs.is_tracked(holder.block_epoch()) {
            return Err(st::TLB_TRACKING_NOT_DONE | td.tdcs.rules.details.unblock_untracked);
        }

        self.before_commit(leaf::MEM_RANGE_UNBLOCK, td.tdr.pa);
        entry.replace(unblocked(entry.raw(), state));
        Ok(())
    }
}

/// SEPT.ADD of version 1 must not name pages for L2 VMs, which do not exist.
fn check_no_l2_pages(r: &Regs) -> Res<()> {
    let l2 = [(r.r9, 9), (r.r10, 10), (r.r11, 11)];
    match l2.iter().find(|p| p.0 != NONE) {
        Some((_, operand)) => Err(st::OPERAND_INVALID | operand),
        None => Ok(()),
    }
}

/// Version 1 leaves that return pages of L2 VMs start by saying that there are none.
pub(crate) fn no_l2_pages(version: u8, r: &mut Regs) {
    if version > 0 {
        r.r9 = NONE;
        r.r10 = NONE;
        r.r11 = NONE;
    }
}
