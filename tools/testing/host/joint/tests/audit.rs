// SPDX-License-Identifier: GPL-2.0

//! The comparison of mirror and S-EPT finds what somebody did to the S-EPT behind the mirror's back.

use std::sync::Arc;
use tdx_emu_host::vmm::regs;
use tdx_joint_host::td::{data_pfn, Machine, Td};
use tdx_mirror_host::mirror::error::MapOutcome;
use tdx_mirror_host::mirror::external::External;
use tdx_mirror_host::mirror::spte::SpteKind;
use tdx_mirror_host::mirror::Compared;

const GFN: u64 = 0x4_0000;
const PAGES: u64 = 5;
const PAGE_AUG: u64 = 6;
const RANGE_BLOCK: u64 = 7;
const PAGE_REMOVE: u64 = 29;
const TRACK: u64 = 38;

fn td(machine: &Arc<Machine>) -> Td {
    let td = Td::new(machine, 1, |c| c, |b| b);
    assert_eq!(td.map(GFN, data_pfn(0)), Ok(MapOutcome::Fixed));
    td.finalize();
    for n in 1..PAGES {
        assert_eq!(td.map(GFN + n, data_pfn(n)), Ok(MapOutcome::Fixed));
    }
    td
}

/// All entries, `step` at a time; of the free ones only with `free`.
fn entries(td: &Td, step: u32, free: bool) -> Vec<Compared> {
    let (mut found, mut next) = (vec![], Some(0));
    while let Some(from) = next {
        next = td.exclusive(|x| {
            let told = &mut |entry: &Compared| found.push(*entry);
            td.mirror.compare(x, from, step, free, told)
        });
    }
    found
}

fn differing(td: &Td) -> Vec<u64> {
    let found = entries(td, 512, true);
    let bad = found.iter().filter(|entry| !entry.agrees());
    bad.map(|entry| entry.at.gfn().as_u64()).collect()
}

/// A SEAMCALL that the mirror does not know of.
fn behind(td: &Td, leaf: u64, gfn: u64, r8: u64) {
    let tdr = td.backend().td.tdr;
    let given = match leaf {
        TRACK => regs(tdr, 0, 0, 0),
        _ => regs(gfn << 12, tdr, r8, 0),
    };
    let (rax, _) = td.machine.vmm.call(leaf, given);
    assert_eq!(rax, 0, "leaf {leaf} answered {rax:#x}");
}

// Shows: R1.
#[test]
fn mirror_and_sept_agree_entry_by_entry() {
    let machine = Machine::new();
    let td = td(&machine);
    for step in [1, 7, 512] {
        let leaves = entries(&td, step, false);
        let seen: Vec<_> = leaves
            .iter()
            .map(|e| (e.at.gfn().as_u64(), e.external))
            .collect();
        // The page of the build is mapped; the guest has not accepted the others.
        let wanted: Vec<_> = (0..PAGES)
            .map(|n| {
                let pfn = match leaves[n as usize].kind {
                    SpteKind::Leaf(pfn) => pfn,
                    other => panic!("{other:?}"),
                };
                assert_eq!(pfn.as_u64(), data_pfn(n));
                let leaf = External::Leaf {
                    pfn,
                    pending: n > 0,
                    blocked: false,
                };
                (GFN + n, Ok(leaf))
            })
            .collect();
        assert_eq!(seen, wanted);
    }
    let all = entries(&td, 512, true);
    assert!(all.len() > 512 && all.iter().all(Compared::agrees));
    assert_eq!(differing(&td), Vec::<u64>::new());
    td.zap(0, 1 << 35, true);
    td.teardown();
    assert_eq!(td.destroy(), 0);
}

// Shows: R1.
#[test]
fn what_differs_is_found() {
    let machine = Machine::new();
    let td = td(&machine);
    behind(&td, PAGE_AUG, GFN + 9, data_pfn(9) << 12);
    assert_eq!(differing(&td), [GFN + 9]);
    behind(&td, RANGE_BLOCK, GFN + 2, 0);
    assert_eq!(differing(&td), [GFN + 2, GFN + 9]);
    let blocked = entries(&td, 512, false);
    let states = blocked
        .iter()
        .map(|e| matches!(e.external, Ok(External::Leaf { blocked: true, .. })));
    assert_eq!(
        states.collect::<Vec<_>>(),
        [false, false, true, false, false]
    );
    behind(&td, TRACK, 0, 0);
    behind(&td, PAGE_REMOVE, GFN + 2, 0);
    assert_eq!(differing(&td), [GFN + 2, GFN + 9]);
    behind(&td, PAGE_AUG, GFN + 2, data_pfn(2) << 12);
    assert_eq!(differing(&td), [GFN + 9]);
    behind(&td, RANGE_BLOCK, GFN + 9, 0);
    behind(&td, TRACK, 0, 0);
    behind(&td, PAGE_REMOVE, GFN + 9, 0);
    assert_eq!(differing(&td), Vec::<u64>::new());
    td.zap(0, 1 << 35, true);
    td.teardown();
    assert_eq!(td.destroy(), 0);
}
