// SPDX-License-Identifier: GPL-2.0

//! The one description of each SEAMCALL that a mirror makes.
//!
//! Whatever else says something about a call takes it from the table below: the trace, the figures,
//! the log, the retries and the doubles of tests.

#![forbid(unsafe_code)]

use super::leaf::Leaf;
use super::status::{
    OperandId,
    TdxStatus, //
};
use crate::base::addr::{
    PagePtr,
    Pfn, //
};
use crate::base::level::Position;
use crate::base::td::{
    Operand,
    Phase, //
};

/// What is the same for all calls of a kind.
#[derive(Debug)]
struct Description {
    leaf: Leaf,
    /// The index of the label in [`FIGURES`].
    figure: usize,
    /// What is known to be contended at times while the TD is built, and once it runs; empty for a
    /// call that may meet no contention at all.
    build: &'static [Operand],
    run: &'static [Operand],
    /// An answer beside success that says that the call reached what it is for.
    done: Option<Done>,
}

/// An answer that is no success and as good as one.
#[derive(Debug)]
enum Done {
    /// Any status of this class.
    Class(TdxStatus),
    /// This status with RCX 0.
    NoType(TdxStatus),
}

/// Nothing.
const NONE: &[Operand] = &[];
/// The locks that a call on an entry takes.
const ENTRY: &[Operand] = &[Operand::SeptTree, Operand::SeptEntry];
/// These while the TD is built, when others have the TDR for themselves.
const ENTRY_AND_TDR: &[Operand] = &[Operand::SeptTree, Operand::SeptEntry, Operand::Tdr];
/// What TDH.MEM.TRACK takes.
const EPOCH: &[Operand] = &[Operand::TdEpoch, Operand::PreviousEpoch];

macro_rules! calls {
    ($(
        $figure:ident { $(
            $(#[$doc:meta])*
            $name:ident { $($field:ident: $ty:ty),* } = $leaf:ident,
            entry: $at:expr, page: $pfn:expr, build: $build:expr, run: $run:expr, done: $done:expr;
        )* }
    )*) => {
        /// A SEAMCALL with its operands.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Call {
            $($($(#[$doc])* $name {
                $(
                    #[doc = concat!("`", stringify!($field), "`, see there.")]
                    $field: $ty,
                )*
            },)*)*
        }

        /// A [`Call`] without its operands.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Kind {
            $($($(#[$doc])* $name,)*)*
        }

        /// All kinds of calls.
        pub const KINDS: &[Kind] = &[$($(Kind::$name,)*)*];

        /// Labels of the calls, in the order in which figures list them. Calls with the same label
        /// are counted together.
        pub const FIGURES: [&str; LABELS] = [$(stringify!($figure),)*];

        /// The number of labels.
        pub const LABELS: usize = [$(Label::$figure),*].len();

        /// The labels, each by its index in [`FIGURES`].
        #[allow(non_camel_case_types)]
        enum Label {
            $($figure,)*
        }

        impl Call {
            /// Which call it is.
            #[inline(always)]
            pub const fn kind(self) -> Kind {
                match self {
                    $($(Self::$name { .. } => Kind::$name,)*)*
                }
            }

            /// The same call, in memory of its own.
            ///
            /// Code out of line gets a call by address. If it got that of the caller's, the caller
            /// would have to keep the call in memory, and could not know any more which one it is.
            #[inline(always)]
            pub const fn copied(self) -> Self {
                match self {
                    $($(Self::$name { $($field),* } => Self::$name { $($field),* },)*)*
                }
            }

            /// The entry of the S-EPT that it is about, if it is about one.
            #[allow(unused_variables)]
            pub const fn entry(self) -> Option<Position> {
                match self {
                    $($(Self::$name { $($field),* } => $at,)*)*
                }
            }

            /// The data page that it is about. Of a page of the S-EPT itself nothing is said, not
            /// even where it is.
            #[allow(unused_variables)]
            pub const fn page(self) -> Option<Pfn> {
                match self {
                    $($(Self::$name { $($field),* } => $pfn,)*)*
                }
            }
        }

        impl Kind {
            const fn description(self) -> &'static Description {
                match self {
                    $($(Self::$name => &const {
                        Description {
                            leaf: Leaf::$leaf,
                            figure: Label::$figure as usize,
                            build: $build,
                            run: $run,
                            done: $done,
                        }
                    },)*)*
                }
            }
        }
    };
}

calls! {
    sept_add {
        /// TDH.MEM.SEPT.ADD: `page` becomes the table below `at`.
        SeptAdd { at: Position, page: PagePtr } = MEM_SEPT_ADD,
        entry: Some(at), page: None, build: ENTRY_AND_TDR, run: ENTRY, done: None;
    }
    page_map {
        /// TDH.MEM.PAGE.ADD: a TD that is built gets `pfn` at `at`, with its content.
        PageAdd { at: Position, pfn: Pfn } = MEM_PAGE_ADD,
        entry: Some(at), page: Some(pfn), build: ENTRY_AND_TDR, run: NONE, done: None;
        /// TDH.MEM.PAGE.AUG: a TD that runs gets `pfn` at `at`, empty.
        PageAug { at: Position, pfn: Pfn } = MEM_PAGE_AUG,
        entry: Some(at), page: Some(pfn), build: NONE, run: ENTRY, done: None;
    }
    range_block {
        /// TDH.MEM.RANGE.BLOCK: no new translation uses the leaf `at`. One that is blocked already is
        /// in the state that was asked for, and the status is no error.
        RangeBlock { at: Position } = MEM_RANGE_BLOCK,
        entry: Some(at), page: None, build: NONE, run: ENTRY,
        done: Some(Done::Class(TdxStatus::GPA_RANGE_ALREADY_BLOCKED));
    }
    track {
        /// TDH.MEM.TRACK: a new epoch begins.
        Track {} = MEM_TRACK,
        entry: None, page: None, build: NONE, run: EPOCH, done: None;
    }
    page_remove {
        /// TDH.MEM.PAGE.REMOVE: the TD loses the page at `at`.
        PageRemove { at: Position } = MEM_PAGE_REMOVE,
        entry: Some(at), page: None, build: ENTRY_AND_TDR, run: ENTRY, done: None;
    }
    page_wbinvd {
        /// TDH.PHYMEM.PAGE.WBINVD of the removed page `pfn` that was mapped at `at`.
        PageWbinvd { at: Position, pfn: Pfn } = PHYMEM_PAGE_WBINVD,
        entry: Some(at), page: Some(pfn), build: NONE, run: NONE, done: None;
    }
    sept_rd {
        /// TDH.MEM.SEPT.RD: the entry `at` in `ext1`, its level and state in `ext2`.
        SeptRd { at: Position } = MEM_SEPT_RD,
        entry: Some(at), page: None, build: ENTRY_AND_TDR, run: ENTRY, done: None;
    }
    page_reclaim {
        /// TDH.PHYMEM.PAGE.RECLAIM of the S-EPT page `page`.
        ReclaimTable { page: PagePtr } = PHYMEM_PAGE_RECLAIM,
        entry: None, page: None, build: NONE, run: NONE, done: None;
        /// TDH.PHYMEM.PAGE.RECLAIM of the data page `pfn` that may still be mapped at `at`. A page
        /// without a type is not the TDX module's: it was removed before, or never mapped.
        ReclaimData { at: Position, pfn: Pfn } = PHYMEM_PAGE_RECLAIM,
        entry: Some(at), page: Some(pfn), build: NONE, run: NONE,
        done: Some(Done::NoType(
            TdxStatus::PAGE_METADATA_INCORRECT.with_operand(OperandId::RCX),
        ));
    }
}

impl Kind {
    /// The leaf.
    pub const fn leaf(self) -> Leaf {
        self.description().leaf
    }

    /// The leaf's name, as the architecture writes it.
    pub const fn name(self) -> &'static str {
        match self.leaf().name() {
            Some(name) => name,
            None => "a leaf without a name",
        }
    }

    /// Where it is counted: an index in [`FIGURES`].
    pub const fn figure(self) -> usize {
        self.description().figure
    }

    /// Whether `status`, with `ext1` in RCX, says that the call reached what it is for.
    pub fn is_done(self, status: TdxStatus, ext1: u64) -> bool {
        status.is_success()
            || match self.description().done {
                // Without its details: one that is no error may have some.
                Some(Done::Class(class)) => status.class() == class,
                Some(Done::NoType(exact)) => status == exact && ext1 == 0,
                None => false,
            }
    }

    /// What `status` says is busy, if this call may meet contention in this phase; any other answer
    /// that is not [done](Self::is_done) is a bug.
    ///
    /// [`Operand::Other`] is what is not in the table: the architecture lets a TDX module lock more
    /// than those that the table was read from, and who finds it locked can wait as well.
    pub fn contention(self, status: TdxStatus, phase: Phase) -> Option<Operand> {
        let description = self.description();
        let known = match phase {
            Phase::Build => description.build,
            Phase::Run => description.run,
        };
        match busy_operand(status) {
            Some(operand) if known.contains(&operand) => Some(operand),
            _ if status.is_operand_busy() && !known.is_empty() => Some(Operand::Other),
            _ => None,
        }
    }
}

/// What `status` says is busy, for a call that names an S-EPT entry in RCX and the TDR in RDX, or
/// none of both.
fn busy_operand(status: TdxStatus) -> Option<Operand> {
    if status.class() == TdxStatus::PREVIOUS_TLB_EPOCH_BUSY {
        return Some(Operand::PreviousEpoch);
    }
    if !status.is_operand_busy() {
        return None;
    }
    match status.operand() {
        OperandId::SEPT_TREE => Some(Operand::SeptTree),
        OperandId::RCX => Some(Operand::SeptEntry),
        OperandId::RDX => Some(Operand::Tdr),
        OperandId::TD_EPOCH => Some(Operand::TdEpoch),
        _ => None,
    }
}
