// SPDX-License-Identifier: GPL-2.0

//! Threads on one TD: host leaves and guest accepts collide on every lock, and
//! afterwards everything agrees.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tdx_emu_host::asm::*;
use tdx_emu_host::check::{check_td, check_unlocked};
use tdx_emu_host::instruments::StatName;
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::module::Regs;
use tdx_emu_host::vmm::{regs, Td, Vmm, TDMR};

const RESET: u64 = 0xFFFF_F000;
const CODE: u64 = 0x1000;
const DATA: u64 = 0x80_0000;
const PAGES: u64 = 24;
/// Operand of a busy S-EPT tree; a busy entry is operand 1.
const SEPT_TREE: u64 = 0x92;

struct Rng(u64);
impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// Accepts, writes and checks all data pages for ever, one VMCALL a round. A page that
/// was taken away and came back reads as zero.
fn program() -> Asm {
    let mut a = Asm::new(CODE);
    let handler = a.setve_later();
    let round = a.here();
    a.movi(R14, DATA).movi(RBP, 0);
    let page = a.here();
    a.mov(RCX, R14)
        .tdcall(6)
        .store(R14, R14, 0)
        .load(R13, R14, 0);
    let good = a.jeq_later(R13, R14);
    let zero = a.jeq_later(R13, RBP);
    a.vmcall(0xBAD);
    a.land(good).land(zero);
    a.addi(R14, R14, 4096)
        .movi(R13, DATA + PAGES * 4096)
        .jne(R14, R13, page);
    a.vmcall(1).jmp(round);
    a.land(handler);
    a.tdcall(3).mov(RCX, R9).tdcall(6).verip(RDX).retve(RDX, 0);
    a
}

fn aug(v: &Vmm<Interpreter>, td: &Td, gpa: u64) -> u64 {
    let page = v.page();
    let rax = v.call(6, regs(gpa, td.tdr, page, 0)).0;
    if rax != 0 {
        v.free(page);
    }
    rax
}

/// A vCPU as KVM runs it: gives pages where the guest wants them. Counts the rounds.
fn run_vcpu(
    v: &Vmm<Interpreter>,
    td: &Td,
    (lp, tdvpr): (u32, u64),
    stop: &AtomicBool,
    rounds: &AtomicU64,
) {
    while !stop.load(SeqCst) {
        let (rax, out) = v.call_on(
            lp,
            0,
            Regs {
                rcx: tdvpr,
                ..Regs::default()
            },
        );
        match rax {
            77 => {
                assert_eq!(
                    out.r11, 1,
                    "the guest read {:#x} at {:#x}",
                    out.r13, out.r14
                );
                rounds.fetch_add(1, SeqCst);
            }
            48 => {
                // Not back into the guest before the page is there: a seventh fault at
                // one RIP would have it wait for the page to be accepted first.
                while !stop.load(SeqCst) && aug(v, td, out.r8) >> 32 == 0x8000_0200 {
                    std::thread::yield_now();
                }
            }
            6 => {}
            0x9000_0205_0000_0000 => {}
            _ if rax >> 32 == 0x8000_0200 => std::thread::yield_now(),
            _ => panic!("VP.ENTER returned {rax:#x}"),
        }
    }
}

/// Host calls at random. Counts the busy answers by operand.
fn run_host(
    v: &Vmm<Interpreter>,
    td: &Td,
    seed: u64,
    calls: u64,
    busy: &Mutex<BTreeMap<u64, u64>>,
    rounds: &AtomicU64,
) {
    // The guests get round once before the host disturbs them: a page that zero-step
    // mitigation waits for never comes back once it was taken away and given anew.
    let start = Instant::now();
    while rounds.load(SeqCst) == 0 && start.elapsed() < Duration::from_secs(20) {
        std::thread::yield_now();
    }
    let mut rng = Rng(seed);
    for i in 0..calls.saturating_mul(100) {
        // At least `calls`, and more until collisions on entry and tree were seen.
        let seen = |operand| busy.lock().unwrap().contains_key(&operand);
        if i >= calls && i % 64 == 0 && seen(1) && seen(SEPT_TREE) {
            return;
        }
        let gpa = DATA + rng.below(PAGES) * 4096;
        let rax = match rng.below(8) {
            0 => aug(v, td, gpa),
            1 | 2 => v.call(7, regs(gpa, td.tdr, 0, 0)).0,
            3 => v.call(38, regs(td.tdr, 0, 0, 0)).0,
            4 => v.call(39, regs(gpa, td.tdr, 0, 0)).0,
            5 => v.call(25, regs(gpa, td.tdr, 0, 0)).0,
            6 => {
                let page = v.page();
                let (rax, out) = v.call(5, regs(gpa, td.tdr, page, 0));
                v.free(if rax == 0 { out.rcx } else { page });
                rax
            }
            _ => {
                let (rax, out) = v.call(29, regs(gpa, td.tdr, 0, 0));
                if rax == 0 {
                    v.free(out.rcx);
                }
                rax
            }
        };
        if rax >> 32 == 0x8000_0200 {
            *busy.lock().unwrap().entry(rax & 0xFFFF_FFFF).or_default() += 1;
        }
        assert_ne!(rax >> 32, 0xC000_0506, "the module shut itself down");
    }
}

fn stat(v: &Vmm<Interpreter>, name: &str) -> u64 {
    let mut found = 0;
    v.module.stats().each(|n: StatName, value| {
        if n.to_string() == name {
            found = value;
        }
    });
    found
}

#[test]
fn calls_and_guests_at_once() {
    let calls: u64 = std::env::var("STRESS_CALLS").map_or(60_000, |s| s.parse().unwrap());
    let v = Vmm::new(Interpreter);
    let mut td = v.create(20, 0);
    v.add_vcpu(&mut td, 1, 0);
    v.add_vcpu(&mut td, 2, 0);
    let mut a = Asm::new(RESET + 0xFF0);
    a.jmp(CODE);
    let mut reset = vec![0; 0xFF0];
    reset.extend(a.bytes());
    v.add_page(&td, RESET, &reset);
    v.add_page(&td, CODE, program().bytes());
    v.ok(17, regs(td.tdr, 0, 0, 0));
    v.build_tables(&td, DATA);

    let stop = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    let busy = Mutex::new(BTreeMap::new());
    std::thread::scope(|s| {
        let (v, td, stop, busy, rounds) = (&v, &td, &stop, &busy, &rounds);
        for i in 0..2 {
            let tdvpr = td.vcpus[i][0];
            s.spawn(move || {
                run_vcpu(v, td, (i as u32 + 1, tdvpr), stop, rounds);
            });
        }
        let hosts: Vec<_> = (0..2)
            .map(|i| s.spawn(move || run_host(v, td, 77 + i, calls / 2, busy, rounds)))
            .collect();
        let all: Vec<_> = hosts.into_iter().map(|h| h.join()).collect();
        stop.store(true, SeqCst);
        // No host call clears a left-over host priority any more: only an interrupt ends the
        // guest's attempts to accept that page.
        v.host().polls_left.store(0, SeqCst);
        assert!(all.iter().all(Result::is_ok));
    });
    let control = (td.tdcx.len() + td.vcpus.iter().map(Vec::len).sum::<usize>()) as u64;
    let census = check_td(&v.module, td.tdr, control).unwrap();
    check_unlocked(&v.module, TDMR, TDMR + (64 << 20)).unwrap();
    assert_eq!(stat(&v, "invariant_errors"), 0);
    assert_eq!(
        stat(&v, "leaf_present_transitions") - stat(&v, "leaf_removed"),
        census.leaves,
        "pages that came and went"
    );
    assert!(rounds.load(SeqCst) > 0, "the guests got nowhere");
    for operand in [1, SEPT_TREE] {
        assert!(
            busy.lock().unwrap().contains_key(&operand),
            "never busy: {operand:#x}"
        );
    }
    println!(
        "{census:?} rounds {rounds:?} busy {:x?}",
        busy.lock().unwrap()
    );

    // What is left goes the ordinary way.
    for gpa in (0..PAGES).map(|i| DATA + i * 4096).chain([RESET, CODE]) {
        v.call(7, regs(gpa, td.tdr, 0, 0));
        v.ok(38, regs(td.tdr, 0, 0, 0));
        let (rax, out) = v.call(29, regs(gpa, td.tdr, 0, 0));
        if rax == 0 {
            v.free(out.rcx);
        }
    }
    assert_eq!(check_td(&v.module, td.tdr, control).unwrap().leaves, 0);
    v.destroy(td, &[Some(1), Some(2)]);
    assert_eq!(stat(&v, "pamt_pages_owned"), 0);
}
