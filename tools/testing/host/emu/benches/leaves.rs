// SPDX-License-Identifier: GPL-2.0

//! Calls per second of each leaf on one thread of the host, without what prepares a call
//! and takes it back. Prints a table; the last line is PAGE.AUG's, and it must reach
//! [`TARGET`].

use std::process::ExitCode;
use std::time::{Duration, Instant};

use criterion::Criterion;
use serde_json::Value;
use tdx_emu_host::driver::{Does, Driver, End};
use tdx_emu_host::host::layout;
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::vmm::{regs, Td, Vmm, TDMR};

/// Calls of PAGE.AUG a second that the emulator must reach.
const TARGET: f64 = 2e6;
/// Calls between two preparations.
const BATCH: u64 = 512;
/// Guest addresses of 4K pages, of a large page, and pages that the host never hands out.
const SMALL: u64 = 0x80_0000;
const LARGE: u64 = 0xC0_0000;
const POOL: u64 = TDMR + (256 << 20);

const AUG: &str = "TDH.MEM.PAGE.AUG";

struct Bench<'v> {
    v: &'v Vmm<Interpreter>,
    td: &'v Td,
    c: Criterion,
    names: Vec<&'static str>,
}

impl Bench<'_> {
    /// Times `call`, of which `prepare` makes the next numbers possible and `undo` takes
    /// them back.
    fn leaf(
        &mut self,
        name: &'static str,
        batch: u64,
        prepare: impl Fn(u64),
        call: impl Fn(u64),
        undo: impl Fn(u64),
    ) {
        let timed = |calls: u64| {
            let (mut left, mut took) = (calls, Duration::ZERO);
            while left > 0 {
                let n = left.min(batch);
                (0..n).for_each(&prepare);
                let start = Instant::now();
                (0..n).for_each(&call);
                took += start.elapsed();
                (0..n).for_each(&undo);
                left -= n;
            }
            took
        };
        self.c.bench_function(name, |b| b.iter_custom(timed));
        self.names.push(name);
    }

    fn pages(&mut self) {
        let (v, tdr) = (self.v, self.td.tdr);
        let (gpa, pa) = (|i: u64| SMALL + i * 4096, |i: u64| POOL + i * 4096);
        let nothing = |_| ();
        let ok = |leaf: u64, rcx: u64, rdx: u64, r8: u64| {
            v.ok(leaf, regs(rcx, rdx, r8, layout::SOURCE));
        };
        let add = |i| ok(2, gpa(i), tdr, pa(i));
        let aug = |i| ok(6, gpa(i), tdr, pa(i));
        let remove = |i| ok(29, gpa(i), tdr, 0);
        let block = |i| ok(7, gpa(i), tdr, 0);
        self.leaf("TDH.MEM.PAGE.ADD", BATCH, nothing, add, remove);
        self.leaf(AUG, BATCH, nothing, aug, remove);
        self.leaf("TDH.MEM.PAGE.REMOVE", BATCH, aug, remove, nothing);
        self.leaf("TDH.MEM.RANGE.BLOCK", BATCH, aug, block, remove);
        let blocked = |i| {
            aug(i);
            block(i);
        };
        self.leaf(
            "TDH.MEM.RANGE.UNBLOCK",
            BATCH,
            blocked,
            |i| ok(39, gpa(i), tdr, 0),
            remove,
        );
        self.leaf(
            "TDH.MEM.SEPT.RD",
            BATCH,
            aug,
            |i| ok(25, gpa(i), tdr, 0),
            remove,
        );
        let relocate = |i| ok(5, gpa(i), tdr, pa(i + BATCH));
        self.leaf("TDH.MEM.PAGE.RELOCATE", BATCH, aug, relocate, remove);
        self.leaf(
            "TDH.MR.EXTEND",
            BATCH,
            add,
            |i| ok(16, gpa(i), tdr, 0),
            remove,
        );
        self.leaf(
            "TDH.PHYMEM.PAGE.WBINVD",
            BATCH,
            nothing,
            |i| ok(41, pa(i), 0, 0),
            nothing,
        );
        self.leaf(
            "TDH.PHYMEM.PAGE.RDMD",
            BATCH,
            nothing,
            |i| ok(24, pa(i), 0, 0),
            nothing,
        );
        self.leaf(
            "TDH.MEM.TRACK",
            BATCH,
            nothing,
            |_| ok(38, tdr, 0, 0),
            nothing,
        );
    }

    fn tables(&mut self) {
        let (v, tdr) = (self.v, self.td.tdr);
        let ok = |leaf: u64, rcx: u64, rdx: u64, r8: u64| {
            v.ok(leaf, regs(rcx, rdx, r8, 0));
        };
        // Below a table for 1 GiB that holds nothing else.
        let gpa = |i: u64| ((1 << 30) + (i << 21)) | 1;
        let pa = |i: u64| POOL + i * 4096;
        let nothing = |_| ();
        ok(3, (1 << 30) | 2, tdr, POOL - 4096);
        let add = |i| ok(3, gpa(i), tdr, pa(i));
        let remove = |i| ok(30, gpa(i), tdr, 0);
        self.leaf("TDH.MEM.SEPT.ADD", BATCH, nothing, add, remove);
        self.leaf("TDH.MEM.SEPT.REMOVE", BATCH, add, remove, nothing);
        // 1 GiB has no room for more pages of 2 MiB than this.
        let large_pa = |i: u64| POOL + ((1 + i) << 21);
        let aug = |i| ok(6, gpa(i), tdr, large_pa(i));
        let drop_large = |i| ok(29, gpa(i), tdr, 0);
        let demote = |i| ok(15, gpa(i), tdr, pa(i));
        let promote = |i| ok(23, gpa(i), tdr, 0);
        let small = |i| {
            aug(i);
            demote(i);
        };
        let merge_and_drop = |i| {
            promote(i);
            drop_large(i);
        };
        self.leaf("TDH.MEM.PAGE.AUG (2M)", 64, nothing, aug, drop_large);
        self.leaf("TDH.MEM.PAGE.DEMOTE", 64, aug, demote, merge_and_drop);
        self.leaf("TDH.MEM.PAGE.PROMOTE", 64, small, promote, drop_large);
    }

    /// What a vCPU does: each of its calls enters again.
    fn guest(&mut self) {
        let (v, td) = (self.v, self.td);
        let tdvpr = td.vcpus[0][0];
        let driver = std::cell::RefCell::new(Driver::new(&v.module, td.tdr));
        let gpa = |i: u64| LARGE + i * 4096;
        let pa = |i: u64| POOL + i * 4096;
        let enter = || {
            let end = driver.borrow_mut().call(1, 0, regs(tdvpr, 0, 0, 0));
            assert_eq!(end, End::Entered);
        };
        let leave = || {
            let end = driver.borrow_mut().guest(1, Does::Interrupt, 0);
            assert!(matches!(end, End::Host(1, _)));
        };
        let enter_and_leave = |_| {
            enter();
            leave();
        };
        self.leaf(
            "TDH.VP.ENTER and exit",
            BATCH,
            |_| (),
            enter_and_leave,
            |_| (),
        );
        let aug = |i: u64| {
            if i == 0 {
                enter();
            }
            v.ok(6, regs(gpa(i), td.tdr, pa(i), 0));
        };
        let accept = |i| {
            let end = driver.borrow_mut().guest(1, Does::Accept(gpa(i)), 0);
            assert_eq!(end, End::Guest(0, false));
        };
        let take_away = |i: u64| {
            if i == 0 {
                leave();
            }
            v.ok(7, regs(gpa(i), td.tdr, 0, 0));
            v.ok(38, regs(td.tdr, 0, 0, 0));
            v.ok(29, regs(gpa(i), td.tdr, 0, 0));
        };
        self.leaf("TDG.MEM.PAGE.ACCEPT", BATCH, aug, accept, take_away);
    }
}

/// Median of nanoseconds that criterion found for a leaf.
fn nanoseconds(dir: &std::path::Path, name: &str) -> Option<f64> {
    // Criterion's names of folders.
    let folder: String = name
        .chars()
        .map(|c| if "?\"/\\*<>:|^".contains(c) { '_' } else { c })
        .collect();
    let text = std::fs::read_to_string(dir.join(folder).join("new/estimates.json")).ok()?;
    let all: Value = serde_json::from_str(&text).ok()?;
    all["median"]["point_estimate"].as_f64()
}

fn main() -> ExitCode {
    let dir = std::env::temp_dir().join(format!("tdx-emu-bench-{}", std::process::id()));
    let c = Criterion::default()
        .output_directory(&dir)
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    let v = Vmm::new(Interpreter);
    let mut td = v.create(20, 1 << 28);
    v.add_vcpu(&mut td, 1, 0);
    v.build_tables(&td, SMALL);
    v.build_tables(&td, LARGE);
    let mut b = Bench {
        v: &v,
        td: &td,
        c,
        names: Vec::new(),
    };
    // Before the TD is final nothing needs to be blocked and tracked to be taken away.
    b.pages();
    b.tables();
    v.ok(17, regs(td.tdr, 0, 0, 0));
    b.guest();
    let mut rates = Vec::new();
    for name in &b.names {
        match nanoseconds(&dir, name) {
            Some(ns) => rates.push((*name, 1e9 / ns)),
            None => {
                eprintln!("no result for {name}");
                return ExitCode::FAILURE;
            }
        }
    }
    // Only this run's own folder.
    let _ = std::fs::remove_dir_all(&dir);
    println!("\n{:<26} {:>12}", "leaf", "calls/s");
    let is_aug = |r: &&(&str, f64)| r.0 == AUG;
    for (name, rate) in rates.iter().filter(|r| !is_aug(r)) {
        println!("{name:<26} {rate:>12.0}");
    }
    let Some(&(name, rate)) = rates.iter().find(is_aug) else {
        return ExitCode::FAILURE;
    };
    println!("{name:<26} {rate:>12.0}");
    if rate < TARGET {
        eprintln!("{name} makes less than {TARGET} calls a second");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
