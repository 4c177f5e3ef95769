// SPDX-License-Identifier: GPL-2.0

//! What cannot be and what is left at the end: entries that something overwrote, changes that are
//! none, quarantined pages at the teardown, both accounts.

use std::sync::atomic::Ordering::SeqCst;
use tdx_mirror_host::base::addr::{Gfn, Pfn};
use tdx_mirror_host::base::level::{Level, Position};
use tdx_mirror_host::mirror::entry;
use tdx_mirror_host::mirror::error::{Bug, MapError, MapOutcome};
use tdx_mirror_host::mirror::spte::{IllegalTransition, Spte, SpteKind};
use tdx_mirror_host::mock::{
    status, Entry,
    Event::{self, Call},
    Mock,
};
use tdx_mirror_host::tdx::call::Kind;
use tdx_mirror_host::tdx::status::{OperandId, TdxStatus};
use tdx_mirror_host::vm::Td;

const FIXED: Result<MapOutcome, MapError> = Ok(MapOutcome::Fixed);

/// Maps GFN n to PFN n + 10000.
fn map_all(td: &Td, gfns: impl IntoIterator<Item = u64>) {
    for gfn in gfns {
        assert_eq!(td.map(gfn, gfn + 10_000), FIXED);
    }
    td.mock().clear_log();
}

fn pfn(n: u64) -> Pfn {
    Pfn::new(n).unwrap()
}

// Shows: R19.
#[test]
fn a_zap_that_meets_what_cannot_be() {
    for found in [
        Spte::FROZEN,
        Spte::blocked(pfn(99)),
        Spte::from_raw(0),
        Spte::from_raw(u64::MAX >> 1),
    ] {
        let td = Td::built();
        map_all(&td, 0..3);
        let at = td.poke(1, found);
        assert_eq!(td.zap(0, 3), 2, "the others go");
        let bugs = td.host().bugs();
        assert!(
            matches!(bugs[..], [Bug::Unexpected { at: where_, found: value }] if where_ == at && value == found),
            "{bugs:?}"
        );
        assert_eq!(td.mock().count(Call(Kind::RangeBlock)), 2);
        assert_eq!(td.mock().count(Call(Kind::PageRemove)), 2);
        // A blocked leaf is in doubt; nothing else is written over.
        let blocked = found == Spte::blocked(pfn(99));
        assert_eq!(td.host().holds(99), blocked);
        if blocked {
            assert_eq!(td.kind(1), SpteKind::Quarantined(pfn(99)));
        } else {
            assert_eq!(td.walk(1), Some((at, found)));
        }
    }
}

// Shows: R19.
#[test]
fn frozen_entry_at_a_batch_of_one_and_in_build() {
    for built in [true, false] {
        let td = Td::with_zap_batch(Level::L512G, Mock::new(Level::L512G), 1);
        td.mock().set_finalized(built);
        map_all(&td, 0..3);
        td.poke(1, Spte::FROZEN);
        assert_eq!(td.zap(0, 3), 2);
        assert!(matches!(td.host().bugs()[..], [Bug::Unexpected { .. }]));
    }
}

/// A TD whose leaf for GFN 5 has another bit, and whether it is a leaf of the same page still.
fn with_bit(bit: u32) -> (Td, bool) {
    let td = Td::built();
    map_all(&td, [5]);
    let new = Spte::from_raw(td.walk(5).unwrap().1.raw() ^ (1 << bit));
    td.poke(5, new);
    // Of the 64 bits, 40 are the PFN's, and without one of two it is no leaf at all.
    let same = new.kind(Level::L4K) == SpteKind::Leaf(pfn(10_005));
    assert_eq!(same, !matches!(bit, 11 | 63 | 12..52), "bit {bit}");
    (td, same)
}

// Shows: R28, R35, B30.
#[test]
fn no_bit_of_a_present_leaf_reaches_a_hook() {
    for bit in 0..64 {
        let (td, same) = with_bit(bit);
        let outcome = td.map(5, 10_005);
        assert!(td.mock().log().is_empty(), "bit {bit}: a hook was called");
        if same {
            assert_eq!(outcome, Ok(MapOutcome::Spurious), "bit {bit}");
            assert!(!td.mirror().is_bugged());
            continue;
        }
        assert_eq!(outcome, Err(MapError::Bugged), "bit {bit}");
        let wanted = match bit {
            11 | 63 => IllegalTransition::Malformed,
            _ => IllegalTransition::PfnChanged,
        };
        let bugs = td.host().bugs();
        assert!(
            matches!(bugs[..], [Bug::Transition { why, .. }] if why == wanted),
            "bit {bit}: {bugs:?}"
        );
    }
}

// Shows: R28, R35, B30.
#[test]
fn a_leaf_with_other_bits_is_removed_as_one_leaf() {
    for bit in 0..64 {
        let (td, same) = with_bit(bit);
        if !same {
            continue;
        }
        assert_eq!(td.zap(6, 7), 0);
        assert!(td.mock().log().is_empty(), "bit {bit}: a neighbour's zap");
        assert_eq!(td.zap(5, 6), 1);
        let calls: Vec<Event> = td.mock().log().into_iter().map(|(c, _)| c).collect();
        assert_eq!(
            calls,
            [
                Call(Kind::RangeBlock),
                Call(Kind::Track),
                Event::Kick,
                Call(Kind::PageRemove),
                Call(Kind::PageWbinvd)
            ],
            "bit {bit}"
        );
        assert!(!td.mirror().is_bugged());
        td.check_same(&[5]);
    }
}

// Shows: R35, B14.
#[test]
fn what_an_entry_is_decides_what_may_become_of_it() {
    let td = Td::built();
    map_all(&td, [5]);
    let leaf = Spte::leaf(pfn(7), Level::L4K);
    for found in [
        Spte::NON_PRESENT,
        Spte::FROZEN,
        leaf,
        Spte::from_raw(leaf.raw() | (3 << 8)),
        Spte::blocked(pfn(7)),
        Spte::quarantined(pfn(7)),
        Spte::from_raw(0),
    ] {
        let at = td.poke(5, found);
        td.exclusive(|x| {
            let slot = td.mirror().slot(x, Gfn::new(5).unwrap()).unwrap();
            let right = match (slot.entry(), found.kind(Level::L4K)) {
                (entry::Entry::NonPresent, SpteKind::NonPresent)
                | (entry::Entry::Stray, SpteKind::Frozen | SpteKind::Malformed) => true,
                (entry::Entry::Quarantined(page), SpteKind::Quarantined(_)) => page == pfn(7),
                (entry::Entry::Leaf(e), SpteKind::Leaf(_)) => {
                    e.pfn() == pfn(7) && e.at() == at && e.spte() == found
                }
                (entry::Entry::Blocked(e), SpteKind::Blocked(_)) => {
                    e.pfn() == pfn(7) && e.at() == at && e.spte() == found
                }
                _ => false,
            };
            assert!(right, "{found:?}");
        });
        assert_eq!(td.walk(5), Some((at, found)), "to look changes nothing");
    }
    assert!(td.mock().log().is_empty());
}

// Shows: R30.
#[test]
fn a_table_without_its_external_page_is_a_bug() {
    let td = Td::built();
    map_all(&td, [5]);
    assert_eq!(td.zap(5, 6), 1);
    let at = Position::covering(Gfn::new(5).unwrap(), Level::L2M);
    let Some(Entry::Table(page)) = td.mock().entry(at.level(), 5) else {
        panic!("no table");
    };
    td.host().lose_companion(page);
    td.teardown();
    let bugs = td.host().bugs();
    assert!(matches!(bugs[..], [Bug::NoEntry { at: where_ }] if where_ == at));
    assert_eq!(td.host().used_external(), 1, "nobody knows it any more");
    assert_eq!(td.host().deferred_pages(), 3);
    assert_eq!(td.host().accounted.load(SeqCst), 0);
}

// Shows: R41.
#[test]
fn teardown_meets_what_cannot_be() {
    for found in [Spte::FROZEN, Spte::from_raw(0), Spte::blocked(pfn(10_005))] {
        let td = Td::built();
        map_all(&td, [5]);
        let at = td.poke(5, found);
        td.teardown();
        let bugs = td.host().bugs();
        assert!(
            matches!(bugs[..], [Bug::Unexpected { at: where_, found: value }] if where_ == at && value == found)
        );
        let blocked = found != Spte::FROZEN && found != Spte::from_raw(0);
        assert_eq!(
            td.mock().count(Call(Kind::ReclaimData)),
            usize::from(blocked)
        );
        assert_eq!(td.mirror().stats().resolved.get(), u64::from(blocked));
        assert_eq!(td.host().used_external(), 0, "the tables go all the same");
    }
}

// Shows: B33.
#[test]
fn quarantined_pages_wait_for_the_hkid() {
    let td = Td::built();
    map_all(&td, 0..8);
    td.mock()
        .fail(Call(Kind::PageRemove), 0, 8, TdxStatus::TD_FATAL);
    assert_eq!(td.zap(0, 8), 0);
    td.mock().clear_log();
    // Too early: no call, all is leaked and none let go of.
    td.exclusive(|x| td.mirror().teardown(x));
    assert_eq!(td.mock().count(Call(Kind::ReclaimData)), 0);
    assert_eq!(td.mirror().stats().leaked.get(), 8 + 3);
    assert_eq!(td.host().held_pages().len(), 8);
    let failed = TdxStatus::LIFECYCLE_STATE_INCORRECT.raw();
    for leak in td.host().leaks() {
        use tdx_mirror_host::mirror::error::Leak;
        let (Leak::Data { failure, .. } | Leak::SeptTable { failure, .. }) = leak;
        assert_eq!(failure.status, failed);
        assert_eq!(failure.op, "TDH.PHYMEM.PAGE.RECLAIM");
    }
}

// Shows: R9, R11, B14.
#[test]
fn each_quarantined_page_is_tried_once() {
    for bad in [
        TdxStatus::OPERAND_BUSY.with_operand(OperandId::TDR),
        TdxStatus::OPERAND_BUSY.with_operand(OperandId::RCX),
        TdxStatus::PAGE_METADATA_INCORRECT.with_operand(OperandId::RCX),
    ] {
        let td = Td::built();
        map_all(&td, 0..8);
        td.mock()
            .fail(Call(Kind::PageRemove), 2, 3, TdxStatus::TD_FATAL);
        assert_eq!(td.zap(0, 8), 5);
        td.mock().clear_log();
        td.mock().fail(Call(Kind::ReclaimData), 1, 1, bad);
        td.teardown();
        assert_eq!(td.mock().count(Call(Kind::ReclaimData)), 3, "{bad:?}");
        let stats = td.mirror().stats();
        assert_eq!((stats.quarantined.get(), stats.resolved.get()), (3, 2));
        assert_eq!(stats.leaked.get(), 1);
        assert_eq!(td.host().held_pages(), [10_003]);
        let calls = td.mirror().external().stats();
        assert_eq!(td.made(Kind::ReclaimData), 3);
        assert_eq!(td.made(Kind::ReclaimTable), 3);
        assert_eq!((calls.busy.get(), calls.giveups.get()), (0, 0));
        let text = format!("{:?}", td.host().leaks()[0]);
        let wanted = format!(
            "pfn 0x2713 of gfn 0x3 at L4K, TDH.PHYMEM.PAGE.RECLAIM answered {:#018x}: \
             page type 0x0, owner 0x0, size 0",
            bad.raw()
        );
        assert_eq!(text, wanted);
    }
}

// Shows: R21.
#[test]
fn both_accounts_after_each_step() {
    let td = Td::built();
    let both = |tables: u64| {
        let stats = td.mirror().stats();
        assert_eq!(stats.tables.get(), tables + 1);
        assert_eq!(stats.external_tables.get(), tables);
        assert_eq!(td.host().accounted.load(SeqCst), tables as i64 + 1);
        assert_eq!(td.host().accounted_external() as u64, tables);
    };
    both(0);
    assert_eq!(td.map(0, 1), FIXED);
    both(3);
    // A link that fails changes neither.
    td.mock().fail(Call(Kind::SeptAdd), 0, 5, status::TREE_BUSY);
    assert!(td.map(1 << 27, 2).is_ok());
    both(3);
    td.mock().clear_fails();
    assert_eq!(td.map(1 << 27, 2), FIXED);
    both(6);
    assert_eq!(td.zap(0, 1 << 36), 2);
    both(6);
    // What is lost leaves both accounts as well.
    td.mock()
        .fail(Call(Kind::ReclaimTable), 2, 2, status::METADATA);
    td.teardown();
    let stats = td.mirror().stats();
    assert_eq!((stats.tables.get(), stats.external_tables.get()), (0, 0));
    assert_eq!(td.host().accounted.load(SeqCst), 0);
    assert_eq!(td.host().accounted_external(), 0);
    assert_eq!(td.host().used_external(), 2);
    assert_eq!(stats.leaked.get(), 2);
}
