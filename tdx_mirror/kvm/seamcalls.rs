// SPDX-License-Identifier: GPL-2.0

//! The SEAMCALLs of one TD, through KVM's hooks.

use kernel::sync::Arc;

use super::hooks::{Answer, Hooks};
use crate::base::addr::{PagePtr, Pfn};
use crate::base::level::Position;
use crate::base::td::Operand;
use crate::kernel::percpu::{self, Block};
use crate::kernel::tsc;
use crate::sept::SeptBackend;
use crate::tdx::leaf::Leaf;
use crate::tdx::seamcall::{SeamOut, Seamcall};
use crate::tdx::status::TdxStatus;
use crate::watch::trace;

/// The SEAMCALLs of one TD, through the hooks.
pub(crate) struct HookSeamcalls {
    hooks: Arc<Hooks>,
    counters: Arc<Block>,
    td: u32,
}

/// A SEAMCALL with what it is about.
#[derive(Clone, Copy)]
enum Call {
    Link(Position, PagePtr),
    Map(Position, Pfn),
    Block(Position),
    Track,
    Remove(Position),
    Wbinvd(Position, Pfn),
    Read(Position),
    ReclaimTable(PagePtr),
    ReclaimData(Position, Pfn),
}

/// What the event of a SEAMCALL says about it: the leaf, the entry and the address of the data page.
/// Of an S-EPT page nothing is asked, not even where it is.
type Described = (Leaf, Option<Position>, u64);

impl HookSeamcalls {
    /// The SEAMCALLs behind `hooks`, for the TD with the number `td`, counted in `counters`.
    pub(crate) fn new(hooks: Arc<Hooks>, counters: Arc<Block>, td: u32) -> Self {
        Self {
            hooks,
            counters,
            td,
        }
    }

    #[inline(always)]
    fn issue(&self, call: Call) -> Answer {
        match call {
            Call::Link(at, page) => self.hooks.link_external_spt(at, page),
            Call::Map(at, pfn) => self.hooks.set_external_spte(at, pfn),
            Call::Block(at) => self.hooks.block_external_spte(at),
            Call::Track => self.hooks.track_external(),
            Call::Remove(at) => self.hooks.remove_external_spte(at),
            Call::Wbinvd(at, pfn) => self.hooks.wbinvd_external_page(pfn, at.level()),
            Call::Read(at) => self.hooks.read_external_spte(at),
            Call::ReclaimTable(page) => self.hooks.free_external_spt(page),
            Call::ReclaimData(at, pfn) => self.hooks.reclaim_external_page(pfn, at.level()),
        }
    }

    fn describe(&self, call: Call) -> Described {
        match call {
            Call::Link(at, _) => (Leaf::MEM_SEPT_ADD, Some(at), 0),
            Call::Map(at, pfn) if self.hooks.is_finalized() => {
                (Leaf::MEM_PAGE_AUG, Some(at), pfn.pa())
            }
            Call::Map(at, pfn) => (Leaf::MEM_PAGE_ADD, Some(at), pfn.pa()),
            Call::Block(at) => (Leaf::MEM_RANGE_BLOCK, Some(at), 0),
            Call::Track => (Leaf::MEM_TRACK, None, 0),
            Call::Remove(at) => (Leaf::MEM_PAGE_REMOVE, Some(at), 0),
            Call::Wbinvd(at, pfn) => (Leaf::PHYMEM_PAGE_WBINVD, Some(at), pfn.pa()),
            Call::Read(at) => (Leaf::MEM_SEPT_RD, Some(at), 0),
            Call::ReclaimTable(_) => (Leaf::PHYMEM_PAGE_RECLAIM, None, 0),
            Call::ReclaimData(at, pfn) => (Leaf::PHYMEM_PAGE_RECLAIM, Some(at), pfn.pa()),
        }
    }

    /// Issues a SEAMCALL and tells of it.
    #[cold]
    #[inline(never)]
    fn traced(&self, call: Call) -> SeamOut {
        let begin = tsc::cycles();
        let answer = self.issue(call);
        let cycles = tsc::cycles().wrapping_sub(begin);
        let (leaf, at, pa) = self.describe(call);
        let (gpa, level) = trace::entry(at);
        let leaf = u32::from(leaf.as_u16());
        trace::seamcall::emit(self.td, leaf, gpa, level, pa, answer.status, cycles);
        seam_out(answer)
    }

    #[cold]
    #[inline(never)]
    fn traced_kick(&self) {
        let begin = tsc::cycles();
        self.hooks.kick_vcpus();
        let cycles = tsc::cycles().wrapping_sub(begin);
        trace::kick::emit(self.td, cycles);
    }
}

fn seam_out(answer: Answer) -> SeamOut {
    SeamOut {
        status: TdxStatus::new(answer.status),
        ext1: answer.ext1,
        ext2: answer.ext2,
        ext3: answer.ext3,
    }
}

/// Issues a SEAMCALL, and tells of it if somebody listens. A macro, so that nothing is put together
/// before the branch.
macro_rules! seamcall {
    ($self:ident, $call:expr) => {
        if trace::seamcall::is_on() {
            $self.traced($call)
        } else {
            seam_out($self.issue($call))
        }
    };
}

impl Seamcall for HookSeamcalls {
    fn mem_sept_add(&self, at: Position, page: PagePtr) -> SeamOut {
        seamcall!(self, Call::Link(at, page))
    }

    fn mem_page_map(&self, at: Position, pfn: Pfn) -> SeamOut {
        seamcall!(self, Call::Map(at, pfn))
    }

    fn mem_range_block(&self, at: Position) -> SeamOut {
        seamcall!(self, Call::Block(at))
    }

    fn mem_track(&self) -> SeamOut {
        let out = seamcall!(self, Call::Track);
        if trace::track::is_on() {
            trace::track::emit(self.td, out.status.raw());
        }
        out
    }

    fn mem_page_remove(&self, at: Position) -> SeamOut {
        seamcall!(self, Call::Remove(at))
    }

    fn phymem_page_wbinvd(&self, at: Position, pfn: Pfn) -> SeamOut {
        seamcall!(self, Call::Wbinvd(at, pfn))
    }

    fn mem_sept_rd(&self, at: Position) -> SeamOut {
        seamcall!(self, Call::Read(at))
    }

    fn phymem_page_reclaim(&self, page: PagePtr) -> SeamOut {
        seamcall!(self, Call::ReclaimTable(page))
    }

    fn phymem_data_reclaim(&self, at: Position, pfn: Pfn) -> SeamOut {
        seamcall!(self, Call::ReclaimData(at, pfn))
    }
}

impl SeptBackend for HookSeamcalls {
    type Count = percpu::Counter;

    fn counter(&self) -> percpu::Counter {
        // SAFETY: The S-EPT has its counters and this backend, which keeps the block.
        unsafe { self.counters.counter() }
    }

    fn counter_row<const N: usize>(&self) -> percpu::Row<N> {
        // SAFETY: As in `counter()`.
        unsafe { self.counters.row() }
    }

    fn kick_vcpus(&self) {
        if trace::kick::is_on() {
            return self.traced_kick();
        }
        self.hooks.kick_vcpus();
    }

    fn hold_vcpus(&self, hold: bool) {
        self.hooks.hold_vcpus(hold);
    }

    fn is_finalized(&self) -> bool {
        self.hooks.is_finalized()
    }

    fn is_hkid_assigned(&self) -> bool {
        self.hooks.is_hkid_assigned()
    }

    #[inline(always)]
    fn busy(&self, leaf: Leaf, at: Option<Position>, operand: Operand, left: u32) {
        if trace::busy::is_on() {
            trace::contended(self.td, leaf, at, operand, left);
        }
    }
}
