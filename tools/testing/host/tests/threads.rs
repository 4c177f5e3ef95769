// SPDX-License-Identifier: GPL-2.0

//! Threads of the machine instead of modelled ones: parallel faults, zaps among them, walkers.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tdx_mirror_host::base::level::Level;
use tdx_mirror_host::mirror::error::{MapError, MapOutcome, RetryReason};
use tdx_mirror_host::mirror::spte::SpteKind;
use tdx_mirror_host::mock::{Event::Call, Mock};
use tdx_mirror_host::tdx::call::Kind;
use tdx_mirror_host::vm::Td;

/// A small generator, so that a run can be repeated.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// A mock that finds two mappers at work on one entry, with a delay that lets them collide.
fn jealous(delay: impl Fn() + Send + Sync + 'static) -> Mock {
    let busy = Mutex::new(HashSet::new());
    Mock::new(Level::L512G).observe(move |call, at| {
        if let (Call(Kind::SeptAdd) | Call(Kind::PageAug), Some(at)) = (call, at) {
            let key = (at.level(), at.gfn());
            assert!(busy.lock().unwrap().insert(key), "two mappers at {at:?}");
            delay();
            busy.lock().unwrap().remove(&key);
        }
    })
}

// Shows: R36, R43.
#[test]
fn faults_zaps_and_walks_at_once() {
    const OPS: u64 = 30_208;
    const LONGEST: Duration = Duration::from_secs(60);
    const GFNS: u64 = 24;
    let td = Td::new(Level::L512G, jealous(thread::yield_now));
    // 8 GFNs in each of three 4K tables; a GFN has one PFN, as in a memslot.
    let gfn = |n: u64| (n % 8) + (n / 8) * 512;
    let stop = AtomicBool::new(false);
    let fixed = AtomicU64::new(0);
    let zapped = AtomicU64::new(0);
    let start = Instant::now();
    thread::scope(|s| {
        let mappers: Vec<_> = (0..3)
            .map(|i| {
                let (td, fixed, zapped) = (&td, &fixed, &zapped);
                s.spawn(move || {
                    let mut rng = Rng(0x9e37_79b9 + i);
                    // On a machine that does much else the zaps come late.
                    let meets = || zapped.load(SeqCst) > 0 || start.elapsed() > LONGEST;
                    for _ in (0..).take_while(|i| *i < OPS || i % 256 != 0 || !meets()) {
                        let n = rng.below(GFNS);
                        match td.map(gfn(n), 1000 + n) {
                            Ok(MapOutcome::Fixed) => _ = fixed.fetch_add(1, SeqCst),
                            Ok(MapOutcome::Spurious)
                            | Ok(MapOutcome::Retry(RetryReason::Frozen)) => (),
                            other => panic!("{other:?}"),
                        }
                        td.mock().enter_guest();
                    }
                })
            })
            .collect();
        let (td, stop, zapped) = (&td, &stop, &zapped);
        s.spawn(move || {
            let mut rng = Rng(0x1234_5678);
            while !stop.load(SeqCst) {
                let start = gfn(rng.below(GFNS));
                let len = 1 + rng.below(600);
                zapped.fetch_add(td.zap(start, start + len), SeqCst);
                thread::yield_now();
            }
        });
        s.spawn(move || {
            let mut rng = Rng(0x8765_4321);
            while !stop.load(SeqCst) {
                let n = rng.below(GFNS);
                match td.kind(gfn(n)) {
                    SpteKind::Leaf(p) | SpteKind::Blocked(p) => assert_eq!(p.as_u64(), 1000 + n),
                    SpteKind::NonPresent | SpteKind::Frozen => (),
                    other => panic!("{other:?}"),
                }
            }
        });
        for m in mappers {
            m.join().unwrap();
        }
        stop.store(true, SeqCst);
    });
    assert!(td.host().bugs().is_empty(), "{:?}", td.host().bugs());
    let stats = td.mirror().stats();
    assert_eq!(stats.mapped.get(), fixed.load(SeqCst));
    assert_eq!(stats.zapped.get(), zapped.load(SeqCst));
    assert!(zapped.load(SeqCst) > 0 && fixed.load(SeqCst) > GFNS);
    let all: Vec<u64> = (0..GFNS).map(gfn).collect();
    td.check_same(&all);
    td.zap(0, 1 << 36);
    td.teardown();
    assert_eq!(td.mock().early_reclaims(), 0);
    assert_eq!(td.host().used_external(), 0);
}

// Shows: R1.
#[test]
fn a_stuck_seamcall_stops_its_own_gfn_only() {
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let arrived = Arc::new(Barrier::new(2));
    let (g, a) = (gate.clone(), arrived.clone());
    let mock = Mock::new(Level::L512G).observe(move |call, at| {
        if call == Call(Kind::PageAug) && at.is_some_and(|at| at.gfn().as_u64() == 5) {
            a.wait();
            let mut open = g.0.lock().unwrap();
            while !*open {
                open = g.1.wait(open).unwrap();
            }
        }
    });
    let td = Td::new(Level::L512G, mock);
    assert_eq!(td.map(0, 100), Ok(MapOutcome::Fixed));
    thread::scope(|s| {
        let stuck = s.spawn(|| td.map(5, 105));
        arrived.wait();
        // The call on GFN 5 does not return: all else goes on, in its table and in others.
        for gfn in [6, 7, 511, 512, 0x4_0000] {
            assert_eq!(td.map(gfn, 200 + gfn), Ok(MapOutcome::Fixed));
        }
        // Whoever meets the frozen entry is back at once.
        let before = Instant::now();
        assert_eq!(td.map(5, 105), Ok(MapOutcome::Retry(RetryReason::Frozen)));
        assert_eq!(td.kind(5), SpteKind::Frozen);
        assert!(before.elapsed() < Duration::from_secs(5));
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        assert_eq!(stuck.join().unwrap(), Ok(MapOutcome::Fixed));
    });
    td.check_same(&[0, 5, 6, 7, 511, 512, 0x4_0000]);
}

// Shows: R2.
#[test]
fn disjoint_faults_run_in_parallel() {
    const PAGES: u64 = 40;
    let delay = Duration::from_millis(2);
    let inside = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let counted = inside.clone();
    let td = Td::new(
        Level::L512G,
        jealous(move || {
            let now = counted.0.fetch_add(1, SeqCst) + 1;
            counted.1.fetch_max(now, SeqCst);
            thread::sleep(delay);
            counted.0.fetch_sub(1, SeqCst);
        }),
    );
    for gfn in 0..4 {
        assert_eq!(td.map(gfn * 512, 5000 + gfn), Ok(MapOutcome::Fixed));
    }
    let run = |threads: u64| {
        let start = Instant::now();
        thread::scope(|s| {
            for t in 0..threads {
                let td = &td;
                s.spawn(move || {
                    for i in 0..PAGES {
                        let gfn = t * 512 + 1 + i;
                        assert_eq!(td.map(gfn, 10_000 + gfn), Ok(MapOutcome::Fixed));
                    }
                });
            }
        });
        start.elapsed()
    };
    let one = run(1);
    assert_eq!(td.zap(1, 512), PAGES);
    let four = run(4);
    // Four times the work in about the same time; one after the other it would take four times.
    assert!(four < one * 3, "1 thread {one:?}, 4 threads {four:?}");
    assert!(inside.1.load(SeqCst) >= 3, "SEAMCALLs overlap");
}

// Shows: R1.
#[test]
fn zap_waits_for_a_map_under_way() {
    let seen = Arc::new(AtomicBool::new(false));
    let started = Arc::new(Barrier::new(2));
    let (flag, start) = (seen.clone(), started.clone());
    let mock = Mock::new(Level::L512G).observe(move |call, _| match call {
        Call(Kind::PageAug) => {
            start.wait();
            thread::sleep(Duration::from_millis(20));
            flag.store(true, SeqCst);
        }
        Call(Kind::RangeBlock) => assert!(flag.load(SeqCst), "zap in the middle of a map"),
        _ => (),
    });
    let td = Td::new(Level::L512G, mock);
    thread::scope(|s| {
        let map = s.spawn(|| td.map(5, 7));
        started.wait();
        assert_eq!(td.zap(5, 6), 1);
        assert_eq!(map.join().unwrap(), Ok(MapOutcome::Fixed));
    });
    assert!(td.host().bugs().is_empty());
    td.check_same(&[5]);
}

// Shows: R43.
#[test]
fn bugged_vm_ends_all_faults_and_nothing_else() {
    let td = Td::new(Level::L512G, jealous(thread::yield_now));
    for gfn in 0..64 {
        assert_eq!(td.map(gfn, 100 + gfn), Ok(MapOutcome::Fixed));
    }
    thread::scope(|s| {
        for t in 0..3u64 {
            let td = &td;
            s.spawn(move || {
                for gfn in 0..64 {
                    let wrong = t == 0 && gfn == 32;
                    match td.map(gfn, if wrong { 9999 } else { 100 + gfn }) {
                        Ok(MapOutcome::Spurious) => assert!(!wrong),
                        Err(MapError::Bugged) => (),
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
    });
    assert!(td.mirror().is_bugged());
    assert_eq!(td.zap(0, 64), 64);
    td.teardown();
    assert_eq!(td.host().used_external(), 0);
}
