// SPDX-License-Identifier: GPL-2.0

//! The cases of tdx_mirror/kunit, which tdx_mirror_kunit.ko runs in the kernel, on the host.

use std::alloc::{alloc_zeroed, handle_alloc_error, Layout};

use tdx_mirror_host::kunit::td::Td;
use tdx_mirror_host::kunit::Outcome;

fn run(case: fn(&Td) -> Outcome) {
    let layout = Layout::new::<Td>();
    // SAFETY: The layout is not empty.
    let memory = unsafe { alloc_zeroed(layout) }.cast::<Td>();
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    // SAFETY: All zero is a TD, and the memory is one that a box of it would have.
    let td = unsafe { Box::from_raw(memory) };
    if let Err(failure) = case(&td) {
        panic!("{failure:?}");
    }
}

macro_rules! host_suites {
    ($($suite:ident, $module:ident: [$($case:ident),* $(,)?];)*) => {
        $(
            mod $suite {
                use super::run;
                use tdx_mirror_host::kunit::$module as cases;

                $(
                    #[test]
                    fn $case() {
                        run(cases::$case);
                    }
                )*
            }
        )*
    };
}

tdx_mirror_host::each_suite!(host_suites);
