// SPDX-License-Identifier: GPL-2.0

//! TDG.MR.{REPORT, RTMR.EXTEND}: the measurements of a TD, as the TD can show them. The MAC is
//! zero: no key exists that could vouch for an emulated TD.

#![forbid(unsafe_code)]

use super::entered::Entered;
use super::lock::{Mode, ShareX};
use super::machine::Machine;
use super::mem::Page;
use super::numbers::{op, st, Res};
use super::observer::Observer;
use super::platform::Platform;
use super::sha384;
use super::td::tdcs_word;
use super::tree::HPA;

/// Word of REPORTDATA in the report.
const REPORT_DATA: usize = 16;
/// Word of TDINFO.
const TDINFO: usize = 64;
/// Run-time measurement registers, and words of each.
const RTMRS: usize = 4;
const RTMR_WORDS: usize = 6;

impl Entered<'_> {
    /// RCX: GPA of the report (1024 bytes), RDX: GPA of 64 bytes that it shall
    /// contain, R8: 0. Returns the status.
    pub(crate) fn mr_report<P: Platform, O: Observer>(&mut self, m: &Machine<P, O>) -> Res<u64> {
        let (to, data, kind) = (self.regs.gpr[1], self.regs.gpr[2], self.regs.gpr[8]);
        if kind != 0 {
            return Err(st::OPERAND_INVALID | op::R8);
        }
        let (page, first) = self.guest_words(m, to, 1023, op::RCX)?;
        let (from, from_first) = self.guest_words(m, data, 63, op::RDX)?;
        let mut report_data = [0; 8];
        from.read(from_first, &mut report_data);

        let set = |i: usize, v: u64| page.set(first.wrapping_add(i), v);
        for i in 0..128 {
            set(i, 0);
        }
        set(0, 0x81); // TEE type: TDX
        for (i, v) in report_data.into_iter().enumerate() {
            set(REPORT_DATA.wrapping_add(i), v);
        }
        set(TDINFO, self.tdcs.get(tdcs_word::ATTRIBUTES));
        set(TDINFO + 1, self.tdcs.get(tdcs_word::XFAM));
        for i in 0..6usize {
            set(
                i.wrapping_add(TDINFO + 2),
                self.tdcs.get(i.wrapping_add(tdcs_word::MRTD)),
            );
        }
        for i in 0..18usize {
            set(
                i.wrapping_add(TDINFO + 8),
                self.tdcs.get(i.wrapping_add(tdcs_word::OWNER)),
            );
        }
        for i in 0..RTMR_WORDS * RTMRS {
            set(
                i.wrapping_add(TDINFO + 26),
                self.tdcs.get(i.wrapping_add(tdcs_word::RTMR)),
            );
        }
        Ok(st::SUCCESS)
    }

    /// TDG.MR.RTMR.EXTEND. RCX: GPA of 48 bytes, aligned to 64; RDX: number of the
    /// register, which becomes the SHA-384 of its old value and those bytes.
    pub(crate) fn rtmr_extend<P: Platform, O: Observer>(&mut self, m: &Machine<P, O>) -> Res<u64> {
        let (data, index) = (self.regs.gpr[1], self.regs.gpr[2] as usize);
        if index >= RTMRS {
            return Err(st::OPERAND_INVALID | op::RDX);
        }
        let (page, from) = self.guest_words(m, data, 63, op::RCX)?;
        let lock = self.tdcs.word(tdcs_word::RTMR_LOCK);
        let _lock =
            ShareX::try_lock(lock, Mode::Exclusive).map_err(|_| st::OPERAND_BUSY | op::RTMR)?;

        let first = tdcs_word::RTMR.wrapping_add(index.wrapping_mul(RTMR_WORDS));
        let mut block = [0; 16];
        for (i, word) in block.iter_mut().take(2 * RTMR_WORDS).enumerate() {
            let bytes = if i < RTMR_WORDS {
                self.tdcs.get(first.wrapping_add(i))
            } else {
                page.get(from.wrapping_add(i.wrapping_sub(RTMR_WORDS)))
            };
            *word = bytes.swap_bytes();
        }
        for (i, v) in sha384::of_12_words(block).into_iter().enumerate() {
            self.tdcs.set(first.wrapping_add(i), v.swap_bytes());
        }
        Ok(st::SUCCESS)
    }

    /// The page and the first word of an aligned private buffer that is mapped.
    fn guest_words<'m, P: Platform, O: Observer>(
        &self,
        m: &'m Machine<P, O>,
        gpa: u64,
        mask: u64,
        operand: u64,
    ) -> Res<(Page<'m>, usize)> {
        let bad = st::OPERAND_INVALID | operand;
        if gpa & mask != 0 || !self.tdcs.is_private(gpa) {
            return Err(bad);
        }
        let walk = self
            .tdcs
            .root()
            .walk_leaf(&m.p, gpa)
            .ok_or_else(|| m.fatal())?;
        if !walk.hit {
            return Err(bad);
        }
        let offset = gpa & super::tree::offset_mask(walk.entry.level);
        let page = Page::at(&m.p, (walk.raw & HPA).wrapping_add(offset)).ok_or(bad)?;
        Ok((page, (gpa & 0xFFF) as usize / 8))
    }
}
