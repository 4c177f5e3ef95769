// SPDX-License-Identifier: GPL-2.0

//! vCPUs without progress: bounded rounds, at most five VP.ENTERs at one RIP, policies.

use std::sync::{Arc, Mutex, OnceLock};
use tdx_mirror_host::base::addr::{Gfn, Pfn};
use tdx_mirror_host::base::level::Level;
use tdx_mirror_host::base::td::Operand;
use tdx_mirror_host::faults::{
    faulted, served, EVENT, NONE, POLICIES, PREFAULT, SIGNAL, SLOT_GONE, VM_DEAD, WHY,
};
use tdx_mirror_host::mirror::error::{MapOutcome, RetryReason};
use tdx_mirror_host::mirror::lock::Shared;
use tdx_mirror_host::mock::{status, Event::Call, Mock};
use tdx_mirror_host::sept::progress::{
    Action, Conditions, EnterBusy, Notes, Policy, Progress, Why,
};
use tdx_mirror_host::sept::{
    FAULT_TRIES, HOLD_ROUNDS, LOCAL_ROUNDS, MAX_ENTERS, PAY_TRIES, WAIT_ROUNDS, ZERO_STEP_THRESHOLD,
};
use tdx_mirror_host::tdx::call::Kind;
use tdx_mirror_host::tdx::status::{OperandId, TdxStatus};
use tdx_mirror_host::vm::Td;

/// Asks until the answer is another one than to map again: how often it was that, and the answer.
fn ask(p: &Progress, notes: &mut Notes, gfn: u64, now: Conditions, owes: bool) -> (u32, Action) {
    for rounds in 0..=HOLD_ROUNDS {
        match p.fault_retry(notes, gfn, now, WHY, || owes) {
            Action::Again => (),
            other => return (rounds, other),
        }
    }
    panic!("no bound");
}

// Shows: R5.
#[test]
fn the_numbers_follow_from_the_threshold_and_from_accept() {
    assert_eq!(ZERO_STEP_THRESHOLD, 6);
    assert_eq!(MAX_ENTERS, 5);
    assert_eq!(LOCAL_ROUNDS, 103);
    assert_eq!((HOLD_ROUNDS, WAIT_ROUNDS), (515, 515));
    const { assert!(LOCAL_ROUNDS * FAULT_TRIES >= 512 && PAY_TRIES == FAULT_TRIES) };
}

// Shows: R4, B32.
#[test]
fn local_rounds_are_bounded() {
    for policy in POLICIES {
        for faults in 0..MAX_ENTERS {
            let p = Progress::new(policy);
            let mut notes = faulted(faults);
            assert_eq!(
                ask(&p, &mut notes, 7, NONE, false),
                (LOCAL_ROUNDS, Action::Enter)
            );
            assert_eq!(
                notes,
                Notes {
                    gfn: 7,
                    ..faulted(faults)
                }
            );
            // A fault after the next VP.ENTER has all its rounds again.
            assert_eq!(
                ask(&p, &mut notes, 7, NONE, false),
                (LOCAL_ROUNDS, Action::Enter)
            );
            let s = p.stats();
            assert_eq!(s.local_retries.get(), 2 * u64::from(LOCAL_ROUNDS));
            assert_eq!(s.local_giveups.get(), 2);
            assert_eq!((s.held.get(), s.killed.get()), (0, 0));
        }
    }
}

// Shows: R13, B3, B4, B5, B24.
#[test]
fn what_ends_a_fault_at_once() {
    // (conditions, far from the threshold, near it)
    let table = [
        (SIGNAL, Action::Enter, Action::Exit),
        (SLOT_GONE, Action::Enter, Action::Exit),
        (VM_DEAD, Action::Kill, Action::Kill),
        (
            VM_DEAD.with(SIGNAL).with(SLOT_GONE),
            Action::Kill,
            Action::Kill,
        ),
    ];
    for policy in POLICIES {
        for (now, far, near) in table {
            for faults in 0..10 {
                let p = Progress::new(policy);
                let mut notes = faulted(faults);
                let wanted = if faults < MAX_ENTERS { far } else { near };
                let got = ask(&p, &mut notes, 7, now, false);
                assert_eq!(got, (0, wanted), "{now:?}, {faults} faults");
                // Whoever leaves near the threshold comes back to that fault first.
                let held = wanted == Action::Exit;
                assert_eq!(notes.held, held, "{now:?}, {faults} faults");
                assert_eq!(p.stats().held.get(), u64::from(held));
                assert_eq!(p.stats().local_giveups.get(), 1);
                assert_eq!(p.stats().killed.get(), 0, "not the policy's doing");
            }
        }
    }
}

// Shows: R13.
#[test]
fn a_held_vcpu_leaves_for_a_signal() {
    for after in [1, LOCAL_ROUNDS, LOCAL_ROUNDS + 1, HOLD_ROUNDS - 1] {
        for now in [SIGNAL, SLOT_GONE] {
            for policy in POLICIES {
                let p = Progress::new(policy);
                let mut notes = faulted(MAX_ENTERS);
                for _ in 0..after {
                    assert_eq!(
                        p.fault_retry(&mut notes, 7, NONE, WHY, || false),
                        Action::Again
                    );
                }
                assert_eq!(notes.held, after > LOCAL_ROUNDS);
                assert_eq!(
                    p.fault_retry(&mut notes, 7, now, WHY, || false),
                    Action::Exit
                );
                assert!(notes.held);
                assert_eq!(p.stats().held.get(), 1);
                assert_eq!(p.stats().killed.get(), 0, "the fault is not at its end");
            }
        }
    }
}

// Shows: R8.
#[test]
fn near_the_threshold_a_vcpu_is_held() {
    for faults in [MAX_ENTERS, MAX_ENTERS + 1, 100, u32::MAX] {
        for policy in [Policy::Count, Policy::Warn] {
            let p = Progress::new(policy);
            let mut notes = faulted(faults);
            for round in 1..=HOLD_ROUNDS {
                assert_eq!(
                    p.fault_retry(&mut notes, 7, NONE, WHY, || false),
                    Action::Again
                );
                assert_eq!(notes.held, round > LOCAL_ROUNDS, "round {round}");
                assert_eq!(notes.rounds, round);
            }
            assert_eq!(
                p.fault_retry(&mut notes, 7, NONE, WHY, || false),
                Action::Exit
            );
            assert_eq!((notes.held, notes.rounds), (true, 0));
            // Userspace comes back, and the vCPU has not entered.
            let more = ask(&p, &mut notes, 7, NONE, false);
            assert_eq!(more, (HOLD_ROUNDS, Action::Exit));
            assert_eq!(p.stats().held.get(), 1, "one fault, held once");
            served(&p, &mut notes, 7);
            assert_eq!(
                notes,
                Notes {
                    gfn: 7,
                    ..faulted(faults)
                }
            );
            // The next fault is another one.
            assert_eq!(ask(&p, &mut notes, 8, NONE, false).1, Action::Exit);
            assert_eq!(p.stats().held.get(), 2);
            assert_eq!(p.stats().local_giveups.get(), 3);
        }
    }
}

// Shows: R7.
#[test]
fn strict_policy_ends_the_vm_at_the_cusp() {
    let p = Progress::new(Policy::Kill);
    let mut notes = Notes::default();
    // One GPA again and again without progress.
    for faults in 1..MAX_ENTERS {
        notes.faults = faults;
        assert_eq!(ask(&p, &mut notes, 7, NONE, false).1, Action::Enter);
        assert_eq!(p.stats().killed.get(), 0);
    }
    notes.faults = ZERO_STEP_THRESHOLD - 1;
    assert_eq!(
        ask(&p, &mut notes, 7, NONE, false),
        (HOLD_ROUNDS, Action::Kill)
    );
    assert_eq!(p.stats().killed.get(), 1);
    // One VM dies once, whatever its other vCPUs do.
    let mut other = faulted(50);
    assert_eq!(
        ask(&p, &mut other, 9, EVENT, false),
        (HOLD_ROUNDS, Action::Kill)
    );
    assert_eq!(p.stats().killed.get(), 1);
    for policy in [Policy::Count, Policy::Warn] {
        let p = Progress::new(policy);
        assert_eq!(ask(&p, &mut faulted(5), 7, NONE, false).1, Action::Exit);
        assert_eq!(p.stats().killed.get(), 0);
    }
}

// Shows: B3, B5.
#[test]
fn prefault_is_bounded_and_never_enters() {
    for policy in POLICIES {
        for faults in [0, 1, MAX_ENTERS, 100] {
            let p = Progress::new(policy);
            let mut notes = faulted(faults);
            for now in [NONE, EVENT] {
                let got = ask(&p, &mut notes, 7, now.with(PREFAULT), false);
                assert_eq!(got, (LOCAL_ROUNDS, Action::Exit));
            }
            for now in [SIGNAL, SLOT_GONE] {
                let got = ask(&p, &mut notes, 7, now.with(PREFAULT), false);
                assert_eq!(got, (0, Action::Exit), "{now:?}");
            }
            let got = ask(&p, &mut notes, 7, VM_DEAD.with(PREFAULT), false);
            assert_eq!(got, (0, Action::Kill));
            assert!(!notes.held, "no VP.ENTER follows");
            assert_eq!((p.stats().held.get(), p.stats().killed.get()), (0, 0));
            assert_eq!(p.stats().local_giveups.get(), 5);
        }
    }
}

// Shows: R15.
#[test]
fn a_fault_that_owes_does_not_leave_for_a_signal_at_once() {
    let p = Progress::new(Policy::Warn);
    // (conditions, faults, rounds, answer)
    let table = [
        (SIGNAL, 0, LOCAL_ROUNDS, Action::Enter),
        (EVENT, 0, LOCAL_ROUNDS, Action::Enter),
        (SIGNAL.with(EVENT), 0, LOCAL_ROUNDS, Action::Enter),
        (SIGNAL.with(PREFAULT), 0, LOCAL_ROUNDS, Action::Exit),
        (SIGNAL, MAX_ENTERS, LOCAL_ROUNDS, Action::Exit),
        (EVENT, MAX_ENTERS, LOCAL_ROUNDS, Action::Enter),
        (EVENT, ZERO_STEP_THRESHOLD, HOLD_ROUNDS, Action::Exit),
        (NONE, MAX_ENTERS, HOLD_ROUNDS, Action::Exit),
        // Whoever deletes the slot waits for this thread, and its zap pays.
        (SLOT_GONE, 0, 0, Action::Enter),
        (SLOT_GONE, MAX_ENTERS, 0, Action::Exit),
        (SLOT_GONE.with(PREFAULT), 0, 0, Action::Exit),
        (VM_DEAD, 0, 0, Action::Kill),
    ];
    for (now, faults, rounds, action) in table {
        let mut notes = faulted(faults);
        let got = ask(&p, &mut notes, 7, now, true);
        assert_eq!(got, (rounds, action), "{now:?}, {faults} faults");
    }
    // It leaves as soon as the mark is cleared.
    let mut notes = faulted(0);
    for _ in 0..10 {
        assert_eq!(
            p.fault_retry(&mut notes, 7, SIGNAL, WHY, || true),
            Action::Again
        );
    }
    assert_eq!(
        p.fault_retry(&mut notes, 7, SIGNAL, WHY, || false),
        Action::Enter
    );
}

// Shows: R4.
#[test]
fn each_retry_is_counted_by_its_reason() {
    let p = Progress::new(Policy::Warn);
    let reasons = [
        (Why::Invalidation, 1),
        (Why::Mirror(RetryReason::Frozen), 2),
        (Why::Mirror(RetryReason::Contended(Operand::SeptTree)), 3),
        (Why::Mirror(RetryReason::Contended(Operand::SeptEntry)), 4),
        (Why::Mirror(RetryReason::NoPage), 5),
    ];
    for (why, times) in reasons {
        for _ in 0..times {
            // None of them changes what is answered.
            let mut notes = faulted(0);
            assert_eq!(
                p.fault_retry(&mut notes, 7, NONE, why, || false),
                Action::Again
            );
        }
    }
    let stats = p.stats();
    assert_eq!(stats.why_invalidation.get(), 1);
    assert_eq!(stats.why_frozen.get(), 2);
    assert_eq!(stats.why_contended.get(), 7);
    assert_eq!(stats.why_no_page.get(), 5);
    assert_eq!(stats.local_retries.get(), 15);
}

// Shows: R15.
#[test]
fn the_marks_are_asked_only_for_a_vcpu_with_something_else_to_do() {
    let p = Progress::new(Policy::Warn);
    for now in [NONE, PREFAULT, SLOT_GONE, VM_DEAD] {
        for faults in [0, MAX_ENTERS] {
            let mut notes = faulted(faults);
            let _ = p.fault_retry(&mut notes, 7, now, WHY, || panic!("asked for {now:?}"));
        }
    }
    for now in [SIGNAL, EVENT, SIGNAL.with(EVENT), SIGNAL.with(PREFAULT)] {
        let mut asked = 0;
        let _ = p.fault_retry(&mut faulted(0), 7, now, WHY, || {
            asked += 1;
            true
        });
        assert_eq!(asked, 1, "{now:?}");
    }
}

// Shows: R16.
#[test]
fn another_fault_begins_anew() {
    let p = Progress::new(Policy::Warn);
    let mut notes = faulted(2);
    for gfn in [5, 6, 5] {
        for round in 1..=50 {
            assert_eq!(
                p.fault_retry(&mut notes, gfn, NONE, WHY, || false),
                Action::Again
            );
            assert_eq!((notes.gfn, notes.rounds), (gfn, round));
        }
    }
    // What counts is not changed here: it is the VP.ENTERs, which KVM sees.
    assert_eq!(notes.faults, 2);
    // The end of another fault is none of this one.
    served(&p, &mut notes, 6);
    assert_eq!(notes.rounds, 50);
    served(&p, &mut notes, 5);
    assert_eq!((notes.rounds, notes.held), (0, false));
    assert_eq!(notes.faults, 2);
    // Held is held for one GFN.
    let mut notes = faulted(MAX_ENTERS);
    assert_eq!(ask(&p, &mut notes, 5, NONE, false).1, Action::Exit);
    assert!(notes.held);
    served(&p, &mut notes, 6);
    assert!(notes.held);
    assert_eq!(
        p.fault_retry(&mut notes, 6, NONE, WHY, || false),
        Action::Again
    );
    assert!(!notes.held);
}

// Shows: R6, B31.
#[test]
fn busy_of_vp_enter_is_counted_and_the_policy_acts() {
    // (policy, first, later)
    let enter = |report| EnterBusy {
        action: Action::Enter,
        report,
    };
    let kill = |report| EnterBusy {
        action: Action::Kill,
        report,
    };
    for (policy, first, later, killed) in [
        (Policy::Count, enter(false), enter(false), 0),
        (Policy::Warn, enter(true), enter(false), 0),
        (Policy::Kill, kill(true), kill(false), 1),
    ] {
        let p = Progress::new(policy);
        assert_eq!(p.vp_enter_busy(status::TREE_BUSY), first);
        for _ in 0..3 {
            assert_eq!(p.vp_enter_busy(status::TREE_BUSY), later);
        }
        assert_eq!(p.stats().vp_enter_busy.get(), 4);
        assert_eq!(p.stats().vp_enter_busy_other.get(), 0);
        assert_eq!(p.stats().killed.get(), killed);
        assert_eq!(p.policy(), policy);
    }
}

// Shows: R36.
#[test]
fn a_guest_may_be_listed_by_its_own_doing() {
    // Exits 1 to 6 at one RIP only count, the 7th lists the GPA.
    for faults in 0..=ZERO_STEP_THRESHOLD {
        assert!(!faulted(faults).may_be_listed(), "{faults}");
    }
    for faults in [ZERO_STEP_THRESHOLD + 1, u32::MAX] {
        assert!(faulted(faults).may_be_listed(), "{faults}");
    }
}

// Shows: R14.
#[test]
fn other_operands_of_vp_enter_are_no_bug() {
    for policy in POLICIES {
        let p = Progress::new(policy);
        let others = [
            status::EPOCH_BUSY,
            status::TDR_BUSY,
            status::ENTRY_BUSY,
            TdxStatus::OPERAND_BUSY.with_operand(OperandId::OP_STATE),
            TdxStatus::OPERAND_BUSY.with_operand(OperandId::TDR),
            // The operand's number in the details of another class.
            TdxStatus::OPERAND_INVALID.with_operand(OperandId::SEPT_TREE),
        ];
        for other in others {
            let got = p.vp_enter_busy(other);
            assert_eq!(
                (got.action, got.report),
                (Action::Enter, false),
                "{other:?}"
            );
        }
        assert_eq!(p.stats().vp_enter_busy_other.get(), others.len() as u64);
        assert_eq!(p.stats().vp_enter_busy.get(), 0);
        // A later one of the tree is still the first.
        let tree = p.vp_enter_busy(status::TREE_BUSY);
        assert_eq!(tree.report, policy != Policy::Count);
    }
}

#[test]
fn policies_have_names() {
    for policy in POLICIES {
        assert_eq!(Policy::from_name(policy.name()), Some(policy));
    }
    assert_eq!(Policy::default(), Policy::Warn);
    assert_eq!(Policy::Kill.name(), "kill");
    for bad in ["", "Kill", "kill ", "warning", "0"] {
        assert_eq!(Policy::from_name(bad), None);
    }
    assert_eq!(Conditions::from_bits(0x21), SIGNAL.with(PREFAULT));
    assert_eq!(SLOT_GONE.with(VM_DEAD).bits(), 0x14);
    assert_eq!(EVENT.with(VM_DEAD).bits(), 0x12);
    // Unknown bits mean nothing.
    let p = Progress::new(Policy::Warn);
    let unknown = Conditions::from_bits(!0x3f);
    assert_eq!(
        ask(&p, &mut faulted(0), 7, unknown, false),
        (LOCAL_ROUNDS, Action::Enter)
    );
}

/// What became of a vCPU that faults on one GFN at one RIP.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    /// VP.ENTERs that ended in the EPT violation.
    faults: u32,
    /// Calls of map().
    maps: u32,
    /// The answer that ended the loop; `None` if the fault was served.
    end: Option<Action>,
}

/// A vCPU as KVM runs it: faults, maps, asks, and enters again, until it may not.
fn run_vcpu(p: &Progress, notes: &mut Notes, mut map: impl FnMut() -> MapOutcome) -> Run {
    let mut run = Run {
        faults: 0,
        maps: 0,
        end: None,
    };
    loop {
        // VP.ENTER, unless a fault is to be served before it.
        if !notes.held {
            notes.faults += 1;
            notes.repeats += 1;
            run.faults += 1;
        }
        loop {
            run.maps += 1;
            assert!(run.maps < 10_000, "no bound");
            if !matches!(map(), MapOutcome::Retry(_)) {
                served(p, notes, 5);
                return run;
            }
            match p.fault_retry(notes, 5, NONE, WHY, || false) {
                Action::Again => (),
                Action::Enter => break,
                end => {
                    run.end = Some(end);
                    return run;
                }
            }
        }
    }
}

// Shows: R8, R16, R18.
#[test]
fn a_frozen_entry_costs_at_most_five_enters() {
    // vCPU 0 keeps the entry frozen: its SEAMCALL does not return before vCPU 1 has run.
    let td: Arc<OnceLock<Td>> = Arc::default();
    let p = Arc::new(Progress::new(Policy::Warn));
    let seen = Arc::new(Mutex::new((Notes::default(), Vec::new())));
    let (inner, policy, log) = (td.clone(), p.clone(), seen.clone());
    let mock = Mock::new(Level::L512G).observe(move |call, at| {
        if call != Call(Kind::PageAug) || at.is_none_or(|at| at.gfn().as_u64() != 5) {
            return;
        }
        let td = inner.get().unwrap();
        // SAFETY: the map that called holds the lock for read, as any number of vCPUs may.
        let l = unsafe { Shared::assume_held() };
        let (notes, runs) = &mut *log.lock().unwrap();
        // Userspace runs the vCPU again and again.
        for _ in 0..3 {
            runs.push(run_vcpu(&policy, notes, || {
                let (gfn, pfn) = (Gfn::new(5).unwrap(), Pfn::new(7).unwrap());
                let got = td.map_locked(&l, &mut td.caches(), gfn, pfn);
                assert_eq!(got, Ok(MapOutcome::Retry(RetryReason::Frozen)));
                got.unwrap()
            }));
        }
    });
    td.set(Td::new(Level::L512G, mock)).unwrap();
    let td = td.get().unwrap();
    assert_eq!(td.map(0, 100), Ok(MapOutcome::Fixed));
    assert_eq!(td.map(5, 7), Ok(MapOutcome::Fixed));

    let (notes, runs) = &mut *seen.lock().unwrap();
    let held = |faults, maps| Run {
        faults,
        maps,
        end: Some(Action::Exit),
    };
    // Four faults that end in another VP.ENTER, the fifth is held.
    let first = (MAX_ENTERS - 1) * (LOCAL_ROUNDS + 1) + HOLD_ROUNDS + 1;
    assert_eq!(runs[0], held(MAX_ENTERS, first));
    assert_eq!(runs[1], held(0, HOLD_ROUNDS + 1), "it does not enter");
    assert_eq!(runs[2], held(0, HOLD_ROUNDS + 1));
    assert_eq!(notes.faults, MAX_ENTERS);
    assert!(notes.held);
    assert_eq!(p.stats().held.get(), 1);

    // The entry is thawed: the fault is served before the next VP.ENTER.
    let served = run_vcpu(&p, notes, || td.map(5, 7).unwrap());
    assert_eq!(
        served,
        Run {
            faults: 0,
            maps: 1,
            end: None
        }
    );
    assert!(!notes.held);
    td.check_same(&[0, 5]);
}

// Shows: R8, R15.
#[test]
fn contention_for_ever_costs_at_most_five_enters() {
    // Another vCPU of the guest never lets go of the entry's lock.
    for policy in POLICIES {
        let td = Td::built();
        assert_eq!(td.map(0, 100), Ok(MapOutcome::Fixed));
        td.mock().accept_begin(Level::L4K, 5).unwrap();
        let p = Progress::new(policy);
        let mut notes = Notes::default();
        let run = run_vcpu(&p, &mut notes, || td.map(5, 7).unwrap());
        assert_eq!(run.faults, MAX_ENTERS);
        let end = if policy == Policy::Kill {
            Action::Kill
        } else {
            Action::Exit
        };
        assert_eq!(run.end, Some(end));
        assert_eq!(p.stats().killed.get(), u64::from(policy == Policy::Kill));
        // Each round is bounded as well: the map's tries, and those to pay.
        let calls = td.mock().count(Call(Kind::PageAug)) + td.mock().count(Call(Kind::SeptRd));
        let most = run.maps * (FAULT_TRIES + PAY_TRIES + 1);
        assert!(
            calls as u32 <= most,
            "{calls} SEAMCALLs in {} maps",
            run.maps
        );
        // It lets go at last: served, and nothing is owed.
        td.mock().accept_end(Level::L4K, 5);
        assert_eq!(run_vcpu(&p, &mut notes, || td.map(5, 7).unwrap()).end, None);
        assert_eq!(td.mock().marks(), 0);
        assert_eq!(td.mirror().external().debts_owed(), 0);
        td.check_same(&[0, 5]);
    }
}

// Shows: R24.
#[test]
fn a_fault_is_served_within_its_rounds() {
    // Contention of any length that the rounds outlast costs no VP.ENTER.
    for busy in [
        1,
        FAULT_TRIES,
        2 * FAULT_TRIES,
        50 * FAULT_TRIES,
        LOCAL_ROUNDS * FAULT_TRIES,
    ] {
        let td = Td::built();
        assert_eq!(td.map(0, 100), Ok(MapOutcome::Fixed));
        td.mock()
            .fail(Call(Kind::PageAug), 0, busy, status::TREE_BUSY);
        let p = Progress::new(Policy::Kill);
        let mut notes = Notes::default();
        let run = run_vcpu(&p, &mut notes, || td.map(5, 7).unwrap());
        assert_eq!(
            run,
            Run {
                faults: 1,
                maps: busy / FAULT_TRIES + 1,
                end: None
            },
            "busy {busy} times"
        );
        assert_eq!(notes.rounds, 0);
    }
    // One round more than that: it enters once.
    let td = Td::built();
    assert_eq!(td.map(0, 100), Ok(MapOutcome::Fixed));
    let busy = (LOCAL_ROUNDS + 1) * FAULT_TRIES;
    td.mock()
        .fail(Call(Kind::PageAug), 0, busy, status::TREE_BUSY);
    let p = Progress::new(Policy::Kill);
    let run = run_vcpu(&p, &mut Notes::default(), || td.map(5, 7).unwrap());
    assert_eq!((run.faults, run.end), (2, None));
}
