// SPDX-License-Identifier: GPL-2.0

//! The table of SEAMCALLs, and what the events say of the same calls.

use std::collections::BTreeMap;

use tdx_mirror_host::base::addr::{Gfn, PagePtr, Pfn};
use tdx_mirror_host::base::level::{Level, Position};
use tdx_mirror_host::base::td::{Operand, Phase};
use tdx_mirror_host::tdx::call::{Call, Kind, FIGURES, KINDS};
use tdx_mirror_host::tdx::leaf::Leaf;
use tdx_mirror_host::tdx::status::{OperandId, TdxStatus};

const EVENTS: &str = include_str!("../../../../tdx_mirror/watch/events.h");

/// The pairs `{ number, "name" }` of a macro of the events.
fn pairs(name: &str) -> BTreeMap<usize, String> {
    let (_, list) = EVENTS.split_once(&format!("#define {name}")).expect(name);
    let list = list.lines().scan(true, |more, line| {
        std::mem::replace(more, line.ends_with('\\')).then_some(line)
    });
    list.filter_map(|line| line.split_once("{ ")?.1.split_once(", \""))
        .map(|(number, rest)| {
            let (name, _) = rest.split_once('"').expect("a string");
            (number.parse().expect("a number"), name.to_owned())
        })
        .collect()
}

#[test]
fn figures_list_calls_in_this_order() {
    let labels = [
        "sept_add",
        "page_map",
        "range_block",
        "track",
        "page_remove",
        "page_wbinvd",
        "sept_rd",
        "page_reclaim",
    ];
    assert_eq!(FIGURES, labels);
    // Each label has a call, each call one of the labels, in the same order.
    let mut seen: Vec<usize> = KINDS.iter().map(|kind| kind.figure()).collect();
    assert!(seen.is_sorted());
    seen.dedup();
    assert_eq!(seen, Vec::from_iter(0..FIGURES.len()));
}

#[test]
fn the_trace_names_all_leaves() {
    let named = pairs("TDX_MIRROR_TRACE_LEAVES");
    let leaves = (0..=u16::MAX).filter_map(|number| {
        let name = Leaf::new(number).name()?.strip_prefix("TDH.")?;
        Some((usize::from(number), name.to_owned()))
    });
    assert_eq!(named, leaves.collect());
    // Those of the table are among them.
    for kind in KINDS {
        let number = usize::from(kind.leaf().as_u16());
        assert_eq!(
            named.get(&number).map(String::as_str),
            kind.name().strip_prefix("TDH.")
        );
    }
}

#[test]
fn the_trace_names_the_operands() {
    let none = (0, "none".to_owned());
    let operands = Operand::ALL.map(|operand| (operand.index() + 1, operand.label().to_owned()));
    let all = [none].into_iter().chain(operands).collect();
    assert_eq!(pairs("TDX_MIRROR_TRACE_OPERANDS"), all);
    for (index, operand) in Operand::ALL.into_iter().enumerate() {
        assert_eq!(operand.index(), index);
    }
}

// Shows: R14.
#[test]
fn each_call_has_its_own_contention() {
    use Operand::{Other, PreviousEpoch, SeptEntry, SeptTree, TdEpoch, Tdr};
    let busy = |id| TdxStatus::OPERAND_BUSY.with_operand(id);
    let answers = [
        busy(OperandId::SEPT_TREE),
        busy(OperandId::RCX),
        busy(OperandId::TD_EPOCH),
        TdxStatus::PREVIOUS_TLB_EPOCH_BUSY,
        busy(OperandId::RDX),
        // In no row: contention wherever there may be any.
        busy(OperandId::RAX),
        busy(OperandId::R8),
        busy(OperandId::TDR),
        busy(OperandId::OP_STATE),
        busy(OperandId::KOT),
        // Never contention.
        TdxStatus::SYS_BUSY,
        TdxStatus::OPERAND_INVALID.with_operand(OperandId::RCX),
        TdxStatus::OPERAND_BUSY_HOST_PRIORITY.with_operand(OperandId::RCX),
    ];
    let may = |kind: Kind, phase| -> Vec<Operand> {
        let busy = |status| kind.contention(status, phase);
        answers.into_iter().filter_map(busy).collect()
    };
    let o = Other;
    let build = vec![SeptTree, SeptEntry, o, Tdr, o, o, o, o, o];
    let run = vec![SeptTree, SeptEntry, o, o, o, o, o, o, o];
    let track = vec![o, o, TdEpoch, PreviousEpoch, o, o, o, o, o, o];
    for (kind, in_build, in_run) in [
        (Kind::SeptAdd, &build, &run),
        (Kind::PageAdd, &build, &vec![]),
        (Kind::PageAug, &vec![], &run),
        (Kind::RangeBlock, &vec![], &run),
        (Kind::Track, &vec![], &track),
        (Kind::PageRemove, &build, &run),
        (Kind::PageWbinvd, &vec![], &vec![]),
        (Kind::SeptRd, &build, &run),
        (Kind::ReclaimTable, &vec![], &vec![]),
        (Kind::ReclaimData, &vec![], &vec![]),
    ] {
        assert_eq!(&may(kind, Phase::Build), in_build, "{kind:?}");
        assert_eq!(&may(kind, Phase::Run), in_run, "{kind:?}");
    }
}

#[test]
fn a_leaf_that_is_blocked_already_is_done_for_block_alone() {
    for kind in KINDS {
        assert!(kind.is_done(TdxStatus::SUCCESS, 7));
        let blocked = TdxStatus::GPA_RANGE_ALREADY_BLOCKED.with_operand(OperandId::RCX);
        assert_eq!(
            kind.is_done(blocked, 7),
            *kind == Kind::RangeBlock,
            "{kind:?}"
        );
        assert!(!kind.is_done(TdxStatus::PAGE_ALREADY_ACCEPTED, 0));
        assert!(!kind.is_done(TdxStatus::OPERAND_BUSY, 0));
    }
}

#[test]
fn a_page_without_a_type_is_no_page_of_the_tdx_modules() {
    let incorrect = TdxStatus::PAGE_METADATA_INCORRECT;
    for kind in KINDS {
        let data = *kind == Kind::ReclaimData;
        // The page may be another TD's, or of another size: then it has a type.
        for (operand, ext1, done) in [
            (OperandId::RCX, 0, data),
            (OperandId::RCX, 3, false),
            (OperandId::RDX, 0, false),
        ] {
            let status = incorrect.with_operand(operand);
            assert_eq!(
                kind.is_done(status, ext1),
                done,
                "{kind:?} {status:?} {ext1}"
            );
        }
    }
}

#[test]
fn what_has_ended_is_told_from_a_mistake() {
    for (status, ended) in [
        (TdxStatus::TD_FATAL, true),
        (TdxStatus::NON_RECOVERABLE_TD, true),
        (TdxStatus::SYS_SHUTDOWN, true),
        (TdxStatus::SYS_SHUTDOWN.with_operand(OperandId::RCX), true),
        (TdxStatus::SUCCESS, false),
        (TdxStatus::NON_RECOVERABLE_VCPU, false),
        (TdxStatus::SYS_NOT_READY, false),
        (TdxStatus::OP_STATE_INCORRECT, false),
        (TdxStatus::OPERAND_BUSY, false),
    ] {
        assert_eq!(status.is_ended(), ended, "{status:?}");
    }
}

#[test]
fn a_call_says_what_it_is_about() {
    let at = Position::covering(Gfn::new(0x1234).unwrap(), Level::L4K);
    let pfn = Pfn::new(0x77).unwrap();
    let page = PagePtr::new(std::ptr::without_provenance_mut(0x4000)).unwrap();
    for (call, leaf, entry, data) in [
        (
            Call::SeptAdd { at, page },
            Leaf::MEM_SEPT_ADD,
            Some(at),
            None,
        ),
        (
            Call::PageAdd { at, pfn },
            Leaf::MEM_PAGE_ADD,
            Some(at),
            Some(pfn),
        ),
        (
            Call::PageAug { at, pfn },
            Leaf::MEM_PAGE_AUG,
            Some(at),
            Some(pfn),
        ),
        (
            Call::RangeBlock { at },
            Leaf::MEM_RANGE_BLOCK,
            Some(at),
            None,
        ),
        (Call::Track {}, Leaf::MEM_TRACK, None, None),
        (
            Call::PageRemove { at },
            Leaf::MEM_PAGE_REMOVE,
            Some(at),
            None,
        ),
        (
            Call::PageWbinvd { at, pfn },
            Leaf::PHYMEM_PAGE_WBINVD,
            Some(at),
            Some(pfn),
        ),
        (Call::SeptRd { at }, Leaf::MEM_SEPT_RD, Some(at), None),
        (
            Call::ReclaimTable { page },
            Leaf::PHYMEM_PAGE_RECLAIM,
            None,
            None,
        ),
        (
            Call::ReclaimData { at, pfn },
            Leaf::PHYMEM_PAGE_RECLAIM,
            Some(at),
            Some(pfn),
        ),
    ] {
        assert_eq!(call.kind().leaf(), leaf);
        assert_eq!((call.entry(), call.page()), (entry, data), "{call:?}");
    }
}
