// SPDX-License-Identifier: GPL-2.0

//! The build of a TD in KVM's order, page by page, with a failure at each step.

use tdx_emu_host::vmm::regs;
use tdx_joint_host::backend::Fail;
use tdx_joint_host::compare::{self, Sept};
use tdx_joint_host::td::{data_pfn, Machine, Td};
use tdx_mirror_host::base::td::Operand;
use tdx_mirror_host::mirror::error::{MapError, MapOutcome, RetryReason};
use tdx_mirror_host::mirror::spte::SpteKind;
use tdx_mirror_host::mock::{status, Event::Call};
use tdx_mirror_host::tdx::call::Kind;

const GFN: u64 = 0x4_0000;
/// Bytes that one TDH.MR.EXTEND measures, and how many of these a page has.
const CHUNK: u64 = 256;
const CHUNKS: u64 = 16;

fn td(machine: &std::sync::Arc<Machine>) -> Td {
    Td::new(machine, 1, |c| c, |b| b)
}

/// KVM_TDX_INIT_MEM_REGION of one page: added through the mirror, measured by 16 calls.  Answers
/// the first status that is no success.
fn add_and_measure(td: &Td) -> u64 {
    assert_eq!(td.map(GFN, data_pfn(0)), Ok(MapOutcome::Fixed));
    (0..CHUNKS)
        .map(|chunk| {
            let gpa = (GFN << 12) + chunk * CHUNK;
            let r = regs(gpa, td.backend().td.tdr, 0, 0);
            td.machine.vmm.call(16, r).0
        })
        .find(|rax| *rax != 0)
        .unwrap_or(0)
}

fn end(td: Td) {
    td.zap(0, 1 << 35, true);
    td.teardown();
    assert_eq!(td.destroy(), 0);
}

// Shows: B10.
#[test]
fn mr_extend_fails_at_each_chunk() {
    const BUSY: u64 = 0x8000_0200_0000_0002;
    let machine = Machine::new();
    let whole = |fails: Option<u64>| {
        let td = td(&machine);
        if let Some(chunk) = fails {
            let script = format!("fail tdh_mr_extend {} {BUSY:x}", chunk + 1);
            let rules = machine.vmm.module.inject();
            rules.load(script.as_bytes()).expect("a script");
            assert_eq!(add_and_measure(&td), BUSY, "chunk {chunk}");
            // Added and not measured as a whole: KVM takes the page away again, and says so.
            assert!(matches!(td.kind(GFN), SpteKind::Leaf(_)));
            assert_eq!(td.zap(GFN, GFN + 1, false), 1);
            let (kind, sept) = compare::at_gfn(&td, GFN).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!((kind, sept), (SpteKind::NonPresent, Sept::Free));
            for call in [Call(Kind::RangeBlock), Call(Kind::Track)] {
                assert_eq!(td.backend().count(call), 0, "{call:?} of a TD in build");
            }
            assert_eq!(td.backend().count(Call(Kind::PageRemove)), 1);
            assert!(td.host().bugs.lock().unwrap().is_empty());
        }
        assert_eq!(add_and_measure(&td), 0);
        let census = compare::whole(&td).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(census.leaves, [(GFN, data_pfn(0))]);
        td.finalize();
        let tdr = td.backend().td.tdr;
        let mrtd = machine.vmm.module.td_view(tdr).expect("a TD").mrtd;
        end(td);
        mrtd
    };
    let good = whole(None);
    for chunk in 0..CHUNKS {
        // What was measured stays measured: a build that was interrupted is not taken for one
        // that was not.
        assert_ne!(whole(Some(chunk)), good, "chunk {chunk}");
    }
    assert_eq!(whole(None), good);
}

// Shows: R31, B9.
#[test]
fn each_step_of_a_build_fails() {
    let contended = |operand| Ok(MapOutcome::Retry(RetryReason::Contended(operand)));
    let machine = Machine::new();
    // Three tables and a page, in this order.
    let steps = [
        (Call(Kind::SeptAdd), 0),
        (Call(Kind::SeptAdd), 1),
        (Call(Kind::SeptAdd), 2),
        (Call(Kind::PageAdd), 0),
    ];
    for (done, (call, skip)) in steps.into_iter().enumerate() {
        for (answer, want) in [
            (status::TREE_BUSY, contended(Operand::SeptTree)),
            (status::TDR_BUSY, contended(Operand::Tdr)),
            (status::STATE_INCORRECT, Err(MapError::Bugged)),
        ] {
            let td = td(&machine);
            td.backend().fail(Fail {
                call,
                skip,
                times: 1,
                status: answer,
            });
            assert_eq!(td.map(GFN, data_pfn(0)), want, "{call:?} {skip}");
            let census = compare::whole(&td).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!((census.leaves, census.tables), (vec![], done as u64));
            assert_eq!(td.host().external.lock().unwrap().len(), done);
            let calls =
                td.backend().count(Call(Kind::SeptAdd)) + td.backend().count(Call(Kind::PageAdd));
            assert_eq!(calls, done as u64 + 1, "one try while the TD is built");
            // Contention is told, and the next try goes on where this one stopped.
            if want.is_ok() {
                assert!(!td.mirror.is_bugged());
                assert_eq!(td.map(GFN, data_pfn(0)), Ok(MapOutcome::Fixed));
                assert_eq!(
                    td.backend().count(Call(Kind::SeptAdd)),
                    3 + u64::from(done < 3)
                );
            }
            end(td);
        }
    }
}

// Shows: R20.
#[test]
fn a_fault_after_the_build_in_the_same_order() {
    let machine = Machine::new();
    let td = td(&machine);
    td.finalize();
    for (n, gfn) in [GFN, GFN + 1, GFN + 512, 0].into_iter().enumerate() {
        assert_eq!(td.map(gfn, data_pfn(n as u64)), Ok(MapOutcome::Fixed));
        compare::whole(&td).unwrap_or_else(|e| panic!("{e}"));
    }
    // Three tables, none, one, two.
    assert_eq!(td.backend().count(Call(Kind::SeptAdd)), 6);
    assert_eq!(td.backend().count(Call(Kind::PageAug)), 4);
    end(td);
}
