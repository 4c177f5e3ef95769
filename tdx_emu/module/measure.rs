// SPDX-License-Identifier: GPL-2.0

//! The measurement of a TD: MRTD is SHA-384 over a stream of 128-byte blocks, whose state lives in
//! the TDCS.

#![forbid(unsafe_code)]

use super::mem::Page;
use super::sha384;
use super::td::{tdcs_word, Tdcs};

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
    pub(crate) fn content(page: &Page<'_>, first: usize) -> Block {
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
    pub(crate) fn finish_measurement(&self) {
        let mrtd = sha384::finish(self.sha_state(), self.get(tdcs_word::SHA_LEN));
        for (i, v) in mrtd.into_iter().enumerate() {
            self.set(tdcs_word::MRTD.wrapping_add(i), v.swap_bytes());
        }
    }
}
