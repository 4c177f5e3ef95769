// SPDX-License-Identifier: GPL-2.0

//! Zaps of ranges: one TRACK for a batch, its bounds, and an error at each of its steps.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, OnceLock};
use tdx_mirror_host::base::addr::{Gfn, Pfn};
use tdx_mirror_host::base::level::{Level, Position};
use tdx_mirror_host::mirror::error::{Bug, MapError, MapOutcome};
use tdx_mirror_host::mirror::mmu::HOLD_STRETCH;
use tdx_mirror_host::mirror::mmu::{Config, ZAP_BATCH};
use tdx_mirror_host::mirror::spte::{Spte, SpteKind};
use tdx_mirror_host::mock::{
    status, Entry,
    Event::{self, Call},
    Mock,
};
use tdx_mirror_host::sept::ZAP_TRIES;
use tdx_mirror_host::tdx::call::{Call as SeamCall, Kind};
use tdx_mirror_host::tdx::seamcall::Seamcall;
use tdx_mirror_host::tdx::status::{OperandId, TdxStatus};
use tdx_mirror_host::vm::Td;

const FIXED: Result<MapOutcome, MapError> = Ok(MapOutcome::Fixed);

fn td(batch: u32) -> Td {
    Td::with_zap_batch(Level::L512G, Mock::new(Level::L512G), batch)
}

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

/// The calls, with equal ones in a row counted together.
fn runs(td: &Td) -> Vec<(Event, usize)> {
    let mut runs: Vec<(Event, usize)> = Vec::new();
    for (call, _) in td.mock().log() {
        match runs.last_mut() {
            Some((last, n)) if *last == call => *n += 1,
            _ => runs.push((call, 1)),
        }
    }
    runs
}

fn seamcalls(td: &Td) -> usize {
    let others = [Event::Kick, Event::Hold, Event::Release];
    td.mock()
        .log()
        .iter()
        .filter(|(c, _)| !others.contains(c))
        .count()
}

// Shows: R25.
#[test]
fn a_zap_of_512_pages_takes_1537_seamcalls() {
    let td = Td::built();
    map_all(&td, 0..512);
    td.mock().enter_guest();
    assert_eq!(td.zap(0, 512), 512);
    assert_eq!(seamcalls(&td), 1537);
    let log: Vec<_> = td.mock().log().into_iter().map(|(c, _)| c).collect();
    let (blocks, rest) = log.split_at(512);
    assert!(blocks.iter().all(|c| *c == Call(Kind::RangeBlock)));
    assert_eq!(rest[..2], [Call(Kind::Track), Event::Kick]);
    for pair in rest[2..].chunks(2) {
        assert_eq!(pair, [Call(Kind::PageRemove), Call(Kind::PageWbinvd)]);
    }
    let stats = td.mirror().external().stats();
    assert_eq!(stats.kicks.get(), 1);
    assert_eq!((td.made(Kind::RangeBlock), td.made(Kind::Track)), (512, 1));
    assert_eq!(
        (td.made(Kind::PageRemove), td.made(Kind::PageWbinvd)),
        (512, 512)
    );
    assert_eq!(td.mirror().stats().zap_batches.get(), 1);
    td.check_same(&(0..512).collect::<Vec<_>>());
}

// Shows: R25.
#[test]
fn the_rest_of_a_batch_has_a_track_of_its_own() {
    for (leaves, tracks) in [(1, 1), (511, 1), (512, 1), (513, 2), (1024, 2), (1025, 3)] {
        let td = Td::built();
        map_all(&td, 0..leaves);
        // More than is mapped: what is empty costs no SEAMCALL.
        assert_eq!(td.zap(0, 1 << 36), leaves);
        assert_eq!(td.mock().count(Call(Kind::Track)), tracks);
        assert_eq!(td.mock().count(Event::Kick), tracks);
        assert_eq!(seamcalls(&td), 3 * leaves as usize + tracks);
        assert_eq!(td.mirror().stats().zap_batches.get(), tracks as u64);
        td.check_same(&(0..leaves).collect::<Vec<_>>());
    }
}

// Shows: R25.
#[test]
fn a_batch_spans_tables_and_gaps() {
    let td = Td::built();
    let gfns = [3, 511, 512, 700, 1 << 18, 1 << 27, (1 << 36) - 1];
    map_all(&td, gfns);
    assert_eq!(td.zap(3, 1 << 36), 7);
    // 512 empty entries end a batch: 3, 511 and 512 are in the first, the others have their own.
    assert_eq!(td.mirror().stats().zap_batches.get(), 5);
    td.check_same(&gfns);

    // All in reach of one batch.
    let td = Td::built();
    let gfns = [500, 511, 512, 513, 600];
    map_all(&td, gfns);
    assert_eq!(td.zap(500, 601), 5);
    assert_eq!(td.mock().count(Call(Kind::Track)), 1);
    td.check_same(&gfns);
}

// Shows: R49.
#[test]
fn one_page_at_a_time() {
    let td = td(1);
    map_all(&td, 0..3);
    assert_eq!(td.zap(0, 512), 3);
    let page = [
        (Call(Kind::RangeBlock), 1),
        (Call(Kind::Track), 1),
        (Event::Kick, 1),
        (Call(Kind::PageRemove), 1),
        (Call(Kind::PageWbinvd), 1),
    ];
    assert_eq!(runs(&td), [page, page, page].concat());
    assert_eq!(td.mirror().stats().zap_batches.get(), 3);
    td.check_same(&[0, 1, 2]);
}

// Shows: R49.
#[test]
fn the_size_of_a_batch_is_a_parameter() {
    for batch in [0, 1, 2, 3, 7, 100, 511, 512, 513, u32::MAX] {
        let td = td(batch);
        let gfns: Vec<u64> = (0..600).collect();
        map_all(&td, gfns.iter().copied());
        assert_eq!(td.zap(0, 600), 600);
        let batch = batch.clamp(1, ZAP_BATCH) as usize;
        assert_eq!(td.mock().count(Call(Kind::Track)), 600usize.div_ceil(batch));
        assert_eq!(td.mock().count(Event::Kick), 600usize.div_ceil(batch));
        td.check_same(&gfns);
    }
    let config = Config::new(36, Level::L512G).unwrap();
    assert_eq!(config.zap_batch(), ZAP_BATCH);
    assert_eq!(config.with_zap_batch(0).zap_batch(), 1);
    assert_eq!(config.with_zap_batch(513).zap_batch(), ZAP_BATCH);
    assert_eq!(config.with_zap_batch(9).zap_batch(), 9);
}

// Shows: R25.
#[test]
fn before_finalize_there_is_no_block_and_no_track() {
    let td = Td::in_build();
    map_all(&td, 0..600);
    assert_eq!(td.zap(0, 600), 600);
    for call in [Call(Kind::RangeBlock), Call(Kind::Track), Event::Kick] {
        assert_eq!(td.mock().count(call), 0);
    }
    assert_eq!(seamcalls(&td), 1200);
    assert_eq!(td.mirror().stats().zap_batches.get(), 2);
    td.check_same(&(0..600).collect::<Vec<_>>());
}

// Shows: R49.
#[test]
fn nothing_is_half_done_when_the_lock_is_yielded() {
    let td: Arc<OnceLock<Td>> = Arc::default();
    td.set(Td::built()).unwrap();
    let gfns: Vec<u64> = (0..512).collect();
    let inner = td.clone();
    td.get().unwrap().host().on_yield(move || {
        let td = inner.get().unwrap();
        // Whole batches are gone, the rest is as it was, in both tables.
        let gone = td.host().yields.load(SeqCst) * u64::from(HOLD_STRETCH);
        for gfn in 0..512 {
            let entry = td.mock().entry(Level::L4K, gfn);
            if gfn < gone {
                assert_eq!((td.kind(gfn), entry), (SpteKind::NonPresent, None));
            } else {
                let (pfn, blocked) = (gfn + 10_000, None);
                assert_eq!(entry, Some(Entry::Leaf { pfn, blocked }));
                assert!(matches!(td.kind(gfn), SpteKind::Leaf(_)));
            }
        }
    });
    let td = td.get().unwrap();
    map_all(td, 0..512);
    td.host().resched.store(100, SeqCst);
    assert_eq!(td.zap_yielding(0, 512), 512);
    assert_eq!(td.host().yields.load(SeqCst), 31, "after all but the last");
    td.check_same(&gfns);
}

// Shows: R49.
#[test]
fn what_is_mapped_behind_a_yield_stays() {
    let td: Arc<OnceLock<Td>> = Arc::default();
    td.set(Td::with_zap_batch(Level::L512G, Mock::new(Level::L512G), 4))
        .unwrap();
    let inner = td.clone();
    td.get().unwrap().host().on_yield(move || {
        let td = inner.get().unwrap();
        // The lock is free now: another vCPU maps what is gone, and finds the rest mapped.
        // SAFETY: the zap lets go of the lock for the time of this call.
        let l = unsafe { tdx_mirror_host::mirror::lock::Shared::assume_held() };
        let map = |gfn, p| {
            let (gfn, p) = (Gfn::new(gfn).unwrap(), pfn(p));
            td.map_locked(&l, &mut td.caches(), gfn, p)
        };
        assert_eq!(map(0, 77), FIXED);
        assert_eq!(map(7, 10_007), Ok(MapOutcome::Spurious));
    });
    let td = td.get().unwrap();
    map_all(td, 0..8);
    td.host().resched.store(1, SeqCst);
    assert_eq!(td.zap_yielding(0, 8), 8);
    assert_eq!(td.kind(0), SpteKind::Leaf(pfn(77)), "the cursor went past");
    td.check_same(&(0..8).collect::<Vec<_>>());
}

// Shows: R49.
#[test]
fn a_sparse_range_yields_as_often_as_a_full_one() {
    // 512 leaves in 512 tables.
    let td = Td::built();
    let gfns: Vec<u64> = (0..512).map(|n| n * 512).collect();
    map_all(&td, gfns.iter().copied());
    td.host().resched.store(u32::MAX, SeqCst);
    assert_eq!(td.zap_yielding(0, 1 << 18), 512);
    let yields = td.host().yields.load(SeqCst);
    // 2^18 entries are looked at, 511 of 512 empty, and 512 empty ones end a batch.
    assert!((500..=512).contains(&yields), "{yields}");
    td.check_same(&gfns);
    // Nothing to zap at all, and none of the tables is there.
    let td = Td::built();
    map_all(&td, [0]);
    td.host().resched.store(u32::MAX, SeqCst);
    assert_eq!(td.zap_yielding(1 << 27, 1 << 36), 0);
    assert_eq!(td.host().yields.load(SeqCst), 0, "511 entries");
    assert!(td.mock().log().is_empty());
}

// Shows: R12.
#[test]
fn a_zap_without_leave_never_yields() {
    let td = td(1);
    map_all(&td, 0..64);
    td.host().resched.store(u32::MAX, SeqCst);
    assert_eq!(td.zap(0, 1 << 36), 64);
    assert_eq!(td.host().yields.load(SeqCst), 0);
    assert_eq!(td.host().resched.load(SeqCst), u32::MAX, "nor asks");
}

// Shows: R49.
#[test]
fn a_batch_ends_after_512_empty_entries() {
    // Between the two leaves lie 511 empty entries, or one more.
    for (other, batches) in [(512, 1), (513, 2)] {
        let td = Td::built();
        map_all(&td, [0, other]);
        assert_eq!(td.zap(0, other + 1), 2);
        assert_eq!(td.mirror().stats().zap_batches.get(), batches);
        assert_eq!(td.mock().count(Call(Kind::Track)) as u64, batches);
        // What follows the last leaf is a batch without a leaf: no TRACK, and it is none.
        let td = Td::built();
        map_all(&td, [0]);
        assert_eq!(td.zap(0, 1 << 36), 1);
        assert_eq!(td.mirror().stats().zap_batches.get(), 1);
    }
}

// Shows: R14.
#[test]
fn what_a_leaf_of_a_zap_cannot_find_busy_is_a_bug() {
    for (call, not_its) in [
        (Call(Kind::RangeBlock), TdxStatus::PREVIOUS_TLB_EPOCH_BUSY),
        (Call(Kind::PageRemove), TdxStatus::PREVIOUS_TLB_EPOCH_BUSY),
        (Call(Kind::Track), TdxStatus::SYS_BUSY),
        (Call(Kind::PageWbinvd), status::TREE_BUSY),
        (Call(Kind::PageWbinvd), status::ENTRY_BUSY),
        (Call(Kind::PageWbinvd), status::PAMT_BUSY),
    ] {
        for built in [true, false] {
            if !built && matches!(call, Call(Kind::RangeBlock) | Call(Kind::Track)) {
                continue;
            }
            let td = td(1);
            td.mock().set_finalized(built);
            map_all(&td, 0..2);
            td.mock().fail(call, 0, 1, not_its);
            assert_eq!(td.zap(0, 2), 1, "{call:?} {not_its:?}");
            assert_eq!(td.mock().count(call), 2, "no retry");
            assert!(td.mirror().is_bugged());
            let stats = td.mirror().external().stats();
            assert_eq!((stats.busy.get(), stats.giveups.get()), (0, 0));
            assert_eq!(td.mock().count(Event::Hold), 0);
        }
    }
}

// Shows: R14.
#[test]
fn a_zap_waits_for_what_it_is_not_known_to_find_busy() {
    for (call, busy) in [
        (Call(Kind::RangeBlock), status::EPOCH_BUSY),
        (Call(Kind::RangeBlock), status::PAMT_BUSY),
        (Call(Kind::PageRemove), status::EPOCH_BUSY),
        (Call(Kind::PageRemove), status::TDR_BUSY),
        (Call(Kind::Track), status::TREE_BUSY),
        (Call(Kind::Track), status::TDR_BUSY),
    ] {
        let td = td(1);
        map_all(&td, 0..2);
        td.mock().fail(call, 0, 1, busy);
        assert_eq!(td.zap(0, 2), 2, "{call:?} {busy:?}");
        assert_eq!(td.mock().count(call), 3, "one more try, with all vCPUs out");
        assert_eq!(td.mock().count(Event::Hold), 1);
        let Call(kind) = call else { unreachable!() };
        assert_eq!(td.mock().unlisted(), [(kind, busy)]);
        assert!(!td.mirror().is_bugged());
    }
    // Busy with all of them out too: the page is not given back, and the VM ends.
    let td = td(1);
    map_all(&td, 0..2);
    td.mock()
        .fail(Call(Kind::PageRemove), 0, ZAP_TRIES, status::PAMT_BUSY);
    assert_eq!(td.zap(0, 2), 1);
    assert!(td.mirror().is_bugged());
    assert!(matches!(
        td.host().bugs()[..],
        [Bug::External { failure, .. }] if failure.status == status::PAMT_BUSY.raw()
    ));
}

/// Statuses that no leaf may answer for contention.
fn fatal() -> [TdxStatus; 4] {
    [
        TdxStatus::TD_FATAL,
        status::STATE_INCORRECT,
        TdxStatus::SYS_BUSY,
        TdxStatus::OPERAND_INVALID.with_operand(OperandId::RCX),
    ]
}

/// Zaps eight leaves of which those in `lost` cannot be, and checks what is left.
fn expect_lost(td: &Td, lost: &[u64], bugs: usize, what: &str) {
    let gfns: Vec<u64> = (0..8).collect();
    assert_eq!(td.zap(0, 8), 8 - lost.len() as u64, "{what}");
    assert_eq!(td.host().bugs().len(), bugs, "{what}");
    assert!(td.mirror().is_bugged());
    assert!(!td.mock().holding(), "{what}: vCPUs may run");
    for gfn in 0..8 {
        let held = td.host().holds(gfn + 10_000);
        if lost.contains(&gfn) {
            assert_eq!(td.kind(gfn), SpteKind::Quarantined(pfn(gfn + 10_000)));
            assert!(held, "{what}: kept from the allocator");
        } else {
            assert_eq!(td.kind(gfn), SpteKind::NonPresent, "{what}: {gfn}");
            assert_eq!(td.mock().entry(Level::L4K, gfn), None, "{what}: {gfn}");
            assert!(!held, "{what}: {gfn}");
        }
        // No page comes to a GFN of the dead VM, and no bug of it is reported twice.
        assert_eq!(td.map(gfn, gfn + 10_000), Err(MapError::Bugged));
        assert_eq!(td.map(gfn, 5), Err(MapError::Bugged));
    }
    assert_eq!(td.host().bugs().len(), bugs, "{what}");
    td.check_same(&gfns);
    let stats = td.mirror().stats();
    assert_eq!(stats.quarantined.get(), lost.len() as u64);
    // A second zap leaves them alone.
    td.mock().clear_log();
    assert_eq!(td.zap(0, 1 << 36), 0);
    assert!(td.mock().log().is_empty());
    // The end gives all back: what the TDX module has, and what it has no more.
    let owned = lost.iter().filter(|g| td.mock().owns(*g + 10_000)).count();
    td.teardown();
    assert_eq!(stats.resolved.get(), lost.len() as u64);
    assert_eq!(stats.leaked.get(), 0);
    assert!(td.host().held_pages().is_empty());
    assert_eq!(td.host().ends.load(SeqCst), 1, "{what}: ended once");
    assert_eq!(td.host().used_external(), 0);
    assert_eq!(td.mock().leaves().len(), owned, "as the TD ended");
}

// Shows: R25, R41.
#[test]
fn an_error_at_each_leaf_of_a_batch() {
    for call in [
        Call(Kind::RangeBlock),
        Call(Kind::PageRemove),
        Call(Kind::PageWbinvd),
    ] {
        for bad in fatal() {
            for k in 0..8 {
                let td = Td::built();
                map_all(&td, 0..8);
                td.mock().fail(call, k, 1, bad);
                let what = format!("{call:?} of leaf {k} answers {bad:?}");
                let blocks = if call == Call(Kind::RangeBlock) { 7 } else { 8 };
                expect_lost(&td, &[u64::from(k)], 1, &what);
                let stats = td.mirror().external().stats();
                assert_eq!(td.made(Kind::RangeBlock), 8, "{what}: no retry");
                assert_eq!(td.made(Kind::PageRemove), blocks, "{what}");
                assert_eq!(td.made(Kind::Track), 1, "{what}");
                assert_eq!(stats.kicks.get(), 1, "{what}");
                let bugs = td.host().bugs();
                assert!(matches!(bugs[..], [Bug::External { at, failure }]
                    if at.gfn().as_u64() == u64::from(k) && failure.status == bad.raw()));
            }
        }
    }
}

// Shows: R25, R41.
#[test]
fn no_leaf_can_be_blocked() {
    let td = Td::built();
    map_all(&td, 0..8);
    td.mock()
        .fail(Call(Kind::RangeBlock), 0, 8, TdxStatus::TD_FATAL);
    expect_lost(&td, &[0, 1, 2, 3, 4, 5, 6, 7], 8, "all");
    let stats = td.mirror().external().stats();
    assert_eq!(td.made(Kind::Track), 0, "nothing to track");
    assert_eq!(td.made(Kind::PageRemove), 0);
    assert_eq!(stats.kicks.get(), 0);
    assert_eq!(td.mirror().stats().zap_batches.get(), 1);
}

// Shows: R25, R41.
#[test]
fn a_failed_track_quarantines_what_is_blocked() {
    for bad in fatal() {
        let td = Td::built();
        map_all(&td, 0..8);
        // One leaf is not even blocked.
        td.mock().fail(Call(Kind::RangeBlock), 3, 1, bad);
        td.mock().fail(Call(Kind::Track), 0, 1, bad);
        expect_lost(&td, &[0, 1, 2, 3, 4, 5, 6, 7], 2, "track");
        assert_eq!(td.made(Kind::PageRemove), 0);
        assert_eq!(td.made(Kind::Track), 1);
        let bugs = td.host().bugs();
        assert!(matches!(bugs[1], Bug::External { at, failure }
            if at.gfn().as_u64() == 0 && failure.op == "TDH.MEM.TRACK"));
    }
    // The next batch has its own luck.
    let td = td(4);
    map_all(&td, 0..8);
    td.mock().fail(Call(Kind::Track), 0, 1, TdxStatus::SYS_BUSY);
    expect_lost(&td, &[0, 1, 2, 3], 1, "first batch");
}

// Shows: R25, R41.
#[test]
fn an_error_before_finalize() {
    for call in [Call(Kind::PageRemove), Call(Kind::PageWbinvd)] {
        for k in 0..8 {
            let td = Td::in_build();
            map_all(&td, 0..8);
            td.mock().fail(call, k, 1, TdxStatus::TD_FATAL);
            expect_lost(&td, &[u64::from(k)], 1, "build");
        }
    }
}

// Shows: R26.
#[test]
fn each_seamcall_of_a_batch_may_be_busy_once() {
    for (call, busy) in [
        (Call(Kind::RangeBlock), status::TREE_BUSY),
        (Call(Kind::RangeBlock), status::ENTRY_BUSY),
        (Call(Kind::Track), status::EPOCH_BUSY),
        (Call(Kind::Track), TdxStatus::PREVIOUS_TLB_EPOCH_BUSY),
        (Call(Kind::PageRemove), status::TREE_BUSY),
        (Call(Kind::PageRemove), status::ENTRY_BUSY),
    ] {
        let leaves = if call == Call(Kind::Track) { 1 } else { 8 };
        for k in 0..leaves {
            let td = Td::built();
            map_all(&td, 0..8);
            td.mock().enter_guest();
            td.mock().fail(call, k, 1, busy);
            assert_eq!(td.zap(0, 8), 8, "{call:?} {busy:?}");
            assert!(td.host().bugs().is_empty());
            let stats = td.mirror().external().stats();
            assert_eq!((stats.busy.get(), stats.retries.get()), (1, 1));
            assert_eq!(stats.giveups.get(), 0);
            assert_eq!(stats.kicks.get(), 2, "one for the retry, one after TRACK");
            assert_eq!(td.mock().count(Event::Hold), 1);
            assert_eq!(td.mock().count(Event::Release), 1);
            assert_eq!(td.mock().marks(), 0);
            td.check_same(&(0..8).collect::<Vec<_>>());
        }
    }
}

// Shows: R26, B7.
#[test]
fn busy_with_all_vcpus_out_is_a_bug() {
    for (call, busy) in [
        (Call(Kind::RangeBlock), status::TREE_BUSY),
        (Call(Kind::RangeBlock), status::ENTRY_BUSY),
        (Call(Kind::Track), status::EPOCH_BUSY),
        (Call(Kind::Track), TdxStatus::PREVIOUS_TLB_EPOCH_BUSY),
        (Call(Kind::PageRemove), status::ENTRY_BUSY),
    ] {
        let td = Td::built();
        map_all(&td, 0..8);
        td.mock().fail(call, 0, ZAP_TRIES, busy);
        let all: &[u64] = &[0, 1, 2, 3, 4, 5, 6, 7];
        let lost = if call == Call(Kind::Track) {
            all
        } else {
            &all[..1]
        };
        expect_lost(&td, lost, 1, "busy twice");
        let stats = td.mirror().external().stats();
        assert_eq!((stats.busy.get(), stats.retries.get()), (2, 1));
        assert_eq!(stats.giveups.get(), 1);
    }
}

// Shows: R26.
#[test]
fn all_seamcalls_of_a_batch_busy_once() {
    let td = Td::built();
    map_all(&td, 0..8);
    for k in 0..8 {
        // The second try of the leaf before is let through.
        td.mock()
            .fail(Call(Kind::RangeBlock), k.min(1), 1, status::TREE_BUSY);
        td.mock()
            .fail(Call(Kind::PageRemove), k.min(1), 1, status::ENTRY_BUSY);
    }
    td.mock().fail(Call(Kind::Track), 0, 1, status::EPOCH_BUSY);
    assert_eq!(td.zap(0, 8), 8);
    let stats = td.mirror().external().stats();
    assert_eq!(stats.busy.get(), 17);
    assert_eq!(stats.kicks.get(), 18);
    assert_eq!(td.mock().count(Event::Hold), 1, "from the first to the end");
    assert_eq!(td.mock().count(Event::Release), 1);
    assert_eq!(
        td.mock().log().last().map(|(c, _)| *c),
        Some(Event::Release)
    );
    assert!(td.host().bugs().is_empty());
    td.check_same(&(0..8).collect::<Vec<_>>());
}

/// A guest that accepts all the time, in the way of each SEAMCALL, costs one kick more.
// Shows: R26.
#[test]
fn one_kick_and_the_batch_is_undisturbed() {
    let td: Arc<OnceLock<Td>> = Arc::default();
    let inner = td.clone();
    let mock = Mock::new(Level::L512G).observe(move |call, at| {
        let (Some(td), Some(at)) = (inner.get(), at) else {
            return;
        };
        // A vCPU that is held out accepts nothing.
        if matches!(call, Call(Kind::RangeBlock) | Call(Kind::PageRemove)) && !td.mock().holding() {
            let _ = td.mock().accept_begin(at.level(), at.gfn().as_u64());
        }
    });
    td.set(Td::with_zap_batch(Level::L512G, mock, 64)).unwrap();
    let td = td.get().unwrap();
    map_all(td, 0..512);
    assert_eq!(td.zap(0, 512), 512);
    assert!(td.host().bugs().is_empty());
    let stats = td.mirror().external().stats();
    assert_eq!(td.made(Kind::Track), 8);
    assert_eq!(stats.busy.get(), 8, "one for each batch");
    assert_eq!(stats.kicks.get(), 16);
    assert_eq!(td.mock().count(Event::Release), 8);
    assert!(!td.mock().holding());
    td.check_same(&(0..512).collect::<Vec<_>>());
}

// Shows: B21.
#[test]
fn a_leaf_that_is_blocked_already_is_blocked() {
    let td = Td::built();
    map_all(&td, 0..8);
    let at = Position::covering(Gfn::new(3).unwrap(), Level::L4K);
    assert!(td
        .mock()
        .call(SeamCall::RangeBlock { at })
        .status
        .is_success());
    td.mock().enter_guest();
    td.mock().clear_log();
    assert_eq!(td.zap(0, 8), 8);
    assert!(td.host().bugs().is_empty());
    assert_eq!(td.mock().count(Call(Kind::RangeBlock)), 8, "it is no error");
    td.check_same(&(0..8).collect::<Vec<_>>());
    // As the TDX module words it, and only of BLOCK.
    let blocked = TdxStatus::GPA_RANGE_ALREADY_BLOCKED.with_operand(OperandId::RCX);
    let td = Td::built();
    map_all(&td, 0..8);
    td.mock().fail(Call(Kind::PageRemove), 2, 1, blocked);
    expect_lost(&td, &[2], 1, "REMOVE");
    // A module that says so and did not leaves a leaf that cannot be removed.
    let td = Td::built();
    map_all(&td, 0..8);
    td.mock().fail(Call(Kind::RangeBlock), 5, 1, blocked);
    expect_lost(&td, &[5], 1, "BLOCK that did nothing");
}

// Shows: R25.
#[test]
fn huge_leaf() {
    let td = Td::built();
    map_all(&td, [0]);
    // No map makes one yet, but the rest of the protocol has the level as a parameter.
    let at = td.poke(512, Spte::leaf(pfn(0x200), Level::L2M));
    assert_eq!(at.level(), Level::L2M);
    let pfn = pfn(0x200);
    let out = td.mock().call(SeamCall::PageAug { at, pfn });
    assert!(out.status.is_success());
    td.mock().clear_log();
    assert_eq!(td.zap(512, 1024), 1);
    assert!(td.mock().log()[..1] == [(Call(Kind::RangeBlock), Some(at))]);
    assert!(td.host().bugs().is_empty());
    assert_eq!(td.kind(512), SpteKind::NonPresent);
    assert!(!td.mock().owns(0x200));
}

// Shows: R25.
#[test]
fn part_of_a_huge_leaf_is_not_zapped() {
    for (start, end) in [(512, 1023), (513, 1024), (600, 601)] {
        let td = Td::built();
        map_all(&td, [0]);
        let leaf = Spte::leaf(pfn(0x200), Level::L2M);
        let at = td.poke(512, leaf);
        assert_eq!(td.zap(start, end), 0);
        let bugs = td.host().bugs();
        assert!(
            matches!(bugs[..], [Bug::Unexpected { at: where_, found }] if where_ == at && found == leaf)
        );
        assert!(td.mock().log().is_empty(), "no hook");
        assert_eq!(td.kind(512), SpteKind::Leaf(pfn(0x200)));
    }
}

// Shows: B21.
#[test]
fn walkers_see_each_state_of_a_batch() {
    let td: Arc<OnceLock<Td>> = Arc::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (inner, log) = (td.clone(), seen.clone());
    let mock = Mock::new(Level::L512G).observe(move |call, _| {
        let td = inner.get().unwrap();
        let kinds: Vec<_> = (0..2).map(|g| td.kind(g)).collect();
        log.lock().unwrap().push((call, kinds[0], kinds[1]));
    });
    td.set(Td::new(Level::L512G, mock)).unwrap();
    let td = td.get().unwrap();
    map_all(td, 0..2);
    seen.lock().unwrap().clear();
    assert_eq!(td.zap(0, 2), 2);
    let (a, b) = (pfn(10_000), pfn(10_001));
    use SpteKind::{Blocked, Leaf, NonPresent};
    assert_eq!(
        *seen.lock().unwrap(),
        [
            (Call(Kind::RangeBlock), Leaf(a), Leaf(b)),
            (Call(Kind::RangeBlock), Blocked(a), Leaf(b)),
            (Call(Kind::Track), Blocked(a), Blocked(b)),
            (Event::Kick, Blocked(a), Blocked(b)),
            (Call(Kind::PageRemove), Blocked(a), Blocked(b)),
            (Call(Kind::PageWbinvd), Blocked(a), Blocked(b)),
            (Call(Kind::PageRemove), NonPresent, Blocked(b)),
            (Call(Kind::PageWbinvd), NonPresent, Blocked(b)),
        ]
    );
}
