// SPDX-License-Identifier: GPL-2.0

//! Levels of a page table and the position of an entry.

#![forbid(unsafe_code)]

use super::addr::{
    Gfn,
    GfnRange, //
};
use core::fmt;

/// Bits of a GFN that select an entry of one table.
pub const INDEX_BITS: u32 = 9;

/// The level of an entry, named by what one entry maps; equal to KVM's `enum pg_level`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Level {
    /// 4 KiB, the last level.
    L4K = 1,
    /// 2 MiB.
    L2M = 2,
    /// 1 GiB.
    L1G = 3,
    /// 512 GiB, the root of a 4-level table.
    L512G = 4,
    /// 256 TiB, the root of a 5-level table.
    L256T = 5,
}

impl Level {
    /// The level with KVM's number `raw`, 1 to 5.
    pub const fn from_kvm(raw: i32) -> Option<Self> {
        Some(match raw {
            1 => Self::L4K,
            2 => Self::L2M,
            3 => Self::L1G,
            4 => Self::L512G,
            5 => Self::L256T,
            _ => return None,
        })
    }

    /// KVM's number of the level, 1 to 5.
    pub const fn as_kvm(self) -> i32 {
        self as i32
    }

    /// The number of the level in SEAMCALL operands, 0 to 4.
    pub const fn as_sept(self) -> u64 {
        match self {
            Self::L4K => 0,
            Self::L2M => 1,
            Self::L1G => 2,
            Self::L512G => 3,
            Self::L256T => 4,
        }
    }

    /// The level of the entries of a table that an entry at this level points to.
    pub const fn child(self) -> Option<Self> {
        match self {
            Self::L4K => None,
            Self::L2M => Some(Self::L4K),
            Self::L1G => Some(Self::L2M),
            Self::L512G => Some(Self::L1G),
            Self::L256T => Some(Self::L512G),
        }
    }

    /// log2 of the number of 4 KiB frames that one entry covers.
    const fn shift(self) -> u32 {
        self.as_sept() as u32 * INDEX_BITS
    }

    /// The number of 4 KiB frames that one entry covers.
    pub const fn pages(self) -> u64 {
        1 << self.shift()
    }

    /// The bits of a GFN below this level.
    pub const fn low_mask(self) -> u64 {
        self.pages().wrapping_sub(1)
    }

    /// The number of the entry for `gfn` in a table of this level, below 512.
    pub const fn index(self, gfn: Gfn) -> usize {
        (gfn.as_u64() >> self.shift()) as usize & ((1 << INDEX_BITS) - 1)
    }

    /// The number of GFN bits that a table whose entries have this level resolves.
    pub const fn gfn_bits(self) -> u32 {
        self.shift() + INDEX_BITS
    }
}

impl Gfn {
    /// Whether the GFN is the first one of an entry at `level`.
    pub const fn is_aligned(self, level: Level) -> bool {
        self.as_u64() & level.low_mask() == 0
    }

    /// The first GFN of the entry at `level` that covers this one.
    pub const fn align_down(self, level: Level) -> Self {
        self.without(level.low_mask())
    }
}

impl GfnRange {
    /// Whether the entry at `level` that begins with `gfn` lies in the range as a whole.
    pub const fn contains_entry(self, gfn: Gfn, level: Level) -> bool {
        // No overflow: a GFN has 40 bits, an entry covers at most 2^36 frames.
        self.start() <= gfn.as_u64() && gfn.as_u64().saturating_add(level.pages()) <= self.end()
    }
}

/// An entry of the table: its level and the first GFN that it covers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    gfn: Gfn,
    level: Level,
}

impl Position {
    /// The entry at `level` that covers `gfn`.
    pub const fn covering(gfn: Gfn, level: Level) -> Self {
        Self {
            gfn: gfn.align_down(level),
            level,
        }
    }

    /// The first GFN, aligned to the level.
    pub const fn gfn(self) -> Gfn {
        self.gfn
    }

    /// The level of the entry.
    pub const fn level(self) -> Level {
        self.level
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?}", self.gfn, self.level)
    }
}
