// SPDX-License-Identifier: GPL-2.0

//! Tests that run in the kernel (`tdx_mirror_kunit.ko`) and on the host from one source.
//!
//! A case is a function that answers why it failed instead of panicking, so that it needs neither
//! framework. [`each_suite!`] names all of them once: the crate of the module makes KUnit suites of
//! that list, the host's makes `#[test]`s.

use core::fmt;

/// Which condition of a case did not hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// Source file.
    pub file: &'static str,
    /// Its line.
    pub line: u32,
    /// The condition.
    pub what: &'static str,
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: expected {}", self.file, self.line, self.what)
    }
}

/// The end of a case.
pub type Outcome = Result<(), Failure>;

/// Ends a case unless the condition holds.
macro_rules! ensure {
    ($what:expr $(,)?) => {
        if !$what {
            return Err($crate::kunit::Failure {
                file: file!(),
                line: line!(),
                what: stringify!($what),
            });
        }
    };
}

/// The value in `Some` or `Ok`, or the end of the case.
macro_rules! need {
    ($value:expr $(,)?) => {
        match $value.into_iter().next() {
            Some(value) => value,
            None => {
                return Err($crate::kunit::Failure {
                    file: file!(),
                    line: line!(),
                    what: stringify!($value),
                })
            }
        }
    };
}

pub mod paths;
pub mod policy;
pub mod spte;
pub mod td;

/// Hands `$with!` every suite as `name, module: [case, ...];`.
#[macro_export]
macro_rules! each_suite {
    ($with:ident) => {
        $with! {
            tdx_mirror_spte, spte: [
                r33_values_are_kvms,
                r51_every_value_suppresses_ve,
                every_pair_has_one_answer,
                r27_one_class_maps_a_leaf,
                r28_r35_b30_bits_of_a_present_leaf,
                r29_another_pfn,
                r30_table_over_present,
                r32_a_leaf_is_rwx,
                r41_quarantine_is_final,
                positions_and_ranges,
            ];
            tdx_mirror_paths, paths: [
                r17_freeze_and_roll_back,
                b2_a_lost_freeze_hands_back_the_value,
                r31_map_and_zap,
                r4_b6_busy_map_keeps_nothing,
                r18_a_frozen_entry_ends_a_map,
                r29_b14_another_pfn_is_a_bug,
                r26_busy_zap,
                r49_batches,
                r41_b34_failed_removal,
                r9_failed_reclaim,
                r25_build_needs_no_tracking,
                r21_accounts,
            ];
            tdx_mirror_policy, policy: [
                r5_budgets,
                r14_operands,
                r15_debt_is_paid,
                r13_b32_local_rounds,
                r8_r16_hold,
                b3_b5_leave_at_once,
                r6_b31_busy_vp_enter,
                r7_kill,
            ];
        }
    };
}
