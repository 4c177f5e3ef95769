// SPDX-License-Identifier: GPL-2.0

//! The comparison of mirror and S-EPT: which pairs of entries agree, which entries are shown.

use tdx_mirror_host::base::addr::{Gfn, Pfn};
use tdx_mirror_host::base::level::{Level, Position};
use tdx_mirror_host::base::td::Phase;
use tdx_mirror_host::mirror::error::MapOutcome;
use tdx_mirror_host::mirror::external::{ExtFailure, External};
use tdx_mirror_host::mirror::spte::{Spte, SpteKind};
use tdx_mirror_host::mirror::Compared;
use tdx_mirror_host::mock::Entry;
use tdx_mirror_host::vm::Td;

const GFN: u64 = 0x4_0000;

fn pfn(n: u64) -> Pfn {
    Pfn::new(n).unwrap()
}

fn leaf(n: u64, blocked: bool) -> External {
    External::Leaf {
        pfn: pfn(n),
        pending: false,
        blocked,
    }
}

fn td(pages: u64) -> Td {
    let td = Td::built();
    for n in 0..pages {
        assert_eq!(td.map(GFN + n, 100 + n), Ok(MapOutcome::Fixed));
    }
    td
}

/// All entries, `step` at a time, and how many calls that took.
fn entries(td: &Td, step: u32, free: bool) -> (Vec<Compared>, u32) {
    let (mut found, mut next, mut calls) = (vec![], Some(0), 0);
    while let Some(from) = next {
        let seen = found.len();
        next = td.exclusive(|x| {
            let visit = &mut |entry: &Compared| found.push(*entry);
            td.mirror().compare(x, from, step, free, visit)
        });
        assert!(found.len() - seen <= step as usize);
        assert!(next.is_none_or(|to| to > from), "{next:?} after {from}");
        calls += 1;
    }
    (found, calls)
}

// Shows: R31.
#[test]
fn which_pairs_agree() {
    let at = Position::covering(Gfn::new(GFN).unwrap(), Level::L4K);
    let kinds = [
        SpteKind::NonPresent,
        SpteKind::Frozen,
        SpteKind::Blocked(pfn(1)),
        SpteKind::Quarantined(pfn(1)),
        SpteKind::Leaf(pfn(1)),
        SpteKind::Table(pfn(1)),
        SpteKind::Malformed,
    ];
    let others = [
        Ok(External::Free),
        Ok(External::Table),
        Ok(leaf(1, false)),
        Ok(leaf(1, true)),
        Ok(leaf(2, false)),
        Ok(External::Other(5)),
        Err(ExtFailure::default()),
    ];
    let agree: Vec<_> = kinds
        .iter()
        .map(|kind| {
            others.map(|external| {
                let compared = Compared {
                    at,
                    kind: *kind,
                    external,
                };
                u8::from(compared.agrees())
            })
        })
        .collect();
    assert_eq!(
        agree,
        [
            [1, 0, 0, 0, 0, 0, 0],
            [0; 7],
            [0; 7],
            // Whether the TDX module still has the page is what is not known.
            [1, 0, 1, 1, 0, 0, 0],
            [0, 0, 1, 0, 0, 0, 0],
            [0; 7],
            [0; 7],
        ]
    );
}

#[test]
fn leaves_are_shown_once_in_order() {
    let td = td(5);
    let whole = entries(&td, 512, false);
    for step in [1, 2, 3, 512] {
        let (found, calls) = entries(&td, step, false);
        assert_eq!(found, whole.0);
        assert!(step != 1 || calls > whole.1);
        let seen: Vec<_> = found
            .iter()
            .map(|e| (e.at.gfn().as_u64(), e.kind))
            .collect();
        let wanted: Vec<_> = (0..5)
            .map(|n| (GFN + n, SpteKind::Leaf(pfn(100 + n))))
            .collect();
        assert_eq!(seen, wanted);
    }
    assert!(whole.0.iter().all(Compared::agrees));
}

#[test]
fn free_entries_are_shown_when_asked_for() {
    let td = td(5);
    let (found, _) = entries(&td, 512, true);
    let free = found.iter().filter(|e| e.kind == SpteKind::NonPresent);
    // Of three tables of 512 entries three link to the next one or are the five leaves.
    assert_eq!(free.count(), found.len() - 5);
    assert!(found.len() > 3 * 512 - 10);
    assert!(found.iter().all(Compared::agrees));
    assert!(found.windows(2).all(|w| w[0].at.gfn() < w[1].at.gfn()));
}

#[test]
fn what_differs_is_found() {
    let td = td(5);
    let differing = |free| {
        let (found, _) = entries(&td, 64, free);
        let bad = found.into_iter().filter(|e| !e.agrees());
        bad.map(|e| (e.at.gfn().as_u64(), e.external.ok()))
            .collect::<Vec<_>>()
    };
    assert_eq!(differing(true), []);
    td.mock().tamper(GFN + 1, None);
    let other = |blocked| Some(Entry::Leaf { pfn: 103, blocked });
    td.mock().tamper(GFN + 3, other(Some(0)));
    td.mock().tamper(GFN + 9, other(None));
    let found = [
        (GFN + 1, Some(External::Free)),
        (GFN + 3, Some(leaf(103, true))),
        (GFN + 9, Some(leaf(103, false))),
    ];
    assert_eq!(differing(true), found);
    // The mirror has nothing at the last one: it is looked at with the free ones only.
    assert_eq!(differing(false), found[..2]);
    td.poke(GFN, Spte::leaf(pfn(7), Level::L4K));
    assert_eq!(differing(false)[0], (GFN, Some(leaf(100, false))));
}

#[test]
fn the_phase_of_a_td() {
    assert!(Phase::of(true).is_run() && !Phase::of(false).is_run());
    assert_eq!(
        [Phase::of(false), Phase::of(true)],
        [Phase::Build, Phase::Run]
    );
}
