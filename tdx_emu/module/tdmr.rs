// SPDX-License-Identifier: GPL-2.0

//! TDMRs: the memory that TDs may own pages of, and where the PAMT entries of it are.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::mem::Page;
use super::numbers::st;
use super::platform::Platform;
use super::tree::shift;

pub(crate) const MAX_RESERVED: usize = 16;
/// PAMT entries are 16 bytes at every size.
pub(crate) const PAMT_ENTRY_SIZE: u64 = 16;
pub(crate) const GIB: u64 = 1 << 30;

#[expect(
    clippy::declare_interior_mutable_const,
    reason = "initial value of statics"
)]
const ZERO: AtomicU64 = AtomicU64::new(0);

/// A TDMR. Written once by SYS.CONFIG, but for `done` and its lock.
pub(crate) struct Tdmr {
    base: AtomicU64,
    size: AtomicU64,
    /// PAMT base addresses by size class (4K, 2M, 1G).
    pamt: [AtomicU64; 3],
    /// Offset and size of the reserved areas; unused ones have size 0.
    pub(crate) reserved: [[AtomicU64; 2]; MAX_RESERVED],
    /// First address whose PAMT entries are not initialised yet.
    pub(crate) done: AtomicU64,
    pub(crate) lock: AtomicU64,
}

impl Tdmr {
    #[expect(
        clippy::declare_interior_mutable_const,
        reason = "initial value of static arrays"
    )]
    pub(crate) const NEW: Tdmr = Tdmr {
        base: ZERO,
        size: ZERO,
        pamt: [ZERO; 3],
        reserved: [const { [ZERO; 2] }; MAX_RESERVED],
        done: ZERO,
        lock: ZERO,
    };

    pub(crate) fn base(&self) -> u64 {
        self.base.load(Ordering::Relaxed)
    }

    pub(crate) fn end(&self) -> u64 {
        self.base().wrapping_add(self.size.load(Ordering::Relaxed))
    }

    /// Where its PAMT entries are initialised: from, to.
    pub(crate) fn initialised(&self) -> (u64, u64) {
        (self.base(), self.done.load(Ordering::Acquire))
    }

    /// Physical address of the PAMT entry of `pa` at `size`.
    pub(crate) fn entry_address(&self, pa: u64, size: u8) -> u64 {
        let base = self
            .pamt
            .get(usize::from(size))
            .map_or(0, |a| a.load(Ordering::Relaxed));
        let index = pa.wrapping_sub(self.base()) >> shift(size);
        base.wrapping_add(index.wrapping_mul(PAMT_ENTRY_SIZE))
    }

    /// The bit of `pa` in a dynamic PAMT, which is where the 4K entries are in a static one:
    /// physical address of the word, number of the bit.
    pub(crate) fn bit_address(&self, pa: u64) -> (u64, u32) {
        let index = pa.wrapping_sub(self.base()) >> 12;
        let at = self.entry_address(self.base(), 0);
        (at.wrapping_add((index >> 6) << 3), (index & 63) as u32)
    }

    /// Takes over what SYS.CONFIG was given; no PAMT entry is initialised yet.
    pub(crate) fn load(&self, info: &TdmrInfo) {
        let set = |a: &AtomicU64, v| a.store(v, Ordering::Relaxed);
        set(&self.base, info.base);
        set(&self.size, info.size);
        for (a, v) in self.pamt.iter().zip(info.pamt) {
            set(a, v.0);
        }
        for (a, v) in self.reserved.iter().zip(info.reserved) {
            set(&a[0], v.0);
            set(&a[1], v.1);
        }
        self.done.store(info.base, Ordering::Release);
    }
}

/// The part of a TDMR_INFO structure that counts: PAMTs by size class 4K, 2M, 1G
/// and reserved areas, as (base or offset, size).
#[derive(Clone, Copy)]
pub(crate) struct TdmrInfo {
    pub(crate) base: u64,
    size: u64,
    pub(crate) pamt: [(u64, u64); 3],
    reserved: [(u64, u64); MAX_RESERVED],
}

impl TdmrInfo {
    pub(crate) fn read<P: Platform>(p: &P, pa: u64) -> Option<TdmrInfo> {
        let mut w = [0u64; 8 + 2 * MAX_RESERVED];
        Page::at(p, pa)?.read((pa & 0xFFF) as usize / 8, &mut w);
        let mut reserved = [(0, 0); MAX_RESERVED];
        for (r, pair) in reserved.iter_mut().zip(w[8..].chunks_exact(2)) {
            if let [offset, size] = *pair {
                *r = (offset, size);
            }
        }
        let pamt = [(w[6], w[7]), (w[4], w[5]), (w[2], w[3])];
        Some(TdmrInfo {
            base: w[0],
            size: w[1],
            pamt,
            reserved,
        })
    }

    pub(crate) fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }

    /// What is wrong with it, as the status of SYS.CONFIG without the number of the TDMR.
    pub(crate) fn check(&self, dynamic: bool) -> Result<(), u64> {
        let whole = |v: u64| v & (GIB - 1) == 0;
        if !whole(self.base) || !whole(self.size) || self.size == 0 {
            return Err(st::INVALID_TDMR);
        }
        if self
            .base
            .checked_add(self.size)
            .is_none_or(|end| end >> 52 != 0)
        {
            return Err(st::INVALID_TDMR);
        }
        for (i, &(base, size)) in self.pamt.iter().enumerate() {
            let entries = self.size >> shift(i as u8);
            let need = match i {
                // A bit each.
                0 if dynamic => entries / 8,
                _ => entries * PAMT_ENTRY_SIZE,
            };
            if base & 0xFFF != 0 || size & 0xFFF != 0 || size < need || base >> 52 != 0 {
                return Err(st::INVALID_PAMT);
            }
        }
        let mut last = 0;
        for &(offset, size) in self.reserved.iter().filter(|r| r.1 != 0) {
            let end = offset.checked_add(size).filter(|&e| e <= self.size);
            match end {
                Some(e) if (offset | size) & 0xFFF == 0 && offset >= last => last = e,
                _ => return Err(st::INVALID_RESERVED_IN_TDMR),
            }
        }
        Ok(())
    }

    /// Whether the part of `[start, end)` in this TDMR lies in reserved areas.
    pub(crate) fn reserves(&self, start: u64, end: u64) -> bool {
        let mut at = start.max(self.base);
        let end = end.min(self.end());
        for &(offset, size) in &self.reserved {
            let from = self.base.saturating_add(offset);
            let to = from.saturating_add(size);
            if from <= at && at < to {
                at = to;
            }
        }
        at >= end
    }
}
