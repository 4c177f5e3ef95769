// SPDX-License-Identifier: GPL-2.0

//! What a Linux guest asks of the module: MSRs, CPUID, its topology, measurements, NMIs.

use sha2::{Digest, Sha384};
use tdx_emu_host::driver::{Driver, End};
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::module::{GuestExit, Inject};
use tdx_emu_host::vmm::{regs, Td, Vmm};

const INVALID: u64 = 0xC000_0100_0000_0000;
const SEPT_VE_DISABLE: u64 = 1 << 28;
const LP: u32 = 1;
const DATA: u64 = 0x1000;
const GP: Inject = Inject::Exception(13, Some(0));

const CONFIG_FLAGS: u64 = 0x1110_0003_0000_0016;
const TD_CTLS: u64 = 0x1110_0003_0000_0017;
const TOPOLOGY_ENUM_CONFIGURED: u64 = 0x9100_0000_0000_0019;
const PEND_NMI: u64 = 0x2000_0000_0000_000B;

const VEINFO_GET: u64 = 3;
const VM_RD: u64 = 7;
const VM_WR: u64 = 8;

/// A finalized TD with a vCPU that is in the guest.
fn guest(v: &Vmm<Interpreter>) -> (Td, Driver<'_>) {
    let mut td = v.create(20, SEPT_VE_DISABLE);
    v.add_vcpu(&mut td, LP, 0);
    v.add_page(&td, DATA, &[7; 4096]);
    v.ok(17, regs(td.tdr, 0, 0, 0));
    let mut d = Driver::new(&v.module, td.tdr);
    assert_eq!(d.call(LP, 0, regs(td.vcpus[0][0], 0, 0, 0)), End::Entered);
    (td, d)
}

fn instruction(reason: u32) -> GuestExit {
    GuestExit::Instruction {
        reason,
        qualification: 0,
        len: 2,
        info: 0,
    }
}

/// RAX, RCX, RDX, R8, R9 of a TDCALL; RAX and R8 that it returns.
fn tdcall(d: &mut Driver<'_>, [rax, rcx, rdx, r8, r9]: [u64; 5]) -> (u64, u64) {
    let (_, r) = d.exit(LP, GuestExit::Tdcall { user: false }, |r| {
        (r.gpr[0], r.gpr[1], r.gpr[2], r.gpr[8], r.gpr[9]) = (rax, rcx, rdx, r8, r9);
    });
    (r.gpr[0], r.gpr[8])
}

#[derive(Debug, PartialEq, Eq)]
enum Msr {
    Value(u64),
    Gp,
    Ve,
}

/// An instruction that is complete moves RIP; a #VE is read, so that the next can come.
fn done(d: &mut Driver<'_>, inject: Inject, moved: bool) -> Result<(), Msr> {
    assert_eq!(inject == Inject::None, moved);
    match inject {
        Inject::None => Ok(()),
        GP => Err(Msr::Gp),
        Inject::Ve => {
            assert_eq!(tdcall(d, [VEINFO_GET, 0, 0, 0, 0]).0, 0);
            Err(Msr::Ve)
        }
        other => panic!("{other:?}"),
    }
}

fn rdmsr(d: &mut Driver<'_>, msr: u64) -> Msr {
    let (inject, r) = d.exit(LP, instruction(31), |r| {
        (r.rip, r.gpr[1]) = (0x100, msr);
        (r.gpr[0], r.gpr[2]) = (!0, !0);
    });
    done(d, inject, r.rip == 0x102).map_or_else(|e| e, |()| Msr::Value(r.gpr[0] | r.gpr[2] << 32))
}

fn wrmsr(d: &mut Driver<'_>, msr: u64, value: u64) -> Result<(), Msr> {
    let (inject, r) = d.exit(LP, instruction(32), |r| {
        (r.rip, r.gpr[1]) = (0x100, msr);
        (r.gpr[0], r.gpr[2]) = (value & 0xFFFF_FFFF, value >> 32);
    });
    done(d, inject, r.rip == 0x102)
}

/// CPUID; `None` if it causes #VE.
fn cpuid(d: &mut Driver<'_>, leaf: u64, sub: u64, cr4: u64, user: bool) -> Option<[u64; 4]> {
    let (inject, r) = d.exit(LP, instruction(10), |r| {
        (r.rip, r.gpr[0], r.gpr[1]) = (0x100, leaf, sub);
        (r.cr4, r.user) = (cr4, user);
    });
    done(d, inject, r.rip == 0x102).ok()?;
    Some([r.gpr[0], r.gpr[3], r.gpr[1], r.gpr[2]])
}

#[test]
fn msrs_are_answered_refused_or_left_to_the_vmm() {
    let v = Vmm::new(Interpreter);
    let (_td, mut d) = guest(&v);
    let d = &mut d;
    // APIC_BASE in x2APIC mode, FEATURE_CONTROL locked, MISC_ENABLE without BTS and PEBS.
    for (msr, value) in [(0x1B, 0xFEE0_0D00), (0x3A, 1), (0x1A0, 0x1801)] {
        assert_eq!(rdmsr(d, msr), Msr::Value(value), "{msr:x}");
        assert_eq!(wrmsr(d, msr, value), Err(Msr::Ve), "{msr:x}");
    }
    // SPEC_CTRL and DEBUGCTL keep the bits that exist.
    for (msr, good, bad) in [(0x48, 5, 8), (0x1D9, 2, 1)] {
        assert_eq!(rdmsr(d, msr), Msr::Value(0));
        assert_eq!(wrmsr(d, msr, bad), Err(Msr::Gp));
        assert_eq!(wrmsr(d, msr, good), Ok(()));
        assert_eq!(rdmsr(d, msr), Msr::Value(good));
    }
    // Commands are written only.
    for msr in [0x49, 0x10B] {
        assert_eq!(wrmsr(d, msr, 1), Ok(()));
        assert_eq!(wrmsr(d, msr, 2), Err(Msr::Gp));
        assert_eq!(rdmsr(d, msr), Msr::Gp);
    }
    // No VMX, no SGX, no performance monitoring, no CET.
    for msr in [0x480, 0x491, 0x8C, 0xC1, 0x186, 0x38F, 0x600, 0x6A0] {
        assert_eq!(rdmsr(d, msr), Msr::Gp, "{msr:x}");
        assert_eq!(wrmsr(d, msr, 0), Err(Msr::Gp), "{msr:x}");
    }
    // TSC_DEADLINE, x2APIC ICR, MTRRs, machine check, unknown ones: for the VMM.
    for msr in [0x6E0, 0x830, 0xFE, 0x179, 0xC000_0083, 0x4000_0000] {
        assert_eq!(rdmsr(d, msr), Msr::Ve, "{msr:x}");
        assert_eq!(wrmsr(d, msr, 0), Err(Msr::Ve), "{msr:x}");
    }
}

#[test]
fn xss_holds_what_xfam_allows() {
    let v = Vmm::new(Interpreter);
    let (td, mut d) = guest(&v);
    let d = &mut d;
    assert_eq!(wrmsr(d, 0xDA0, 0), Ok(()));
    assert_eq!(wrmsr(d, 0xDA0, 1 << 11), Err(Msr::Gp));
    // XFAM with CET: word 10 of the TDCS.
    v.host().write(td.tdcx[0] + 8 * 10, 3 | (3 << 11));
    assert_eq!(wrmsr(d, 0xDA0, 1 << 11), Ok(()));
    assert_eq!(rdmsr(d, 0xDA0), Msr::Value(1 << 11));
    // User components are XCR0's.
    assert_eq!(wrmsr(d, 0xDA0, 1), Err(Msr::Gp));
}

#[test]
fn cpuid_follows_control_registers() {
    let v = Vmm::new(Interpreter);
    let (td, mut d) = guest(&v);
    let d = &mut d;
    const OSXSAVE: u64 = 1 << 27;
    const OSPKE: u64 = 1 << 4;
    assert_eq!(cpuid(d, 1, 0, 0, false).unwrap()[2] & OSXSAVE, 0);
    assert_ne!(cpuid(d, 1, 0, 1 << 18, false).unwrap()[2] & OSXSAVE, 0);
    assert_eq!(cpuid(d, 7, 0, 0, false).unwrap()[2] & OSPKE, 0);
    assert_ne!(cpuid(d, 7, 0, 1 << 22, false).unwrap()[2] & OSPKE, 0);
    // No performance monitoring, no debug store.
    let [_, _, c, dx] = cpuid(d, 1, 0, 0, false).unwrap();
    assert_eq!(
        (c & ((1 << 15) | (1 << 2) | (1 << 4)), dx & (1 << 21)),
        (0, 0)
    );
    assert_eq!(cpuid(d, 0xA, 0, 0, false).unwrap(), [0; 4]);

    // The XSAVE area grows with XCR0, up to what XFAM has.
    v.host().write(td.tdcx[0] + 8 * 10, 0x2E7);
    let xsetbv = |d: &mut Driver<'_>, value: u64| {
        d.exit(LP, instruction(55), |r| {
            (r.gpr[0], r.gpr[1], r.gpr[2]) = (value, 0, 0);
        })
        .0
    };
    for (xcr0, standard, compacted) in [
        (1, 576, 576),
        (3, 576, 576),
        (7, 832, 832),
        (0xE7, 2688, 2432),
        (0x2E7, 2696, 2440),
    ] {
        assert_eq!(xsetbv(d, xcr0), Inject::None);
        let [a, b, c, _] = cpuid(d, 0xD, 0, 0, false).unwrap();
        assert_eq!((a, b, c), (0x2E7, standard, 2696), "XCR0 {xcr0:x}");
        assert_eq!(cpuid(d, 0xD, 1, 0, false).unwrap()[1], compacted);
    }
    // AVX without SSE, AVX-512 without AVX, MPX: not possible.
    for bad in [5, 0xE3, 0x18 | 3, 0] {
        assert_eq!(xsetbv(d, bad), GP, "{bad:x}");
    }
}

#[test]
fn cpuid_can_be_left_to_the_guest() {
    let v = Vmm::new(Interpreter);
    let (_td, mut d) = guest(&v);
    let d = &mut d;
    // Outside of the tables: #VE.
    for leaf in [0x22, 0x4000_0000, 0x8000_0009] {
        assert_eq!(cpuid(d, leaf, 0, 0, false), None, "{leaf:x}");
    }
    assert_eq!(tdcall(d, [5, 4, 0, 0, 0]).0, INVALID | 1);
    for (when, kernel, user) in [
        (1, false, true),
        (2, true, false),
        (3, false, false),
        (0, true, true),
    ] {
        assert_eq!(tdcall(d, [5, when, 0, 0, 0]).0, 0);
        assert_eq!(cpuid(d, 0, 0, 0, false).is_some(), kernel, "{when}");
        assert_eq!(cpuid(d, 0, 0, 0, true).is_some(), user, "{when}");
    }
}

#[test]
fn topology_is_shown_on_request_if_the_host_named_all_vcpus() {
    let v = Vmm::new(Interpreter);
    let mut td = v.create(20, SEPT_VE_DISABLE);
    v.add_vcpu(&mut td, LP, 0);
    v.add_vcpu(&mut td, 2, 0);
    v.ok(17, regs(td.tdr, 0, 0, 0));
    let mut d = Driver::new(&v.module, td.tdr);
    assert_eq!(
        d.call(LP, 0, regs(td.vcpus[1][0], 0, 0, 0)),
        End::Host(0x8000_0701_0000_0000, regs(td.vcpus[1][0], 0, 0, 0))
    );
    assert_eq!(d.call(LP, 0, regs(td.vcpus[0][0], 0, 0, 0)), End::Entered);
    let d = &mut d;
    for leaf in [0xB, 0x1F] {
        assert_eq!(cpuid(d, leaf, 0, 0, false), None);
    }
    assert_eq!(rdmsr(d, 0x802), Msr::Ve);
    assert_eq!(
        tdcall(d, [VM_RD, 0, TOPOLOGY_ENUM_CONFIGURED, 0, 0]),
        (0, 1)
    );
    assert_eq!(tdcall(d, [VM_RD, 0, CONFIG_FLAGS, 0, 0]), (0, 4));
    // REDUCE_VE does not exist, pending #VE is not flexible.
    for bit in [1, 8] {
        assert_eq!(
            tdcall(d, [VM_WR, 0, TD_CTLS, !1 & bit, bit]).0,
            0xC000_0C03_0000_0002
        );
    }
    assert_eq!(tdcall(d, [VM_WR, 0, TD_CTLS, 2, 2]).0, 0);
    assert_eq!(tdcall(d, [VM_RD, 0, TD_CTLS, 0, 0]), (0, 3));
    for leaf in [0xB, 0x1F] {
        assert_eq!(cpuid(d, leaf, 0, 0, false), Some([0, 1, 0x100, 0]));
        assert_eq!(cpuid(d, leaf, 1, 0, false), Some([2, 4, 0x201, 0]));
    }
    assert_eq!(rdmsr(d, 0x802), Msr::Value(0));
}

#[test]
fn topology_is_not_shown_if_the_host_did_not() {
    let v = Vmm::new(Interpreter);
    let mut td = v.create(20, SEPT_VE_DISABLE);
    v.add_vcpu(&mut td, LP, 0);
    // A second vCPU with TDH.VP.INIT version 0.
    let pages: Vec<_> = (0..6).map(|_| v.page()).collect();
    v.ok(10, regs(pages[0], td.tdr, 0, 0));
    for &p in &pages[1..] {
        v.ok(4, regs(p, pages[0], 0, 0));
    }
    assert_eq!(v.call_on(2, 22, regs(pages[0], 0, 0, 0)).0, 0);
    v.ok(17, regs(td.tdr, 0, 0, 0));
    let mut d = Driver::new(&v.module, td.tdr);
    assert_eq!(d.call(LP, 0, regs(td.vcpus[0][0], 0, 0, 0)), End::Entered);
    assert_eq!(
        tdcall(&mut d, [VM_RD, 0, TOPOLOGY_ENUM_CONFIGURED, 0, 0]),
        (0, 0)
    );
    assert_eq!(
        tdcall(&mut d, [VM_WR, 0, TD_CTLS, 2, 2]).0,
        0xC000_0C03_0000_0002
    );
}

#[test]
fn rtmrs_are_hash_chains_and_in_the_report() {
    let v = Vmm::new(Interpreter);
    let (_td, mut d) = guest(&v);
    let d = &mut d;
    const EXTEND: u64 = 2;
    assert_eq!(tdcall(d, [EXTEND, DATA + 8, 0, 0, 0]).0, INVALID | 1);
    assert_eq!(tdcall(d, [EXTEND, DATA, 4, 0, 0]).0, INVALID | 2);
    assert_eq!(tdcall(d, [EXTEND, 0x7000_0000, 0, 0, 0]).0, INVALID | 1);
    let mut want = [[0u8; 48]; 4];
    for rtmr in [0usize, 3, 3] {
        assert_eq!(tdcall(d, [EXTEND, DATA + 64, rtmr as u64, 0, 0]).0, 0);
        let mut h = Sha384::new();
        h.update(want[rtmr]);
        h.update([7; 48]);
        want[rtmr].copy_from_slice(&h.finalize());
    }
    assert_eq!(tdcall(d, [4, DATA, DATA + 1024, 0, 0]).0, 0);
    let Some((0, raw)) = d.entry(DATA, 0) else {
        panic!("no page")
    };
    let report = (raw & 0x000F_FFFF_FFFF_F000) + 512;
    let got: Vec<u8> = (26..50)
        .flat_map(|w| v.host().read(report + 8 * w).to_le_bytes())
        .collect();
    assert_eq!(got, want.concat());
}

#[test]
fn an_nmi_waits_until_the_ve_information_is_read() {
    let v = Vmm::new(Interpreter);
    let (td, mut d) = guest(&v);
    // HLT causes #VE; meanwhile the host asks for an NMI, and the vCPU comes back in.
    let (inject, _) = d.exit(LP, instruction(12), |_| {});
    assert_eq!(inject, Inject::Ve);
    let interrupt = tdx_emu_host::driver::Does::Interrupt;
    assert!(matches!(d.guest(LP, interrupt, 0x100), End::Host(1, _)));
    v.ok(43, regs(td.vcpus[0][0], PEND_NMI, 1, 1));
    assert_eq!(d.call(LP, 0, regs(td.vcpus[0][0], 0, 0, 0)), End::Entered);
    assert_eq!(d.injected(LP), Inject::None);
    let get = |r: &mut tdx_emu_host::module::GuestRegs| r.gpr[0] = VEINFO_GET;
    let (inject, r) = d.exit(LP, GuestExit::Tdcall { user: false }, get);
    assert_eq!((inject, r.gpr[1]), (Inject::Nmi, 12));
    // Once.
    let (inject, _) = d.exit(LP, instruction(10), |r| r.gpr[0] = 0);
    assert_eq!(inject, Inject::None);
}
