// SPDX-License-Identifier: GPL-2.0

//! Recorded calls: of the host, and of a guest.

use std::sync::atomic::Ordering;

use super::fields::Fields;
use super::machine::{Release, HP_LOCK_TIMEOUT};
use super::Replay;
use crate::host::Host;
use crate::module::entered::Entered;
use crate::module::lock::{Mode, ShareX, ShareXHp, TreeLock};
use crate::module::numbers::{leaf, op, st, LEAF_NAMES};
use crate::module::td::{tdcs_word, tdr_word};
use crate::module::tree::{shift, EntryLock, Root, HPA, PS, RWX};
use crate::module::vcpu::Enter;
use crate::module::vp::word;
use crate::module::{GuestExit, Regs};

/// VP.ENTER could not look at the zero-step list.
const TREE_BUSY: u64 = st::OPERAND_BUSY | op::SEPT_TREE;

/// A lock that a recorded call found held.
#[allow(dead_code)] // held until it is dropped
enum Held<'m> {
    Plain(ShareX<'m>),
    Tree(TreeLock<'m>),
    Entry(EntryLock<'m>),
    Hp(ShareXHp<'m>),
}

/// The registers of a call and of its return. The last two are there from some version on.
const REGS: [&str; 8] = ["rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13"];

fn host_regs(mut f: Fields, release: Release) -> Result<Regs, String> {
    let mut r = Regs::default();
    let to = [
        &mut r.rcx, &mut r.rdx, &mut r.r8, &mut r.r9, &mut r.r10, &mut r.r11, &mut r.r12,
        &mut r.r13,
    ];
    let n = if release.r12 { to.len() } else { 6 };
    for (name, to) in REGS.into_iter().zip(to).take(n) {
        *to = f.num(name)?;
    }
    f.end()?;
    Ok(r)
}

/// The reading of a call, which ends with what it says about the outcome.
struct Op {
    index: String,
    name: String,
    lp: u32,
    kind: String,
    f: Fields,
}

impl<'m> Replay<'m> {
    pub fn op(&mut self, mut f: Fields) -> Result<(), String> {
        self.dumps.expect_call()?;
        let i = f.num("i")?;
        if i != self.out.calls {
            return Err(format!("call {i} where call {} should be", self.out.calls));
        }
        self.out.calls += 1;
        let name = f.text("op")?;
        let lp = f.num("lp")?;
        if lp as usize >= self.entered.len() {
            return Err(format!("op.lp: there is no logical processor {lp}"));
        }
        let mut op = Op {
            index: format!("#{i} {name}"),
            name,
            lp: lp as u32,
            kind: f.text("kind")?,
            f,
        };
        let polls = op.f.num_if_any("intr_after")?;
        let polls = polls.map_or(-1, |n| i64::try_from(n).unwrap_or(i64::MAX));
        self.host().polls_left.store(polls, Ordering::Relaxed);
        self.priority_after(&mut op.f)?;
        let jump = op.f.flag("tsc_jump")?;
        let held = match op.f.has("hold") {
            true => Some(self.hold(op.f.object("hold")?, &op.index)?),
            false => None,
        };
        if op.f.has("rax_in") {
            self.host_op(&mut op, jump)?;
        } else {
            self.guest_op(&mut op, jump)?;
        }
        drop(held);
        self.host().polls_left.store(-1, Ordering::Relaxed);
        self.host().polls_to_priority.store(-1, Ordering::Relaxed);
        let st = op.f.object("st")?;
        self.counters(st, &op.index)?;
        op.f.end()
    }

    /// Another host is to fail on the TD's S-EPT tree lock at a poll of this call.
    fn priority_after(&mut self, f: &mut Fields) -> Result<(), String> {
        let Some(polls) = f.num_if_any("hp_after")? else {
            return Ok(());
        };
        let tdcs = self.tdcx(0)?.ok_or("hp_after: there is no TDCS")?;
        let lock = tdcs + 8 * tdcs_word::SEPT_LOCK as u64;
        let polls = i64::try_from(polls).unwrap_or(i64::MAX);
        self.host().priority_at.store(lock, Ordering::Relaxed);
        self.host()
            .polls_to_priority
            .store(polls, Ordering::Relaxed);
        Ok(())
    }

    /// Takes a lock as a concurrent holder would.
    fn hold(&mut self, mut h: Fields, index: &str) -> Result<Option<Held<'m>>, String> {
        let mode = match h.text("mode")?.as_str() {
            "ex" => Mode::Exclusive,
            "sh" => Mode::Shared,
            other => return Err(format!("hold.mode: {other} is neither ex nor sh")),
        };
        let obj = h.text("obj")?;
        let (arg, level) = (h.num("arg")?, h.num("level")?);
        h.end()?;
        let plain = |w: usize| -> Result<_, String> {
            let pa = self.tdcx(0)?.ok_or("hold: there is no TDCS")?;
            Ok(ShareX::try_lock(self.page(pa)?.word(w), mode)
                .ok()
                .map(Held::Plain))
        };
        let pamt = |pa: u64, class: u64| {
            let e = self.m().pamt_entry(pa, class.min(2) as u8);
            let e = e.ok_or_else(|| format!("hold: {pa:#x} is in no TDMR"))?;
            Ok::<_, String>(e.lock(mode).ok().map(Held::Hp))
        };
        let held = match obj.as_str() {
            "sept_tree" => {
                let pa = self.tdcx(0)?.ok_or("hold: there is no TDCS")?;
                let word = self.page(pa)?.word(tdcs_word::SEPT_LOCK);
                let lock = TreeLock::try_lock(word, mode, self.m().rules().tree.priority);
                lock.ok().map(Held::Tree)
            }
            "epoch" => plain(tdcs_word::EPOCH_LOCK)?,
            "op_state" => {
                let pa = self.tdcx(0)?.ok_or("hold: there is no TDCS")?;
                let word = self.page(pa)?.word(tdcs_word::OP_STATE_LOCK);
                ShareXHp::try_lock(word, mode).ok().map(Held::Hp)
            }
            "tdr" => pamt(self.header.tdr, 0)?,
            "pamt" => pamt(arg, level)?,
            "sept_entry" => {
                let root = self.root()?.ok_or("hold: there is no S-EPT")?;
                let walk = root.walk(self.host(), arg, level.min(4) as u8);
                let walk = walk.ok_or("hold: the S-EPT leaves the memory")?;
                let lock = walk.hit.then(|| walk.entry.lock_guest().ok());
                lock.flatten().map(Held::Entry)
            }
            other => return Err(format!("hold.obj: unknown object {other}")),
        };
        if held.is_none() {
            self.mismatch(
                index,
                &format!("hold of {obj}"),
                "taken",
                "busy or not there",
            );
        }
        Ok(held)
    }

    fn host_op(&mut self, op: &mut Op, jump: bool) -> Result<(), String> {
        let rax_in = op.f.num("rax_in")?;
        let (leaf, version) = (op.f.num("leaf")?, op.f.num("ver")?);
        let mut r = host_regs(op.f.object("in")?, self.module_is)?;
        self.check_names(op, rax_in, (leaf, version), r.r8)?;
        let at = self.gpa_and_level(op, leaf, r.rcx)?;
        let host = self.host();
        if jump {
            // Read more than once, the time goes on in between.
            host.tsc_step.store(2 * HP_LOCK_TIMEOUT, Ordering::Relaxed);
            self.jumped = true;
        }
        let number = rax_in as u16;
        let rip = match number == leaf::VP_ENTER {
            true => Some(op.f.num("rip")?),
            false => None,
        };
        // With any other bit the dispatcher refuses the call.
        if rax_in == u64::from(leaf::VP_ENTER) && self.is_ready() {
            self.enter(op, &mut r, rip.unwrap_or(0))?;
        } else {
            let rax = self.module.seamcall(op.lp, rax_in, &mut r);
            if let Some(rip) = rip {
                let sampled = self.sampled[op.lp as usize];
                self.compare(&op.index, "rip", rip, sampled);
            }
            self.returned(op, "seamret", rax, &r)?;
        }
        host.tsc_step.store(0, Ordering::Relaxed);
        self.entry(op, at)
    }

    /// TDH.VP.ENTER. The guest does what the following records say.
    fn enter(&mut self, op: &mut Op, r: &mut Regs, rip: u64) -> Result<(), String> {
        let slot = op.lp as usize;
        let tdvpr = r.rcx;
        let begun = self.m().vp_enter_begin(op.lp, r);
        // A vCPU whose zero-step list is looked at has its RIP sampled.
        let sampled = !matches!(&begun, Err(status) if *status != TREE_BUSY);
        if sampled && self.header.tdvpr.contains(&tdvpr) {
            self.sampled[slot] = self.page(tdvpr)?.get(word::ZS_RIP);
        }
        let rax = match begun {
            Err(status) => status,
            Ok(Enter::Emulated(status)) => status,
            Ok(Enter::Guest(e)) => {
                if op.kind != "tdentry" {
                    self.mismatch(&op.index, "kind", &op.kind, "tdentry");
                    skip_return(&mut op.f, self.module_is)?;
                }
                self.compare(&op.index, "rip", rip, e.regs.rip);
                self.entered[slot] = Some(e);
                return Ok(());
            }
        };
        // What it sampled, or an earlier entry on that processor if it did not come that far.
        self.compare(&op.index, "rip", rip, self.sampled[slot]);
        self.returned(op, "seamret", rax, r)
    }

    /// Compares a return to the host.
    fn returned(&mut self, op: &mut Op, kind: &str, rax: u64, r: &Regs) -> Result<(), String> {
        if op.kind != kind {
            self.mismatch(&op.index, "kind", &op.kind, format!("{kind} rax={rax:#x}"));
            return skip_return(&mut op.f, self.module_is);
        }
        let want = op.f.num("rax")?;
        self.compare(&op.index, "rax", want, rax);
        let want = host_regs(op.f.object("out")?, self.module_is)?;
        let values = |r: &Regs| [r.rcx, r.rdx, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13];
        for ((name, want), got) in REGS.into_iter().zip(values(&want)).zip(values(r)) {
            self.compare(&op.index, name, want, got);
        }
        Ok(())
    }

    fn guest_op(&mut self, op: &mut Op, jump: bool) -> Result<(), String> {
        let lp = op.lp as usize;
        self.clock(op, jump)?;
        let rip = op.f.num("rip")?;
        let gpa = op.f.num("gpa")?;
        let level = op.f.signed("level")?;
        let level = u8::try_from(level.max(0)).map_err(|_| format!("op.level is {level}"))?;
        let mut gpr = [0; 16];
        let mut access = None;
        let why = match op.name.as_str() {
            "TDG.MEM.PAGE.ACCEPT" => {
                (gpr[0], gpr[1]) = (op.f.num("leaf")?, op.f.num("rcx")?);
                self.compare(&op.index, "gpa and level", gpa | u64::from(level), gpr[1]);
                GuestExit::Tdcall { user: false }
            }
            "TDG.VP.VEINFO.GET" => {
                gpr[0] = 3;
                GuestExit::Tdcall { user: false }
            }
            "GUEST.INTR_EXIT" => GuestExit::Interrupt { info: 0x8000_0020 },
            "GUEST.ACCESS" => {
                access = Some(op.f.num("rwx")?);
                // Replaced by what the walk finds.
                GuestExit::Preempted
            }
            other => return Err(format!("unknown guest operation {other}")),
        };
        let Some(mut e) = self.entered[lp].take() else {
            self.mismatch(&op.index, "vcpu", "in the guest", "not there");
            skip_return(&mut op.f, self.module_is)?;
            return self.after_guest_op(op, lp, (gpa, level));
        };
        e.regs.rip = rip;
        (e.regs.gpr[0], e.regs.gpr[1]) = (gpr[0], gpr[1]);
        match access.map(|rwx| walk(e.tdcs.root(), self.host(), gpa, rwx)) {
            None => self.guest_event(op, e, why)?,
            Some(Ok(hpa)) => {
                self.entered[lp] = Some(e);
                if op.kind != "access_ok" {
                    self.mismatch(&op.index, "kind", &op.kind, "access_ok");
                    skip_return(&mut op.f, self.module_is)?;
                } else {
                    let want = op.f.num("hpa")?;
                    self.compare(&op.index, "hpa", want, hpa);
                }
            }
            Some(Err(qualification)) => {
                let why = GuestExit::EptViolation {
                    gpa,
                    gla: gpa,
                    qualification,
                };
                self.guest_event(op, e, why)?;
            }
        }
        self.after_guest_op(op, lp, (gpa, level))
    }

    /// The clock of a guest operation, which is recorded after it.
    fn clock(&mut self, op: &mut Op, jump: bool) -> Result<(), String> {
        let tsc = op.f.num("tsc_after")?;
        let went_on = tsc.wrapping_sub(self.tsc) >= HP_LOCK_TIMEOUT;
        // An access that succeeds reads no clock.
        if !self.jumped && went_on != jump && op.kind != "access_ok" {
            self.mismatch(&op.index, "tsc_jump", jump, went_on);
        }
        self.tsc = tsc;
        self.jumped = jump && !went_on;
        self.host().tsc.store(tsc, Ordering::Relaxed);
        Ok(())
    }

    /// The guest stopped.
    fn guest_event(
        &mut self,
        op: &mut Op,
        mut e: Entered<'m>,
        why: GuestExit,
    ) -> Result<(), String> {
        let mut r = Regs::default();
        if let Some(host_rax) = e.event(self.m(), why, &mut r) {
            drop(e);
            return self.returned(op, "tdexit", host_rax, &r);
        }
        let rax = e.regs.gpr[0];
        let page = self.m().ve_info_page(&e.tdvps);
        let pending = page.is_some_and(|p| p.get(0) >> 32 != 0);
        self.entered[op.lp as usize] = Some(e);
        if op.kind != "resume" {
            self.mismatch(&op.index, "kind", &op.kind, format!("resume rax={rax:#x}"));
            return skip_return(&mut op.f, self.module_is);
        }
        let want = op.f.num("guest_rax")?;
        self.compare(&op.index, "guest_rax", want, rax);
        // The word that the processor sets to FFFFFFFFh, as a signed number.
        let want = match op.f.signed("ve_pending")? {
            0 => false,
            -1 => true,
            other => return Err(format!("op.ve_pending is {other}")),
        };
        if want != pending {
            self.mismatch(&op.index, "ve_pending", want, pending);
        }
        Ok(())
    }

    /// Zero-step state and S-EPT entry.
    fn after_guest_op(&mut self, op: &mut Op, lp: usize, at: (u64, u8)) -> Result<(), String> {
        let mut z = op.f.object("zs")?;
        let (len, count) = (z.num("gpa_list_len")?, z.num("epf_count")?);
        z.end()?;
        let Some(&tdvpr) = self.header.tdvpr.get(lp) else {
            return Err(format!("logical processor {lp} has no vCPU"));
        };
        let page = self.page(tdvpr)?;
        self.compare(&op.index, "zs.gpa_list_len", len, page.get(word::ZS_LEN));
        self.compare(&op.index, "zs.epf_count", count, page.get(word::ZS_COUNT));
        self.entry(op, Some(at))
    }

    /// Name, leaf, version and page index only say again what the registers say.
    fn check_names(
        &mut self,
        op: &mut Op,
        rax_in: u64,
        (leaf, version): (u64, u64),
        r8: u64,
    ) -> Result<(), String> {
        let index = op.index.clone();
        self.compare(&index, "leaf", leaf, rax_in & 0xFFFF);
        self.compare(&index, "ver", version, (rax_in >> 16) & 0xFF);
        let known = LEAF_NAMES.iter().find(|l| u64::from(l.0) == leaf);
        if let Some((_, known)) = known {
            let name = op.name.to_lowercase().replace('.', "_");
            if name != *known {
                self.mismatch(&index, "op", name, known);
            }
        }
        if let Some(page) = op.f.num_if_any("page")? {
            let (base, n) = self.header.pages;
            if page >= n {
                return Err(format!("op.page: there is no page {page}"));
            }
            self.compare(&index, "page", base + 4096 * page, r8);
        }
        Ok(())
    }

    /// The symbolic form of RCX, where there is one.
    fn gpa_and_level(
        &mut self,
        op: &mut Op,
        leaf: u64,
        rcx: u64,
    ) -> Result<Option<(u64, u8)>, String> {
        let Some(gpa) = op.f.num_if_any("gpa")? else {
            return Ok(None);
        };
        let level = op.f.num("level")?;
        self.compare(&op.index, "gpa", gpa, rcx & HPA);
        // MR.EXTEND takes an address without level.
        if leaf != u64::from(leaf::MR_EXTEND) {
            self.compare(&op.index, "level", level, rcx & 7);
        }
        Ok(Some((gpa, level.min(7) as u8)))
    }

    /// The entry that the walk reaches. A level above the root's ends at the root.
    fn entry(&mut self, op: &mut Op, at: Option<(u64, u8)>) -> Result<(), String> {
        if !op.f.has("septe") {
            return Ok(());
        }
        let mut want = op.f.object("septe")?;
        let (want_level, want_raw) = (want.num("level")?, want.num("raw")?);
        want.end()?;
        let (gpa, level) = at.ok_or("op.septe without op.gpa")?;
        let Some(root) = self.root()? else {
            self.compare(&op.index, "septe.level", want_level, level.into());
            self.compare(&op.index, "septe.raw", want_raw, 0);
            return Ok(());
        };
        let walk = root.walk(self.host(), gpa, level.min(root.level));
        let walk = walk.ok_or("the S-EPT leaves the memory")?;
        self.compare(
            &op.index,
            "septe.level",
            want_level,
            walk.entry.level.into(),
        );
        self.compare(&op.index, "septe.raw", want_raw, walk.entry.in_memory());
        Ok(())
    }

    fn counters(&mut self, mut st: Fields, index: &str) -> Result<(), String> {
        let tdr = self.page(self.header.tdr)?;
        let got = [
            ("chldcnt", tdr.get(tdr_word::CHLDCNT)),
            ("lc", tdr.get(tdr_word::LIFECYCLE)),
            ("op", self.tdcs_word(tdcs_word::OP_STATE)?),
            ("epoch", self.tdcs_word(tdcs_word::EPOCH)?),
            ("vcpus", self.tdcs_word(tdcs_word::NUM_VCPUS)?),
            ("assoc", self.tdcs_word(tdcs_word::NUM_ASSOC)?),
        ];
        for (name, got) in got {
            let want = st.num(name)?;
            self.compare(index, &format!("st.{name}"), want, got);
        }
        let want: [u64; 2] = st.nums("ref")?;
        st.end()?;
        for (i, want) in want.into_iter().enumerate() {
            let got = self.tdcs_word(tdcs_word::REFCOUNT + i)?;
            self.compare(index, &format!("st.ref[{i}]"), want, got);
        }
        Ok(())
    }
}

/// The call ended in another way than recorded: what was recorded about its end cannot be
/// compared, but must be well formed.
fn skip_return(f: &mut Fields, release: Release) -> Result<(), String> {
    for name in ["rax", "guest_rax", "hpa"] {
        f.num_if_any(name)?;
    }
    if f.has("ve_pending") {
        f.signed("ve_pending")?;
    }
    match f.has("out") {
        true => host_regs(f.object("out")?, release).map(|_| ()),
        false => Ok(()),
    }
}

/// What the CPU's walk makes of an access: the page, or the exit qualification.
fn walk(root: Root, host: &Host, gpa: u64, rwx: u64) -> Result<u64, u64> {
    let Some(w) = root.walk(host, gpa, 0) else {
        return Err(rwx | (3 << 7));
    };
    if w.raw & PS != 0 && w.raw & rwx == rwx {
        let offset = (1 << shift(w.entry.level)) - 1;
        return Ok(w.raw & HPA & !offset | gpa & offset);
    }
    Err(rwx | ((w.raw & RWX) << 3) | (3 << 7))
}
