// SPDX-License-Identifier: GPL-2.0

//! Models of the shipped source: loom runs every interleaving up to a number of preemptions.
//!
//! The number is 2, or `LOOM_MAX_PREEMPTIONS`; neither time nor interleavings are cut off.  Each
//! model says how many interleavings it explored and fails when they are implausibly few, so that
//! a model in which nothing meets does not pass.
//!
//! What loom does not explore: orders that the C11 model allows and loom's does not (mainly those
//! of `SeqCst` beyond acquire and release), the counters, and the locks of the mock and of the
//! test's VM.

use tdx_mirror_host::base::level::Level;
use tdx_mirror_host::mirror::error::{Bug, MapError, MapOutcome, RetryReason};
use tdx_mirror_host::mirror::spte::SpteKind;
use tdx_mirror_host::mock::{status, Event::Call, Mock};
use tdx_mirror_host::sept::{FAULT_TRIES, PAY_TRIES};
use tdx_mirror_host::tdx::call::Kind;
use tdx_mirror_host::vm::{Outcome, Td};

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::Arc;
use loom::thread;
use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Preemptions up to which every interleaving is explored.
const PREEMPTIONS: usize = 2;

/// Explores `f` with all interleavings up to the bound; with the default bound these are at least
/// `at_least`.
fn explore(name: &'static str, at_least: u64, f: impl Fn() + Sync + Send + 'static) {
    let bound = std::env::var("LOOM_MAX_PREEMPTIONS").map_or(PREEMPTIONS, |n| {
        n.parse().expect("LOOM_MAX_PREEMPTIONS is a number")
    });
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    builder.max_branches = 100_000;
    builder.max_permutations = None;
    builder.max_duration = None;
    let start = Instant::now();
    let state = std::sync::Arc::new((AtomicU64::new(0), Mutex::new(start)));
    let count = state.clone();
    builder.check(move || {
        let runs = count.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut said = count.1.lock().unwrap();
        if said.elapsed() > Duration::from_millis(1500) {
            *said = Instant::now();
            let so_far = start.elapsed().as_secs_f32();
            println!("loom: {name}: {runs} interleavings so far, {so_far:.1} s");
        }
        drop(said);
        f();
    });
    let runs = state.0.load(std::sync::atomic::Ordering::Relaxed);
    let took = start.elapsed().as_secs_f32();
    println!("loom: {name}: {runs} interleavings, {bound} preemptions, {took:.1} s");
    if bound >= PREEMPTIONS {
        assert!(runs >= at_least, "{runs} interleavings, {at_least} wanted");
    }
}

/// What loom takes for a meeting of two threads: at a SEAMCALL, and before somebody who looks on
/// looks at what SEAMCALLs change.  Relaxed: it orders nothing.
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
        beat.beat();
        if let (Call(Kind::SeptAdd) | Call(Kind::PageAug), Some(at)) = (call, at) {
            let key = (at.level(), at.gfn());
            assert!(busy.lock().unwrap().insert(key), "two mappers at {at:?}");
            thread::yield_now();
            busy.lock().unwrap().remove(&key);
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

// Shows: R27, B1.
#[test]
fn two_vcpus_map_one_gfn() {
    explore("map/map same GFN", 100, || {
        let td = td(Level::L2M);
        let a = map_thread(&td, 0, 7);
        let b = td.map(0, 7);
        let a = a.join().unwrap();
        settle(&td, 0, 7, a);
        settle(&td, 0, 7, b);
        assert_eq!(td.mock().count(Call(Kind::PageAug)), 1);
        assert_eq!(td.mock().count(Call(Kind::SeptAdd)), 1);
        assert!(td.host().bugs().is_empty());
        td.check_same(&[0]);
    });
}

// Shows: R27, R36.
#[test]
fn three_vcpus_map_one_gfn() {
    explore("map/map/map same GFN", 5000, || {
        let td = td(Level::L2M);
        let a = map_thread(&td, 0, 7);
        let b = map_thread(&td, 0, 7);
        let c = td.map(0, 7);
        let (a, b) = (a.join().unwrap(), b.join().unwrap());
        for o in [a, b, c] {
            settle(&td, 0, 7, o);
        }
        assert_eq!(td.mock().count(Call(Kind::PageAug)), 1);
        assert_eq!(td.mirror().stats().mapped.get(), 1);
        assert!(td.host().bugs().is_empty());
        td.check_same(&[0]);
    });
}

// Shows: R20, B2.
#[test]
fn two_vcpus_under_one_missing_table() {
    explore("map/map under one missing table", 50, || {
        let td = td(Level::L2M);
        let a = map_thread(&td, 0, 7);
        let b = td.map(1, 8);
        let a = a.join().unwrap();
        settle(&td, 0, 7, a);
        settle(&td, 1, 8, b);
        assert_eq!(td.mock().count(Call(Kind::SeptAdd)), 1);
        assert_eq!(td.mock().count(Call(Kind::PageAug)), 2);
        assert!(td.host().bugs().is_empty());
        td.check_same(&[0, 1]);
    });
}

// Shows: R20.
#[test]
fn two_vcpus_under_two_missing_tables() {
    explore("map/map under two missing tables", 50, || {
        let td = td(Level::L1G);
        let a = map_thread(&td, 0, 7);
        // Another 2M table: the tables above are the same, this one is its own.
        let b = td.map(512, 8);
        let a = a.join().unwrap();
        settle(&td, 0, 7, a);
        settle(&td, 512, 8, b);
        assert_eq!(td.mock().count(Call(Kind::SeptAdd)), 3);
        assert!(td.host().bugs().is_empty());
        td.check_same(&[0, 512]);
    });
}

// Shows: R17, R18.
#[test]
fn walk_sees_frozen_or_whole() {
    explore("map/walk", 2000, || {
        let (td, pulse) = pulsing_td(Level::L2M);
        let a = map_thread(&td, 0, 7);
        let b = map_thread(&td, 1, 8);
        for _ in 0..3 {
            pulse.beat();
            match td.kind(0) {
                SpteKind::NonPresent | SpteKind::Frozen => (),
                SpteKind::Leaf(pfn) => {
                    assert_eq!(pfn.as_u64(), 7);
                    // Never visible in the mirror before it is so in the S-EPT.
                    assert!(td.mock().owns(7));
                }
                other => panic!("walk met {other:?}"),
            }
        }
        let (a, b) = (a.join().unwrap(), b.join().unwrap());
        settle(&td, 0, 7, a);
        settle(&td, 1, 8, b);
        td.check_same(&[0, 1]);
    });
}

// Shows: R4.
#[test]
fn link_failure_with_concurrent_map() {
    explore("link failure with a concurrent map", 40, || {
        let td = td(Level::L2M);
        // The first of the two to link meets contention for its whole budget.
        td.mock()
            .fail(Call(Kind::SeptAdd), 0, FAULT_TRIES, status::TREE_BUSY);
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

// Shows: R31.
#[test]
fn fatal_link_with_concurrent_map() {
    explore("fatal link with a concurrent map", 40, || {
        let td = td(Level::L2M);
        td.mock()
            .fail(Call(Kind::SeptAdd), 0, 1, status::STATE_INCORRECT);
        let a = map_thread(&td, 0, 7);
        let b = td.map(1, 8);
        let outcomes = [a.join().unwrap(), b];
        // Whoever was refused ended the VM; the other one came before, between or after.
        assert!(outcomes.contains(&Err(MapError::Bugged)));
        assert_eq!(td.host().bugs().len(), 1);
        assert!(matches!(td.host().bugs()[0], Bug::External { .. }));
        assert!(td.mirror().is_bugged());
        for gfn in [0, 1] {
            assert_ne!(td.kind(gfn), SpteKind::Frozen);
        }
        td.check_same(&[0, 1]);
    });
}

// Shows: R17.
#[test]
fn busy_then_thaw() {
    explore("busy, then thaw", 40, || {
        let td = td(Level::L2M);
        assert_eq!(td.map(1, 9), Ok(MapOutcome::Fixed));
        td.mock()
            .fail(Call(Kind::PageAug), 0, FAULT_TRIES, status::ENTRY_BUSY);
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

// Shows: R18, B3.
#[test]
fn freeze_seen_by_prefault() {
    explore("freeze seen by prefault", 50, || {
        let td = td(Level::L2M);
        assert_eq!(td.map(1, 9), Ok(MapOutcome::Fixed));
        let a = map_thread(&td, 0, 7);
        // A prefault asks again a bounded number of times and never waits for the other.
        let mut asked = 0;
        let b = loop {
            let o = td.map(0, 7);
            asked += 1;
            if !is_frozen(o) || asked == 3 {
                break o;
            }
            // It took nothing: no page, no SEAMCALL of its own.
            assert!(td.mock().count(Call(Kind::PageAug)) <= 2);
            assert_eq!(td.mock().count(Call(Kind::SeptAdd)), 1);
        };
        let a = a.join().unwrap();
        settle(&td, 0, 7, a);
        settle(&td, 0, 7, b);
        assert_eq!(td.mock().count(Call(Kind::PageAug)), 2);
        assert!(td.host().bugs().is_empty());
        td.check_same(&[0, 1]);
    });
}

// Shows: R19.
#[test]
fn zap_waits_for_maps() {
    explore("zap waits for maps", 100, || {
        let td = td(Level::L2M);
        let a = map_thread(&td, 0, 7);
        let b = map_thread(&td, 1, 8);
        let zapped = td.zap(0, 2);
        let (a, b) = (a.join().unwrap(), b.join().unwrap());
        // The zap came before a map or after it, never into the middle.
        assert!(td.host().bugs().is_empty());
        let mapped = [a, b]
            .iter()
            .filter(|o| **o == Ok(MapOutcome::Fixed))
            .count() as u64;
        assert_eq!(td.mock().leaves().len() as u64, mapped - zapped);
        td.check_same(&[0, 1]);
    });
}

// Shows: R19, R31.
#[test]
fn zap_is_watched() {
    explore("zap/walk", 200, || {
        let (td, pulse) = pulsing_td(Level::L2M);
        assert_eq!(td.map(0, 7), Ok(MapOutcome::Fixed));
        let other = td.clone();
        let a = thread::spawn(move || other.zap(0, 2));
        for _ in 0..3 {
            pulse.beat();
            match td.kind(0) {
                // Present in the mirror as long as it is so in the S-EPT: the mirror may say so
                // for longer, which is the order that a fault can live with.
                SpteKind::NonPresent => assert!(!td.mock().owns(7)),
                SpteKind::Leaf(p) | SpteKind::Blocked(p) => assert_eq!(p.as_u64(), 7),
                other => panic!("walk met {other:?}"),
            }
        }
        assert_eq!(a.join().unwrap(), 1);
        assert_eq!(td.kind(0), SpteKind::NonPresent);
        td.check_same(&[0, 1]);
    });
}

// Shows: R29.
#[test]
fn another_pfn_is_a_bug_of_the_vm_only() {
    explore("map/map, two PFNs for one GFN", 100, || {
        let td = td(Level::L2M);
        let a = map_thread(&td, 0, 7);
        let b = td.map(0, 8);
        let outcomes = [a.join().unwrap(), b];
        let fixed = outcomes.iter().filter(|o| **o == Ok(MapOutcome::Fixed));
        assert_eq!(fixed.count(), 1);
        if outcomes.contains(&Err(MapError::Bugged)) {
            assert_eq!(td.host().bugs().len(), 1);
            assert!(matches!(td.host().bugs()[0], Bug::Transition { .. }));
        } else {
            assert!(outcomes.iter().any(|o| is_frozen(*o)));
        }
        assert_eq!(td.mock().count(Call(Kind::PageAug)), 1);
        td.check_same(&[0]);
    });
}

// Shows: B33.
#[test]
fn walk_during_teardown() {
    explore("teardown/walk", 1000, || {
        let (td, pulse) = pulsing_td(Level::L1G);
        assert_eq!(td.map(0, 7), Ok(MapOutcome::Fixed));
        assert_eq!(td.zap(0, 1), 1);
        let other = td.clone();
        let a = thread::spawn(move || other.teardown());
        // The page of a table waits for the walkers, so what they read is a table.
        let look = |td: &Td, pulse: &Pulse| {
            for _ in 0..2 {
                pulse.beat();
                assert_eq!(td.kind(0), SpteKind::NonPresent);
            }
        };
        let (other, beat) = (td.clone(), pulse.clone());
        let b = thread::spawn(move || look(&other, &beat));
        look(&td, &pulse);
        a.join().unwrap();
        b.join().unwrap();
        assert_eq!(td.host().deferred_pages(), 2);
        assert_eq!(td.host().used_external(), 0);
        assert!(td.host().bugs().is_empty());
    });
}

// Shows: R2.
#[test]
fn disjoint_gfns_do_not_disturb_each_other() {
    explore("map/map disjoint", 8, || {
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

/// A mark that nobody owes would starve the guest; one that is owed is paid by the next map.
fn check_marks(td: &Td) {
    td.mock().clear_fails();
    let sept = td.mirror().external();
    let figures = sept.stats();
    let done = figures.debts_paid.get() + figures.debts_lost.get();
    assert_eq!(figures.debts.get(), done + sept.debts_owed());
    assert_eq!(figures.debts_lost.get(), 0);
    assert!(td.mock().marks() as u64 <= sept.debts_owed());
    for _ in 0..2 {
        assert!(matches!(
            td.map(1, 8),
            Ok(MapOutcome::Fixed | MapOutcome::Spurious)
        ));
    }
    assert_eq!((td.mock().marks(), sept.debts_owed()), (0, 0));
}

// Shows: R15.
#[test]
fn debt_recorded_while_another_pays() {
    explore("debt recorded/paid", 3000, || {
        let td = td(Level::L2M);
        assert_eq!(td.map(1, 8), Ok(MapOutcome::Fixed));
        assert_eq!(td.zap(1, 2), 1);
        // Whoever comes first gives up, and may even fail to clear its mark.
        let busy = status::ENTRY_BUSY;
        td.mock().fail(Call(Kind::PageAug), 0, FAULT_TRIES, busy);
        td.mock().fail(Call(Kind::SeptRd), 0, PAY_TRIES, busy);
        let a = map_thread(&td, 0, 7);
        let b = map_thread(&td, 1, 8);
        let c = td.map(1, 8);
        for o in [a.join().unwrap(), b.join().unwrap(), c] {
            assert!(matches!(
                o,
                Ok(MapOutcome::Fixed | MapOutcome::Spurious | MapOutcome::Retry(_))
            ));
        }
        check_marks(&td);
        settle(&td, 0, 7, td.map(0, 7));
        assert!(td.host().bugs().is_empty());
        td.check_same(&[0, 1]);
    });
}

// Shows: R15.
#[test]
fn two_record_debts_at_once() {
    explore("debt recorded/debt recorded", 100, || {
        let td = td(Level::L2M);
        assert_eq!(td.map(1, 8), Ok(MapOutcome::Fixed));
        assert_eq!(td.zap(1, 2), 1);
        // Both give up, and neither can clear its mark.
        let busy = status::ENTRY_BUSY;
        td.mock()
            .fail(Call(Kind::PageAug), 0, 2 * FAULT_TRIES, busy);
        td.mock().fail(Call(Kind::SeptRd), 0, 3 * PAY_TRIES, busy);
        let a = map_thread(&td, 0, 7);
        let b = td.map(1, 8);
        for o in [a.join().unwrap(), b] {
            assert!(matches!(
                o,
                Ok(MapOutcome::Retry(RetryReason::Contended(_)))
            ));
        }
        assert_eq!(td.mirror().external().debts_owed(), 2);
        check_marks(&td);
        settle(&td, 0, 7, td.map(0, 7));
        assert!(td.host().bugs().is_empty());
        td.check_same(&[0, 1]);
    });
}

// Shows: R15.
#[test]
fn two_pay_one_debt() {
    explore("debt paid by two", 2000, || {
        let td = td(Level::L2M);
        let busy = status::ENTRY_BUSY;
        assert_eq!(td.map(1, 8), Ok(MapOutcome::Fixed));
        td.mock().fail(Call(Kind::PageAug), 0, FAULT_TRIES, busy);
        td.mock().fail(Call(Kind::SeptRd), 0, PAY_TRIES, busy);
        assert!(matches!(td.map(0, 7), Ok(MapOutcome::Retry(_))));
        assert_eq!(td.mirror().external().debts_owed(), 1);
        // One of two payments fails once more, whichever it is.
        td.mock().fail(Call(Kind::SeptRd), 0, 1, busy);
        let a = map_thread(&td, 0, 7);
        let b = map_thread(&td, 1, 8);
        let c = td.map(0, 7);
        let (a, b) = (a.join().unwrap(), b.join().unwrap());
        for o in [a, c] {
            settle(&td, 0, 7, o);
        }
        assert_eq!(b, Ok(MapOutcome::Spurious));
        check_marks(&td);
        assert_eq!(td.mirror().external().stats().debts.get(), 1);
        assert!(td.host().bugs().is_empty());
        td.check_same(&[0, 1]);
    });
}

// Shows: R15, R26.
#[test]
fn zap_pays_what_a_map_owes() {
    explore("debt recorded/zap", 100, || {
        let td = td(Level::L2M);
        let busy = status::ENTRY_BUSY;
        assert_eq!(td.map(1, 8), Ok(MapOutcome::Fixed));
        td.mock().fail(Call(Kind::PageAug), 0, FAULT_TRIES, busy);
        td.mock().fail(Call(Kind::SeptRd), 0, PAY_TRIES, busy);
        let a = map_thread(&td, 0, 7);
        let b = map_thread(&td, 0, 7);
        td.zap(0, 2);
        for o in [a.join().unwrap(), b.join().unwrap()] {
            assert!(matches!(
                o,
                Ok(MapOutcome::Fixed | MapOutcome::Spurious | MapOutcome::Retry(_))
            ));
        }
        check_marks(&td);
        assert!(td.host().bugs().is_empty());
        td.check_same(&[0, 1]);
    });
}
