// SPDX-License-Identifier: GPL-2.0

//! The variant that was rejected, as a baseline: all management of the S-EPT off to the side of
//! the page table, with one lock and no freezing.
//!
//! It wins where nothing runs in parallel: it needs no mirror page for each table, no freeze and
//! no roll-back, and `make check` prints how much shorter it is.  It loses as soon as two vCPUs
//! fault: each waits for the SEAMCALLs of the other.  Times of both are printed by
//! `cargo test --release --test aside -- --nocapture`.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tdx_mirror_host::aside::Aside;
use tdx_mirror_host::base::level::Level;
use tdx_mirror_host::mirror::error::MapOutcome;
use tdx_mirror_host::mock::{
    Event::{self, Call},
    Mock,
};
use tdx_mirror_host::tdx::call::Kind;
use tdx_mirror_host::vm::Td;

const SEAMCALLS: [Event; 6] = [
    Call(Kind::SeptAdd),
    Call(Kind::PageAug),
    Call(Kind::RangeBlock),
    Call(Kind::Track),
    Call(Kind::PageRemove),
    Call(Kind::PageWbinvd),
];

// Shows: R23.
#[test]
fn both_variants_build_the_same_s_ept() {
    let td = Td::built();
    let aside = Aside::new(Mock::new(Level::L512G));
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    for step in 0..2000u64 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let gfn = (seed >> 8) % 8 * 0x3_fffb + (seed >> 16) % 3;
        if seed % 3 == 0 {
            td.zap(gfn, gfn + 1);
            aside.zap(gfn);
        } else if aside.maps(gfn) {
            let pfn = td.mock().leaves()[&gfn];
            assert_eq!(td.map(gfn, pfn), Ok(MapOutcome::Spurious));
        } else {
            assert_eq!(td.map(gfn, step), Ok(MapOutcome::Fixed));
            aside.map(gfn, step);
        }
    }
    assert_eq!(td.mock().leaves(), aside.backend.leaves());
    assert_eq!(td.mock().tables(), aside.backend.tables());
    // One page at a time, neither needs more SEAMCALLs than the other.
    for call in SEAMCALLS {
        assert_eq!(td.mock().count(call), aside.backend.count(call), "{call:?}");
    }
}

// Shows: R23.
#[test]
fn off_to_the_side_needs_no_mirror_pages_and_no_freeze() {
    let td = Td::built();
    let aside = Aside::new(Mock::new(Level::L512G));
    for n in 0..64 {
        // Each in a 2M range of its own.
        assert_eq!(td.map(n * 512, n), Ok(MapOutcome::Fixed));
        aside.map(n * 512, n);
    }
    assert_eq!(td.mock().tables(), aside.backend.tables());
    // Where it wins: a page and a freeze for each table, a freeze for each leaf.
    let tables = aside.backend.tables();
    assert_eq!(tables, 66);
    assert_eq!(td.host().used_pages(), tables + 1);
    assert_eq!(td.mirror().stats().frozen.get(), tables as u64 + 64);
}

/// Faults of `threads` vCPUs, each on GFNs of its own, with SEAMCALLs that last: the time, and how
/// many SEAMCALLs were under way at once.
fn faults(threads: u64, mirror: bool) -> (Duration, usize) {
    const FAULTS: u64 = 24;
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (i, m) = (inside.clone(), most.clone());
    let mock = Mock::new(Level::L512G).observe(move |call, _| {
        if SEAMCALLS.contains(&call) {
            m.fetch_max(i.fetch_add(1, SeqCst) + 1, SeqCst);
            thread::sleep(Duration::from_micros(500));
            i.fetch_sub(1, SeqCst);
        }
    });
    let run = |map: &(dyn Fn(u64, u64) + Sync)| {
        for n in 0..threads {
            map(n << 27, 100_000 + n);
        }
        most.store(0, SeqCst);
        let start = Instant::now();
        thread::scope(|s| {
            for n in 0..threads {
                s.spawn(move || (1..=FAULTS).for_each(|f| map((n << 27) + f, n * 1000 + f)));
            }
        });
        start.elapsed()
    };
    let took = if mirror {
        let td = Td::new(Level::L512G, mock);
        run(&|gfn, pfn| assert_eq!(td.map(gfn, pfn + 100), Ok(MapOutcome::Fixed)))
    } else {
        let aside = Aside::new(mock);
        run(&|gfn, pfn| aside.map(gfn, pfn + 100))
    };
    (took, most.load(SeqCst))
}

// Shows: R2, R23.
#[test]
fn faults_wait_for_each_other_off_to_the_side() {
    for threads in [1, 2, 4] {
        let (mut mirror, mut most) = faults(threads, true);
        let (aside, most_aside) = faults(threads, false);
        println!("{threads} vCPUs: mirror {mirror:?}, off to the side {aside:?}");
        assert_eq!(most_aside, 1);
        // On a machine that does much else, a thread may be done before the next one begins.
        for _ in 1..10 {
            if threads == 1 || most > 1 {
                break;
            }
            (mirror, most) = faults(threads, true);
            println!("{threads} vCPUs: mirror {mirror:?} once more");
        }
        assert!(most <= threads as usize);
        assert!(threads == 1 || most > 1, "no two SEAMCALLs at once");
    }
}
