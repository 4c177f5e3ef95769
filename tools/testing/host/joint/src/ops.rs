// SPDX-License-Identifier: GPL-2.0

//! Random operations.

use proptest::prelude::*;
use tdx_mirror_host::mock::{
    status,
    Event::{self, Call},
};
use tdx_mirror_host::tdx::call::Kind;
use tdx_mirror_host::tdx::status::TdxStatus;

/// GFNs around the edges of tables of each level.
pub const GFNS: [u64; 16] = [
    0,
    2,
    510,
    511,
    512,
    513,
    1023,
    0x3_ffff,
    0x4_0000,
    0x4_0001,
    0x4_0200,
    0x7ff_ffff,
    0x800_0000,
    0x800_0200,
    0x7_ffff_fffe,
    0x7_ffff_ffff,
];

/// Memslots: the GFNs of each by index, half-open.
pub const SLOTS: [(usize, usize); 3] = [(0, 5), (5, 11), (11, 16)];

/// Which page a map is to map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Page {
    /// The one that guest_memfd has for the GFN.
    Backing,
    /// One that belongs to nothing.
    Other,
    /// The one of another GFN.
    Of(usize),
}

/// One operation on a TD.  GFNs are given by their index in [`GFNS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// A fault on a private GPA, with a number of pages in the vCPU's caches.
    Map { gfn: usize, page: Page, cached: u32 },
    /// A map that can never be: of a GFN beyond the last, or of a large page.
    MapInvalid { large: bool },
    /// KVM_PRE_FAULT_MEMORY of some GFNs.
    Prefault { first: usize, count: usize },
    /// A hole in guest_memfd; its pages go back and others come.
    Zap {
        first: usize,
        pages: u64,
        may_yield: bool,
    },
    /// Private to shared, or back, of some GFNs.
    Convert {
        first: usize,
        count: usize,
        shared: bool,
    },
    /// A fault on a shared GPA.
    FaultShared { gfn: usize },
    /// The guest accepts a page; the fault is served if there is one.
    Accept { gfn: usize },
    /// A vCPU enters and stays until it is kicked.
    Enter,
    /// It is kicked.
    Leave,
    /// A memslot is deleted, with what is mapped in it.
    DeleteSlot { slot: usize },
    /// It is made again.
    CreateSlot { slot: usize },
    /// TDH.MR.FINALIZE.
    Finalize,
    /// The TD ends and another begins.
    Reboot,
}

/// What goes wrong during an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Calls of a kind are answered with a status and not made.
    Answer {
        call: Event,
        skip: u32,
        times: u32,
        status: TdxStatus,
    },
    /// The lock of an S-EPT entry of `gfn` is held for some calls, or until a kick: of the leaf's
    /// entry, or the deepest one above it.
    Locked { gfn: usize, calls: u32 },
}

/// A step: an operation, and what goes wrong.
pub type Step = (Op, Option<Fault>);

fn gfn() -> impl Strategy<Value = usize> {
    0..GFNS.len()
}

fn op() -> impl Strategy<Value = Op> {
    let page = prop_oneof![
        150 => Just(Page::Backing),
        1 => Just(Page::Other),
        1 => gfn().prop_map(Page::Of),
    ];
    let cached = prop_oneof![20 => Just(u32::MAX), 1 => 0u32..3];
    let pages = prop_oneof![
        24 => 1u64..4,
        8 => Just(512u64),
        1 => Just(1 << 20),
        1 => Just(1 << 35)
    ];
    prop_oneof![
        30 => (gfn(), page, cached).prop_map(|(gfn, page, cached)| Op::Map { gfn, page, cached }),
        1 => any::<bool>().prop_map(|large| Op::MapInvalid { large }),
        3 => (gfn(), 1usize..6).prop_map(|(first, count)| Op::Prefault { first, count }),
        12 => (gfn(), pages, any::<bool>())
            .prop_map(|(first, pages, may_yield)| Op::Zap { first, pages, may_yield }),
        8 => (gfn(), 1usize..4, proptest::bool::weighted(0.3))
            .prop_map(|(first, count, shared)| Op::Convert { first, count, shared }),
        6 => gfn().prop_map(|gfn| Op::FaultShared { gfn }),
        12 => gfn().prop_map(|gfn| Op::Accept { gfn }),
        2 => Just(Op::Enter),
        1 => Just(Op::Leave),
        2 => (0..SLOTS.len()).prop_map(|slot| Op::DeleteSlot { slot }),
        10 => (0..SLOTS.len()).prop_map(|slot| Op::CreateSlot { slot }),
        8 => Just(Op::Finalize),
        1 => Just(Op::Reboot),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    let call = prop_oneof![
        3 => Just(Call(Kind::SeptAdd)),
        4 => Just(Call(Kind::PageAug)),
        3 => Just(Call(Kind::RangeBlock)),
        3 => Just(Call(Kind::Track)),
        3 => Just(Call(Kind::PageRemove)),
        1 => Just(Call(Kind::PageWbinvd)),
        1 => Just(Call(Kind::ReclaimTable)),
        1 => Just(Call(Kind::ReclaimData)),
        2 => Just(Call(Kind::SeptRd)),
    ];
    let status = prop_oneof![
        16 => Just(status::TREE_BUSY),
        16 => Just(status::ENTRY_BUSY),
        5 => Just(status::EPOCH_BUSY),
        5 => Just(TdxStatus::PREVIOUS_TLB_EPOCH_BUSY),
        1 => Just(status::TDR_BUSY),
        1 => Just(status::STATE_INCORRECT),
        1 => Just(TdxStatus::TD_FATAL),
    ];
    let times = prop_oneof![3 => Just(1u32), 3 => 2u32..12, 1 => Just(u32::MAX)];
    let calls = prop_oneof![2 => 1u32..5, 2 => 5u32..14, 1 => Just(u32::MAX)];
    prop_oneof![
        2 => (call, 0u32..3, times, status).prop_map(|(call, skip, times, status)| Fault::Answer {
            call,
            skip,
            times,
            status,
        }),
        1 => (gfn(), calls).prop_map(|(gfn, calls)| Fault::Locked { gfn, calls }),
    ]
}

/// Sequences of `n` steps on average, one in five of which goes wrong.
pub fn steps(n: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = (op(), proptest::option::weighted(0.2, fault()));
    proptest::collection::vec(step, 1..2 * n)
}
