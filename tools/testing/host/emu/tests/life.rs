// SPDX-License-Identifier: GPL-2.0

//! The life of a TD as Linux leads it, with a guest that executes.

use sha2::{Digest, Sha384};
use tdx_emu_host::asm::*;
use tdx_emu_host::check::{check_td, check_unlocked};
use tdx_emu_host::instruments::StatName;
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::module::Regs;
use tdx_emu_host::vmm::{regs, Td, Vmm, TDMR};

const SEPT_VE_DISABLE: u64 = 1 << 28;
const RESET: u64 = 0xFFFF_F000;
const CODE: u64 = 0x1000;
const DATA: u64 = 0x80_0000;

/// A page whose last 16 bytes, the reset vector, jump to `CODE`.
fn reset_page() -> Vec<u8> {
    let mut a = Asm::new(RESET + 0xFF0);
    a.jmp(CODE);
    let mut page = vec![0; 0xFF0];
    page.extend(a.bytes());
    page
}

/// A finalized TD with one vCPU on LP 1 and a program.
fn td_with(v: &Vmm<Interpreter>, attributes: u64, program: &Asm) -> Td {
    let mut td = v.create(20, attributes);
    v.add_vcpu(&mut td, 1, 0x1234);
    v.add_page(&td, RESET, &reset_page());
    v.add_page(&td, CODE, program.bytes());
    v.ok(17, regs(td.tdr, 0, 0, 0));
    td
}

fn enter(v: &Vmm<Interpreter>, td: &Td, mut r: Regs) -> (u64, Regs) {
    r.rcx = td.vcpus[0][0];
    v.call_on(1, 0, r)
}

fn stat(v: &Vmm<Interpreter>, name: &str) -> u64 {
    let mut found = None;
    v.module.stats().each(|n: StatName, value| {
        if n.to_string() == name {
            found = Some(value);
        }
    });
    found.unwrap_or_else(|| panic!("no counter {name}"))
}

/// Zaps the data and code pages and destroys the TD; nothing may be left.
fn end(v: &Vmm<Interpreter>, td: Td, mapped: &[u64]) {
    for &gpa in mapped.iter().chain(&[RESET, CODE]) {
        v.zap(&td, gpa);
    }
    let control = (td.tdcx.len() + td.vcpus.iter().map(Vec::len).sum::<usize>()) as u64;
    let census = check_td(&v.module, td.tdr, control).unwrap();
    assert_eq!(census.leaves, 0);
    v.destroy(td, &[Some(1)]);
    check_unlocked(&v.module, TDMR, TDMR + (64 << 20)).unwrap();
    assert_eq!(stat(v, "pamt_pages_owned"), 0);
    assert_eq!(stat(v, "invariant_errors"), 0);
    assert_eq!(stat(v, "leaf_present_transitions"), stat(v, "leaf_removed"));
}

#[test]
fn a_td_accepts_uses_and_gives_back_memory() {
    let v = Vmm::new(Interpreter);
    let mut a = Asm::new(CODE);
    // The RCX of VP.INIT, then four pages: accept, check for zero, store, load.
    a.mov(R12, RCX).vmcall(100);
    a.movi(R14, DATA).movi(RBP, 0);
    let again = a.here();
    a.mov(RCX, R14).tdcall(6);
    let accepted = a.jeq_later(RAX, RBP);
    a.fault();
    a.land(accepted);
    a.load(R13, R14, 0);
    let zero = a.jeq_later(R13, RBP);
    a.fault();
    a.land(zero);
    a.store(R14, R14, 8).load(R13, R14, 8);
    let same = a.jeq_later(R13, R14);
    a.fault();
    a.land(same);
    a.addi(R14, R14, 4096)
        .movi(R13, DATA + 4 * 4096)
        .jne(R14, R13, again);
    a.vmcall(101).fault();
    let td = td_with(&v, SEPT_VE_DISABLE, &a);

    let (rax, out) = enter(&v, &td, Regs::default());
    assert_eq!(
        (rax, out.rcx, out.r10, out.r11, out.r12),
        (77, 0xFC00, 0, 100, 0x1234)
    );
    assert_eq!((out.rdx, out.r8, out.rbx), (0, 0, 0));
    for i in 0..4 {
        let gpa = DATA + i * 4096;
        let (rax, out) = enter(&v, &td, Regs::default());
        // ACCEPT finds nothing: a write fault of type ACCEPT.
        assert_eq!((rax, out.rcx, out.r8), (48, 2, gpa), "{out:x?}");
        assert_eq!(out.rdx & 15, 1);
        v.build_tables(&td, gpa);
        v.ok(6, regs(gpa, td.tdr, v.page(), 0));
    }
    let (rax, out) = enter(&v, &td, Regs::default());
    assert_eq!((rax, out.r11), (77, 101), "{out:x?}");
    assert_eq!(stat(&v, "guest_accepts"), 4);
    // A triple fault ends the vCPU.
    let (rax, _) = enter(&v, &td, Regs::default());
    assert_eq!(rax, 0x4000_0001_0000_0002);
    let (rax, _) = enter(&v, &td, Regs::default());
    assert_eq!(rax, 0xC000_0700_0000_0000);
    end(&v, td, &[DATA, DATA + 0x1000, DATA + 0x2000, DATA + 0x3000]);
}

#[test]
fn unaccepted_memory_is_a_ve_that_the_guest_resolves() {
    let v = Vmm::new(Interpreter);
    let mut a = Asm::new(CODE);
    let handler = a.setve_later();
    a.movi(R14, DATA)
        .store(R14, R14, 0)
        .load(R13, R14, 0)
        .vmcall(7)
        .fault();
    a.land(handler);
    a.tdcall(3)
        .mov(RBX, RCX)
        .mov(RCX, R9)
        .tdcall(6)
        .verip(RDX)
        .retve(RDX, 0);
    let td = td_with(&v, 0, &a);
    v.build_tables(&td, DATA);
    // Nothing there yet: an exit without a #VE.
    let (rax, out) = enter(&v, &td, Regs::default());
    assert_eq!((rax, out.rdx, out.r8), (48, 0, DATA));
    v.ok(6, regs(DATA, td.tdr, v.page(), 0));
    let (rax, out) = enter(&v, &td, Regs::default());
    assert_eq!((rax, out.r11, out.r13), (77, 7, DATA), "{out:x?}");
    assert_eq!(stat(&v, "guest_ve"), 1);
    end(&v, td, &[DATA]);
}

#[test]
fn with_ve_disabled_unaccepted_memory_exits() {
    let v = Vmm::new(Interpreter);
    let mut a = Asm::new(CODE);
    a.movi(R14, DATA).load(R13, R14, 0).fault();
    let td = td_with(&v, SEPT_VE_DISABLE, &a);
    v.build_tables(&td, DATA);
    v.ok(6, regs(DATA, td.tdr, v.page(), 0));
    let (rax, out) = enter(&v, &td, Regs::default());
    assert_eq!((rax, out.rdx, out.r8), (48, 6, DATA));
    // The same fault again and again: the seventh is remembered, and from then on the
    // module answers itself, as a write fault.
    for _ in 0..6 {
        assert_eq!(enter(&v, &td, Regs::default()).1.rcx & 7, 1);
    }
    let entries = stat(&v, "guest_entries");
    assert_eq!(enter(&v, &td, Regs::default()).1.rcx, 2);
    assert_eq!(stat(&v, "guest_entries"), entries);
    end(&v, td, &[DATA]);
}

#[test]
fn instructions_become_ve_or_answers() {
    let v = Vmm::new(Interpreter);
    let mut a = Asm::new(CODE);
    let handler = a.setve_later();
    // CPUID 21h is answered by the module, 40000000h is not.
    a.movi(RAX, 0x21)
        .movi(RCX, 0)
        .exit(10)
        .mov(R12, RBX)
        .mov(R13, RDX)
        .vmcall(1);
    a.movi(RAX, 0x4000_0000)
        .exit(10)
        .exit(12)
        .exit(30)
        .vmcall(2)
        .fault();
    a.land(handler);
    // R12: reason, R13: instruction length and information.
    a.tdcall(3).mov(R12, RCX).mov(R13, R10).vmcall(3);
    a.tdcall(3)
        .mov(R12, RAX)
        .vmcall(4)
        .verip(RDX)
        .retve(RDX, 12);
    let td = td_with(&v, SEPT_VE_DISABLE, &a);
    let (rax, out) = enter(&v, &td, Regs::default());
    let name = |v: u64| (v as u32).to_le_bytes();
    assert_eq!(
        (rax, out.r11, name(out.r12), name(out.r13)),
        (77, 1, *b"Inte", *b"lTDX")
    );
    for reason in [10, 12, 30] {
        let (_, out) = enter(&v, &td, Regs::default());
        assert_eq!((out.r11, out.r12, out.r13 & 0xFFFF_FFFF), (3, reason, 12));
        // The information can be read once.
        let (_, out) = enter(&v, &td, Regs::default());
        assert_eq!((out.r11, out.r12), (4, 0xC000_0704_0000_0000));
    }
    assert_eq!(enter(&v, &td, Regs::default()).1.r11, 2);
    end(&v, td, &[]);
}

#[test]
fn vmcall_passes_the_named_registers_only() {
    let v = Vmm::new(Interpreter);
    let mut a = Asm::new(CODE);
    a.movi(RBX, 1)
        .movi(R12, 2)
        .movi(R13, 3)
        .movi(RCX, (1 << 12) | (1 << 10))
        .tdcall(0);
    a.mov(R14, R12).mov(R15, R13).vmcall(5);
    // RAX, RCX, RSP and, with NO_RBP_MOD, RBP cannot be passed.
    for mask in [1u64, 2, 16, 32, 1 << 32] {
        a.movi(RCX, mask).tdcall(0).mov(R12, RAX).vmcall(6);
    }
    a.fault();
    let td = td_with(&v, SEPT_VE_DISABLE, &a);
    let (_, out) = enter(&v, &td, Regs::default());
    assert_eq!((out.rcx, out.rbx, out.r12, out.r13), (0x1400, 0, 2, 0));
    let answer = Regs {
        r10: 0,
        r12: 77,
        r13: 88,
        rbx: 99,
        ..Regs::default()
    };
    let (_, out) = enter(&v, &td, answer);
    assert_eq!((out.r11, out.r14, out.r15), (5, 77, 3));
    for _ in 0..5 {
        let (_, out) = enter(&v, &td, Regs::default());
        assert_eq!((out.r11, out.r12), (6, 0xC000_0100_0000_0001));
    }
    end(&v, td, &[]);
}

#[test]
fn mrtd_and_the_report_agree_with_an_independent_hash() {
    let v = Vmm::new(Interpreter);
    let mut a = Asm::new(CODE);
    a.movi(RCX, DATA).tdcall(6);
    a.movi(RCX, DATA)
        .movi(RDX, DATA + 0x800)
        .movi(R8, 0)
        .tdcall(4)
        .mov(R12, RAX)
        .vmcall(1);
    a.movi(RBP, DATA);
    for i in 0..3 {
        a.load(R12, RBP, 512 + 16 + 16 * i)
            .load(R13, RBP, 512 + 24 + 16 * i)
            .vmcall(2);
    }
    a.fault();
    let td = td_with(&v, SEPT_VE_DISABLE, &a);
    let mut h = Sha384::new();
    let block = |h: &mut Sha384, name: &[u8], gpa: u64| {
        let mut b = [0u8; 128];
        b[..name.len()].copy_from_slice(name);
        b[16..24].copy_from_slice(&gpa.to_le_bytes());
        h.update(b);
    };
    for (gpa, mut page) in [(RESET, reset_page()), (CODE, a.bytes().to_vec())] {
        page.resize(4096, 0);
        block(&mut h, b"MEM.PAGE.ADD", gpa);
        for (i, chunk) in page.chunks(256).enumerate() {
            block(&mut h, b"MR.EXTEND", gpa + 256 * i as u64);
            h.update(chunk);
        }
    }
    let want = h.finalize();

    v.build_tables(&td, DATA);
    v.ok(6, regs(DATA, td.tdr, v.page(), 0));
    let (_, out) = enter(&v, &td, Regs::default());
    assert_eq!((out.r11, out.r12), (1, 0), "TDG.MR.REPORT: {out:x?}");
    let mut got = Vec::new();
    for _ in 0..3 {
        let (_, out) = enter(&v, &td, Regs::default());
        got.extend(out.r12.to_le_bytes());
        got.extend(out.r13.to_le_bytes());
    }
    assert_eq!(got, want.as_slice());
    end(&v, td, &[DATA]);
}

#[test]
fn a_running_vcpu_delays_removal_until_it_is_kicked() {
    let v = Vmm::new(Interpreter);
    let mut a = Asm::new(CODE);
    let here = a.here();
    a.jmp(here);
    let td = td_with(&v, SEPT_VE_DISABLE, &a);
    v.build_tables(&td, DATA);
    v.ok(6, regs(DATA, td.tdr, v.page(), 0));
    let busy = std::sync::atomic::AtomicU64::new(0);
    let stop = std::sync::atomic::AtomicBool::new(false);
    use std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(SeqCst) {
                // The loop never ends by itself: the host gets the CPU back now and then.
                assert_eq!(enter(&v, &td, Regs::default()).0, 6);
            }
        });
        v.ok(7, regs(DATA, td.tdr, 0, 0));
        for leaf in [38, 29] {
            loop {
                let rcx = if leaf == 38 { td.tdr } else { DATA };
                match v.call(leaf, regs(rcx, td.tdr, 0, 0)).0 {
                    0 => break,
                    0x8000_0201_0000_0000 | 0xC000_0B08_0000_0001 => {
                        busy.fetch_add(1, SeqCst);
                    }
                    rax => panic!("leaf {leaf} returned {rax:#x}"),
                }
            }
        }
        stop.store(true, SeqCst);
    });
    assert_eq!(stat(&v, "invariant_errors"), 0);
    end(&v, td, &[]);
}

#[test]
fn two_tds_do_not_mix() {
    let v = Vmm::new(Interpreter);
    let mut a = Asm::new(CODE);
    a.vmcall(1).fault();
    let one = td_with(&v, SEPT_VE_DISABLE, &a);
    let mut two = v.create(21, SEPT_VE_DISABLE);
    v.add_vcpu(&mut two, 2, 0);
    v.build_tables(&two, DATA);
    v.build_tables(&one, DATA);
    let page = v.page();
    v.ok(6, regs(DATA, one.tdr, page, 0));
    // A page has one owner, a HKID one TD, a vCPU one LP.
    assert_eq!(
        v.call(6, regs(DATA, two.tdr, page, 0)).0,
        0xC000_0300_0000_0008
    );
    assert_eq!(v.call(9, regs(v.page(), 21, 0, 0)).0, 0xC000_0820_0000_0000);
    v.ok(17, regs(two.tdr, 0, 0, 0));
    let (rax, _) = v.call_on(1, 0, regs(two.vcpus[0][0], 0, 0, 0));
    assert_eq!(rax, 0x8000_0701_0000_0000);
    assert_eq!(
        v.call_on(1, 18, regs(two.vcpus[0][0], 0, 0, 0)).0,
        0x8000_0702_0000_0000
    );
    // Nothing is reclaimed from a living TD.
    assert_eq!(v.call(28, regs(page, 0, 0, 0)).0, 0xC000_0607_0000_0000);
    assert_eq!(v.call(19, regs(two.tdr, 0, 0, 0)).0, 0x8000_0824_0000_0000);
    v.destroy(two, &[Some(2)]);
    end(&v, one, &[DATA]);
}
