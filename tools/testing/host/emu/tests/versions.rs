// SPDX-License-Identifier: GPL-2.0

//! What differs between the releases of the TDX module where no recording shows it.

use tdx_emu_host::driver::{Driver, Lock};
use tdx_emu_host::host::{
    before_sys_config, bring_up, bring_up_with, layout, td_params, Host, TdmrSpec,
};
use tdx_emu_host::instruments::Instrumented;
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::module::{versions, Config, Regs};
use tdx_emu_host::vmm::{regs, Vmm};

const TDMR: u64 = 0x4000_0000;
const INVALID: u64 = 0xC000_0100_0000_0000;
const VP_INIT_1: u64 = 22 | (1 << 16);

const RELEASES: [&str; 10] = [
    "1.5.01", "1.5.05", "1.5.06", "1.5.08", "1.5.09", "1.5.13", "1.5.16", "1.5.20", "1.5.24",
    "1.5.25",
];

type Bare = Instrumented<Host, Interpreter>;

/// A module of a release, ready.
struct Module {
    m: Bare,
    next: u64,
}

impl Module {
    fn new(release: &str) -> Module {
        Module::on(release, Host::default_config())
    }

    fn on(release: &str, config: Config) -> Module {
        let m = Instrumented::new(Host::new(config), Interpreter);
        assert!(m.set_version(release), "{release}");
        assert_eq!(m.version(), release);
        let tdmr = TdmrSpec {
            base: TDMR,
            size: 1 << 30,
            reserved: vec![],
        };
        bring_up(&m, &tdmr, 16);
        Module { m, next: TDMR }
    }

    fn page(&mut self) -> u64 {
        self.next += 4096;
        self.next
    }

    fn call(&self, leaf: u64, mut r: Regs) -> (u64, Regs) {
        let rax = self.m.seamcall(0, leaf, &mut r);
        (rax, r)
    }

    #[track_caller]
    fn ok(&self, leaf: u64, r: Regs) {
        let (rax, _) = self.call(leaf, r);
        assert_eq!(rax, 0, "leaf {leaf:#x} returned {rax:#x}");
    }

    /// A TD up to MNG.INIT with the wanted number of vCPUs; they are complete, but not initialised.
    fn td(&mut self, vcpus: usize) -> (u64, Vec<u64>) {
        let tdr = self.page();
        self.ok(9, regs(tdr, 20, 0, 0));
        self.ok(8, regs(tdr, 0, 0, 0));
        for _ in 0..6 {
            let page = self.page();
            self.ok(1, regs(page, tdr, 0, 0));
        }
        td_params(self.m.platform(), 0, 3, 4);
        self.ok(21, regs(tdr, layout::TD_PARAMS, 0, 0));
        let vcpus = (0..vcpus).map(|_| {
            let tdvpr = self.page();
            self.ok(10, regs(tdvpr, tdr, 0, 0));
            for _ in 0..5 {
                let page = self.page();
                self.ok(4, regs(page, tdvpr, 0, 0));
            }
            tdvpr
        });
        (tdr, vcpus.collect())
    }
}

#[test]
fn what_is_in_an_entry() {
    for (i, release) in RELEASES.iter().enumerate() {
        for hkid_in_entries in [true, false] {
            let mut m = Module::on(
                release,
                Config {
                    hkid_in_entries,
                    ..Host::default_config()
                },
            );
            let (tdr, _) = m.td(0);
            let tables = [3, 2, 1].map(|level| {
                let page = m.page();
                m.ok(3, regs(level, tdr, page, 0));
                page
            });
            let page = m.page();
            m.ok(6, regs(0x1000, tdr, page, 0));
            let newer = i >= at("1.5.13");
            let hkid = if newer && hkid_in_entries {
                20 << 46
            } else {
                0
            };
            let xu = if newer { 1 << 10 } else { 0 };
            let raw = |table: usize, index: u64| m.m.platform().read(tables[table] + 8 * index);
            let shown = |gpa: u64, level: u64| m.call(25, regs(gpa | level, tdr, 0, 0)).1.rcx;
            let who = format!("{release} {hkid_in_entries}");
            // A table, a pending page, and a place that is free.
            let table = 0x8000_0000_0000_0007 | xu;
            assert_eq!(raw(1, 0), table | hkid | tables[2], "{who}");
            assert_eq!(shown(0, 1), 7 | xu, "{who}");
            let pending = 0x8100_0000_0000_00F0 | page;
            assert_eq!(raw(2, 1), pending | hkid, "{who}");
            assert_eq!(shown(0x1000, 0), 0x8000_0000_0000_00F0 | page, "{who}");
            assert_eq!(raw(2, 2), 0x80E0_0000_0000_0000, "{who}");
            // Blocked, and not any more.
            m.ok(7, regs(1, tdr, 0, 0));
            let blocked = 0x8080_0000_0000_0000;
            assert_eq!(raw(1, 0), blocked | hkid | tables[2], "{who}");
            assert_eq!(shown(0, 1), 0, "{who}");
            m.ok(38, regs(tdr, 0, 0, 0));
            m.ok(39, regs(1, tdr, 0, 0));
            assert_eq!(raw(1, 0), table | hkid | tables[2], "{who}");
            // Given back, without anything of the key.
            assert_eq!(m.call(29, regs(0x1000, tdr, 0, 0)).1.rcx, page, "{who}");
        }
    }
}

#[test]
fn a_child_that_somebody_holds_is_not_promoted() {
    const GPA: u64 = 0x4000_0000;
    for (i, release) in RELEASES.iter().enumerate() {
        let v = Vmm::of_version(Interpreter, None, Some(release), false);
        let td = v.create(20, 0);
        for level in [3, 2] {
            v.ok(3, regs(level, td.tdr, v.page(), 0));
        }
        v.ok(3, regs(GPA | 2, td.tdr, v.page(), 0));
        v.ok(6, regs(GPA | 1, td.tdr, TDMR + (128 << 20), 0));
        v.ok(15, regs(GPA | 1, td.tdr, v.page(), 0));
        let d = Driver::new(&v.module, td.tdr);
        let promote = || v.call(23, regs(GPA | 1, td.tdr, 0, 0)).0;
        for child in [0, 5, 511] {
            let held = d.hold(Lock::Entry(GPA + 4096 * child, 0), true);
            assert!(held.is_some());
            let want = match i < at("1.5.20") {
                true => 0x8000_0200_0000_0001,
                false => 0xC000_0B09_0000_0001,
            };
            assert_eq!(promote(), want, "{child} in {release}");
            drop(held);
        }
        assert_eq!(promote(), 0, "{release}");
    }
}

/// Position in the order of the releases.
fn at(release: &str) -> usize {
    RELEASES.iter().position(|r| *r == release).unwrap()
}

#[test]
fn all_releases_can_be_chosen_and_no_other() {
    let known: Vec<_> = versions().collect();
    assert_eq!(known[0], "1.5.01-linux");
    assert_eq!(known[1..], RELEASES);
    let m = Instrumented::new(Host::new(Host::default_config()), Interpreter);
    assert_eq!(m.version(), "1.5.01-linux");
    for name in ["", "1.5", "1.5.1", "1.5.28", "2.0.08", "1.5.24 "] {
        assert!(!m.set_version(name), "{name}");
        assert_eq!(m.version(), "1.5.01-linux");
    }
}

#[test]
fn fields_of_the_system_follow_from_the_release() {
    let rd = |m: &Module, field: u64| match m.call(34, regs(0, field, 0, 0)) {
        (0, r) => Some(r.r8),
        (rax, _) => {
            assert_eq!(rax, 0xC000_0C00_0000_0002);
            None
        }
    };
    for (i, release) in RELEASES.iter().enumerate() {
        let m = Module::new(release);
        let from = |first: &str, value: u64| (i >= at(first)).then_some(value);
        let update: u64 = release[4..].parse().unwrap();
        for (field, want) in [
            (0x0800_0001_0000_0003, Some(5)),
            (0x0800_0001_0000_0004, Some(1)),
            (0x0800_0001_0000_0005, Some(update)),
            (0x9900_0001_0000_0008, from("1.5.05", 576)),
            (0x9900_0000_0000_0009, from("1.5.06", 45)),
            (0x9900_0001_0000_000A, from("1.5.09", 512)),
            (0x9100_0000_0000_0013, from("1.5.20", 1)),
            (0x9100_0001_0000_0013, from("1.5.20", 1)),
            (0x9100_0000_0000_0014, from("1.5.20", 4)),
            (0x8900_0001_0000_0000, Some(from("1.5.24", 1).unwrap_or(0))),
            (0x8900_0001_0000_0001, Some(0)),
            (0x8900_0000_0000_0002, Some(from("1.5.24", 1).unwrap_or(0))),
        ] {
            assert_eq!(rd(&m, field), want, "{field:#x} of {release}");
        }
    }
}

#[test]
fn leaves_that_take_a_version() {
    for (i, release) in RELEASES.iter().enumerate() {
        let m = Module::new(release);
        for leaf in 0..100u64 {
            let (rax, _) = m.call(leaf | (1 << 16), regs(1, 1, 1, 1));
            let refused = rax == INVALID;
            let known = [3, 11, 23, 26, 30].contains(&leaf)
                || leaf == 22 && i >= at("1.5.05")
                || leaf == 33 && i >= at("1.5.13")
                || leaf == 53 && i >= at("1.5.24");
            assert_eq!(refused, !known, "leaf {leaf} of {release}: {rax:#x}");
        }
        // SYS.DISABLE is a leaf of later modules.
        let r = regs(1, 2, 3, 4);
        assert_eq!(m.call(69, r), (INVALID, r), "{release}");
    }
}

/// A module that SYS.CONFIG is to be called of, and the registers for that.
fn before_config(release: &str, hkid_start_bit: u32, dynamic: bool) -> (Bare, Regs) {
    let config = Config {
        hkid_start_bit,
        hkid_bits: 52 - hkid_start_bit,
        private_hkid_min: 2,
        private_hkid_max: 7,
        ..Host::default_config()
    };
    let m = Instrumented::new(Host::new(config), Interpreter);
    assert!(m.set_version(release), "{release}");
    let tdmr = TdmrSpec {
        base: TDMR,
        size: 1 << 30,
        reserved: vec![],
    };
    let r = before_sys_config(&m, &tdmr, dynamic);
    (m, r)
}

#[test]
fn dynamic_pamt_is_asked_for_in_sys_config() {
    for (i, release) in RELEASES.iter().enumerate() {
        let (m, mut r) = before_config(release, 46, false);
        r.r8 = 2 | (1 << 16);
        let rax = m.seamcall(0, 45, &mut r);
        // 1.5.16 takes the bit and does nothing about it. From 1.5.20 on the area for the
        // 4K entries may be smaller by it, and need not.
        let want = if i < at("1.5.16") { INVALID | 8 } else { 0 };
        assert_eq!(rax, want, "{release}");
        let (m, mut r) = before_config(release, 46, true);
        r.r8 = 2 | (1 << 16);
        let rax = m.seamcall(0, 45, &mut r);
        let want = match i {
            _ if i < at("1.5.16") => INVALID | 8,
            _ if i < at("1.5.20") => 0xC000_0A10_0000_0000,
            _ => 0,
        };
        assert_eq!(rax, want, "{release}");
        if i >= at("1.5.20") {
            // Not asked for: too small. Bits 63:48 of an address are no HKID: refused.
            let (m, mut r) = before_config(release, 46, true);
            r.r8 = 2;
            assert_eq!(m.seamcall(0, 45, &mut r), 0xC000_0A10_0000_0000);
            for (start, want) in [(48, 0), (49, INVALID | 8)] {
                let (m, mut r) = before_config(release, start, true);
                r.r8 = 2 | (1 << 16);
                assert_eq!(m.seamcall(0, 45, &mut r), want, "{release} {start}");
            }
        }
    }
}

#[test]
fn there_are_pamt_leaves_with_a_dynamic_pamt_only() {
    for (i, release) in RELEASES.iter().enumerate() {
        let m = Module::new(release);
        for leaf in [58, 59] {
            let r = regs(TDMR | 1, TDMR + (2 << 20), TDMR + (2 << 20) + 4096, 0);
            assert_eq!(m.call(leaf, r), (INVALID, r), "{release}");
        }
        let (m, _) = before_config(release, 46, true);
        if i < at("1.5.20") {
            continue;
        }
        let tdmr = TdmrSpec {
            base: TDMR,
            size: 1 << 30,
            reserved: vec![(0x0100_0000, 4096)],
        };
        let m2 = Instrumented::new(Host::new(Host::default_config()), Interpreter);
        assert!(m2.set_version(release));
        drop(m);
        bring_up_with(&m2, &tdmr, 16, true);
        let call = |leaf: u64, mut r: Regs| (m2.seamcall(0, leaf, &mut r), r);
        let range = TDMR | 1;
        // A reserved page is no page for a pair.
        let reserved = TDMR + 0x0100_0000;
        let r = regs(range, reserved, TDMR + 4096, 0);
        assert_eq!(call(58, r), (0xC000_0303_0000_0002, r), "{release}");
        let r = regs(range, TDMR, TDMR + 4096, 0);
        assert_eq!(call(58, r), (0, r), "{release}");
        let (rax, r) = call(59, regs(range, 0, 0, 0));
        assert_eq!((rax, r.rdx, r.r8), (0, TDMR, TDMR + 4096), "{release}");
    }
}

#[test]
fn rdmd_of_a_dynamic_pamt_takes_a_size() {
    let v = Vmm::of_version(Interpreter, None, Some("1.5.24"), true);
    let page = v.page();
    v.ok(9, regs(page, 20, 0, 0));
    let ask = |rcx: u64| {
        let (rax, r) = v.call(24, regs(rcx, 2, 3, 4));
        (rax, [r.rcx, r.rdx, r.r8, r.r9, r.r10, r.r11])
    };
    let node = v.ok(24, regs(TDMR | 1, 0, 0, 0));
    let pair = [node.r10, node.r11];
    // A TDR, the range that it is in, and the 1G page that that is in.
    assert_eq!(ask(page), (0, [4, 0, 0, 0, 0, 0]));
    let whole = (1 << 63) | 15;
    assert_eq!(ask(TDMR | 1), (0, [whole, 0, 1, 0, pair[0], pair[1]]));
    assert_eq!(ask(TDMR | 2), (0, [0, 0, 2, 0, 0, 0]));
    // The pages of the pair, and a range that has none.
    for pa in pair {
        assert_eq!(ask(pa), (0, [15, 0, 0, 0, 0, 0]));
    }
    let free = TDMR + (128 << 20);
    for rcx in [free, free + 4096, free | 1] {
        assert_eq!(ask(rcx), (0, [0, 0, 1, 0, 0, 0]), "{rcx:#x}");
    }
    for rcx in [TDMR | 3, TDMR + 4096 + 1, TDMR + (2 << 20) + 2, TDMR | 8] {
        assert_eq!(ask(rcx).0, INVALID | 1, "{rcx:#x}");
    }
}

#[test]
fn tdmr_init_of_a_dynamic_pamt_clears_the_bitmap_and_no_more() {
    let m = Instrumented::new(Host::new(Host::default_config()), Interpreter);
    assert!(m.set_version("1.5.24"));
    let tdmr = TdmrSpec {
        base: TDMR,
        size: 1 << 30,
        reserved: vec![(0x0100_0000, 8192)],
    };
    // Bitmap, 2M entries and the page with the 1G entry.
    let (bitmap, end) = (32 << 10, (32 << 10) + (8 << 10) + 4096);
    for at in (layout::PAMT..layout::PAMT + 2 * end).step_by(8) {
        m.platform().write(at, u64::MAX);
    }
    bring_up_with(&m, &tdmr, 16, true);
    for at in (0..bitmap).step_by(8) {
        // Bits 1000h and 1001h, which are in word 40h.
        let want = if at == 0x40 * 8 { 3 } else { 0 };
        assert_eq!(m.platform().read(layout::PAMT + at), want, "{at:#x}");
    }
    for at in (end..2 * end).step_by(8) {
        assert_eq!(m.platform().read(layout::PAMT + at), u64::MAX, "{at:#x}");
    }
}

#[test]
fn x2apic_identifiers() {
    for (i, release) in RELEASES.iter().enumerate().skip(1) {
        let mut m = Module::new(release);
        let (_, vcpus) = m.td(4);
        let init = |vcpu: usize, id: u64| m.call(VP_INIT_1, regs(vcpus[vcpu], 0, id, 0)).0;
        assert_eq!(init(0, 1 << 32), INVALID | 8, "{release}");
        assert_eq!(init(0, 7), 0, "{release}");
        // A number that an index has as well is free, and so is 0.
        assert_eq!(init(1, 7), 0xC000_0621_0000_0007, "{release}");
        assert_eq!(init(1, 0xFFFF_FFFF), 0, "{release}");
        assert_eq!(init(2, 0xFFFF_FFFF), 0xC000_0621_FFFF_FFFF, "{release}");
        // Four may be: the two that were refused count until 1.5.09.
        let full = i < at("1.5.09");
        let want = if full { 0xC000_0705_0000_0000 } else { 0 };
        assert_eq!(init(2, 0), want, "{release}");
        assert_eq!(init(3, 1), want, "{release}");
        // It is none of a vCPU's that is to be initialised any more.
        let state = u64::from(i >= at("1.5.16"));
        assert_eq!(init(0, 9), 0xC000_0700_0000_0000 | state, "{release}");
        let (rax, _) = m.call(4, regs(m.next + 4096, vcpus[0], 0, 0));
        assert_eq!(rax, 0xC000_0700_0000_0000 | state, "{release}");
    }
}

#[test]
fn states_in_the_details() {
    for (i, release) in RELEASES.iter().enumerate() {
        let mut m = Module::new(release);
        let (tdr, vcpus) = m.td(1);
        m.ok(22, regs(vcpus[0], 0, 0, 0));
        let state = |n: u64| if i >= at("1.5.20") { n } else { 0 };
        let wrong = 0xC000_0608_0000_0000;
        let enter = m.call(0, regs(vcpus[0], 0, 0, 0)).0;
        assert_eq!(enter, wrong | state(1), "{release}");
        m.ok(17, regs(tdr, 0, 0, 0));
        let init = m.call(21, regs(tdr, layout::TD_PARAMS, 0, 0)).0;
        assert_eq!(init, wrong | state(2), "{release}");
    }
}

#[test]
fn rdmd_of_a_static_pamt_takes_no_size() {
    for (i, release) in RELEASES.iter().enumerate() {
        let m = Module::new(release);
        let ask = |rcx: u64| m.call(24, regs(rcx, 2, 3, 4));
        assert_eq!(ask(TDMR).0, 0, "{release}");
        for rcx in [TDMR | 1, TDMR | 2, TDMR | 8, TDMR | (1 << 52)] {
            let (rax, r) = ask(rcx);
            assert_eq!(rax, INVALID | 1, "{rcx:#x} of {release}");
            assert_eq!((r.r10, r.r11), (0, 0), "{rcx:#x} of {release}");
        }
        // Before, that was for whole pages only.
        let (rax, _) = ask(TDMR | 4096 | 1);
        assert_eq!(rax, INVALID | 1, "{i}");
    }
}
