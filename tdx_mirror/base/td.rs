// SPDX-License-Identifier: GPL-2.0

//! What the mirror and the TDX module's interface both say of a TD: its phase, what of it may be
//! contended, and why a map of it may be tried again.

#![forbid(unsafe_code)]

/// Before or after TDH.MR.FINALIZE.
///
/// It is read once for each time that mmu_lock is taken: KVM finalizes a TD with the lock held for
/// write, so that the phase cannot change under whoever holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The TD is being built: pages are added, nothing is blocked or tracked, and a call has one
    /// try for each map.
    Build,
    /// The TD runs, or may: pages are augmented, and blocked and tracked before they are removed.
    Run,
}

impl Phase {
    /// The phase of a TD that is `finalized`, or not.
    pub const fn of(finalized: bool) -> Self {
        if finalized {
            Self::Run
        } else {
            Self::Build
        }
    }

    /// Whether the TD is finalized.
    pub const fn is_run(self) -> bool {
        matches!(self, Self::Run)
    }
}

/// What the TDX module was busy with, where a call may meet contention.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operand {
    /// The lock of the whole S-EPT tree.
    SeptTree,
    /// The lock of one S-EPT entry, or of the page that it maps.
    SeptEntry,
    /// The epoch lock.
    TdEpoch,
    /// A vCPU that entered before the last TRACK is still inside.
    PreviousEpoch,
    /// The TD's root page, while the TD is built.
    Tdr,
    /// Something that the call is not known to lock.
    Other,
}

impl Operand {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::SeptTree,
        Self::SeptEntry,
        Self::TdEpoch,
        Self::PreviousEpoch,
        Self::Tdr,
        Self::Other,
    ];

    /// Its place among [all](Self::ALL).
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Its label in figures and in the trace.
    pub const fn label(self) -> &'static str {
        match self {
            Self::SeptTree => "sept_tree",
            Self::SeptEntry => "sept_entry",
            Self::TdEpoch => "td_epoch",
            Self::PreviousEpoch => "previous_epoch",
            Self::Tdr => "tdr",
            Self::Other => "other",
        }
    }
}

/// Why a map may be tried again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RetryReason {
    /// Another mapper holds the entry.
    Frozen,
    /// The TDX module was busy for the whole budget.
    Contended(Operand),
    /// The page supplier had no page for a table.
    NoPage,
}
