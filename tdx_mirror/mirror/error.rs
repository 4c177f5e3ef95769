// SPDX-License-Identifier: GPL-2.0

//! Outcomes, errors and what is reported when something is wrong.

#![forbid(unsafe_code)]

pub use crate::base::td::RetryReason;

use super::external::ExtFailure;
use super::spte::{
    IllegalTransition,
    Spte, //
};
use crate::base::addr::Pfn;
use crate::base::level::Position;
use core::fmt;

/// How a map ended that is no error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum MapOutcome {
    /// The leaf is mapped now.
    Fixed,
    /// The leaf was mapped to that PFN already.
    Spurious,
    /// The caller may try again, after letting go of mmu_lock. Tables that were linked stay.
    Retry(RetryReason),
}

/// Why a map cannot succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// GFN or level out of range; nothing happened.
    Invalid,
    /// The VM is bugged, now or before.
    Bugged,
}

/// Why a mirror cannot be created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigError {
    /// The root's level is not one that a TD has.
    RootLevel,
    /// The root does not resolve that many GFN bits, or there are none.
    GfnBits,
    /// KVM encodes an SPTE in another way.
    Encoding,
}

/// A broken invariant. The VM ends, the host does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// A change of an entry that has no meaning.
    Transition {
        /// Which entry.
        at: Position,
        /// Its value.
        old: Spte,
        /// The value that it would have got.
        new: Spte,
        /// Why that is illegal.
        why: IllegalTransition,
    },
    /// An entry was found in a state that it cannot have there.
    Unexpected {
        /// Which entry.
        at: Position,
        /// Its value.
        found: Spte,
    },
    /// The external table refused an operation for another reason than contention, or was busy
    /// even with all vCPUs out. No mistake of anybody's where the TDX module has ended the TD.
    External {
        /// Which entry.
        at: Position,
        /// What it answered.
        failure: ExtFailure,
    },
    /// A table has fewer entries than its level needs.
    NoEntry {
        /// Which entry.
        at: Position,
    },
}

impl Bug {
    /// What the external table answered, if it refused an operation.
    pub fn failure(&self) -> Option<&ExtFailure> {
        match self {
            Self::External { failure, .. } => Some(failure),
            _ => None,
        }
    }
}

/// A page that is never given back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Leak {
    /// A page of an S-EPT table that could not be reclaimed.
    SeptTable {
        /// The entry that pointed to the table.
        at: Position,
        /// What the reclaim answered: status, page type, owner, size.
        failure: ExtFailure,
    },
    /// A data page that the TDX module may still own at teardown.
    Data {
        /// The entry that maps or mapped it.
        at: Position,
        /// The page.
        pfn: Pfn,
        /// What the reclaim answered: status, page type, owner, size.
        failure: ExtFailure,
    },
    /// A data page that the TDX module may still own, and that was free when it should have been
    /// held: whoever gets it next may find it taken away.
    Freed {
        /// The entry that maps or mapped it.
        at: Position,
        /// The page.
        pfn: Pfn,
    },
}

impl Leak {
    /// What the reclaim answered, if there was one.
    pub fn failure(&self) -> Option<&ExtFailure> {
        match self {
            Self::SeptTable { failure, .. } | Self::Data { failure, .. } => Some(failure),
            Self::Freed { .. } => None,
        }
    }
}

impl fmt::Debug for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failure = match self {
            Self::SeptTable { at, failure } => {
                write!(f, "page of the S-EPT table at {at:?}")?;
                failure
            }
            Self::Data { at, pfn, failure } => {
                write!(f, "{pfn:?} of {at:?}")?;
                failure
            }
            Self::Freed { at, pfn } => {
                return write!(f, "{pfn:?} of {at:?} is free while it is mapped");
            }
        };
        write!(
            f,
            ", {} answered {:#018x}: page type {:#x}, owner {:#x}, size {}",
            failure.op, failure.status, failure.ext1, failure.ext2, failure.ext3
        )
    }
}
