// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.PAGE.{ADD, AUG, REMOVE, RELOCATE}.

#![forbid(unsafe_code)]

use super::lock::{Mode, TreeLock};
use super::machine::Machine;
use super::measure::Block;
use super::mem::Page;
use super::numbers::{leaf, op, op_state, st, Res};
use super::observer::Observer;
use super::pamt::pt;
use super::platform::{Platform, Regs};
use super::td::{state_error, GpaLevel, Td};
use super::tree::{self, details, mapped_leaf, pending_leaf, EntryRef, State, FREE, HPA};

/// 4K pages of a mapping at `level`.
pub(crate) const fn pages(level: u8) -> u64 {
    1 << (9 * (level as u32 & 3))
}

/// An operand that the leaf has checked, with the S-EPT locked.
pub(crate) struct Target<'m> {
    pub(crate) at: GpaLevel,
    pub(crate) entry: EntryRef<'m>,
    pub(crate) tree: TreeLock<'m>,
}

impl<P: Platform, O: Observer> Machine<P, O> {
    /// GPA operand, S-EPT tree lock and walk to the entry.
    pub(crate) fn target<'m>(
        &'m self,
        td: &Td<'m>,
        rcx: u64,
        levels: core::ops::RangeInclusive<u8>,
        mode: Mode,
        r: &mut Regs,
    ) -> Res<Target<'m>> {
        let at = GpaLevel::parse(rcx, levels)?.private(&td.tdcs)?;
        let tree = td.tdcs.lock_tree(mode)?;
        let entry = self.walk_to(td, at, r)?;
        Ok(Target { at, entry, tree })
    }

    /// TDH.MEM.PAGE.ADD. RCX: GPA, RDX: TDR, R8: page, R9: source.
    ///
    /// The TDR is exclusive, so nobody else changes the tree.
    #[inline(never)]
    pub(crate) fn mem_page_add(&self, r: &mut Regs) -> Res<()> {
        let (rcx, rdx) = take_operands(r);
        let td = self.begin_build(rdx, op::RDX)?;
        let at = GpaLevel::parse(rcx, 0..=0)?.private(&td.tdcs)?;
        let entry = self.walk_to(&td, at, r)?;
        if State::of(entry.load()) != Some(State::Free) {
            details(r, entry.load(), entry.level);
            return Err(st::EPT_ENTRY_STATE_INCORRECT | op::RCX);
        }
        let source = self.shared_page(r.r9, 0xFFF, op::R9)?;
        let page = self.lock_explicit(r.r8, 0, pt::NDA, Mode::Exclusive, op::R8)?;
        self.check_context(&td.tdcs)?;
        let target = Page::at(&self.p, r.r8).ok_or(st::OPERAND_ADDR_RANGE_ERROR | op::R8)?;

        self.before_commit(leaf::MEM_PAGE_ADD, td.tdr.pa);
        target.copy_from(&source);
        page.assign_new(pt::REG, td.tdr.pa);
        self.owner_changed(r.r8, 1, true);
        entry.store(mapped_leaf(r.r8));
        td.tdr.add_children(1);
        td.tdcs
            .measure(&Block::tagged(*b"MEM.PAGE.ADD\0\0\0\0", at.gpa));
        Ok(())
    }

    /// TDH.MEM.PAGE.AUG. RCX: GPA and level, RDX: TDR, R8: page.
    #[inline(never)]
    pub(crate) fn mem_page_aug(&self, r: &mut Regs) -> Res<()> {
        let (rcx, rdx) = take_operands(r);
        let td = self.begin(rdx, op::RDX, op_state::AUG)?;
        let t = self.target(&td, rcx, 0..=1, td.tdcs.rules.tree.page_aug, r)?;
        let (entry, state) = self.lock_entry(t.entry, r)?;
        if !matches!(state, State::Free | State::Removed) {
            return Err(state_error(st::EPT_ENTRY_STATE_INCORRECT, &entry, r));
        }
        let page = self.lock_explicit(r.r8, t.at.level, pt::NDA, Mode::Exclusive, op::R8)?;
        if t.at.level == 1 && !self.small_pages_free(r.r8) {
            return Err(st::PAGE_METADATA_INCORRECT | op::R8);
        }

        self.before_commit(leaf::MEM_PAGE_AUG, td.tdr.pa);
        page.assign_new(pt::REG, td.tdr.pa);
        self.owner_changed(r.r8, pages(t.at.level), true);
        td.tdr.add_children(pages(t.at.level));
        entry.replace(pending_leaf(r.r8));
        Ok(())
    }

    /// TDH.MEM.PAGE.REMOVE. RCX: GPA and level, RDX: TDR; out RCX: page.
    #[inline(never)]
    pub(crate) fn mem_page_remove(&self, r: &mut Regs) -> Res<()> {
        let (rcx, rdx) = take_operands(r);
        let td = self.begin(rdx, op::RDX, op_state::REMOVE)?;
        let t = self.target(&td, rcx, 0..=2, td.tdcs.rules.tree.page_remove, r)?;
        let (entry, state) = self.lock_entry(t.entry, r)?;
        if !state.may_remove() {
            return Err(state_error(st::EPT_ENTRY_STATE_INCORRECT, &entry, r));
        }
        let hpa = leaf_page(entry.raw(), t.at.level);
        let page = self.pamt_implicit(hpa, t.at.level, Mode::Exclusive, op::RCX)?;
        // The module drops the accept counter from its copy before it looks at the tracking.
        let seen = tree::without_counter(entry.raw(), t.at.level, state);
        self.check_tracked(&td, &entry, (state, seen), &page.entry, r)?;

        self.before_commit(leaf::MEM_PAGE_REMOVE, td.tdr.pa);
        entry.replace(FREE);
        td.tdr.sub_children(pages(t.at.level));
        let hint = page.release();
        self.owner_changed(hpa, pages(t.at.level), false);
        r.rcx = hpa | hint;
        Ok(())
    }

    /// TDH.MEM.PAGE.RELOCATE. RCX: GPA, RDX: TDR, R8: new page; out RCX: old page.
    #[inline(never)]
    pub(crate) fn mem_page_relocate(&self, r: &mut Regs) -> Res<()> {
        let (rcx, rdx) = take_operands(r);
        let td = self.begin(rdx, op::RDX, op_state::CHANGE)?;
        let t = self.target(&td, rcx, 0..=0, td.tdcs.rules.tree.page_relocate, r)?;
        let (entry, state) = self.lock_entry(t.entry, r)?;
        if !state.is_leaf() {
            return Err(state_error(st::EPT_ENTRY_STATE_INCORRECT, &entry, r));
        }
        let old = entry.raw() & HPA;
        if r.r8 == old {
            return Err(st::OPERAND_INVALID | op::R8);
        }
        let old_page = self.pamt_implicit(old, 0, Mode::Exclusive, op::RCX)?;
        self.check_tracked(&td, &entry, (state, entry.raw()), &old_page.entry, r)?;
        let page = self.lock_explicit(r.r8, 0, pt::NDA, Mode::Exclusive, op::R8)?;
        let to = Page::at(&self.p, r.r8).ok_or(st::OPERAND_ADDR_RANGE_ERROR | op::R8)?;
        let from = Page::at(&self.p, old).ok_or_else(|| self.fatal())?;

        self.before_commit(leaf::MEM_PAGE_RELOCATE, td.tdr.pa);
        if !state.is_any_pending() {
            to.copy_from(&from);
        }
        page.assign_new(pt::REG, td.tdr.pa);
        let hint = old_page.release();
        self.owner_changed(r.r8, 1, true);
        self.owner_changed(old, 1, false);
        entry.replace(tree::unblocked(entry.raw() & !HPA | r.r8, state));
        r.rcx = old | hint;
        Ok(())
    }
}

/// Page of a leaf at `level`, without an accept counter in its address bits.
pub(crate) fn leaf_page(raw: u64, level: u8) -> u64 {
    raw & HPA & !super::tree::offset_mask(level)
}

/// RCX and RDX as passed; the leaf starts by zeroing them.
pub(crate) fn take_operands(r: &mut Regs) -> (u64, u64) {
    let v = (r.rcx, r.rdx);
    r.rcx = 0;
    r.rdx = 0;
    v
}
