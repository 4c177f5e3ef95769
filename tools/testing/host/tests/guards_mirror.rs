// SPDX-License-Identifier: GPL-2.0

//! What the mirror does at its edges: frames without memory, walks, figures.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, OnceLock};
use tdx_mirror_host::base::addr::{Gfn, Pfn};
use tdx_mirror_host::base::level::Level;
use tdx_mirror_host::mirror::error::{Leak, MapOutcome};
use tdx_mirror_host::mirror::lock::Shared;
use tdx_mirror_host::mirror::spte::SpteKind;
use tdx_mirror_host::mock::{status, Event::Call, Mock};
use tdx_mirror_host::tdx::call::Kind;
use tdx_mirror_host::vm::{Outcome, Td};

/// Frames at the end of what a PFN can be, far beyond any memory of the machine that runs this:
/// whoever followed one as an address would fault.
const NO_MEMORY: [u64; 4] = [
    (1 << 40) - 1,
    (1 << 40) - 512,
    (1 << 39) + 7,
    0x7f_ffff_ffff,
];

// Shows: R44.
#[test]
fn frames_without_memory_live_and_die() {
    let td = Td::built();
    let gfns = [0u64, 511, 512, 1 << 27];
    for (gfn, pfn) in gfns.into_iter().zip(NO_MEMORY) {
        assert_eq!(td.map(gfn, pfn), Ok(MapOutcome::Fixed));
        assert_eq!(td.map(gfn, pfn), Ok(MapOutcome::Spurious));
        assert!(td.mock().owns(pfn));
    }
    td.check_same(&gfns);
    assert_eq!(td.zap(0, 512), 2);
    assert!(!td.mock().owns(NO_MEMORY[0]));
    assert!(td.mock().owns(NO_MEMORY[2]));
    td.check_same(&gfns);
    td.mock()
        .fail(Call(Kind::PageRemove), 0, 1, status::STATE_INCORRECT);
    assert_eq!(td.zap(512, 513), 0);
    assert!(matches!(td.kind(512), SpteKind::Quarantined(p) if p.as_u64() == NO_MEMORY[2]));
    assert!(td.host().holds(NO_MEMORY[2]));
    assert_eq!(td.zap(1 << 27, (1 << 27) + 1), 1);
    td.mock()
        .fail(Call(Kind::ReclaimData), 0, 1, status::METADATA);
    td.teardown();
    assert!(
        matches!(td.host().leaks()[..], [Leak::Data { pfn, .. }] if pfn.as_u64() == NO_MEMORY[2])
    );
    assert_eq!(td.host().accounted_external(), 0);
}

/// Maps under mmu_lock that the caller holds for read already.
fn map_inside(td: &Td, gfn: u64, pfn: u64) -> Outcome {
    // SAFETY: the map whose hook calls this holds the lock until the hook returns.
    let l = unsafe { Shared::assume_held() };
    let (gfn, pfn) = (Gfn::new(gfn).unwrap(), Pfn::new(pfn).unwrap());
    td.map_locked(&l, &mut td.caches(), gfn, pfn)
}

// Shows: R36.
#[test]
fn what_races_can_find_is_no_bug() {
    // While vCPU 0 links or maps, vCPU 1 faults on the same GFN, then on a neighbour under the
    // same missing tables.
    let td: Arc<OnceLock<Td>> = Arc::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (inner, log) = (td.clone(), seen.clone());
    let mock = Mock::new(Level::L512G).observe(move |call, at| {
        let (Some(td), Some(at)) = (inner.get(), at) else {
            return;
        };
        // Only for vCPU 0's, and only in a map.
        if at.gfn().as_u64() <= 5 && matches!(call, Call(Kind::SeptAdd) | Call(Kind::PageAug)) {
            log.lock().unwrap().push(map_inside(td, 5, 7));
            if call == Call(Kind::PageAug) {
                log.lock().unwrap().push(map_inside(td, 6, 8));
            }
        }
    });
    td.set(Td::new(Level::L512G, mock)).unwrap();
    let td = td.get().unwrap();
    assert_eq!(td.map(5, 7), Ok(MapOutcome::Fixed));
    let outcomes = std::mem::take(&mut *seen.lock().unwrap());
    let (last, early) = outcomes.split_last().unwrap();
    assert_eq!(early.len(), 4);
    assert!(early.iter().all(|o| matches!(o, Ok(MapOutcome::Retry(_)))));
    assert_eq!(*last, Ok(MapOutcome::Fixed));
    // What was a fault when vCPU 1 took its exit is mapped when it gets the lock.
    assert_eq!(td.map(5, 7), Ok(MapOutcome::Spurious));
    assert_eq!(td.map(6, 8), Ok(MapOutcome::Spurious));
    // And what was mapped is zapped, so that it faults once more.
    assert_eq!(td.zap(0, 512), 2);
    assert_eq!(td.zap(0, 512), 0);
    assert_eq!(td.map(6, 9), Ok(MapOutcome::Fixed));
    assert!(td.host().bugs().is_empty(), "{:?}", td.host().bugs());
    assert!(!td.mirror().is_bugged());
    td.check_same(&[5, 6]);
}

// Shows: R18.
#[test]
fn walks_count_the_frozen_entries_that_they_meet() {
    let td: Arc<OnceLock<Td>> = Arc::default();
    let inner = td.clone();
    let mock = Mock::new(Level::L512G).observe(move |call, _| {
        if call == Call(Kind::PageAug) {
            let td = inner.get().unwrap();
            assert_eq!(td.kind(5), SpteKind::Frozen);
            assert_eq!(td.kind(6), SpteKind::NonPresent);
        }
    });
    td.set(Td::new(Level::L512G, mock)).unwrap();
    let td = td.get().unwrap();
    assert_eq!(td.map(5, 7), Ok(MapOutcome::Fixed));
    assert_eq!(td.mirror().stats().frozen_seen.get(), 1);
    assert!(matches!(td.kind(5), SpteKind::Leaf(_)));
    assert_eq!(td.kind(1 << 27), SpteKind::NonPresent);
    assert_eq!(td.walk(1 << 36), None);
    assert_eq!(td.mirror().stats().frozen_seen.get(), 1);
}

// Shows: R49.
#[test]
fn there_is_no_yield_behind_the_last_batch() {
    for (leaves, yields) in [(3, 0), (4, 0), (5, 1), (8, 1), (9, 2)] {
        let td = Td::with_zap_batch(Level::L512G, Mock::new(Level::L512G), 4);
        for gfn in 0..leaves {
            assert_eq!(td.map(gfn, gfn + 7), Ok(MapOutcome::Fixed));
        }
        td.host().resched.store(u32::MAX, SeqCst);
        assert_eq!(td.zap_yielding(0, leaves), leaves);
        assert_eq!(td.host().yields.load(SeqCst), yields, "{leaves} leaves");
        let asked = u64::from(u32::MAX - td.host().resched.load(SeqCst));
        assert_eq!(asked, yields, "{leaves} leaves");
    }
}
