// SPDX-License-Identifier: GPL-2.0

//! Locks that the fault injection holds, as a vCPU or another CPU would: taken at the
//! start of the first call that they concern, let go after a number of calls, with the
//! next script, or when the page with the lock goes back to the host.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::script::{Lock, Rule};
use crate::module::lock::{Mode, ShareX, ShareXHp};
use crate::module::machine::Machine;
use crate::module::mem::Page;
use crate::module::numbers::{op, Res};
use crate::module::observer::Observer;
use crate::module::td::{tdcs_word, Tdcs};
use crate::module::tree::{index, EntryRef, Format};
use crate::module::Platform;

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

    /// In a word, for the reader of the rules.
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

    /// TDR of the TD whose calls count while the lock is held; 0: all calls.
    pub(crate) fn whose(&self) -> u64 {
        self.tdr.load(Ordering::Relaxed)
    }

    /// Takes the lock that a rule wants held, on behalf of the TD with that TDR. Returns whether
    /// it was tried: not while the rule holds it, or did.
    pub(crate) fn take<P: Platform, O: Observer>(
        &self,
        m: &Machine<P, O>,
        rule: &Rule,
        lock: Lock,
        tdr: u64,
    ) -> bool {
        if !self.go(state::IDLE, state::TAKING) {
            return false;
        }
        let locked = take(m, rule, lock, tdr);
        if let Some(l) = &locked {
            self.at.store(l.at, Ordering::Relaxed);
            self.tdr.store(l.tdr, Ordering::Relaxed);
            self.kind.store(l.kind, Ordering::Relaxed);
        }
        let next = match locked {
            Some(_) => state::HELD,
            None => state::IDLE,
        };
        self.state.store(next, Ordering::Release);
        true
    }

    /// A lock that was let go may be taken again.
    pub(crate) fn again(&self) {
        self.go(state::DONE, state::IDLE);
    }

    /// Lets the lock go, if it is held, and says whether it was.
    pub(crate) fn let_go<P: Platform, O: Observer>(&self, m: &Machine<P, O>) -> bool {
        if self.at.load(Ordering::Relaxed) != 0 {
            return self.let_go_in_page(&m.p);
        }
        let mode = self.mode();
        if !self.go(state::HELD, state::DONE) {
            return false;
        }
        drop(ShareX::adopt(&m.sys.kot_lock, mode));
        true
    }

    /// The same with a lock in a page, which is any but the KOT's.
    pub(crate) fn let_go_in_page<P: Platform>(&self, p: &P) -> bool {
        let at = self.at.load(Ordering::Relaxed);
        let kind = self.kind.load(Ordering::Relaxed);
        let mode = self.mode();
        if at == 0 || !self.go(state::HELD, state::DONE) {
            return false;
        }
        let Some(page) = Page::at(p, at) else {
            return true;
        };
        let index = (at & 0xFFF) as usize / 8;
        match kind & !kind::SHARED {
            kind::PLAIN => drop(ShareX::adopt(page.word(index), mode)),
            kind::PRIORITY => drop(ShareXHp::adopt(page.word(index), mode)),
            _ => EntryRef::new(page, index, 0, Format::PLAIN).unlock(),
        }
        true
    }

    fn mode(&self) -> Mode {
        match self.kind.load(Ordering::Relaxed) & kind::SHARED {
            0 => Mode::Exclusive,
            _ => Mode::Shared,
        }
    }

    /// Turns the rule off, whatever it is doing.
    pub(crate) fn turn_off<P: Platform, O: Observer>(&self, m: &Machine<P, O>) {
        loop {
            match self.state.load(Ordering::Acquire) {
                // The other CPU neither waits nor sleeps.
                state::TAKING => core::hint::spin_loop(),
                state::HELD => {
                    self.let_go(m);
                }
                from => {
                    if self.go(from, state::OFF) {
                        return;
                    }
                }
            }
        }
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

const fn mode(rule: &Rule) -> (Mode, u64) {
    if rule.shared {
        (Mode::Shared, kind::SHARED)
    } else {
        (Mode::Exclusive, 0)
    }
}

fn take<P: Platform, O: Observer>(
    m: &Machine<P, O>,
    rule: &Rule,
    lock: Lock,
    tdr: u64,
) -> Option<Locked> {
    let (mode, shared) = mode(rule);
    let (at, kind) = match lock {
        Lock::Kot => {
            ShareX::try_lock(&m.sys.kot_lock, mode).ok()?.forget();
            (0, kind::PLAIN | shared)
        }
        Lock::Pamt | Lock::Tdr => {
            let (pa, size) = match lock {
                Lock::Tdr => (tdr, 0),
                _ => (rule.value, rule.level),
            };
            let entry = m.pamt_entry(pa, size)?;
            let at = m.pamt_entry_address(pa, size)?;
            entry.lock(mode).ok()?.forget();
            (at, kind::PRIORITY | shared)
        }
        Lock::Tree | Lock::Epoch | Lock::OpState | Lock::Entry => {
            return take_of_td(m, rule, lock, tdr).ok();
        }
    };
    Some(Locked { at, kind, tdr })
}

/// A lock in the pages of a TD, which must be alive.
fn take_of_td<P: Platform, O: Observer>(
    m: &Machine<P, O>,
    rule: &Rule,
    lock: Lock,
    tdr: u64,
) -> Res<Locked> {
    let (mode, shared) = mode(rule);
    let td = m.lock_tdr(tdr, op::RDX, Mode::Shared)?;
    let tdcs = m.check_built(&td)?;
    let word = |w: usize| td.tdcx(0).wrapping_add((w as u64) << 3);
    let (at, kind) = match lock {
        Lock::Tree => {
            tdcs.lock_tree(mode)?.forget();
            let kind = match tdcs.rules.tree.priority {
                true => kind::PRIORITY,
                false => kind::PLAIN,
            };
            (word(tdcs_word::SEPT_LOCK), kind | shared)
        }
        Lock::Epoch => {
            tdcs.lock_epoch(mode)?.forget();
            (word(tdcs_word::EPOCH_LOCK), kind::PLAIN | shared)
        }
        Lock::OpState => {
            tdcs.lock_op_state(mode)?.forget();
            (word(tdcs_word::OP_STATE_LOCK), kind::PRIORITY | shared)
        }
        _ => (take_entry(&m.p, rule, &tdcs)?, kind::ENTRY),
    };
    Ok(Locked { at, kind, tdr })
}

/// Locks an S-EPT entry and returns its physical address.
fn take_entry<P: Platform>(p: &P, rule: &Rule, tdcs: &Tdcs<'_>) -> Res<u64> {
    let _tree = tdcs.lock_tree(Mode::Shared)?;
    let table = tdcs.root().table_of(p, rule.value, rule.level);
    let table = table.ok_or(op::RCX)?;
    let i = index(rule.value, rule.level);
    let page = Page::at(p, table).ok_or(op::RCX)?;
    let entry = EntryRef::new(page, i, rule.level, tdcs.format);
    if rule.shared {
        entry.lock_host().map_err(|_| op::RCX)?.forget();
    } else {
        entry.lock_guest()?.forget();
    }
    Ok(table.wrapping_add((i as u64) << 3))
}
