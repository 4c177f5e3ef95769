// SPDX-License-Identifier: GPL-2.0

//! Models of the shipped source: loom runs every interleaving up to the given preemptions.
//!
//! What loom does not explore: orders that the C11 model allows and loom's does not (mainly those
//! of `SeqCst` beyond acquire and release), the counters, and the mock's own lock.

use tdx_mirror_host::mirror::error::{MapOutcome, RetryReason};
use tdx_mirror_host::mirror::level::Level;
use tdx_mirror_host::mirror::spte::SpteKind;
use tdx_mirror_host::mock::{status, Call, Mock};
use tdx_mirror_host::vm::{Outcome, Td};

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::Arc;
use loom::thread;
use std::collections::HashSet;
use std::sync::Mutex;

/// Explores `f` with all interleavings up to two preemptions.
fn explore(name: &str, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 100_000;
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = runs.clone();
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        f();
    });
    let runs = runs.load(Ordering::Relaxed);
    println!("{name}: {runs} interleavings");
    assert!(runs > 1, "nothing to interleave");
}

/// What loom takes for a shared access of two threads, at a SEAMCALL and before a walk.
///
/// It remembers the last access of an object only, so that of two loads and a cmpxchg of one
/// entry it may not try every order; this makes it do so.  Relaxed: it orders nothing.
#[derive(Clone)]
struct Pulse(Arc<AtomicUsize>);

impl Pulse {
    fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A TD whose SEAMCALLs take a while, and which finds two at work on one entry.
fn pulsing_td(root: Level) -> (Arc<Td>, Pulse) {
    let pulse = Pulse(Arc::new(AtomicUsize::new(0)));
    let beat = pulse.clone();
    let busy = Mutex::new(HashSet::new());
    let mock = Mock::new(root).observe(move |call, at| {
        if let (Call::SeptAdd | Call::PageMap, Some(at)) = (call, at) {
            let key = (at.level(), at.gfn());
            assert!(busy.lock().unwrap().insert(key), "two mappers at {at:?}");
            beat.beat();
            thread::yield_now();
            busy.lock().unwrap().remove(&key);
        } else {
            beat.beat();
        }
    });
    (Arc::new(Td::new(root, mock)), pulse)
}

fn td(root: Level) -> Arc<Td> {
    pulsing_td(root).0
}

fn map_thread(td: &Arc<Td>, gfn: u64, pfn: u64) -> thread::JoinHandle<Outcome> {
    let td = td.clone();
    thread::spawn(move || td.map(gfn, pfn))
}

fn is_frozen(o: Outcome) -> bool {
    o == Ok(MapOutcome::Retry(RetryReason::Frozen))
}

/// Maps again what met a frozen entry; nobody else is at work.
fn settle(td: &Td, gfn: u64, pfn: u64, o: Outcome) {
    if is_frozen(o) {
        assert!(matches!(
            td.map(gfn, pfn),
            Ok(MapOutcome::Fixed | MapOutcome::Spurious)
        ));
    } else {
        assert!(matches!(o, Ok(MapOutcome::Fixed | MapOutcome::Spurious)));
    }
}

#[test]
fn r27_b1_two_vcpus_map_one_gfn() {
    explore("map/map same GFN", || {
        let td = td(Level::L2M);
        let a = map_thread(&td, 0, 7);
        let b = td.map(0, 7);
        let a = a.join().unwrap();
        settle(&td, 0, 7, a);
        settle(&td, 0, 7, b);
        assert_eq!(td.mock().count(Call::PageMap), 1);
        assert_eq!(td.mock().count(Call::SeptAdd), 1);
        assert!(td.host().bugs().is_empty());
        td.check_same(&[0]);
    });
}

#[test]
fn r20_b2_two_vcpus_under_one_missing_table() {
    explore("map/map under one missing table", || {
        let td = td(Level::L2M);
        let a = map_thread(&td, 0, 7);
        let b = td.map(1, 8);
        let a = a.join().unwrap();
        settle(&td, 0, 7, a);
        settle(&td, 1, 8, b);
        assert_eq!(td.mock().count(Call::SeptAdd), 1);
        assert_eq!(td.mock().count(Call::PageMap), 2);
        assert!(td.host().bugs().is_empty());
        td.check_same(&[0, 1]);
    });
}

#[test]
fn r17_r18_walk_sees_frozen_or_whole() {
    explore("map/walk", || {
        let (td, pulse) = pulsing_td(Level::L2M);
        let a = map_thread(&td, 0, 7);
        let mut seen = Vec::new();
        for _ in 0..3 {
            pulse.beat();
            seen.push(td.kind(0));
        }
        for kind in &seen {
            match kind {
                SpteKind::NonPresent | SpteKind::Frozen => (),
                SpteKind::Leaf(pfn) => {
                    assert_eq!(pfn.as_u64(), 7);
                    // Never visible in the mirror before it is so in the S-EPT.
                    assert!(td.mock().owns(7));
                }
                other => panic!("walk met {other:?}"),
            }
        }
        assert_eq!(a.join().unwrap(), Ok(MapOutcome::Fixed));
        td.check_same(&[0]);
    });
}

#[test]
fn r4_link_failure_with_concurrent_map() {
    explore("link failure with concurrent map", || {
        let td = td(Level::L2M);
        // The first of the two to link meets contention for its whole budget.
        td.mock().fail(Call::SeptAdd, 0, 5, status::TREE_BUSY);
        let a = map_thread(&td, 0, 7);
        let b = td.map(1, 8);
        let a = a.join().unwrap();
        for (gfn, pfn, o) in [(0, 7, a), (1, 8, b)] {
            match o {
                Ok(MapOutcome::Retry(_)) => {
                    assert_eq!(td.map(gfn, pfn), Ok(MapOutcome::Fixed));
                }
                o => assert_eq!(o, Ok(MapOutcome::Fixed)),
            }
        }
        assert!(td.host().bugs().is_empty());
        td.check_same(&[0, 1]);
    });
}

#[test]
fn r17_busy_then_thaw() {
    explore("busy, rolled back, taken by the other", || {
        let td = td(Level::L2M);
        assert_eq!(td.map(1, 9), Ok(MapOutcome::Fixed));
        td.mock().fail(Call::PageMap, 0, 5, status::ENTRY_BUSY);
        let a = map_thread(&td, 0, 7);
        let b = td.map(0, 7);
        let a = a.join().unwrap();
        let retries = [a, b]
            .iter()
            .filter(|o| matches!(o, Ok(MapOutcome::Retry(_))))
            .count();
        assert!(retries >= 1, "the whole budget was busy for one of them");
        if retries == 2 {
            assert_eq!(td.kind(0), SpteKind::NonPresent);
            assert_eq!(td.map(0, 7), Ok(MapOutcome::Fixed));
        }
        td.check_same(&[0, 1]);
    });
}

#[test]
fn r19_zap_waits_for_maps() {
    explore("zap waits for maps", || {
        let td = td(Level::L2M);
        let a = map_thread(&td, 0, 7);
        let zapped = td.zap(0, 2);
        assert_eq!(a.join().unwrap(), Ok(MapOutcome::Fixed));
        // The zap came before the map or after it, never into the middle.
        assert!(td.host().bugs().is_empty());
        match zapped {
            0 => assert!(td.mock().owns(7)),
            _ => assert!(!td.mock().owns(7)),
        }
        td.check_same(&[0]);
    });
}

#[test]
fn b33_walk_during_teardown() {
    explore("walk during teardown", || {
        let (td, pulse) = pulsing_td(Level::L2M);
        assert_eq!(td.map(0, 7), Ok(MapOutcome::Fixed));
        assert_eq!(td.zap(0, 1), 1);
        let other = td.clone();
        let a = thread::spawn(move || other.teardown());
        // The page of the table waits for the walker, so what is read is a table.
        for _ in 0..2 {
            pulse.beat();
            assert_eq!(td.kind(0), SpteKind::NonPresent);
        }
        a.join().unwrap();
        assert_eq!(td.host().deferred_pages(), 1);
        assert_eq!(td.host().used_external(), 0);
        assert!(td.host().bugs().is_empty());
    });
}

#[test]
fn r2_disjoint_gfns_do_not_disturb_each_other() {
    explore("map/map disjoint", || {
        let td = td(Level::L2M);
        assert_eq!(td.map(1, 9), Ok(MapOutcome::Fixed));
        assert_eq!(td.zap(1, 2), 1);
        let a = map_thread(&td, 0, 7);
        let b = td.map(1, 8);
        // The table is there, so no one meets the other's frozen entry.
        assert_eq!(a.join().unwrap(), Ok(MapOutcome::Fixed));
        assert_eq!(b, Ok(MapOutcome::Fixed));
        td.check_same(&[0, 1]);
    });
}
