// SPDX-License-Identifier: GPL-2.0

//! The policy of SEAMCALLs where two kinds of contention mix.

use tdx_mirror_host::base::addr::Gfn;
use tdx_mirror_host::base::level::Level;
use tdx_mirror_host::base::td::Operand;
use tdx_mirror_host::mirror::error::{MapOutcome, RetryReason};
use tdx_mirror_host::mock::{status, Event::Call};
use tdx_mirror_host::sept::progress::Conditions;
use tdx_mirror_host::sept::{DEBT_SLOTS, FAULT_TRIES, PAY_TRIES};
use tdx_mirror_host::tdx::call::Kind;
use tdx_mirror_host::vm::Td;

/// Tries of a map that find the entry held, then ones that find the tree held; the payment finds
/// the entry held as well.
fn mixed(entry: u32) -> Td {
    let td = Td::built();
    assert_eq!(td.map(1, 1), Ok(MapOutcome::Fixed));
    if entry > 0 {
        td.mock()
            .fail(Call(Kind::PageAug), 0, entry, status::ENTRY_BUSY);
    }
    let tree = FAULT_TRIES - entry;
    td.mock()
        .fail(Call(Kind::PageAug), 0, tree, status::TREE_BUSY);
    td.mock()
        .fail(Call(Kind::SeptRd), 0, PAY_TRIES, status::ENTRY_BUSY);
    assert_eq!(
        td.map(2, 2),
        Ok(MapOutcome::Retry(RetryReason::Contended(Operand::SeptTree)))
    );
    td
}

// Shows: R15.
#[test]
fn one_try_at_the_entry_leaves_a_mark_whatever_follows() {
    for entry in 0..FAULT_TRIES {
        let td = mixed(entry);
        let sept = td.mirror().external();
        let owed = u64::from(entry > 0);
        assert_eq!(sept.debts_owed(), owed, "{entry} tries at the entry");
        assert_eq!(sept.stats().debts.get(), owed);
        assert_eq!(sept.owes(Gfn::new(2).unwrap()), owed == 1);
        assert!(!sept.owes(Gfn::new(1).unwrap()));
        td.mock().clear_fails();
        assert_eq!(td.map(2, 2), Ok(MapOutcome::Fixed));
        assert_eq!(sept.debts_owed(), 0);
        td.check_same(&[1, 2]);
    }
}

/// A map of `gfn` that gives up on the entry and cannot clear the mark either.
fn owe(td: &Td, gfn: u64) {
    let before = td.mirror().external().debts_owed();
    td.mock()
        .fail(Call(Kind::PageAug), 0, FAULT_TRIES, status::ENTRY_BUSY);
    // The map before it pays first, which must fail as well while something is owed.
    td.mock().fail(
        Call(Kind::SeptRd),
        0,
        PAY_TRIES + u32::from(before > 0),
        status::ENTRY_BUSY,
    );
    assert_eq!(
        td.map(gfn, gfn),
        Ok(MapOutcome::Retry(RetryReason::Contended(
            Operand::SeptEntry
        )))
    );
    assert_eq!(td.mirror().external().debts_owed(), before + 1);
}

// Shows: R15.
#[test]
fn a_mark_that_cannot_be_cleared_stops_no_other() {
    // The guest keeps the lock of one entry for as long as this lasts.
    for stuck in [2, 3, 4] {
        let td = Td::built();
        assert_eq!(td.map(1, 1), Ok(MapOutcome::Fixed));
        td.mock().accept_begin(Level::L4K, stuck).unwrap();
        for gfn in [2, 3, 4] {
            owe(&td, gfn);
        }
        let sept = td.mirror().external();
        // Each slot has its turn to be looked at first.
        for _ in 0..2 * DEBT_SLOTS {
            assert_eq!(td.map(1, 1), Ok(MapOutcome::Spurious));
        }
        for gfn in [2, 3, 4] {
            assert_eq!(sept.owes(Gfn::new(gfn).unwrap()), gfn == stuck);
        }
    }
}

// Shows: R15.
#[test]
fn marks_are_tried_in_turn() {
    let td = Td::built();
    assert_eq!(td.map(1, 1), Ok(MapOutcome::Fixed));
    td.mock().accept_begin(Level::L4K, 2).unwrap();
    owe(&td, 2);
    // This map tried the first mark, so the next one tries the second.
    owe(&td, 3);
    assert_eq!(td.map(1, 1), Ok(MapOutcome::Spurious));
    let sept = td.mirror().external();
    assert!(sept.owes(Gfn::new(2).unwrap()));
    assert!(!sept.owes(Gfn::new(3).unwrap()));
}

#[test]
fn conditions_are_a_set() {
    let both = Conditions::SIGNAL.with(Conditions::EVENT);
    assert_eq!(both.bits(), 3);
    assert_eq!(both.with(Conditions::EVENT), both);
    assert_eq!(Conditions::NONE.with(both), both);
    assert_eq!(Conditions::from_bits(3), both);
}
