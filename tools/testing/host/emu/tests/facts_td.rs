// SPDX-License-Identifier: GPL-2.0

//! Beginning and end of a TD and of its vCPUs, in answers that the recordings in
//! tools/testing/vectors do not contain.

use tdx_emu_host::host::{bring_up, layout, td_params, Host, TdmrSpec};
use tdx_emu_host::instruments::Instrumented;
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::vmm::{regs, Vmm, TDMR};

const BUSY: u64 = 0x8000_0200_0000_0000;
const INVALID: u64 = 0xC000_0100_0000_0000;
const METADATA: u64 = 0xC000_0300_0000_0000;

const GPA: u64 = 0x4000_0000;
const LARGE: u64 = (GPA + (2 << 20)) | 1;
/// Memory for a 2M page.
const CHUNK: u64 = TDMR + (128 << 20);

#[test]
fn the_end_of_a_td_has_an_order() {
    let v = Vmm::new(Interpreter);
    let mut td = v.create(20, 1 << 28);
    v.add_vcpu(&mut td, 1, 0);
    v.build_tables(&td, GPA);
    v.ok(17, regs(td.tdr, 0, 0, 0));
    let tdr = td.tdr;
    v.ok(6, regs(LARGE, tdr, CHUNK, 0));
    let load = |script: &str| v.module.inject().load(script.as_bytes()).unwrap();
    let lifecycle = 0xC000_0607_0000_0000;
    let call = |leaf, rcx| v.call(leaf, regs(rcx, 0, 0, 0)).0;
    assert_eq!(call(20, tdr), lifecycle);
    assert_eq!(call(40, 0), 0x0000_0821_0000_0000);
    assert_eq!(call(40, 1), 0xC000_0823_0000_0000);
    assert_eq!(call(40, 2), INVALID | 1);
    assert_eq!(call(19, tdr), 0x8000_0824_0000_0000);
    assert_eq!(v.call_on(1, 18, regs(td.vcpus[0][0], 0, 0, 0)).0, 0);
    load("hold kot");
    assert_eq!(call(19, tdr), BUSY | 0xBA);
    load("");
    assert_eq!(call(19, tdr), 0);
    assert_eq!(call(19, tdr), lifecycle);
    // The keys are gone, so is the memory.
    let r = v.call(25, regs(GPA, tdr, 0, 0));
    assert_eq!(r, (0x8000_0810_0000_0000, regs(0, 0, 0, 0)));
    let vcpu = regs(td.vcpus[0][0], 0, 0, 0);
    assert_eq!(v.call_on(1, 18, vcpu).0, 0x8000_0810_0000_0000);
    load("hold kot");
    assert_eq!(call(20, tdr), BUSY | 0xBA);
    assert_eq!(call(40, 0), BUSY | 0xBA);
    load("");
    assert_eq!(call(20, tdr), 0x8000_0817_0000_0000);
    // In parts, each of which an interrupt may end.
    load("interrupt tdh_phymem_cache_wb every 1");
    let mut parts = 0;
    let mut wb = call(40, 0);
    while wb == 0x8000_0003_0000_0000 {
        parts += 1;
        assert_eq!(call(20, tdr), 0x8000_0817_0000_0000);
        wb = call(40, 1);
    }
    assert_eq!((wb, parts > 1), (0, true));
    assert_eq!(call(40, 1), 0xC000_0823_0000_0000);
    load("");
    // A key that is flushed can be written back again.
    assert_eq!(call(40, 0), 0);
    let page = td.vcpus[0][1];
    assert_eq!(call(28, page), lifecycle);
    assert_eq!(call(20, tdr), 0);
    assert_eq!(call(20, tdr), lifecycle);
    assert_eq!(call(40, 0), 0x0000_0821_0000_0000);
    // From its type on a page is told apart even where that fails.
    let reclaim = |pa: u64| {
        let (rax, out) = v.call(28, regs(pa, 1, 2, 3));
        assert_eq!((out.r9, out.r10, out.r11), (0, 0, 0));
        (rax, out.rcx, out.rdx, out.r8)
    };
    assert_eq!(reclaim(tdr), (0xC000_0400_0000_0000, 4, 0, 0));
    assert_eq!(reclaim(CHUNK + 4096), (INVALID | 1, 3, tdr, 1));
    load(&format!("hold pamt {tdr:x} 0"));
    assert_eq!(reclaim(page), (BUSY | 0x80, 5, tdr, 0));
    load("");
    assert_eq!(reclaim(page), (0, 5, tdr, 0));
    assert_eq!(reclaim(page), (METADATA | 1, 0, 0, 0));
    assert_eq!(reclaim(CHUNK), (0, 3, tdr, 1));
    assert_eq!(v.ok(24, regs(CHUNK, 0, 0, 0)).r8, 0);
}

#[test]
fn keys_and_control_pages() {
    let v = Vmm::new(Interpreter);
    let tdr = v.page();
    let create = |page, hkid| v.call(9, regs(page, hkid, 0, 0)).0;
    v.module.inject().load(b"hold kot").unwrap();
    assert_eq!(create(tdr, 20), BUSY | 0xBA);
    v.module.inject().load(b"").unwrap();
    assert_eq!(create(tdr, 20), 0);
    assert_eq!(create(v.page(), 20), 0xC000_0820_0000_0000);
    assert_eq!(create(tdr, 21), METADATA | 1);
    let add = |tdr| v.call(1, regs(v.page(), tdr, 0, 0)).0;
    assert_eq!(add(tdr), 0x8000_0810_0000_0000);
    v.ok(8, regs(tdr, 0, 0, 0));
    // Too few pages for anything, then up to one for each L2 VM.
    for _ in 0..6 {
        assert_eq!(v.call(38, regs(tdr, 0, 0, 0)).0, 0xC000_0606_0000_0000);
        assert_eq!(add(tdr), 0);
    }
    assert_eq!(v.call(38, regs(tdr, 0, 0, 0)).0, 0xC000_0608_0000_0000);
    for _ in 0..3 {
        assert_eq!(add(tdr), 0);
    }
    assert_eq!(add(tdr), 0xC000_0610_0000_0000);
    let other = v.create(22, 0);
    assert_eq!(add(other.tdr), 0xC000_0608_0000_0000);
    // TD_PARAMS: any memory with a shared key, in its place.
    let init = |at: u64| v.call(21, regs(tdr, at, 0, 0));
    assert_eq!(
        init(layout::TD_PARAMS + 1),
        (INVALID | 2, regs(0, layout::TD_PARAMS + 1, 0, 0))
    );
    assert_eq!(init(layout::TD_PARAMS | (17 << 46)).0, INVALID | 2);
    for (word, value, operand) in [
        (2, 4 | (1 << 16), 71),
        (2, 4 | (1 << 24), 72),
        (2, 4 | (1 << 32), 2),
        (9, 1, 2),
    ] {
        td_params(v.host(), 0, 3, 4);
        v.host().write(layout::TD_PARAMS + 8 * word, value);
        assert_eq!(init(layout::TD_PARAMS).0, INVALID | operand, "word {word}");
    }
    td_params(v.host(), 0, 3, 4);
    assert_eq!(init(layout::TD_PARAMS | (3 << 46)).0, 0);
}

#[test]
fn vcpus_have_their_own_refusals() {
    let v = Vmm::new(Interpreter);
    let td = v.create(20, 0);
    let tdr = td.tdr;
    let load = |script: &str| v.module.inject().load(script.as_bytes()).unwrap();
    let page = v.page();
    let call = |leaf, r| v.call_on(1, leaf, r).0;
    v.ok(10, regs(page, tdr, 0, 0));
    let vcpu = |leaf| call(leaf, regs(page, 0, 0, 0));
    // Pages are counted before anything else is looked at.
    assert_eq!(vcpu(22), 0xC000_0610_0000_0000);
    assert_eq!(vcpu(18), 0xC000_0610_0000_0000);
    for _ in 1..15 {
        v.ok(4, regs(v.page(), page, 0, 0));
    }
    assert_eq!(call(4, regs(v.page(), page, 0, 0)), 0xC000_0610_0000_0000);
    assert_eq!(vcpu(18), 0x8000_0702_0000_0000);
    assert_eq!(vcpu(22), 0);
    assert_eq!(vcpu(22), 0xC000_0700_0000_0000);
    assert_eq!(call(4, regs(v.page(), page, 0, 0)), 0xC000_0700_0000_0000);
    // VP.FLUSH does not mind who has the operation state.
    load("hold op_state ex");
    assert_eq!(vcpu(0), BUSY | 0xAC);
    assert_eq!(vcpu(18), 0);
    load("hold tdr ex");
    assert_eq!(vcpu(0), BUSY | 0x80);
    load(&format!("hold pamt {page:x} 0"));
    assert_eq!(vcpu(0), BUSY | 1);
    load("");
    assert_eq!(vcpu(0), 0xC000_0608_0000_0000);
    assert_eq!(call(0, regs(page | (1 << 54), 0, 0, 0)), INVALID | 1);
    assert_eq!(call(0, regs(page | 8, 0, 0, 0)), INVALID | 1);
    assert_eq!(call(0, regs(tdr, 0, 0, 0)), METADATA | 1);
    v.ok(17, regs(tdr, 0, 0, 0));
    // No exit was a trap, and none an L2's.
    assert_eq!(call(0, regs(page | (1 << 52), 0, 0, 0)), INVALID | 1);
    assert_eq!(call(0, regs(page | (1 << 53), 0, 0, 0)), INVALID | 1);
}

/// A key of its own on each package; one package at a time.
#[test]
fn keys_are_made_on_each_package() {
    let mut config = Host::default_config();
    config.packages = 2;
    let m = Instrumented::new(Host::new(config), Interpreter);
    let tdmr = TdmrSpec {
        base: TDMR,
        size: 1 << 30,
        reserved: vec![],
    };
    bring_up(&m, &tdmr, 16);
    let call =
        |lp: u32, leaf: u64, rcx: u64, rdx: u64| m.seamcall(lp, leaf, &mut regs(rcx, rdx, 0, 0));
    let tdr = TDMR;
    assert_eq!(call(0, 9, tdr, 20), 0);
    assert_eq!(call(0, 8, tdr, 0), 0);
    assert_eq!(call(0, 8, tdr, 0), 0x0000_0815_0000_0000);
    assert_eq!(call(0, 1, TDMR + 0x1000, tdr), 0x8000_0810_0000_0000);
    assert_eq!(call(1, 8, tdr, 0), 0);
    assert_eq!(call(1, 8, tdr, 0), 0xC000_0607_0000_0000);
    assert_eq!(call(0, 19, tdr, 0), 0);
    assert_eq!(call(0, 40, 0, 0), 0);
    assert_eq!(call(0, 20, tdr, 0), 0x8000_0817_0000_0000);
    // The other package's write-back is its own, also when it is interrupted.
    m.inject().load(b"interrupt 40 1").unwrap();
    assert_eq!(call(1, 40, 0, 0), 0x8000_0003_0000_0000);
    assert_eq!(call(0, 40, 1, 0), 0xC000_0823_0000_0000);
    assert_eq!(call(1, 40, 1, 0), 0);
    assert_eq!(call(0, 20, tdr, 0), 0);
}
