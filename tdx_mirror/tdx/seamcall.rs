// SPDX-License-Identifier: GPL-2.0

//! The SEAMCALLs that a mirror needs, one typed method per leaf.

use super::status::TdxStatus;
use crate::base::addr::{PagePtr, Pfn};
use crate::base::level::Position;

/// What a SEAMCALL answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeamOut {
    /// Completion status, RAX.
    pub status: TdxStatus,
    /// RCX, 0 if the leaf has no such output.
    pub ext1: u64,
    /// RDX, 0 if the leaf has no such output.
    pub ext2: u64,
    /// R8, 0 if the leaf has no such output.
    pub ext3: u64,
}

impl SeamOut {
    /// A status without outputs.
    pub const fn of(status: TdxStatus) -> Self {
        Self {
            status,
            ext1: 0,
            ext2: 0,
            ext3: 0,
        }
    }
}

/// One TD's SEAMCALLs.  Each method is one call: no retry, no sleep.
pub trait Seamcall {
    /// TDH.MEM.SEPT.ADD: `page` becomes the table below `at`.
    fn mem_sept_add(&self, at: Position, page: PagePtr) -> SeamOut;
    /// TDH.MEM.PAGE.AUG, or TDH.MEM.PAGE.ADD before the TD is finalized.
    fn mem_page_map(&self, at: Position, pfn: Pfn) -> SeamOut;
    /// TDH.MEM.RANGE.BLOCK.
    fn mem_range_block(&self, at: Position) -> SeamOut;
    /// TDH.MEM.TRACK.
    fn mem_track(&self) -> SeamOut;
    /// TDH.MEM.PAGE.REMOVE.
    fn mem_page_remove(&self, at: Position) -> SeamOut;
    /// TDH.PHYMEM.PAGE.WBINVD of the removed page that was mapped at `at`.
    fn phymem_page_wbinvd(&self, at: Position, pfn: Pfn) -> SeamOut;
    /// TDH.MEM.SEPT.RD: the entry in `ext1`, its level and state in `ext2`.
    fn mem_sept_rd(&self, at: Position) -> SeamOut;
    /// TDH.PHYMEM.PAGE.RECLAIM of an S-EPT page.
    fn phymem_page_reclaim(&self, page: PagePtr) -> SeamOut;
    /// TDH.PHYMEM.PAGE.RECLAIM of the data page that may still be mapped at `at`.
    fn phymem_data_reclaim(&self, at: Position, pfn: Pfn) -> SeamOut;
}
