// SPDX-License-Identifier: GPL-2.0

//! Arbitrary sequences of leaves, guest actions, held locks and interrupts against a second
//! description of what the TDX module answers (model.rs). After each call status, registers,
//! counters and the entry are compared, at the end every S-EPT and PAMT entry, and that the
//! TD can be taken down.
//!
//! TDX_EMU_CALLS sets the number of calls, TDX_EMU_SEED the seed. A failure is shrunk, and
//! the calls that are left of it are printed.

mod exec;
mod model;

use std::collections::BTreeMap;
use std::sync::Mutex;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use exec::{run, Case, Kind, Step, KINDS};

/// How often each answer was given: leaf, class of the status.
type Seen = BTreeMap<(u64, u64), u64>;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().expect("a number"))
}

fn kind() -> impl Strategy<Value = Kind> {
    let weighted: Vec<_> = KINDS
        .iter()
        .map(|&(weight, kind)| (weight, Just(kind)))
        .collect();
    proptest::strategy::Union::new_weighted(weighted)
}

fn case() -> impl Strategy<Value = Case> {
    let numbers = any::<(u16, u16, u16, u16)>();
    let step = (kind(), numbers).prop_map(|(kind, (at, page, more, luck))| Step {
        kind,
        at,
        page,
        more,
        luck,
    });
    (0..12u8, vec(step, 1..1200)).prop_map(|(shape, steps)| Case { shape, steps })
}

/// Runs cases until there were `calls` calls.
fn explore(seed: u64, calls: u64) -> (u64, Seen) {
    let config = Config {
        cases: 8,
        failure_persistence: None,
        max_shrink_iters: u32::try_from(number("TDX_EMU_SHRINK", 1000)).unwrap_or(0),
        ..Config::default()
    };
    let total = Mutex::new((0, Seen::new()));
    let mut round = 0u64;
    while total.lock().unwrap().0 < calls {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&round.to_le_bytes());
        round += 1;
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(config.clone(), rng);
        let result = runner.run(&case(), |case| {
            let done = run(&case).map_err(TestCaseError::fail)?;
            let mut total = total.lock().unwrap();
            total.0 += done.calls;
            for (k, n) in done.seen {
                *total.1.entry(k).or_default() += n;
            }
            Ok(())
        });
        match result {
            Ok(()) => {}
            Err(TestError::Fail(why, case)) => {
                let steps = case.steps.len();
                panic!("seed {seed}, {steps} steps, shape {}: {why}", case.shape)
            }
            Err(e) => panic!("{e}"),
        }
    }
    total.into_inner().unwrap()
}

#[test]
fn emulator_and_model_agree() {
    let calls = number("TDX_EMU_CALLS", 100_000);
    let seed = number("TDX_EMU_SEED", 1);
    // One sequence of cases on each CPU.
    let (a, b) = std::thread::scope(|s| {
        let other = s.spawn(|| explore(seed, calls / 2));
        (explore(seed + 1_000_000, calls / 2), other.join())
    });
    let b = b.unwrap_or_else(|e| std::panic::resume_unwind(e));
    let mut seen = a.1;
    for (k, n) in b.1 {
        *seen.entry(k).or_default() += n;
    }
    for ((leaf, status), n) in &seen {
        println!("leaf {leaf:5} status {status:#018x} {n:8}");
    }
    println!("calls {}", a.0 + b.0);
    assert!(a.0 + b.0 >= calls);
    for (leaf, status) in exec::REACHED {
        assert!(
            seen.contains_key(&(leaf, status)),
            "leaf {leaf} never answered {status:#x}"
        );
    }
}
