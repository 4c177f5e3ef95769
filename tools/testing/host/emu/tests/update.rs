// SPDX-License-Identifier: GPL-2.0

//! Update of the module under a live TD: who may shut it down and when, what the next module
//! takes over, and what becomes of a TD in the middle of its build.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tdx_emu_host::driver::{Does, Driver, End};
use tdx_emu_host::host::layout;
use tdx_emu_host::instruments::CheckLevel;
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::module::Regs;
use tdx_emu_host::vmm::{regs, Td, Vmm};

const INVALID: u64 = 0xC000_0100_0000_0000;
const SYS_BUSY: u64 = 0x8000_0202_0000_0000;
const NOT_READY: u64 = 0xC000_0505_0000_0000;
const SHUT_DOWN: u64 = 0xC000_0506_0000_0000;
const STATE_INCORRECT: u64 = 0xC000_0508_0000_0000;
const INVALID_HANDOFF: u64 = 0xC000_0509_0000_0000;
const SENSITIVE: u64 = 0x8000_0512_0000_0000;
const OTHER_CONTEXT: u64 = 0xC000_0622_0000_0000;

const SHUTDOWN: u64 = 52;
const UPDATE: u64 = 53;
const UPDATE_1: u64 = UPDATE | (1 << 16);
const AVOID_SENSITIVE: u64 = 1 << 16;
const COMPATIBLE: u64 = 1 << 47;

fn module(version: &str) -> Vmm<Interpreter> {
    Vmm::of_version(
        Interpreter,
        Some(CheckLevel::Everything),
        Some(version),
        false,
    )
}

fn rcx(v: u64) -> Regs {
    regs(v, 0, 0, 0)
}

/// A TD that runs, with a vCPU on LP 1 and a page at 1000h.
fn running(v: &Vmm<Interpreter>) -> Td {
    let td = built(v);
    v.ok(17, rcx(td.tdr));
    td
}

/// The same before it is finalised.
fn built(v: &Vmm<Interpreter>) -> Td {
    let mut td = v.create(20, 0);
    v.add_vcpu(&mut td, 1, 0);
    v.add_page(&td, 0x1000, &[7; 4096]);
    td
}

/// SYS.INIT and SYS.LP.INIT of a new module.
fn start(v: &Vmm<Interpreter>, version: &str) {
    assert!(v.module.install(version), "{version}");
    v.ok(33, rcx(0));
    for lp in 0..v.host().config.lps {
        assert_eq!(v.call_on(lp, 35, rcx(0)).0, 0);
    }
}

#[test]
fn a_td_lives_on() {
    for (from, to, handoff) in [
        ("1.5.01", "1.5.05", 0),
        ("1.5.09", "1.5.13", 0),
        ("1.5.16", "1.5.20", 0),
        ("1.5.16", "1.5.24", 0),
        ("1.5.24", "1.5.25", 1),
        ("1.5.24", "1.5.24", 1),
    ] {
        let v = module(from);
        let td = running(&v);
        v.ok(SHUTDOWN, rcx(handoff));
        for leaf in [0, 6, 25, 34, SHUTDOWN, UPDATE] {
            assert_eq!(v.call(leaf, rcx(0)).0, SHUT_DOWN, "leaf {leaf} of {from}");
        }
        start(&v, to);
        assert_eq!(v.module.version(), to);
        assert_eq!(v.call(25, regs(0x1000, td.tdr, 0, 0)).0, NOT_READY);
        v.ok(UPDATE, rcx(0));
        assert_eq!(v.call(UPDATE, rcx(0)).0, STATE_INCORRECT);
        // The page is there, the vCPU is where it was, and the TD can be changed and ended.
        v.ok(25, regs(0x1000, td.tdr, 0, 0));
        let mut d = Driver::new(&v.module, td.tdr);
        let (rax, _) = v.call_on(2, 0, rcx(td.vcpus[0][0]));
        assert_eq!(rax, 0x8000_0701_0000_0000, "{from} {to}");
        assert_eq!(d.call(1, 0, rcx(td.vcpus[0][0])), End::Entered);
        assert!(matches!(d.guest(1, Does::Interrupt, 0), End::Host(1, _)));
        v.ok(6, regs(0x2000, td.tdr, v.page(), 0));
        v.zap(&td, 0x1000);
        v.zap(&td, 0x2000);
        v.destroy(td, &[Some(1)]);
        assert_eq!(v.module.audit(), Some(Ok(())), "{from} {to}");
        let found = v.module.first_violation().map(|e| e.to_string());
        assert_eq!(found, None, "{from} {to}");
    }
}

#[test]
fn operands_of_shutdown() {
    for (version, good, bad) in [
        ("1.5.16", 0, [1, 2, AVOID_SENSITIVE, 1 << 17, 1 << 63]),
        ("1.5.20", 0, [1, 2, AVOID_SENSITIVE, 1 << 17, 1 << 63]),
        (
            "1.5.24",
            1,
            [0, 2, 1 | (1 << 17), 1 | (1 << 32), 1 | (1 << 63)],
        ),
    ] {
        let v = module(version);
        for wrong in bad {
            assert_eq!(v.call(SHUTDOWN, rcx(wrong)).0, INVALID | 1, "{wrong:#x}");
        }
        assert!(!v.module.install("1.5.25"), "{version} was not shut down");
        v.ok(SHUTDOWN, rcx(good));
        assert!(!v.module.install("1.5.26"));
        assert!(v.module.install("1.5.25"));
    }
}

#[test]
fn a_guest_keeps_the_module_up() {
    let v = module("1.5.24");
    let td = running(&v);
    let mut d = Driver::new(&v.module, td.tdr);
    assert_eq!(d.call(1, 0, rcx(td.vcpus[0][0])), End::Entered);
    assert_eq!(v.call(SHUTDOWN, rcx(1)).0, SYS_BUSY);
    // It stays ready.
    v.ok(25, regs(0x1000, td.tdr, 0, 0));
    assert!(matches!(d.guest(1, Does::Interrupt, 0), End::Host(1, _)));
    v.ok(SHUTDOWN, rcx(1));
}

#[test]
fn a_call_on_another_processor_keeps_the_module_up() {
    let v = module("1.5.24");
    let td = running(&v);
    let rule = b"delay tdh_mem_sept_rd 1 300000us";
    v.module.inject().load(rule).unwrap();
    std::thread::scope(|s| {
        let call = s.spawn(|| v.call_on(1, 25, regs(0x1000, td.tdr, 0, 0)).0);
        while !v.module.inject().to_string().contains("hits=1") {
            std::thread::yield_now();
        }
        assert_eq!(v.call(SHUTDOWN, rcx(1)).0, SYS_BUSY);
        assert_eq!(call.join().unwrap(), 0);
    });
    v.ok(SHUTDOWN, rcx(1));
}

#[test]
fn no_call_is_executed_after_shutdown() {
    let v = module("1.5.24");
    let td = running(&v);
    let down = AtomicBool::new(false);
    let calls = AtomicU64::new(0);
    std::thread::scope(|s| {
        for lp in 1..3 {
            let (v, down, calls) = (&v, &down, &calls);
            let tdr = td.tdr;
            s.spawn(move || loop {
                let was_down = down.load(Ordering::SeqCst);
                match v.call_on(lp, 25, regs(0x1000, tdr, 0, 0)).0 {
                    SHUT_DOWN => break,
                    SYS_BUSY => {}
                    _ => {
                        assert!(!was_down, "a call was executed after SHUTDOWN");
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        while calls.load(Ordering::Relaxed) < 1000 {
            std::hint::spin_loop();
        }
        // The host is to have all CPUs out; this one asks until they happen to be.
        loop {
            match v.call(SHUTDOWN, rcx(1)).0 {
                SYS_BUSY => {}
                0 => break,
                other => panic!("{other:#x}"),
            }
        }
        down.store(true, Ordering::SeqCst);
    });
}

#[test]
fn update_wants_all_processors_and_something_handed_over() {
    // A machine that starts has nothing.
    let v = module("1.5.24");
    assert_eq!(v.call(UPDATE, rcx(0)).0, STATE_INCORRECT);
    v.ok(SHUTDOWN, rcx(1));
    assert!(v.module.install("1.5.25"));
    assert_eq!(v.call(UPDATE, rcx(0)).0, STATE_INCORRECT);
    v.ok(33, rcx(0));
    for lp in 0..v.host().config.lps {
        assert_eq!(v.call(UPDATE, rcx(0)).0, STATE_INCORRECT);
        assert_eq!(v.call_on(lp, 35, rcx(0)).0, 0);
    }
    // Refused forms leave what was handed over.
    assert_eq!(v.call(UPDATE | (2 << 16), rcx(0)).0, INVALID);
    assert_eq!(v.call(UPDATE_1, regs(0, 0, 0, 1 << 63)).0, INVALID | 9);
    let r10 = Regs { r10: 1, ..rcx(0) };
    assert_eq!(v.call(UPDATE_1, r10).0, INVALID | 10);
    v.ok(UPDATE_1, regs(0, 0, 0, COMPATIBLE));
    // Version 1 is more than an older module understands.
    v.ok(SHUTDOWN, rcx(1));
    start(&v, "1.5.20");
    assert_eq!(v.call(UPDATE, rcx(0)).0, INVALID_HANDOFF);
    // What was shut down without handing over leaves nothing.
    let v = module("1.5.24");
    v.ok(44, rcx(0));
    start(&v, "1.5.24");
    assert_eq!(v.call(UPDATE, rcx(0)).0, INVALID_HANDOFF);
}

#[test]
fn builds_are_counted_where_there_are_contexts() {
    let v = module("1.5.24");
    let avoid = || v.call(SHUTDOWN, rcx(1 | AVOID_SENSITIVE)).0;
    let td = built(&v);
    assert_eq!(avoid(), SENSITIVE | (1 << 16));
    let other = v.create(21, 0);
    assert_eq!(avoid(), SENSITIVE | (2 << 16));
    v.ok(17, rcx(td.tdr));
    assert_eq!(avoid(), SENSITIVE | (1 << 16));
    // The count is handed over.
    v.ok(SHUTDOWN, rcx(1));
    start(&v, "1.5.25");
    v.ok(UPDATE, rcx(0));
    assert_eq!(avoid(), SENSITIVE | (1 << 16));
    v.destroy(other, &[]);
    assert_eq!(avoid(), 0);
}

/// A TD in the middle of its build when the module is updated to 1.5.24: what PAGE.ADD,
/// MR.EXTEND and MR.FINALIZE say.
fn half_built(from: &str, handoff: u64, leaf: u64, features: u64) -> [u64; 3] {
    let v = module(from);
    let td = built(&v);
    v.ok(SHUTDOWN, rcx(handoff));
    start(&v, "1.5.24");
    v.ok(leaf, regs(0, 0, 0, features));
    let add = v.call(2, regs(0x2000, td.tdr, v.page(), layout::SOURCE)).0;
    let extend = v.call(16, regs(0x1000, td.tdr, 0, 0)).0;
    let finalize = v.call(17, rcx(td.tdr)).0;
    // It can be ended in any case.
    let (rax, _) = v.call_on(1, 18, rcx(td.vcpus[0][0]));
    assert_eq!(rax, 0);
    v.ok(19, rcx(td.tdr));
    [add, extend, finalize]
}

#[test]
fn a_td_that_another_release_began() {
    let refused = [OTHER_CONTEXT; 3];
    assert_eq!(half_built("1.5.16", 0, UPDATE_1, COMPATIBLE), refused);
    // Not asked for.
    assert_eq!(half_built("1.5.16", 0, UPDATE, 0), [0; 3]);
    assert_eq!(half_built("1.5.16", 0, UPDATE_1, 0), [0; 3]);
    // A release with contexts began it.
    assert_eq!(half_built("1.5.24", 1, UPDATE_1, COMPATIBLE), [0; 3]);
    // A new TD is not meant.
    let v = module("1.5.16");
    v.ok(SHUTDOWN, rcx(0));
    start(&v, "1.5.24");
    v.ok(UPDATE_1, regs(0, 0, 0, COMPATIBLE));
    let td = running(&v);
    v.zap(&td, 0x1000);
    v.destroy(td, &[Some(1)]);
}

#[test]
fn sys_init_enables_as_well() {
    let v = module("1.5.16");
    let td = built(&v);
    v.ok(SHUTDOWN, rcx(0));
    assert!(v.module.install("1.5.24"));
    let init = 33 | (1 << 16);
    assert_eq!(v.call(33 | (2 << 16), rcx(0)).0, INVALID);
    assert_eq!(v.call(init, regs(0, 0, 0, 1 << 63)).0, INVALID | 9);
    v.ok(init, regs(0, 0, 0, COMPATIBLE));
    for lp in 0..v.host().config.lps {
        assert_eq!(v.call_on(lp, 35, rcx(0)).0, 0);
    }
    v.ok(UPDATE, rcx(0));
    assert_eq!(v.call(17, rcx(td.tdr)).0, OTHER_CONTEXT);
}
