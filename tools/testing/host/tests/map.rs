// SPDX-License-Identifier: GPL-2.0

//! Mapping: order, budgets, roll-back, what a fault finds.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, OnceLock};
use tdx_mirror_host::base::addr::{Gfn, PagePtr, Pfn};
use tdx_mirror_host::base::level::{Level, Position};
use tdx_mirror_host::base::td::{Operand, Phase};
use tdx_mirror_host::mirror::cell::SpteCell;
use tdx_mirror_host::mirror::error::{Bug, MapError, MapOutcome, RetryReason};
use tdx_mirror_host::mirror::frozen::{FrozenError, FrozenSpte};
use tdx_mirror_host::mirror::lock::Shared;
use tdx_mirror_host::mirror::spte::{IllegalTransition, Spte, SpteKind};
use tdx_mirror_host::mirror::table::{OwnedTable, PageSupplier};
use tdx_mirror_host::mock::{status, Event::Call, Mock};
use tdx_mirror_host::sept::{Sept, BUILD_TRIES, FAULT_TRIES, ZERO_STEP_THRESHOLD};
use tdx_mirror_host::tdx::call::Kind;
use tdx_mirror_host::tdx::status::{OperandId, TdxStatus};
use tdx_mirror_host::vm::{Caches, Td};

const FIXED: Result<MapOutcome, MapError> = Ok(MapOutcome::Fixed);

// Shows: R20.
#[test]
fn parents_before_children() {
    let td = Td::built();
    assert_eq!(td.map(0x1234, 7), FIXED);
    let log: Vec<_> = td
        .mock()
        .log()
        .into_iter()
        .map(|(call, at)| (call, at.map(|at| at.level())))
        .collect();
    assert_eq!(
        log,
        [
            (Call(Kind::SeptAdd), Some(Level::L512G)),
            (Call(Kind::SeptAdd), Some(Level::L1G)),
            (Call(Kind::SeptAdd), Some(Level::L2M)),
            (Call(Kind::PageAug), Some(Level::L4K)),
        ]
    );
    td.check_same(&[0x1234]);
}

// Shows: R27, B1.
#[test]
fn second_map_of_a_gfn_calls_nothing() {
    let td = Td::built();
    assert_eq!(td.map(5, 7), FIXED);
    td.mock().clear_log();
    assert_eq!(td.map(5, 7), Ok(MapOutcome::Spurious));
    assert!(td.mock().log().is_empty());
    assert_eq!(td.mirror().stats().spurious.get(), 1);
    assert_eq!(td.mirror().stats().leaf_transitions.get(), 1);
}

// Shows: R29.
#[test]
fn another_pfn_bugs_the_vm_only() {
    let td = Td::built();
    assert_eq!(td.map(5, 7), FIXED);
    td.mock().clear_log();
    assert_eq!(td.map(5, 8), Err(MapError::Bugged));
    assert!(td.mock().log().is_empty());
    assert!(matches!(
        td.host().bugs()[..],
        [Bug::Transition {
            why: IllegalTransition::PfnChanged,
            ..
        }]
    ));
    assert_eq!(td.kind(5), SpteKind::Leaf(Pfn::new(7).unwrap()));
    // The VM is dead: nothing maps any more, and what is mapped can be zapped.
    assert_eq!(td.map(6, 9), Err(MapError::Bugged));
    assert_eq!(td.zap(0, 16), 1);
    td.check_same(&[5, 6]);
}

// Shows: R5.
#[test]
fn budget_is_tied_to_the_zero_step_threshold() {
    const { assert!(FAULT_TRIES < ZERO_STEP_THRESHOLD && BUILD_TRIES == 1) };
}

// Shows: R4, B6.
#[test]
fn busy_k_times() {
    for busy in [status::TREE_BUSY, status::ENTRY_BUSY] {
        for call in [Call(Kind::SeptAdd), Call(Kind::PageAug)] {
            for k in 0..20 {
                let td = Td::built();
                if k > 0 {
                    td.mock().fail(call, 0, k, busy);
                }
                let first = td.map(5, 7);
                let of_call = td.mock().count(call) as u32;
                let others = if call == Call(Kind::SeptAdd) { 2 } else { 0 };
                if k < FAULT_TRIES {
                    assert_eq!(first, FIXED);
                    assert_eq!(of_call, k + 1 + others);
                } else {
                    let operand = match busy.operand() {
                        OperandId::SEPT_TREE => Operand::SeptTree,
                        _ => Operand::SeptEntry,
                    };
                    let reason = RetryReason::Contended(operand);
                    assert_eq!(first, Ok(MapOutcome::Retry(reason)));
                    assert_eq!(of_call, FAULT_TRIES, "exactly the budget");
                    assert_eq!(td.kind(5), SpteKind::NonPresent, "old value, not frozen");
                    td.check_same(&[5]);
                    td.mock().clear_fails();
                    assert_eq!(td.map(5, 7), FIXED);
                }
                let stats = td.mirror().external().stats();
                assert_eq!(stats.busy.get(), u64::from(k.min(FAULT_TRIES)));
                assert_eq!(stats.giveups.get(), u64::from(k >= FAULT_TRIES));
                assert_eq!(
                    stats.retries.get(),
                    u64::from(k.min(FAULT_TRIES.saturating_sub(1)))
                );
                assert!(td.host().bugs().is_empty());
                td.check_same(&[5]);
            }
        }
    }
}

// Shows: R4.
#[test]
fn a_map_of_the_build_has_one_try() {
    for (busy, operand) in [
        (status::TREE_BUSY, Operand::SeptTree),
        (status::ENTRY_BUSY, Operand::SeptEntry),
        (status::TDR_BUSY, Operand::Tdr),
    ] {
        for call in [Call(Kind::SeptAdd), Call(Kind::PageAdd)] {
            let td = Td::in_build();
            td.mock().fail(call, 0, 1, busy);
            assert_eq!(
                td.map(5, 7),
                Ok(MapOutcome::Retry(RetryReason::Contended(operand)))
            );
            assert_eq!(td.mock().count(call), 1);
            assert_eq!(td.mirror().external().stats().giveups.get(), 1);
            assert!(!td.mirror().is_bugged());
            td.check_same(&[5]);
            assert_eq!(td.map(5, 7), FIXED);
            td.check_same(&[5]);
        }
    }
}

// Shows: R14.
#[test]
fn an_operand_that_no_call_is_known_to_lock_is_retried_and_reported_once() {
    let other = Ok(MapOutcome::Retry(RetryReason::Contended(Operand::Other)));
    for odd in [
        status::TDR_BUSY,
        status::EPOCH_BUSY,
        TdxStatus::OPERAND_BUSY.with_operand(OperandId::OP_STATE),
        TdxStatus::OPERAND_BUSY.with_operand(OperandId::R8),
        TdxStatus::OPERAND_BUSY.with_operand(OperandId::new(0x1234)),
    ] {
        for kind in [Kind::SeptAdd, Kind::PageAug] {
            let td = Td::built();
            assert_eq!(td.map(600, 6), FIXED);
            assert_eq!(td.mock().unlisted(), []);
            td.mock().clear_log();
            td.mock().fail(Call(kind), 0, FAULT_TRIES, odd);
            assert_eq!(td.map(5, 7), other, "{odd:?}");
            assert_eq!(td.mock().count(Call(kind)), FAULT_TRIES as usize);
            assert_eq!(td.kind(5), SpteKind::NonPresent, "old value, not frozen");
            td.mock().fail(Call(kind), 0, FAULT_TRIES - 1, odd);
            assert_eq!(td.map(5, 7), FIXED);
            assert!(td.host().bugs().is_empty() && !td.mirror().is_bugged());
            assert_eq!(td.mock().unlisted(), [(kind, odd)]);
            assert_eq!(td.mirror().external().stats().giveups.get(), 1);
            td.check_same(&[5, 600]);
        }
    }
    // Contention that is known is no news.
    let td = Td::built();
    td.mock()
        .fail(Call(Kind::PageAug), 0, 1, status::ENTRY_BUSY);
    assert_eq!(td.map(5, 7), FIXED);
    assert_eq!(td.mock().unlisted(), []);
}

// Shows: R14.
#[test]
fn what_is_no_busy_operand_is_not_retried() {
    let odd = [TdxStatus::PREVIOUS_TLB_EPOCH_BUSY, TdxStatus::SYS_BUSY];
    for odd in odd {
        for call in [Call(Kind::SeptAdd), Call(Kind::PageAug)] {
            let td = Td::built();
            td.mock().fail(call, 0, 1, odd);
            assert_eq!(td.map(5, 7), Err(MapError::Bugged), "{odd:?}");
            assert_eq!(td.mock().count(call), 1, "{odd:?} was retried");
            let bugs = td.host().bugs();
            assert!(
                matches!(bugs[..], [Bug::External { failure, .. }] if failure.status == odd.raw())
            );
            td.check_same(&[5]);
        }
    }
}

// Shows: R34.
#[test]
fn state_incorrect_is_reported_with_its_words() {
    let td = Td::built();
    // The S-EPT has a leaf that the mirror lacks.
    assert_eq!(td.map(5, 7), FIXED);
    td.mock().clear_log();
    let other = Td::new(Level::L512G, Mock::new(Level::L512G));
    assert_eq!(other.map(5, 7), FIXED);
    assert_eq!(other.zap(5, 6), 1);
    use tdx_mirror_host::tdx::call::Call as SeamCall;
    use tdx_mirror_host::tdx::seamcall::Seamcall;
    let at = Position::covering(Gfn::new(5).unwrap(), Level::L4K);
    let pfn = Pfn::new(8).unwrap();
    let out = other.mock().call(SeamCall::PageAug { at, pfn });
    assert!(out.status.is_success());
    assert_eq!(other.map(5, 7), Err(MapError::Bugged));
    let bugs = other.host().bugs();
    let [Bug::External {
        at: where_,
        failure,
    }] = bugs[..]
    else {
        panic!("{bugs:?}");
    };
    assert_eq!(where_, at);
    assert_eq!(failure.op, "TDH.MEM.PAGE.AUG");
    assert_eq!(failure.status, status::STATE_INCORRECT.raw());
    assert_eq!(failure.ext2 >> 8, 4, "the state that the entry has");
}

// Shows: R31, B9.
#[test]
fn mirror_has_nothing_that_the_s_ept_lacks() {
    // Each call of the first map fails once, in each way.
    for built in [true, false] {
        for bad in [
            status::TREE_BUSY,
            status::STATE_INCORRECT,
            status::METADATA,
            TdxStatus::TD_FATAL,
        ] {
            for step in 0..4 {
                let td = if built { Td::built() } else { Td::in_build() };
                let (call, skip) = if step < 3 {
                    (Call(Kind::SeptAdd), step)
                } else {
                    (Call(Kind::PageAug).of_phase(built), 0)
                };
                td.mock().fail(call, skip, FAULT_TRIES, bad);
                assert_ne!(td.map(0x4_0005, 7), FIXED);
                assert_eq!(td.mock().tables() as u32, step);
                td.check_same(&[0x4_0005]);
                // Unused pages went back, and the rest does so at the end.
                td.mock().clear_fails();
                td.teardown();
                assert_eq!(td.host().used_external(), 0);
                assert_eq!(td.host().used_pages(), 1);
            }
        }
    }
}

#[test]
fn invalid_gfns_and_levels_change_nothing() {
    let td = Td::built();
    let map = |gfn, level| {
        let (gfn, pfn) = (Gfn::new(gfn).unwrap(), Pfn::new(7).unwrap());
        let phase = Phase::Run;
        td.shared(|l| td.mirror().map(l, phase, &mut td.caches(), gfn, pfn, level))
    };
    assert_eq!(map(1 << 36, Level::L4K), Err(MapError::Invalid));
    assert_eq!(map((1 << 40) - 1, Level::L4K), Err(MapError::Invalid));
    for level in [Level::L2M, Level::L1G, Level::L512G, Level::L256T] {
        assert_eq!(map(0, level), Err(MapError::Invalid));
    }
    assert!(td.mock().log().is_empty() && !td.mirror().is_bugged());
    assert_eq!(map((1 << 36) - 1, Level::L4K), FIXED);
    assert!(td.walk(1 << 36).is_none());
    td.check_same(&[(1 << 36) - 1]);
}

#[test]
fn empty_caches_lead_to_a_retry() {
    for (tables, externals) in [(0, 9), (9, 0), (1, 9), (9, 1), (2, 2)] {
        let td = Td::built();
        let mut caches = td.caches();
        (caches.tables, caches.externals) = (tables, externals);
        assert_eq!(
            td.map_with(&mut caches, 5, 7),
            Ok(MapOutcome::Retry(RetryReason::NoPage))
        );
        assert_eq!(td.mock().tables() as u32, tables.min(externals));
        td.check_same(&[5]);
        assert_eq!(td.map(5, 7), FIXED);
        td.check_same(&[5]);
    }
}

/// Caches that look at the entry for GFN 5 whenever a page for a mirror table is asked for, and may
/// have another vCPU map the GFN first.
struct Watched<'t> {
    td: &'t Td,
    caches: Caches<'t>,
    overtaken: bool,
    seen: Vec<SpteKind>,
}

// SAFETY: The pages are those of the host's own supplier.
unsafe impl PageSupplier for Watched<'_> {
    fn take_table(&mut self) -> Option<PagePtr> {
        self.seen.push(self.td.kind(5));
        if self.overtaken {
            // SAFETY: the map that asks holds the lock for read.
            let l = unsafe { Shared::assume_held() };
            let (gfn, pfn) = (Gfn::new(5).unwrap(), Pfn::new(7).unwrap());
            let o = self.td.map_locked(&l, &mut self.td.caches(), gfn, pfn);
            assert_eq!(o, FIXED);
        }
        self.caches.take_table()
    }

    fn take_external(&mut self) -> Option<PagePtr> {
        self.caches.take_external()
    }
}

fn map_watched(td: &Td, overtaken: bool) -> (Result<MapOutcome, MapError>, Vec<SpteKind>) {
    let caches = td.caches();
    let seen = Vec::new();
    let mut pages = Watched {
        td,
        caches,
        overtaken,
        seen,
    };
    let (gfn, pfn) = (Gfn::new(5).unwrap(), Pfn::new(7).unwrap());
    let phase = Phase::Run;
    let o = td.shared(|l| td.mirror().map(l, phase, &mut pages, gfn, pfn, Level::L4K));
    (o, pages.seen)
}

#[test]
fn a_table_is_ready_before_its_entry_is_frozen() {
    let td = Td::built();
    let (o, seen) = map_watched(&td, false);
    assert_eq!(o, FIXED);
    assert_eq!(seen, [SpteKind::NonPresent; 3]);
    td.check_same(&[5]);
}

#[test]
fn who_loses_an_entry_gives_its_table_back() {
    let td = Td::built();
    let (o, seen) = map_watched(&td, true);
    assert_eq!(o, Ok(MapOutcome::Spurious));
    assert_eq!(seen, [SpteKind::NonPresent]);
    assert_eq!((td.host().used_pages(), td.host().used_external()), (4, 3));
    assert_eq!(td.mirror().stats().frozen.get(), 4);
    td.check_same(&[5]);
}

// Shows: R17.
#[test]
fn frozen_while_the_hook_runs() {
    let td: Arc<OnceLock<Td>> = Arc::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (inner, log) = (td.clone(), seen.clone());
    let mock = Mock::new(Level::L512G).observe(move |call, at| {
        let td = inner.get().unwrap();
        let at = at.unwrap();
        let (level, kind) = td
            .walk(at.gfn().as_u64())
            .map(|(p, s)| (p.level(), s.kind(p.level())))
            .unwrap();
        log.lock().unwrap().push((call, level == at.level(), kind));
    });
    td.set(Td::new(Level::L512G, mock)).unwrap();
    assert_eq!(td.get().unwrap().map(5, 7), FIXED);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 4);
    for (call, same_entry, kind) in &*seen {
        assert!(*same_entry, "{call:?}");
        assert_eq!(*kind, SpteKind::Frozen, "{call:?}");
    }
}

// Shows: R18.
#[test]
fn a_frozen_entry_ends_a_map_at_once() {
    // The hook of the first map runs a second one, which meets each frozen entry in turn.
    let td: Arc<OnceLock<Td>> = Arc::default();
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let (inner, log) = (td.clone(), outcomes.clone());
    let mock = Mock::new(Level::L512G).observe(move |_, _| {
        let td = inner.get().unwrap();
        // SAFETY: the map that called holds the lock for read.
        let l = unsafe { Shared::assume_held() };
        let mut caches = td.caches();
        let (gfn, pfn) = (Gfn::new(5).unwrap(), Pfn::new(7).unwrap());
        let o = td.map_locked(&l, &mut caches, gfn, pfn);
        let unused = caches.tables == u32::MAX && caches.externals == u32::MAX;
        log.lock().unwrap().push((o, unused));
    });
    td.set(Td::new(Level::L512G, mock)).unwrap();
    let td = td.get().unwrap();
    assert_eq!(td.map(5, 7), FIXED);
    let outcomes = outcomes.lock().unwrap();
    assert_eq!(outcomes.len(), 4);
    for (o, unused) in &*outcomes {
        assert_eq!(*o, Ok(MapOutcome::Retry(RetryReason::Frozen)));
        assert!(*unused, "nothing was allocated for it");
    }
    // The walks of the check do not count, so this is the maps' own figure.
    assert_eq!(td.mirror().stats().frozen_seen.get(), 4);
    td.check_same(&[5]);
}

// Shows: R30.
#[test]
fn frozen_spte_refuses_a_leaf_over_a_leaf() {
    let sept = Sept::new(Mock::new(Level::L512G));
    let old = Spte::leaf(Pfn::new(3).unwrap(), Level::L4K);
    let at = Position::covering(Gfn::new(5).unwrap(), Level::L4K);
    let cell = SpteCell::new(old);
    // SAFETY: the cell is this function's alone.
    let l = unsafe { Shared::assume_held() };
    let frozen = FrozenSpte::freeze(&l, &cell, at, old).unwrap();
    assert_eq!(cell.load().spte(), Spte::FROZEN);
    assert!(matches!(
        frozen.map_leaf(&l, &sept, Phase::Run, Pfn::new(4).unwrap()),
        Err(FrozenError::Illegal(_, IllegalTransition::PfnChanged))
    ));
    assert_eq!(cell.load().spte(), old, "rolled back");
    assert!(sept.backend().log().is_empty(), "no hook");
    let frozen = FrozenSpte::freeze(&l, &cell, at, old).unwrap();
    assert!(matches!(
        frozen.map_leaf(&l, &sept, Phase::Run, Pfn::new(3).unwrap()),
        Err(FrozenError::Illegal(_, IllegalTransition::OverPresent))
    ));
    assert!(sept.backend().log().is_empty(), "no hook");
}

// Shows: R30.
#[test]
fn frozen_spte_refuses_a_table_over_what_is_present() {
    let td = Td::built();
    let sept = Sept::new(Mock::new(Level::L512G));
    let at = Position::covering(Gfn::new(512).unwrap(), Level::L2M);
    let page = Pfn::new(0x200).unwrap();
    for (old, why) in [
        (Spte::leaf(page, Level::L2M), IllegalTransition::OverPresent),
        (Spte::table(page), IllegalTransition::OverPresent),
        (Spte::blocked(page), IllegalTransition::FromBlocked),
        (Spte::quarantined(page), IllegalTransition::FromQuarantined),
        (Spte::from_raw(0), IllegalTransition::Malformed),
    ] {
        let cell = SpteCell::new(old);
        // SAFETY: the cell is this function's alone.
        let l = unsafe { Shared::assume_held() };
        let owned = OwnedTable::take(&mut td.caches(), td.host()).unwrap();
        let (mirror, external) = (owned.page(), owned.external_page());
        let frozen = FrozenSpte::freeze(&l, &cell, at, old).unwrap();
        let (error, owned) = frozen
            .link_table(&l, &sept, Phase::Run, td.host(), owned)
            .unwrap_err();
        assert!(
            matches!(error, FrozenError::Illegal(_, w) if w == why),
            "{error:?}"
        );
        assert_eq!(cell.load().spte(), old, "rolled back");
        assert!(sept.backend().log().is_empty(), "no hook");
        // Both pages come back, and neither knows the other.
        assert_eq!((owned.page(), owned.external_page()), (mirror, external));
        owned.put(td.host());
        assert_eq!(td.host().used_external(), 0);
    }
}

// Shows: R29, R51.
#[test]
fn a_map_meets_what_cannot_be() {
    let page = Pfn::new(99).unwrap();
    for (found, why) in [
        (Spte::blocked(page), IllegalTransition::FromBlocked),
        (Spte::quarantined(page), IllegalTransition::FromQuarantined),
        (Spte::leaf(page, Level::L4K), IllegalTransition::PfnChanged),
        (Spte::from_raw(0), IllegalTransition::Malformed),
    ] {
        let td = Td::built();
        assert_eq!(td.map(0, 100), FIXED);
        let at = td.poke(5, found);
        td.mock().clear_log();
        assert_eq!(td.map(5, 7), Err(MapError::Bugged));
        assert!(td.mock().log().is_empty(), "no hook");
        let bugs = td.host().bugs();
        assert!(
            matches!(bugs[..], [Bug::Transition { at: a, old, why: w, .. }]
            if a == at && old == found && w == why),
            "{bugs:?}"
        );
        assert_eq!(td.walk(5), Some((at, found)), "not written over");
        // Of a dead VM nothing more is said.
        assert_eq!(td.map(5, 99), Err(MapError::Bugged));
        assert_eq!(td.host().bugs().len(), 1);
    }
    // Above the leaf there is a link or nothing.
    for found in [
        Spte::leaf(Pfn::new(0x200).unwrap(), Level::L2M),
        Spte::blocked(page),
        Spte::quarantined(page),
        Spte::from_raw(0),
    ] {
        let td = Td::built();
        assert_eq!(td.map(0, 100), FIXED);
        let at = td.poke(512, found);
        assert_eq!(at.level(), Level::L2M);
        td.mock().clear_log();
        assert_eq!(td.map(513, 7), Err(MapError::Bugged));
        assert!(td.mock().log().is_empty(), "no hook");
        let bugs = td.host().bugs();
        assert!(matches!(bugs[..], [Bug::Unexpected { at: a, found: f }] if a == at && f == found));
    }
}

// Shows: B2.
#[test]
fn a_lost_freeze_hands_back_the_fresh_value() {
    let at = Position::covering(Gfn::new(5).unwrap(), Level::L4K);
    let now = Spte::leaf(Pfn::new(3).unwrap(), Level::L4K);
    let cell = SpteCell::new(now);
    // SAFETY: the cell is this function's alone.
    let l = unsafe { Shared::assume_held() };
    let lost = FrozenSpte::freeze(&l, &cell, at, Spte::NON_PRESENT);
    assert_eq!(lost.unwrap_err().spte(), now);
    assert_eq!(cell.load().spte(), now);
}

// Shows: R17.
#[test]
fn dropping_a_frozen_spte_rolls_back() {
    let at = Position::covering(Gfn::new(5).unwrap(), Level::L4K);
    let cell = SpteCell::new(Spte::NON_PRESENT);
    // SAFETY: the cell is this function's alone.
    let l = unsafe { Shared::assume_held() };
    let frozen = FrozenSpte::freeze(&l, &cell, at, Spte::NON_PRESENT).unwrap();
    assert_eq!(cell.load().spte(), Spte::FROZEN);
    drop(frozen);
    assert_eq!(cell.load().spte(), Spte::NON_PRESENT);
}

#[test]
fn five_levels() {
    let td = Td::new(Level::L256T, Mock::new(Level::L256T));
    let gfns = [0, 511, 512, 1 << 18, 1 << 27, 1 << 36, (1 << 40) - 1];
    for (i, gfn) in gfns.into_iter().enumerate() {
        assert_eq!(td.map(gfn, 100 + i as u64), FIXED);
    }
    td.check_same(&gfns);
    assert_eq!(td.zap(0, 1 << 40), gfns.len() as u64);
    td.check_same(&gfns);
    td.teardown();
    assert_eq!(td.mock().early_reclaims(), 0);
    assert_eq!(td.mock().tables(), 0);
    assert_eq!(td.host().accounted.load(SeqCst), 0);
}

// Shows: R5.
#[test]
fn a_parameter_can_only_shrink_the_budget() {
    use tdx_mirror_host::mirror::external::ExternalPt;
    for (asked, got) in [
        (0, 1),
        (1, 1),
        (3, 3),
        (5, 5),
        (6, FAULT_TRIES),
        (u32::MAX, FAULT_TRIES),
    ] {
        let sept = Sept::with_fault_tries(Mock::new(Level::L4K), asked);
        sept.backend()
            .fail(Call(Kind::PageAug), 0, 100, status::TREE_BUSY);
        // SAFETY: nobody else has this S-EPT.
        let l = unsafe { Shared::assume_held() };
        let at = Position::covering(Gfn::new(5).unwrap(), Level::L4K);
        assert!(sept
            .map_leaf(&l, Phase::Run, at, Pfn::new(7).unwrap())
            .is_err());
        assert_eq!(
            sept.backend().count(Call(Kind::PageAug)) as u32,
            got,
            "{asked}"
        );
    }
}
