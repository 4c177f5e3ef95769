// SPDX-License-Identifier: GPL-2.0

//! Random registers into the dispatcher: it must not panic, not hang, not shut itself down,
//! and leave every TD in order. TDX_EMU_CALLS sets the number of calls, TDX_EMU_SEED the
//! seed.

use std::time::{Duration, Instant};

use tdx_emu_host::host::{layout, td_params};
use tdx_emu_host::instruments::StatName;
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::module::Regs;
use tdx_emu_host::vmm::{regs, Td, Vmm, TDMR};

const CALLS_OF_A_MACHINE: u64 = 20_000;
/// What a call may take at most; a guest runs for a bounded number of instructions.
const LONGEST: Duration = Duration::from_secs(10);
const RESET: u64 = 0xFFFF_F000;
/// SYS.LP.SHUTDOWN and SYS.DISABLE end the module's life.
const ENDS: [u64; 2] = [44, 69];

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().expect("a number"))
}

fn stat(v: &Vmm<Interpreter>, name: &str) -> u64 {
    let mut found = None;
    v.module.stats().each(|n: StatName, value| {
        if n.to_string() == name {
            found = Some(value);
        }
    });
    found.expect("a counter")
}

/// A register: something that means something, or anything.
fn register(rng: &mut Rng, tds: &[Td]) -> u64 {
    let td = &tds[rng.below(tds.len() as u64) as usize];
    let page = TDMR + rng.below(128) * 4096;
    let plain = match rng.below(14) {
        0..=3 => td.tdr,
        4 | 5 => td.vcpus[rng.below(td.vcpus.len() as u64) as usize][0],
        6 | 7 => page,
        8 => TDMR + (rng.below(64) << 21),
        9 => rng.of(&[0, 1 << 30, 0x80_0000, 1 << 39, RESET]) | rng.below(6) | (rng.below(4) << 12),
        10 => rng.below(128),
        11 => rng.of(&[
            layout::TD_PARAMS,
            layout::SOURCE,
            layout::TDMR_INFO,
            layout::TDMR_ARRAY,
        ]),
        12 => rng.of(&[
            0,
            u64::MAX,
            1 << 63,
            1 << 52,
            0x9100_0000_0000_0010,
            0x9410_0003_0000_0000,
        ]),
        _ => rng.next(),
    };
    // Some bit flipped.
    match rng.below(12) {
        0 => plain ^ (1 << rng.below(64)),
        _ => plain,
    }
}

/// A TD whose code is noise.
fn td(v: &Vmm<Interpreter>, hkid: u64, rng: &mut Rng) -> Td {
    let mut td = v.create(hkid, rng.below(2) << 28);
    v.add_vcpu(&mut td, 1, 0);
    v.add_vcpu(&mut td, 2, 0);
    // Few operations are executed for long: mostly those that there are.
    let code: Vec<u8> = (0..1024)
        .flat_map(|_| {
            let op = rng.of(&[
                0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0x66, 0x66, 0xFF,
            ]);
            [op, rng.below(16) as u8, rng.below(16) as u8, 0]
        })
        .collect();
    v.add_page(&td, RESET, &code);
    if rng.below(4) != 0 {
        v.ok(17, regs(td.tdr, 0, 0, 0));
    }
    td
}

/// Makes `calls` calls on one machine.
fn fuzz(rng: &mut Rng, calls: u64) {
    let v = Vmm::new(Interpreter);
    let tds: Vec<Td> = (0..3).map(|i| td(&v, 20 + i, rng)).collect();
    let mut succeeded = 0;
    for i in 0..calls {
        if i % 512 == 0 {
            // What the leaves of the bring-up and MNG.INIT read.
            td_params(
                v.host(),
                rng.below(2) << 28,
                rng.of(&[3, 4, 5]),
                rng.below(3),
            );
            v.host()
                .write(layout::TD_PARAMS + 8 * rng.below(64), rng.next());
            v.host().tsc_step.store(
                rng.of(&[0, 1000, 2_000_000_000]),
                std::sync::atomic::Ordering::Relaxed,
            );
        }
        let polls = rng.of(&[-1, -1, -1, 0, 1, 100]);
        v.host()
            .polls_left
            .store(polls, std::sync::atomic::Ordering::Relaxed);
        let leaf = match rng.below(40) {
            0 => rng.below(1 << 16),
            // Memory leaves more often than others.
            1..=20 => rng.of(&[2, 3, 5, 6, 7, 15, 16, 23, 25, 29, 30, 38, 39, 0]),
            21..=24 => rng.of(&[38, 25, 24, 28, 41]),
            _ => rng.below(72),
        };
        // VPFLUSHDONE ends the life of a TD, so it comes late.
        if ENDS.contains(&leaf) || leaf == 19 && rng.below(400) != 0 {
            continue;
        }
        let version = match rng.below(16) {
            0 => rng.of(&[1, 1, 2, 255]),
            _ => 0,
        };
        let junk = if rng.below(64) == 0 {
            1 << rng.below(64)
        } else {
            0
        };
        let rax = (leaf | (version << 16)) ^ junk;
        if ENDS.contains(&(rax & 0xFFFF)) {
            continue;
        }
        let mut r = |_| register(rng, &tds);
        let [rcx, rdx, r8, r9, r10, r11] = std::array::from_fn(&mut r);
        // Half of the calls have operands of the right sort, as far as that goes.
        let td = &tds[rng.below(3) as usize];
        let usual = rng.below(2) == 0;
        let gpa = rng.of(&[0, 1 << 30, RESET]) + (rng.below(3) << 21) + (rng.below(4) << 12);
        let (rcx, rdx, r8, r9) = match leaf {
            2 if usual => (gpa, td.tdr, TDMR + (rng.below(512) << 12), layout::SOURCE),
            3 | 5 | 6 | 7 | 15 | 16 | 23 | 25 | 29 | 30 | 39 if usual => {
                let level = rng.of(&[0, 0, 0, 1, 1, 1, 2, 2, 3, 3]);
                let at = gpa & !((4096 << (9 * level)) - 1) | level;
                (at, td.tdr, TDMR + (rng.below(2048) << 12), r9)
            }
            0 | 18 if usual => (td.vcpus[rng.below(2) as usize][0], rdx, r8, r9),
            38 if usual => (td.tdr, rdx, r8, r9),
            _ => (rcx, rdx, r8, r9),
        };
        let input = Regs {
            rcx,
            rdx,
            r8,
            r9,
            r10,
            r11,
            rbx: r8,
            ..Regs::default()
        };
        // Beyond the processors that there are as well.
        let lp = rng.of(&[0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 300, u32::MAX]);
        let start = Instant::now();
        let (status, _) = v.call_on(lp, rax, input);
        assert!(
            start.elapsed() < LONGEST,
            "leaf {rax:#x} took {:?}",
            start.elapsed()
        );
        assert_ne!(
            status & !0xFFFF_FFFF,
            0xC000_0506_0000_0000,
            "{rax:#x} {input:x?}: shut down"
        );
        succeeded += u64::from(status >> 63 == 0);
    }
    assert_eq!(stat(&v, "invariant_errors"), 0);
    // It does get somewhere.
    assert!(succeeded * 20 > calls, "{succeeded} of {calls}");
    audit(&v);
}

fn audit(v: &Vmm<Interpreter>) {
    match v.module.audit() {
        Some(Ok(())) => {}
        Some(Err(e)) => panic!("{e}"),
        None => panic!("nobody uses the module, and yet it could not be looked at"),
    }
    if let Some(e) = v.module.first_violation() {
        panic!("{e}");
    }
}

#[test]
fn random_registers() {
    let calls = number("TDX_EMU_CALLS", 1_000_000);
    let seed = number("TDX_EMU_SEED", 1);
    std::thread::scope(|s| {
        let threads: Vec<_> = (0..2)
            .map(|t| {
                s.spawn(move || {
                    let mut left = calls / 2;
                    let mut machine = 0;
                    while left > 0 {
                        let n = left.min(CALLS_OF_A_MACHINE);
                        machine += 1;
                        fuzz(&mut Rng(((seed + t) << 32) | machine), n);
                        left -= n;
                    }
                })
            })
            .collect();
        for t in threads {
            t.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
        }
    });
}
