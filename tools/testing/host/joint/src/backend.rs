// SPDX-License-Identifier: GPL-2.0

//! The hooks of kvm_intel: each is one call of the software TDX module.  Calls can be made to fail,
//! S-EPT entries can be locked as a guest's ACCEPT locks them, and a vCPU can stay in the guest.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};

use tdx_emu_host::host::{layout, Host as Memory};
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::module::{
    Entry, GuestExit, GuestRegs, GuestRun, Inject, Regs, Unavailable, Vcpu, VcpuInit,
};
use tdx_emu_host::vmm::{self, regs};
use tdx_mirror_host::base::addr::Pfn;
use tdx_mirror_host::base::level::Position;
use tdx_mirror_host::base::stats::Counter;
use tdx_mirror_host::mock::Event::{self, Call};
use tdx_mirror_host::sept::SeptBackend;
use tdx_mirror_host::tdx::call::{Call as SeamCall, KINDS};
use tdx_mirror_host::tdx::seamcall::{SeamOut, Seamcall};
use tdx_mirror_host::tdx::status::TdxStatus;

use crate::td::Machine;

/// What the S-EPT has in a free entry.
pub const FREE: u64 = 0x80e0_0000_0000_0000;
/// The lock of an S-EPT entry, and the host-priority mark.
pub const LOCK: u64 = 1 << 11;
pub const PRIORITY: u64 = 1 << 52;
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The processor of the guests: the interpreter, and a vCPU that stays inside until it is kicked.
#[derive(Default)]
pub struct Guest {
    stay: Mutex<Stay>,
    changed: Condvar,
}

#[derive(Default)]
struct Stay {
    /// The next vCPU that enters stays.
    wanted: bool,
    inside: bool,
}

impl Guest {
    fn wait_while(&self, f: impl Fn(&Stay) -> bool) -> std::sync::MutexGuard<'_, Stay> {
        let stay = self.stay.lock().unwrap_or_else(|e| e.into_inner());
        self.changed
            .wait_while(stay, |s| f(s))
            .unwrap_or_else(|e| e.into_inner())
    }

    /// Has the next vCPU that enters stay inside.
    pub fn want(&self) {
        self.wait_while(|_| false).wanted = true;
    }

    /// Waits until a vCPU is inside to stay, or nobody wants it any more.
    pub fn wait_inside(&self) {
        drop(self.wait_while(|s| s.wanted && !s.inside));
    }

    /// Ends the stay.
    pub fn kick(&self) {
        self.wait_while(|_| false).wanted = false;
        self.changed.notify_all();
    }

    pub fn is_inside(&self) -> bool {
        self.wait_while(|_| false).inside
    }

    fn stay(&self) -> bool {
        let mut s = self.wait_while(|_| false);
        if !s.wanted {
            return false;
        }
        s.inside = true;
        self.changed.notify_all();
        drop(s);
        self.wait_while(|s| s.wanted).inside = false;
        true
    }
}

impl GuestRun<Memory> for Guest {
    fn init(&self, p: &Memory, init: &VcpuInit) -> Result<(), Unavailable> {
        Interpreter.init(p, init)
    }

    fn flush(&self, p: &Memory, vcpu: &Vcpu) {
        Interpreter.flush(p, vcpu);
    }

    fn run(&self, p: &Memory, vcpu: &Vcpu, entry: Entry, regs: &mut GuestRegs) -> GuestExit {
        if entry.first && entry.inject == Inject::None && self.stay() {
            return GuestExit::Interrupt { info: 0 };
        }
        Interpreter.run(p, vcpu, entry, regs)
    }
}

/// Answers to give instead of making the call.
#[derive(Clone, Copy, Debug)]
pub struct Fail {
    pub call: Event,
    /// Calls of that kind to let through first.
    pub skip: u32,
    /// How many calls to fail then.
    pub times: u32,
    pub status: TdxStatus,
}

/// The lock of an S-EPT entry that somebody else holds.
#[derive(Debug)]
struct HeldEntry {
    at: Position,
    word: u64,
    /// Calls on that entry that find it held.
    left: u32,
}

type Observer = Box<dyn Fn(Event, Option<Position>) + Send + Sync>;

/// One TD of the software TDX module.
pub struct Backend {
    pub machine: Arc<Machine>,
    pub td: vmm::Td,
    finalized: AtomicBool,
    keyed: AtomicBool,
    /// Whether anything is to fail; else the two below are not looked at.
    faulty: AtomicBool,
    fail: Mutex<Option<Fail>>,
    held: Mutex<Option<HeldEntry>>,
    holds: AtomicI64,
    /// Calls that failed because they were made to.
    failed: AtomicU64,
    counts: [AtomicU64; 3 + KINDS.len()],
    /// Called at each SEAMCALL, before it.
    observer: Option<Observer>,
    /// Makes all vCPUs leave the guest.
    kicker: Option<Box<dyn Fn() + Send + Sync>>,
    /// Keeps them out.
    holder: Option<Box<dyn Fn(bool) + Send + Sync>>,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Backend")
    }
}

/// The index of the counter of an event.
const fn number(event: Event) -> usize {
    match event {
        Event::Kick => 0,
        Event::Hold => 1,
        Event::Release => 2,
        Call(kind) => 3 + kind as usize,
    }
}

/// GPA and level, as RCX has them.
fn place(at: Position) -> u64 {
    at.gfn().gpa() | at.level().as_sept()
}

impl Backend {
    pub fn new(machine: Arc<Machine>, td: vmm::Td) -> Self {
        Self {
            machine,
            td,
            finalized: AtomicBool::new(false),
            keyed: AtomicBool::new(true),
            faulty: AtomicBool::new(false),
            fail: Mutex::new(None),
            held: Mutex::new(None),
            holds: AtomicI64::new(0),
            failed: AtomicU64::new(0),
            counts: [const { AtomicU64::new(0) }; 3 + KINDS.len()],
            observer: None,
            kicker: None,
            holder: None,
        }
    }

    /// Has `f` called at each SEAMCALL, before it.
    pub fn observe(mut self, f: impl Fn(Event, Option<Position>) + Send + Sync + 'static) -> Self {
        self.observer = Some(Box::new(f));
        self
    }

    /// Has `f` called for a kick, instead of ending the stay of one vCPU.
    pub fn kick_with(mut self, f: impl Fn() + Send + Sync + 'static) -> Self {
        self.kicker = Some(Box::new(f));
        self
    }

    /// Has `f` called to keep vCPUs out of the guest and to let them in again.
    pub fn hold_with(mut self, f: impl Fn(bool) + Send + Sync + 'static) -> Self {
        self.holder = Some(Box::new(f));
        self
    }

    /// Physical address of the root of the S-EPT.
    pub fn root(&self) -> u64 {
        self.td.tdcx[3]
    }

    pub fn set_finalized(&self) {
        self.finalized.store(true, SeqCst);
    }

    pub fn key_released(&self) {
        self.keyed.store(false, SeqCst);
    }

    pub fn count(&self, call: Event) -> u64 {
        self.counts[number(call)].load(SeqCst)
    }

    /// Whether vCPUs are held out of the guest.
    pub fn is_holding(&self) -> bool {
        self.holds.load(SeqCst) != 0
    }

    /// Calls that failed because they were made to.
    pub fn failed(&self) -> u64 {
        self.failed.load(SeqCst)
    }

    pub fn fail(&self, fail: Fail) {
        *self.fail.lock().unwrap() = Some(fail);
        self.faulty.store(true, SeqCst);
    }

    /// Locks the S-EPT entry `at`, whose word is at the physical address `word`, for `calls`
    /// calls on it.
    pub fn hold_entry(&self, at: Position, word: u64, calls: u32) {
        let memory = self.machine.vmm.host();
        memory.write(word, memory.read(word) | LOCK);
        *self.held.lock().unwrap() = Some(HeldEntry {
            at,
            word,
            left: calls,
        });
        self.faulty.store(true, SeqCst);
    }

    /// Ends what `fail()` and `hold_entry()` began.
    pub fn heal(&self) {
        *self.fail.lock().unwrap() = None;
        self.let_go(&mut self.held.lock().unwrap());
        self.faulty.store(false, SeqCst);
    }

    fn let_go(&self, held: &mut Option<HeldEntry>) {
        if let Some(h) = held.take() {
            let memory = self.machine.vmm.host();
            memory.write(h.word, memory.read(h.word) & !LOCK);
        }
    }

    fn begin(&self, call: Event, at: Option<Position>) -> Result<(), SeamOut> {
        self.counts[number(call)].fetch_add(1, SeqCst);
        if let Some(f) = &self.observer {
            f(call, at);
        }
        if !self.faulty.load(SeqCst) {
            return Ok(());
        }
        let mut held = self.held.lock().unwrap();
        if let Some(h) = held.as_mut().filter(|h| at == Some(h.at)) {
            match h.left.checked_sub(1) {
                Some(left) => h.left = left,
                None => self.let_go(&mut held),
            }
        }
        drop(held);
        let mut fail = self.fail.lock().unwrap();
        let Some(f) = fail.as_mut().filter(|f| f.call == call) else {
            return Ok(());
        };
        if f.skip > 0 {
            f.skip -= 1;
            return Ok(());
        }
        self.failed.fetch_add(1, SeqCst);
        let status = f.status;
        f.times -= 1;
        if f.times == 0 {
            *fail = None;
        }
        Err(SeamOut::of(status))
    }

    /// The page that PAGE.ADD copies to `at`.
    fn source(at: Position) -> u64 {
        layout::SOURCE
            + match at.gfn().gpa() {
                crate::td::CODE => 0x1000,
                crate::td::RESET => 0x2000,
                _ => 0,
            }
    }
}

impl Backend {
    /// The operands in the registers of the leaf.
    fn registers(&self, call: SeamCall) -> Regs {
        let (tdr, place) = (self.td.tdr, call.entry().map(place));
        match call {
            SeamCall::SeptAdd { page, .. } => {
                regs(place.unwrap_or(0), tdr, page.as_ptr() as u64, 0)
            }
            SeamCall::PageAdd { at, pfn } => regs(at.gfn().gpa(), tdr, pfn.pa(), Self::source(at)),
            SeamCall::Track {} => regs(tdr, 0, 0, 0),
            SeamCall::PageWbinvd { pfn, .. } => regs(pfn.pa() | (self.td.hkid << 46), 0, 0, 0),
            SeamCall::ReclaimTable { page } => regs(page.as_ptr() as u64, 0, 0, 0),
            SeamCall::ReclaimData { pfn, .. } => regs(pfn.pa(), 0, 0, 0),
            // What works on an entry has it in RCX and the TDR in RDX.
            _ => regs(place.unwrap_or(0), tdr, call.page().map_or(0, Pfn::pa), 0),
        }
    }

    /// The entry of which the lock may be held by a vCPU.
    fn locked(call: SeamCall) -> Option<Position> {
        match call {
            SeamCall::PageWbinvd { .. } | SeamCall::ReclaimData { .. } => None,
            _ => call.entry(),
        }
    }
}

impl Seamcall for Backend {
    fn call(&self, call: SeamCall) -> SeamOut {
        if let Err(out) = self.begin(Call(call.kind()), Self::locked(call)) {
            return out;
        }
        let leaf = u64::from(call.kind().leaf().as_u16());
        let (rax, out) = self.machine.vmm.call(leaf, self.registers(call));
        SeamOut {
            status: TdxStatus::new(rax),
            ext1: out.rcx,
            ext2: out.rdx,
            ext3: out.r8,
        }
    }
}

impl SeptBackend for Backend {
    type Count = Counter;

    fn counter(&self) -> Counter {
        Counter::new()
    }

    fn counter_row<const N: usize>(&self) -> [Counter; N] {
        Counter::row()
    }

    fn kick_vcpus(&self) {
        self.counts[number(Event::Kick)].fetch_add(1, SeqCst);
        match &self.kicker {
            Some(f) => f(),
            None => {
                let guest = self.machine.vmm.module.guest();
                guest.kick();
                // Not before the VM exit is complete.
                self.machine.vcpu.wait_out();
            }
        }
        // The entry's lock was a vCPU's.
        if self.faulty.load(SeqCst) {
            self.let_go(&mut self.held.lock().unwrap());
        }
    }

    fn hold_vcpus(&self, hold: bool) {
        self.holds.fetch_add(if hold { 1 } else { -1 }, SeqCst);
        if let Some(f) = &self.holder {
            f(hold);
        }
    }

    fn is_finalized(&self) -> bool {
        self.finalized.load(SeqCst)
    }

    fn is_hkid_assigned(&self) -> bool {
        self.keyed.load(SeqCst)
    }
}
