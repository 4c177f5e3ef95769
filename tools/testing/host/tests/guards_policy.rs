// SPDX-License-Identifier: GPL-2.0

//! The policy of SEAMCALLs where two kinds of contention mix.

use tdx_mirror_host::mirror::addr::Gfn;
use tdx_mirror_host::mirror::error::{MapOutcome, RetryReason};
use tdx_mirror_host::mirror::external::Operand;
use tdx_mirror_host::mock::{status, Call};
use tdx_mirror_host::sept::{FAULT_TRIES, PAY_TRIES};
use tdx_mirror_host::vm::Td;

/// Tries of a map that find the entry held, then ones that find the tree held; the payment finds
/// the entry held as well.
fn mixed(entry: u32) -> Td {
    let td = Td::built();
    assert_eq!(td.map(1, 1), Ok(MapOutcome::Fixed));
    if entry > 0 {
        td.mock().fail(Call::PageMap, 0, entry, status::ENTRY_BUSY);
    }
    let tree = FAULT_TRIES - entry;
    td.mock().fail(Call::PageMap, 0, tree, status::TREE_BUSY);
    td.mock().fail(Call::Read, 0, PAY_TRIES, status::ENTRY_BUSY);
    assert_eq!(
        td.map(2, 2),
        Ok(MapOutcome::Retry(RetryReason::Contended(Operand::SeptTree)))
    );
    td
}

#[test]
fn r15_one_try_at_the_entry_leaves_a_mark_whatever_follows() {
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
