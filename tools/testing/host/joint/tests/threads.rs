// SPDX-License-Identifier: GPL-2.0

//! Threads of the machine on one TD, through the mirror and the software TDX module: vCPUs that
//! accept, prefault, holes and conversions, walks.  10^6 steps, or `TDX_MIRROR_THREAD_STEPS`.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tdx_emu_host::module::Regs;
use tdx_emu_host::vmm::regs;
use tdx_joint_host::compare;
use tdx_joint_host::guests::{gated, Gate, Memory, Served};
use tdx_joint_host::td::{data_pfn, Machine, Td, ALREADY_ACCEPTED, ASK, CODE, LP, RESET, TELL};
use tdx_joint_host::watch::Watch;
use tdx_mirror_host::mirror::error::{MapOutcome, RetryReason};
use tdx_mirror_host::mirror::spte::SpteKind;
use tdx_mirror_host::mock::Event::{self, Call};
use tdx_mirror_host::sept::progress::{Conditions, Notes, Policy, Progress};
use tdx_mirror_host::sept::MAX_ENTERS;
use tdx_mirror_host::tdx::call::{Kind, KINDS};
use tdx_mirror_host::tdx::status::TdxStatus;

const VCPUS: usize = 2;
/// Those of the vCPUs first, then one each that prefaults, takes pages away, and walks.
const THREADS: usize = VCPUS + 3;
/// Steps by which a thread may be ahead of another, or the quick ones would soon be alone.
const AHEAD: u64 = 64;
/// Time without a step of any thread after which the test is cut.
const STUCK: Duration = Duration::from_secs(60);
/// What a guest's ACCEPT answers where it met a lock or a mark.
const GUEST_BUSY: u64 = 0x8000_0200_0000_0001;
/// Nobody.
const NONE: u64 = u64::MAX;

/// A small generator, so that what a thread does can be repeated.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// A finalized TD with the guest's code.
fn built(machine: &Arc<Machine>, gate: &Arc<Gate>, vcpus: usize, data: u64) -> Td {
    let td = Td::new(machine, vcpus as u32, |c| c, |b| gated(gate, b));
    for (n, gpa) in [CODE, RESET].into_iter().enumerate() {
        let outcome = td.map(gpa >> 12, data_pfn(data + n as u64));
        assert_eq!(outcome, Ok(MapOutcome::Fixed));
    }
    td.finalize();
    td
}

/// What all threads of the stress share.
struct Stress<'s> {
    td: &'s Td,
    gate: &'s Gate,
    memory: &'s Memory,
    progress: &'s Progress,
    stop: &'s AtomicBool,
    watch: Watch<THREADS>,
    fixed: AtomicU64,
    zapped: AtomicU64,
    accepts: AtomicU64,
    /// ACCEPTs that met a lock or a mark.
    guest_busy: AtomicU64,
    /// GFN that a vCPU has faulted on again and again: whoever takes pages away leaves it alone,
    /// or no policy of the host could let that guest go on.
    needed: [AtomicU64; VCPUS],
    most_faults: AtomicU64,
}

impl Stress<'_> {
    fn going(&self, thread: usize) -> bool {
        let done = self.watch.step(thread);
        self.watch.doing(thread, "waits for the slowest");
        while self.watch.fewest() + AHEAD < done && !self.stop.load(SeqCst) {
            thread::yield_now();
        }
        self.watch.doing(thread, "goes on");
        !self.stop.load(SeqCst)
    }

    /// SEAMCALLs and ACCEPTs that are late with their locks held, now and then, and one entry that
    /// stays locked for some calls or until a kick, as if a vCPU were in ACCEPT.
    fn inject(&self, round: u64) {
        let plain = [
            ("tdh_mem_page_aug", 128),
            ("tdh_mem_sept_add", 4),
            ("tdh_mem_range_block", 256),
            ("tdh_mem_page_remove", 256),
            ("tdh_mem_track", 64),
            ("tdg_mem_page_accept", 32),
        ]
        .map(|(leaf, of)| format!("delay {leaf} prob 1/{of} {round} 20us\n"))
        .concat();
        let i = (round * 7) as usize % self.memory.len();
        let gpa = self.memory.gfn(i) << 12;
        let held = format!("hold entry {gpa:x} 0 guest for=25\n");
        self.gate.inject(&self.td.machine.vmm, &plain, &held);
    }

    /// For the report on threads that are stuck.
    fn state(&self) -> String {
        let shared = (0..self.memory.len()).filter(|i| !self.memory.is_private(*i));
        format!(
            "  {} of {} GFNs shared; vCPUs need {:x?}; vCPUs held out: {}",
            shared.count(),
            self.memory.len(),
            self.needed,
            self.gate.is_held()
        )
    }

    fn serve(&self, notes: &mut Notes, i: usize, now: Conditions) -> Served {
        let served = self.memory.fault(self.td, self.progress, notes, i, now);
        if served == Served::Mapped(false) {
            self.fixed.fetch_add(1, SeqCst);
        }
        served
    }

    fn vcpu(&self, v: usize) {
        let mut rng = Rng(0x9e37_79b9_7f4a_7c15 + v as u64);
        let mut notes = Notes::default();
        let tdvpr = self.td.backend().td.vcpus[v][0];
        let mut answer = 0;
        let mut wanted = None;
        while self.going(v) {
            if let (true, Some(i)) = (notes.held, wanted) {
                // Userspace calls KVM_RUN again; the fault comes first.
                if !self.memory.is_private(i) {
                    self.watch.doing(v, "makes a page private, held");
                    self.memory.invalidate_one(self.td, i);
                }
                self.watch.doing(v, "faults, held");
                if !matches!(
                    self.serve(&mut notes, i, Conditions::NONE),
                    Served::Mapped(_)
                ) {
                    continue;
                }
            }
            let r = Regs {
                r12: answer,
                ..regs(tdvpr, 0, 0, 0)
            };
            self.watch.doing(v, "waits to enter");
            self.gate.enter(v);
            self.watch.doing(v, "is inside");
            let (rax, out) = self.td.machine.vmm.call_on(LP + v as u32, 0, r);
            self.gate.leave(v);
            self.watch.doing(v, "handles the exit");
            match (rax, out.r11) {
                (77, ASK) => {
                    self.watch.doing(v, "picks a GFN");
                    let pick = || rng.below(self.memory.len() as u64) as usize;
                    let i = self.memory.pick_private(self.td, pick);
                    answer = self.memory.gfn(i) << 12;
                }
                (77, TELL) => {
                    match out.r13 {
                        0 => self.accepts.fetch_add(1, SeqCst),
                        ALREADY_ACCEPTED => 0,
                        GUEST_BUSY => self.guest_busy.fetch_add(1, SeqCst),
                        rax => panic!("ACCEPT answered {rax:#x}"),
                    };
                    (notes.faults, wanted) = (0, None);
                    self.needed[v].store(NONE, SeqCst);
                }
                (48, _) => {
                    let i = self.memory.index_of(out.r8 >> 12);
                    notes.faults += 1;
                    self.most_faults.fetch_max(u64::from(notes.faults), SeqCst);
                    if notes.faults == 2 {
                        self.needed[v].store(self.memory.gfn(i), SeqCst);
                        self.memory.settle();
                    }
                    wanted = Some(i);
                    if self.serve(&mut notes, i, Conditions::NONE) == Served::Exit {
                        // KVM_EXIT_MEMORY_FAULT: the VMM makes it private.
                        self.memory.invalidate_one(self.td, i);
                        self.serve(&mut notes, i, Conditions::PREFAULT);
                    }
                }
                (6, _) => (),
                _ if rax >> 32 == 0x8000_0200 => {
                    _ = self.progress.vp_enter_busy(TdxStatus::new(rax));
                }
                _ => panic!("VP.ENTER answered {rax:#x}"),
            }
        }
    }

    fn prefault(&self) {
        let mut rng = Rng(0x1234_5678);
        let mut notes = Notes::default();
        while self.going(VCPUS) {
            let i = rng.below(self.memory.len() as u64) as usize;
            self.serve(&mut notes, i, Conditions::PREFAULT);
            notes = Notes::default();
        }
    }

    fn zapper(&self) {
        let mut rng = Rng(0x8765_4321);
        while self.going(VCPUS + 1) {
            let first = rng.below(self.memory.len() as u64) as usize;
            let end = (first + 1 + rng.below(6) as usize).min(self.memory.len());
            let is_needed = |i: usize| {
                let gfn = self.memory.gfn(i);
                self.needed.iter().any(|n| n.load(SeqCst) == gfn)
            };
            let how = match rng.below(4) {
                0 => Some(false),
                1 | 2 => Some(true),
                _ => None,
            };
            let zapped = self.memory.invalidate(self.td, first..end, how, &is_needed);
            self.zapped.fetch_add(zapped, SeqCst);
            thread::yield_now();
        }
    }

    fn walker(&self) {
        let mut rng = Rng(0x5555_aaaa);
        let all: HashSet<u64> = (0..200).map(data_pfn).collect();
        while self.going(VCPUS + 2) {
            let i = rng.below(self.memory.len() as u64) as usize;
            match self.td.kind(self.memory.gfn(i)) {
                SpteKind::Leaf(p) | SpteKind::Blocked(p) => assert!(all.contains(&p.as_u64())),
                SpteKind::NonPresent | SpteKind::Frozen => (),
                other => panic!("walk met {other:?}"),
            }
            // A GFN is never mapped private and shared.  Under mmu_lock, or the two looks would
            // be at two times.
            self.td.shared(|_| {
                let private = matches!(self.td.kind(self.memory.gfn(i)), SpteKind::Leaf(_));
                assert!(!(private && self.memory.is_direct(i)), "two backings");
            });
            thread::yield_now();
        }
    }
}

/// After the threads are done: all equal, all figures exact, nothing left.
fn settle(s: &Stress<'_>, present: u64, removed: u64) {
    let td = s.td;
    let census = compare::whole(td).unwrap_or_else(|e| panic!("{e}"));
    let (stats, sept) = (td.mirror.stats(), td.mirror.external());
    assert!(td.host().bugs.lock().unwrap().is_empty());
    assert_eq!(stats.quarantined.get() + stats.leaked.get(), 0);
    assert_eq!(stats.mapped.get(), s.fixed.load(SeqCst) + 2);
    assert_eq!(stats.zapped.get(), s.zapped.load(SeqCst));
    let leaves = stats.mapped.get() - stats.zapped.get();
    assert_eq!(census.leaves.len() as u64, leaves);
    assert_eq!(td.host().leaves.load(SeqCst) as u64, leaves);
    assert_eq!(stats.tables.get(), census.tables + 1);
    assert_eq!(stats.external_tables.get(), census.tables);
    assert_eq!(td.host().accounted.load(SeqCst) as u64, census.tables + 1);
    assert_eq!(
        td.host().accounted_external.load(SeqCst) as u64,
        census.tables
    );
    // What the module saw is what the mirror says.
    let machine = &td.machine;
    let seen = machine.stat("leaf_present_transitions") - present;
    assert_eq!(seen, stats.leaf_transitions.get());
    assert_eq!(machine.stat("leaf_removed") - removed, stats.zapped.get());
    for kind in KINDS {
        let made = sept.calls().made(*kind);
        assert_eq!(made, td.backend().count(Call(*kind)), "{kind:?}");
    }
    let kicks = td.backend().count(Event::Kick);
    assert_eq!(sept.stats().kicks.get(), kicks);
    let calls = sept.stats();
    let done = calls.debts_paid.get() + calls.debts_lost.get();
    assert_eq!(calls.debts.get(), done + sept.debts_owed());
    assert_eq!(calls.debts_lost.get(), 0);
    assert!(!s.gate.is_held());
    // A GFN that is mapped shared is not in the mirror.
    for i in 0..s.memory.len() {
        let private = matches!(td.kind(s.memory.gfn(i)), SpteKind::Leaf(_));
        assert!(!(private && s.memory.is_direct(i)));
    }
}

// Shows: R1, R15, R16, R20, R21, R24, R36, R40, R43.
#[test]
fn threads_on_one_td() {
    let steps: u64 = std::env::var("TDX_MIRROR_THREAD_STEPS")
        .map_or(1_000_000, |s| s.parse().expect("a number of steps"));
    let machine = Machine::new();
    let gate = Arc::new(Gate::default());
    // 6 GFNs in each of four 4K tables, whose tables above differ too; none of the guest's code
    // between them.
    let gfns =
        (0..24).map(|n| (n % 6) + [0x10_0000, 0x10_0200, 0x14_0000, 0x800_0000][n as usize / 6]);
    let memory = Memory::new(gfns.collect(), data_pfn(0), 16);
    let (present, removed) = (
        machine.stat("leaf_present_transitions"),
        machine.stat("leaf_removed"),
    );
    let td = built(&machine, &gate, VCPUS, 60);
    let progress = Progress::new(Policy::Warn);
    let stop = AtomicBool::new(false);
    let s = Stress {
        td: &td,
        gate: &gate,
        memory: &memory,
        progress: &progress,
        stop: &stop,
        watch: Watch::new(STUCK),
        fixed: AtomicU64::new(0),
        zapped: AtomicU64::new(0),
        accepts: AtomicU64::new(0),
        guest_busy: AtomicU64::new(0),
        needed: [const { AtomicU64::new(NONE) }; VCPUS],
        most_faults: AtomicU64::new(0),
    };
    let start = Instant::now();
    thread::scope(|scope| {
        // Whatever way a thread ends, the others end too.
        struct End<'e>(&'e AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, SeqCst);
            }
        }
        let s = &s;
        let work: [&(dyn Fn(&Stress<'_>) + Sync); THREADS] = [
            &|s| s.vcpu(0),
            &|s| s.vcpu(1),
            &|s| s.prefault(),
            &|s| s.zapper(),
            &|s| s.walker(),
        ];
        for f in work {
            scope.spawn(move || {
                let _end = End(s.stop);
                f(s);
            });
        }
        let (mut said, mut round) = (Instant::now(), 0u64);
        // On a machine that does much else they collide late.
        let collided = || {
            let busy = td.mirror.external().stats().busy.get();
            busy > 0 && td.mirror.stats().frozen_seen.get() > 0
        };
        let is_over = |done| done >= steps && (collided() || done >= steps * 10);
        while !stop.load(SeqCst) && !is_over(s.watch.total()) {
            s.watch.cut_if_stuck(|| s.state());
            s.inject(round);
            round += 1;
            thread::sleep(Duration::from_millis(3));
            if said.elapsed() > Duration::from_millis(1500) {
                said = Instant::now();
                let done = s.watch.total();
                let rate = done as f64 / start.elapsed().as_secs_f64();
                let eta = steps.saturating_sub(done) as f64 / rate;
                println!("threads: {done} of {steps} steps, {rate:.0} a second, {eta:.0} s to go");
            }
        }
        stop.store(true, SeqCst);
    });
    gate.inject(&machine.vmm, "", "");
    settle(&s, present, removed);
    let calls = td.mirror.external().stats();
    println!(
        "threads: {} steps, {:.0} s: {} mapped, {} zapped, {} accepts, {} yields, {} kicks",
        s.watch.total(),
        start.elapsed().as_secs_f64(),
        s.fixed.load(SeqCst),
        s.zapped.load(SeqCst),
        s.accepts.load(SeqCst),
        td.host().yields.load(SeqCst),
        gate.kicks.load(SeqCst),
    );
    println!(
        "threads: met {} busy, {} frozen, {} give-ups, {} marks; guests met {}; {} faults at one RIP",
        calls.busy.get(),
        td.mirror.stats().frozen_seen.get(),
        calls.giveups.get(),
        calls.debts.get(),
        s.guest_busy.load(SeqCst),
        s.most_faults.load(SeqCst),
    );
    assert!(s.accepts.load(SeqCst) > 0 && s.zapped.load(SeqCst) > 0);
    assert!(s.most_faults.load(SeqCst) <= u64::from(MAX_ENTERS));
    assert_eq!(progress.stats().vp_enter_busy.get(), 0);
    if steps >= 100_000 {
        // They did collide.
        assert!(calls.busy.get() > 0, "no SEAMCALL was busy");
        assert!(
            td.mirror.stats().frozen_seen.get() > 0,
            "nothing frozen met"
        );
    }
    every_page_can_be_accepted(&s);
    td.zap(0, 1 << 35, true);
    td.teardown();
    assert_eq!(td.destroy(), 0);
}

#[test]
fn a_guest_that_meets_shared_pages_only_goes_on() {
    let machine = Machine::new();
    let td = built(&machine, &Arc::default(), 1, 60);
    let memory = Memory::new(vec![0x10_0000, 0x10_0001, 0x10_0200], data_pfn(0), 4);
    let all = 0..memory.len();
    // By GFN, so that one call converts one page.
    for i in all.clone() {
        memory.invalidate(&td, i..i + 1, Some(false), &|_| false);
    }
    let mut next = all.clone().cycle();
    let i = memory.pick_private(&td, || next.next().expect("an endless one"));
    assert!(memory.is_private(i) && !memory.is_direct(i));
    for other in all.clone().filter(|other| *other != i) {
        // It was touched.
        assert!(!memory.is_private(other) && memory.is_direct(other));
    }
    // The one that is private is found from now on.
    for _ in all.clone() {
        let found = memory.pick_private(&td, || next.next().expect("an endless one"));
        assert_eq!(found, i);
    }
    compare::whole(&td).unwrap_or_else(|e| panic!("{e}"));
    td.teardown();
    assert_eq!(td.destroy(), 0);
}

/// No mark is left that starves the guest.
fn every_page_can_be_accepted(s: &Stress<'_>) {
    let mut notes = Notes::default();
    for i in 0..s.memory.len() {
        s.memory.invalidate_one(s.td, i);
        assert!(matches!(
            s.serve(&mut notes, i, Conditions::PREFAULT),
            Served::Mapped(_)
        ));
        notes = Notes::default();
    }
    for at in compare::whole(s.td).expect("no difference").marks {
        assert!(s.td.mirror.external().owes(at.gfn()), "a mark at {at:?}");
    }
    // Whatever is owed still is paid by faults, one by one.
    for _ in 0..s.td.mirror.external().debts_owed() {
        s.serve(&mut notes, 0, Conditions::PREFAULT);
    }
    let census = compare::whole(s.td).expect("no difference");
    assert_eq!(census.marks, []);
}

/// A TD whose SEAMCALLs that map a page take `delay` with their locks held.
fn slow(machine: &Arc<Machine>, delay: &str) -> Td {
    let td = built(machine, &Arc::default(), 1, 150);
    for gfn in 0..4 {
        let outcome = td.map(gfn * 512, data_pfn(gfn));
        assert_eq!(outcome, Ok(MapOutcome::Fixed));
    }
    let script = format!("delay tdh_mem_page_aug every 1 {delay}");
    let rules = machine.vmm.module.inject();
    rules.load(script.as_bytes()).expect("a script");
    td
}

// Shows: R2.
#[test]
fn disjoint_faults_run_in_parallel() {
    const PAGES: u64 = 30;
    let machine = Machine::new();
    let td = slow(&machine, "2000us");
    let run = |threads: u64| {
        let start = Instant::now();
        thread::scope(|scope| {
            for t in 0..threads {
                let td = &td;
                scope.spawn(move || {
                    for i in 1..=PAGES {
                        let outcome = td.map(t * 512 + i, data_pfn(4 + t * PAGES + i));
                        assert_eq!(outcome, Ok(MapOutcome::Fixed));
                    }
                });
            }
        });
        start.elapsed()
    };
    // Four times the work in about the same time; one after the other it would take four times.
    // What else the machine does may make a run longer, never shorter: the shortest of each counts.
    const ATTEMPTS: usize = 10;
    let (mut one, mut four) = (Duration::MAX, Duration::MAX);
    for attempt in 1.. {
        one = one.min(run(1));
        assert_eq!(td.zap(1, 512, false), PAGES);
        four = four.min(run(4));
        if four < one * 3 {
            break;
        }
        assert!(
            attempt < ATTEMPTS,
            "1 thread {one:?}, 4 threads {four:?}, the shortest of {ATTEMPTS} runs"
        );
        for t in 0..4 {
            assert_eq!(td.zap(t * 512 + 1, (t + 1) * 512, false), PAGES);
        }
    }
    machine.vmm.module.inject().load(b"").expect("no script");
    compare::whole(&td).unwrap_or_else(|e| panic!("{e}"));
    td.zap(0, 1 << 35, false);
    td.teardown();
    assert_eq!(td.destroy(), 0);
}

// Shows: R1, R18.
#[test]
fn a_stuck_seamcall_stops_its_own_gfn_only() {
    let machine = Machine::new();
    let gate: Arc<Gate> = Arc::default();
    let open = Arc::new((Mutex::new(false), Condvar::new()));
    let arrived = Arc::new(Barrier::new(2));
    let (o, a) = (open.clone(), arrived.clone());
    let td = Td::new(
        &machine,
        1,
        |c| c,
        |b| {
            gated(&gate, b).observe(move |call, at| {
                if call == Call(Kind::PageAug) && at.is_some_and(|at| at.gfn().as_u64() == 5) {
                    a.wait();
                    let mut open = o.0.lock().unwrap();
                    while !*open {
                        open = o.1.wait(open).unwrap();
                    }
                }
            })
        },
    );
    td.finalize();
    thread::scope(|scope| {
        let stuck = scope.spawn(|| td.map(5, data_pfn(5)));
        arrived.wait();
        for (n, gfn) in [6, 7, 511, 512, 0x4_0000, 0x800_0000]
            .into_iter()
            .enumerate()
        {
            assert_eq!(td.map(gfn, data_pfn(10 + n as u64)), Ok(MapOutcome::Fixed));
        }
        let again = td.map(5, data_pfn(5));
        assert_eq!(again, Ok(MapOutcome::Retry(RetryReason::Frozen)));
        assert_eq!(td.kind(5), SpteKind::Frozen);
        *open.0.lock().unwrap() = true;
        open.1.notify_all();
        assert_eq!(stuck.join().unwrap(), Ok(MapOutcome::Fixed));
    });
    compare::whole(&td).unwrap_or_else(|e| panic!("{e}"));
    td.zap(0, 1 << 35, false);
    td.teardown();
    assert_eq!(td.destroy(), 0);
}
