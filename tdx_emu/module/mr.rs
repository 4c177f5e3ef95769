// SPDX-License-Identifier: GPL-2.0

//! TDH.MR.{EXTEND, FINALIZE}.

#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::machine::Machine;
use super::measure::Block;
use super::mem::Page;
use super::mem_page::take_operands;
use super::numbers::{leaf, op, op_state, st, Res};
use super::observer::Observer;
use super::platform::{Platform, Regs};
use super::td::tdcs_word;
use super::tree::{details, State, HPA};

impl<P: Platform, O: Observer> Machine<P, O> {
    /// TDH.MR.EXTEND. RCX: GPA of 256 bytes, RDX: TDR.
    #[inline(never)]
    pub(crate) fn mr_extend(&self, r: &mut Regs) -> Res<()> {
        let (gpa, rdx) = take_operands(r);
        let td = self.begin_build(rdx, op::RDX)?;
        if gpa & 255 != 0 || !td.tdcs.is_private(gpa) {
            return Err(st::OPERAND_INVALID | op::RCX);
        }
        let w = td
            .tdcs
            .root()
            .walk_leaf(&self.p, gpa)
            .ok_or_else(|| self.fatal())?;
        if !w.hit {
            details(r, w.raw, w.entry.level);
            return Err(st::EPT_ENTRY_NOT_PRESENT | op::RCX);
        }
        if State::of(w.raw) != Some(State::Mapped) {
            return Err(st::EPT_ENTRY_NOT_PRESENT);
        }
        self.check_context(&td.tdcs)?;
        let offset = gpa & super::tree::offset_mask(w.entry.level);
        let pa = (w.raw & HPA).wrapping_add(offset);
        let page = Page::at(&self.p, pa).ok_or_else(|| self.fatal())?;
        let first = (pa & 0xFFF) as usize / 8;

        self.before_commit(leaf::MR_EXTEND, td.tdr.pa);
        td.tdcs
            .measure(&Block::tagged(*b"MR.EXTEND\0\0\0\0\0\0\0", gpa));
        td.tdcs.measure(&Block::content(&page, first));
        td.tdcs
            .measure(&Block::content(&page, first.wrapping_add(16)));
        Ok(())
    }

    /// TDH.MR.FINALIZE. RCX: TDR.
    #[inline(never)]
    pub(crate) fn mr_finalize(&self, r: &Regs) -> Res<()> {
        let td = self.begin_build(r.rcx, op::RCX)?;
        if td.tdcs.word(tdcs_word::NUM_VCPUS).load(Ordering::Relaxed) == 0 {
            return Err(st::NO_VCPUS);
        }
        self.check_context(&td.tdcs)?;
        self.before_commit(leaf::MR_FINALIZE, td.tdr.pa);
        td.tdcs.finish_measurement();
        self.end_context(&td.tdcs);
        td.tdcs.set_op_state(op_state::RUNNABLE);
        Ok(())
    }
}
