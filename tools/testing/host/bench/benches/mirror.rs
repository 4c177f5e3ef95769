// SPDX-License-Identifier: GPL-2.0

//! Nanoseconds of the mirror's operations, without SEAMCALLs and without a kernel, and how two
//! threads scale. The last line is a JSON object with all figures, see scripts/bench-host.

use std::hint::black_box;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use criterion::Criterion;
use serde_json::{json, Map, Value};
use tdx_mirror_bench::{scale, Nothing, Td};
use tdx_mirror_host::aside::Aside;
use tdx_mirror_host::base::addr::{Gfn, Pfn};
use tdx_mirror_host::base::level::{Level, Position};
use tdx_mirror_host::mirror::cell::SpteCell;
use tdx_mirror_host::mirror::frozen::FrozenSpte;
use tdx_mirror_host::mirror::lock::Shared;
use tdx_mirror_host::mirror::spte::{Spte, Transition};

/// Pages that a map or zap works on at a time: one table.
const PAGES: u64 = 512;
/// Tables below the root for one GiB, and what is above.
const TABLES: usize = 513 + 3;
/// Maps of one thread in a round of the scaling: some milliseconds.
const ROUND: u64 = 64 * 512;
/// Undisturbed rounds that are wanted, and how many are tried.
const ROUNDS: usize = 15;
const TRIES: usize = 400;

/// Time for `count` operations in portions of [`PAGES`], of which `prepare` makes each possible.
fn portions<S>(
    count: u64,
    mut prepare: impl FnMut() -> S,
    mut run: impl FnMut(&mut S),
) -> Duration {
    let mut took = Duration::ZERO;
    for _ in 0..count.div_ceil(PAGES) {
        let mut state = prepare();
        let start = Instant::now();
        run(&mut state);
        took += start.elapsed();
    }
    // Of the operations that were asked for.
    took.mul_f64(count as f64 / (count.div_ceil(PAGES) * PAGES) as f64)
}

fn operations(c: &mut Criterion) {
    let linked = || {
        let td = Td::new(8);
        td.map_all(0, 1);
        td
    };
    let full = || {
        let td = Td::new(8);
        td.map_all(0, PAGES);
        td
    };
    c.bench_function("map", |b| {
        b.iter_custom(|n| portions(n, linked, |td| td.map_all(1, PAGES - 1)))
    });
    c.bench_function("zap", |b| {
        b.iter_custom(|n| portions(n, full, |td| assert_eq!(td.zap(0, PAGES), PAGES)))
    });
    let td = full();
    let mut gfn = 0;
    c.bench_function("walk", |b| {
        b.iter(|| {
            gfn = (gfn + 1) % PAGES;
            td.walk(black_box(gfn))
        })
    });
    c.bench_function("spurious", |b| {
        b.iter(|| {
            gfn = (gfn + 1) % PAGES;
            td.map(black_box(gfn))
        })
    });
    let pfn = Pfn::new(77).expect("a PFN");
    let (none, leaf) = (Spte::NON_PRESENT, Spte::leaf(pfn, Level::L4K));
    c.bench_function("classify", |b| {
        b.iter(|| Transition::classify(black_box(none), black_box(leaf), black_box(Level::L4K)))
    });
    let cell = SpteCell::new(none);
    let at = Position::covering(Gfn::new(0).expect("a GFN"), Level::L4K);
    // SAFETY: nobody else has the cell.
    let shared = unsafe { Shared::assume_held() };
    c.bench_function("freeze", |b| {
        b.iter(|| drop(FrozenSpte::freeze(&shared, black_box(&cell), at, none)))
    });
}

/// The variant off to the side, over the same S-EPT.
fn off_to_the_side(c: &mut Criterion) {
    let full = || {
        let aside = Aside::new(Nothing);
        (0..PAGES).for_each(|gfn| aside.map(gfn, gfn));
        aside
    };
    c.bench_function("aside_map", |b| {
        b.iter_custom(|n| {
            let linked = || {
                let aside = Aside::new(Nothing);
                aside.map(0, 0);
                aside
            };
            portions(n, linked, |aside| {
                (1..PAGES).for_each(|gfn| aside.map(gfn, gfn))
            })
        })
    });
    c.bench_function("aside_zap", |b| {
        b.iter_custom(|n| portions(n, full, |aside| (0..PAGES).for_each(|gfn| aside.zap(gfn))))
    });
}

/// Two threads against one.
fn scaling() -> Map<String, Value> {
    let mut figures = Map::new();
    let mut note = |name: &str, scale: Option<scale::Scale>| {
        let value = scale.map_or(Value::Null, |s| json!((s.factor * 1000.0).round() / 1000.0));
        println!("{name}: {scale:?}");
        figures.insert(name.into(), value);
    };
    // A GiB for each thread, so that the tables of neither are the other's but for the root's.
    let disjoint = |td: &Td, n: u64| td.map_all((n << 18) + 1, ROUND - 1);
    let ready = || {
        let td = Td::new(2 * TABLES);
        (0..2).for_each(|n| td.map_all(n << 18, 1));
        td
    };
    note("scale2", scale::measure(ROUNDS, TRIES, ready, disjoint));
    // One table's entries by turns.
    let shared = |td: &Td, n: u64| {
        for gfn in 0..ROUND {
            let _ = black_box(td.map(2 * gfn + n));
        }
    };
    note(
        "scale2_shared",
        scale::measure(ROUNDS, TRIES, ready, shared),
    );
    let walks = |td: &Td, n: u64| {
        for gfn in 0..ROUND * 4 {
            black_box(td.walk((n << 18) + gfn % PAGES));
        }
    };
    note("scale2_walk", scale::measure(ROUNDS, TRIES, ready, walks));
    let aside = |aside: &Aside<Nothing>, n: u64| {
        (1..ROUND).for_each(|gfn| aside.map((n << 18) + gfn, gfn));
    };
    note(
        "scale2_aside",
        scale::measure(5, TRIES / 4, || Aside::new(Nothing), aside),
    );
    figures
}

/// Median of nanoseconds that criterion found.
fn nanoseconds(dir: &Path, name: &str) -> Option<f64> {
    let text = std::fs::read_to_string(dir.join(name).join("new/estimates.json")).ok()?;
    let estimates: Value = serde_json::from_str(&text).ok()?;
    let ns = estimates.get("median")?.get("point_estimate")?.as_f64()?;
    Some((ns * 100.0).round() / 100.0)
}

fn main() -> ExitCode {
    let dir = std::env::temp_dir().join(format!("tdx-mirror-bench-{}", std::process::id()));
    let mut c = Criterion::default()
        .output_directory(&dir)
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    operations(&mut c);
    off_to_the_side(&mut c);
    let mut figures = scaling();
    for name in [
        "map",
        "zap",
        "walk",
        "spurious",
        "classify",
        "freeze",
        "aside_map",
        "aside_zap",
    ] {
        let Some(ns) = nanoseconds(&dir, name) else {
            eprintln!("no result for {name}");
            return ExitCode::FAILURE;
        };
        figures.insert(format!("{name}_ns"), json!(ns));
    }
    // Only this run's own folder.
    let _ = std::fs::remove_dir_all(&dir);
    let ratio = |aside: &str, mirror: &str| {
        let ns = |name: &str| figures.get(name).and_then(Value::as_f64);
        Some((ns(aside)? / ns(mirror)? * 100.0).round() / 100.0)
    };
    let (map, zap) = (
        ratio("aside_map_ns", "map_ns"),
        ratio("aside_zap_ns", "zap_ns"),
    );
    figures.insert(
        "aside".into(),
        json!({ "fault_seq": map, "prefault": map, "zap_512": zap }),
    );
    println!("@host {}", Value::Object(figures));
    ExitCode::SUCCESS
}
