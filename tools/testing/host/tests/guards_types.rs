// SPDX-License-Identifier: GPL-2.0

//! The small types: limits, arithmetic and what a report prints of each.

use std::ptr::without_provenance_mut;
use tdx_mirror_host::base::addr::{Gfn, GfnRange, PagePtr, Pfn, FRAME_BITS, PAGE_SHIFT};
use tdx_mirror_host::base::level::{Level, Position, INDEX_BITS};
use tdx_mirror_host::base::stats::Counter;
use tdx_mirror_host::mirror::cell::SpteCell;
use tdx_mirror_host::mirror::external::{dropped_pages, ExtFailure, ExternalPage};
use tdx_mirror_host::mirror::spte::{
    IllegalTransition as Bad, KvmEncoding, Spte, SpteKind, Transition, FROZEN_VALUE,
    NONPRESENT_VALUE, PRESENT_MASK, SUPPRESS_VE,
};
use tdx_mirror_host::tdx::leaf::Leaf;
use tdx_mirror_host::tdx::seamcall::SeamOut;
use tdx_mirror_host::tdx::sept::{EntryInfo, SeptState};
use tdx_mirror_host::tdx::status::{OperandId, TdxStatus};

const LEVELS: [Level; 5] = [
    Level::L4K,
    Level::L2M,
    Level::L1G,
    Level::L512G,
    Level::L256T,
];

fn gfn(n: u64) -> Gfn {
    Gfn::new(n).unwrap()
}

fn pfn(n: u64) -> Pfn {
    Pfn::new(n).unwrap()
}

#[test]
fn frames_keep_their_number() {
    assert_eq!((FRAME_BITS, PAGE_SHIFT, INDEX_BITS), (40, 12, 9));
    for n in [0, 1, 0x1234_5678, (1 << 40) - 1] {
        assert_eq!(gfn(n).as_u64(), n);
        assert_eq!(gfn(n).gpa(), n * 4096);
        assert_eq!(pfn(n).as_u64(), n);
        assert_eq!(pfn(n).pa(), n * 4096);
        assert_eq!(Pfn::from_pa_bits(n << 12), pfn(n));
    }
    assert_eq!(Pfn::from_pa_bits(0xfff0_0000_0000_0fff), pfn(0));
    assert_eq!(Pfn::from_pa_bits(0x0008_0000_0000_1000), pfn((1 << 39) | 1));
    for n in [1 << 40, 1 << 63, u64::MAX] {
        assert_eq!(Gfn::new(n), None);
        assert_eq!(Pfn::new(n), None);
    }
}

#[test]
fn alignment_by_level() {
    assert!(gfn(0).is_aligned(Level::L256T));
    assert!(gfn(511).is_aligned(Level::L4K));
    assert!(!gfn(511).is_aligned(Level::L2M));
    assert!(gfn(512).is_aligned(Level::L2M));
    assert!(!gfn(512).is_aligned(Level::L1G));
    for (i, level) in LEVELS.into_iter().enumerate() {
        let span = 512u64.pow(i as u32);
        assert_eq!(level.low_mask(), span - 1);
        assert_eq!(level.gfn_bits(), 9 * (i as u32 + 1));
        let n = (3 * span + span / 2).min((1 << 40) - 1);
        assert_eq!(gfn(n).align_down(level).as_u64(), n / span * span);
        assert_eq!(level.index(gfn(n)), (n / span % 512) as usize);
        let at = Position::covering(gfn(n), level);
        assert_eq!((at.gfn(), at.level()), (gfn(n / span * span), level));
    }
}

#[test]
fn ranges_at_their_limits() {
    let top = 1 << 40;
    assert_eq!(GfnRange::new(5, 5), None);
    assert_eq!(GfnRange::new(6, 5), None);
    assert_eq!(GfnRange::new(0, top + 1), None);
    assert_eq!(GfnRange::new(top, top), None);
    let all = GfnRange::new(0, top).unwrap();
    assert_eq!((all.start(), all.end()), (0, top));
    assert!(all.contains_entry(gfn(top - 1), Level::L4K));
    let r = GfnRange::new(3, 9).unwrap();
    assert_eq!((r.start(), r.end()), (3, 9));
    assert_eq!(r.below(3), None);
    assert_eq!(r.below(4), GfnRange::new(3, 4));
    assert_eq!(r.below(9), Some(r));
    assert_eq!(r.below(u64::MAX), Some(r));
    assert!(r.contains_entry(gfn(3), Level::L4K));
    assert!(r.contains_entry(gfn(8), Level::L4K));
    assert!(!r.contains_entry(gfn(9), Level::L4K));
    assert!(!r.contains_entry(gfn(2), Level::L4K));
}

// Shows: R51.
#[test]
fn encodings_by_their_bits() {
    assert_eq!(PRESENT_MASK, 0x800);
    assert_eq!(SUPPRESS_VE, 1 << 63);
    assert_eq!(NONPRESENT_VALUE, 0x8000_0000_0000_0000);
    assert_eq!(FROZEN_VALUE, 0x8000_0000_0000_01a0);
    assert_eq!(Spte::NON_PRESENT.raw(), NONPRESENT_VALUE);
    assert_eq!(Spte::FROZEN.raw(), FROZEN_VALUE);
    let p = pfn(0x1_2345);
    assert_eq!(Spte::leaf(p, Level::L4K).raw(), 0x8000_0000_1234_5837);
    assert_eq!(Spte::leaf(p, Level::L2M).raw(), 0x8000_0000_1234_58b7);
    assert_eq!(Spte::table(p).raw(), 0x8000_0000_1234_5807);
    assert_eq!(Spte::blocked(p).raw(), 0x8100_0000_1234_5000);
    assert_eq!(Spte::quarantined(p).raw(), 0x8200_0000_1234_5000);
    assert_eq!(
        KvmEncoding::OURS,
        KvmEncoding {
            present_mask: 0x800,
            frozen: FROZEN_VALUE,
            nonpresent: NONPRESENT_VALUE
        }
    );
}

// Shows: R51.
#[test]
fn a_value_without_suppress_ve_is_malformed() {
    let p = pfn(0x77);
    for (level, v) in [
        (Level::L4K, Spte::leaf(p, Level::L4K)),
        (Level::L2M, Spte::leaf(p, Level::L2M)),
        (Level::L1G, Spte::table(p)),
        (Level::L4K, Spte::blocked(p)),
        (Level::L4K, Spte::quarantined(p)),
        (Level::L4K, Spte::NON_PRESENT),
        (Level::L4K, Spte::FROZEN),
    ] {
        assert_ne!(v.kind(level), SpteKind::Malformed);
        let bad = Spte::from_raw(v.raw() & !SUPPRESS_VE);
        assert_eq!(bad.kind(level), SpteKind::Malformed, "{bad:?}");
    }
}

#[test]
fn a_malformed_value_is_neither_left_nor_taken() {
    let bad = Spte::from_raw(NONPRESENT_VALUE | 1);
    for (level, good) in [
        (Level::L4K, Spte::NON_PRESENT),
        (Level::L4K, Spte::leaf(pfn(3), Level::L4K)),
        (Level::L4K, Spte::blocked(pfn(3))),
        (Level::L2M, Spte::table(pfn(3))),
    ] {
        for (old, new) in [(good, bad), (bad, good)] {
            assert_eq!(
                Transition::classify(old, new, level),
                Err(Bad::Malformed),
                "{old:?} to {new:?}"
            );
        }
    }
}

#[test]
fn pages_are_opaque() {
    assert_eq!(PagePtr::new(std::ptr::null_mut()), None);
    let page = PagePtr::new(without_provenance_mut(0x5000)).unwrap();
    assert_eq!(page.as_ptr() as usize, 0x5000);
    // An address in the log would help an attacker of the kernel.
    assert_eq!(format!("{page:?}"), "page");
}

// Shows: B14.
#[test]
fn a_dropped_assigned_page_is_counted() {
    let page = |n: usize| PagePtr::new(without_provenance_mut(n << 12)).unwrap();
    let free = ExternalPage::new(page(1));
    assert_eq!(format!("{free:?}"), "free page");
    assert_eq!(free.operand(), page(1));
    let before = dropped_pages();
    let assigned = free.assigned();
    assert_eq!(format!("{assigned:?}"), "assigned page");
    assert_eq!(assigned.operand(), page(1));
    assert_eq!(assigned.reclaimed().into_page(), page(1));
    drop(ExternalPage::new(page(2)).assigned());
    // Other tests leak pages at the same time.
    assert!(dropped_pages() > before);
}

#[test]
fn counters_count() {
    let c = Counter::new();
    assert_eq!(c.get(), 0);
    c.inc();
    c.inc();
    c.inc();
    c.dec();
    assert_eq!(c.get(), 2);
}

#[test]
fn cells_hold_what_they_are_given() {
    let cell = SpteCell::new(Spte::table(pfn(9)));
    assert_eq!(cell.load().spte(), Spte::table(pfn(9)));
    assert_eq!(format!("{cell:?}"), "0x8000000000009807");
}

#[test]
fn reports_print_what_they_hold() {
    assert_eq!(format!("{:?}", gfn(0x1234)), "gfn 0x1234");
    assert_eq!(format!("{:?}", pfn(0x1234)), "pfn 0x1234");
    let at = Position::covering(gfn(0x1234), Level::L2M);
    assert_eq!(format!("{at:?}"), "gfn 0x1200 at L2M");
    assert_eq!(format!("{:?}", Spte::NON_PRESENT), "0x8000000000000000");
    let failure = ExtFailure {
        op: "TDH.MEM.PAGE.AUG",
        status: 0xc000_0b0d_0000_0001,
        ext1: 0x10,
        ext2: 0x20,
        ext3: 0x30,
    };
    assert_eq!(
        format!("{failure:?}"),
        "TDH.MEM.PAGE.AUG: 0xc0000b0d00000001, rcx 0x10, rdx 0x20, r8 0x30"
    );
}

#[test]
fn a_status_without_outputs() {
    let out = SeamOut::of(TdxStatus::TD_FATAL);
    assert_eq!(out.status, TdxStatus::TD_FATAL);
    assert_eq!((out.ext1, out.ext2, out.ext3), (0, 0, 0));
}

#[test]
fn statuses_keep_class_and_details() {
    let s = TdxStatus::new(0xc000_0100_1234_0008);
    assert_eq!(s.class(), TdxStatus::OPERAND_INVALID);
    assert_eq!(s.operand().as_u32(), 0x1234_0008);
    // The details are replaced, not mixed.
    assert_eq!(
        s.with_operand(OperandId::RDX).raw(),
        TdxStatus::OPERAND_INVALID.raw() | 2
    );
    assert_eq!(s.name(), Some("OPERAND_INVALID"));
    assert!(s.is_error());
    assert!(!TdxStatus::new(1).is_success());
    assert!(!TdxStatus::new(1).is_error());
    assert!(!TdxStatus::new(1 << 62).is_error());
    assert_eq!(TdxStatus::new(0x7777_0000_0000).name(), None);
    for (status, name) in [
        (TdxStatus::SUCCESS, "SUCCESS"),
        (TdxStatus::OPERAND_BUSY, "OPERAND_BUSY"),
        (
            TdxStatus::PREVIOUS_TLB_EPOCH_BUSY,
            "PREVIOUS_TLB_EPOCH_BUSY",
        ),
        (
            TdxStatus::EPT_ENTRY_STATE_INCORRECT,
            "EPT_ENTRY_STATE_INCORRECT",
        ),
    ] {
        assert_eq!(status.name(), Some(name));
        assert_eq!(format!("{status:?}"), name);
    }
}

#[test]
fn operands_print_their_names() {
    for (id, number, name) in [
        (OperandId::RAX, 0, "RAX"),
        (OperandId::RCX, 1, "RCX"),
        (OperandId::RDX, 2, "RDX"),
        (OperandId::R8, 8, "R8"),
        (OperandId::TDR, 0x80, "TDR"),
        (OperandId::SEPT_TREE, 0x92, "SEPT_TREE"),
        (OperandId::TD_EPOCH, 0xa9, "TD_EPOCH"),
        (OperandId::OP_STATE, 0xac, "OP_STATE"),
        (OperandId::KOT, 0xba, "KOT"),
    ] {
        assert_eq!(OperandId::new(number), id);
        assert_eq!(id.as_u32(), number);
        assert_eq!(format!("{id:?}"), name);
    }
}

#[test]
fn states_and_leaves_print_their_names() {
    for (state, code, name) in [
        (SeptState::FREE, 0, "FREE"),
        (SeptState::PENDING, 2, "PENDING"),
        (SeptState::NL_MAPPED, 0x84, "NL_MAPPED"),
    ] {
        assert_eq!(SeptState::new(code), state);
        assert_eq!(state.as_u8(), code);
        assert_eq!(format!("{state:?}"), name);
    }
    assert_eq!(Leaf::VP_ENTER.as_u16(), 0);
    assert_eq!(format!("{:?}", Leaf::MEM_TRACK), "TDH.MEM.TRACK");
    let info = EntryInfo::decode(5, 0x8_8402);
    assert_eq!((info.entry, info.level), (5, Some(Level::L1G)));
    assert_eq!(info.state, SeptState::NL_MAPPED);
}
