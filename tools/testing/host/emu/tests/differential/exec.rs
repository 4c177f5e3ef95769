// SPDX-License-Identifier: GPL-2.0

//! Turns small numbers into calls, makes them on the emulator and in the model, and compares.

mod choose;
mod kinds;

use std::ops::RangeInclusive;

use tdx_emu_host::driver::{Does, Driver, End, Held, Lock};
use tdx_emu_host::host::{bring_up, layout, td_params, Host, TdmrSpec};
use tdx_emu_host::instruments::Instrumented;
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::module::{Config, Regs};

use super::model::{span, Entry, Gpr, Key, Model, Outcome, Vcpu, NDA, TIMEOUT};
use super::Seen;
use choose::{pick, Want};
use kinds::Kind::*;

pub use kinds::{Kind, KINDS, REACHED};

const TDR: u64 = 0x4000_0000;
const TDVPR: [u64; 2] = [0x4001_0000, 0x4002_0000];
const TDMR: u64 = 0x4000_0000;
const TDMR_SIZE: u64 = 2 << 30;
const RESERVED: u64 = 0x7FE0_0000;
const POOL: u64 = 0x4100_0000;
const POOL_PAGES: u64 = 96;
const CHUNKS: u64 = 0x4400_0000;
const LARGE: u64 = 0x8000_0000;
const CHUNK: u64 = 2 << 20;
const HKID: u64 = 17;
const GLOBAL_HKID: u64 = 16;

/// One step: small numbers, so that a failure shrinks.
#[derive(Clone, Debug)]
pub struct Step {
    pub kind: Kind,
    pub at: u16,
    pub page: u16,
    pub more: u16,
    pub luck: u16,
}

/// A TD of some shape, and what happens to it.
#[derive(Clone, Debug)]
pub struct Case {
    pub shape: u8,
    pub steps: Vec<Step>,
}

/// What a case did.
#[derive(Default)]
pub struct Done {
    pub calls: u64,
    pub seen: Seen,
}

struct Run<'m> {
    driver: Driver<'m>,
    model: Model,
    log: Vec<Line>,
    done: Done,
}

type Res = Result<(), String>;

fn regs(g: Gpr) -> Regs {
    Regs {
        rcx: g[0],
        rdx: g[1],
        r8: g[2],
        r9: g[3],
        r10: g[4],
        r11: g[5],
        ..Regs::default()
    }
}

fn outcome(end: End) -> Outcome {
    match end {
        End::Host(rax, r) => Outcome::Host(rax, [r.rcx, r.rdx, r.r8, r.r9, r.r10, r.r11]),
        End::Guest(rax, ve) => Outcome::Guest(rax, ve),
        End::Entered => Outcome::Entered,
        End::Reached(pa) => Outcome::Reached(pa),
    }
}

fn machine() -> Instrumented<Host, Interpreter> {
    let config = Config {
        seamrr_base: 0x2000_0000,
        seamrr_size: 0x400_0000,
        ..Host::default_config()
    };
    let module = Instrumented::new(Host::new(config), Interpreter);
    let tdmr = TdmrSpec {
        base: TDMR,
        size: TDMR_SIZE,
        reserved: vec![(RESERVED - TDMR, CHUNK)],
    };
    bring_up(&module, &tdmr, GLOBAL_HKID);
    module
}

/// Makes a TD with two vCPUs, before TDH.MR.FINALIZE, on the machine and in the model.
fn build(module: &Instrumented<Host, Interpreter>, shape: u8) -> Model {
    let (root, gpaw) = [(3, 0), (4, 0), (4, 1)][usize::from(shape % 3)];
    let shared_bit = [47, 51][gpaw as usize];
    let ve_disabled = shape & 1 == 0;
    let mut m = Model::new(TDR, root, shared_bit, TDMR..TDMR + TDMR_SIZE);
    m.ve_disabled = ve_disabled;
    m.reserved = RESERVED..RESERVED + CHUNK;
    m.source = layout::SOURCE..layout::SOURCE + 0x1_0000;
    let call = |lp: u32, leaf: u64, rcx: u64, rdx: u64| {
        let mut r = regs([rcx, rdx, 0, 0, 0, 0]);
        let rax = module.seamcall(lp, leaf, &mut r);
        assert_eq!(rax, 0, "leaf {leaf}");
    };
    call(0, 9, TDR, HKID);
    call(0, 8, TDR, 0);
    m.own(TDR, 0, 4);
    for i in 1..=6 {
        call(0, 1, TDR + 4096 * i, TDR);
        m.own(TDR + 4096 * i, 0, 5);
    }
    let attributes = u64::from(ve_disabled) << 28;
    td_params(module.platform(), attributes, root.into(), gpaw);
    call(0, 21, TDR, layout::TD_PARAMS);
    for (i, tdvpr) in TDVPR.into_iter().enumerate() {
        call(0, 10, tdvpr, TDR);
        m.own(tdvpr, 0, 6);
        for k in 1..=5 {
            call(0, 4, tdvpr + 4096 * k, tdvpr);
            m.own(tdvpr + 4096 * k, 0, 5);
        }
        let lp = i as u32 + 1;
        call(lp, 22, tdvpr, 0);
        m.vcpus.push(Vcpu::new(tdvpr, lp));
    }
    m.children = 18;
    m
}

/// Runs a case. An error says what differs, and the calls that led there.
pub fn run(case: &Case) -> Result<Done, String> {
    let module = machine();
    let model = build(&module, case.shape);
    let mut r = Run {
        driver: Driver::new(&module, TDR),
        model,
        log: Vec::new(),
        done: Done::default(),
    };
    // A third of the TDs run from the beginning.
    let early = case.shape / 4 == 1;
    let result = (|| {
        if early {
            r.host(0, 17, [TDR, 0, 0, 0, 0, 0])?;
        }
        // Most TDs have some tables.
        if case.shape < 9 {
            r.tables()?;
        }
        for step in &case.steps {
            r.step(step)?;
        }
        r.compare_all()?;
        r.take_down()
    })();
    let Run { log, done, .. } = r;
    match result {
        Ok(()) => Ok(done),
        Err(why) => {
            let log: Vec<String> = log.iter().map(Line::to_string).collect();
            Err(format!("{why}\n{}", log.join("\n")))
        }
    }
}

impl<'m> Run<'m> {
    /// A host call on both sides.
    fn host(&mut self, lp: u32, rax: u64, input: Gpr) -> Res {
        let want = self.model.host(lp, rax, input);
        let got = outcome(self.driver.call(lp, rax, regs(input)));
        self.done.calls += 1;
        if let Outcome::Host(status, _) = got {
            let key = (rax & 0xFFFF, status & !0xFFFF_FFFF);
            *self.done.seen.entry(key).or_default() += 1;
        }
        self.log.push(Line::Host(lp, rax, input, got));
        self.check(want, got)
    }

    fn check(&mut self, want: Outcome, got: Outcome) -> Res {
        if want != got {
            return Err(format!("the model says {want:x?}, the emulator {got:x?}"));
        }
        let s = self.driver.state();
        let m = &self.model;
        let got = (s.children, s.op_state, s.epoch, s.refs);
        let want = (m.children, m.op_state, m.epoch, m.refs);
        if got != want {
            return Err(format!(
                "counters: the model says {want:x?}, the emulator {got:x?}"
            ));
        }
        Ok(())
    }

    fn check_entry(&self, gpa: u64, level: u8) -> Res {
        let ((reached, base), _) = self.model.find(gpa, level.min(self.model.root));
        let want = (reached, self.raw((reached, base)));
        let got = self.driver.entry(gpa, level).ok_or("no entry")?;
        // A lock that a test holds is in the entry.
        let got = (got.0, got.1 & !(1 << 11));
        match want == got {
            true => Ok(()),
            false => Err(format!(
                "entry {gpa:#x}: the model says {want:x?}, the emulator {got:x?}"
            )),
        }
    }

    fn raw(&self, key: Key) -> u64 {
        self.model.get(key).raw() | (u64::from(self.model.priority.contains(&key)) << 52)
    }

    /// Every entry of S-EPT and PAMT.
    fn compare_all(&self) -> Res {
        let mut got = self.driver.sept();
        got.sort();
        let mut keys: Vec<Key> = self.model.entries.keys().copied().collect();
        keys.extend(self.model.priority.iter());
        keys.sort();
        keys.dedup();
        let want: Vec<_> = keys.iter().map(|&k| (k.0, k.1, self.raw(k))).collect();
        if let Some((w, g)) = want.iter().zip(&got).find(|(w, g)| w != g) {
            return Err(format!("S-EPT: the model says {w:x?}, the emulator {g:x?}"));
        }
        if want.len() != got.len() {
            return Err(format!(
                "S-EPT: {} entries, {} expected",
                got.len(),
                want.len()
            ));
        }
        for size in 0..3u8 {
            for pa in (TDMR..TDMR + TDMR_SIZE).step_by(span(size) as usize) {
                let p = self.model.page(pa, size);
                let (got, lock) = self.driver.page_state(pa, size);
                if got != (p.kind, p.owner, p.epoch) {
                    return Err(format!(
                        "page {pa:#x}/{size}: {p:x?}, the emulator {got:x?}"
                    ));
                }
                if lock != 0 && !self.model.any_inside() {
                    return Err(format!("page {pa:#x}/{size} is locked: {lock:#x}"));
                }
            }
        }
        Ok(())
    }

    /// All of the TD's pages can be reclaimed, the TDR last.
    fn take_down(&mut self) -> Res {
        for i in 0..TDVPR.len() {
            if self.model.vcpus[i].inside.is_some() {
                let want = self.model.interrupt(i, 0);
                let got = outcome(self.driver.guest(i as u32 + 1, Does::Interrupt, 0));
                self.check(want, got)?;
            }
        }
        let mut call = |lp: u32, leaf: u64, rcx: u64| match self.driver.call(
            lp,
            leaf,
            regs([rcx, 0, 0, 0, 0, 0]),
        ) {
            End::Host(status, r) => (status, [r.rcx, r.rdx, r.r8]),
            other => panic!("{other:?}"),
        };
        let status = [
            call(1, 18, TDVPR[0]).0,
            call(0, 19, TDR).0,
            call(2, 18, TDVPR[1]).0,
            call(0, 19, TDR).0,
            call(0, 20, TDR).0,
            call(0, 40, 0).0,
            call(0, 20, TDR).0,
            call(0, 28, TDR).0,
        ];
        let want = [
            0,
            0x8000_0824_0000_0000,
            0,
            0,
            0x8000_0817_0000_0000,
            0,
            0,
            0xC000_0400_0000_0000,
        ];
        if status != want {
            return Err(format!("tear-down: {status:x?}, expected {want:x?}"));
        }
        let owned = self.model.pages.iter().filter(|p| p.1.kind != NDA);
        let mut owned: Vec<_> = owned.map(|(k, p)| (*k, *p)).collect();
        // The TDR is the lowest page.
        owned.sort_by_key(|p| std::cmp::Reverse(p.0));
        for ((pa, size), p) in owned {
            let got = call(0, 28, pa);
            let want = (0, [p.kind.into(), p.owner, size.into()]);
            if got != want {
                return Err(format!("reclaim of {pa:#x}: {got:x?}, expected {want:x?}"));
            }
        }
        Ok(())
    }

    fn step(&mut self, s: &Step) -> Res {
        self.model.tsc += 1000;
        if s.luck % 64 == 63 {
            self.model.tsc += 2 * TIMEOUT;
        }
        self.driver.set_tsc(self.model.tsc);
        let (lp, rax, input, key) = match s.kind {
            Fill => return self.fill(s),
            Guest | Enter => {
                let i = usize::from(s.at & 1);
                let inside = [1, 2].map(|lp| self.driver.is_in_guest(lp));
                let elsewhere = s.more % 32 == 1;
                match s.kind {
                    Guest if inside[i] => return self.guest(i, s),
                    Guest if inside[1 - i] => return self.guest(1 - i, s),
                    Enter if !inside[i] || elsewhere => {
                        let junk = [0, 1 << 53, 1 << 54, 4096][pick(s.more / 32, 64).min(3)];
                        let lp = if elsewhere { 3 } else { i as u32 + 1 };
                        let tdvpr = TDVPR[i] | if s.more % 32 == 2 { junk } else { 0 };
                        (lp, 0, [tdvpr, 0, 0, 0, 0, 0], None)
                    }
                    _ => return Ok(()),
                }
            }
            Leaf(leaf) => {
                let (rax, input, key) = self.decode(leaf, s);
                (0, rax, input, key)
            }
        };
        let held = self.disturb(s, key, input[2])?;
        self.host(lp, rax, input)?;
        self.calm(held);
        match key {
            Some((level, gpa)) if gpa >> 48 == 0 => self.check_entry(gpa, level),
            _ => Ok(()),
        }
    }

    /// Tables down to 4K entries for two addresses.
    fn tables(&mut self) -> Res {
        let mut page = POOL;
        for gpa in [0, 1 << 30] {
            for level in (1..=self.model.root).rev() {
                let rcx = gpa & !(span(level) - 1) | u64::from(level);
                let (_, hit) = self.model.find(gpa, level - 1);
                if !hit {
                    self.host(0, 3, [rcx, TDR, page, 0, 0, 0])?;
                    page += 4096;
                }
            }
        }
        Ok(())
    }

    /// A lock that somebody holds during the next call, or an interrupt.
    fn disturb(&mut self, s: &Step, key: Option<Key>, r8: u64) -> Result<Option<Held<'m>>, String> {
        let (level, gpa) = key.unwrap_or((0, 0));
        let rest = s.luck / 8;
        let child = |i: u64| Lock::Entry(gpa + i * span(level.max(1) - 1), level.max(1) - 1);
        let lock = match s.luck % 8 {
            1 => match rest % 8 {
                0 => Lock::Tree,
                1 => Lock::Epoch,
                2 => Lock::OpState,
                3 => Lock::Pamt(TDR, 0),
                4 => Lock::Pamt(r8 & !0xFFF, 0),
                5 | 6 => match self.model.get((level, gpa)) {
                    Entry::Leaf { page, .. } => Lock::Pamt(page, level.min(2)),
                    Entry::Table { page, .. } => Lock::Pamt(page, 0),
                    Entry::Free => Lock::Pamt(r8 & !(CHUNK - 1), 1),
                },
                _ => child(u64::from(rest / 8) % 512),
            },
            2 => Lock::Entry(gpa, level),
            3 => {
                let polls = [0, u32::from(rest / 4 % 600)][usize::from(rest & 1)];
                self.model.interrupt_after = Some(polls);
                self.driver.interrupt_after(Some(polls));
                return Ok(None);
            }
            _ => return Ok(None),
        };
        let exclusive = (rest / 8) & 1 == 0 || matches!(lock, Lock::Entry(..));
        match lock {
            Lock::Pamt(pa, size) if !self.model.tdmr.contains(&pa) || size > 2 => return Ok(None),
            Lock::Entry(gpa, level) if gpa >> 48 != 0 || level > self.model.root => {
                return Ok(None)
            }
            _ => {}
        }
        let held = self.driver.hold(lock, exclusive);
        if held.is_some() != self.model.can_hold(lock, exclusive) {
            return Err(format!("{lock:x?} could be taken: {}", held.is_some()));
        }
        if held.is_some() {
            self.model.hold = Some((lock, exclusive));
        }
        Ok(held)
    }

    fn calm(&mut self, held: Option<Held<'m>>) {
        drop(held);
        self.model.hold = None;
        self.model.interrupt_after = None;
        self.driver.interrupt_after(None);
    }

    /// Gives all parts of a table's range pages that would make one large page.
    fn fill(&mut self, s: &Step) -> Res {
        let entries = self.model.entries.iter();
        let large = s.luck % 16 == 1;
        let level = if large { 2 } else { 1 };
        let tables = entries.filter(|(k, e)| k.0 == level && matches!(e, Entry::Table { .. }));
        let tables: Vec<Key> = tables.map(|(k, _)| *k).collect();
        let Some(&(_, gpa)) = tables.get(pick(s.at, tables.len().max(1))) else {
            return Ok(());
        };
        let base = match large {
            true => LARGE,
            false => CHUNKS + CHUNK * (u64::from(s.page) % 6),
        };
        let part = level - 1;
        if !self.model.find(gpa, part).1 {
            return Ok(());
        }
        for i in 0..512 {
            let at = gpa + i * span(part);
            let page = base + i * span(part);
            self.host(0, 6, [at | u64::from(part), TDR, page, 0, 0, 0])?;
        }
        if s.luck / 16 % 2 == 1 {
            // Often enough what is filled can be merged.
            let at = gpa | u64::from(level);
            for leaf in [7, 38] {
                let rcx = if leaf == 38 { TDR } else { at };
                self.host(0, leaf, [rcx, TDR, 0, 0, 0, 0])?;
            }
            self.model.interrupt_after = Some(0);
            self.driver.interrupt_after(Some(0));
            self.host(0, 23, [at, TDR, 0, 0, 0, 0])?;
            self.calm(None);
            return self.host(0, 23, [at, TDR, 0, 0, 0, 0]);
        }
        let inside = self.driver.is_in_guest(1);
        if inside && s.more & 1 == 1 && !large {
            for i in 0..512 {
                if self.driver.is_in_guest(1) {
                    self.act(0, Does::Accept(gpa + i * 4096), 0x1000)?;
                }
            }
        }
        Ok(())
    }

    /// The guest of a vCPU does something.
    fn guest(&mut self, i: usize, s: &Step) -> Res {
        let want = Want::Entry(0..=[1, 1, 1, self.model.root][pick(s.more / 16, 4)]);
        let (rcx, key) = self.place(s.at, want);
        let rip = 0x1000 + 0x100 * u64::from(s.more % 16 / 7);
        let gpa = key.map_or(0, |k| k.1);
        let pending = matches!(
            self.model.get(self.model.find(gpa, 0).0),
            Entry::Leaf {
                pending: true,
                blocked: false,
                ..
            }
        );
        let usable = key.is_some_and(|k| k.1 >> 47 == 0);
        let does = match s.page % 16 {
            0..=7 => Does::Accept(rcx),
            8..=11 if usable && !(pending && self.model.vcpus[i].ve) => {
                Does::Access(gpa, u64::from(s.page / 16 % 7) + 1)
            }
            8..=12 => Does::VeInfo,
            13 => Does::Interrupt,
            _ => Does::Accept(gpa | u64::from((s.page / 16) & 1)),
        };
        let held = self.disturb(s, key.filter(|_| usable), POOL)?;
        self.act(i, does, rip)?;
        self.calm(held);
        match key.filter(|_| usable) {
            Some((level, gpa)) => self.check_entry(gpa, level),
            None => Ok(()),
        }
    }

    fn act(&mut self, i: usize, does: Does, rip: u64) -> Res {
        let want = match does {
            Does::Accept(rcx) => self.model.accept(i, rip, rcx),
            Does::Access(gpa, how) => self.model.access(i, rip, gpa, how),
            Does::VeInfo => self.model.ve_info(i, rip),
            Does::Interrupt => self.model.interrupt(i, rip),
        };
        let got = outcome(self.driver.guest(i as u32 + 1, does, rip));
        self.done.calls += 1;
        let status = match got {
            Outcome::Host(rax, _) | Outcome::Guest(rax, _) => rax & !0xFFFF_FFFF,
            _ => 0,
        };
        if let Does::Accept(_) = does {
            *self.done.seen.entry((0x8006, status)).or_default() += 1;
        }
        self.log.push(Line::Guest(i, does, rip, got));
        self.check(want, got)
    }
}

/// A call that was made, for the report of a failure.
enum Line {
    Host(u32, u64, Gpr, Outcome),
    Guest(usize, Does, u64, Outcome),
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Line::Host(lp, rax, r, end) => write!(f, "lp {lp} leaf {rax:#x} {r:x?} -> {end:x?}"),
            Line::Guest(i, does, rip, end) => {
                write!(f, "vcpu {i} at {rip:#x} {does:x?} -> {end:x?}")
            }
        }
    }
}
