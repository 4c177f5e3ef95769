// SPDX-License-Identifier: GPL-2.0

//! What is counted, and what is told of frozen entries.

use tdx_mirror_host::base::level::Level;
use tdx_mirror_host::base::stats::{Count, Counter, Histogram};
use tdx_mirror_host::base::td::Operand;
use tdx_mirror_host::mirror::error::{MapError, MapOutcome};
use tdx_mirror_host::mirror::mmu::BATCH_SIZES;
use tdx_mirror_host::mirror::spte::{Spte, SpteKind};
use tdx_mirror_host::mock::{status, Event::Call};
use tdx_mirror_host::sept::{ByOperand, FAULT_TRIES};
use tdx_mirror_host::tdx::call::{Kind, FIGURES, KINDS};
use tdx_mirror_host::tdx::status::TdxStatus;
use tdx_mirror_host::vm::Td;

/// The counters that are not 0, by name.
fn named(counts: &ByOperand<Counter>) -> Vec<(&'static str, &'static str, u64)> {
    let counts = counts.each().filter(|(_, _, count)| *count != 0);
    counts
        .map(|(label, operand, n)| (FIGURES[label], Operand::ALL[operand].label(), n))
        .collect()
}

#[test]
fn a_histogram_has_powers_of_two() {
    let h = Histogram::<Counter, 4>::new(Counter::row());
    for value in [0, 1, 2, 3, 4, 7, 8, 15, 16, u64::MAX] {
        h.add(value);
    }
    assert_eq!(h.buckets().collect::<Vec<_>>(), [2, 2, 2, 4]);
}

// Shows: R25.
#[test]
fn batches_are_counted_by_size() {
    let td = Td::built();
    for gfn in 0..520 {
        assert_eq!(td.map(gfn, gfn + 10_000), Ok(MapOutcome::Fixed));
    }
    // A full batch, 7 that are left, one alone, none.
    for (start, end) in [(0, 519), (519, 520), (519, 520)] {
        td.zap(start, end);
    }
    let mut sizes = [0; BATCH_SIZES];
    (sizes[9], sizes[2], sizes[0]) = (1, 1, 1);
    let seen: Vec<u64> = td.mirror().batch_sizes().buckets().collect();
    assert_eq!(seen, sizes);
    assert_eq!(
        seen.iter().sum::<u64>(),
        td.mirror().stats().zap_batches.get()
    );
}

#[test]
fn each_end_of_a_map_has_its_counter() {
    let td = Td::built();
    let stats = || {
        let s = td.mirror().stats();
        [
            &s.mapped,
            &s.spurious,
            &s.maps_frozen,
            &s.maps_contended,
            &s.maps_no_page,
            &s.maps_invalid,
            &s.maps_bugged,
        ]
        .map(Counter::get)
    };
    let mut none = td.caches();
    (none.tables, none.externals) = (0, 0);
    assert!(matches!(
        td.map_with(&mut none, 0, 1),
        Ok(MapOutcome::Retry(_))
    ));
    assert_eq!(stats(), [0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(td.map(0, 1), Ok(MapOutcome::Fixed));
    assert_eq!(td.map(0, 1), Ok(MapOutcome::Spurious));
    assert_eq!(stats(), [1, 1, 0, 0, 1, 0, 0]);
    td.mock()
        .fail(Call(Kind::PageAug), 0, FAULT_TRIES, status::TREE_BUSY);
    assert!(matches!(td.map(1, 2), Ok(MapOutcome::Retry(_))));
    assert_eq!(stats(), [1, 1, 0, 1, 1, 0, 0]);
    assert_eq!(td.map(1 << 36, 2), Err(MapError::Invalid));
    assert_eq!(stats(), [1, 1, 0, 1, 1, 1, 0]);
    let at = td.poke(2, Spte::FROZEN);
    assert!(matches!(td.map(2, 3), Ok(MapOutcome::Retry(_))));
    assert_eq!(stats(), [1, 1, 1, 1, 1, 1, 0]);
    td.poke(at.gfn().as_u64(), Spte::NON_PRESENT);
    td.mock()
        .fail(Call(Kind::PageAug), 0, 1, status::STATE_INCORRECT);
    assert_eq!(td.map(2, 3), Err(MapError::Bugged));
    assert_eq!(td.map(2, 3), Err(MapError::Bugged));
    assert_eq!(stats(), [1, 1, 1, 1, 1, 1, 2]);
}

// Shows: R4.
#[test]
fn a_map_that_is_busy_while_the_td_is_built_is_counted_like_any() {
    let td = Td::in_build();
    td.mock().fail(Call(Kind::PageAdd), 0, 1, status::TREE_BUSY);
    assert!(matches!(td.map(0, 1), Ok(MapOutcome::Retry(_))));
    assert_eq!(td.mirror().stats().maps_contended.get(), 1);
    assert_eq!(td.map(0, 1), Ok(MapOutcome::Fixed));
    let made = || (td.made(Kind::PageAdd), td.made(Kind::PageAug));
    assert_eq!(made(), (2, 0));
    td.mock().set_finalized(true);
    assert_eq!(td.map(1, 2), Ok(MapOutcome::Fixed));
    assert_eq!(made(), (2, 1));
    // The figures count both together.
    let page_map = FIGURES.iter().position(|label| *label == "page_map");
    let sept = td.mirror().external();
    assert_eq!(sept.calls().each().nth(page_map.unwrap()), Some((3, 0, 0)));
}

// Shows: R4.
#[test]
fn retries_and_giveups_are_counted_by_operation_and_operand() {
    let td = Td::built();
    assert_eq!(td.map(0, 1), Ok(MapOutcome::Fixed));
    let calls = td.mirror().external().calls();
    assert_eq!(
        (named(&calls.retries), named(&calls.giveups)),
        (vec![], vec![])
    );
    let fail = |call, times, status| td.mock().fail(call, 0, times, status);
    fail(Call(Kind::PageAug), 2, status::TREE_BUSY);
    assert_eq!(td.map(1, 2), Ok(MapOutcome::Fixed));
    fail(Call(Kind::PageAug), FAULT_TRIES, status::ENTRY_BUSY);
    assert!(matches!(td.map(2, 3), Ok(MapOutcome::Retry(_))));
    fail(Call(Kind::RangeBlock), 1, status::TREE_BUSY);
    fail(Call(Kind::Track), 1, status::EPOCH_BUSY);
    assert_eq!(td.zap(1, 2), 1);
    let tries = u64::from(FAULT_TRIES);
    assert_eq!(
        named(&calls.retries),
        [
            ("page_map", "sept_tree", 2),
            ("page_map", "sept_entry", tries - 1),
            ("range_block", "sept_tree", 1),
            ("track", "td_epoch", 1),
        ]
    );
    assert_eq!(named(&calls.giveups), [("page_map", "sept_entry", 1)]);
    let stats = td.mirror().external().stats();
    let sum = |counts: &ByOperand<Counter>| counts.each().map(|(_, _, n)| n).sum::<u64>();
    assert_eq!(sum(&calls.retries), stats.retries.get());
    assert_eq!(sum(&calls.giveups), stats.giveups.get());
    assert_eq!(stats.busy.get(), stats.retries.get() + stats.giveups.get());
    assert!(calls
        .each()
        .all(|(_, failed, informational)| (failed, informational) == (0, 0)));
    // What is no contention is a failure of its operation, once.
    fail(Call(Kind::PageRemove), 1, status::STATE_INCORRECT);
    assert_eq!(td.zap(0, 1), 0);
    let failed: Vec<u64> = calls.each().map(|(_, failed, _)| failed).collect();
    assert_eq!(failed[Kind::PageRemove.figure()], 1);
    assert_eq!(failed.iter().sum::<u64>(), 1);
}

#[test]
fn an_informational_answer_is_counted_by_its_call() {
    let td = Td::built();
    let blocked = TdxStatus::GPA_RANGE_ALREADY_BLOCKED;
    for gfn in 0..3 {
        let _ = td.map(gfn, 100 + gfn);
    }
    // Blocked as it was asked for, and what follows goes on as if the call had done it.
    td.mock().fail(Call(Kind::RangeBlock), 1, 1, blocked);
    td.zap(0, 3);
    let calls = td.mirror().external().calls();
    for (label, (made, _, informational)) in calls.each().enumerate() {
        let of_label = |kind: &&Kind| kind.figure() == label;
        let sum = KINDS.iter().filter(of_label).map(|kind| td.made(*kind));
        assert_eq!(made, sum.sum::<u64>(), "{}", FIGURES[label]);
        let block = label == Kind::RangeBlock.figure();
        assert_eq!(informational, u64::from(block), "{}", FIGURES[label]);
    }
    assert_eq!(td.made(Kind::RangeBlock), 3);
}

#[test]
fn a_look_finds_frozen_entries_and_goes_on_where_it_ended() {
    let td = Td::built();
    for gfn in [0, 3, 511, 512 * 7 + 5] {
        assert_eq!(td.map(gfn, gfn + 10_000), Ok(MapOutcome::Fixed));
    }
    let leaf = td.poke(3, Spte::FROZEN);
    let table = td.poke(512 * 9, Spte::FROZEN);
    assert_eq!((leaf.level(), table.level()), (Level::L4K, Level::L2M));
    for step in [1, 3, 100, 100_000] {
        let (mut frozen, mut leaves, mut next) = (vec![], 0, Some(0));
        while let Some(from) = next {
            next = td.exclusive(|x| {
                td.mirror().look(x, from, step, &mut |at, kind| match kind {
                    SpteKind::Frozen => frozen.push(at),
                    SpteKind::Leaf(_) => leaves += 1,
                    _ => (),
                })
            });
            assert!(next.is_none_or(|next| next > from));
        }
        assert_eq!((frozen, leaves), (vec![leaf, table], 3), "{step} at a time");
    }
    td.poke(3, Spte::NON_PRESENT);
    td.poke(512 * 9, Spte::NON_PRESENT);
}

#[test]
fn a_one_word_counter_counts() {
    let counter = Counter::new();
    Count::inc(&counter);
    Count::inc(&counter);
    Count::dec(&counter);
    assert_eq!(Count::get(&counter), 1);
}
