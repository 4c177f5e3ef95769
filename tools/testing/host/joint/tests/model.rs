// SPDX-License-Identifier: GPL-2.0

//! Random operations on TDs under the mirror, over the software TDX module, against an oracle.
//! 10^5 steps, or `TDX_MIRROR_STEPS`; `make soak` runs 10^7.

use tdx_joint_host::drive::{any_seed, run, Plan};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// After every step: mirror equals S-EPT in all entries; the set of mappings is the oracle's and
/// injective in both directions; no GFN is mapped private and shared; parents come before
/// children, for the module never answers that a walk failed; accounts and counters are exact.
/// PFNs are frame numbers of the emulated machine, which this program has no memory for.
// Shows: R20, R21, R31, R40, R44, B9, B14, B34.
#[test]
fn mirror_equals_the_emulated_s_ept() {
    let plan = Plan {
        steps: number("TDX_MIRROR_STEPS").unwrap_or(100_000),
        seed: number("TDX_MIRROR_SEED").unwrap_or_else(any_seed),
        whole: 1,
        progress: true,
    };
    let report = run(&plan).unwrap_or_else(|why| panic!("{why}"));
    let seconds = report.took.as_secs_f64();
    println!("{} steps, {seconds:.0} s: {}", report.steps, report.tally);
    assert!(report.steps >= plan.steps);
    if plan.steps >= 100_000 {
        assert_eq!(report.tally.missing(), [""; 0], "never happened");
    }
}
