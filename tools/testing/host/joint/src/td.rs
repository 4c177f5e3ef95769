// SPDX-License-Identifier: GPL-2.0

//! The machine and a TD on it, from TDH.MNG.CREATE to the last reclaimed page.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{mpsc, Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use tdx_emu_host::asm::{Asm, R12, R13, RAX, RCX};
use tdx_emu_host::host::layout;
use tdx_emu_host::instruments::{CheckLevel, StatName};
use tdx_emu_host::module::Regs;
use tdx_emu_host::vmm::{regs, Vmm, GLOBAL_HKID, TDMR, TDMR_SIZE};
use tdx_mirror_host::base::addr::{Gfn, GfnRange, Pfn};
use tdx_mirror_host::base::level::{Level, Position};
use tdx_mirror_host::mirror::error::{MapError, MapOutcome};
use tdx_mirror_host::mirror::lock::{Exclusive, RcuRead, Shared};
use tdx_mirror_host::mirror::mmu::{Config, Mirror};
use tdx_mirror_host::mirror::spte::{Spte, SpteKind};
use tdx_mirror_host::mirror::table::{PageMap, Root};
use tdx_mirror_host::sept::Sept;

use crate::arena::{Arena, Caches, Host};
use crate::backend::{Backend, Guest};
use crate::lock::MmuLock;

/// GPAs of the guest's reset vector and code, each in a page that the build adds.
pub const RESET: u64 = 0xffff_f000;
pub const CODE: u64 = 0x2000_0000;
/// Number of GFN bits of a TD here: a 4-level S-EPT whose upper half is shared.
pub const GFN_BITS: u32 = 35;
const HKID: u64 = 20;
/// Logical processor of the one vCPU.
pub const LP: u32 = 1;

/// Data pages begin here: beyond what the module's own pages are taken from.
const DATA: u64 = TDMR + (64 << 20);

/// Data pages that there are.
pub const DATA_PAGES: u64 = (TDMR + TDMR_SIZE - DATA) >> 12;

/// PFN of data page `n`.
pub fn data_pfn(n: u64) -> u64 {
    (DATA >> 12) + n
}

/// What the guest asked for.
pub const ASK: u64 = 1;
/// The answer to its ACCEPT.
pub const TELL: u64 = 2;

/// The TDX module's status for the guest's ACCEPT of a page that it has accepted before.
pub const ALREADY_ACCEPTED: u64 = 0x0b0a_0000_0000;

/// A thread that makes VP.ENTERs, so that a vCPU can be inside while the test goes on.
pub struct VcpuThread {
    vmm: Arc<Vmm<Guest>>,
    send: Option<mpsc::Sender<u64>>,
    state: Arc<(Mutex<Running>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Running {
    running: bool,
    rax: u64,
}

impl VcpuThread {
    fn new(vmm: Arc<Vmm<Guest>>) -> Self {
        let (send, receive) = mpsc::channel::<u64>();
        let state: Arc<(Mutex<Running>, Condvar)> = Arc::default();
        let shared = state.clone();
        let module = vmm.clone();
        let thread = std::thread::spawn(move || {
            while let Ok(tdvpr) = receive.recv() {
                let rax = module.call_on(LP, 0, regs(tdvpr, 0, 0, 0)).0;
                // Nobody waits for a vCPU that did not get inside.
                module.module.guest().kick();
                *shared.0.lock().unwrap() = Running {
                    running: false,
                    rax,
                };
                shared.1.notify_all();
            }
        });
        Self {
            vmm,
            send: Some(send),
            state,
            thread: Some(thread),
        }
    }

    fn start(&self, tdvpr: u64) {
        self.state.0.lock().unwrap().running = true;
        let send = self.send.as_ref().expect("a thread");
        send.send(tdvpr).expect("a thread that listens");
    }

    /// Waits until the VP.ENTER under way is over; answers what the last one answered.
    pub fn wait_out(&self) -> u64 {
        let state = self.state.0.lock().unwrap();
        let over = self.state.1.wait_while(state, |s| s.running);
        over.unwrap().rax
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.send = None;
        self.vmm.module.guest().kick();
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

/// The machine: the software TDX module with its memory, the mirror's memory, and one vCPU thread.
pub struct Machine {
    pub vmm: Arc<Vmm<Guest>>,
    pub arena: Arena,
    pub vcpu: VcpuThread,
}

/// What the guest executes: asks for a GPA, accepts it, tells how that went.
fn program() -> Asm {
    let mut a = Asm::new(CODE);
    let again = a.here();
    a.vmcall(ASK).mov(RCX, R12).tdcall(6);
    a.mov(R13, RAX).vmcall(TELL).jmp(again);
    a
}

impl Machine {
    pub fn new() -> Arc<Self> {
        Self::checked(CheckLevel::Off)
    }

    /// The same with a module that looks after each call for what is wrong inside it.
    pub fn checked(level: CheckLevel) -> Arc<Self> {
        let vmm = Arc::new(Vmm::checked(Guest::default(), Some(level)));
        let host = vmm.host();
        host.write_bytes(layout::SOURCE, &[0; 4096]);
        host.write_bytes(layout::SOURCE + 0x1000, program().bytes());
        let mut reset = Asm::new(RESET + 0xff0);
        reset.jmp(CODE);
        host.write_bytes(layout::SOURCE + 0x2ff0, reset.bytes());
        Arc::new(Self {
            vcpu: VcpuThread::new(vmm.clone()),
            vmm,
            arena: Arena::new(),
        })
    }

    /// A counter of the software TDX module.
    pub fn stat(&self, name: &str) -> u64 {
        let mut found = None;
        self.vmm.module.stats().each(|n, value| {
            if matches!(n, StatName::Plain(p) if p == name) {
                found = Some(value);
            }
        });
        found.unwrap_or_else(|| panic!("no counter {name}"))
    }
}

/// How an ACCEPT of the guest went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accepted {
    /// The guest's RAX.
    Done(u64),
    /// The vCPU left the guest with an EPT violation at this GFN; it goes on with that ACCEPT.
    Violation(u64),
    /// VP.ENTER answered something else.
    Other(u64),
}

/// A TD under the mirror.
pub struct Td {
    pub machine: Arc<Machine>,
    pub mmu_lock: Arc<MmuLock>,
    pub mirror: Mirror<Sept<Backend>, Host>,
    /// Frame number of the mirror's root.
    pub root: Pfn,
}

pub type Outcome = Result<MapOutcome, MapError>;

impl Td {
    /// A TD with `vcpus` vCPUs on LPs from [`LP`] on, code in none of its pages yet.
    pub fn new(
        machine: &Arc<Machine>,
        vcpus: u32,
        config: impl Fn(Config) -> Config,
        set_up: impl FnOnce(Backend) -> Backend,
    ) -> Self {
        // SEPT_VE_DISABLE: a pending page makes the guest exit.
        let mut td = machine.vmm.create(HKID, 1 << 28);
        for i in 0..vcpus {
            machine.vmm.add_vcpu(&mut td, LP + i, 0);
        }
        let mmu_lock = Arc::new(MmuLock::default());
        let host = Host::new(machine.clone(), mmu_lock.clone());
        let root = host.take_table().expect("a page");
        let shape = Config::new(GFN_BITS, Level::L512G).expect("a shape");
        let backend = set_up(Backend::new(machine.clone(), td));
        // SAFETY: the page is the arena's and given to nobody else.
        let root_table = unsafe { Root::new(root) };
        let root = host.pfn_of(root);
        Self {
            machine: machine.clone(),
            mmu_lock,
            mirror: Mirror::new(config(shape), Sept::new(backend), host, root_table),
            root,
        }
    }

    pub fn backend(&self) -> &Backend {
        self.mirror.external().backend()
    }

    pub fn host(&self) -> &Host {
        self.mirror.vm()
    }

    pub fn caches(&self) -> Caches<'_> {
        Caches {
            host: self.host(),
            left: u32::MAX,
        }
    }

    /// Runs `f` with mmu_lock held for read.
    pub fn shared<R>(&self, f: impl FnOnce(&Shared<'_>) -> R) -> R {
        struct Unlock<'l>(&'l MmuLock);
        impl Drop for Unlock<'_> {
            fn drop(&mut self) {
                self.0.unlock_read();
            }
        }
        self.mmu_lock.lock_read();
        let _unlock = Unlock(&self.mmu_lock);
        // SAFETY: held until the end of this function, and the token does not get out.
        f(&unsafe { Shared::assume_held() })
    }

    /// Runs `f` with mmu_lock held for write.
    pub fn exclusive<R>(&self, f: impl FnOnce(&mut Exclusive<'_>) -> R) -> R {
        struct Unlock<'l>(&'l MmuLock);
        impl Drop for Unlock<'_> {
            fn drop(&mut self) {
                self.0.unlock_write();
            }
        }
        self.mmu_lock.lock_write();
        let _unlock = Unlock(&self.mmu_lock);
        // SAFETY: as above; `yield_lock()` has it again when it returns.
        f(&mut unsafe { Exclusive::assume_held() })
    }

    pub fn map_with(&self, l: &Shared<'_>, gfn: u64, pfn: u64) -> Outcome {
        let (gfn, pfn) = (Gfn::new(gfn).unwrap(), Pfn::new(pfn).unwrap());
        let phase = self.mirror.phase(l);
        let pages = &mut self.caches();
        self.mirror.map(l, phase, pages, gfn, pfn, Level::L4K)
    }

    pub fn map(&self, gfn: u64, pfn: u64) -> Outcome {
        self.shared(|l| self.map_with(l, gfn, pfn))
    }

    pub fn zap(&self, start: u64, end: u64, may_yield: bool) -> u64 {
        let range = GfnRange::new(start, end).unwrap();
        self.exclusive(|x| {
            let phase = self.mirror.phase(x);
            self.mirror.zap_range(x, phase, range, may_yield)
        })
    }

    pub fn walk(&self, gfn: u64) -> (Position, Spte) {
        // SAFETY: no page of the arena is used again before the TD is gone.
        let rcu = unsafe { RcuRead::assume_held() };
        let walk = self.mirror.walk(&rcu, Gfn::new(gfn).unwrap());
        walk.expect("an entry")
    }

    pub fn kind(&self, gfn: u64) -> SpteKind {
        let (at, spte) = self.walk(gfn);
        spte.kind(at.level())
    }

    /// TDH.MR.FINALIZE.
    pub fn finalize(&self) {
        let (rax, _) = self
            .machine
            .vmm
            .call(17, regs(self.backend().td.tdr, 0, 0, 0));
        assert_eq!(rax, 0, "MR.FINALIZE returned {rax:#x}");
        self.backend().set_finalized();
    }

    fn tdvpr(&self) -> u64 {
        self.backend().td.vcpus[0][0]
    }

    /// Has the vCPU enter and stay until it is kicked.
    pub fn enter_and_stay(&self) {
        let guest = self.machine.vmm.module.guest();
        guest.want();
        self.machine.vcpu.start(self.tdvpr());
        guest.wait_inside();
    }

    /// Has the guest accept `gfn`, or go on with the ACCEPT that it is in.
    pub fn accept(&self, gfn: u64) -> Accepted {
        let mut r = Regs {
            r12: gfn << 12,
            ..regs(self.tdvpr(), 0, 0, 0)
        };
        // Twice at most: it asks, it tells.  A third time for a slice that ended.
        for _ in 0..4 {
            let (rax, out) = self.machine.vmm.call_on(LP, 0, r);
            match (rax, out.r11) {
                (77, ASK) => (),
                (77, TELL) => return Accepted::Done(out.r13),
                (48, _) => return Accepted::Violation(out.r8 >> 12),
                (6, _) => {
                    r = regs(self.tdvpr(), 0, 0, 0);
                    continue;
                }
                _ => return Accepted::Other(rax),
            }
            r = Regs {
                r12: gfn << 12,
                ..regs(self.tdvpr(), 0, 0, 0)
            };
        }
        panic!("the guest gets nowhere");
    }

    /// Ends the TD's use of its key: no vCPU is inside.
    pub fn release_key(&self) {
        let vmm = &self.machine.vmm;
        let td = &self.backend().td;
        for (i, vcpu) in td.vcpus.iter().enumerate() {
            // One that never ran since it was made is associated as well.
            let (rax, _) = vmm.call_on(LP + i as u32, 18, regs(vcpu[0], 0, 0, 0));
            assert_eq!(rax, 0, "VP.FLUSH returned {rax:#x}");
        }
        vmm.ok(19, regs(td.tdr, 0, 0, 0));
        vmm.ok(40, regs(0, 0, 0, 0));
        vmm.ok(20, regs(td.tdr, 0, 0, 0));
        self.backend().key_released();
    }

    /// Releases the key and tears the mirror down.
    pub fn teardown(&self) {
        self.release_key();
        self.exclusive(|x| self.mirror.teardown(x));
    }

    /// Gives back what is left after the teardown.  Pages that the mirror leaked, because a call
    /// was made to fail, are reclaimed here; answers how many these were.
    pub fn destroy(self) -> u64 {
        let Self {
            machine, mirror, ..
        } = self;
        let host = mirror.vm();
        assert_eq!(host.accounted.load(SeqCst), 0, "mirror tables accounted");
        assert_eq!(host.accounted_external.load(SeqCst), 0, "S-EPT pages");
        let external = host.external.lock().unwrap().clone();
        let held = host.held.lock().unwrap().clone();
        let td = &mirror.external().backend().td;
        let tdr = td.tdr;
        let pages = td.vcpus.iter().flatten().chain(&td.tdcx).chain([&tdr]);
        let pages: Vec<u64> = pages.copied().collect();
        drop(mirror);
        machine.arena.quiesce();
        assert_eq!(machine.arena.used(), 0, "table pages in use");
        let vmm = &machine.vmm;
        let mut leaked = 0;
        for pa in external {
            vmm.ok(28, regs(pa, 0, 0, 0));
            vmm.free(pa);
            leaked += 1;
        }
        for pfn in held {
            // Already free, or the TD's still.
            let (rax, _) = vmm.call(28, regs(pfn.pa(), 0, 0, 0));
            assert!(matches!(rax, 0 | 0xc000_0300_0000_0001), "{rax:#x}");
            leaked += 1;
        }
        for pa in pages {
            vmm.ok(28, regs(pa, 0, 0, 0));
            vmm.free(pa);
        }
        vmm.ok(41, regs(tdr | (GLOBAL_HKID << 46), 0, 0, 0));
        assert_eq!(machine.stat("pamt_pages_owned"), 0);
        assert_eq!(machine.stat("invariant_errors"), 0);
        leaked
    }
}
