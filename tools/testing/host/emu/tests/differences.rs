// SPDX-License-Identifier: GPL-2.0

//! What the emulator answers where it does not model the TDX module: the table in
//! Documentation/testing.rst, for what a SEAMCALL answers.

use tdx_emu_host::driver::{Does, Driver, End};
use tdx_emu_host::host::{layout, td_params};
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::vmm::{regs, Vmm};

const INVALID: u64 = 0xC000_0100_0000_0000;

/// A call of a leaf that there is not leaves the registers alone.
fn absent(v: &Vmm<Interpreter>, leaves: impl IntoIterator<Item = u64>) {
    for leaf in leaves {
        let r = regs(1, 2, 3, 4);
        assert_eq!(v.call(leaf, r), (INVALID, r), "leaf {leaf}");
    }
}

/// TDH.MNG.INIT of a new TD with a word of TD_PARAMS changed.
fn init_with(v: &Vmm<Interpreter>, hkid: u64, word: u64, value: u64) -> u64 {
    let tdr = v.page();
    v.ok(9, regs(tdr, hkid, 0, 0));
    v.ok(8, regs(tdr, 0, 0, 0));
    for _ in 0..6 {
        v.ok(1, regs(v.page(), tdr, 0, 0));
    }
    td_params(v.host(), 0, 3, 4);
    v.host().write(layout::TD_PARAMS + 8 * word, value);
    v.call(21, regs(tdr, layout::TD_PARAMS, 0, 0)).0
}

#[test]
fn l2_vms() {
    let v = Vmm::new(Interpreter);
    assert_eq!(init_with(&v, 21, 2, 1 | (1 << 16)), INVALID | 71);
    let mut td = v.create(20, 0);
    v.add_vcpu(&mut td, 1, 0);
    let page = v.page();
    // SEPT.ADD with a page for an L2 VM, SEPT.RD of L2 attributes.
    let (rax, _) = v.call(3 | (1 << 16), regs(3, td.tdr, page, page));
    assert_eq!(rax, INVALID | 9);
    assert_eq!(v.call(25, regs(3, td.tdr | 1, 0, 0)).0, INVALID | 2);
    // VP.ENTER that resumes an L1.
    v.ok(17, regs(td.tdr, 0, 0, 0));
    let (rax, _) = v.call_on(1, 0, regs(td.vcpus[0][0] | (1 << 53), 0, 0, 0));
    assert_eq!(rax, INVALID | 1);
}

#[test]
fn migration_and_service_tds() {
    let v = Vmm::new(Interpreter);
    // EXPORT.*, IMPORT.*, MIG.STREAM.CREATE, SERVTD.*
    absent(&v, (64..76).filter(|&l| l != 69));
    absent(&v, (80..90).chain([96, 48, 49]));
    assert_eq!(init_with(&v, 21, 0, 1 << 29), INVALID | 64);
}

#[test]
fn debug_tds() {
    let v = Vmm::new(Interpreter);
    // MEM.RD, MEM.WR
    absent(&v, [12, 14]);
    assert_eq!(init_with(&v, 21, 0, 1), INVALID | 64);
}

#[test]
fn leaves_of_other_versions() {
    let v = Vmm::new(Interpreter);
    // SYS.INFO, SYS.RDALL, MEM.SEPT.WR, SYS.SHUTDOWN, SYS.UPDATE; PAMT.ADD, PAMT.REMOVE
    absent(&v, [32, 37, 42, 52, 53, 58, 59]);
    // 1 GiB comes by PROMOTE only.
    let td = v.create(20, 0);
    assert_eq!(v.call(6, regs(2, td.tdr, 1 << 30, 0)).0, INVALID | 1);
}

#[test]
fn hkids_are_stripped() {
    let v = Vmm::new(Interpreter);
    let page = v.page();
    for hkid in [0, 16, 63] {
        v.ok(41, regs(page | (hkid << 46), 0, 0, 0));
    }
    // What the host wrote into a page of a TD is there: no integrity, no encryption.
    let td = v.create(20, 0);
    v.add_page(&td, 0x1000, &[7; 4096]);
    let pa = v.ok(25, regs(0x1000, td.tdr, 0, 0)).rcx & 0x000F_FFFF_FFFF_F000;
    assert_eq!(v.host().read(pa), 0x0707_0707_0707_0707);
}

#[test]
fn single_steps_are_not_filtered() {
    let v = Vmm::new(Interpreter);
    let mut td = v.create(20, 0);
    v.add_vcpu(&mut td, 1, 0);
    v.ok(17, regs(td.tdr, 0, 0, 0));
    let mut d = Driver::new(&v.module, td.tdr);
    // An interrupt after each instruction, and each time the host gets the CPU at once.
    for step in 0..64 {
        let end = d.call(1, 0, regs(td.vcpus[0][0], 0, 0, 0));
        assert_eq!(end, End::Entered);
        let end = d.guest(1, Does::Interrupt, 0xFFFF_FFF0 + step);
        assert!(matches!(end, End::Host(1, _)), "{end:?}");
    }
}
