// SPDX-License-Identifier: GPL-2.0

//! What KVM is between a guest and the mirror: vCPU threads that can be kicked and held, and the
//! notifier protocol between faults and whoever takes pages away.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

use tdx_emu_host::vmm::Vmm;
use tdx_mirror_host::base::addr::Gfn;
use tdx_mirror_host::mirror::error::MapOutcome;
use tdx_mirror_host::sept::progress::{Action, Conditions, End, Notes, Progress, Why};

use crate::backend::Guest;
use crate::td::Td;

/// Which vCPUs are inside the guest.
#[derive(Default)]
pub struct Gate {
    /// Odd while the vCPU is inside.
    entries: [AtomicU64; 2],
    held: AtomicI64,
    pub kicks: AtomicU64,
    /// Script of the fault injection without locks of S-EPT entries that a vCPU would hold.
    plain: Mutex<String>,
}

impl Gate {
    /// The vCPU is about to enter.
    pub fn enter(&self, vcpu: usize) {
        loop {
            self.entries[vcpu].fetch_add(1, SeqCst);
            // After that: whoever holds them out looks at the entry next, and sees it.
            if self.held.load(SeqCst) == 0 {
                return;
            }
            self.leave(vcpu);
            thread::yield_now();
        }
    }

    /// The vCPU has left.
    pub fn leave(&self, vcpu: usize) {
        self.entries[vcpu].fetch_add(1, SeqCst);
    }

    pub fn hold(&self, hold: bool) {
        self.held.fetch_add(if hold { 1 } else { -1 }, SeqCst);
    }

    pub fn is_held(&self) -> bool {
        self.held.load(SeqCst) != 0
    }

    /// Makes all vCPUs that are inside leave.
    pub fn kick(&self, vmm: &Vmm<Guest>) {
        self.kicks.fetch_add(1, SeqCst);
        for entry in &self.entries {
            let seen = entry.load(SeqCst);
            while seen % 2 == 1 && entry.load(SeqCst) == seen {
                vmm.host().polls_left.store(0, SeqCst);
                thread::yield_now();
            }
        }
        vmm.host().polls_left.store(-1, SeqCst);
        // A lock that is held in a vCPU's stead goes with it.
        let plain = self.plain.lock().unwrap();
        if !plain.is_empty() {
            load(vmm, &plain);
        }
    }

    /// Has the script `plain` in use from now on, and `held` with it until the next kick.
    pub fn inject(&self, vmm: &Vmm<Guest>, plain: &str, held: &str) {
        let mut own = self.plain.lock().unwrap();
        own.clear();
        own.push_str(plain);
        load(vmm, &format!("{plain}{held}"));
    }
}

fn load(vmm: &Vmm<Guest>, script: &str) {
    let rules = vmm.module.inject();
    rules.load(script.as_bytes()).expect("a script");
}

/// guest_memfd and the memory attributes of some GFNs.
pub struct Memory {
    gfns: Vec<u64>,
    /// The PFN of each GFN.
    pages: Vec<AtomicU64>,
    private: Vec<AtomicBool>,
    /// The direct table: whether a GFN is mapped shared.
    direct: Vec<AtomicBool>,
    free: Mutex<VecDeque<u64>>,
    /// KVM's mmu_invalidate_seq and mmu_invalidate_in_progress, changed under mmu_lock.
    seq: AtomicU64,
    in_progress: AtomicU64,
    /// GFNs that it is about, from a first one to a last one.
    range: [AtomicU64; 2],
    /// Who changes attributes or punches holes is alone in that, as under KVM's slots_lock.
    invalidating: Mutex<()>,
}

/// How a fault ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Served {
    /// The page is mapped; whether it was already.
    Mapped(bool),
    /// Nothing was mapped: the vCPU enters again, and faults again if need be.
    Enter,
    /// To userspace.
    Exit,
}

impl Memory {
    /// `spare` pages more than GFNs, from `first_pfn` on.
    pub fn new(gfns: Vec<u64>, first_pfn: u64, spare: u64) -> Self {
        let n = gfns.len() as u64;
        Self {
            pages: (0..n).map(|i| AtomicU64::new(first_pfn + i)).collect(),
            private: gfns.iter().map(|_| AtomicBool::new(true)).collect(),
            direct: gfns.iter().map(|_| AtomicBool::new(false)).collect(),
            free: Mutex::new((n..n + spare).map(|i| first_pfn + i).collect()),
            seq: AtomicU64::new(0),
            in_progress: AtomicU64::new(0),
            range: [AtomicU64::new(0), AtomicU64::new(0)],
            invalidating: Mutex::new(()),
            gfns,
        }
    }

    pub fn gfn(&self, i: usize) -> u64 {
        self.gfns[i]
    }

    pub fn len(&self) -> usize {
        self.gfns.len()
    }

    pub fn is_empty(&self) -> bool {
        self.gfns.is_empty()
    }

    pub fn index_of(&self, gfn: u64) -> usize {
        let found = self.gfns.iter().position(|g| *g == gfn);
        found.unwrap_or_else(|| panic!("gfn {gfn:#x} is none of the guest's"))
    }

    pub fn is_private(&self, i: usize) -> bool {
        self.private[i].load(SeqCst)
    }

    pub fn is_direct(&self, i: usize) -> bool {
        self.direct[i].load(SeqCst)
    }

    /// The page that a GFN has now.
    pub fn page(&self, i: usize) -> u64 {
        self.pages[i].load(SeqCst)
    }

    /// Whether a page that was looked up when the sequence was `seq` may be gone; under mmu_lock.
    fn is_stale(&self, i: usize, seq: u64) -> bool {
        let [first, last] = self.range.each_ref().map(|r| r.load(SeqCst));
        let inside = (first..=last).contains(&self.gfns[i]);
        self.in_progress.load(SeqCst) > 0 && inside || self.seq.load(SeqCst) != seq
    }

    /// A private fault, once.
    ///
    /// # Errors
    ///
    /// Why it is to be tried again.
    fn try_fault(&self, td: &Td, i: usize) -> Result<Served, Why> {
        let seq = self.seq.load(SeqCst);
        if !self.is_private(i) {
            return Ok(Served::Exit);
        }
        let pfn = self.page(i);
        let outcome = td.shared(|l| {
            // Under mmu_lock: what was looked up before it may be old.
            (!self.is_stale(i, seq)).then(|| td.map_with(l, self.gfns[i], pfn))
        });
        match outcome {
            Some(Ok(MapOutcome::Fixed)) => Ok(Served::Mapped(false)),
            Some(Ok(MapOutcome::Spurious)) => Ok(Served::Mapped(true)),
            Some(Ok(MapOutcome::Retry(reason))) => Err(Why::Mirror(reason)),
            None => Err(Why::Invalidation),
            Some(Err(e)) => panic!("gfn {:#x}: {e:?}", self.gfns[i]),
        }
    }

    /// A private fault with its local retries, as the mirror's policy has them.
    pub fn fault(
        &self,
        td: &Td,
        progress: &Progress,
        notes: &mut Notes,
        i: usize,
        now: Conditions,
    ) -> Served {
        let gfn = self.gfns[i];
        loop {
            let why = match self.try_fault(td, i) {
                Ok(served) => {
                    let end = match served {
                        Served::Mapped(true) => End::Spurious,
                        Served::Mapped(false) => End::Mapped,
                        // Userspace converts the page before it runs the vCPU again.
                        _ => End::Error,
                    };
                    let done = progress.fault_done(notes, gfn, Conditions::NONE, end);
                    assert!(!done.report, "no vCPU is listed");
                    return served;
                }
                Err(why) => why,
            };
            let owes = || td.mirror.external().owes(Gfn::new(gfn).expect("a GFN"));
            match progress.fault_retry(notes, gfn, now, why, owes) {
                Action::Again => thread::yield_now(),
                Action::Enter => return Served::Enter,
                Action::Exit => return Served::Exit,
                Action::Kill => panic!("the policy ended the VM"),
            }
        }
    }

    /// A fault on the shared half.
    pub fn fault_shared(&self, td: &Td, i: usize) {
        let seq = self.seq.load(SeqCst);
        if self.is_private(i) {
            return;
        }
        td.shared(|_| {
            if !self.is_stale(i, seq) {
                self.direct[i].store(true, SeqCst);
            }
        });
    }

    /// Makes one GFN private, as userspace does after KVM_EXIT_MEMORY_FAULT.
    pub fn invalidate_one(&self, td: &Td, i: usize) {
        if !self.is_private(i) {
            self.invalidate(td, i..i + 1, Some(true), &|_| false);
        }
    }

    /// A private GFN out of those that `pick` names, for a guest that is about to accept it; the
    /// shared ones it touches.  A guest that has met shared ones only has the last one made
    /// private (MapGPA): it must not wait for whoever else converts, who may wait for this vCPU.
    pub fn pick_private(&self, td: &Td, mut pick: impl FnMut() -> usize) -> usize {
        let mut i = pick();
        for _ in 0..self.len() {
            if self.is_private(i) {
                return i;
            }
            self.fault_shared(td, i);
            i = pick();
        }
        self.invalidate_one(td, i);
        i
    }

    /// Waits until what is being taken away is gone.
    pub fn settle(&self) {
        drop(self.invalidating.lock().unwrap());
    }

    /// Takes the pages of `range` of the GFNs away, by a hole or to have them shared or private,
    /// unless one of them is to be kept.  Answers how many leaves were zapped.
    pub fn invalidate(
        &self,
        td: &Td,
        range: std::ops::Range<usize>,
        to_private: Option<bool>,
        keep: &dyn Fn(usize) -> bool,
    ) -> u64 {
        let _alone = self.invalidating.lock().unwrap();
        if range.clone().any(keep) {
            return 0;
        }
        let first = self.gfns[range.start];
        let last = self.gfns[range.end - 1];
        td.exclusive(|_| {
            self.range[0].store(first, SeqCst);
            self.range[1].store(last, SeqCst);
            self.in_progress.fetch_add(1, SeqCst);
        });
        let mut zapped = 0;
        if to_private != Some(true) {
            zapped = td.zap(first, last + 1, true);
        }
        for i in range {
            if to_private != Some(true) && self.is_private(i) {
                // The page goes back, and may be the next one that somebody gets.
                let mut free = self.free.lock().unwrap();
                free.push_front(self.page(i));
                let at = free.len() / 2;
                let other = free.remove(at).expect("a page");
                self.pages[i].store(other, SeqCst);
            }
            if let Some(private) = to_private {
                self.direct[i].store(false, SeqCst);
                self.private[i].store(private, SeqCst);
            }
        }
        td.exclusive(|_| {
            self.seq.fetch_add(1, SeqCst);
            self.in_progress.fetch_sub(1, SeqCst);
        });
        zapped
    }
}

/// Has the gate decide who is inside.
pub fn gated(gate: &Arc<Gate>, backend: crate::backend::Backend) -> crate::backend::Backend {
    let (kick, hold) = (gate.clone(), gate.clone());
    let vmm = backend.machine.vmm.clone();
    backend
        .kick_with(move || kick.kick(&vmm))
        .hold_with(move |h| hold.hold(h))
}
