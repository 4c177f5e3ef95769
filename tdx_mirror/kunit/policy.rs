// SPDX-License-Identifier: GPL-2.0

//! Budgets, decoding of busy operands, debts, progress of vCPUs.

#![forbid(unsafe_code)]

use super::td::{
    self,
    Td,
    BUSY_ENTRY,
    BUSY_EPOCH,
    BUSY_TDR,
    BUSY_TREE, //
};
use super::Outcome;
use crate::base::td::Operand;
use crate::mirror::error::{
    MapError,
    MapOutcome,
    RetryReason, //
};
use crate::sept::progress::{
    Action,
    Conditions,
    End,
    Notes,
    Policy,
    Progress,
    Why, //
};
use crate::sept::{
    FAULT_TRIES,
    HOLD_ROUNDS,
    LOCAL_ROUNDS,
    MAX_ENTERS,
    PAY_TRIES,
    WAIT_ROUNDS,
    ZAP_TRIES,
    ZERO_STEP_THRESHOLD, //
};
use crate::tdx::call::Kind;
use crate::tdx::status::TdxStatus;

const CONTENDED: MapOutcome = MapOutcome::Retry(RetryReason::Contended(Operand::SeptEntry));

/// No number of tries lets a vCPU reach the zero-step threshold.
// Shows: R5.
pub fn budgets_stay_below_the_zero_step_threshold(_: &Td) -> Outcome {
    ensure!(ZERO_STEP_THRESHOLD == 6);
    ensure!(FAULT_TRIES < ZERO_STEP_THRESHOLD && MAX_ENTERS < ZERO_STEP_THRESHOLD);
    ensure!(ZAP_TRIES == 2 && HOLD_ROUNDS > LOCAL_ROUNDS);
    Ok(())
}

/// A busy operand is retried, whether it is known to be locked there or not; what is no operand is
/// a bug.
// Shows: R14.
pub fn only_contendable_operands_are_retried(td: &Td) -> Outcome {
    let mirror = need!(td.mirror(false, 512));
    for (raw, status) in (0..).zip([BUSY_TREE, BUSY_ENTRY, BUSY_EPOCH, BUSY_TDR]) {
        let before = td.calls(Kind::PageAug);
        td.fail(Kind::PageAug, 0, 1, status);
        ensure!(td::map(td, &mirror, raw) == Ok(MapOutcome::Fixed));
        ensure!(td.calls(Kind::PageAug).saturating_sub(before) == 2);
    }
    ensure!(td.bugs.get() == 0 && td::zap(&mirror, 0, 4) == 4);
    for status in [TdxStatus::PREVIOUS_TLB_EPOCH_BUSY, TdxStatus::SYS_BUSY] {
        let mirror = need!(td.mirror(false, 512));
        let before = td.calls(Kind::PageAug);
        td.fail(Kind::PageAug, 0, 1, status.raw());
        ensure!(td::map(td, &mirror, 0) == Err(MapError::Bugged));
        ensure!(td.calls(Kind::PageAug).saturating_sub(before) == 1);
    }
    ensure!(td.bugs.get() == 2);
    Ok(())
}

/// A mark that a fault leaves is cleared by it, or owed until somebody clears it.
// Shows: R15.
pub fn a_mark_is_cleared_or_owed(td: &Td) -> Outcome {
    let mirror = need!(td.mirror(false, 512));
    let sept = mirror.external();
    td.fail(Kind::PageAug, 0, FAULT_TRIES, BUSY_ENTRY);
    ensure!(td::map(td, &mirror, 0) == Ok(CONTENDED));
    ensure!(td.calls(Kind::SeptRd) == 1 && !sept.owes(td::gfn(0)));

    td.fail(Kind::PageAug, 0, FAULT_TRIES, BUSY_ENTRY);
    td.fail(Kind::SeptRd, 0, PAY_TRIES, BUSY_ENTRY);
    ensure!(td::map(td, &mirror, 1) == Ok(CONTENDED));
    ensure!(sept.owes(td::gfn(1)) && !sept.owes(td::gfn(2)));
    ensure!(sept.stats().debts.get() == 2 && sept.stats().debts_paid.get() == 1);
    ensure!(td::zap(&mirror, 5, 6) == 0);
    ensure!(!sept.owes(td::gfn(1)));
    ensure!(sept.stats().debts_paid.get() == 2 && sept.stats().debts_lost.get() == 0);
    ensure!(!mirror.is_bugged() && td.broken.get() == 0);
    Ok(())
}

/// Asks again and again; answers how often that was granted, and the last answer.
fn rounds(progress: &Progress, notes: &mut Notes, now: Conditions) -> (u32, Action) {
    rounds_for(progress, notes, now, Why::Mirror(RetryReason::Frozen))
}

/// The same for another reason.
fn rounds_for(progress: &Progress, notes: &mut Notes, now: Conditions, why: Why) -> (u32, Action) {
    let mut granted = 0u32;
    loop {
        match progress.fault_retry(notes, 7, now, why, || false) {
            Action::Again if granted < 10_000 => granted = granted.saturating_add(1),
            last => return (granted, last),
        }
    }
}

/// A fault is retried locally a bounded number of times.
// Shows: R13, B32.
pub fn local_rounds_are_bounded(_: &Td) -> Outcome {
    let progress = Progress::new(Policy::Warn);
    let mut notes = Notes::default();
    ensure!(rounds(&progress, &mut notes, Conditions::NONE) == (LOCAL_ROUNDS, Action::Enter));
    ensure!(rounds(&progress, &mut notes, Conditions::PREFAULT) == (LOCAL_ROUNDS, Action::Exit));
    ensure!(rounds(&progress, &mut notes, Conditions::VM_DEAD) == (0, Action::Kill));
    ensure!(progress.stats().local_giveups.get() == 3);
    Ok(())
}

/// A vCPU near the threshold is held until its fault is served.
// Shows: R8, R16.
pub fn a_vcpu_near_the_threshold_is_held(_: &Td) -> Outcome {
    let progress = Progress::new(Policy::Warn);
    let mut notes = Notes {
        faults: MAX_ENTERS,
        ..Notes::default()
    };
    ensure!(rounds(&progress, &mut notes, Conditions::NONE) == (HOLD_ROUNDS, Action::Exit));
    ensure!(notes.held && progress.stats().held.get() == 1);
    let other = progress.fault_done(&mut notes, 8, Conditions::NONE, End::Mapped);
    ensure!(other.action == Action::Enter);
    ensure!(notes.held);
    let done = progress.fault_done(&mut notes, 7, Conditions::NONE, End::Mapped);
    ensure!(done.action == Action::Enter && !done.report);
    ensure!(!notes.held && notes.rounds == 0);
    Ok(())
}

/// What KVM itself asks for neither enters nor ends the VM; a new event enters near the threshold.
// Shows: R13, R16.
pub fn an_invalidation_costs_no_entry_and_no_vm(_: &Td) -> Outcome {
    let progress = Progress::new(Policy::Kill);
    let near = Notes {
        faults: MAX_ENTERS,
        repeats: MAX_ENTERS,
        ..Notes::default()
    };
    for mut notes in [Notes::default(), near] {
        let (none, event) = (Conditions::NONE, Conditions::EVENT);
        let waited = rounds_for(&progress, &mut notes, none, Why::Invalidation);
        ensure!(waited == (WAIT_ROUNDS, Action::Exit) && notes.held);
        let entered = rounds_for(&progress, &mut notes, event, Why::Invalidation);
        ensure!(entered == (0, Action::Enter) && !notes.held);
    }
    ensure!(progress.stats().killed.get() == 0);
    Ok(())
}

/// A signal and a memslot that goes end the local retry at once.
// Shows: B3.
pub fn a_signal_and_a_slot_end_the_rounds(_: &Td) -> Outcome {
    let progress = Progress::new(Policy::Kill);
    for now in [Conditions::SIGNAL, Conditions::SLOT_GONE] {
        let mut notes = Notes::default();
        ensure!(rounds(&progress, &mut notes, now) == (0, Action::Enter));
        let prefault = now.with(Conditions::PREFAULT);
        ensure!(rounds(&progress, &mut notes, prefault) == (0, Action::Exit));
        notes.faults = MAX_ENTERS;
        ensure!(rounds(&progress, &mut notes, now) == (0, Action::Exit));
        ensure!(notes.held);
    }
    ensure!(progress.stats().killed.get() == 0);
    Ok(())
}

/// The S-EPT busy for a VP.ENTER is counted, and reported once if the policy says so.
// Shows: R6, B31.
pub fn busy_of_vp_enter_is_counted_and_reported(_: &Td) -> Outcome {
    for (policy, reports) in [(Policy::Count, 0u32), (Policy::Warn, 1)] {
        let progress = Progress::new(policy);
        let mut reported = 0u32;
        for _ in 0..3 {
            let busy = progress.vp_enter_busy(TdxStatus::new(BUSY_TREE));
            ensure!(busy.action == Action::Enter);
            reported = reported.saturating_add(u32::from(busy.report));
        }
        let other = progress.vp_enter_busy(TdxStatus::new(BUSY_EPOCH));
        ensure!(other.action == Action::Enter && !other.report);
        ensure!(reported == reports);
        ensure!(progress.stats().vp_enter_busy.get() == 3);
        ensure!(progress.stats().vp_enter_busy_other.get() == 1);
    }
    Ok(())
}

/// The policy that ends the VM does so for either sign of a vCPU without progress.
// Shows: R7.
pub fn the_strict_policy_ends_the_vm(_: &Td) -> Outcome {
    let progress = Progress::new(need!(Policy::from_name("kill")));
    let busy = progress.vp_enter_busy(TdxStatus::new(BUSY_TREE));
    ensure!(busy.action == Action::Kill && busy.report);
    let mut notes = Notes {
        faults: MAX_ENTERS,
        ..Notes::default()
    };
    ensure!(rounds(&progress, &mut notes, Conditions::NONE) == (HOLD_ROUNDS, Action::Kill));
    ensure!(progress.stats().killed.get() == 1);
    ensure!(Policy::from_name("panic").is_none());
    Ok(())
}
