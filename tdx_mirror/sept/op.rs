// SPDX-License-Identifier: GPL-2.0

//! What the answer of a SEAMCALL means: done, contention that is legitimate there, or a bug.

use crate::base::td::{Operand, Phase};
use crate::mirror::external::ExtFailure;
use crate::tdx::leaf::Leaf;
use crate::tdx::seamcall::SeamOut;
use crate::tdx::status::{OperandId, TdxStatus};

/// The leaf, for the decoding of its busy operands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Link,
    Map,
    Block,
    Track,
    Remove,
    Wbinvd,
    Read,
    Reclaim,
}

/// Operations that there are.
pub const LEAVES: usize = 8;

/// Names of the operations, in the order in which they are counted.
pub const OPS: [&str; LEAVES] = [
    "sept_add",
    "page_map",
    "range_block",
    "track",
    "page_remove",
    "page_wbinvd",
    "sept_rd",
    "page_reclaim",
];

const _: () = assert!(Op::Link as usize == 0 && Op::Reclaim as usize == LEAVES - 1);

impl Op {
    const fn name(self) -> &'static str {
        match self {
            Self::Link => "TDH.MEM.SEPT.ADD",
            Self::Map => "TDH.MEM.PAGE.ADD/AUG",
            Self::Block => "TDH.MEM.RANGE.BLOCK",
            Self::Track => "TDH.MEM.TRACK",
            Self::Remove => "TDH.MEM.PAGE.REMOVE",
            Self::Wbinvd => "TDH.PHYMEM.PAGE.WBINVD",
            Self::Read => "TDH.MEM.SEPT.RD",
            Self::Reclaim => "TDH.PHYMEM.PAGE.RECLAIM",
        }
    }

    /// The leaf that the operation calls.
    pub(super) const fn leaf(self, phase: Phase) -> Leaf {
        match self {
            Self::Link => Leaf::MEM_SEPT_ADD,
            Self::Map if phase.is_run() => Leaf::MEM_PAGE_AUG,
            Self::Map => Leaf::MEM_PAGE_ADD,
            Self::Block => Leaf::MEM_RANGE_BLOCK,
            Self::Track => Leaf::MEM_TRACK,
            Self::Remove => Leaf::MEM_PAGE_REMOVE,
            Self::Wbinvd => Leaf::PHYMEM_PAGE_WBINVD,
            Self::Read => Leaf::MEM_SEPT_RD,
            Self::Reclaim => Leaf::PHYMEM_PAGE_RECLAIM,
        }
    }

    /// Whether the leaf works on one entry of the S-EPT, under the tree's lock and the entry's.
    const fn locks_entry(self) -> bool {
        matches!(
            self,
            Self::Link | Self::Map | Self::Block | Self::Remove | Self::Read
        )
    }

    /// The operand that `status` says is busy, if it is one that this leaf may find busy; any
    /// other answer that is not [done](Self::is_done) is a bug.
    pub(super) const fn contention(self, status: TdxStatus, phase: Phase) -> Option<Operand> {
        if matches!(self, Self::Track)
            && status.class().raw() == TdxStatus::PREVIOUS_TLB_EPOCH_BUSY.raw()
        {
            return Some(Operand::PreviousEpoch);
        }
        if !status.is_operand_busy() {
            return None;
        }
        match status.operand() {
            OperandId::SEPT_TREE if self.locks_entry() => Some(Operand::SeptTree),
            OperandId::RCX if self.locks_entry() => Some(Operand::SeptEntry),
            // BLOCK and TRACK are not called until the TD is built.
            OperandId::RDX if self.locks_entry() && !phase.is_run() => Some(Operand::Tdr),
            OperandId::TD_EPOCH if matches!(self, Self::Track) => Some(Operand::TdEpoch),
            _ => None,
        }
    }

    /// Whether the leaf reached what it is called for.
    pub(super) const fn is_done(self, status: TdxStatus) -> bool {
        status.is_success()
            // No error, bit 63 is clear: the entry is in the state that BLOCK leads to.
            || matches!(self, Self::Block)
                && status.class().raw() == TdxStatus::GPA_RANGE_ALREADY_BLOCKED.raw()
    }

    pub(super) const fn failure(self, out: SeamOut) -> ExtFailure {
        ExtFailure {
            op: self.name(),
            status: out.status.raw(),
            ext1: out.ext1,
            ext2: out.ext2,
            ext3: out.ext3,
        }
    }
}
