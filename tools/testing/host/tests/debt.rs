// SPDX-License-Identifier: GPL-2.0

//! Host-priority marks: who gives up on an entry's lock owes the guest one more locking of it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};
use tdx_mirror_host::base::addr::{Gfn, Pfn};
use tdx_mirror_host::base::level::Level;
use tdx_mirror_host::base::td::Operand;
use tdx_mirror_host::mirror::error::{Bug, MapError, MapOutcome, RetryReason};
use tdx_mirror_host::mirror::lock::Shared;
use tdx_mirror_host::mock::{
    status,
    Event::{self, Call},
    Mock,
};
use tdx_mirror_host::sept::{DEBT_SLOTS, FAULT_TRIES, PAY_TRIES, ZAP_TRIES};
use tdx_mirror_host::tdx::call::Kind;
use tdx_mirror_host::tdx::status::TdxStatus;
use tdx_mirror_host::vm::{Outcome, Td};

const FIXED: Outcome = Ok(MapOutcome::Fixed);
const ENTRY: Outcome = Ok(MapOutcome::Retry(RetryReason::Contended(
    Operand::SeptEntry,
)));
const TREE: Outcome = Ok(MapOutcome::Retry(RetryReason::Contended(Operand::SeptTree)));

/// A TD with one table of each level, so that faults below it are one SEAMCALL.
fn td() -> Td {
    let td = Td::built();
    assert_eq!(td.map(0, 1000), FIXED);
    td.mock().clear_log();
    td
}

/// (left, cleared, lost, in the book)
fn debts(td: &Td) -> (u64, u64, u64, u64) {
    let sept = td.mirror().external();
    let s = sept.stats();
    (
        s.debts.get(),
        s.debts_paid.get(),
        s.debts_lost.get(),
        sept.debts_owed(),
    )
}

fn owes(td: &Td, gfn: u64) -> bool {
    td.mirror().external().owes(Gfn::new(gfn).unwrap())
}

/// A fault on `gfn` that gives up because the guest keeps the entry's lock throughout.
fn give_up(td: &Td, gfn: u64) {
    td.mock().accept_begin(Level::L4K, gfn).unwrap();
    assert_eq!(td.map(gfn, gfn + 1000), ENTRY);
}

// Shows: R15.
#[test]
fn the_mark_is_what_starves_the_guest() {
    // What the rest of this file is about, as the mock has it from the TDX module.
    let td = td();
    give_up(&td, 5);
    td.mock().accept_end(Level::L4K, 5);
    assert_eq!(td.mock().marks(), 1);
    assert_eq!(
        td.mock().accept_begin(Level::L4K, 5),
        Err(status::ENTRY_BUSY)
    );
    assert_eq!(td.map(5, 1005), FIXED);
    assert_eq!(td.mock().accept_begin(Level::L4K, 5), Ok(()));
}

// Shows: R15.
#[test]
fn a_mark_is_cleared_at_once_where_that_is_possible() {
    for extra in 0..PAY_TRIES {
        let td = td();
        // Busy for the whole budget, and for some tries after it.
        td.mock()
            .fail(Call(Kind::PageAug), 0, FAULT_TRIES, status::ENTRY_BUSY);
        if extra > 0 {
            td.mock()
                .fail(Call(Kind::SeptRd), 0, extra, status::ENTRY_BUSY);
        }
        assert_eq!(td.map(5, 1005), ENTRY);
        assert_eq!(td.mock().count(Call(Kind::SeptRd)) as u32, extra + 1);
        assert_eq!(td.made(Kind::SeptRd), u64::from(extra) + 1);
        assert_eq!(td.mock().marks(), 0);
        assert_eq!(debts(&td), (1, 1, 0, 0));
        assert!(!owes(&td, 5));
        assert_eq!(td.mock().accept_begin(Level::L4K, 5), Ok(()));
    }
}

// Shows: R15.
#[test]
fn tries_to_pay_at_once_are_bounded() {
    let td = td();
    give_up(&td, 5);
    let log: Vec<_> = td.mock().log().into_iter().map(|(c, _)| c).collect();
    let (maps, reads) = log.split_at(FAULT_TRIES as usize);
    assert!(maps.iter().all(|c| *c == Call(Kind::PageAug)));
    assert_eq!(reads.len() as u32, PAY_TRIES);
    assert!(reads.iter().all(|c| *c == Call(Kind::SeptRd)));
    assert_eq!(debts(&td), (1, 0, 0, 1));
    let stats = td.mirror().external().stats();
    assert_eq!(stats.busy.get(), u64::from(FAULT_TRIES + PAY_TRIES));
    assert_eq!(stats.retries.get(), u64::from(FAULT_TRIES + PAY_TRIES - 2));
    assert_eq!(stats.giveups.get(), 2);
    td.check_same(&[0, 5]);
}

// Shows: R15.
#[test]
fn the_book_knows_the_entry() {
    let td = td();
    give_up(&td, 5);
    for (gfn, owed) in [
        (5, true),
        (4, false),
        (6, false),
        (517, false),
        (1 << 30, false),
    ] {
        assert_eq!(owes(&td, gfn), owed, "{gfn}");
    }
    // The entry of a table: what lies under it owes.
    let td = Td::built();
    assert_eq!(td.map(0, 1000), FIXED);
    td.mock().accept_begin(Level::L2M, 512).unwrap();
    assert_eq!(td.map(600, 1600), ENTRY);
    for (gfn, owed) in [
        (511, false),
        (512, true),
        (600, true),
        (1023, true),
        (1024, false),
    ] {
        assert_eq!(owes(&td, gfn), owed, "{gfn}");
    }
    td.mock().accept_end(Level::L2M, 512);
    assert_eq!(td.map(601, 1601), FIXED);
    assert_eq!(debts(&td), (1, 1, 0, 0));
    assert_eq!(td.mock().marks(), 0);
    // At the ends of the GFNs and of the levels.
    for (level, gfn) in [
        (Level::L512G, (1 << 36) - 1),
        (Level::L1G, (1 << 36) - 1),
        (Level::L2M, 0),
        (Level::L4K, (1 << 36) - 1),
    ] {
        let td = Td::built();
        td.mock().accept_begin(level, gfn).unwrap();
        assert_eq!(td.map(gfn, 1), ENTRY, "{level:?}");
        assert!(owes(&td, gfn), "{level:?}");
        td.mock().accept_end(level, gfn);
        assert_eq!(td.map(gfn, 1), FIXED);
        assert_eq!(debts(&td), (1, 1, 0, 0));
    }
}

// Shows: R15.
#[test]
fn the_next_map_of_the_entry_pays() {
    let td = td();
    give_up(&td, 5);
    td.mock().accept_end(Level::L4K, 5);
    td.mock().clear_log();
    assert_eq!(td.map(5, 1005), FIXED);
    // The general payment comes first, then the map itself.
    let log: Vec<_> = td.mock().log().into_iter().map(|(c, _)| c).collect();
    assert_eq!(log, [Call(Kind::SeptRd), Call(Kind::PageAug)]);
    assert_eq!(debts(&td), (1, 1, 0, 0));
    assert_eq!(td.mock().marks(), 0);
}

// Shows: R15.
#[test]
fn the_map_itself_pays_if_the_payment_is_busy() {
    let td = td();
    give_up(&td, 5);
    td.mock().accept_end(Level::L4K, 5);
    td.mock().fail(Call(Kind::SeptRd), 0, 1, status::TREE_BUSY);
    td.mock().clear_log();
    assert_eq!(td.map(5, 1005), FIXED);
    let log: Vec<_> = td.mock().log().into_iter().map(|(c, _)| c).collect();
    assert_eq!(log, [Call(Kind::SeptRd), Call(Kind::PageAug)]);
    assert_eq!(debts(&td), (1, 1, 0, 0));
}

// Shows: R15.
#[test]
fn a_map_elsewhere_pays() {
    let td = td();
    give_up(&td, 5);
    // Not while the guest has the lock: one try, and it stays in the book.
    td.mock().clear_log();
    assert_eq!(td.map(6, 1006), FIXED);
    assert_eq!(td.mock().count(Call(Kind::SeptRd)), 1);
    assert_eq!(debts(&td), (1, 0, 0, 1));
    td.mock().accept_end(Level::L4K, 5);
    // A spurious one does as well.
    assert_eq!(td.map(6, 1006), Ok(MapOutcome::Spurious));
    assert_eq!(debts(&td), (1, 1, 0, 0));
    assert_eq!(td.mock().accept_begin(Level::L4K, 5), Ok(()));
    // Nothing is owed: no SEAMCALL.
    td.mock().clear_log();
    assert_eq!(td.map(6, 1006), Ok(MapOutcome::Spurious));
    assert!(td.mock().log().is_empty());
}

// Shows: R15.
#[test]
fn one_debt_is_counted_once_however_often_it_is_given_up() {
    let td = td();
    td.mock().accept_begin(Level::L4K, 5).unwrap();
    for _ in 0..20 {
        assert_eq!(td.map(5, 1005), ENTRY);
        assert_eq!(debts(&td), (1, 0, 0, 1));
    }
    td.mock().accept_end(Level::L4K, 5);
    assert_eq!(td.map(5, 1005), FIXED);
    assert_eq!(debts(&td), (1, 1, 0, 0));
    // A new one is one more.
    assert_eq!(td.zap(5, 6), 1);
    give_up(&td, 5);
    assert_eq!(debts(&td), (2, 1, 0, 1));
}

// Shows: R15.
#[test]
fn a_mark_of_an_earlier_try_counts() {
    // Busy with the entry first, and at last with the tree.
    let td = td();
    td.mock()
        .fail(Call(Kind::PageAug), 0, 1, status::ENTRY_BUSY);
    td.mock()
        .fail(Call(Kind::PageAug), 0, FAULT_TRIES - 1, status::TREE_BUSY);
    assert_eq!(td.map(5, 1005), TREE);
    assert_eq!(debts(&td), (1, 1, 0, 0));
    assert_eq!(td.mock().marks(), 0);
    // Busy with the tree first, and at last with the entry.
    let td = self::td();
    td.mock()
        .fail(Call(Kind::PageAug), 0, FAULT_TRIES - 1, status::TREE_BUSY);
    td.mock()
        .fail(Call(Kind::PageAug), 0, 1, status::ENTRY_BUSY);
    assert_eq!(td.map(5, 1005), ENTRY);
    assert_eq!(debts(&td), (1, 1, 0, 0));
    assert_eq!(td.mock().marks(), 0);
    // Never with the entry: nothing is owed, nothing is read.
    let td = self::td();
    td.mock()
        .fail(Call(Kind::PageAug), 0, FAULT_TRIES, status::TREE_BUSY);
    assert_eq!(td.map(5, 1005), TREE);
    assert_eq!(debts(&td), (0, 0, 0, 0));
    assert_eq!(td.mock().count(Call(Kind::SeptRd)), 0);
    // A try that got the entry's lock cleared what the one before left.
    let td = self::td();
    td.mock()
        .fail(Call(Kind::PageAug), 0, FAULT_TRIES - 1, status::ENTRY_BUSY);
    assert_eq!(td.map(5, 1005), FIXED);
    assert_eq!(debts(&td), (0, 0, 0, 0));
    assert_eq!(td.mock().marks(), 0);
}

// Shows: R15.
#[test]
fn build_pays_as_well() {
    let td = Td::in_build();
    assert_eq!(td.map(0, 1000), FIXED);
    td.mock()
        .fail(Call(Kind::PageAdd), 0, 1, status::ENTRY_BUSY);
    assert_eq!(
        td.map(5, 1005),
        Ok(MapOutcome::Retry(RetryReason::Contended(
            Operand::SeptEntry
        )))
    );
    assert_eq!(td.mock().count(Call(Kind::SeptRd)), 1);
    assert_eq!(debts(&td), (1, 1, 0, 0));
    assert_eq!(td.mock().marks(), 0);
}

// Shows: R15.
#[test]
fn a_zap_pays_with_certainty() {
    let td = td();
    for gfn in [5, 6, 7] {
        give_up(&td, gfn);
    }
    assert_eq!(debts(&td), (3, 0, 0, 3));
    td.mock().clear_log();
    // Of a range that has none of them.
    assert_eq!(td.zap(1 << 30, 1 << 31), 0);
    assert_eq!(debts(&td), (3, 3, 0, 0));
    assert_eq!(td.mock().marks(), 0);
    // One busy, one kick: it takes the locks of all of them away.
    let log: Vec<_> = td.mock().log().into_iter().map(|(c, _)| c).collect();
    assert_eq!(
        log,
        [
            Call(Kind::SeptRd),
            Event::Hold,
            Event::Kick,
            Call(Kind::SeptRd),
            Call(Kind::SeptRd),
            Call(Kind::SeptRd),
            Event::Release
        ]
    );
    for gfn in [5, 6, 7] {
        assert_eq!(td.mock().accept_begin(Level::L4K, gfn), Ok(()));
    }
    assert!(td.host().bugs().is_empty());
}

// Shows: R15.
#[test]
fn a_lock_that_no_vcpu_holds_is_a_bug() {
    let td = td();
    give_up(&td, 5);
    td.mock()
        .fail(Call(Kind::SeptRd), 0, ZAP_TRIES, status::ENTRY_BUSY);
    assert_eq!(td.zap(0, 1), 1, "the zap goes on");
    assert_eq!(debts(&td), (1, 0, 1, 0));
    let bugs = td.host().bugs();
    assert!(
        matches!(bugs[..], [Bug::External { at, failure }]
        if at.gfn().as_u64() == 5 && failure.op == "TDH.MEM.SEPT.RD"),
        "{bugs:?}"
    );
    assert!(!td.mock().holding());
}

// Shows: R15.
#[test]
fn a_dead_td_owes_nobody() {
    // At a map.
    let td = td();
    give_up(&td, 5);
    td.mock()
        .fail(Call(Kind::SeptRd), 0, 1, TdxStatus::TD_FATAL);
    assert_eq!(td.map(0, 1000), Ok(MapOutcome::Spurious));
    assert_eq!(debts(&td), (1, 0, 1, 0));
    assert!(td.host().bugs().is_empty());
    // At a zap: no kick for it, and no bug.
    let td = self::td();
    give_up(&td, 5);
    td.mock()
        .fail(Call(Kind::SeptRd), 0, 1, TdxStatus::TD_FATAL);
    assert_eq!(td.zap(1 << 30, 1 << 31), 0);
    assert_eq!(debts(&td), (1, 0, 1, 0));
    assert_eq!(td.mock().count(Event::Kick), 0);
    assert!(td.host().bugs().is_empty());
    // When giving up: kept, as nobody knows better.
    let td = self::td();
    td.mock()
        .fail(Call(Kind::PageAug), 0, FAULT_TRIES, status::ENTRY_BUSY);
    td.mock()
        .fail(Call(Kind::SeptRd), 0, 1, TdxStatus::TD_FATAL);
    assert_eq!(td.map(5, 1005), ENTRY);
    assert_eq!(td.mock().count(Call(Kind::SeptRd)), 1, "not retried");
    assert_eq!(debts(&td), (1, 0, 0, 1));
    // A map that fails for another reason leaves the book as it was.
    td.mock().fail(Call(Kind::SeptRd), 0, 1, status::TREE_BUSY);
    td.mock()
        .fail(Call(Kind::PageAug), 0, 1, TdxStatus::TD_FATAL);
    assert_eq!(td.map(5, 1005), Err(MapError::Bugged));
    assert_eq!(debts(&td), (1, 0, 0, 1));
}

// Shows: R15.
#[test]
fn zap_of_the_entry_itself_pays() {
    // A mark on a mapped leaf, as a link that raced leaves it, goes with its BLOCK or REMOVE; the
    // payment that comes first is busy with the tree.
    for built in [true, false] {
        let td = td();
        give_up(&td, 5);
        td.mock().accept_end(Level::L4K, 5);
        td.mock().set_finalized(built);
        // Mapped behind the mirror's back, so that the book is not asked.
        use tdx_mirror_host::mirror::spte::Spte;
        use tdx_mirror_host::tdx::call::Call as SeamCall;
        use tdx_mirror_host::tdx::seamcall::Seamcall;
        let page = Pfn::new(1005).unwrap();
        let at = td.poke(5, Spte::leaf(page, Level::L4K));
        let call = if built {
            SeamCall::PageAug { at, pfn: page }
        } else {
            SeamCall::PageAdd { at, pfn: page }
        };
        assert!(td.mock().call(call).status.is_success());
        td.mock()
            .fail(Call(Kind::SeptRd), 0, 1, TdxStatus::SYS_BUSY);
        assert_eq!(td.zap(5, 6), 1);
        assert_eq!(debts(&td).3, 0);
        assert!(td.host().bugs().is_empty());
    }
}

// Shows: R15.
#[test]
fn a_full_book_loses_and_counts() {
    let td = td();
    let slots = DEBT_SLOTS as u64;
    for n in 1..=slots {
        give_up(&td, n);
        assert_eq!(debts(&td), (n, 0, 0, n));
    }
    for n in 1..=3 {
        give_up(&td, slots + n);
        assert_eq!(debts(&td), (slots + n, 0, n, slots));
        assert!(!owes(&td, slots + n));
    }
    // The loss is one of the note, not of the entry: what locks it next clears its mark.
    td.mock().accept_end(Level::L4K, slots + 1);
    assert_eq!(td.map(slots + 1, 5000), FIXED);
    assert_eq!(td.mock().accept_begin(Level::L4K, slots + 1), Ok(()));
    // All others are paid by one zap.
    assert_eq!(td.zap(1 << 30, 1 << 31), 0);
    assert_eq!(debts(&td), (slots + 3, slots, 3, 0));
    assert_eq!(td.mock().marks(), 2);
    // The slots can be used again.
    give_up(&td, 1);
    assert_eq!(debts(&td), (slots + 4, slots, 3, 1));
}

// Shows: R15.
#[test]
fn one_that_cannot_be_paid_stops_no_other() {
    let td = td();
    for gfn in 1..=8 {
        give_up(&td, gfn);
    }
    // All but the first are free.
    for gfn in 2..=8 {
        td.mock().accept_end(Level::L4K, gfn);
    }
    for _ in 0..DEBT_SLOTS {
        assert_eq!(td.map(0, 1000), Ok(MapOutcome::Spurious));
    }
    assert_eq!(debts(&td), (8, 7, 0, 1));
    assert!(owes(&td, 1) && !owes(&td, 8));
    assert_eq!(td.mock().marks(), 1);
}

// Shows: R15.
#[test]
fn a_bugged_vm_pays_by_zap_only() {
    let td = td();
    give_up(&td, 5);
    td.mock().accept_end(Level::L4K, 5);
    assert_eq!(td.map(0, 7), Err(MapError::Bugged));
    assert_eq!(debts(&td), (1, 1, 0, 0), "paid before the bug was found");
    give_up_after_bug(&td);
}

fn give_up_after_bug(td: &Td) {
    td.mock().clear_log();
    assert_eq!(td.map(5, 1005), Err(MapError::Bugged));
    assert!(td.mock().log().is_empty(), "no SEAMCALL for a dead VM");
}

/// Guests that accept at random against mappers and a zap: at the end no mark is left that the
/// book does not have, and a zap clears the rest.
// Shows: R15, R36.
#[test]
fn marks_and_book_under_threads() {
    const GFNS: u64 = 6;
    const OPS: u32 = 20_480;
    const LONGEST: Duration = Duration::from_secs(60);
    let mock = Mock::new(Level::L512G).observe(|call, _| {
        if matches!(call, Call(Kind::PageAug) | Call(Kind::SeptRd)) {
            thread::yield_now();
        }
    });
    let td = Td::new(Level::L512G, mock);
    assert_eq!(td.map(100, 999), FIXED);
    let stop = AtomicBool::new(false);
    let starved = AtomicU32::new(0);
    let start = Instant::now();
    thread::scope(|s| {
        let mappers: Vec<_> = (0..3u64)
            .map(|t| {
                let td = &td;
                s.spawn(move || {
                    // On a machine that does much else they meet late.
                    let meets = || debts(td).0 > 0 || start.elapsed() > LONGEST;
                    for i in (0..).take_while(|i| *i < OPS || i % 256 != 0 || !meets()) {
                        let gfn = (u64::from(i) * (2 * t + 1) + t) % GFNS;
                        match td.map(gfn, 1000 + gfn) {
                            Ok(
                                MapOutcome::Fixed
                                | MapOutcome::Spurious
                                | MapOutcome::Retry(
                                    RetryReason::Frozen
                                    | RetryReason::Contended(Operand::SeptEntry),
                                ),
                            ) => (),
                            other => panic!("{other:?}"),
                        }
                    }
                })
            })
            .collect();
        let (td, stop, starved) = (&td, &stop, &starved);
        for t in 0..2u64 {
            s.spawn(move || {
                let mut n = t;
                while !stop.load(SeqCst) {
                    n = n
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    let gfn = (n >> 33) % GFNS;
                    match td.mock().accept_begin(Level::L4K, gfn) {
                        Ok(()) => {
                            // Now and then for longer than a fault tries.
                            for _ in 0..(n >> 50) % 64 {
                                thread::yield_now();
                            }
                            td.mock().accept_end(Level::L4K, gfn);
                        }
                        Err(_) => _ = starved.fetch_add(1, SeqCst),
                    }
                }
            });
        }
        s.spawn(move || {
            while !stop.load(SeqCst) {
                td.zap(0, GFNS);
                thread::yield_now();
            }
        });
        for m in mappers {
            m.join().unwrap();
        }
        stop.store(true, SeqCst);
    });
    assert!(td.host().bugs().is_empty(), "{:?}", td.host().bugs());
    let (left, paid, lost, owed) = debts(&td);
    assert_eq!(left, paid + lost + owed);
    assert_eq!(lost, 0);
    assert!(
        td.mock().marks() as u64 <= owed,
        "a mark that nobody knows of"
    );
    for gfn in 0..GFNS {
        td.mock().accept_end(Level::L4K, gfn);
    }
    td.zap(1 << 30, 1 << 31);
    assert_eq!(td.mock().marks(), 0);
    assert_eq!(debts(&td).3, 0);
    println!(
        "{left} marks left, all cleared; the guest met one {} times",
        starved.load(SeqCst)
    );
    assert!(left > 0, "the threads never met");
}

/// Between the SEAMCALL that clears a mark and the end of its operation another vCPU may leave a new
/// one: that one is not what the operation has paid.
// Shows: R15.
#[test]
fn a_mark_left_behind_a_map_is_not_forgotten() {
    let td: Arc<OnceLock<Td>> = Arc::default();
    let inner = td.clone();
    let once = AtomicBool::new(false);
    let mock = Mock::new(Level::L512G).observe_mapped(move |_, at| {
        if at.is_none_or(|at| at.gfn().as_u64() != 5) || once.swap(true, SeqCst) {
            return;
        }
        // GFN 5 is mapped, which cleared its mark; the guest begins to accept it, and a third vCPU
        // maps another page and pays what it finds in the book.
        let td = inner.get().unwrap();
        td.mock().accept_begin(Level::L4K, 5).unwrap();
        // SAFETY: the map that called holds the lock for read, as any number of vCPUs may.
        let l = unsafe { Shared::assume_held() };
        let (gfn, pfn) = (Gfn::new(6).unwrap(), Pfn::new(1006).unwrap());
        let got = td.map_locked(&l, &mut td.caches(), gfn, pfn);
        assert_eq!(got, FIXED);
    });
    td.set(Td::new(Level::L512G, mock)).unwrap();
    let td = td.get().unwrap();
    assert_eq!(td.map(0, 1000), FIXED);
    td.mock()
        .fail(Call(Kind::PageAug), 0, FAULT_TRIES, status::ENTRY_BUSY);
    td.mock()
        .fail(Call(Kind::SeptRd), 0, PAY_TRIES + 1, status::ENTRY_BUSY);
    assert_eq!(td.map(5, 1005), ENTRY);
    assert_eq!(debts(td), (1, 0, 0, 1));
    // Its own payment is busy once more, so that the map itself is what clears the mark.
    assert_eq!(td.map(5, 1005), FIXED);
    assert!(
        td.mock().marks() as u64 <= debts(td).3,
        "nobody knows of it"
    );
    td.mock().accept_end(Level::L4K, 5);
    assert_eq!(td.map(0, 1000), Ok(MapOutcome::Spurious));
    assert_eq!(td.mock().marks(), 0);
    assert_eq!(td.mock().accept_begin(Level::L4K, 5), Ok(()));
}

/// What the book is for: a guest that waits for a page gets it, though the fault was given up and
/// never repeated, as soon as any other vCPU faults.
// Shows: R15.
#[test]
fn accept_succeeds_in_the_end() {
    let entered = Arc::new(AtomicU32::new(0));
    let count = entered.clone();
    let mock = Mock::new(Level::L512G).observe(move |call, _| {
        if call == Call(Kind::SeptRd) {
            count.fetch_add(1, SeqCst);
        }
    });
    let td = Td::new(Level::L512G, mock);
    assert_eq!(td.map(0, 1000), FIXED);
    give_up(&td, 5);
    td.mock().accept_end(Level::L4K, 5);
    let mut tries = 0;
    while td.mock().accept_begin(Level::L4K, 5).is_err() {
        tries += 1;
        assert!(tries < 3, "starved");
        // Another vCPU touches another page.
        assert_eq!(td.map(8 + tries, 1008 + tries), FIXED);
    }
    assert_eq!(tries, 1);
    assert_eq!(entered.load(SeqCst), PAY_TRIES + 1);
}
