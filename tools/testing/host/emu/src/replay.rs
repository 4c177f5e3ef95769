// SPDX-License-Identifier: GPL-2.0
//! Replays recorded calls of the real TDX module and compares everything that a
//! recording says: status, registers, S-EPT entry, counters, zero-step state, final
//! S-EPT and PAMT, MRTD.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::sync::atomic::Ordering;

use serde_json::Value;

use crate::emu::interp::Interpreter;
use crate::emu::lock::{Mode, ShareX, ShareXHp};
use crate::emu::mem::Page;
use crate::emu::sys::Machine;
use crate::emu::td::{tdcs_word, tdr_word};
use crate::emu::tree::{shift, EntryLock, Root, FREE, HPA, PS, RWX};
use crate::emu::vcpu::{Enter, Entered};
use crate::emu::vp::word;
use crate::emu::{Config, GuestExit, Module, Regs};
use crate::host::{bring_up, layout, td_params, Host, TdmrSpec};

/// Result of a file.
#[derive(Default)]
pub struct Outcome {
    pub calls: u64,
    /// One line each: index, field, expected, got.
    pub mismatches: Vec<String>,
}

fn num(v: &Value) -> u64 {
    match v {
        Value::String(s) => match s.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).expect("hexadecimal number"),
            None => s.parse().expect("number"),
        },
        Value::Number(n) => n.as_u64().or(n.as_i64().map(|v| v as u64)).expect("number"),
        _ => panic!("number expected, got {v}"),
    }
}

/// A lock that a recorded call found held.
enum Held<'m> {
    Tree(#[allow(dead_code)] ShareX<'m>),
    Entry(#[allow(dead_code)] EntryLock<'m>),
    Hp(#[allow(dead_code)] ShareXHp<'m>),
}

type SeptDump = BTreeMap<(u64, u64), u64>;
/// (address, size) -> (type, owner, block epoch, lock)
type PamtDump = BTreeMap<(u64, u64), (u64, u64, u64, u64)>;

struct Replay<'m> {
    module: &'m Module<Host, Interpreter>,
    tdr: u64,
    tdvpr: [u64; 2],
    tdmr: (u64, u64),
    entered: [Option<Entered<'m>>; 2],
    out: Outcome,
    septe: SeptDump,
    pamt: PamtDump,
    dumped: bool,
}

/// Replays one recording.
pub fn replay(lines: impl BufRead) -> Outcome {
    let mut lines = lines.lines().map(|l| l.expect("readable recording"));
    let first = lines.next().expect("a header");
    let header: Value = serde_json::from_str(&first).expect("header in JSON");
    assert_eq!(header["type"], "header");
    let module = machine(&header);
    let tdmr = &header["tdmr"][0];
    let mut r = Replay {
        module: &module,
        tdr: num(&header["tdr"]),
        tdvpr: [num(&header["tdvpr"][0]), num(&header["tdvpr"][1])],
        tdmr: (num(&tdmr["base"]), num(&tdmr["size"])),
        entered: [None, None],
        out: Outcome::default(),
        septe: SeptDump::new(),
        pamt: PamtDump::new(),
        dumped: false,
    };
    for line in lines {
        let v: Value = serde_json::from_str(&line).expect("a record in JSON");
        r.record(&v);
    }
    r.end_of_dump(false);
    r.entered = [None, None];
    r.out
}

/// A machine as the header describes it, with the module up.
fn machine(h: &Value) -> Module<Host, Interpreter> {
    let config = Config {
        hkid_start_bit: num(&h["hkid_start_bit"]) as u32,
        hkid_bits: num(&h["hkid_bits"]) as u32,
        private_hkid_min: num(&h["private_hkid_min"]) as u16,
        private_hkid_max: num(&h["private_hkid_max"]) as u16,
        seamrr_base: num(&h["seamrr"]["base"]),
        seamrr_size: num(&h["seamrr"]["size"]),
        packages: 1,
        lps: 3,
        hp_lock_timeout: 1_000_000_000,
    };
    let module = Module::new(Host::new(config), Interpreter);
    let t = &h["tdmr"][0];
    let reserved = t["rsvd"].as_array().expect("reserved areas");
    let tdmr = TdmrSpec {
        base: num(&t["base"]),
        size: num(&t["size"]),
        reserved: reserved
            .iter()
            .map(|r| (num(&r["offset"]), num(&r["size"])))
            .collect(),
    };
    bring_up(&module, &tdmr, num(&h["global_hkid"]));
    let host = module.platform();
    td_params(
        host,
        num(&h["attributes"]),
        num(&h["eptp_pwl"]),
        num(&h["gpaw"]),
    );
    for k in 0..8u64 {
        let page: Vec<u8> = (0..4096u64).map(|j| ((37 * k + j) % 256) as u8).collect();
        host.write_bytes(layout::SOURCE + k * 4096, &page);
    }
    module
}

impl<'m> Replay<'m> {
    fn m(&self) -> &'m Machine<Host> {
        &self.module.m
    }
    fn host(&self) -> &'m Host {
        self.module.platform()
    }
    fn page(&self, pa: u64) -> Page<'m> {
        Page::at(self.host(), pa).expect("memory")
    }

    fn mismatch(&mut self, index: &str, field: &str, want: impl AsRef<str>, got: impl AsRef<str>) {
        let (want, got) = (want.as_ref(), got.as_ref());
        self.out
            .mismatches
            .push(format!("{index} {field}: expected {want} got {got}"));
    }

    fn compare(&mut self, index: &str, field: &str, want: &Value, got: u64) {
        if num(want) != got {
            self.mismatch(
                index,
                field,
                format!("{:#x}", num(want)),
                format!("{got:#x}"),
            );
        }
    }

    fn record(&mut self, v: &Value) {
        match v["type"].as_str().expect("record type") {
            "op" => self.op(v),
            "mrtd" => {
                for i in 0..6 {
                    let got = self.tdcs_word(tdcs_word::MRTD + i);
                    self.compare("mrtd", &format!("qword {i}"), &v["qwords_le"][i], got);
                }
            }
            "final_septe" => {
                self.dumped = true;
                self.septe
                    .insert((num(&v["gpa"]), num(&v["level"])), num(&v["raw"]));
            }
            "final_pamt" => {
                self.dumped = true;
                let owner = num(&v["owner"]);
                let e = (num(&v["pt"]), owner, num(&v["bepoch"]), num(&v["lock"]));
                self.pamt.insert((num(&v["pa"]), num(&v["size"])), e);
            }
            "final" => self.end_of_dump(true),
            "teardown" => {}
            other => panic!("unknown record type {other}"),
        }
    }

    fn tdcx(&self, i: usize) -> Option<u64> {
        let tdr = self.page(self.tdr);
        (tdr.get(tdr_word::NUM_TDCX) >= 6).then(|| tdr.get(tdr_word::TDCX + i))
    }
    fn tdcs_word(&self, w: usize) -> u64 {
        self.tdcx(0).map_or(0, |pa| self.page(pa).get(w))
    }
    fn root(&self) -> Option<Root> {
        let level = self.tdcs_word(tdcs_word::ROOT_LEVEL) as u8;
        let pa = self.tdcx(3)?;
        (level != 0).then_some(Root { pa, level })
    }

    fn op(&mut self, v: &Value) {
        self.out.calls += 1;
        let index = format!(
            "#{} {}",
            v["i"],
            v["op"].as_str().expect("name of the call")
        );
        let polls = v.get("intr_after").map_or(-1, |n| num(n) as i64);
        self.host().polls_left.store(polls, Ordering::Relaxed);
        let held = v.get("hold").and_then(|h| self.hold(h));
        if v["lp"] == 2 || v.get("rax_in").is_some() {
            self.host_op(v, &index);
        } else {
            self.guest_op(v, &index);
        }
        if let Some(e) = v.get("septe") {
            let level = v["level"].as_i64().unwrap_or(0).max(0) as u8;
            let (l, raw) = self.reach(num(&v["gpa"]), level);
            self.compare(&index, "septe.level", &e["level"], u64::from(l));
            self.compare(&index, "septe.raw", &e["raw"], raw);
        }
        drop(held);
        self.host().polls_left.store(-1, Ordering::Relaxed);
        self.counters(&v["st"], &index);
    }

    /// Takes a lock as a concurrent holder would.
    fn hold(&self, h: &Value) -> Option<Held<'m>> {
        let mode = if h["mode"] == "ex" {
            Mode::Exclusive
        } else {
            Mode::Shared
        };
        let tdcs = |w: usize| Some(self.page(self.tdcx(0)?).word(w));
        let pamt = |pa: u64, size: u8| {
            let e = self.m().pamt_entry(pa, size)?;
            e.lock(mode).ok().map(Held::Hp)
        };
        match h["obj"].as_str().expect("object to hold") {
            "sept_tree" => ShareX::try_lock(tdcs(tdcs_word::SEPT_LOCK)?, mode)
                .ok()
                .map(Held::Tree),
            "epoch" => ShareX::try_lock(tdcs(tdcs_word::EPOCH_LOCK)?, mode)
                .ok()
                .map(Held::Tree),
            "op_state" => ShareXHp::try_lock(tdcs(tdcs_word::OP_STATE_LOCK)?, mode)
                .ok()
                .map(Held::Hp),
            "tdr" => pamt(self.tdr, 0),
            "pamt" => pamt(num(&h["arg"]), num(&h["level"]) as u8),
            "sept_entry" => {
                let w = self
                    .root()?
                    .walk(self.host(), num(&h["arg"]), num(&h["level"]) as u8)?;
                if !w.hit {
                    return None;
                }
                w.entry.lock_guest().ok().map(Held::Entry)
            }
            other => panic!("unknown object {other}"),
        }
    }

    fn host_op(&mut self, v: &Value, index: &str) {
        let i = &v["in"];
        let mut r = Regs {
            rcx: num(&i["rcx"]),
            rdx: num(&i["rdx"]),
            r8: num(&i["r8"]),
            r9: num(&i["r9"]),
            r10: num(&i["r10"]),
            r11: num(&i["r11"]),
            ..Regs::default()
        };
        let lp = num(&v["lp"]) as u32;
        let rax = if v["leaf"] == 0 {
            match self.m().vp_enter_begin(lp, &mut r) {
                Err(status) => status,
                Ok(Enter::Emulated(status)) => status,
                Ok(Enter::Guest(e)) => {
                    if v["kind"] != "tdentry" {
                        self.mismatch(index, "kind", v["kind"].as_str().unwrap_or(""), "tdentry");
                    }
                    self.compare(index, "rip", &v["rip"], e.regs.rip);
                    if let Some(slot) = self.entered.get_mut(lp as usize) {
                        *slot = Some(e);
                    }
                    return;
                }
            }
        } else {
            self.module.seamcall(lp, num(&v["rax_in"]), &mut r)
        };
        self.returned(v, index, "seamret", rax, &r);
    }

    /// Compares a return to the host.
    fn returned(&mut self, v: &Value, index: &str, kind: &str, rax: u64, r: &Regs) {
        if v["kind"] != kind {
            let want = v["kind"].as_str().unwrap_or("").to_string();
            self.mismatch(index, "kind", want, format!("{kind} rax={rax:#x}"));
            return;
        }
        self.compare(index, "rax", &v["rax"], rax);
        let o = &v["out"];
        let regs = [
            ("rcx", r.rcx),
            ("rdx", r.rdx),
            ("r8", r.r8),
            ("r9", r.r9),
            ("r10", r.r10),
            ("r11", r.r11),
        ];
        for (name, got) in regs {
            self.compare(index, name, &o[name], got);
        }
    }

    fn guest_op(&mut self, v: &Value, index: &str) {
        let lp = num(&v["lp"]) as usize;
        let m = self.m();
        let host = self.host();
        if let Some(tsc) = v.get("tsc_after") {
            host.tsc.store(num(tsc), Ordering::Relaxed);
        }
        let Some(mut e) = self.entered.get_mut(lp).and_then(Option::take) else {
            self.mismatch(index, "vcpu", "in the guest", "not");
            return;
        };
        e.regs.rip = num(&v["rip"]);
        let gpa = num(&v["gpa"]);
        let why = match v["op"].as_str().unwrap_or("") {
            "TDG.MEM.PAGE.ACCEPT" | "TDG.VP.VEINFO.GET" => {
                e.regs.gpr[0] = v.get("leaf").map_or(3, num);
                e.regs.gpr[1] = v.get("rcx").map_or(0, num);
                GuestExit::Tdcall { user: false }
            }
            "GUEST.INTR_EXIT" => GuestExit::Interrupt { info: 0x8000_0020 },
            "GUEST.ACCESS" => {
                e.regs.gpr[0] = 0;
                match access(e.tdcs.root(), host, gpa, num(&v["rwx"])) {
                    Ok(hpa) => {
                        if v["kind"] == "access_ok" {
                            self.compare(index, "hpa", &v["hpa"], hpa);
                        } else {
                            let want = v["kind"].as_str().unwrap_or("").to_string();
                            self.mismatch(index, "kind", want, "access_ok");
                        }
                        self.entered[lp] = Some(e);
                        self.zero_step(v, index, lp);
                        return;
                    }
                    Err(qualification) => GuestExit::EptViolation {
                        gpa,
                        gla: gpa,
                        qualification,
                    },
                }
            }
            other => panic!("unknown guest operation {other}"),
        };
        let mut r = Regs::default();
        let end = e.event(m, why, &mut r);
        let (rax, pending) = (e.regs.gpr[0], ve_pending(m, &e));
        match end {
            Some(host_rax) => {
                drop(e);
                self.returned(v, index, "tdexit", host_rax, &r);
            }
            None => {
                self.entered[lp] = Some(e);
                if v["kind"] != "resume" {
                    let want = v["kind"].as_str().unwrap_or("").to_string();
                    self.mismatch(index, "kind", want, format!("resume rax={rax:#x}"));
                } else {
                    self.compare(index, "guest_rax", &v["guest_rax"], rax);
                    let want = v["ve_pending"].as_i64() == Some(-1);
                    if want != pending {
                        self.mismatch(index, "ve_pending", want.to_string(), pending.to_string());
                    }
                }
            }
        }
        self.zero_step(v, index, lp);
    }

    fn zero_step(&mut self, v: &Value, index: &str, lp: usize) {
        let Some(z) = v.get("zs") else { return };
        let page = self.page(self.tdvpr[lp]);
        self.compare(
            index,
            "zs.gpa_list_len",
            &z["gpa_list_len"],
            page.get(word::ZS_LEN),
        );
        self.compare(
            index,
            "zs.epf_count",
            &z["epf_count"],
            page.get(word::ZS_COUNT),
        );
    }

    fn counters(&mut self, st: &Value, index: &str) {
        let tdr = self.page(self.tdr);
        let t = |w: usize| self.tdcs_word(w);
        let got = [
            ("chldcnt", tdr.get(tdr_word::CHLDCNT)),
            ("lc", tdr.get(tdr_word::LIFECYCLE)),
            ("op", t(tdcs_word::OP_STATE)),
            ("epoch", t(tdcs_word::EPOCH)),
            ("vcpus", t(tdcs_word::NUM_VCPUS)),
            ("assoc", t(tdcs_word::NUM_ASSOC)),
        ];
        let refs = [t(tdcs_word::REFCOUNT), t(tdcs_word::REFCOUNT + 1)];
        for (name, v) in got {
            self.compare(index, &format!("st.{name}"), &st[name], v);
        }
        for (i, v) in refs.into_iter().enumerate() {
            self.compare(index, &format!("st.ref[{i}]"), &st["ref"][i], v);
        }
    }

    /// Level and value of the deepest entry that the walk reaches. A level above the
    /// root's ends at the root.
    fn reach(&self, gpa: u64, level: u8) -> (u8, u64) {
        let Some(root) = self.root() else {
            return (level, 0);
        };
        let w = root
            .walk(self.host(), gpa, level.min(root.level))
            .expect("S-EPT in memory");
        (w.entry.level, w.entry.load())
    }

    fn end_of_dump(&mut self, with_septe: bool) {
        if !self.dumped {
            return;
        }
        self.dumped = false;
        if with_septe {
            let mut got = SeptDump::new();
            if let Some(root) = self.root() {
                self.dump_table(root.pa, root.level, 0, &mut got);
            }
            let want = std::mem::take(&mut self.septe);
            self.diff("final_septe", want, got);
        }
        let mut got = PamtDump::new();
        for size in 0..3u8 {
            for pa in (self.tdmr.0..self.tdmr.0 + self.tdmr.1).step_by(1 << shift(size)) {
                let e = self.m().pamt_entry(pa, size).expect("PAMT entry");
                let lock = e.head() & 0xFFFF;
                if e.kind() > 1 || lock != 0 {
                    let v = (u64::from(e.kind()), e.owner(), e.block_epoch(), lock);
                    got.insert((pa, u64::from(size)), v);
                }
            }
        }
        let want = std::mem::take(&mut self.pamt);
        self.diff("final_pamt", want, got);
    }

    fn diff<V: PartialEq + std::fmt::Debug>(
        &mut self,
        what: &str,
        want: BTreeMap<(u64, u64), V>,
        got: BTreeMap<(u64, u64), V>,
    ) {
        let keys: std::collections::BTreeSet<_> = want.keys().chain(got.keys()).copied().collect();
        for k in keys {
            let (w, g) = (want.get(&k), got.get(&k));
            if w != g {
                let field = format!("{:#x} level {}", k.0, k.1);
                self.mismatch(what, &field, format!("{w:x?}"), format!("{g:x?}"));
            }
        }
    }

    fn dump_table(&self, pa: u64, level: u8, gpa: u64, out: &mut SeptDump) {
        let page = self.page(pa);
        for i in 0..512usize {
            let raw = page.get(i);
            if raw == FREE {
                continue;
            }
            let at = gpa | ((i as u64) << shift(level));
            out.insert((at, u64::from(level)), raw);
            if raw & PS == 0 && level > 0 && raw & HPA != 0 {
                self.dump_table(raw & HPA, level - 1, at, out);
            }
        }
    }
}

/// Whether #VE information waits to be read.
fn ve_pending(m: &Machine<Host>, e: &Entered<'_>) -> bool {
    m.ve_info_page(&e.tdvps)
        .is_some_and(|p| p.get(0) >> 32 != 0)
}

/// What the CPU's walk makes of an access: the page, or the exit qualification.
fn access(root: Root, host: &Host, gpa: u64, rwx: u64) -> Result<u64, u64> {
    let w = root.walk(host, gpa, 0).expect("S-EPT in memory");
    if w.raw & PS != 0 && w.raw & rwx == rwx {
        let offset = (1 << shift(w.entry.level)) - 1;
        return Ok(w.raw & HPA & !offset | gpa & offset);
    }
    Err(rwx | ((w.raw & RWX) << 3) | (3 << 7))
}
