// SPDX-License-Identifier: GPL-2.0

//! Measurement: TDH.MR.{EXTEND, FINALIZE}. MRTD is SHA-384 over a stream of 128-byte
//! blocks, whose state lives in the TDCS.

use core::sync::atomic::Ordering;

use super::abi::{leaf, op, op_state, st, Res};
use super::mem::Page;
use super::mem_page::take_operands;
use super::platform::{Platform, Regs};
use super::sha384;
use super::sys::Machine;
use super::td::{tdcs_word, Tdcs};
use super::tree::{details, State, HPA};

/// A block to hash, as big-endian words.
pub(crate) struct Block([u64; 16]);

impl Block {
    /// A name padded to 16 bytes, a GPA, and zeros.
    pub(crate) fn tagged(name: [u8; 16], gpa: u64) -> Block {
        let mut b = [0; 16];
        let name = u128::from_be_bytes(name);
        b[0] = (name >> 64) as u64;
        b[1] = name as u64;
        b[2] = gpa.swap_bytes();
        Block(b)
    }

    /// 128 bytes of memory from word `first` of a page.
    fn content(page: &Page<'_>, first: usize) -> Block {
        let mut b = [0; 16];
        page.read(first, &mut b);
        Block(b.map(u64::swap_bytes))
    }
}

impl Tdcs<'_> {
    fn sha_state(&self) -> sha384::State {
        core::array::from_fn(|i| self.get(tdcs_word::SHA.wrapping_add(i)))
    }

    pub(crate) fn start_measurement(&self) {
        for (i, v) in sha384::INITIAL.into_iter().enumerate() {
            self.set(tdcs_word::SHA.wrapping_add(i), v);
        }
        self.set(tdcs_word::SHA_LEN, 0);
    }

    /// Extends the measurement. The TDR is held exclusively.
    pub(crate) fn measure(&self, block: &Block) {
        let mut s = self.sha_state();
        sha384::compress(&mut s, &block.0);
        for (i, v) in s.into_iter().enumerate() {
            self.set(tdcs_word::SHA.wrapping_add(i), v);
        }
        self.set(
            tdcs_word::SHA_LEN,
            self.get(tdcs_word::SHA_LEN).wrapping_add(128),
        );
    }

    /// Ends the measurement; MRTD is kept as the little-endian words of its bytes.
    fn finish_measurement(&self) {
        let mrtd = sha384::finish(self.sha_state(), self.get(tdcs_word::SHA_LEN));
        for (i, v) in mrtd.into_iter().enumerate() {
            self.set(tdcs_word::MRTD.wrapping_add(i), v.swap_bytes());
        }
    }
}

impl<P: Platform> Machine<P> {
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
        self.before_commit(leaf::MR_FINALIZE, td.tdr.pa);
        td.tdcs.finish_measurement();
        td.tdcs.set_op_state(op_state::RUNNABLE);
        Ok(())
    }
}
