// SPDX-License-Identifier: GPL-2.0

//! Runs random sequences against the oracle, shrinks the one that fails and says how far it is.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::RandomState;
use std::fmt::Write as _;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use tdx_emu_host::instruments::CheckLevel;

use crate::model::Model;
use crate::ops;
use crate::tally::Tally;
use crate::td::Machine;

/// Steps of one sequence, on average; each begins with a TD of its own.
pub const SEQUENCE: usize = 200;

/// What to run.
pub struct Plan {
    pub steps: u64,
    pub seed: u64,
    /// After how many steps all entries are compared, and not only those of the GFNs in use.
    pub whole: u32,
    /// Says every second or two how far it is.
    pub progress: bool,
}

/// What was run.
pub struct Report {
    pub steps: u64,
    pub took: Duration,
    /// What happened.
    pub tally: Arc<Tally>,
}

/// A seed for a run that names none.
pub fn any_seed() -> u64 {
    RandomState::new().hash_one(Instant::now())
}

fn rng(seed: u64, batch: u64) -> TestRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&batch.to_le_bytes());
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

struct Progress<'p> {
    plan: &'p Plan,
    start: Instant,
    said: Cell<Instant>,
    done: Cell<u64>,
    /// A sequence is under way; one that begins with this set is a shorter form of one that failed.
    busy: Cell<bool>,
    shrinking: Cell<bool>,
}

impl Progress<'_> {
    fn say(&self) {
        if !self.plan.progress || self.said.get().elapsed() < Duration::from_millis(1500) {
            return;
        }
        self.said.set(Instant::now());
        if self.shrinking.get() {
            println!("soak: a difference; making its sequence shorter");
            return;
        }
        let (done, all) = (self.done.get(), self.plan.steps);
        let rate = done as f64 / self.start.elapsed().as_secs_f64();
        let eta = all.saturating_sub(done) as f64 / rate.max(1.0);
        println!("soak: {done} of {all} steps, {rate:.0} a second, {eta:.0} s to go");
    }
}

/// Runs the plan.
///
/// # Errors
///
/// The first difference: seed, shrunk sequence and what differs.
pub fn run(plan: &Plan) -> Result<Report, String> {
    let start = Instant::now();
    let config = Config {
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let progress = Progress {
        plan,
        start,
        said: Cell::new(start),
        done: Cell::new(0),
        busy: Cell::new(false),
        shrinking: Cell::new(false),
    };
    let tally: Arc<Tally> = Arc::default();
    let machine: RefCell<Option<Arc<Machine>>> = RefCell::new(None);
    let strategy = ops::steps(SEQUENCE);
    // The thorough runs also look inside the module.
    let level = match plan.whole {
        0 | 1 => CheckLevel::Touched,
        _ => CheckLevel::Off,
    };
    let case = |steps: Vec<ops::Step>| {
        // One that a failure left in the middle of something is not used again.
        let m = machine.borrow_mut().take();
        let m = m.unwrap_or_else(|| Machine::checked(level));
        let failed = progress.busy.replace(true);
        progress.shrinking.set(progress.shrinking.get() | failed);
        progress.say();
        let mut model = Box::new(Model::new(&m, plan.whole, &tally));
        for step in &steps {
            model = model.run(step);
            progress.say();
            progress.done.set(progress.done.get() + 1);
        }
        model.end(None);
        progress.busy.set(false);
        *machine.borrow_mut() = Some(m);
        Ok(())
    };
    let mut result = Ok(());
    let mut batch = 0u64;
    while result.is_ok() && progress.done.get() < plan.steps {
        // As many sequences as should do it; they differ in length.
        let left = plan.steps - progress.done.get();
        let config = Config {
            cases: left.div_ceil(SEQUENCE as u64).min(1000) as u32,
            ..config.clone()
        };
        let mut runner = TestRunner::new_with_rng(config, rng(plan.seed, batch));
        result = runner.run(&strategy, case);
        batch += 1;
    }
    match result {
        Ok(()) => Ok(Report {
            steps: progress.done.get(),
            took: start.elapsed(),
            tally,
        }),
        Err(TestError::Fail(why, steps)) => {
            let mut text = format!("seed {}\n", plan.seed);
            for step in &steps {
                _ = writeln!(text, "    {step:?}");
            }
            Err(format!("{text}{why}"))
        }
        Err(TestError::Abort(why)) => Err(format!("seed {}: {why}", plan.seed)),
    }
}
