// SPDX-License-Identifier: GPL-2.0

//! What the interface promises, without a line of the mirror: a set of mappings, injective in GFN
//! and in PFN, beside what KVM knows (memslots, private and shared, the direct table).

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::Arc;

use tdx_mirror_host::base::addr::{Gfn, Pfn};
use tdx_mirror_host::base::level::{Level, Position};
use tdx_mirror_host::mirror::error::{Leak, MapError, MapOutcome, RetryReason};
use tdx_mirror_host::mirror::spte::SpteKind;
use tdx_mirror_host::mock::Event::Call;
use tdx_mirror_host::sept::{BUILD_TRIES, DEBT_SLOTS, FAULT_TRIES, MAX_ENTERS};
use tdx_mirror_host::tdx::call::Kind;

use crate::backend::Fail;
use crate::compare;
use crate::ops::{Fault, Op, Page, Step, GFNS, SLOTS};
use crate::tally::Tally;
use crate::td::{data_pfn, Accepted, Machine, Outcome, Td, ALREADY_ACCEPTED, CODE, RESET};

/// Data pages that are handed out in turn, so that each comes back under other GFNs.
const DATA_PAGES: u64 = 40;
/// Steps for which a dead VM is kept.
const AFTERLIFE: u32 = 6;
/// Status without operand that a guest's ACCEPT answers when the entry is locked or marked.
const GUEST_BUSY: u64 = 0x8000_0200_0000_0001;

/// A TD and what is to be true of it.
pub struct Model {
    pub td: Td,
    /// After how many steps all entries are compared, not only those of the GFNs in use.
    pub(crate) every: u32,
    pub(crate) step: u32,
    built: bool,
    pub(crate) bugged: bool,
    dead_for: u32,
    pub(crate) mapped: BTreeMap<u64, u64>,
    pub(crate) quarantined: BTreeMap<u64, u64>,
    /// Whether the guest has accepted what is mapped.
    pub(crate) accepted: [bool; GFNS.len()],
    /// The direct table: GFNs that are mapped shared.
    pub(crate) direct: [bool; GFNS.len()],
    shared: [bool; GFNS.len()],
    slots: [bool; SLOTS.len()],
    backing: [u64; GFNS.len()],
    free: VecDeque<u64>,
    /// The ACCEPT that the guest is in, and VP.ENTERs that ended in an EPT violation there.
    accepting: Option<usize>,
    faults: u32,
    tally: Arc<Tally>,
    accepts: u64,
    shares: u64,
}

fn slot_of(gfn: usize) -> usize {
    let inside = |s: &(usize, usize)| (s.0..s.1).contains(&gfn);
    SLOTS.iter().position(inside).expect("a slot for each GFN")
}

impl Model {
    pub fn new(machine: &Arc<Machine>, every: u32, tally: &Arc<Tally>) -> Self {
        let mut free: VecDeque<u64> = (0..DATA_PAGES).map(data_pfn).collect();
        let backing = std::array::from_fn(|_| free.pop_front().expect("a page"));
        let td = Td::new(machine, 1, |c| c, |b| b);
        let mut mapped = BTreeMap::new();
        for (n, gpa) in [CODE, RESET].into_iter().enumerate() {
            let pfn = data_pfn(DATA_PAGES + n as u64);
            assert_eq!(td.map(gpa >> 12, pfn), Ok(MapOutcome::Fixed));
            mapped.insert(gpa >> 12, pfn);
        }
        Self {
            td,
            every: every.max(1),
            step: 0,
            built: false,
            bugged: false,
            dead_for: 0,
            mapped,
            quarantined: BTreeMap::new(),
            accepted: [false; GFNS.len()],
            direct: [false; GFNS.len()],
            shared: [false; GFNS.len()],
            slots: [true; SLOTS.len()],
            backing,
            free,
            accepting: None,
            faults: 0,
            tally: tally.clone(),
            accepts: 0,
            shares: 0,
        }
    }

    fn calls(&self) -> u64 {
        [Kind::PageAdd, Kind::PageAug, Kind::SeptAdd]
            .map(|kind| self.td.backend().count(Call(kind)))
            .iter()
            .sum()
    }

    /// Whether what goes wrong is contention for at least `times` calls.
    fn contends(&self, fault: Option<Fault>, times: u32) -> bool {
        match fault {
            Some(Fault::Answer {
                call,
                times: n,
                status,
                ..
            }) => call.contends(status) && n >= times,
            Some(Fault::Locked { calls, .. }) => calls >= times,
            None => false,
        }
    }

    /// Whether what goes wrong is more than contention.
    fn fails(&self, fault: Option<Fault>) -> bool {
        matches!(fault, Some(Fault::Answer { call, status, .. }) if !call.contends(status))
    }

    fn begin(&self, fault: Option<Fault>) {
        match fault {
            Some(Fault::Answer {
                call,
                skip,
                times,
                status,
            }) => self.td.backend().fail(Fail {
                call,
                skip,
                times,
                status,
            }),
            Some(Fault::Locked { gfn, calls }) => {
                let deepest = [Level::L4K, Level::L2M, Level::L1G, Level::L512G]
                    .into_iter()
                    .find_map(|l| Some((l, compare::word_of(&self.td, GFNS[gfn], l)?)));
                let (level, word) = deepest.expect("the root has a word for each GFN");
                let at = Position::covering(Gfn::new(GFNS[gfn]).expect("a GFN"), level);
                self.td.backend().hold_entry(at, word, calls);
            }
            None => (),
        }
    }

    /// The call that goes wrong is the one that is made in this phase of the TD.
    fn of_phase(&self, mut fault: Fault) -> Fault {
        if let Fault::Answer { call, .. } = &mut fault {
            *call = call.of_phase(self.built);
        }
        fault
    }

    /// One operation, then the comparison.
    pub fn run(mut self: Box<Self>, step: &Step) -> Box<Self> {
        let (op, fault) = *step;
        let fault = fault.map(|fault| self.of_phase(fault));
        if op == Op::Reboot || self.dead_for >= AFTERLIFE {
            let (machine, every, tally) = (self.td.machine.clone(), self.every, self.tally.clone());
            self.end(fault);
            return Box::new(Self::new(&machine, every, &tally));
        }
        self.begin(fault);
        self.operate(op, fault);
        self.td.backend().heal();
        self.dead_for += u32::from(self.bugged);
        self.step += 1;
        self.check();
        self
    }

    fn operate(&mut self, op: Op, fault: Option<Fault>) {
        match op {
            Op::Map { gfn, page, cached } => {
                let pfn = match page {
                    Page::Backing => self.backing[gfn],
                    Page::Other => self.free[0],
                    Page::Of(other) => self.backing[other],
                };
                _ = self.fault(gfn, pfn, cached, fault);
            }
            Op::MapInvalid { large } => self.map_invalid(large),
            Op::Prefault { first, count } => self.prefault(first, count, fault),
            Op::Zap {
                first,
                pages,
                may_yield,
            } => {
                let start = GFNS[first];
                self.zap(start, start + pages, may_yield, fault);
                for (gfn, at) in GFNS.into_iter().enumerate() {
                    if (start..start + pages).contains(&at) {
                        self.new_backing(gfn);
                    }
                }
            }
            Op::Convert {
                first,
                count,
                shared,
            } => self.convert(first, count, shared, fault),
            Op::FaultShared { gfn } => {
                let there = self.slots[slot_of(gfn)] && self.shared[gfn];
                self.direct[gfn] |= there && !self.bugged;
                self.shares += u64::from(self.direct[gfn]);
            }
            Op::Accept { gfn } => self.accept(gfn, fault),
            Op::Enter => {
                let guest = self.td.machine.vmm.module.guest();
                if self.built && !self.bugged && !guest.is_inside() {
                    self.td.enter_and_stay();
                    assert!(guest.is_inside(), "VP.ENTER: {:#x}", self.leave());
                }
            }
            Op::Leave => _ = self.leave(),
            Op::DeleteSlot { slot } => {
                let (first, end) = SLOTS[slot];
                let (start, end) = (GFNS[first], GFNS[end - 1] + 1);
                self.slots[slot] = false;
                self.zap(start, end, true, fault);
                for gfn in first..SLOTS[slot].1 {
                    self.direct[gfn] = false;
                }
            }
            Op::CreateSlot { slot } => self.slots[slot] = true,
            Op::Finalize => {
                if !self.built && !self.bugged {
                    self.td.finalize();
                    self.built = true;
                }
            }
            Op::Reboot => (),
        }
    }

    /// Other pages for a GFN whose page is in no table.
    fn new_backing(&mut self, gfn: usize) {
        let old = self.backing[gfn];
        let in_use = |m: &BTreeMap<u64, u64>| m.values().any(|p| *p == old);
        if in_use(&self.quarantined) {
            // Held: it never comes back to the allocator.
            self.backing[gfn] = self.free.pop_front().expect("a page");
        } else if !in_use(&self.mapped) {
            self.free.push_back(old);
            self.backing[gfn] = self.free.pop_front().expect("a page");
        }
    }

    /// A private fault as KVM handles it.  Answers whether the page is mapped.
    fn fault(&mut self, gfn: usize, pfn: u64, cached: u32, fault: Option<Fault>) -> bool {
        if !self.slots[slot_of(gfn)] || self.shared[gfn] {
            // To userspace: the mirror does not hear of it.
            return false;
        }
        let before = self.calls();
        let outcome = self.map(GFNS[gfn], pfn, cached);
        let calls = self.calls() - before;
        self.check_map(gfn, pfn, cached, outcome, calls, fault);
        matches!(outcome, Ok(MapOutcome::Fixed | MapOutcome::Spurious))
    }

    fn map(&self, gfn: u64, pfn: u64, cached: u32) -> Outcome {
        let mut caches = self.td.caches();
        caches.left = cached;
        let (gfn, pfn) = (Gfn::new(gfn).unwrap(), Pfn::new(pfn).unwrap());
        self.td.shared(|l| {
            let phase = self.td.mirror.phase(l);
            self.td
                .mirror
                .map(l, phase, &mut caches, gfn, pfn, Level::L4K)
        })
    }

    fn check_map(
        &mut self,
        gfn: usize,
        pfn: u64,
        cached: u32,
        outcome: Outcome,
        calls: u64,
        fault: Option<Fault>,
    ) {
        if self.bugged {
            assert_eq!(outcome, Err(MapError::Bugged));
            assert_eq!(calls, 0, "SEAMCALL of a dead VM");
            return;
        }
        match self.mapped.get(&GFNS[gfn]) {
            Some(p) if *p == pfn => {
                assert_eq!((outcome, calls), (Ok(MapOutcome::Spurious), 0));
                return;
            }
            Some(_) => {
                assert_eq!((outcome, calls), (Err(MapError::Bugged), 0));
                self.bugged = true;
                return;
            }
            None => (),
        }
        let taken = self.mapped.values().any(|p| *p == pfn);
        match outcome {
            Ok(MapOutcome::Fixed) => {
                assert!(!taken, "a page mapped twice");
                self.mapped.insert(GFNS[gfn], pfn);
                self.accepted[gfn] = !self.built;
            }
            Ok(MapOutcome::Retry(RetryReason::Contended(_))) => {
                let budget = if self.built { FAULT_TRIES } else { BUILD_TRIES };
                assert!(self.contends(fault, budget), "{fault:?}");
            }
            Ok(MapOutcome::Retry(RetryReason::NoPage)) => assert!(cached < 3),
            Err(MapError::Bugged) => {
                assert!(taken || self.fails(fault), "bugged without a cause");
                self.bugged = true;
            }
            other => panic!("map answered {other:?}"),
        }
    }

    fn map_invalid(&self, large: bool) {
        let before = self.calls();
        let (gfn, level) = match large {
            true => (Gfn::new(512), Level::L2M),
            false => (Gfn::new(1 << crate::td::GFN_BITS), Level::L4K),
        };
        let (gfn, pfn) = (gfn.unwrap(), Pfn::new(self.free[0]).unwrap());
        let mut caches = self.td.caches();
        let outcome = self.td.shared(|l| {
            let phase = self.td.mirror.phase(l);
            self.td.mirror.map(l, phase, &mut caches, gfn, pfn, level)
        });
        assert_eq!(outcome, Err(MapError::Invalid));
        assert_eq!(self.calls(), before);
    }

    fn prefault(&mut self, first: usize, count: usize, fault: Option<Fault>) {
        if !self.built {
            return;
        }
        for gfn in first..(first + count).min(GFNS.len()) {
            // It asks again a bounded number of times, then goes to userspace.
            let served = (0..3).any(|_| self.fault(gfn, self.backing[gfn], u32::MAX, fault));
            if !served {
                return;
            }
        }
    }

    fn zap(&mut self, start: u64, end: u64, may_yield: bool, fault: Option<Fault>) {
        let was_bugged = self.bugged;
        let reads = self.td.backend().count(Call(Kind::SeptRd));
        let failed = self.td.backend().failed();
        self.td.host().resched.store(2, SeqCst);
        let zapped = self.td.zap(start, end, may_yield);
        self.td.host().resched.store(0, SeqCst);
        let inside: Vec<(u64, u64)> = self
            .mapped
            .range(start..end)
            .map(|m| (*m.0, *m.1))
            .collect();
        let mut lost = 0;
        for &(gfn, pfn) in &inside {
            self.mapped.remove(&gfn);
            if let SpteKind::Quarantined(p) = self.td.kind(gfn) {
                assert_eq!(p.as_u64(), pfn);
                self.quarantined.insert(gfn, pfn);
                lost += 1;
            }
            if let Some(i) = GFNS.iter().position(|g| *g == gfn) {
                self.accepted[i] = false;
            }
        }
        assert_eq!(zapped as usize, inside.len() - lost, "leaves zapped");
        self.bugged |= self.td.mirror.is_bugged();
        if lost > 0 || self.bugged != was_bugged {
            // Not for contention that one kick resolves.
            let twice = matches!(fault, Some(Fault::Answer { times, .. }) if times >= 2);
            assert!(
                self.fails(fault) || twice,
                "lost without a cause: {fault:?}"
            );
            assert!(lost > 0 || self.td.backend().count(Call(Kind::SeptRd)) > reads);
        }
        let read = matches!(
            fault,
            Some(Fault::Answer {
                call: Call(Kind::SeptRd),
                ..
            })
        );
        if self.fails(fault) && !read && self.td.backend().failed() > failed {
            assert!(lost > 0, "what failed is taken for done: {fault:?}");
        }
        assert!(self.bugged || lost == 0, "a page is lost, the VM lives");
        assert!(!self.td.backend().is_holding(), "vCPUs are still held");
    }

    fn convert(&mut self, first: usize, count: usize, shared: bool, fault: Option<Fault>) {
        for (gfn, at) in GFNS.into_iter().enumerate().skip(first).take(count) {
            if shared {
                self.zap(at, at + 1, true, fault);
                self.new_backing(gfn);
            } else {
                self.direct[gfn] = false;
            }
            self.shared[gfn] = shared;
        }
    }

    fn leave(&self) -> u64 {
        self.td.machine.vmm.module.guest().kick();
        self.td.machine.vcpu.wait_out()
    }

    /// Runs the vCPU, whose program accepts a page, as KVM runs it.
    fn accept(&mut self, gfn: usize, fault: Option<Fault>) {
        let there = |gpa: u64| self.mapped.contains_key(&(gpa >> 12));
        if !self.built || self.bugged || !there(CODE) || !there(RESET) {
            return;
        }
        _ = self.leave();
        let gfn = *self.accepting.get_or_insert(gfn);
        let mut entered = false;
        loop {
            if self.faults >= MAX_ENTERS || entered {
                // Held until the fault is served.
                if !self.fault(gfn, self.backing[gfn], u32::MAX, fault) {
                    return;
                }
            }
            match self.td.accept(GFNS[gfn]) {
                Accepted::Violation(at) => {
                    assert_eq!(at, GFNS[gfn]);
                    assert!(!self.mapped.contains_key(&at), "no access to a mapped page");
                    assert!(!entered, "served and faulting again");
                    self.faults += 1;
                    assert!(self.faults <= MAX_ENTERS, "VP.ENTERs without progress");
                    entered = true;
                }
                Accepted::Done(rax) => return self.accepted(gfn, rax, fault),
                Accepted::Other(rax) => panic!("VP.ENTER answered {rax:#x}"),
            }
        }
    }

    fn accepted(&mut self, gfn: usize, rax: u64, fault: Option<Fault>) {
        self.accepting = None;
        self.faults = 0;
        if rax == GUEST_BUSY {
            // Of a free entry as well: the lock comes before the look at the state.
            let locked = matches!(fault, Some(Fault::Locked { gfn: g, .. }) if g == gfn);
            self.td.backend().heal();
            if !locked {
                self.starved(gfn);
            }
            return;
        }
        assert!(
            self.mapped.contains_key(&GFNS[gfn]),
            "accepted from nowhere"
        );
        let want = match self.accepted[gfn] {
            true => ALREADY_ACCEPTED,
            false => 0,
        };
        assert_eq!(rax, want, "ACCEPT of {:#x}", GFNS[gfn]);
        self.accepts += u64::from(rax == 0);
        self.accepted[gfn] = true;
    }

    /// The guest met a mark that a SEAMCALL left.  It is owed, and faults pay it.
    fn starved(&mut self, gfn: usize) {
        let sept = self.td.mirror.external();
        assert!(
            sept.owes(Gfn::new(GFNS[gfn]).unwrap()) || sept.stats().debts_lost.get() > 0,
            "a mark at {:#x} that nobody owes",
            GFNS[gfn]
        );
        if sept.stats().debts_lost.get() > 0 {
            return;
        }
        for _ in 0..DEBT_SLOTS {
            let mapped = self.mapped.get(&GFNS[gfn]).copied();
            if !self.fault(gfn, mapped.unwrap_or(self.backing[gfn]), u32::MAX, None) {
                return;
            }
        }
        let pending = !self.accepted[gfn];
        let want = if pending { 0 } else { ALREADY_ACCEPTED };
        assert_eq!(self.td.accept(GFNS[gfn]), Accepted::Done(want));
        self.accepted[gfn] = true;
    }

    /// The TD ends, as it is closed.
    pub fn end(self, fault: Option<Fault>) {
        _ = self.leave();
        let mut this = self;
        this.zap(0, 1 << crate::td::GFN_BITS, true, None);
        this.check_whole();
        let reclaim = match fault {
            Some(Fault::Answer { call, .. }) => {
                matches!(call, Call(Kind::ReclaimTable) | Call(Kind::ReclaimData))
            }
            _ => false,
        };
        if reclaim {
            this.begin(fault);
        }
        let td = this.td;
        let failed = td.backend().failed();
        td.teardown();
        td.backend().heal();
        this.tally.add(&td, this.accepts, this.shares);
        let stats = td.mirror.stats();
        let leaks = td.host().leaks.lock().unwrap().clone();
        let data = leaks.iter().filter(|l| matches!(l, Leak::Data { .. }));
        let data = data.count() as u64;
        assert_eq!(leaks.len() as u64, stats.leaked.get());
        assert_eq!(stats.quarantined.get(), stats.resolved.get() + data);
        assert_eq!(td.host().held.lock().unwrap().len() as u64, data);
        let tables = leaks.len() as u64 - data;
        let failed = td.backend().failed() - failed;
        // Each table that could not be reclaimed, and no other; one try each.
        if matches!(
            fault,
            Some(Fault::Answer {
                call: Call(Kind::ReclaimTable),
                ..
            })
        ) {
            assert_eq!(tables, failed, "tables leaked");
        } else {
            assert_eq!(tables, 0, "a table is lost without a cause");
            assert!(data >= failed, "a page is lost and not counted");
        }
        assert_eq!(td.destroy(), leaks.len() as u64);
    }
}
