// SPDX-License-Identifier: GPL-2.0

//! Zap and teardown: order, kick and retry, quarantine, leaks.

use std::sync::atomic::Ordering::SeqCst;
use tdx_mirror_host::base::addr::{GfnRange, PagePtr, Pfn};
use tdx_mirror_host::base::level::Level;
use tdx_mirror_host::mirror::error::{Bug, Leak, MapError, MapOutcome};
use tdx_mirror_host::mirror::external::{self, ExternalPage};
use tdx_mirror_host::mirror::mmu::HOLD_STRETCH;
use tdx_mirror_host::mirror::spte::SpteKind;
use tdx_mirror_host::mock::{
    status, Entry,
    Event::{self, Call},
    Mock,
};
use tdx_mirror_host::tdx::call::{Call as SeamCall, Kind};
use tdx_mirror_host::tdx::status::{OperandId, TdxStatus};
use tdx_mirror_host::vm::Td;

const FIXED: Result<MapOutcome, MapError> = Ok(MapOutcome::Fixed);

fn calls(td: &Td) -> Vec<Event> {
    td.mock().log().into_iter().map(|(c, _)| c).collect()
}

fn mapped(built: bool, gfns: &[u64]) -> Td {
    let td = if built { Td::built() } else { Td::in_build() };
    for (i, gfn) in gfns.iter().enumerate() {
        assert_eq!(td.map(*gfn, 100 + i as u64), FIXED);
    }
    td.mock().clear_log();
    td
}

#[test]
fn zap_blocks_tracks_kicks_and_removes() {
    let td = mapped(true, &[5]);
    td.mock().enter_guest();
    assert_eq!(td.zap(5, 6), 1);
    assert_eq!(
        calls(&td),
        [
            Call(Kind::RangeBlock),
            Call(Kind::Track),
            Event::Kick,
            Call(Kind::PageRemove),
            Call(Kind::PageWbinvd)
        ]
    );
    assert_eq!(td.kind(5), SpteKind::NonPresent);
    td.check_same(&[5]);
    assert_eq!(td.mirror().external().stats().kicks.get(), 1);
}

#[test]
fn zap_in_build_needs_no_block() {
    let td = mapped(false, &[5]);
    assert_eq!(td.zap(5, 6), 1);
    assert_eq!(calls(&td), [Call(Kind::PageRemove), Call(Kind::PageWbinvd)]);
    td.check_same(&[5]);
}

// Shows: B21.
#[test]
fn blocked_in_the_mirror_while_blocked_in_the_s_ept() {
    use std::sync::{Arc, Mutex, OnceLock};
    let td: Arc<OnceLock<Td>> = Arc::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (inner, log) = (td.clone(), seen.clone());
    let mock = Mock::new(Level::L512G).observe(move |call, _| {
        if matches!(
            call,
            Call(Kind::RangeBlock)
                | Call(Kind::Track)
                | Call(Kind::PageRemove)
                | Call(Kind::PageWbinvd)
        ) {
            let kind = inner.get().unwrap().kind(5);
            log.lock().unwrap().push((call, kind));
        }
    });
    td.set(Td::new(Level::L512G, mock)).unwrap();
    let td = td.get().unwrap();
    assert_eq!(td.map(5, 7), FIXED);
    assert_eq!(td.zap(5, 6), 1);
    let p = Pfn::new(7).unwrap();
    assert_eq!(
        *seen.lock().unwrap(),
        [
            (Call(Kind::RangeBlock), SpteKind::Leaf(p)),
            (Call(Kind::Track), SpteKind::Blocked(p)),
            (Call(Kind::PageRemove), SpteKind::Blocked(p)),
            (Call(Kind::PageWbinvd), SpteKind::Blocked(p)),
        ]
    );
}

#[test]
fn range_is_exact() {
    let gfns = [0, 4, 5, 6, 511, 512, 513, 0x4_0000, (1 << 36) - 1];
    for (start, end) in [
        (5, 6),
        (0, 1),
        (4, 512),
        (6, 513),
        (0, 1 << 36),
        (512, 0x4_0000),
    ] {
        let td = mapped(true, &gfns);
        let inside = gfns.iter().filter(|g| (start..end).contains(*g)).count();
        assert_eq!(td.zap(start, end), inside as u64);
        for gfn in gfns {
            let gone = td.kind(gfn) == SpteKind::NonPresent;
            assert_eq!(gone, (start..end).contains(&gfn), "gfn {gfn:#x}");
        }
        assert_eq!(td.mock().count(Call(Kind::PageRemove)), inside);
        td.check_same(&gfns);
    }
}

#[test]
fn zap_of_nothing_calls_nothing() {
    let td = mapped(true, &[5]);
    assert_eq!(td.zap(6, 1 << 36), 0);
    assert_eq!(td.zap(1 << 36, 1 << 40), 0);
    assert!(td.mock().log().is_empty());
    assert_eq!(td.kind(5), SpteKind::Leaf(Pfn::new(100).unwrap()));
}

// Shows: R12.
#[test]
fn no_map_removes() {
    let td = mapped(true, &[5, 6]);
    for _ in 0..10 {
        assert_eq!(td.map(5, 100), Ok(MapOutcome::Spurious));
        let _ = td.walk(6);
    }
    for call in [
        Call(Kind::RangeBlock),
        Call(Kind::Track),
        Call(Kind::PageRemove),
    ] {
        assert_eq!(td.mock().count(call), 0);
    }
}

// Shows: R19.
#[test]
fn nothing_freezes_under_the_write_lock() {
    let gfns: Vec<u64> = (0..512).collect();
    let td = mapped(true, &gfns);
    let before = td.mirror().stats().frozen.get();
    assert_eq!(td.zap(0, 512), 512);
    assert_eq!(td.mirror().stats().frozen.get(), before);
    assert!(td.host().bugs().is_empty());
    td.check_same(&gfns);
}

// Shows: R26.
#[test]
fn busy_at_each_seamcall_of_a_zap() {
    for (call, busy) in [
        (Call(Kind::RangeBlock), status::TREE_BUSY),
        (Call(Kind::RangeBlock), status::ENTRY_BUSY),
        (Call(Kind::Track), status::EPOCH_BUSY),
        (Call(Kind::Track), TdxStatus::PREVIOUS_TLB_EPOCH_BUSY),
        (Call(Kind::PageRemove), status::TREE_BUSY),
        (Call(Kind::PageRemove), status::ENTRY_BUSY),
    ] {
        let td = mapped(true, &[5]);
        td.mock().fail(call, 0, 1, busy);
        assert_eq!(td.zap(5, 6), 1, "{call:?} {busy:?}");
        assert_eq!(td.mock().count(call), 2);
        let log = calls(&td);
        let i = log.iter().position(|c| *c == call).unwrap();
        assert_eq!(
            log[i..i + 4],
            [call, Event::Hold, Event::Kick, call],
            "held before the kick"
        );
        assert_eq!(log.last(), Some(&Event::Release), "let in after the batch");
        assert_eq!(td.mock().count(Event::Release), 1);
        let kicks = td.mock().count(Event::Kick) as u64;
        assert_eq!(kicks, 2, "one for the retry, one after TRACK");
        assert_eq!(td.mirror().external().stats().kicks.get(), kicks);
        assert!(td.host().bugs().is_empty());
        td.check_same(&[5]);
    }
}

// Shows: B8.
#[test]
fn zap_in_build_meets_a_busy_tdr() {
    let td = mapped(false, &[5]);
    td.mock()
        .fail(Call(Kind::PageRemove), 0, 1, status::TDR_BUSY);
    assert_eq!(td.zap(5, 6), 1);
    assert!(td.host().bugs().is_empty());
    td.check_same(&[5]);
}

#[test]
fn previous_epoch_busy_of_a_real_vcpu() {
    let td = mapped(true, &[5, 6]);
    td.mock().enter_guest();
    // An epoch passes without a kick, as after a TRACK of somebody else.
    use tdx_mirror_host::tdx::seamcall::Seamcall;
    assert!(td.mock().call(SeamCall::Track {}).status.is_success());
    assert_eq!(td.zap(5, 7), 2);
    assert!(td.host().bugs().is_empty());
    assert_eq!(td.mirror().external().stats().busy.get(), 1);
    td.check_same(&[5, 6]);
}

// Shows: B7.
#[test]
fn vcpus_are_let_in_again_whatever_happens() {
    for call in [
        Call(Kind::RangeBlock),
        Call(Kind::Track),
        Call(Kind::PageRemove),
    ] {
        let busy = if call == Call(Kind::Track) {
            status::EPOCH_BUSY
        } else {
            status::TREE_BUSY
        };
        for second in [busy, TdxStatus::TD_FATAL, status::STATE_INCORRECT] {
            let td = mapped(true, &[5]);
            td.mock().fail(call, 0, 1, busy);
            td.mock().fail(call, 0, 1, second);
            assert_eq!(td.zap(5, 6), 0);
            assert!(!td.mock().holding());
            assert_eq!(td.mock().count(Event::Hold), 1);
            assert_eq!(td.mock().count(Event::Release), 1);
            assert_eq!(td.mock().count(call), 2, "1 try, kick, 1 try");
        }
    }
}

// Shows: B14, B34.
#[test]
fn failed_zap_quarantines() {
    let fatal = [
        (Call(Kind::RangeBlock), TdxStatus::TD_FATAL),
        (Call(Kind::PageRemove), status::STATE_INCORRECT),
        (Call(Kind::PageRemove), TdxStatus::TLB_TRACKING_NOT_DONE),
        (
            Call(Kind::PageWbinvd),
            TdxStatus::OPERAND_BUSY.with_operand(OperandId::RCX),
        ),
    ];
    for (call, bad) in fatal {
        let td = mapped(true, &[5, 6]);
        td.mock().fail(call, 0, 1, bad);
        assert_eq!(td.zap(5, 7), 1, "the other leaf goes all the same");
        assert_eq!(td.mock().count(call), 2, "no retry: one call per leaf");
        assert!(td.mirror().is_bugged());
        assert!(td.host().holds(100), "{call:?}: kept from the allocator");
        assert!(!td.host().holds(101));
        assert_eq!(td.mirror().stats().quarantined.get(), 1);
        assert_eq!(td.kind(5), SpteKind::Quarantined(Pfn::new(100).unwrap()));
        let bugs = td.host().bugs();
        assert!(matches!(bugs[..], [Bug::External { failure, .. }] if failure.status == bad.raw()));
        // The GFN refuses another page, and the page it had.
        td.mock().clear_log();
        for pfn in [100, 200] {
            assert_eq!(td.map(5, pfn), Err(MapError::Bugged));
        }
        // A second zap leaves it alone.
        assert_eq!(td.zap(0, 100), 0);
        assert!(td.mock().log().is_empty());
        if call != Call(Kind::PageWbinvd) {
            assert!(matches!(
                td.mock().entry(Level::L4K, 5),
                Some(Entry::Leaf { pfn: 100, .. })
            ));
        }
        // At the end the TDX module gives it back, or says that it is not its own: what WBINVD left
        // undone was done when the HKID was released.  All tables go.
        td.teardown();
        let stats = td.mirror().stats();
        assert_eq!((stats.resolved.get(), stats.leaked.get()), (1, 0));
        assert!(!td.host().holds(100));
        assert!(td.host().leaks().is_empty());
        let label = Kind::ReclaimData.figure();
        let (_, failed, informational) = td.mirror().external().calls().each().nth(label).unwrap();
        let was_free = u64::from(call == Call(Kind::PageWbinvd));
        assert_eq!((failed, informational), (0, was_free));
        assert_eq!(td.mock().count(Call(Kind::ReclaimData)), 1);
        assert_eq!(td.host().used_external(), 0);
        assert_eq!(td.host().accounted.load(SeqCst), 0);
    }
}

// Shows: R49.
#[test]
fn zap_yields_between_batches_only() {
    let gfns: Vec<u64> = (0..8).collect();
    let td = Td::with_zap_batch(Level::L512G, Mock::new(Level::L512G), 2);
    for gfn in &gfns {
        assert_eq!(td.map(*gfn, 100 + gfn), FIXED);
    }
    td.host().resched.store(3, SeqCst);
    let range = GfnRange::new(0, 8).unwrap();
    let zapped = td.exclusive(|x| td.mirror().zap_range(x, td.mirror().phase(x), range, true));
    assert_eq!(zapped, 8);
    assert_eq!(td.host().yields.load(SeqCst), 3);
    td.check_same(&gfns);
    // Without leave it never does.
    let td = mapped(true, &gfns);
    td.host().resched.store(3, SeqCst);
    assert_eq!(td.zap(0, 8), 8);
    assert_eq!(td.host().yields.load(SeqCst), 0);
}

// Shows: R49.
#[test]
fn a_batch_ends_early_when_somebody_waits() {
    let gfns: Vec<u64> = (0..600).collect();
    // Nobody waits: as many leaves for each TRACK as there can be.
    let td = mapped(true, &gfns);
    assert_eq!(td.zap_yielding(0, 600), 600);
    assert_eq!(td.made(Kind::Track), 2);
    // Somebody does, once: only that batch is short.
    let td = mapped(true, &gfns);
    td.host().resched.store(1, SeqCst);
    assert_eq!(td.zap_yielding(0, 600), 600);
    assert_eq!(td.host().yields.load(SeqCst), 1);
    assert_eq!(td.made(Kind::Track), 1 + 2);
    // Always: no hold blocks, tracks and removes more than so many leaves.
    let td = mapped(true, &gfns);
    td.host().resched.store(u32::MAX, SeqCst);
    assert_eq!(td.zap_yielding(0, 600), 600);
    let holds = 600u64.div_ceil(u64::from(HOLD_STRETCH));
    assert_eq!(td.made(Kind::Track), holds);
    assert_eq!(td.host().yields.load(SeqCst), holds - 1);
    td.check_same(&gfns);
    // Without leave nobody is asked.
    let td = mapped(true, &gfns);
    td.host().resched.store(u32::MAX, SeqCst);
    assert_eq!(td.zap(0, 600), 600);
    assert_eq!(td.made(Kind::Track), 2);
    assert_eq!(td.host().resched.load(SeqCst), u32::MAX);
}

#[test]
fn zap_of_a_sparse_range_yields_too() {
    let td = mapped(true, &[0, 511]);
    td.host().resched.store(1, SeqCst);
    // 511 empty 4K entries of one table, then empty entries of the tables above.
    let range = GfnRange::new(1, 511).unwrap();
    assert_eq!(
        td.exclusive(|x| td.mirror().zap_range(x, td.mirror().phase(x), range, true)),
        0
    );
    assert_eq!(td.host().yields.load(SeqCst), 0, "too little to ask");
    let range = GfnRange::new(1, 1 << 36).unwrap();
    assert_eq!(
        td.exclusive(|x| td.mirror().zap_range(x, td.mirror().phase(x), range, true)),
        1
    );
    assert_eq!(td.host().yields.load(SeqCst), 1);
}

// Shows: B33.
#[test]
fn children_are_reclaimed_first() {
    let gfns = [0, 512, 0x4_0000, 1 << 30];
    let td = mapped(true, &gfns);
    assert_eq!(td.zap(0, 1 << 36), 4);
    let tables = td.mock().tables();
    assert_eq!(tables, 3 + 1 + 2 + 3);
    td.mock().clear_log();
    td.teardown();
    assert_eq!(td.mock().count(Call(Kind::ReclaimTable)), tables);
    assert_eq!(td.mock().early_reclaims(), 0);
    assert_eq!(td.mock().tables(), 0);
    assert_eq!(td.host().used_external(), 0);
    assert_eq!(td.host().deferred_pages(), tables, "after a grace period");
    assert_eq!(td.host().used_pages(), 1, "the root");
    assert_eq!(td.host().accounted.load(SeqCst), 0);
    assert_eq!(td.mirror().stats().tables.get(), 0);
    assert!(td.host().bugs().is_empty() && td.host().leaks().is_empty());
    let host = td.destroy();
    assert_eq!(host.used_pages(), 0);
    assert_eq!(host.accounted.load(SeqCst), 0);
}

// Shows: B33.
#[test]
fn teardown_before_the_hkid_is_released_leaks() {
    let td = mapped(true, &[5]);
    assert_eq!(td.zap(5, 6), 1);
    td.mock().clear_log();
    td.exclusive(|x| td.mirror().teardown(x));
    assert_eq!(td.mock().count(Call(Kind::ReclaimTable)), 0);
    assert_eq!(td.mirror().stats().leaked.get(), 3);
    assert_eq!(td.host().used_external(), 3, "never given back");
}

// Shows: R9, R11, B22.
#[test]
fn failed_reclaim_leaks_without_retry() {
    for bad in [
        TdxStatus::PAGE_METADATA_INCORRECT.with_operand(OperandId::RCX),
        TdxStatus::OPERAND_BUSY.with_operand(OperandId::TDR),
        TdxStatus::OPERAND_BUSY.with_operand(OperandId::RCX),
    ] {
        let td = mapped(true, &[5]);
        assert_eq!(td.zap(5, 6), 1);
        td.mock().clear_log();
        td.mock().fail(Call(Kind::ReclaimTable), 1, 1, bad);
        let dropped = external::dropped_pages();
        td.teardown();
        assert_eq!(
            td.mock().count(Call(Kind::ReclaimTable)),
            3,
            "{bad:?}: one per table"
        );
        assert_eq!(td.mirror().stats().leaked.get(), 1);
        assert!(external::dropped_pages() > dropped);
        assert_eq!(td.host().used_external(), 1, "never given back");
        assert_eq!(td.host().deferred_pages(), 3, "the mirror's own pages go");
        let leaks = td.host().leaks();
        let [Leak::SeptTable { failure, at }] = leaks[..] else {
            panic!("{leaks:?}");
        };
        assert_eq!(failure.status, bad.raw());
        assert_eq!(at.level(), Level::L1G);
        let calls = td.mirror().external().stats();
        assert_eq!((calls.busy.get(), calls.giveups.get()), (0, 0));
        let text = format!("{:?}", leaks[0]);
        let wanted = format!(
            "page of the S-EPT table at gfn 0x0 at L1G, TDH.PHYMEM.PAGE.RECLAIM answered {:#018x}: \
             page type 0x0, owner 0x0, size 0",
            bad.raw()
        );
        assert_eq!(text, wanted);
    }
}

// Shows: R41.
#[test]
fn leaf_left_at_teardown_is_a_bug_and_reclaimed() {
    for bad in [
        None,
        Some(TdxStatus::OPERAND_BUSY.with_operand(OperandId::TDR)),
    ] {
        let td = mapped(true, &[5]);
        if let Some(bad) = bad {
            td.mock().fail(Call(Kind::ReclaimData), 0, 1, bad);
        }
        td.teardown();
        assert!(matches!(td.host().bugs()[..], [Bug::Unexpected { .. }]));
        assert_eq!(td.mock().count(Call(Kind::ReclaimData)), 1, "never again");
        let stats = td.mirror().stats();
        let lost = u64::from(bad.is_some());
        assert_eq!(stats.quarantined.get(), 1);
        assert_eq!((stats.resolved.get(), stats.leaked.get()), (1 - lost, lost));
        assert_eq!(td.host().holds(100), bad.is_some());
        assert_eq!(td.host().leaves.load(SeqCst), 0);
        if let Some(bad) = bad {
            let leaks = td.host().leaks();
            let [Leak::Data { pfn, at, failure }] = leaks[..] else {
                panic!("{leaks:?}");
            };
            assert_eq!((pfn.as_u64(), at.level()), (100, Level::L4K));
            assert_eq!(failure.status, bad.raw());
        }
    }
}

// Shows: R21.
#[test]
fn account_follows_the_tables() {
    let td = Td::built();
    assert_eq!(td.host().accounted.load(SeqCst), 1);
    for (gfn, tables) in [(0, 4), (1, 4), (512, 5), (1 << 18, 7), (1 << 27, 10)] {
        assert_eq!(td.map(gfn, gfn + 1000), FIXED);
        assert_eq!(td.host().accounted.load(SeqCst), tables);
        assert_eq!(td.mirror().stats().tables.get(), tables as u64);
        assert_eq!(td.host().used_external() as i64, tables - 1);
    }
    assert_eq!(td.host().leaves.load(SeqCst), 5);
}

#[test]
fn an_assigned_page_that_is_dropped_is_counted() {
    let ptr = PagePtr::new(std::ptr::without_provenance_mut(0x1000)).unwrap();
    let before = external::dropped_pages();
    drop(ExternalPage::new(ptr).assigned());
    assert!(external::dropped_pages() > before);
    let back = ExternalPage::new(ptr).assigned().reclaimed().into_page();
    assert_eq!(back, ptr);
}
