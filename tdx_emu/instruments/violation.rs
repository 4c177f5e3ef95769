// SPDX-License-Identifier: GPL-2.0

//! What can be wrong with the state of the module.

#![forbid(unsafe_code)]

use core::fmt;

/// Leaf number of a violation that no call made.
pub(crate) const NO_LEAF: u16 = 0xFFFF;

/// What can be wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wrong {
    NoMemory = 1,
    NoState,
    NotCanonical,
    TableAtBottom,
    LeafTooHigh,
    NotOwned,
    Children,
    Reachable,
    OwnedTwice,
    LockLeft,
    EntryLocked,
    PageNotFreed,
    Orphan,
    Fatal,
    PairCount,
}

const TEXTS: [&str; 15] = [
    "a page of the TD has no memory",
    "an S-EPT entry has no state",
    "an S-EPT entry has bits that its state does not have",
    "an S-EPT entry of level 0 refers to a table",
    "a leaf is above the 1G level",
    "the PAMT entry of a mapped page has another type, size or owner",
    "CHLDCNT is not the number of pages that the PAMT gives to the TD",
    "the pages in the S-EPT are not those that the PAMT gives to the TD",
    "a part of a large page is owned as well",
    "a call left a lock of the TD held",
    "a call left an S-EPT entry locked",
    "a page was given back but is still owned",
    "a page's owner is no TDR",
    "the module met a state that cannot be, and shut down",
    "a pair of PAMT pages counts other pages than are in use",
];

/// Something that is wrong, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Violation {
    pub(super) what: u64,
    /// Leaf after which it was found; FFFFh: none.
    pub leaf: u16,
    /// The TD, 0 if it is about none.
    pub tdr: u64,
    /// Physical address of a page or PAMT entry, GPA or lock word, whatever fits.
    pub at: u64,
}

impl Violation {
    /// What is wrong.
    pub fn text(&self) -> &'static str {
        let index = (self.what as usize).wrapping_sub(1);
        TEXTS.get(index).copied().unwrap_or("?")
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text();
        write!(
            f,
            "{text}: at {:#x} of TD {:#x} after leaf {}",
            self.at, self.tdr, self.leaf
        )
    }
}

/// Whether something is wrong, and where.
pub(crate) type Finding = Result<(), (Wrong, u64)>;
