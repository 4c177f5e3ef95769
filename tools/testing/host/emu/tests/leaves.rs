// SPDX-License-Identifier: GPL-2.0

//! Refusals: of the dispatcher, of the bring-up, of bad operands; and injection.

use tdx_emu_host::host::{layout, td_params, Host};
use tdx_emu_host::instruments::{Instrumented, MAX_RULES};
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::module::Regs;
use tdx_emu_host::vmm::{regs, Vmm, TDMR, TDMR_SIZE};

const INVALID: u64 = 0xC000_0100_0000_0000;

fn call(m: &Instrumented<Host, Interpreter>, lp: u32, leaf: u64, mut r: Regs) -> u64 {
    m.seamcall(lp, leaf, &mut r)
}

#[test]
fn the_dispatcher_refuses() {
    let v = Vmm::new(Interpreter);
    for rax in [
        6 | (1 << 24),
        6 | (1 << 40),
        6 | (1 << 63),
        6 | (1 << 16),
        12,
        14,
        32,
        71,
        0xFFFF,
    ] {
        let r = regs(1, 2, 3, 4);
        assert_eq!(v.call(rax, r), (INVALID, r), "{rax:#x}");
    }
    // Versioned leaves refuse a version above 1 themselves, with zeroed operands.
    let (rax, out) = v.call(3 | (2 << 16), regs(1, 2, 3, 4));
    assert_eq!((rax, out), (INVALID, regs(0, 0, 3, 4)));
    let (rax, out) = v.call(30 | (2 << 16), regs(1, 2, 3, 4));
    assert_eq!(
        (rax, out.r9, out.r10, out.r11),
        (INVALID, u64::MAX, u64::MAX, u64::MAX)
    );
    v.ok(69, Regs::default());
    assert_eq!(v.call(6, Regs::default()).0, 0xC000_0506_0000_0000);
}

#[test]
fn bring_up_has_an_order() {
    let m = Instrumented::new(Host::new(Host::default_config()), Interpreter);
    let none = Regs::default();
    assert_eq!(call(&m, 0, 6, none), 0xC000_0505_0000_0000);
    assert_eq!(call(&m, 0, 35, none), 0xC000_0505_0000_0000);
    assert_eq!(call(&m, 0, 45, none), 0xC000_0510_0000_0000);
    assert_eq!(call(&m, 0, 33, regs(1, 0, 0, 0)), INVALID | 1);
    assert_eq!(call(&m, 0, 33, none), 0);
    assert_eq!(call(&m, 0, 33, none), 0xC000_0500_0000_0000);
    assert_eq!(call(&m, 0, 45, none), 0xC000_0502_0000_0000);
    for lp in 0..4 {
        assert_eq!(call(&m, lp, 35, none), 0);
        assert_eq!(call(&m, lp, 35, none), 0xC000_0503_0000_0000);
    }
    assert_eq!(call(&m, 256, 35, none), INVALID);
    assert_eq!(call(&m, 0, 31, none), 0xC000_0507_0000_0000);
    let h = m.platform();
    let config = |words: &[u64]| {
        for i in 0..64 {
            h.write(
                layout::TDMR_INFO + 8 * i,
                words.get(i as usize).copied().unwrap_or(0),
            );
        }
        h.write(layout::TDMR_ARRAY, layout::TDMR_INFO);
        call(&m, 0, 45, regs(layout::TDMR_ARRAY, 1, 16, 0))
    };
    assert_eq!(
        call(&m, 0, 45, regs(layout::TDMR_ARRAY + 8, 1, 16, 0)),
        INVALID | 1
    );
    assert_eq!(
        call(&m, 0, 45, regs(layout::TDMR_ARRAY, 0, 16, 0)),
        INVALID | 2
    );
    assert_eq!(
        call(&m, 0, 45, regs(layout::TDMR_ARRAY, 65, 16, 0)),
        INVALID | 2
    );
    assert_eq!(
        call(&m, 0, 45, regs(layout::TDMR_ARRAY, 1, 15, 0)),
        INVALID | 8
    );
    let p = layout::PAMT;
    let pamt = |a: u64| [a + 0x50_0000, 4096, a + 0x48_0000, 8192, a, 0x40_0000];
    let with = |base: u64, size: u64, pamt: [u64; 6], rest: &[u64]| {
        let mut w = vec![base, size];
        w.extend(pamt);
        w.extend(rest);
        config(&w)
    };
    assert_eq!(
        with(TDMR + 4096, TDMR_SIZE, pamt(p), &[]),
        0xC000_0A00_0000_0000
    );
    assert_eq!(with(TDMR, 0, pamt(p), &[]), 0xC000_0A00_0000_0000);
    let mut small = pamt(p);
    small[5] -= 4096;
    assert_eq!(with(TDMR, TDMR_SIZE, small, &[]), 0xC000_0A10_0000_0000);
    // A PAMT inside its TDMR must be reserved there.
    assert_eq!(
        with(TDMR, TDMR_SIZE, pamt(TDMR), &[]),
        0xC000_0A12_0000_0000
    );
    assert_eq!(
        with(TDMR, TDMR_SIZE, pamt(p), &[4096, 100]),
        0xC000_0A13_0000_0000
    );
    let overlap = [0x2000, 0x1000, 0x1000, 0x2000];
    assert_eq!(
        with(TDMR, TDMR_SIZE, pamt(p), &overlap),
        0xC000_0A13_0000_0000
    );
    assert_eq!(with(TDMR, TDMR_SIZE, pamt(TDMR), &[0, 0x60_0000]), 0);
    assert_eq!(call(&m, 0, 36, regs(TDMR, 0, 0, 0)), 0xC000_0505_0000_0000);
    assert_eq!(call(&m, 0, 31, none), 0);
    assert_eq!(call(&m, 0, 36, regs(TDMR + 1, 0, 0, 0)), INVALID | 1);
    assert_eq!(call(&m, 0, 36, regs(TDMR, 0, 0, 0)), 0);
    assert_eq!(call(&m, 0, 36, regs(TDMR, 0, 0, 0)), 0x0000_0A03_0000_0000);
    // A reserved page belongs to nobody, and can be given to nobody.
    assert_eq!(call(&m, 0, 9, regs(TDMR, 20, 0, 0)), 0xC000_0300_0000_0001);
    assert_eq!(call(&m, 0, 9, regs(TDMR + 0x60_0000, 20, 0, 0)), 0);
}

#[test]
fn operands_of_a_new_td_are_checked() {
    let v = Vmm::new(Interpreter);
    let page = v.page();
    let create = |pa, hkid| v.call(9, regs(pa, hkid, 0, 0)).0;
    assert_eq!(create(page, 15), INVALID | 2);
    assert_eq!(create(page, 64), INVALID | 2);
    assert_eq!(create(page, (1 << 16) | 20), INVALID | 2);
    assert_eq!(create(page + 8, 20), INVALID | 1);
    assert_eq!(create(page | (1 << 46), 20), INVALID | 1);
    assert_eq!(create(0x1000, 20), 0xC000_0101_0000_0001);
    assert_eq!(create(page, 16), 0xC000_0820_0000_0000);
    let td = v.create(20, 0);
    // Each of TD_PARAMS' fields has its own operand.
    let tdr = v.page();
    v.ok(9, regs(tdr, 21, 0, 0));
    assert_eq!(
        v.call(1, regs(v.page(), tdr, 0, 0)).0,
        0x8000_0810_0000_0000
    );
    v.ok(8, regs(tdr, 0, 0, 0));
    assert_eq!(v.call(8, regs(tdr, 0, 0, 0)).0, 0xC000_0607_0000_0000);
    let init = |at: u64| v.call(21, regs(tdr, at, 0, 0)).0;
    assert_eq!(init(layout::TD_PARAMS), 0xC000_0606_0000_0000);
    for _ in 0..6 {
        v.ok(1, regs(v.page(), tdr, 0, 0));
    }
    assert_eq!(init(layout::TD_PARAMS + 512), INVALID | 2);
    for (word, value, operand) in [
        (0, 1u64, 64),
        (1, 0, 65),
        (1, 3 | (1 << 10), 65),
        (2, 0, 68),
        (3, (5 << 3) | 6, 67),
        (3, 3 << 3, 67),
        (4, 1, 67),
        (4, 1 << 5, 66),
        (5, 0, 70),
        (32, 1 << 63, 69),
    ] {
        td_params(v.host(), 0, 3, 4);
        v.host().write(layout::TD_PARAMS + 8 * word, value);
        assert_eq!(init(layout::TD_PARAMS), INVALID | operand, "word {word}");
    }
    td_params(v.host(), 0, 3, 4);
    assert_eq!(init(layout::TD_PARAMS), 0);
    assert_eq!(init(layout::TD_PARAMS), 0xC000_0608_0000_0000);
    assert_eq!(v.call(17, regs(td.tdr, 0, 0, 0)).0, 0xC000_0609_0000_0000);
}

#[test]
fn fields_are_what_linux_asks_for() {
    let v = Vmm::new(Interpreter);
    let sys = |f: u64| v.ok(34, regs(0, f, 0, 0)).r8;
    assert_eq!(
        sys(0x0A00_0003_0000_0008) & ((1 << 18) | (1 << 20)),
        (1 << 18) | (1 << 20)
    );
    assert_eq!(sys(0x9100_0001_0000_0010), 16);
    assert_eq!(sys(0x9800_0001_0000_0200), 6 * 4096);
    let n = sys(0x9900_0001_0000_0004);
    assert!(n > 0 && n <= 48);
    let leaves: Vec<_> = (0..n).map(|i| sys(0x9900_0003_0000_0400 + i)).collect();
    assert!(leaves.contains(&((0xFFFF_FFFF << 32) | 0x8000_0008)));
    assert_eq!(
        v.call(34, regs(0, 0x9900_0003_0000_0400 + n, 0, 0)).0,
        0xC000_0C00_0000_0002
    );
    let td = v.create(20, 0);
    let rd = |f: u64| v.call(11, regs(td.tdr, f, 0, 0));
    assert_eq!(rd(0x1100_0000_0000_000B).1.r8, 1 << 48);
    // A leaf without subleaves is read as such, one with them by subleaf.
    let cpuid = |leaf: u64, sub: u64| {
        rd(0x9410_0003_0000_0000 | ((leaf >> 31) << 16) | ((leaf & 0x7F) << 9) | sub).0
    };
    assert_eq!(cpuid(0, 0x1FE), 0);
    assert_eq!(cpuid(0x8000_0008, 0x1FE), 0);
    assert_eq!(cpuid(7, 0x1FE), 0xC000_0C02_0000_0002);
    assert_eq!(cpuid(7, 0), 0);
    assert_eq!(cpuid(7, 3 << 1), 0xC000_0C02_0000_0002);
    assert_eq!(cpuid(1, 0), 0xC000_0C02_0000_0002);
}

#[test]
fn injection_hits_the_named_calls() {
    let v = Vmm::new(Interpreter);
    let td = v.create(20, 0);
    let track = || v.call(38, regs(td.tdr, 0, 0, 0)).0;
    let script =
        "# two commands\nfail tdh_mem_track 3 8000020100000000\n\nfail 38 every 4 0xabc # x\n";
    v.module.inject().load(script.as_bytes()).unwrap();
    let got: Vec<_> = (0..9).map(|_| track()).collect();
    assert_eq!(got, [0, 0, 0x8000_0201_0000_0000, 0xABC, 0, 0, 0, 0xABC, 0]);
    v.module
        .inject()
        .load(b"clear\nfail tdh_mem_page_remove 1 c0000b0d00000001")
        .unwrap();
    let (rax, out) = v.call(29, regs(0x1000, td.tdr, 7, 8));
    assert_eq!((rax, out), (0xC000_0B0D_0000_0001, regs(0, 0, 7, 8)));
    v.module.inject().load(b"").unwrap();
    assert!((0..9).all(|_| track() == 0));
}

#[test]
fn bad_scripts_are_refused_whole() {
    let v = Vmm::new(Interpreter);
    let load = |s: &str| {
        v.module
            .inject()
            .load(s.as_bytes())
            .map_err(|e| e.to_string())
    };
    for (script, error) in [
        ("fail", "line 1: leaf is missing"),
        ("fail 6", "line 1: number of the call is missing"),
        ("fail 6 0 1", "line 1: calls are counted from 1"),
        ("fail 6 x 1", "line 1: count is not a number"),
        ("fail 6 every", "line 1: period is missing after every"),
        ("fail 6 every 0 1", "line 1: calls are counted from 1"),
        ("fail 6 1", "line 1: status is missing"),
        ("fail 6 1 xyz", "line 1: status is not hexadecimal"),
        ("fail 6 1 1 1", "line 1: words after the end of the command"),
        (
            "fail tdh_mem_page_aug 1 1\nfail nonsense 1 1",
            "line 2: no such leaf",
        ),
        (
            "\n\nstop",
            "line 3: unknown command: fail, delay, interrupt, hold or clear expected",
        ),
        ("clear all", "line 1: words after the end of the command"),
    ] {
        assert_eq!(load(script).unwrap_err(), error, "{script}");
    }
    // None of them left anything behind, and a script replaces the one before.
    assert_eq!(v.module.inject().to_string(), "");
    let full = "fail 6 1 1\n".repeat(MAX_RULES);
    load(&full).unwrap();
    load(&full).unwrap();
    assert!(load(&format!("{full}fail 6 1 1"))
        .unwrap_err()
        .contains("more than 32"));
    assert!(v.module.inject().load(&[0xFF, 0xFE]).is_err());
    assert!(load("clear\nfail 6 99999999999999999999 1").is_err());
    assert!(load("clear\nfail 6 1 10000000000000000").is_err());
}

#[test]
fn cpuid_shows_what_a_td_may_use() {
    let v = Vmm::new(Interpreter);
    let td = v.create(20, 0);
    let cpuid = |leaf: u64, sub: u64| {
        let f = 0x9410_0003_0000_0000 | ((leaf >> 31) << 16) | ((leaf & 0x7F) << 9) | sub;
        let half = |f| v.ok(11, regs(td.tdr, f, 0, 0)).r8;
        let (ab, cd) = (half(f), half(f | 1));
        [ab as u32, (ab >> 32) as u32, cd as u32, (cd >> 32) as u32]
    };
    const NONE: u64 = 0x1FE;
    assert_eq!(cpuid(0, NONE)[0], 0x21);
    let [_, _, c, _] = cpuid(1, NONE);
    assert_eq!(
        c & ((1 << 5) | (1 << 6) | (1 << 21) | (1 << 31)),
        (1 << 21) | (1 << 31),
        "VMX, SMX, x2APIC, guest"
    );
    let [_, b, c, d] = cpuid(7, 0);
    // XFAM is 3: no AVX2, no PKU, no CET, no AMX; never SGX, TSX or WAITPKG.
    assert_eq!(
        b & ((1 << 2) | (1 << 4) | (1 << 5) | (1 << 11) | (1 << 16)),
        0
    );
    assert_eq!(c & ((1 << 3) | (1 << 5) | (1 << 7)), 0);
    assert_eq!(d & ((1 << 20) | (1 << 24)), 0);
    assert_eq!((cpuid(0xD, 0)[0], cpuid(0xD, 0)[3]), (3, 0));
    assert_eq!(cpuid(0xD, 2 << 1), [0; 4]);
    assert_eq!(cpuid(0x15, NONE), [1, 80, 25_000_000, 0]);
    assert_eq!((cpuid(0x8000_0008, NONE)[0] >> 16) & 0xFF, 48);
}
