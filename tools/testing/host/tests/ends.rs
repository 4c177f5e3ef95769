// SPDX-License-Identifier: GPL-2.0

//! What cannot be and what is left at the end: entries that something overwrote, changes that are
//! none, quarantined pages at the teardown, both accounts.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, OnceLock};
use tdx_mirror_host::base::addr::{Gfn, Pfn};
use tdx_mirror_host::base::level::{Level, Position};
use tdx_mirror_host::mirror::entry;
use tdx_mirror_host::mirror::error::{Bug, Leak, MapError, MapOutcome};
use tdx_mirror_host::mirror::mmu::HOLD_STRETCH;
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
        let failure = leak.failure().unwrap();
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
        TdxStatus::OPERAND_INVALID.with_operand(OperandId::RCX),
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

/// Calls of a teardown, and how many were made in each hold of mmu_lock.
fn teardown_holds(td: &Arc<OnceLock<Td>>) -> Vec<usize> {
    let made: Arc<Mutex<Vec<usize>>> = Arc::default();
    let calls = |td: &Td| {
        td.mock().count(Call(Kind::ReclaimTable)) + td.mock().count(Call(Kind::ReclaimData))
    };
    let (inner, seen) = (td.clone(), made.clone());
    let td = td.get().unwrap();
    td.host().on_yield(move || {
        let td = inner.get().unwrap();
        seen.lock().unwrap().push(calls(td));
        // Somebody reads meanwhile: each entry is a value of the mirror's.
        for gfn in (0..1 << 12).step_by(64) {
            assert!(!matches!(
                td.kind(gfn),
                SpteKind::Malformed | SpteKind::Frozen
            ));
        }
    });
    td.mock().clear_log();
    td.host().resched.store(u32::MAX, SeqCst);
    td.teardown();
    let mut made = made.lock().unwrap().clone();
    made.push(calls(td));
    made
}

fn shared(td: Td) -> Arc<OnceLock<Td>> {
    let cell = Arc::new(OnceLock::new());
    assert!(cell.set(td).is_ok());
    cell
}

// Shows: R41, R49.
#[test]
fn a_teardown_yields_every_few_tables() {
    for tables in [1, 15, 16, 17, 100] {
        let td = shared(Td::built());
        let gfns = (0..tables).map(|n| n * 512);
        map_all(td.get().unwrap(), gfns);
        assert_eq!(td.get().unwrap().zap(0, 1 << 36), tables);
        let made = teardown_holds(&td);
        let td = td.get().unwrap();
        // Each hold but the last makes exactly as many calls as it may.
        let all = tables as usize + 2;
        let stretch = HOLD_STRETCH as usize;
        let wanted: Vec<usize> = (1..=all / stretch)
            .map(|n| n * stretch)
            .chain([all])
            .collect();
        assert_eq!(made, wanted, "{tables} tables");
        assert_eq!(td.host().yields.load(SeqCst) as usize, all / stretch);
        assert_eq!(td.mock().early_reclaims(), 0);
        assert_eq!(td.host().used_external(), 0);
        assert_eq!(td.host().deferred_pages(), all);
        assert_eq!(td.host().accounted.load(SeqCst), 0);
        assert!(td.host().bugs().is_empty() && td.host().leaks().is_empty());
    }
}

// Shows: R41, R49.
#[test]
fn a_teardown_of_quarantined_leaves_yields_and_tries_each_once() {
    for leaves in [1u64, 16, 511, 512, 513, 1200] {
        let td = shared(Td::built());
        let inner = td.get().unwrap();
        map_all(inner, 0..leaves);
        inner
            .mock()
            .fail(Call(Kind::RangeBlock), 0, u32::MAX, TdxStatus::TD_FATAL);
        assert_eq!(inner.zap(0, 1 << 36), 0);
        assert_eq!(
            inner.host().ends.load(SeqCst),
            1,
            "one request to the vCPUs"
        );
        inner.mock().clear_fails();
        // One of them is lost, and not tried again behind a yield.
        inner
            .mock()
            .fail(Call(Kind::ReclaimData), 0, 1, TdxStatus::SYS_SHUTDOWN);
        let made = teardown_holds(&td);
        let td = td.get().unwrap();
        let stretch = HOLD_STRETCH as usize;
        for pair in made.windows(2) {
            assert!(pair[1] - pair[0] <= stretch, "{leaves}: {made:?}");
        }
        assert_eq!(td.made(Kind::ReclaimData), leaves);
        let stats = td.mirror().stats();
        assert_eq!((stats.resolved.get(), stats.leaked.get()), (leaves - 1, 1));
        assert_eq!(td.host().held_pages(), [10_000]);
        assert_eq!(td.host().used_external(), 0);
        assert_eq!(td.mock().early_reclaims(), 0);
    }
}

// Shows: R41.
#[test]
fn a_teardown_without_anybody_waiting_keeps_the_lock() {
    let td = Td::built();
    map_all(&td, (0..100).map(|n| n * 512));
    assert_eq!(td.zap(0, 1 << 36), 100);
    td.teardown();
    assert_eq!(td.host().yields.load(SeqCst), 0);
    assert_eq!(td.host().used_external(), 0);
}

// Shows: R41, B33.
#[test]
fn a_leaf_left_at_teardown_whose_page_is_free_is_not_held() {
    for refused in [false, true] {
        let td = Td::built();
        map_all(&td, [5]);
        td.host().free_page(10_005);
        if refused {
            td.mock()
                .fail(Call(Kind::ReclaimData), 0, 1, status::STATE_INCORRECT);
        }
        // Releasing a page that is not held is a failure of the host's.
        td.teardown();
        assert!(!td.host().holds(10_005));
        assert!(matches!(td.host().bugs()[..], [Bug::Unexpected { .. }]));
        let stats = td.mirror().stats();
        let lost = u64::from(refused);
        assert_eq!((stats.resolved.get(), stats.leaked.get()), (1 - lost, lost));
        assert_eq!(td.host().leaves.load(SeqCst), 0);
        assert_eq!(td.host().used_external(), 0);
    }
}

// Shows: B14.
#[test]
fn a_page_that_is_free_cannot_be_quarantined() {
    let td = Td::built();
    map_all(&td, 5..8);
    td.host().free_page(10_006);
    td.mock()
        .fail(Call(Kind::PageRemove), 0, 3, status::STATE_INCORRECT);
    assert_eq!(td.zap(5, 8), 0);
    assert_eq!(td.kind(6), SpteKind::NonPresent);
    assert_eq!(td.host().leaves.load(SeqCst), 0);
    let leaks = td.host().leaks();
    let [leak @ Leak::Freed { .. }] = leaks[..] else {
        panic!("{leaks:?}");
    };
    assert_eq!(
        format!("{leak:?}"),
        "pfn 0x2716 of gfn 0x6 at L4K is free while it is mapped"
    );
    td.teardown();
    let stats = td.mirror().stats();
    assert_eq!((stats.quarantined.get(), stats.resolved.get()), (2, 2));
    assert_eq!(stats.leaked.get(), 1);
    assert!(td.host().held_pages().is_empty());
}
