// SPDX-License-Identifier: GPL-2.0

//! `tdx_mirror_kunit.ko`: the cases of `kunit/` as KUnit suites, which run when it is loaded.
//!
//! A module of its own, because the suites of a module run at each load of it.

// The pure layers are `pub` for the crates of tools/testing/host.
#![allow(missing_docs, unreachable_pub)]

use kernel::prelude::*;
use pin_init::Zeroable;

#[macro_use]
pub mod kunit;
pub mod base;
pub mod mirror;
pub mod sept;
pub mod tdx;

use kunit::td::Td;
use kunit::{
    Failure,
    Outcome, //
};

module! {
    type: TdxMirrorKunit,
    name: "tdx_mirror_kunit",
    authors: ["The tdx-mirror developers"],
    description: "KUnit suites of tdx_mirror",
    license: "GPL",
}

struct TdxMirrorKunit;

impl kernel::Module for TdxMirrorKunit {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(TdxMirrorKunit)
    }
}

// SAFETY: Cells of integers, of booleans and of optional pointers, and pages: all zero is a value
// of each of them.
unsafe impl Zeroable for Td {}

/// Runs a case on a TD of its own. What did not hold goes to the log, KUnit gets the result.
fn run(case: fn(&Td) -> Outcome) -> Outcome {
    let outcome = match KVBox::<Td>::init(pin_init::init_zeroed(), GFP_KERNEL) {
        Ok(td) => case(&td),
        Err(_) => Err(Failure {
            file: file!(),
            line: line!(),
            what: "memory for a TD",
        }),
    };
    if let Err(failure) = &outcome {
        kernel::kunit::err(fmt!("    {failure:?}\n"));
    }
    outcome
}

macro_rules! kunit_suites {
    ($($suite:ident, $module:ident: [$($case:ident),* $(,)?];)*) => {
        $(
            #[kunit_tests($suite)]
            mod $suite {
                use super::kunit::$module as cases;
                use super::{
                    run,
                    Outcome, //
                };

                $(
                    #[test]
                    fn $case() -> Outcome {
                        run(cases::$case)
                    }
                )*
            }
        )*
    };
}

each_suite!(kunit_suites);
