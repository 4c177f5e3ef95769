// SPDX-License-Identifier: GPL-2.0

//! vCPUs whose fault cannot be served for a reason that is not the mirror's: events, invalidations,
//! userspace that does not add the page, and a TDX module that keeps them out.

use tdx_mirror_host::faults::{
    faulted, served, ENTERS, EVENT, NONE, POLICIES, PREFAULT, SIGNAL, SLOT_GONE, VM_DEAD, WHY,
};
use tdx_mirror_host::sept::progress::{
    Action, Conditions, Done, End, Notes, Policy, Progress, Why,
};
use tdx_mirror_host::sept::{
    HOLD_ROUNDS, LISTED_AFTER, MAX_ENTERS, WAIT_ROUNDS, ZERO_STEP_THRESHOLD,
};

/// The same at an ACCEPT, which the TDX module does not count.
fn stuck_at_accept(repeats: u32) -> Notes {
    Notes {
        repeats,
        accept: true,
        ..Notes::default()
    }
}

/// Asks until the answer is another one than to map again: how often it was that, and the answer.
fn ask(p: &Progress, notes: &mut Notes, now: Conditions, why: Why) -> (u32, Action) {
    for rounds in 0..=HOLD_ROUNDS {
        match p.fault_retry(notes, 7, now, why, || false) {
            Action::Again => (),
            other => return (rounds, other),
        }
    }
    panic!("no bound");
}

// Shows: R13, R16.
#[test]
fn an_event_is_injected_also_near_the_threshold() {
    for why in [WHY, Why::Invalidation] {
        for now in [EVENT, EVENT.with(SIGNAL), EVENT.with(SLOT_GONE)] {
            let p = Progress::new(Policy::Kill);
            // The guest masks them all, or each handler returns to the fault. The last count is
            // what the threshold leaves over.
            for faults in 0..ZERO_STEP_THRESHOLD {
                let mut notes = faulted(faults);
                let got = ask(&p, &mut notes, now, why);
                assert_eq!(got, (0, Action::Enter), "{faults} faults");
                assert!(!notes.held, "what comes next may be another fault");
            }
            // One more could make the TDX module list the page.
            let mut notes = faulted(ZERO_STEP_THRESHOLD);
            let got = ask(&p, &mut notes, now, why);
            assert_ne!(got.1, Action::Enter);
            // An ACCEPT costs no count: each new event is one more entry.
            for repeats in [0, MAX_ENTERS, ZERO_STEP_THRESHOLD, 1000, u32::MAX] {
                let mut notes = stuck_at_accept(repeats);
                let got = ask(&p, &mut notes, now, why);
                assert_eq!(got, (0, Action::Enter), "{repeats} at one ACCEPT");
            }
            assert_eq!(p.stats().held.get(), 1);
        }
    }
    // A guest that touches many pages without a TDVMCALL looks like one at one RIP.
    let p = Progress::new(Policy::Warn);
    for repeats in 1..ZERO_STEP_THRESHOLD {
        let mut notes = Notes {
            faults: 1000 + repeats,
            repeats,
            ..Notes::default()
        };
        assert_eq!(ask(&p, &mut notes, EVENT, WHY), (0, Action::Enter));
    }
}

// Shows: R13, R16, B24.
#[test]
fn an_invalidation_elsewhere_costs_no_entry_and_no_vm() {
    for policy in POLICIES {
        for near in [
            faulted(MAX_ENTERS),
            stuck_at_accept(MAX_ENTERS),
            faulted(100),
        ] {
            for notes in [faulted(0), faulted(MAX_ENTERS - 1), near] {
                let p = Progress::new(policy);
                let mut notes = notes;
                // As long as it lasts: no VP.ENTER, each KVM_RUN returns.
                for _ in 0..20 {
                    let got = ask(&p, &mut notes, NONE, Why::Invalidation);
                    assert_eq!(got, (WAIT_ROUNDS, Action::Exit));
                    assert!(notes.held, "the next KVM_RUN serves the fault first");
                }
                assert_eq!(
                    p.stats().killed.get(),
                    0,
                    "no sign of a vCPU without progress"
                );
                // Contention begins anew, and is judged as ever.
                assert_eq!((notes.rounds, notes.waits), (0, 0));
                served(&p, &mut notes, 7);
                assert!(!notes.held);
            }
        }
    }
    // A prefault waits as long, for userspace as well.
    let p = Progress::new(Policy::Kill);
    let mut notes = Notes::default();
    let got = ask(&p, &mut notes, PREFAULT, Why::Invalidation);
    assert_eq!(got, (WAIT_ROUNDS, Action::Exit));
    for (now, far, near) in [
        (SIGNAL, Action::Enter, Action::Exit),
        (SLOT_GONE, Action::Enter, Action::Exit),
        (VM_DEAD, Action::Kill, Action::Kill),
    ] {
        let got = ask(&p, &mut faulted(0), now, Why::Invalidation);
        assert_eq!(got, (0, far));
        let got = ask(&p, &mut faulted(5), now, Why::Invalidation);
        assert_eq!(got, (0, near));
    }
    assert_eq!(p.stats().killed.get(), 0);
}

// Shows: R4, R16.
#[test]
fn rounds_of_an_invalidation_are_none_of_contention() {
    let p = Progress::new(Policy::Kill);
    let mut notes = faulted(MAX_ENTERS);
    // All rounds of the one and of the other, in turn.
    for round in 1..=HOLD_ROUNDS {
        for why in [WHY, Why::Invalidation] {
            let got = p.fault_retry(&mut notes, 7, NONE, why, || false);
            assert_eq!(got, Action::Again, "round {round}");
        }
        assert_eq!((notes.rounds, notes.waits), (round, round));
    }
    assert_eq!(
        p.fault_retry(&mut notes, 7, NONE, Why::Invalidation, || false),
        Action::Exit
    );
    let mut notes = faulted(MAX_ENTERS);
    for _ in 0..HOLD_ROUNDS {
        let _ = p.fault_retry(&mut notes, 7, NONE, Why::Invalidation, || false);
    }
    // The contention that comes then has its whole bound.
    assert_eq!(ask(&p, &mut notes, NONE, WHY), (HOLD_ROUNDS, Action::Kill));
}

// Shows: R13, R16.
#[test]
fn a_fault_that_userspace_leaves_is_held_near_the_threshold() {
    let exits = Done {
        action: Action::Exit,
        report: false,
    };
    for policy in POLICIES {
        let p = Progress::new(policy);
        for faults in 0..MAX_ENTERS {
            let mut notes = faulted(faults);
            assert_eq!(p.fault_done(&mut notes, 7, NONE, End::Error), exits);
            assert!(!notes.held, "far from the threshold: KVM's own way");
        }
        // The VMM runs the vCPU again and again without adding the page: no VP.ENTER follows.
        let mut notes = faulted(MAX_ENTERS);
        for _ in 0..100 {
            assert_eq!(p.fault_done(&mut notes, 7, NONE, End::Error), exits);
            assert!(notes.held && notes.gfn == 7);
        }
        assert_eq!(p.stats().held.get(), 1, "one fault, held once");
        // For an event it enters once, and faults again.
        assert_eq!(p.fault_done(&mut notes, 7, EVENT, End::Error), ENTERS);
        assert!(!notes.held);
        notes.faults += 1;
        notes.repeats += 1;
        assert_eq!(p.fault_done(&mut notes, 7, NONE, End::Error), exits);
        assert_eq!(p.fault_done(&mut notes, 7, EVENT, End::Error), exits);
        assert!(notes.held, "one more would be listed");
        // At an ACCEPT each event is served.
        let mut notes = stuck_at_accept(1000);
        for _ in 0..10 {
            assert_eq!(p.fault_done(&mut notes, 7, NONE, End::Error), exits);
            assert_eq!(p.fault_done(&mut notes, 7, EVENT, End::Error), ENTERS);
        }
        // Then it adds the page.
        assert_eq!(p.fault_done(&mut notes, 7, NONE, End::Mapped), ENTERS);
        assert!(!notes.held);
        assert_eq!(p.stats().killed.get(), 0);
    }
}

// Shows: R36.
#[test]
fn a_vcpu_that_the_tdx_module_keeps_out_is_reported_once() {
    let report = Done {
        report: true,
        ..ENTERS
    };
    let p = Progress::new(Policy::Count);
    let mut notes = faulted(ZERO_STEP_THRESHOLD);
    for _ in 0..10 {
        // Two vCPUs that race for pages, far from being listed.
        assert_eq!(p.fault_done(&mut notes, 7, NONE, End::Spurious), ENTERS);
    }
    let mut notes = faulted(ZERO_STEP_THRESHOLD + 1);
    for gfn in 0..10 {
        // Or by a guest that touches many pages.
        for _ in 1..LISTED_AFTER {
            assert_eq!(p.fault_done(&mut notes, gfn, NONE, End::Spurious), ENTERS);
        }
    }
    for _ in 0..10 {
        // Or whose page is taken away and mapped again.
        for _ in 1..LISTED_AFTER {
            assert_eq!(p.fault_done(&mut notes, 20, NONE, End::Spurious), ENTERS);
        }
        assert_eq!(p.fault_done(&mut notes, 20, NONE, End::Mapped), ENTERS);
    }
    for round in 1..10 {
        let done = p.fault_done(&mut notes, 21, NONE, End::Spurious);
        assert_eq!(
            done,
            if round == LISTED_AFTER {
                report
            } else {
                ENTERS
            }
        );
    }
    // The next one of this TD is no news.
    for _ in 1..10 {
        assert_eq!(p.fault_done(&mut notes, 22, NONE, End::Spurious), ENTERS);
    }
}
