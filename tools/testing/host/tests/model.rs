// SPDX-License-Identifier: GPL-2.0

//! Random operations against an oracle: a set of mappings, injective in GFN and in PFN.
//!
//! After every step the mirror equals the mock S-EPT, and both equal the oracle.  The number of
//! steps is 10^5, or `TDX_MIRROR_STEPS`.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::SeqCst;
use tdx_mirror_host::mirror::error::{MapError, MapOutcome, RetryReason};
use tdx_mirror_host::mirror::spte::SpteKind;
use tdx_mirror_host::mock::{
    status,
    Event::{self, Call},
};
use tdx_mirror_host::sept::{BUILD_TRIES, FAULT_TRIES};
use tdx_mirror_host::tdx::call::{Kind, KINDS};
use tdx_mirror_host::tdx::status::TdxStatus;
use tdx_mirror_host::vm::Td;

const STEPS_PER_CASE: usize = 200;

/// GFNs around the edges of tables of each level.
const GFNS: [u64; 16] = [
    0,
    1,
    2,
    510,
    511,
    512,
    513,
    1023,
    0x3_ffff,
    0x4_0000,
    0x4_0001,
    0x7ff_ffff,
    0x800_0000,
    0x800_0200,
    0xf_ffff_fffe,
    0xf_ffff_ffff,
];

#[derive(Clone, Debug)]
enum Op {
    Map {
        gfn: usize,
        pfn: u64,
    },
    Zap {
        start: usize,
        pages: u64,
        may_yield: bool,
    },
    EnterGuest,
    Finalize,
    Teardown,
}

/// A status that the next calls of one kind answer.
#[derive(Clone, Debug)]
struct Inject {
    call: Event,
    skip: u32,
    times: u32,
    status: TdxStatus,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        // Few PFNs, so that one is now and then mapped already.
        12 => (0..GFNS.len(), 100u64..160).prop_map(|(gfn, pfn)| Op::Map { gfn, pfn }),
        6 => (0..GFNS.len(), prop_oneof![1u64..4, Just(512), Just(1 << 20), Just(1 << 36)], any::<bool>())
            .prop_map(|(start, pages, may_yield)| Op::Zap { start, pages, may_yield }),
        3 => Just(Op::EnterGuest),
        1 => Just(Op::Finalize),
        1 => Just(Op::Teardown),
    ]
}

fn inject() -> impl Strategy<Value = Option<Inject>> {
    let call = prop_oneof![
        Just(Call(Kind::SeptAdd)),
        Just(Call(Kind::PageAug)),
        Just(Call(Kind::RangeBlock)),
        Just(Call(Kind::Track)),
        Just(Call(Kind::PageRemove)),
        Just(Call(Kind::PageWbinvd)),
        Just(Call(Kind::ReclaimTable)),
    ];
    let status = prop_oneof![
        6 => Just(status::TREE_BUSY),
        6 => Just(status::ENTRY_BUSY),
        3 => Just(status::EPOCH_BUSY),
        3 => Just(TdxStatus::PREVIOUS_TLB_EPOCH_BUSY),
        1 => Just(status::TDR_BUSY),
        1 => Just(status::STATE_INCORRECT),
        1 => Just(TdxStatus::TD_FATAL),
    ];
    proptest::option::weighted(
        0.25,
        (call, 0u32..3, 1u32..8, status).prop_map(|(call, skip, times, status)| Inject {
            call,
            skip,
            times,
            status,
        }),
    )
}

/// What the interface promises, without a line of the mirror.
struct Model {
    td: Td,
    built: bool,
    bugged: bool,
    mapped: BTreeMap<u64, u64>,
    quarantined: BTreeSet<u64>,
}

impl Model {
    fn new() -> Self {
        Self {
            td: Td::in_build(),
            built: false,
            bugged: false,
            mapped: BTreeMap::new(),
            quarantined: BTreeSet::new(),
        }
    }

    fn step(&mut self, op: &Op, inject: &Option<Inject>) {
        let inject = &inject.clone().map(|mut i| {
            i.call = i.call.of_phase(self.built);
            i
        });
        if let Some(i) = inject {
            self.td.mock().fail(i.call, i.skip, i.times, i.status);
        }
        match *op {
            Op::Map { gfn, pfn } => self.map(GFNS[gfn], pfn, inject),
            Op::Zap {
                start,
                pages,
                may_yield,
            } => self.zap(GFNS[start], pages, may_yield, inject),
            Op::EnterGuest => {
                if self.built {
                    self.td.mock().enter_guest();
                }
            }
            Op::Finalize => {
                self.built = true;
                self.td.mock().set_finalized(true);
            }
            Op::Teardown => return self.reboot(inject),
        }
        self.td.mock().clear_fails();
        self.check();
        if self.bugged && matches!(op, Op::Zap { .. }) {
            self.reboot(&None);
        }
    }

    fn map(&mut self, gfn: u64, pfn: u64, inject: &Option<Inject>) {
        let page = Call(Kind::PageAug).of_phase(self.built);
        let count = || self.td.mock().count(page) + self.td.mock().count(Call(Kind::SeptAdd));
        let before = count();
        let got = self.td.map(gfn, pfn);
        let calls = count() - before;
        if self.bugged {
            assert_eq!(got, Err(MapError::Bugged));
            assert_eq!(calls, 0, "SEAMCALL of a dead VM");
            return;
        }
        match self.mapped.get(&gfn) {
            Some(p) if *p == pfn => {
                assert_eq!(got, Ok(MapOutcome::Spurious));
                assert_eq!(calls, 0);
                return;
            }
            Some(_) => {
                assert_eq!(got, Err(MapError::Bugged));
                assert_eq!(calls, 0);
                self.bugged = true;
                return;
            }
            None => (),
        }
        let pfn_taken = self.mapped.values().any(|p| *p == pfn);
        match got {
            Ok(MapOutcome::Fixed) => {
                assert!(!pfn_taken, "a page mapped twice");
                self.mapped.insert(gfn, pfn);
            }
            Ok(MapOutcome::Retry(RetryReason::Contended(_))) => {
                let i = inject.as_ref().expect("contention without a cause");
                assert!(i.call.contends(i.status));
                let budget = if self.built { FAULT_TRIES } else { BUILD_TRIES };
                assert!(i.times >= budget, "gave up before the budget");
            }
            Err(MapError::Bugged) => {
                let failed = inject.as_ref().is_some_and(|i| !i.call.contends(i.status));
                assert!(pfn_taken || failed, "bugged without a cause");
                self.bugged = true;
            }
            other => panic!("map of {gfn:#x} answered {other:?}"),
        }
    }

    fn zap(&mut self, start: u64, pages: u64, may_yield: bool, inject: &Option<Inject>) {
        use tdx_mirror_host::base::addr::GfnRange;
        let end = start + pages;
        let range = GfnRange::new(start, end).unwrap();
        self.td.host().resched.store(2, SeqCst);
        let zapped = self.td.exclusive(|x| {
            self.td
                .mirror()
                .zap_range(x, self.td.mirror().phase(x), range, may_yield)
        });
        self.td.host().resched.store(0, SeqCst);
        let inside: Vec<u64> = self.mapped.range(start..end).map(|(g, _)| *g).collect();
        let lost: Vec<u64> = inside
            .iter()
            .copied()
            .filter(|g| matches!(self.td.kind(*g), SpteKind::Quarantined(_)))
            .collect();
        assert_eq!(zapped as usize, inside.len() - lost.len());
        if !lost.is_empty() {
            // Not for contention that one kick resolves.
            let i = inject.as_ref().expect("quarantine without a cause");
            assert!(i.times >= 2 || !i.call.contends(i.status));
            self.bugged = true;
        }
        for gfn in inside {
            self.mapped.remove(&gfn);
        }
        self.quarantined.extend(lost);
        assert!(!self.td.mock().holding());
    }

    /// Ends the TD, as it is closed, and starts another.
    fn reboot(&mut self, inject: &Option<Inject>) {
        self.td.mock().clear_fails();
        self.td.zap(0, 1 << 36);
        // All can be given back: also a page that was removed before its WBINVD failed.
        let held = self.td.host().held_pages().len() as u64;
        if let Some(i) = inject
            .as_ref()
            .filter(|i| i.call == Call(Kind::ReclaimTable))
        {
            self.td.mock().fail(i.call, i.skip, i.times, i.status);
        }
        let tables = self.td.mock().tables() as u64;
        self.td.teardown();
        let lost = inject
            .as_ref()
            .filter(|i| i.call == Call(Kind::ReclaimTable))
            .map_or(0, |i| {
                tables
                    .saturating_sub(u64::from(i.skip))
                    .min(u64::from(i.times))
            });
        let stats = self.td.mirror().stats();
        assert_eq!(stats.leaked.get(), lost);
        assert_eq!(stats.resolved.get(), held);
        assert_eq!(stats.external_tables.get(), 0);
        assert_eq!(self.td.host().accounted_external(), 0);
        if lost == 0 {
            assert_eq!(self.td.mock().early_reclaims(), 0);
        }
        assert_eq!(self.td.host().used_external() as u64, lost);
        assert_eq!(self.td.host().used_pages(), 1);
        assert_eq!(self.td.host().accounted.load(SeqCst), 0);
        let old = std::mem::replace(self, Self::new());
        let host = old.td.destroy();
        assert_eq!(host.used_pages(), 0);
    }

    fn check(&self) {
        self.td.check_same(&GFNS);
        for gfn in GFNS {
            match (self.td.kind(gfn), self.mapped.get(&gfn)) {
                (SpteKind::Leaf(p), Some(q)) => assert_eq!(p.as_u64(), *q),
                (SpteKind::NonPresent, None) => assert!(!self.quarantined.contains(&gfn)),
                (SpteKind::Quarantined(_), None) => assert!(self.quarantined.contains(&gfn)),
                other => panic!("gfn {gfn:#x}: {other:?}"),
            }
        }
        let pfns: BTreeSet<_> = self.mapped.values().collect();
        assert_eq!(pfns.len(), self.mapped.len(), "injective in the PFN");
        assert_eq!(self.td.mirror().is_bugged(), self.bugged);
        let s = self.td.mirror().external().stats();
        for kind in KINDS {
            let made = self.td.made(*kind) as usize;
            assert_eq!(made, self.td.mock().count(Call(*kind)), "{kind:?}");
        }
        assert_eq!(s.kicks.get() as usize, self.td.mock().count(Event::Kick));
    }
}

// Shows: R31, R40, B9, B14.
#[test]
fn mirror_equals_s_ept_and_oracle() {
    let steps: usize = std::env::var("TDX_MIRROR_STEPS")
        .ok()
        .map_or(100_000, |s| s.parse().expect("a number of steps"));
    let done = Cell::new(0usize);
    let mut runner = TestRunner::new(Config {
        cases: (steps / STEPS_PER_CASE).max(1) as u32,
        failure_persistence: None,
        ..Config::default()
    });
    let ops = proptest::collection::vec((op(), inject()), STEPS_PER_CASE);
    runner
        .run(&ops, |ops| {
            let mut model = Model::new();
            for (op, inject) in &ops {
                model.step(op, inject);
                done.set(done.get() + 1);
            }
            model.reboot(&None);
            Ok(())
        })
        .unwrap();
    println!("{} steps, 0 differences", done.get());
    assert!(done.get() >= steps / STEPS_PER_CASE * STEPS_PER_CASE);
}
