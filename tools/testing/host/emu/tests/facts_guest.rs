// SPDX-License-Identifier: GPL-2.0

//! Guests: accepts in every state, yielding to the host, zero-step mitigation, wide
//! addresses, in answers that the recordings in tools/testing/vectors do not contain.

use std::sync::atomic::Ordering::SeqCst;

use tdx_emu_host::asm::*;
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::module::Regs;
use tdx_emu_host::vmm::{regs, Td, Vmm, TDMR};

const BUSY: u64 = 0x8000_0200_0000_0000;
const INVALID: u64 = 0xC000_0100_0000_0000;
const TIMEOUT: u64 = 0x9000_0205_0000_0000;
const NOT_BLOCKED: u64 = 0xC000_0B06_0000_0001;
const FREE: u64 = 1 << 63;
const SEPT_VE_DISABLE: u64 = 1 << 28;
/// Field HP_LOCK_TIMEOUT.
const HP_LOCK_TIMEOUT: u64 = 0x9110_0003_0000_0011;
/// Field NOTIFY_ENABLES.
const NOTIFY_ENABLES: u64 = 0x9110_0003_0000_0010;

const RESET: u64 = 0xFFFF_F000;
const CODE: u64 = 0x1000;
const GPA: u64 = 0x4000_0000;
const CHUNK: u64 = TDMR + (128 << 20);

/// A finalized TD with one vCPU on LP 1 that runs a program.
fn td_with(v: &Vmm<Interpreter>, program: &Asm) -> Td {
    let mut td = v.create(20, SEPT_VE_DISABLE);
    v.add_vcpu(&mut td, 1, 0);
    let mut reset = Asm::new(RESET + 0xFF0);
    reset.jmp(CODE);
    let mut page = vec![0; 0xFF0];
    page.extend(reset.bytes());
    v.add_page(&td, RESET, &page);
    v.add_page(&td, CODE, program.bytes());
    v.build_tables(&td, GPA);
    v.ok(17, regs(td.tdr, 0, 0, 0));
    td
}

/// Accepts what the host says in R13, over and over, and tells how it went in R12.
fn acceptor() -> Asm {
    let mut a = Asm::new(CODE);
    let again = a.here();
    a.vmcall(1).mov(RCX, R13).tdcall(6).mov(R12, RAX).jmp(again);
    a
}

fn enter(v: &Vmm<Interpreter>, td: &Td, mut r: Regs) -> (u64, Regs) {
    r.rcx |= td.vcpus[0][0];
    v.call_on(1, 0, r)
}

/// Has the guest accept: what it saw, if it did not exit instead.
fn accept(v: &Vmm<Interpreter>, td: &Td, what: u64) -> Result<u64, (u64, Regs)> {
    let r13 = Regs {
        r13: what,
        ..Regs::default()
    };
    let (rax, out) = enter(v, td, r13);
    match (rax, out.r11) {
        (77, 1) => Ok(out.r12),
        _ => Err((rax, out)),
    }
}

fn load(v: &Vmm<Interpreter>, script: &str) {
    v.module.inject().load(script.as_bytes()).unwrap();
}

fn block(v: &Vmm<Interpreter>, td: &Td, at: u64) {
    v.ok(7, regs(at, td.tdr, 0, 0));
    v.ok(38, regs(td.tdr, 0, 0, 0));
}

#[test]
fn accept_sees_sizes_and_states() {
    let v = Vmm::new(Interpreter);
    let td = td_with(&v, &acceptor());
    let call = |leaf, rcx, r8| v.ok(leaf, regs(rcx, td.tdr, r8, 0));
    let accept = |what| accept(&v, &td, what);
    enter(&v, &td, Regs::default());
    for bad in [
        GPA | 2,
        GPA | 8,
        GPA + 0x1000 + 1,
        GPA | (1 << 47),
        GPA | (1 << 52),
    ] {
        assert_eq!(accept(bad), Ok(INVALID | 1), "{bad:x}");
    }
    // A 2M accept meets a table.
    assert_eq!(accept(GPA | 1), Ok(0xC000_0B0B_0000_0001));
    call(6, GPA, v.page());
    assert_eq!(accept(GPA), Ok(0));
    assert_eq!(accept(GPA), Ok(0x0000_0B0A_0000_0000));
    let large = (GPA + (2 << 20)) | 1;
    call(6, large, CHUNK);
    // What can only be accepted whole, or not at all, goes to the host: level asked for,
    // level found, state there, leaf.
    let exit = |what: u64, found: u64, code: u64, leaf: u64, access: u64| {
        let (rax, out) = accept(what).unwrap_err();
        let info = (what & 7) | (found << 3) | (code << 6) | (leaf << 14);
        let want = Regs {
            rcx: 2 | (access << 3),
            rdx: 1 | (info << 32),
            r8: what & !7,
            ..Regs::default()
        };
        assert_eq!((rax, out), (48, want), "{what:x}");
        // The instruction is not complete: it comes again, whoever has the tree.
        load(&v, "hold tree ex");
        let (rax, again) = enter(&v, &td, Regs::default());
        load(&v, "");
        assert_eq!((rax, again), (48, want), "{what:x}");
    };
    exit(large & !1, 1, 2, 1, 0);
    // The guest tries until it succeeds.
    block(&v, &td, large);
    v.ok(15, regs(large, td.tdr, v.page(), 0));
    let (rax, out) = enter(&v, &td, Regs::default());
    assert_eq!((rax, out.r11, out.r12), (77, 1, 0));
    block(&v, &td, large);
    let (rax, _) = v.call(23, regs(large, td.tdr, 0, 0));
    assert_eq!(rax, 0xC000_0B09_0000_0001, "accepted and pending parts");
    v.ok(39, regs(large, td.tdr, 0, 0));
    exit(GPA + 0x1000, 0, 0, 0, 0);
    call(6, GPA + 0x1000, v.page());
    enter(&v, &td, Regs::default());
    block(&v, &td, GPA);
    exit(GPA, 0, 1, 1, 0);
    v.ok(39, regs(GPA, td.tdr, 0, 0));
    let (_, out) = enter(&v, &td, Regs::default());
    assert_eq!(out.r12, 0x0000_0B0A_0000_0000);
    block(&v, &td, GPA | 1);
    exit(GPA, 1, 0x81, 0, 0);
}

#[test]
fn a_large_accept_goes_on_where_it_was() {
    let v = Vmm::new(Interpreter);
    let td = td_with(&v, &acceptor());
    let at = (GPA + (2 << 20)) | 1;
    v.ok(6, regs(at, td.tdr, CHUNK, 0));
    let dirty = || (0..512).for_each(|i| v.host().write(CHUNK + i * 4096, 7));
    let zeroed = || {
        (0..512)
            .filter(|i| v.host().read(CHUNK + i * 4096) == 0)
            .count()
    };
    let rd = || {
        let out = v.ok(25, regs(at, td.tdr, 0, 0));
        (out.rcx, out.rdx)
    };
    dirty();
    enter(&v, &td, Regs::default());
    // The sixth poll finds an interrupt, and so does the processor afterwards.
    v.host().polls_left.store(5, SeqCst);
    assert_eq!(accept(&v, &td, at).unwrap_err().0, 6);
    v.host().polls_left.store(-1, SeqCst);
    assert_eq!(zeroed(), 6);
    // The counter shows in the address, but not where a leaf has cleaned it before.
    let view = CHUNK | FREE | 0xF0;
    let d = 1 | (2 << 8);
    assert_eq!(rd(), (view | (6 << 12), d));
    let call = |leaf, rcx, r8| {
        let (rax, out) = v.call(leaf, regs(rcx, td.tdr, r8, 0));
        (rax, out.rcx, out.rdx)
    };
    let page = v.page();
    assert_eq!(call(29, at, 0), (NOT_BLOCKED, view, d));
    assert_eq!(call(15, at, page), (NOT_BLOCKED, view, d));
    let state = 0xC000_0B0D_0000_0001;
    assert_eq!(call(39, at, 0), (state, view | (6 << 12), d));
    assert_eq!(call(6, at, CHUNK + (2 << 20)), (state, view | (6 << 12), d));
    assert_eq!(
        call(29, at & !1, 0),
        (0xC000_0B00_0000_0001, view | (6 << 12), d)
    );
    // It goes on there, also after more interrupts.
    dirty();
    load(&v, "interrupt tdg_mem_page_accept every 100");
    let (rax, out) = enter(&v, &td, Regs::default());
    assert_eq!((rax, out.r11, out.r12), (77, 1, 0));
    assert_eq!(zeroed(), 506);
    load(&v, "");
    assert_eq!(rd(), (CHUNK | FREE | 0xF7, 1 | (4 << 8)));

    // A block makes it begin again.
    block(&v, &td, at);
    v.ok(29, regs(at, td.tdr, 0, 0));
    v.ok(6, regs(at, td.tdr, CHUNK, 0));
    v.host().polls_left.store(9, SeqCst);
    assert_eq!(accept(&v, &td, at).unwrap_err().0, 6);
    v.host().polls_left.store(-1, SeqCst);
    block(&v, &td, at);
    assert_eq!(rd(), (view, 1 | (3 << 8)));
    v.ok(39, regs(at, td.tdr, 0, 0));
    dirty();
    assert_eq!(enter(&v, &td, Regs::default()).1.r12, 0);
    assert_eq!(zeroed(), 512);
}

#[test]
fn yielding_to_the_host_ends_after_a_time() {
    let v = Vmm::new(Interpreter);
    let td = td_with(&v, &acceptor());
    v.ok(6, regs(GPA, td.tdr, v.page(), 0));
    let mng_wr = |value, mask| {
        let (rax, out) = v.call(13, regs(td.tdr, HP_LOCK_TIMEOUT, value, mask));
        (rax, out.r8)
    };
    let timeout = || v.ok(11, regs(td.tdr, HP_LOCK_TIMEOUT, 0, 0)).r8;
    assert_eq!(timeout(), 1_000_000);
    let refused = 0xC000_0C03_0000_0002;
    assert_eq!(mng_wr(9_999, !0), (refused, 9_999));
    assert_eq!(mng_wr(100_000_001, !0), (refused, 100_000_001));
    assert_eq!(mng_wr(100_000_000, !0), (0, 1_000_000));
    assert_eq!(mng_wr(10_000, !0), (0, 100_000_000));
    assert_eq!(mng_wr(!0, 0), (0, 10_000));
    let other = v.call(13, regs(td.tdr, NOTIFY_ENABLES, 0, 0)).0;
    assert_eq!(other, 0xC000_0C01_0000_0002);

    enter(&v, &td, Regs::default());
    let entry = format!("hold entry {GPA:x} 0");
    load(&v, &format!("{entry} for=1"));
    assert_eq!(v.call(25, regs(GPA, td.tdr, 0, 0)).0, BUSY | 1);
    // 10 ms at 10^9 ticks a second.
    let ticks = 10_000_000;
    let now = || v.host().tsc.load(SeqCst);
    let pass = |n: u64| v.host().tsc.store(now() + n, SeqCst);
    let attempt = || accept(&v, &td, GPA);
    assert_eq!(attempt(), Ok(BUSY | 1));
    pass(ticks - 1);
    assert_eq!(attempt(), Ok(BUSY | 1));
    pass(1);
    assert_eq!(attempt(), Err((TIMEOUT, Regs::default())));
    // The instruction is complete. The host may say that trying again helps.
    let hint = Regs {
        rcx: 1 << 52,
        ..Regs::default()
    };
    let (rax, out) = enter(&v, &td, hint);
    assert_eq!((rax, out.r11, out.r12), (77, 1, BUSY | 1 | (1 << 60)));
    // Only then, and the time begins anew.
    assert_eq!(enter(&v, &td, hint).0, INVALID | 1);
    assert_eq!(attempt(), Ok(BUSY | 1));
    pass(ticks);
    assert_eq!(attempt(), Err((TIMEOUT, Regs::default())));
    let (_, out) = enter(&v, &td, Regs::default());
    assert_eq!(out.r12, BUSY | 1);
    // Any other end of a TDCALL stops the clock, also that somebody has the entry.
    assert_eq!(attempt(), Ok(BUSY | 1));
    pass(ticks);
    v.ok(25, regs(GPA, td.tdr, 0, 0));
    load(&v, &entry);
    assert_eq!(v.call(25, regs(GPA, td.tdr, 0, 0)).0, BUSY | 1);
    assert_eq!(attempt(), Ok(BUSY | 1));
    load(&v, "");
    pass(ticks);
    assert_eq!(attempt(), Ok(BUSY | 1));
    v.ok(25, regs(GPA, td.tdr, 0, 0));
    assert_eq!(attempt(), Ok(0));
}

/// Loads from [`GPA`] for ever, one VMCALL a round; its #VE handler tells what it got.
fn loader(notify: u64) -> Asm {
    let mut a = Asm::new(CODE);
    let handler = a.setve_later();
    a.movi(RDX, NOTIFY_ENABLES).movi(R8, notify).movi(R9, 1);
    a.tdcall(8).mov(R12, RAX).vmcall(1);
    a.movi(RCX, GPA).tdcall(6).mov(R12, RAX).vmcall(2);
    let again = a.here();
    a.movi(R14, GPA).load(R13, R14, 0).vmcall(3).jmp(again);
    a.land(handler);
    a.tdcall(3)
        .mov(R12, RCX)
        .mov(R13, R9)
        .mov(R15, RDX)
        .vmcall(4);
    a.movi(R14, GPA).verip(RDX).retve(RDX, 0);
    a
}

#[test]
fn a_host_that_zero_steps_has_to_let_go() {
    for notify in [0, 1] {
        let v = Vmm::new(Interpreter);
        let td = td_with(&v, &loader(notify));
        v.ok(6, regs(GPA, td.tdr, v.page(), 0));
        let run = || enter(&v, &td, Regs::default());
        for step in [1, 2, 3] {
            let (rax, out) = run();
            assert_eq!((rax, out.r11), (77, step));
            assert!(step == 3 || out.r12 == 0, "{out:x?}");
        }
        block(&v, &td, GPA);
        let fault = Regs {
            rcx: 1,
            r8: GPA,
            ..Regs::default()
        };
        // The first fault at this RIP comes after a round, six count, the seventh is noted.
        for i in 0..7 {
            assert_eq!(run(), (48, fault), "{i}");
        }
        // From then on the module looks itself: a write fault, without the guest.
        let emulated = Regs { rcx: 2, ..fault };
        assert_eq!(run(), (48, emulated));
        load(&v, "hold tree sh");
        assert_eq!(run().0, BUSY | 0x92);
        load(&v, "");
        // Nothing counts the vCPU that was not let in: the next epochs come.
        v.ok(38, regs(td.tdr, 0, 0, 0));
        v.ok(38, regs(td.tdr, 0, 0, 0));
        assert_eq!(run(), (48, emulated));
        v.ok(39, regs(GPA, td.tdr, 0, 0));
        if notify == 1 {
            // The guest hears of it: an EPT violation at that page.
            let (rax, out) = run();
            assert_eq!((rax, out.r11, out.r12, out.r13), (77, 4, 48, GPA));
            assert_eq!(out.r15 & 7, 1, "a read");
        }
        let (rax, out) = run();
        assert_eq!((rax, out.r11), (77, 3), "{out:x?}");
        // The RIP moved: the list is empty, and the tree is not asked for.
        load(&v, "hold tree ex");
        assert_eq!(run().1.r11, 3);
    }
}

#[test]
fn wide_addresses_need_a_fifth_level() {
    let v = Vmm::new(Interpreter);
    for (root, flags, hkid) in [(3, 4, 20), (4, 4, 21), (4, 5, 22)] {
        let td = v.create_with(hkid, 0, root, flags);
        let rd = |gpa: u64, level: u64| {
            let (rax, out) = v.call(25, regs(gpa | level, td.tdr, 0, 0));
            (rax, out.rcx, out.rdx)
        };
        let bad = (INVALID | 1, 0, 0);
        assert_eq!(rd(0, root), (0, FREE, root));
        assert_eq!(rd(0, root + 1), bad);
        // The shared bit, and what is above it.
        let wide = flags & 1 != 0;
        let shared = if wide { 51 } else { 47 };
        for bit in 46..52 {
            let want = match bit {
                b if b >= shared => bad,
                _ => (0xC000_0B00_0000_0001, FREE, root),
            };
            assert_eq!(rd(1 << bit, 0), want, "bit {bit}");
        }
        assert_eq!(v.call(3, regs(root, td.tdr, v.page(), 0)).0, 0);
        assert_eq!(rd(0, root), (0, 7, root | (0x84 << 8)));
        v.ok(7, regs(root, td.tdr, 0, 0));
        assert_eq!(rd(0, 0), (0xC000_0B00_0000_0001, 0, root | (0x81 << 8)));
        // Before the TD is final nothing has to be tracked.
        v.ok(30, regs(root, td.tdr, 0, 0));
        assert_eq!(rd(0, root), (0, FREE, root));
        if wide {
            // An index above 0 in the root: 48 bits of address below it.
            let far = 5 << 48;
            v.ok(3, regs(far | 4, td.tdr, v.page(), 0));
            assert_eq!(rd(far, 4), (0, 7, 4 | (0x84 << 8)));
            assert_eq!(rd(far | (1 << 47), 3), (0, FREE, 3));
            assert_eq!(rd(0, 4), (0, FREE, 4));
        }
    }
}

/// Reads the MSR that the host names in R13, over and over: R12 and R14 have its halves.
fn msr_reader() -> Asm {
    let mut a = Asm::new(CODE);
    let again = a.here();
    a.vmcall(1).mov(RCX, R13).exit(31);
    a.mov(R12, RAX).mov(R14, RDX).jmp(again);
    a
}

#[test]
fn x2apic_mode_cannot_be_left() {
    const X2APIC: u64 = 3 << 10;
    const XAPIC_DISABLE_STATUS: u64 = 1 << 21;

    let v = Vmm::new(Interpreter);
    let td = td_with(&v, &msr_reader());
    let read = |msr: u64| {
        let r13 = Regs {
            r13: msr,
            ..Regs::default()
        };
        let (rax, out) = enter(&v, &td, r13);
        assert_eq!((rax, out.r11), (77, 1), "MSR {msr:#x}");
        out.r12 | out.r14 << 32
    };
    assert_eq!(enter(&v, &td, Regs::default()).0, 77);
    assert_eq!(read(0x1B) & X2APIC, X2APIC);
    assert_ne!(read(0x10A) & XAPIC_DISABLE_STATUS, 0);
    assert_eq!(read(0xBD), 1);
}
