// SPDX-License-Identifier: GPL-2.0

//! Leads a TD call by call: host leaves, what a guest does between two of them, and locks
//! that somebody else holds meanwhile. For tests that know nothing of the emulator's parts.

use std::sync::atomic::Ordering;

use crate::host::Host;
use crate::instruments::Instrumented;
use crate::module::entered::Entered;
use crate::module::interp::Interpreter;
use crate::module::lock::{Mode, ShareX, ShareXHp, TreeLock};
use crate::module::mem::Page;
use crate::module::td::{tdcs_word, tdr_word};
use crate::module::tree::{shift, EntryLock, Format, Root, FREE, HPA, PS, RWX};
use crate::module::vcpu::Enter;
use crate::module::{GuestExit, GuestRegs, Inject, Regs};

/// Logical processors that a vCPU can be on.
const LPS: usize = 4;

/// A lock that a test holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    Tree,
    Epoch,
    OpState,
    /// PAMT entry of an address, by size class.
    Pamt(u64, u8),
    /// S-EPT entry of an address at a level, taken as a guest does.
    Entry(u64, u8),
}

/// A lock that is held until this is dropped.
pub struct Held<'m>(#[allow(dead_code)] Kind<'m>);

#[allow(dead_code)] // only dropped
enum Kind<'m> {
    Plain(ShareX<'m>),
    Tree(TreeLock<'m>),
    Entry(EntryLock<'m>),
    Hp(ShareXHp<'m>),
}

/// What a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// TDG.MEM.PAGE.ACCEPT of RCX.
    Accept(u64),
    /// An access (bit 0 read, 1 write, 2 execute) to a private address.
    Access(u64, u64),
    /// TDG.VP.VEINFO.GET.
    VeInfo,
    /// An interrupt of the host arrives.
    Interrupt,
}

/// How a call or an action of a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// To the host, with RAX and the other registers.
    Host(u64, Regs),
    /// The guest goes on: its RAX, whether #VE information waits.
    Guest(u64, bool),
    /// The guest was entered.
    Entered,
    /// An access reached this address.
    Reached(u64),
}

/// State of a TD that leaves do not return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TdState {
    pub children: u64,
    pub op_state: u64,
    pub epoch: u64,
    pub refs: [u64; 2],
}

/// Type, owner and block epoch of a page.
pub type PageState = (u8, u64, u64);

/// One TD on a machine.
pub struct Driver<'m> {
    module: &'m Instrumented<Host, Interpreter>,
    entered: [Option<Entered<'m>>; LPS],
    tdr: u64,
}

impl<'m> Driver<'m> {
    pub fn new(module: &'m Instrumented<Host, Interpreter>, tdr: u64) -> Self {
        Driver {
            module,
            entered: [None, None, None, None],
            tdr,
        }
    }

    fn page(&self, pa: u64) -> Page<'m> {
        Page::at(self.module.platform(), pa).expect("memory")
    }

    fn tdcs(&self) -> Option<Page<'m>> {
        let tdr = self.page(self.tdr);
        (tdr.get(tdr_word::NUM_TDCX) >= 6).then(|| self.page(tdr.get(tdr_word::TDCX)))
    }

    fn format(&self) -> Format {
        let hkid = self.page(self.tdr).get(tdr_word::HKID);
        self.module.machine().format(hkid)
    }

    fn root(&self) -> Option<Root> {
        let level = self.tdcs()?.get(tdcs_word::ROOT_LEVEL) as u8;
        let pa = self.page(self.tdr).get(tdr_word::TDCX + 3);
        (level != 0).then_some(Root {
            pa,
            level,
            format: self.format(),
        })
    }

    /// A SEAMCALL. TDH.VP.ENTER returns when the guest is in, and its actions follow.
    pub fn call(&mut self, lp: u32, rax: u64, mut r: Regs) -> End {
        if rax != 0 {
            let rax = self.module.seamcall(lp, rax, &mut r);
            return End::Host(rax, r);
        }
        match self.module.machine().vp_enter_begin(lp, &mut r) {
            Err(status) | Ok(Enter::Emulated(status)) => End::Host(status, r),
            Ok(Enter::Guest(e)) => {
                self.entered[lp as usize] = Some(e);
                End::Entered
            }
        }
    }

    pub fn is_in_guest(&self, lp: u32) -> bool {
        self.entered[lp as usize].is_some()
    }

    /// The guest that runs on `lp` does something at `rip`.
    pub fn guest(&mut self, lp: u32, does: Does, rip: u64) -> End {
        let host = self.module.platform();
        let mut e = self.entered[lp as usize]
            .take()
            .expect("a guest on this processor");
        e.regs.rip = rip;
        let why = match does {
            Does::Accept(rcx) => {
                (e.regs.gpr[0], e.regs.gpr[1]) = (6, rcx);
                GuestExit::Tdcall { user: false }
            }
            Does::VeInfo => {
                e.regs.gpr[0] = 3;
                GuestExit::Tdcall { user: false }
            }
            Does::Interrupt => GuestExit::Interrupt { info: 0x8000_0020 },
            Does::Access(gpa, rwx) => {
                e.regs.gpr[0] = 0;
                match access(e.tdcs.root(), host, gpa, rwx) {
                    Ok(hpa) => {
                        self.entered[lp as usize] = Some(e);
                        return End::Reached(hpa);
                    }
                    Err(qualification) => GuestExit::EptViolation {
                        gpa,
                        gla: gpa,
                        qualification,
                    },
                }
            }
        };
        let mut r = Regs::default();
        if let Some(rax) = e.event(self.module.machine(), why, &mut r) {
            return End::Host(rax, r);
        }
        let page = self.module.machine().ve_info_page(&e.tdvps);
        let waits = page.is_some_and(|p| p.get(0) >> 32 != 0);
        let end = End::Guest(e.regs.gpr[0], waits);
        self.entered[lp as usize] = Some(e);
        end
    }

    /// Any exit of the guest on `lp`, whose registers `set` changes before. What is
    /// injected then and the guest's registers; a TD exit is not expected.
    pub fn exit(
        &mut self,
        lp: u32,
        why: GuestExit,
        set: impl FnOnce(&mut GuestRegs),
    ) -> (Inject, GuestRegs) {
        let e = self.entered[lp as usize]
            .as_mut()
            .expect("a guest on this processor");
        set(&mut e.regs);
        let out = e.event(self.module.machine(), why, &mut Regs::default());
        assert_eq!(out, None, "{why:x?} went to the host");
        (e.entry.inject, e.regs)
    }

    /// What the guest on `lp` is entered with.
    pub fn injected(&self, lp: u32) -> Inject {
        self.entered[lp as usize]
            .as_ref()
            .expect("a guest on this processor")
            .entry
            .inject
    }

    /// Takes a lock as a concurrent holder would. `None`: somebody has it, or there is none.
    pub fn hold(&self, lock: Lock, exclusive: bool) -> Option<Held<'m>> {
        let mode = match exclusive {
            true => Mode::Exclusive,
            false => Mode::Shared,
        };
        let plain = |w: usize| {
            ShareX::try_lock(self.tdcs()?.word(w), mode)
                .ok()
                .map(Kind::Plain)
        };
        let kind = match lock {
            Lock::Tree => {
                let priority = self.module.machine().rules().tree.priority;
                let word = self.tdcs()?.word(tdcs_word::SEPT_LOCK);
                let lock = TreeLock::try_lock(word, mode, priority);
                lock.ok().map(Kind::Tree)
            }
            Lock::Epoch => plain(tdcs_word::EPOCH_LOCK),
            Lock::OpState => {
                let word = self.tdcs()?.word(tdcs_word::OP_STATE_LOCK);
                ShareXHp::try_lock(word, mode).ok().map(Kind::Hp)
            }
            Lock::Pamt(pa, size) => {
                let entry = self.module.machine().pamt_entry(pa, size)?;
                entry.lock(mode).ok().map(Kind::Hp)
            }
            Lock::Entry(gpa, level) => {
                let walk = self.root()?.walk(self.module.platform(), gpa, level)?;
                let lock = walk.hit.then(|| walk.entry.lock_guest().ok());
                lock.flatten().map(Kind::Entry)
            }
        };
        kind.map(Held)
    }

    /// The next calls find an interrupt pending after `polls` looks; `None`: never.
    pub fn interrupt_after(&self, polls: Option<u32>) {
        let polls = polls.map_or(-1, i64::from);
        self.module
            .platform()
            .polls_left
            .store(polls, Ordering::Relaxed);
    }

    pub fn set_tsc(&self, tsc: u64) {
        self.module.platform().tsc.store(tsc, Ordering::Relaxed);
    }

    pub fn state(&self) -> TdState {
        let word = |w: usize| self.tdcs().map_or(0, |t| t.get(w));
        TdState {
            children: self.page(self.tdr).get(tdr_word::CHLDCNT),
            op_state: word(tdcs_word::OP_STATE),
            epoch: word(tdcs_word::EPOCH),
            refs: [word(tdcs_word::REFCOUNT), word(tdcs_word::REFCOUNT + 1)],
        }
    }

    /// The entry of `gpa` at `level`, or the one that the walk ends at: level and value.
    pub fn entry(&self, gpa: u64, level: u8) -> Option<(u8, u64)> {
        let root = self.root()?;
        let walk = root.walk(self.module.platform(), gpa, level.min(root.level))?;
        Some((walk.entry.level, walk.entry.load()))
    }

    /// All entries that are not exactly free: level, address, value.
    pub fn sept(&self) -> Vec<(u8, u64, u64)> {
        let mut out = Vec::new();
        if let Some(root) = self.root() {
            self.table(root.pa, root.level, 0, &mut out);
        }
        out
    }

    fn table(&self, pa: u64, level: u8, gpa: u64, out: &mut Vec<(u8, u64, u64)>) {
        let page = self.page(pa);
        for i in 0..512usize {
            let raw = page.get(i);
            if raw == FREE {
                continue;
            }
            let at = gpa | ((i as u64) << shift(level));
            out.push((level, at, raw));
            let pa = self.format().decode(raw) & HPA;
            if raw & PS == 0 && level > 0 && pa != 0 {
                self.table(pa, level - 1, at, out);
            }
        }
    }

    /// What the PAMT says about a page, and the lock of the entry without host priority.
    pub fn page_state(&self, pa: u64, size: u8) -> (PageState, u64) {
        let e = self
            .module
            .machine()
            .pamt_entry(pa, size)
            .expect("PAMT entry");
        ((e.kind(), e.owner(), e.block_epoch()), e.head() & 0xFFFD)
    }
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
