// SPDX-License-Identifier: GPL-2.0

//! Whether the TD is finalized is asked once for each time that mmu_lock is taken.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, OnceLock};

use tdx_mirror_host::base::level::Level;
use tdx_mirror_host::mirror::error::{MapError, MapOutcome};
use tdx_mirror_host::mock::{
    status,
    Event::{self, Call},
    Mock,
};
use tdx_mirror_host::sept::FAULT_TRIES;
use tdx_mirror_host::tdx::call::Kind;
use tdx_mirror_host::vm::Td;

const FIXED: Result<MapOutcome, MapError> = Ok(MapOutcome::Fixed);

/// A TD in each phase, and the call that maps a page of it.
fn kinds() -> [(Td, Event); 2] {
    [
        (Td::built(), Call(Kind::PageAug)),
        (Td::in_build(), Call(Kind::PageAdd)),
    ]
}

// Shows: R4.
#[test]
fn a_map_asks_once() {
    for (td, _) in kinds() {
        // Three tables and the leaf; the leaf alone; nothing.
        assert_eq!((td.map(5, 7), td.mock().asked()), (FIXED, 1));
        assert_eq!((td.map(6, 8), td.mock().asked()), (FIXED, 1));
        let spurious = Ok(MapOutcome::Spurious);
        assert_eq!((td.map(6, 8), td.mock().asked()), (spurious, 1));
    }
}

// Shows: R4, R15.
#[test]
fn a_map_that_meets_contention_asks_once() {
    for (td, page) in kinds() {
        assert_eq!((td.map(1, 1), td.mock().asked()), (FIXED, 1));
        // All tries, and those of a payment of the mark that they left.
        let mock = td.mock();
        mock.fail(page, 0, FAULT_TRIES, status::ENTRY_BUSY);
        mock.fail(Call(Kind::SeptRd), 0, FAULT_TRIES, status::ENTRY_BUSY);
        let outcome = td.map(2, 2);
        assert!(outcome != FIXED, "{outcome:?}");
        assert_eq!(mock.asked(), 1);
        mock.clear_fails();
        // It pays first.
        assert_eq!((td.map(3, 3), mock.asked()), (FIXED, 1));
    }
}

// Shows: R25.
#[test]
fn a_zap_asks_once() {
    for (td, _) in kinds() {
        for gfn in 0..600 {
            assert_eq!(td.map(gfn, gfn), FIXED);
        }
        td.mock().asked();
        // Two batches, each with contention.
        td.mock()
            .fail(Call(Kind::PageRemove), 3, 1, status::TREE_BUSY);
        assert_eq!((td.zap(0, 600), td.mock().asked()), (600, 1));
        assert_eq!((td.zap(0, 600), td.mock().asked()), (0, 1));
    }
}

// Shows: R25, R49.
#[test]
fn a_zap_asks_again_once_it_has_yielded() {
    let td = Arc::new(Td::with_zap_batch(Level::L512G, Mock::new(Level::L512G), 2));
    td.mock().set_finalized(false);
    for gfn in 0..6 {
        assert_eq!(td.map(gfn, gfn), FIXED);
    }
    // KVM finalizes the TD while the zap has let go of the lock for the first time.
    let later = Arc::new(OnceLock::new());
    let of_yield = Arc::clone(&later);
    td.host().on_yield(move || {
        let td: &std::sync::Weak<Td> = of_yield.get().unwrap();
        td.upgrade().unwrap().mock().set_finalized(true);
    });
    later.set(Arc::downgrade(&td)).unwrap();
    td.host().resched.store(2, SeqCst);
    td.mock().clear_log();
    td.mock().asked();
    assert_eq!(td.zap_yielding(0, 6), 6);
    let yields = u32::try_from(td.host().yields.load(SeqCst)).unwrap();
    assert_eq!((yields, td.mock().asked()), (2, 3));
    // The first batch needed no tracking, both others did.
    assert_eq!(td.mock().count(Call(Kind::RangeBlock)), 4);
    assert_eq!(td.mock().count(Call(Kind::Track)), 2);
    assert_eq!(td.mock().count(Call(Kind::PageRemove)), 6);
    td.check_same(&[0, 1, 2, 3, 4, 5]);
}
