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
                values_are_kvms,
                every_value_suppresses_ve,
                every_pair_has_one_answer,
                one_class_maps_a_leaf,
                bits_of_a_present_leaf_call_nothing,
                another_pfn_is_a_bug,
                a_table_over_a_present_entry_is_a_bug,
                a_leaf_is_rwx,
                quarantine_is_final,
                positions_and_ranges,
            ];
            tdx_mirror_paths, paths: [
                a_dropped_freeze_leaves_the_old_value,
                a_lost_freeze_hands_back_the_value,
                mirror_equals_s_ept_after_maps_and_zaps,
                busy_map_keeps_nothing,
                a_frozen_entry_ends_a_map,
                another_pfn_is_a_bug,
                a_zap_survives_busy_at_each_step,
                one_track_and_one_kick_for_each_batch,
                a_failed_removal_quarantines,
                a_failed_reclaim_leaks_one_page,
                a_build_needs_neither_block_nor_track,
                every_page_that_is_taken_is_counted,
            ];
            tdx_mirror_policy, policy: [
                budgets_stay_below_the_zero_step_threshold,
                only_contendable_operands_are_retried,
                a_mark_is_cleared_or_owed,
                local_rounds_are_bounded,
                a_vcpu_near_the_threshold_is_held,
                an_invalidation_costs_no_entry_and_no_vm,
                a_signal_and_a_slot_end_the_rounds,
                busy_of_vp_enter_is_counted_and_reported,
                the_strict_policy_ends_the_vm,
            ];
        }
    };
}
