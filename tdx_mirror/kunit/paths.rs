// SPDX-License-Identifier: GPL-2.0

//! Freeze, map, zap, teardown.

#![forbid(unsafe_code)]

use super::td::{
    self,
    Td,
    BUSY_TREE,
    INVALID, //
};
use super::Outcome;
use crate::base::level::{
    Level,
    Position, //
};
use crate::base::td::Operand;
use crate::mirror::cell::Seen;
use crate::mirror::error::{
    MapError,
    MapOutcome,
    RetryReason, //
};
use crate::mirror::frozen::FrozenSpte;
use crate::mirror::spte::{
    Spte,
    SpteKind, //
};
use crate::sept::FAULT_TRIES;
use crate::tdx::call::Kind;

const CONTENDED: MapOutcome = MapOutcome::Retry(RetryReason::Contended(Operand::SeptTree));

/// What the mirror has for the GFN `raw`.
fn kind(mirror: &td::TdMirror<'_>, raw: u64) -> Option<SpteKind> {
    let (at, spte) = mirror.walk(&td::reader(), td::gfn(raw))?;
    Some(spte.kind(at.level()))
}

/// A freeze that is dropped leaves the old value.
// Shows: R17.
pub fn a_dropped_freeze_leaves_the_old_value(td: &Td) -> Outcome {
    let mirror = need!(td.mirror(false, 512));
    ensure!(td::map(td, &mirror, 0) == Ok(MapOutcome::Fixed));
    let lock = td::shared();
    let slot = need!(mirror.slot(&lock, td::gfn(1)));
    let at = Position::covering(td::gfn(1), Level::L4K);
    let frozen = need!(FrozenSpte::freeze(&lock, slot.cell, at, slot.spte()));
    ensure!(kind(&mirror, 1) == Some(SpteKind::Frozen));
    drop(frozen);
    ensure!(kind(&mirror, 1) == Some(SpteKind::NonPresent));
    Ok(())
}

/// Who loses the race for an entry goes on with what the winner left.
// Shows: B2.
pub fn a_lost_freeze_hands_back_the_value(td: &Td) -> Outcome {
    let mirror = need!(td.mirror(false, 512));
    ensure!(td::map(td, &mirror, 0) == Ok(MapOutcome::Fixed));
    let lock = td::shared();
    let slot = need!(mirror.slot(&lock, td::gfn(0)));
    let at = Position::covering(td::gfn(0), Level::L4K);
    let lost = FrozenSpte::freeze(&lock, slot.cell, at, Spte::NON_PRESENT).err();
    ensure!(lost.map(Seen::spte) == Some(Spte::leaf(td::pfn(0), Level::L4K)));
    ensure!(kind(&mirror, 0) == Some(SpteKind::Leaf(td::pfn(0))));
    Ok(())
}

/// Mirror and S-EPT have the same leaves after maps and zaps.
// Shows: R31.
pub fn mirror_equals_s_ept_after_maps_and_zaps(td: &Td) -> Outcome {
    let mirror = need!(td.mirror(false, 512));
    for raw in [0, 1, 511, 512, 1535] {
        ensure!(td::map(td, &mirror, raw) == Ok(MapOutcome::Fixed));
        ensure!(td::map(td, &mirror, raw) == Ok(MapOutcome::Spurious));
    }
    ensure!(td.calls(Kind::PageAug) == 5);
    ensure!(td::zap(&mirror, 1, 513) == 3);
    for raw in [0, 1, 511, 512, 1535] {
        let there = raw == 0 || raw == 1535;
        ensure!(td.is_mapped(raw) == there);
        ensure!(matches!(kind(&mirror, raw), Some(SpteKind::Leaf(_))) == there);
    }
    ensure!(mirror.stats().mapped.get() == 5 && mirror.stats().zapped.get() == 3);
    ensure!(td.broken.get() == 0 && td.bugs.get() == 0);
    Ok(())
}

/// Busy as often as the budget: nothing is mapped, nothing stays frozen; less often: mapped.
// Shows: R4, B6.
pub fn busy_map_keeps_nothing(td: &Td) -> Outcome {
    let mirror = need!(td.mirror(false, 512));
    for k in 0..FAULT_TRIES {
        td.fail(Kind::PageAug, 0, k, BUSY_TREE);
        ensure!(td::map(td, &mirror, u64::from(k)) == Ok(MapOutcome::Fixed));
    }
    let before = td.calls(Kind::PageAug);
    td.fail(Kind::PageAug, 0, FAULT_TRIES, BUSY_TREE);
    ensure!(td::map(td, &mirror, 9) == Ok(CONTENDED));
    ensure!(td.calls(Kind::PageAug).saturating_sub(before) == FAULT_TRIES);
    ensure!(kind(&mirror, 9) == Some(SpteKind::NonPresent) && !td.is_mapped(9));
    Ok(())
}

/// A map that meets a frozen entry ends without a SEAMCALL.
// Shows: R18.
pub fn a_frozen_entry_ends_a_map(td: &Td) -> Outcome {
    let mirror = need!(td.mirror(false, 512));
    ensure!(td::map(td, &mirror, 0) == Ok(MapOutcome::Fixed));
    let lock = td::shared();
    let slot = need!(mirror.slot(&lock, td::gfn(1)));
    let at = Position::covering(td::gfn(1), Level::L4K);
    let frozen = need!(FrozenSpte::freeze(&lock, slot.cell, at, slot.spte()));
    let before = td.seamcalls();
    ensure!(td::map(td, &mirror, 1) == Ok(MapOutcome::Retry(RetryReason::Frozen)));
    ensure!(td.seamcalls() == before && mirror.stats().frozen_seen.get() == 1);
    drop(frozen);
    ensure!(td::map(td, &mirror, 1) == Ok(MapOutcome::Fixed));
    Ok(())
}

/// Another page for a mapped GFN bugs the VM and reaches no SEAMCALL.
// Shows: R29, B14.
pub fn another_pfn_is_a_bug(td: &Td) -> Outcome {
    let mirror = need!(td.mirror(false, 512));
    ensure!(td::map(td, &mirror, 3) == Ok(MapOutcome::Fixed));
    let before = td.seamcalls();
    ensure!(td::map_to(td, &mirror, 3, 4) == Err(MapError::Bugged) && td.bugs.get() == 1);
    ensure!(td.seamcalls() == before && mirror.is_bugged());
    Ok(())
}

/// A zap survives one busy answer at each of its steps, and lets the vCPUs in again.
// Shows: R26.
pub fn a_zap_survives_busy_at_each_step(td: &Td) -> Outcome {
    let mirror = need!(td.mirror(false, 512));
    for call in [Kind::RangeBlock, Kind::Track, Kind::PageRemove] {
        for raw in 0..4 {
            ensure!(td::map(td, &mirror, raw) == Ok(MapOutcome::Fixed));
        }
        let status = if call == Kind::Track {
            td::BUSY_EPOCH
        } else {
            BUSY_TREE
        };
        td.fail(call, 0, u32::MAX, status);
        ensure!(td::zap(&mirror, 0, 4) == 4);
        td.no_fail();
        ensure!(!td.held.get());
    }
    ensure!(td.bugs.get() == 0 && td.broken.get() == 0);
    Ok(())
}

/// One TRACK and one kick for each batch, whatever its size.
// Shows: R49.
pub fn one_track_and_one_kick_for_each_batch(td: &Td) -> Outcome {
    for (batch, batches) in [(512u32, 1u32), (3, 4), (1, 10)] {
        let mirror = need!(td.mirror(false, batch));
        for raw in 0..10 {
            ensure!(td::map(td, &mirror, raw) == Ok(MapOutcome::Fixed));
        }
        let (calls, tracks, kicks) = (td.seamcalls(), td.calls(Kind::Track), td.kicks.get());
        ensure!(td::zap(&mirror, 0, 10) == 10);
        ensure!(td.seamcalls().saturating_sub(calls) == batches.saturating_add(30));
        ensure!(td.calls(Kind::Track).saturating_sub(tracks) == batches);
        ensure!(td.kicks.get().saturating_sub(kicks) == batches);
        ensure!(mirror.stats().zap_batches.get() == u64::from(batches));
        finish(td, mirror)?;
    }
    Ok(())
}

/// What cannot be removed is quarantined, refuses a map, and is resolved at the teardown.
// Shows: R41, B34.
pub fn a_failed_removal_quarantines(td: &Td) -> Outcome {
    let mirror = need!(td.mirror(false, 512));
    for raw in 0..4 {
        ensure!(td::map(td, &mirror, raw) == Ok(MapOutcome::Fixed));
    }
    td.fail(Kind::PageRemove, 1, 1, INVALID);
    ensure!(td::zap(&mirror, 0, 4) == 3);
    ensure!(mirror.stats().quarantined.get() == 1 && td.kept.get() == 1);
    ensure!(kind(&mirror, 1) == Some(SpteKind::Quarantined(td::pfn(1))));
    ensure!(td.is_mapped(1) && !td.is_mapped(2) && td.bugs.get() == 1);
    ensure!(td::map(td, &mirror, 1) == Err(MapError::Bugged));
    td.hkid_released.set(true);
    mirror.teardown(&mut td::exclusive());
    ensure!(mirror.stats().resolved.get() == 1 && mirror.stats().leaked.get() == 0);
    ensure!(td.kept.get() == 0 && td.calls(Kind::ReclaimData) == 1);
    ensure!(td.broken.get() == 0);
    Ok(())
}

/// A failed reclaim leaks one page, without a second try.
// Shows: R9.
pub fn a_failed_reclaim_leaks_one_page(td: &Td) -> Outcome {
    let mirror = need!(td.mirror(false, 512));
    ensure!(td::map(td, &mirror, 0) == Ok(MapOutcome::Fixed));
    ensure!(td::zap(&mirror, 0, 1) == 1);
    td.fail(Kind::ReclaimTable, 0, 1, td::BUSY_TDR);
    td.hkid_released.set(true);
    mirror.teardown(&mut td::exclusive());
    ensure!(td.calls(Kind::ReclaimTable) == 3);
    ensure!(mirror.stats().leaked.get() == 1 && td.leaks.get() == 1);
    drop(mirror);
    // The one that the TDX module keeps.
    ensure!(td.pages_in_use() == 1 && td.broken.get() == 0);
    Ok(())
}

/// Until the TD is finalized: one try for each map, neither BLOCK nor TRACK nor kick.
// Shows: R25.
pub fn a_build_needs_neither_block_nor_track(td: &Td) -> Outcome {
    let mirror = need!(td.mirror(true, 512));
    td.fail(Kind::PageAdd, 0, 1, BUSY_TREE);
    ensure!(td::map(td, &mirror, 0) == Ok(CONTENDED));
    ensure!(td.calls(Kind::PageAdd) == 1);
    ensure!(td::map(td, &mirror, 0) == Ok(MapOutcome::Fixed));
    ensure!(td::zap(&mirror, 0, 1) == 1);
    ensure!(td.calls(Kind::RangeBlock) == 0 && td.calls(Kind::Track) == 0 && td.kicks.get() == 0);
    finish(td, mirror)
}

/// Every page that is taken is counted, and nothing is left at the end.
// Shows: R21.
pub fn every_page_that_is_taken_is_counted(td: &Td) -> Outcome {
    let mirror = need!(td.mirror(false, 512));
    for raw in [0, 512, 1024] {
        ensure!(td::map(td, &mirror, raw) == Ok(MapOutcome::Fixed));
    }
    ensure!(td.tables.get() == 6 && td.external_tables.get() == 5);
    ensure!(mirror.stats().tables.get() == 6 && mirror.stats().external_tables.get() == 5);
    ensure!(td.pages_in_use() == 11 && td.leaf_account.get() == 3);
    ensure!(td::zap(&mirror, 0, 2048) == 3);
    ensure!(td.leaf_account.get() == 0);
    finish(td, mirror)
}

/// Ends the TD; another may begin.
fn finish(td: &Td, mirror: td::TdMirror<'_>) -> Outcome {
    td.hkid_released.set(true);
    mirror.teardown(&mut td::exclusive());
    ensure!(mirror.stats().leaked.get() == 0);
    drop(mirror);
    td.hkid_released.set(false);
    ensure!(td.pages_in_use() == 0);
    ensure!(td.tables.get() == 0 && td.external_tables.get() == 0);
    ensure!(td.broken.get() == 0 && td.bugs.get() == 0);
    Ok(())
}
