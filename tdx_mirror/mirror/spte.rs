// SPDX-License-Identifier: GPL-2.0

//! The encoding of a mirror SPTE, and what a map may make of one.
//!
//! The encoding is KVM's on x86, so that KVM's debugging aids read the mirror: bit 11 is
//! MMU-present, bit 63 (suppress #VE) is set in every value, present or not, and a frozen entry
//! has KVM's `FROZEN_SPTE`. It stays inside the mirror; the backend never sees an SPTE.

#![forbid(unsafe_code)]

use crate::base::addr::{
    Pfn,
    PAGE_SHIFT, //
};
use crate::base::level::Level;
use core::fmt;

/// KVM's `SPTE_MMU_PRESENT_MASK`.
pub const PRESENT_MASK: u64 = 1 << 11;
/// Suppress #VE, set in every value.
pub const SUPPRESS_VE: u64 = 1 << 63;
/// KVM's `SHADOW_NONPRESENT_VALUE`.
pub const NONPRESENT_VALUE: u64 = SUPPRESS_VE;
/// KVM's `FROZEN_SPTE`.
pub const FROZEN_VALUE: u64 = NONPRESENT_VALUE | 0x1a0;

const RWX: u64 = 7;
const MEMTYPE_WB: u64 = 6 << 3;
const PAGE_SIZE_BIT: u64 = 1 << 7;
const PFN_MASK: u64 = ((1 << 52) - 1) & !((1 << PAGE_SHIFT) - 1);
/// Software bits that KVM leaves unused (56 to 59), in values that are not MMU-present.
const BLOCKED_BIT: u64 = 1 << 56;
const QUARANTINED_BIT: u64 = 1 << 57;

const _: () = {
    assert!(NONPRESENT_VALUE & PRESENT_MASK == 0);
    assert!(FROZEN_VALUE & PRESENT_MASK == 0);
    assert!(FROZEN_VALUE & SUPPRESS_VE != 0);
    assert!(FROZEN_VALUE & (BLOCKED_BIT | QUARANTINED_BIT) == 0);
    assert!((BLOCKED_BIT | QUARANTINED_BIT) & (PFN_MASK | PRESENT_MASK | SUPPRESS_VE) == 0);
};

/// The value of a mirror entry. What it means depends on its level, see [`kind()`](Self::kind).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Spte(u64);

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpteKind {
    /// Nothing is mapped, and the external entry is free.
    NonPresent,
    /// Somebody who holds mmu_lock for read is changing the external entry.
    Frozen,
    /// The external leaf is blocked, not yet removed. Only while mmu_lock is held for write.
    Blocked(Pfn),
    /// The TDX module may still own the page; the entry refuses every change from now on.
    Quarantined(Pfn),
    /// A mapped page.
    Leaf(Pfn),
    /// A table of the next level.
    Table(Pfn),
    /// None of the above: something overwrote the table.
    Malformed,
}

impl Spte {
    /// Nothing mapped.
    pub const NON_PRESENT: Self = Self(NONPRESENT_VALUE);
    /// Being changed.
    pub const FROZEN: Self = Self(FROZEN_VALUE);

    /// A mapped page at `level`, writable, executable and write-back, as all private leaves are.
    pub const fn leaf(pfn: Pfn, level: Level) -> Self {
        let ps = match level {
            Level::L4K => 0,
            _ => PAGE_SIZE_BIT,
        };
        Self(pfn.pa() | SUPPRESS_VE | PRESENT_MASK | MEMTYPE_WB | RWX | ps)
    }

    /// A table of the next level at `pfn`.
    pub const fn table(pfn: Pfn) -> Self {
        Self(pfn.pa() | SUPPRESS_VE | PRESENT_MASK | RWX)
    }

    /// A leaf for `pfn` that is blocked in the external table.
    pub const fn blocked(pfn: Pfn) -> Self {
        Self(pfn.pa() | NONPRESENT_VALUE | BLOCKED_BIT)
    }

    /// A former leaf whose page the TDX module may still own.
    pub const fn quarantined(pfn: Pfn) -> Self {
        Self(pfn.pa() | NONPRESENT_VALUE | QUARANTINED_BIT)
    }

    /// The value as it is in memory.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// A value as found in memory.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// What the value means in an entry at `level`.
    pub const fn kind(self, level: Level) -> SpteKind {
        let pfn = Pfn::from_pa_bits(self.0);
        if self.0 & PRESENT_MASK == 0 {
            return match self.0 {
                NONPRESENT_VALUE => SpteKind::NonPresent,
                FROZEN_VALUE => SpteKind::Frozen,
                raw => match raw & !PFN_MASK {
                    BLOCKED_VALUE => SpteKind::Blocked(pfn),
                    QUARANTINED_VALUE => SpteKind::Quarantined(pfn),
                    _ => SpteKind::Malformed,
                },
            };
        }
        if self.0 & SUPPRESS_VE == 0 {
            return SpteKind::Malformed;
        }
        match (level, self.0 & PAGE_SIZE_BIT != 0) {
            (Level::L4K, _) | (Level::L2M | Level::L1G, true) => SpteKind::Leaf(pfn),
            (_, false) => SpteKind::Table(pfn),
            (Level::L512G | Level::L256T, true) => SpteKind::Malformed,
        }
    }

    /// Whether the value grants read, write and execute.
    const fn is_rwx(self) -> bool {
        self.0 & RWX == RWX
    }
}

const BLOCKED_VALUE: u64 = NONPRESENT_VALUE | BLOCKED_BIT;
const QUARANTINED_VALUE: u64 = NONPRESENT_VALUE | QUARANTINED_BIT;

impl fmt::Debug for Spte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// What a map may make of an entry, which is what the external table is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transition {
    /// Leaf, non-present to present: the one transition that maps a page.
    MapLeaf(Pfn),
    /// Table, non-present to present: a page becomes an S-EPT table.
    LinkTable(Pfn),
}

/// Why a change of an entry is a bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IllegalTransition {
    /// A present leaf would change its PFN.
    PfnChanged,
    /// A leaf without read, write or execute: no permission bits travel to the S-EPT.
    NotRwx,
    /// A table would be linked over a leaf, a leaf put over a table or mapped twice, or a table
    /// replaced.
    OverPresent,
    /// The old value is frozen: what the entry was before is known to its mapper alone.
    FromFrozen,
    /// A blocked leaf would be mapped again.
    FromBlocked,
    /// A quarantined entry would change.
    FromQuarantined,
    /// A value that is none of the mirror's.
    Malformed,
    /// The new value maps nothing.
    NothingMapped,
}

impl Transition {
    /// Classifies the change that a map makes of an entry at level `at`, from `old` to `new`.
    ///
    /// Total: every pair of values has exactly one answer. `old` is the value before the entry
    /// was frozen. What happens under mmu_lock held for write is no map: see
    /// [`entry`](super::entry).
    ///
    /// # Errors
    ///
    /// The change is a bug of the VM; nothing may be written and no hook called.
    pub fn classify(old: Spte, new: Spte, at: Level) -> Result<Self, IllegalTransition> {
        use IllegalTransition as Bad;
        use SpteKind::{
            Blocked,
            Frozen,
            Leaf,
            Malformed,
            NonPresent,
            Quarantined,
            Table, //
        };

        match (old.kind(at), new.kind(at)) {
            (NonPresent, Leaf(_)) if !new.is_rwx() => Err(Bad::NotRwx),
            (NonPresent, Leaf(pfn)) => Ok(Self::MapLeaf(pfn)),
            (NonPresent, Table(pfn)) => Ok(Self::LinkTable(pfn)),

            (Malformed, _) | (_, Malformed) => Err(Bad::Malformed),
            (Frozen, _) => Err(Bad::FromFrozen),
            (Quarantined(_), _) => Err(Bad::FromQuarantined),
            (Blocked(_), _) => Err(Bad::FromBlocked),
            (_, NonPresent | Frozen | Blocked(_) | Quarantined(_)) => Err(Bad::NothingMapped),

            (Leaf(was), Leaf(is)) if was != is => Err(Bad::PfnChanged),
            (Leaf(_) | Table(_), Leaf(_) | Table(_)) => Err(Bad::OverPresent),
        }
    }
}

/// The three constants of KVM's encoding that the mirror's has to match.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvmEncoding {
    /// KVM's MMU-present bit.
    pub present_mask: u64,
    /// KVM's frozen value.
    pub frozen: u64,
    /// KVM's non-present value.
    pub nonpresent: u64,
}

impl KvmEncoding {
    /// The encoding of this file.
    pub const OURS: Self = Self {
        present_mask: PRESENT_MASK,
        frozen: FROZEN_VALUE,
        nonpresent: NONPRESENT_VALUE,
    };
}
