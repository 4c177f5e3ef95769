// SPDX-License-Identifier: GPL-2.0

//! The encoding of a mirror SPTE, and which change of one means what to the external table.
//!
//! The encoding is KVM's on x86, so that KVM's debugging aids read the mirror: bit 11 is
//! MMU-present, bit 63 (suppress #VE) is set in every value, present or not, and a frozen entry
//! has KVM's `FROZEN_SPTE`.  It stays inside the mirror; the backend never sees an SPTE.

use crate::base::addr::{Pfn, PAGE_SHIFT};
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

/// The value of a mirror entry.  What it means depends on its level, see [`kind()`](Self::kind).
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
    /// The external leaf is blocked, not yet removed.  Only while mmu_lock is held for write.
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

/// What a legal change of an entry asks of the external table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transition {
    /// Nothing changed.
    Same,
    /// Leaf, non-present to present: the one transition that maps a page.
    MapLeaf(Pfn),
    /// Table, non-present to present: a page becomes an S-EPT table.
    LinkTable(Pfn),
    /// Bits of a present leaf changed, its PFN did not: never reaches the external table.
    TouchLeaf(Pfn),
    /// A present leaf is blocked.
    BlockLeaf(Pfn),
    /// A leaf is removed, blocked before or, until the TD is finalized, directly.
    RemoveLeaf(Pfn),
    /// Removing a leaf failed.
    Quarantine(Pfn),
    /// A table is unlinked at teardown.
    UnlinkTable(Pfn),
    /// An entry is taken by a mapper.
    Freeze,
}

/// Why a change of an entry is a bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IllegalTransition {
    /// A present leaf would change its PFN.
    PfnChanged,
    /// A leaf without read, write or execute: no permission bits travel to the S-EPT.
    NotRwx,
    /// A table would be linked over a leaf, or a leaf put over a table, or a table replaced.
    OverPresent,
    /// The old value is frozen: what the entry was before is known to its mapper alone.
    FromFrozen,
    /// Only a non-present entry may be frozen.
    FreezeOfPresent,
    /// A blocked leaf would be mapped again or change its PFN.
    FromBlocked,
    /// A quarantined entry would change.
    FromQuarantined,
    /// A value that is none of the mirror's.
    Malformed,
    /// A non-present entry would become blocked or quarantined.
    NothingMapped,
}

impl Transition {
    /// Classifies the change of an entry at level `at` from `old` to `new`.
    ///
    /// Total: every pair of values has exactly one answer.  `old` is the value before the entry
    /// was frozen, where it was.
    ///
    /// # Errors
    ///
    /// The change is a bug of the VM; nothing may be written and no hook called.
    pub fn classify(old: Spte, new: Spte, at: Level) -> Result<Self, IllegalTransition> {
        use IllegalTransition as Bad;
        use SpteKind::{Blocked, Frozen, Leaf, Malformed, NonPresent, Quarantined, Table};

        let (was, is) = (old.kind(at), new.kind(at));
        if matches!(was, Malformed) || matches!(is, Malformed) {
            return Err(Bad::Malformed);
        }
        if old == new {
            return Ok(Self::Same);
        }
        match (was, is) {
            (Frozen, _) => Err(Bad::FromFrozen),
            (Quarantined(_), _) => Err(Bad::FromQuarantined),
            (NonPresent, Frozen) => Ok(Self::Freeze),
            (_, Frozen) => Err(Bad::FreezeOfPresent),

            (NonPresent, Leaf(_)) if !new.is_rwx() => Err(Bad::NotRwx),
            (NonPresent, Leaf(p)) => Ok(Self::MapLeaf(p)),
            (NonPresent, Table(p)) => Ok(Self::LinkTable(p)),
            (NonPresent, _) => Err(Bad::NothingMapped),

            (Leaf(a), Leaf(b)) if a != b => Err(Bad::PfnChanged),
            (Leaf(_), Leaf(_)) if !new.is_rwx() => Err(Bad::NotRwx),
            (Leaf(p), Leaf(_)) => Ok(Self::TouchLeaf(p)),
            (Leaf(a), Blocked(b) | Quarantined(b)) if a != b => Err(Bad::PfnChanged),
            (Leaf(p), Blocked(_)) => Ok(Self::BlockLeaf(p)),
            (Leaf(p), Quarantined(_)) => Ok(Self::Quarantine(p)),
            (Leaf(p), NonPresent) => Ok(Self::RemoveLeaf(p)),
            (Leaf(_), _) => Err(Bad::OverPresent),

            (Blocked(p), NonPresent) => Ok(Self::RemoveLeaf(p)),
            (Blocked(p), Quarantined(q)) if p == q => Ok(Self::Quarantine(p)),
            (Blocked(_), _) => Err(Bad::FromBlocked),

            (Table(p), NonPresent) => Ok(Self::UnlinkTable(p)),
            (Table(_), _) => Err(Bad::OverPresent),

            (Malformed, _) => Err(Bad::Malformed),
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
