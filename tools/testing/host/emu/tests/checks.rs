// SPDX-License-Identifier: GPL-2.0

//! The invariants that the emulator checks after its calls: a TD's life breaks none, and
//! each kind of damage is found.

use tdx_emu_host::host::layout;
use tdx_emu_host::instruments::{CheckLevel, StatName};
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::module::{versions, Regs};
use tdx_emu_host::vmm::{regs, Td, Vmm, TDMR};

const GPA: u64 = 0x4000_0000;
const CHUNK: u64 = TDMR + (128 << 20);
/// TDR word CHLDCNT.
const CHLDCNT: u64 = 2 * 8;
/// TDCS words of the locks.
const LOCKS: [u64; 3] = [8, 16, 24];

fn errors(v: &Vmm<Interpreter>) -> u64 {
    let mut n = 0;
    v.module.stats().each(|name: StatName, value| {
        if name.to_string() == "invariant_errors" {
            n = value;
        }
    });
    n
}

fn watched() -> Vmm<Interpreter> {
    Vmm::checked(Interpreter, Some(CheckLevel::Everything))
}

/// A finalized TD with a 4K page at [`GPA`], a 2M page above it and a vCPU on LP 1.
fn td(v: &Vmm<Interpreter>) -> Td {
    let mut td = v.create(20, 1 << 28);
    v.add_vcpu(&mut td, 1, 0);
    v.build_tables(&td, GPA);
    v.ok(17, regs(td.tdr, 0, 0, 0));
    v.ok(6, regs(GPA, td.tdr, v.page(), 0));
    v.ok(6, regs((GPA + (2 << 20)) | 1, td.tdr, CHUNK, 0));
    td
}

fn pamt(pa: u64) -> u64 {
    layout::PAMT + ((pa - TDMR) >> 12) * 16
}

fn clean(v: &Vmm<Interpreter>) {
    assert_eq!(v.module.first_violation().map(|e| e.to_string()), None);
    assert_eq!(errors(v), 0);
    assert_eq!(v.module.audit(), Some(Ok(())));
}

#[test]
fn a_life_breaks_no_invariant() {
    for version in versions() {
        life(version, false);
    }
}

#[test]
fn a_life_with_a_dynamic_pamt_breaks_none() {
    for version in ["1.5.20", "1.5.24", "1.5.25"] {
        life(version, true);
    }
}

fn life(version: &str, dynamic: bool) {
    let v = Vmm::of_version(
        Interpreter,
        Some(CheckLevel::Everything),
        Some(version),
        dynamic,
    );
    let td = td(&v);
    let large = (GPA + (2 << 20)) | 1;
    let at = |gpa: u64| regs(gpa, td.tdr, 0, 0);
    let blocked = |gpa: u64| {
        v.ok(7, at(gpa));
        v.ok(38, regs(td.tdr, 0, 0, 0));
    };
    // Relocate, block and unblock, split and merge.
    blocked(GPA);
    let new = v.page();
    v.free(v.ok(5, regs(GPA, td.tdr, new, 0)).rcx);
    blocked(GPA);
    v.ok(39, at(GPA));
    blocked(large);
    // The pages for the pair, which a static PAMT does not need.
    let (r12, r13) = (CHUNK + (2 << 20), CHUNK + (4 << 20));
    let demote = regs(large, td.tdr, v.page(), 0);
    let demoted = v.ok(15, Regs { r12, r13, ..demote });
    assert_eq!((demoted.r12, demoted.r13), (r12, r13));
    for i in 0..512 {
        v.ok(25, at((large & !1) + i * 4096));
    }
    blocked(large);
    let promoted = v.ok(23, at(large));
    let pair = if dynamic { (r12, r13) } else { (0, 0) };
    assert_eq!((promoted.r12, promoted.r13), pair);
    v.free(promoted.rcx);
    blocked(large);
    assert_eq!(v.ok(29, at(large)).rcx, CHUNK);
    blocked(GPA);
    v.free(v.ok(29, at(GPA)).rcx);
    // Refusals of every kind leave everything as it is.
    for leaf in [2, 3, 5, 6, 15, 16, 17, 23, 25, 29, 30, 38, 39] {
        for rcx in [GPA, GPA | 1, GPA | 2, 1 << 47, 7] {
            let mut r = regs(rcx, td.tdr, CHUNK + 8, 0);
            if leaf == 38 {
                r.rcx = 0x1000;
            }
            v.call(leaf, r);
        }
    }
    let table = GPA | 1;
    blocked(table);
    let page = v.ok(30, at(table)).rcx;
    td.sept.lock().unwrap().retain(|p| *p != page);
    v.free(page);
    // While the fault injection holds a lock, the rest is checked.
    v.module.inject().load(b"hold tree ex for=2").unwrap();
    v.call(25, at(GPA));
    v.call(25, at(GPA));
    v.module.inject().load(b"").unwrap();
    clean(&v);
    v.destroy(td, &[Some(1)]);
    clean(&v);
}

#[test]
fn a_pair_that_counts_wrongly_is_found() {
    let checks = Some(CheckLevel::Everything);
    let v = Vmm::of_version(Interpreter, checks, Some("1.5.24"), true);
    let td = td(&v);
    clean(&v);
    // The 2M entries follow the bitmap of the TDMR of 1 GiB.
    let in_use = layout::PAMT + (1 << 30) / 4096 / 8 + 8;
    v.host().write(in_use, v.host().read(in_use) + 1);
    v.call(25, regs(GPA, td.tdr, 0, 0));
    let found = v.module.first_violation().expect("a violation").to_string();
    assert!(found.contains("a pair of PAMT pages counts"), "{found}");
}

/// Changes a word by `f`, makes a call about [`GPA`] and returns what was found.
fn damage(f: impl Fn(&Vmm<Interpreter>, &Td) -> (u64, u64)) -> String {
    let v = watched();
    let td = td(&v);
    clean(&v);
    let (word, value) = f(&v, &td);
    v.host().write(word, value);
    let (rax, _) = v.call(25, regs(GPA, td.tdr, 0, 0));
    assert_eq!((rax >> 32) & 0xFF00, 0, "SEPT.RD returned {rax:#x}");
    assert!(errors(&v) > 0, "nothing found");
    let found = v.module.first_violation().expect("a violation");
    assert_eq!((found.tdr, found.leaf), (td.tdr, 25), "{found}");
    // The audit finds it as well, and the first one stays the one remembered.
    let audit = v.module.audit().expect("nobody disturbs").unwrap_err();
    assert_eq!(audit.leaf, 0xFFFF);
    assert_eq!(v.module.first_violation(), Some(found));
    let text = found.to_string();
    text.split(": at").next().unwrap().to_string()
}

#[test]
fn damage_is_found_and_named() {
    let entry = |td: &Td| td.sept.lock().unwrap()[2] + 8 * ((GPA >> 12) & 511);
    // The last table; entry 5 of it is free.
    let other = |td: &Td| td.sept.lock().unwrap()[2] + 8 * 5;
    let old = |v: &Vmm<Interpreter>, word: u64| (word, v.host().read(word));
    let found = [
        damage(|v, td| (td.tdr + CHLDCNT, v.host().read(td.tdr + CHLDCNT) + 1)),
        damage(|_, td| (other(td), 0x80E0_0000_0000_0000 | (1 << 58))),
        damage(|_, td| (other(td), 0x80A0_0000_0000_0000)),
        // The page of another entry, a second time.
        damage(|v, td| (other(td), v.host().read(entry(td)))),
        // A free page.
        damage(|v, td| (other(td), v.page() | 0x8100_0000_0000_00F0)),
        damage(|_, td| (other(td), td.tdr | 0x8000_0000_0000_0007)),
        // A page of the TD that no entry refers to any more.
        damage(|_, td| (entry(td), 0x80E0_0000_0000_0000)),
        // Part of the large page with an owner of its own.
        damage(|_, td| (pamt(CHUNK + 0x3000), (3 << 16) | (td.tdr >> 12 << 24))),
        // A page whose owner is no TD.
        damage(|v, td| {
            let page = v.host().read(entry(td)) & 0x000F_FFFF_FFFF_F000;
            (pamt(page), (3 << 16) | ((td.tdr + 0x1000) >> 12 << 24))
        }),
        damage(|v, td| {
            let (word, raw) = old(v, entry(td));
            (word, raw | 7)
        }),
    ];
    let text = found.iter().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(
        text,
        [
            "CHLDCNT is not the number of pages that the PAMT gives to the TD",
            "an S-EPT entry has bits that its state does not have",
            "an S-EPT entry has no state",
            "the pages in the S-EPT are not those that the PAMT gives to the TD",
            "the PAMT entry of a mapped page has another type, size or owner",
            "an S-EPT entry of level 0 refers to a table",
            "the pages in the S-EPT are not those that the PAMT gives to the TD",
            "a part of a large page is owned as well",
            "the PAMT entry of a mapped page has another type, size or owner",
            "an S-EPT entry has bits that its state does not have",
        ]
    );
}

/// Waits until a call has met the one rule, which delays it.
fn until_delayed(v: &Vmm<Interpreter>) {
    while !v.module.inject().to_string().contains("hits=1") {
        std::thread::yield_now();
    }
}

/// What a call leaves locked shows in the words that it found unlocked. The fault
/// injection stands in for such a call: it lets go of nothing here.
#[test]
fn locks_that_stay_are_found() {
    for lock in LOCKS {
        let v = watched();
        let td = td(&v);
        let tdcs = td.tdcx[0];
        // The call finds the lock free; another processor takes it meanwhile and goes away.
        v.module
            .inject()
            .load(b"delay tdh_mem_sept_rd 1 300000us")
            .unwrap();
        std::thread::scope(|s| {
            let call = s.spawn(|| v.call(25, regs(GPA, td.tdr, 0, 0)).0);
            until_delayed(&v);
            v.host().write(tdcs + lock, v.host().read(tdcs + lock) + 4);
            v.module.inject().load(b"").unwrap();
            assert_eq!(call.join().unwrap(), 0);
        });
        let found = v.module.first_violation().expect("a violation").to_string();
        assert!(
            found.starts_with("a call left a lock of the TD held"),
            "{found}"
        );
    }
}

#[test]
fn nothing_is_checked_unless_asked_for() {
    let v = Vmm::checked(Interpreter, Some(CheckLevel::Off));
    let td = td(&v);
    let word = td.tdr + CHLDCNT;
    v.host().write(word, v.host().read(word) + 1);
    v.ok(25, regs(GPA, td.tdr, 0, 0));
    assert_eq!((errors(&v), v.module.first_violation()), (0, None));
    assert!(v.module.audit().unwrap().is_err());
}

/// A lock bit that a call leaves in the entry it named, or in the table below it.
#[test]
fn entries_that_stay_locked_are_found() {
    for (at, slot) in [(GPA, (GPA >> 12) & 511), (GPA | 1, 7)] {
        let v = watched();
        let td = td(&v);
        let word = td.sept.lock().unwrap()[2] + 8 * slot;
        v.module
            .inject()
            .load(b"delay tdh_mem_sept_rd 1 300000us")
            .unwrap();
        std::thread::scope(|s| {
            let call = s.spawn(|| v.call(25, regs(at, td.tdr, 0, 0)).0);
            until_delayed(&v);
            // The next entry's lock for the one that the call itself gives back.
            v.module.inject().load(b"").unwrap();
            let word = word + 8 * u64::from(at == GPA);
            v.host().write(word, v.host().read(word) | (1 << 11));
            assert_eq!(call.join().unwrap(), 0);
        });
        let found = v.module.first_violation().map(|f| f.to_string());
        // Another entry of the same table is none of the call's.
        assert_eq!(found.is_some(), at != GPA, "{found:?}");
        if let Some(text) = found {
            assert!(
                text.starts_with("a call left an S-EPT entry locked"),
                "{text}"
            );
        }
    }
    // One that was locked before stays somebody else's.
    let v = watched();
    let td = td(&v);
    let word = td.sept.lock().unwrap()[2] + 8 * ((GPA >> 12) & 511);
    v.host().write(word, v.host().read(word) | (1 << 11));
    let (rax, _) = v.call(25, regs(GPA, td.tdr, 0, 0));
    assert_eq!(rax, 0x8000_0200_0000_0001);
    clean(&v);
}
