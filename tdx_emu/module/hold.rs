// SPDX-License-Identifier: GPL-2.0

//! Locks that the fault injection holds, as a vCPU or another CPU would: taken at the
//! start of the first call that they concern, let go after a number of calls, with the
//! next script, or when the page with the lock goes back to the host.

use core::sync::atomic::{AtomicU64, Ordering};

use super::abi::{leaf, op, Res};
use super::inject::{Lock, Slot};
use super::lock::{Mode, ShareX, ShareXHp};
use super::mem::Page;
use super::pamt::pt;
use super::platform::{Platform, Regs, PAGE_SIZE};
use super::script::{Rule, Script, ScriptError, What};
use super::sys::Machine;
use super::td::{tdcs_word, tdr_word, Tdcs};
use super::tree::EntryRef;

/// Progress of a rule that holds a lock.
mod state {
    pub(super) const IDLE: u64 = 0;
    pub(super) const TAKING: u64 = 1;
    pub(super) const HELD: u64 = 2;
    pub(super) const DONE: u64 = 3;
    /// The script is being replaced.
    pub(super) const OFF: u64 = 4;
}

/// A lock that is held, or not. What was locked is kept here and not taken from the
/// rule, which may be replaced.
pub(crate) struct Held {
    state: AtomicU64,
    /// Physical address of the word with the lock; 0 for the KOT.
    at: AtomicU64,
    /// TDR of the TD whose calls count; 0: all calls.
    tdr: AtomicU64,
    kind: AtomicU64,
}

/// How a word is unlocked.
mod kind {
    pub(super) const PLAIN: u64 = 0;
    pub(super) const PRIORITY: u64 = 1;
    pub(super) const ENTRY: u64 = 2;
    /// Added to the first two.
    pub(super) const SHARED: u64 = 4;
}

impl Held {
    pub(crate) const fn new() -> Held {
        Held {
            state: AtomicU64::new(state::IDLE),
            at: AtomicU64::new(0),
            tdr: AtomicU64::new(0),
            kind: AtomicU64::new(0),
        }
    }

    /// Ready for a new rule; the lock is not held any more.
    pub(crate) fn reset(&self) {
        self.state.store(state::IDLE, Ordering::Release);
    }

    pub(crate) fn state(&self) -> &'static str {
        match self.state.load(Ordering::Relaxed) {
            state::HELD => "held",
            state::DONE => "released",
            _ => "waiting",
        }
    }

    fn go(&self, from: u64, to: u64) -> bool {
        let order = Ordering::AcqRel;
        let done = self
            .state
            .compare_exchange(from, to, order, Ordering::Relaxed);
        done.is_ok()
    }

    /// Address of the word that is locked, if it is; 0 for the KOT.
    pub(crate) fn word(&self) -> Option<u64> {
        let held = self.state.load(Ordering::Acquire) == state::HELD;
        held.then(|| self.at.load(Ordering::Relaxed))
    }
}

/// What was locked: address of the word and how to unlock it.
struct Locked {
    at: u64,
    kind: u64,
    tdr: u64,
}

fn holds(slot: &Slot) -> Option<(Rule, Lock)> {
    let rule = slot.rule()?;
    match rule.what {
        What::Hold(lock) => Some((rule, lock)),
        _ => None,
    }
}

const fn mode(rule: &Rule) -> (Mode, u64) {
    if rule.shared {
        (Mode::Shared, kind::SHARED)
    } else {
        (Mode::Exclusive, 0)
    }
}

impl<P: Platform> Machine<P> {
    /// Replaces the rules by those of a script. On error nothing changes. Not to be called from
    /// two places at once.
    pub(crate) fn load_script(&self, text: &[u8]) -> Result<(), ScriptError> {
        let script = Script::parse(text)?;
        for slot in &self.inject.slots {
            self.stop_holding(slot);
        }
        self.inject.replace(&script);
        Ok(())
    }

    /// Turns a slot off, whatever it is doing.
    fn stop_holding(&self, slot: &Slot) {
        let held = &slot.held;
        loop {
            match held.state.load(Ordering::Acquire) {
                // The other CPU neither waits nor sleeps.
                state::TAKING => core::hint::spin_loop(),
                state::HELD => {
                    self.let_go(slot);
                }
                from => {
                    if held.go(from, state::OFF) {
                        return;
                    }
                }
            }
        }
    }

    /// Start of a call: takes the locks that rules want held. `tdr`: the TD that the call is
    /// about.
    #[inline]
    pub(crate) fn hold_locks(&self, tdr: impl Fn() -> Option<u64>) {
        for slot in self.inject.in_use() {
            if let Some((rule, lock)) = holds(slot) {
                self.hold_lock(slot, &rule, lock, tdr());
            }
        }
    }

    #[inline(never)]
    fn hold_lock(&self, slot: &Slot, rule: &Rule, lock: Lock, tdr: Option<u64>) {
        let wanted = |tdr| {
            rule.hkid
                .is_none_or(|h| self.hkid_of(tdr) == Some(u64::from(h)))
        };
        let td = match (lock, tdr) {
            (Lock::Pamt | Lock::Kot, _) => 0,
            (_, Some(tdr)) if wanted(tdr) => tdr,
            _ => return,
        };
        let held = &slot.held;
        if !held.go(state::IDLE, state::TAKING) {
            return;
        }
        let locked = self.take(rule, lock, td);
        if let Some(l) = &locked {
            held.at.store(l.at, Ordering::Relaxed);
            held.tdr.store(l.tdr, Ordering::Relaxed);
            held.kind.store(l.kind, Ordering::Relaxed);
        }
        let next = match locked {
            Some(_) => state::HELD,
            None => state::IDLE,
        };
        held.state.store(next, Ordering::Release);
        // The rule may be of a script that was replaced between its reading and the lock: then
        // nobody would let it go. A script that comes from here on does.
        if slot.rule() != Some(*rule) && self.let_go(slot) {
            held.go(state::DONE, state::IDLE);
        }
    }

    fn take(&self, rule: &Rule, lock: Lock, tdr: u64) -> Option<Locked> {
        let (mode, shared) = mode(rule);
        let (at, kind) = match lock {
            Lock::Kot => {
                ShareX::try_lock(&self.sys.kot_lock, mode).ok()?.forget();
                (0, kind::PLAIN | shared)
            }
            Lock::Pamt | Lock::Tdr => {
                let (pa, size) = match lock {
                    Lock::Tdr => (tdr, 0),
                    _ => (rule.value, rule.level),
                };
                let at = self.sys.tdmr_of(pa)?.entry_address(pa, size);
                self.pamt_entry(pa, size)?.lock(mode).ok()?.forget();
                (at, kind::PRIORITY | shared)
            }
            Lock::Tree | Lock::Epoch | Lock::OpState | Lock::Entry => {
                return self.take_of_td(rule, lock, tdr).ok();
            }
        };
        Some(Locked { at, kind, tdr })
    }

    /// A lock in the pages of a TD, which must be alive.
    fn take_of_td(&self, rule: &Rule, lock: Lock, tdr: u64) -> Res<Locked> {
        let (mode, shared) = mode(rule);
        let td = self.lock_tdr(tdr, op::RDX, Mode::Shared)?;
        let tdcs = self.check_built(&td)?;
        let word = |w: usize| td.tdcx(0).wrapping_add((w as u64) << 3);
        let (at, kind) = match lock {
            Lock::Tree => {
                tdcs.lock_tree(mode)?.forget();
                (word(tdcs_word::SEPT_LOCK), kind::PLAIN | shared)
            }
            Lock::Epoch => {
                tdcs.lock_epoch(mode)?.forget();
                (word(tdcs_word::EPOCH_LOCK), kind::PLAIN | shared)
            }
            Lock::OpState => {
                tdcs.lock_op_state(mode)?.forget();
                (word(tdcs_word::OP_STATE_LOCK), kind::PRIORITY | shared)
            }
            _ => (self.take_entry(rule, &tdcs)?, kind::ENTRY),
        };
        Ok(Locked { at, kind, tdr })
    }

    /// Locks an S-EPT entry and returns its physical address.
    fn take_entry(&self, rule: &Rule, tdcs: &Tdcs<'_>) -> Res<u64> {
        let _tree = tdcs.lock_tree(Mode::Shared)?;
        let table = tdcs.root().table_of(&self.p, rule.value, rule.level);
        let table = table.ok_or(op::RCX)?;
        let index = super::tree::index(rule.value, rule.level);
        let page = Page::at(&self.p, table).ok_or(op::RCX)?;
        let entry = EntryRef::new(page, index, rule.level);
        if rule.shared {
            entry.lock_host().map_err(|_| op::RCX)?.forget();
        } else {
            entry.lock_guest()?.forget();
        }
        Ok(table.wrapping_add((index as u64) << 3))
    }

    /// Lets the lock of a rule go, if it is held, and says whether it was.
    fn let_go(&self, slot: &Slot) -> bool {
        let held = &slot.held;
        let at = held.at.load(Ordering::Relaxed);
        let kind = held.kind.load(Ordering::Relaxed);
        if !held.go(state::HELD, state::DONE) {
            return false;
        }
        let mode = match kind & kind::SHARED {
            0 => Mode::Exclusive,
            _ => Mode::Shared,
        };
        if at == 0 {
            drop(ShareX::adopt(&self.sys.kot_lock, mode));
            return true;
        }
        let Some(page) = Page::at(&self.p, at) else {
            return true;
        };
        let index = (at & 0xFFF) as usize / 8;
        match kind & !kind::SHARED {
            kind::PLAIN => drop(ShareX::adopt(page.word(index), mode)),
            kind::PRIORITY => drop(ShareXHp::adopt(page.word(index), mode)),
            _ => EntryRef::new(page, index, 0).unlock(),
        }
        true
    }

    /// End of a call: counts it for the locks that are held meanwhile.
    #[inline]
    pub(crate) fn count_held(&self, tdr: Option<u64>, busy: bool) {
        for slot in self.inject.in_use() {
            if let Some((rule, _)) = holds(slot) {
                self.count_for(slot, &rule, tdr, busy);
            }
        }
    }

    fn count_for(&self, slot: &Slot, rule: &Rule, tdr: Option<u64>, busy: bool) {
        if slot.held.word().is_none() {
            return;
        }
        let whose = slot.held.tdr.load(Ordering::Relaxed);
        if whose != 0 && tdr != Some(whose) {
            return;
        }
        let order = Ordering::Relaxed;
        let calls = slot.seen.fetch_add(1, order).wrapping_add(1);
        let busies = match busy {
            true => slot.hits.fetch_add(1, order).wrapping_add(1),
            false => slot.hits.load(order),
        };
        let reached = |limit: u32, n: u64| limit != 0 && n >= u64::from(limit);
        if reached(rule.n, calls) || reached(rule.of, busies) {
            self.let_go(slot);
        }
    }

    /// Pages are about to go back to the host: no lock in them stays held.
    #[inline]
    pub(crate) fn drop_held_in(&self, pa: u64, pages: u64) {
        for slot in self.inject.in_use() {
            let inside = |at: u64| at.wrapping_sub(pa) < pages.wrapping_mul(PAGE_SIZE);
            if slot.held.word().is_some_and(|at| at != 0 && inside(at)) {
                self.let_go(slot);
            }
        }
    }

    /// HKID of the TD whose TDR is at `tdr`; 0: there is none.
    pub(crate) fn hkid_of(&self, tdr: u64) -> Option<u64> {
        if tdr == 0 {
            return None;
        }
        Some(Page::at(&self.p, tdr)?.get(tdr_word::HKID))
    }

    /// TDR of the TD that a call is about, without any lock: for the fault injection and the
    /// checks only.
    pub(crate) fn td_of_call(&self, number: u16, r: &Regs) -> Option<u64> {
        let page = |pa: u64| self.strip_hkid(pa) & !(PAGE_SIZE - 1);
        let is_tdr = |pa: u64| self.pamt_entry(pa, 0).is_some_and(|e| e.kind() == pt::TDR);
        let owner = |pa: u64| {
            let mut entries = (0..3u8).filter_map(|size| self.pamt_entry(pa, size));
            let owned = entries.find(|e| !matches!(e.kind(), pt::NDA | pt::RSVD));
            owned.map(|e| e.owner())
        };
        let tdr = match number {
            leaf::VP_ENTER | leaf::VP_INIT | leaf::VP_FLUSH | leaf::VP_RD | leaf::VP_WR => {
                // VP.ENTER has flags above the address.
                owner(page(r.rcx & !super::vcpu::ENTER_FLAGS))?
            }
            leaf::VP_ADDCX => owner(page(r.rdx))?,
            leaf::MEM_TRACK
            | leaf::MR_FINALIZE
            | leaf::MNG_INIT
            | leaf::MNG_KEY_CONFIG
            | leaf::MNG_KEY_FREEID
            | leaf::MNG_KEY_RECLAIMID
            | leaf::MNG_RD
            | leaf::MNG_VPFLUSHDONE => page(r.rcx),
            leaf::PHYMEM_PAGE_RECLAIM | leaf::PHYMEM_PAGE_RDMD => match page(r.rcx) {
                pa if is_tdr(pa) => pa,
                pa => owner(pa)?,
            },
            _ => page(r.rdx),
        };
        is_tdr(tdr).then_some(tdr)
    }
}
