// SPDX-License-Identifier: GPL-2.0

//! What the mirror does at its edges: frames without memory, walks, figures.

use tdx_mirror_host::mirror::error::{Leak, MapOutcome};
use tdx_mirror_host::mirror::spte::SpteKind;
use tdx_mirror_host::mock::{status, Call};
use tdx_mirror_host::vm::Td;

/// Frames at the end of what a PFN can be, far beyond any memory of the machine that runs this:
/// whoever followed one as an address would fault.
const NO_MEMORY: [u64; 4] = [
    (1 << 40) - 1,
    (1 << 40) - 512,
    (1 << 39) + 7,
    0x7f_ffff_ffff,
];

#[test]
fn r44_frames_without_memory_live_and_die() {
    let td = Td::built();
    let gfns = [0u64, 511, 512, 1 << 27];
    for (gfn, pfn) in gfns.into_iter().zip(NO_MEMORY) {
        assert_eq!(td.map(gfn, pfn), Ok(MapOutcome::Fixed));
        assert_eq!(td.map(gfn, pfn), Ok(MapOutcome::Spurious));
        assert!(td.mock().owns(pfn));
    }
    td.check_same(&gfns);
    assert_eq!(td.zap(0, 512), 2);
    assert!(!td.mock().owns(NO_MEMORY[0]));
    assert!(td.mock().owns(NO_MEMORY[2]));
    td.check_same(&gfns);
    td.mock().fail(Call::Remove, 0, 1, status::STATE_INCORRECT);
    assert_eq!(td.zap(512, 513), 0);
    assert!(matches!(td.kind(512), SpteKind::Quarantined(p) if p.as_u64() == NO_MEMORY[2]));
    assert!(td.host().holds(NO_MEMORY[2]));
    assert_eq!(td.zap(1 << 27, (1 << 27) + 1), 1);
    td.mock().fail(Call::DataReclaim, 0, 1, status::METADATA);
    td.teardown();
    assert!(
        matches!(td.host().leaks()[..], [Leak::Data { pfn, .. }] if pfn.as_u64() == NO_MEMORY[2])
    );
    assert_eq!(td.host().accounted_external(), 0);
}
