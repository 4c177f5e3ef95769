// SPDX-License-Identifier: GPL-2.0

//! A long run of random operations against the oracle.

use std::process::ExitCode;

use tdx_joint_host::drive::{any_seed, run, Plan};

const USAGE: &str = "usage: soak
Random operations on TDs under the mirror, over the software TDX module.  After
each step the mirror equals the S-EPT and the oracle.
  TDX_MIRROR_STEPS=<n>   steps, default 10000000
  TDX_MIRROR_SEED=<n>    seed, default random
  TDX_MIRROR_WHOLE=<n>   all entries are compared every n steps, default 16
status: 0 no difference, 1 a difference, 2 wrong use";

fn number(name: &str, default: u64) -> Result<u64, String> {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .map_err(|_| format!("{name}: no number: {text}")),
        Err(_) => Ok(default),
    }
}

fn plan() -> Result<Plan, String> {
    Ok(Plan {
        steps: number("TDX_MIRROR_STEPS", 10_000_000)?,
        seed: number("TDX_MIRROR_SEED", any_seed())?,
        whole: number("TDX_MIRROR_WHOLE", 16)?.clamp(1, 1 << 30) as u32,
        progress: true,
    })
}

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => (),
        Some("-h" | "--help") => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Some(_) => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    let plan = match plan() {
        Ok(plan) => plan,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    println!("soak: {} steps, seed {}", plan.steps, plan.seed);
    // A difference is a panic; what it says is printed once, with the shortest sequence.
    std::panic::set_hook(Box::new(|_| ()));
    match run(&plan) {
        Ok(report) => {
            let (steps, s) = (report.steps, report.took.as_secs_f64());
            println!("soak: {}", report.tally);
            println!("soak: {s:.0} s, {:.0} steps a second", steps as f64 / s);
            println!("soak: {steps} steps, 0 differences");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("soak: {why}");
            println!("soak: a difference");
            ExitCode::FAILURE
        }
    }
}
