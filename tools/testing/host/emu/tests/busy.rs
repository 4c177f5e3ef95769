// SPDX-License-Identifier: GPL-2.0

//! Four threads make mixed calls on one TD, host leaves and guests that accept, and meet
//! each other on every lock of the module; the TD is in order whenever they pause.
//! TDX_EMU_CALLS sets the number of calls.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Mutex;

use tdx_emu_host::asm::*;
use tdx_emu_host::check::{check_td, check_unlocked};
use tdx_emu_host::host::layout;
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::module::Regs;
use tdx_emu_host::vmm::{regs, Td, Vmm, TDMR};

const RESET: u64 = 0xFFFF_F000;
const CODE: u64 = 0x1000;
const DATA: u64 = 0x80_0000;
const PAGES: u64 = 12;
/// Pages that the threads fight for.
const POOL: u64 = TDMR + (128 << 20);
const POOL_PAGES: u64 = 24;
const THREADS: u64 = 4;
/// HKID that two threads want for a TD of their own.
const OTHER_HKID: u64 = 30;
/// After so many calls of each thread the TD is looked at.
const PAUSES: u64 = 8;

/// The locks, and how a refused call tells which one it was.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Lock {
    Tdr,
    TdrOfOwner,
    Tdvpr,
    OpState,
    Tree,
    Entry,
    /// PAMT entry of a page that the S-EPT names, of one that R8 names, of one in RCX.
    MappedPage,
    NewPage,
    NamedPage,
    Epoch,
    Kot,
    /// Write-back of a package's caches.
    Wbcache,
    /// What the guest met.
    GuestEntry,
}

use Lock::*;

const ALL: [Lock; 13] = [
    Tdr, TdrOfOwner, Tdvpr, OpState, Tree, Entry, MappedPage, NewPage, NamedPage, Epoch, Kot,
    Wbcache, GuestEntry,
];

/// Which lock a busy host call met.
fn lock_of(leaf: u64, status: u64, out: &Regs) -> Option<Lock> {
    if status >> 32 != 0x8000_0200 {
        return None;
    }
    Some(match (status & 0xFFFF_FFFF, leaf) {
        (0x80, _) => TdrOfOwner,
        (0xAC, _) => OpState,
        (0x92, _) => Tree,
        (0xA9, _) => Epoch,
        (0xBA, _) => Kot,
        (0xBC, _) => Wbcache,
        (8, _) => NewPage,
        (1, 0 | 18 | 26) => Tdvpr,
        (1, 17 | 19 | 20 | 21 | 38) => Tdr,
        (1, 9 | 24 | 28 | 41) => NamedPage,
        // Details only if it was the entry.
        (1, _) if (out.rcx, out.rdx) == (0, 0) => MappedPage,
        (1, _) => Entry,
        (2, _) => Tdr,
        (operand, leaf) => panic!("leaf {leaf} is busy with operand {operand:#x}"),
    })
}

/// Windows wide enough that another thread comes in, on two processors as well.
const DELAYS: &str = "delay tdh_mem_page_aug every 97 20us
delay tdh_mem_range_block every 89 20us
delay tdh_mem_page_remove every 31 20us
delay tdh_mem_track every 83 20us
delay tdh_mem_page_relocate every 13 20us
delay tdh_mng_create every 5 20us
delay tdh_mng_key_freeid every 3 20us
delay tdh_phymem_cache_wb every 2 20us
";

struct Rng(u64);
impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % n
    }
}

/// Accepts all data pages in turn, and tells the host after each round how many accepts were
/// busy. A page that it cannot have yet makes it exit.
fn program() -> Asm {
    let mut a = Asm::new(CODE);
    let round = a.here();
    a.movi(R14, DATA)
        .movi(R12, 0)
        .movi(RBP, 0x8000_0200_0000_0001);
    let page = a.here();
    a.mov(RCX, R14).tdcall(6);
    let busy = a.jeq_later(RAX, RBP);
    let next = a.here();
    a.addi(R14, R14, 4096)
        .movi(R13, DATA + PAGES * 4096)
        .jne(R14, R13, page);
    a.vmcall(1).jmp(round);
    a.land(busy).addi(R12, R12, 1).jmp(next);
    a
}

struct Fight<'v> {
    v: &'v Vmm<Interpreter>,
    td: &'v Td,
    busy: Mutex<BTreeMap<Lock, u64>>,
    calls: AtomicU64,
}

impl Fight<'_> {
    fn count(&self, lock: Lock, n: u64) {
        *self.busy.lock().unwrap().entry(lock).or_default() += n;
    }

    fn call(&self, lp: u32, leaf: u64, r: Regs) -> (u64, Regs) {
        let (status, out) = self.v.call_on(lp, leaf, r);
        self.calls.fetch_add(1, Relaxed);
        assert_ne!(status >> 32, 0xC000_0506, "the module shut itself down");
        if let Some(lock) = lock_of(leaf, status, &out) {
            self.count(lock, 1);
        }
        (status, out)
    }

    /// One of the calls that a thread may make at any time.
    fn host_call(&self, lp: u32, rng: &mut Rng) {
        let td = self.td;
        let gpa = DATA + rng.below(PAGES) * 4096;
        let page = POOL + rng.below(POOL_PAGES) * 4096;
        let tdvpr = td.vcpus[rng.below(2) as usize][0];
        let on = |leaf: u64, r8: u64| self.call(lp, leaf, regs(gpa, td.tdr, r8, layout::SOURCE));
        match rng.below(24) {
            0..=5 => drop(on(6, page)),
            6..=8 => drop(on(7, 0)),
            9 | 10 => drop(on(39, 0)),
            11..=13 => drop(on(29, 0)),
            14 | 15 => drop(on(5, page)),
            16 => drop(on(25, 0)),
            17 | 18 => drop(self.call(lp, 38, regs(td.tdr, 0, 0, 0))),
            // Takes the TDR exclusively to learn that it comes too late.
            19 => drop(on(16, 0)),
            // Must not be: the TD lives.
            20 => drop(self.call(lp, 28, regs(page, 0, 0, 0))),
            21 => drop(self.call(lp, 24, regs(page, 0, 0, 0))),
            // A vCPU of another processor.
            22 => drop(self.call(lp, 18, regs(tdvpr, 0, 0, 0))),
            _ => self.other_td(lp),
        }
    }

    /// Keys of a second TD, which two threads may want at once.
    fn other_td(&self, lp: u32) {
        let tdr = POOL + (1 << 20) + u64::from(lp) * 4096;
        self.call(lp, 40, regs(0, 0, 0, 0));
        if self.call(lp, 9, regs(tdr, OTHER_HKID, 0, 0)).0 != 0 {
            return;
        }
        for leaf in [19, 40, 20, 28] {
            loop {
                let rcx = if leaf == 40 { 0 } else { tdr };
                let status = self.call(lp, leaf, regs(rcx, 0, 0, 0)).0;
                // No HKID waits for CACHE.WB: another thread's call has written this one's back.
                match status {
                    0 | 0x0000_0821_0000_0000 => break,
                    _ if status >> 32 == 0x8000_0200 => std::thread::yield_now(),
                    _ => panic!("leaf {leaf} of the other TD: {status:#x}"),
                }
            }
        }
    }

    /// A vCPU runs until its guest wants something.
    fn enter(&self, lp: u32, tdvpr: u64, rng: &mut Rng) {
        let input = Regs {
            rcx: tdvpr,
            ..Regs::default()
        };
        let (status, out) = self.call(lp, 0, input);
        match status {
            77 => self.count(GuestEntry, out.r12),
            48 => {
                let page = POOL + rng.below(POOL_PAGES) * 4096;
                self.call(lp, 6, regs(out.r8, self.td.tdr, page, 0));
            }
            1 | 6 | 0x9000_0205_0000_0000 | 0x8000_0701_0000_0000 => {}
            _ if status >> 32 == 0x8000_0200 => {}
            _ => panic!("VP.ENTER returned {status:#x}"),
        }
    }

    fn thread(&self, t: u64, calls: u64, rng: &mut Rng) {
        let lp = t as u32;
        for _ in 0..calls {
            // Threads 1 and 2 are the processors of the vCPUs.
            match t {
                1 | 2 if rng.below(4) == 0 => {
                    self.enter(lp, self.td.vcpus[t as usize - 1][0], rng);
                }
                _ => self.host_call(lp, rng),
            }
        }
    }
}

fn make_td(v: &Vmm<Interpreter>) -> Td {
    let mut td = v.create(20, 1 << 28);
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
    td
}

#[test]
fn every_lock_is_met() {
    let calls: u64 = std::env::var("TDX_EMU_CALLS").map_or(1_000_000, |s| s.parse().unwrap());
    let v = Vmm::new(Interpreter);
    let td = make_td(&v);
    let fight = Fight {
        v: &v,
        td: &td,
        busy: Mutex::default(),
        calls: AtomicU64::new(0),
    };
    let control = (td.tdcx.len() + td.vcpus.iter().map(Vec::len).sum::<usize>()) as u64;
    let check = || {
        check_td(&v.module, td.tdr, control).unwrap();
        check_unlocked(&v.module, TDMR, TDMR + (256 << 20)).unwrap();
        if let Some(e) = v.module.first_violation() {
            panic!("{e}");
        }
    };
    for pause in 0..PAUSES {
        // In the other parts the threads are left to themselves.
        let hold = |i: u64| format!("hold pamt {:x} 0 sh for=20000 busy=500", POOL + i * 4096);
        let pages = (0..8).map(hold).collect::<Vec<_>>().join("\n");
        let script = match pause {
            0 => DELAYS,
            1 => "hold op_state ex hkid=20 for=400 busy=200",
            2 => "hold tdr ex hkid=20 for=4000 busy=2000",
            3 => &pages,
            _ => "",
        };
        v.module.inject().load(script.as_bytes()).unwrap();
        std::thread::scope(|s| {
            for t in 0..THREADS {
                let fight = &fight;
                let mut rng = Rng(0x1234_5678_9ABC_DEF1 + t + (pause << 32));
                s.spawn(move || fight.thread(t, calls / THREADS / PAUSES, &mut rng));
            }
        });
        v.module.inject().load(b"").unwrap();
        check();
    }
    let busy = fight.busy.into_inner().unwrap();
    println!("calls {:?} busy {busy:?}", fight.calls);
    assert!(fight.calls.into_inner() >= calls);
    for lock in ALL {
        assert!(
            busy.get(&lock).is_some_and(|&n| n > 0),
            "never busy: {lock:?} ({busy:?})"
        );
    }
}
