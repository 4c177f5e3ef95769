// SPDX-License-Identifier: GPL-2.0

//! Invariants, checked after calls when asked for: the S-EPT is well formed, PAMT and
//! S-EPT agree, CHLDCNT counts what is there, no page is owned twice, no call leaves a
//! lock held.
//!
//! The checks take no locks and make nobody wait. What they see only counts if no other
//! call, and no guest's TDCALL, was in the module from the first look to the last; so
//! under load many calls go unchecked. After a call only what it may have changed is
//! looked at, and everything once in [`AUDIT_PERIOD`] calls.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use super::abi::{lc, leaf};
use super::audit::Sums;
use super::mem::{Page, WORDS};
use super::pamt::pt;
use super::platform::{Platform, Regs};
use super::stats::Count;
use super::sys::Machine;
use super::td::{tdcs_word, tdr_word, GpaLevel, MIN_TDCX, TDCX_SEPT_ROOT};
use super::tree::{self, offset_mask, Root, State, ACCEPT_COUNTER, HOST_PRIORITY, HPA, LOCK};

/// Calls between two checks of everything.
const AUDIT_PERIOD: u64 = 4096;

/// How much is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CheckLevel {
    /// Nothing.
    Off = 0,
    /// After each call what it touched, now and then everything.
    Touched = 1,
    /// Everything after each call.
    Everything = 2,
}

/// What can be wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wrong {
    NoMemory = 1,
    NoState,
    NotCanonical,
    TableAtBottom,
    LeafTooHigh,
    NotOwned,
    Children,
    Reachable,
    OwnedTwice,
    LockLeft,
    EntryLocked,
    PageNotFreed,
    Orphan,
    Fatal,
}

const TEXTS: [&str; 14] = [
    "a page of the TD has no memory",
    "an S-EPT entry has no state",
    "an S-EPT entry has bits that its state does not have",
    "an S-EPT entry of level 0 refers to a table",
    "a leaf is above the 1G level",
    "the PAMT entry of a mapped page has another type, size or owner",
    "CHLDCNT is not the number of pages that the PAMT gives to the TD",
    "the pages in the S-EPT are not those that the PAMT gives to the TD",
    "a part of a large page is owned as well",
    "a call left a lock of the TD held",
    "a call left an S-EPT entry locked",
    "a page was given back but is still owned",
    "a page's owner is no TDR",
    "the module met a state that cannot be, and shut down",
];

/// Something that is wrong, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Violation {
    what: u64,
    /// Leaf after which it was found; FFFFh: none.
    pub leaf: u16,
    /// The TD, 0 if it is about none.
    pub tdr: u64,
    /// Physical address of a page or PAMT entry, GPA or lock word, whatever fits.
    pub at: u64,
}

impl Violation {
    /// What is wrong.
    pub fn text(&self) -> &'static str {
        let index = (self.what as usize).wrapping_sub(1);
        TEXTS.get(index).copied().unwrap_or("?")
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text();
        write!(
            f,
            "{text}: at {:#x} of TD {:#x} after leaf {}",
            self.at, self.tdr, self.leaf
        )
    }
}

/// State of the checks.
pub(crate) struct Watch {
    level: AtomicU64,
    /// Calls in the module, without those whose guest is running.
    inside: AtomicU64,
    /// Counts entries into the module, by calls and by exits of guests.
    entries: AtomicU64,
    /// The first violation: what (and leaf << 8), TDR, where.
    first: [AtomicU64; 3],
}

impl Watch {
    pub(crate) const fn new() -> Watch {
        Watch {
            level: AtomicU64::new(cfg!(debug_assertions) as u64),
            inside: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            first: [const { AtomicU64::new(0) }; 3],
        }
    }

    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.level.load(Ordering::Relaxed) != 0
    }

    /// To be called before the first SEAMCALL only.
    pub(crate) fn set_level(&self, level: CheckLevel) {
        self.level.store(level as u64, Ordering::Relaxed);
    }

    /// A call, or a guest's exit, comes into the module. Returns whether nobody else is
    /// in it, and a ticket.
    pub(crate) fn come(&self) -> (bool, u64) {
        let alone = self.inside.fetch_add(1, Ordering::SeqCst) == 0;
        let ticket = self.entries.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
        (alone, ticket)
    }

    pub(crate) fn go(&self) {
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    /// A new ticket for a call that is in the module.
    fn again(&self) -> u64 {
        self.entries.fetch_add(1, Ordering::SeqCst).wrapping_add(1)
    }

    /// Whether the caller is the only one in the module.
    fn is_last(&self) -> bool {
        self.inside.load(Ordering::SeqCst) == 1
    }

    /// Runs a guest, which is outside of the module.
    #[inline]
    pub(crate) fn outside<R>(&self, guest: impl FnOnce() -> R) -> R {
        if !self.is_on() {
            return guest();
        }
        self.go();
        let why = guest();
        self.come();
        why
    }

    /// Whether nobody came since the ticket.
    pub(crate) fn undisturbed(&self, ticket: u64) -> bool {
        self.entries.load(Ordering::SeqCst) == ticket
    }

    pub(crate) fn first(&self) -> Option<Violation> {
        let [what, tdr, at] = &self.first;
        let head = what.load(Ordering::Acquire);
        (head & 0xFF != 0).then(|| Violation {
            what: head & 0xFF,
            leaf: (head >> 8) as u16,
            tdr: tdr.load(Ordering::Relaxed),
            at: at.load(Ordering::Relaxed),
        })
    }

    fn remember(&self, v: &Violation) {
        /// Somebody is writing.
        const CLAIMED: u64 = 1 << 32;
        let [what, tdr, at] = &self.first;
        let order = Ordering::Relaxed;
        if what.compare_exchange(0, CLAIMED, order, order).is_err() {
            return;
        }
        tdr.store(v.tdr, order);
        at.store(v.at, order);
        what.store(v.what | (u64::from(v.leaf) << 8), Ordering::Release);
    }
}

/// What was known when a call began.
pub(crate) struct Before {
    alone: bool,
    ticket: u64,
    number: u16,
    tdr: Option<u64>,
    rcx: u64,
    locks: [u64; 5],
    /// Locked entries from the root to the one that the call names, and below it.
    entries: u64,
}

pub(crate) type Finding = Result<(), (Wrong, u64)>;

impl<P: Platform> Machine<P> {
    /// Start of a call, if calls are checked.
    #[inline]
    pub(crate) fn check_begin(&self, number: u16, r: &Regs) -> Option<Before> {
        if !self.watch.is_on() {
            return None;
        }
        let (alone, ticket) = self.watch.come();
        let tdr = self.td_of_call(number, r);
        Some(Before {
            alone,
            ticket,
            number,
            tdr,
            rcx: r.rcx,
            locks: tdr.map_or([0; 5], |tdr| self.lock_words(tdr)),
            entries: tdr.map_or(0, |tdr| self.locked_entries(tdr, r.rcx)),
        })
    }

    /// End of a call that [`Machine::check_begin`] saw.
    #[inline(never)]
    pub(crate) fn check_end(&self, mut before: Before, status: u64, r: &Regs) {
        if before.number == leaf::VP_ENTER {
            // The exits of its guest were entries, too.
            before.ticket = self.watch.again();
            before.alone = false;
        }
        if self.watch.undisturbed(before.ticket) && self.watch.is_last() {
            self.check_call(&before, status, r);
        }
        self.watch.go();
    }

    fn check_call(&self, before: &Before, status: u64, r: &Regs) {
        let Some(tdr) = before.tdr else { return };
        let everything = self.watch.level.load(Ordering::Relaxed) > CheckLevel::Touched as u64;
        let due = everything || before.ticket & (AUDIT_PERIOD - 1) == 0;
        let found = self
            .check_locks(before, tdr)
            .and_then(|()| self.check_touched(before, tdr, status, r))
            .and_then(|()| if due { self.audit_td(tdr) } else { Ok(()) });
        if let Err((what, at)) = found {
            if self.watch.undisturbed(before.ticket) {
                self.violation(what, before.number, tdr, at);
            }
        }
    }

    /// Counts a violation; the first one is remembered.
    pub(crate) fn violation(&self, what: Wrong, leaf: u16, tdr: u64, at: u64) -> Violation {
        let v = Violation {
            what: what as u64,
            leaf,
            tdr,
            at,
        };
        self.stats.add(Count::InvariantErrors);
        self.watch.remember(&v);
        v
    }

    /// The lock bits of a TD: TDR, OP_STATE, S-EPT tree, epoch; and of the KOT. Without
    /// host priority.
    fn lock_words(&self, tdr: u64) -> [u64; 5] {
        const HELD_HP: u64 = 0xFFFD;
        let head = self.pamt_entry(tdr, 0).map_or(0, |e| e.head());
        let kot = self.sys.kot_lock.load(Ordering::Relaxed);
        let Some(tdcs) = self.tdcs_page(tdr) else {
            return [head & HELD_HP, 0, 0, 0, kot];
        };
        [
            head & HELD_HP,
            tdcs.get(tdcs_word::OP_STATE_LOCK) & HELD_HP,
            tdcs.get(tdcs_word::SEPT_LOCK),
            tdcs.get(tdcs_word::EPOCH_LOCK),
            kot,
        ]
    }

    /// TDCS page 0 of a TD that has all of them.
    fn tdcs_page(&self, tdr: u64) -> Option<Page<'_>> {
        let page = Page::at(&self.p, tdr)?;
        if page.get(tdr_word::NUM_TDCX) < MIN_TDCX {
            return None;
        }
        Page::at(&self.p, page.get(tdr_word::TDCX))
    }

    /// The locks are as they were; each vCPU in its guest has the TDR. Those of the fault
    /// injection come and go.
    fn check_locks(&self, before: &Before, tdr: u64) -> Finding {
        let entered = before.number == leaf::VP_ENTER;
        let created = before.number == leaf::MNG_ADDCX;
        let comparable = before.alone && !created || entered;
        if !comparable || !self.inject.in_use().is_empty() {
            return Ok(());
        }
        let locks = self.lock_words(tdr);
        let was = match entered {
            true => [self.guests(tdr).wrapping_mul(4), 0, 0, 0, 0],
            false => before.locks,
        };
        let changed = |(a, b): (&u64, &u64)| a != b;
        if let Some(i) = was.iter().zip(&locks).position(changed) {
            return Err((Wrong::LockLeft, i as u64));
        }
        if before.alone && self.locked_entries(tdr, before.rcx) > before.entries {
            return Err((Wrong::EntryLocked, before.rcx));
        }
        Ok(())
    }

    /// Entries that are locked from the root to the one that a call names in RCX, and in
    /// the table below it.
    fn locked_entries(&self, tdr: u64, rcx: u64) -> u64 {
        let (Some(root), Ok(at)) = (self.live_root(tdr), GpaLevel::parse(rcx, 0..=4)) else {
            return 0;
        };
        let tables = (at.level..=root.level).filter_map(|l| {
            let page = Page::at(&self.p, root.table_of(&self.p, at.gpa, l)?)?;
            Some(page.get(tree::index(at.gpa, l)))
        });
        let is_locked = |raw: &u64| raw & LOCK != 0;
        let above = tables
            .filter(is_locked)
            .fold(0u64, |n, _| n.wrapping_add(1));
        let below = at.level.checked_sub(1);
        let below = below.and_then(|l| root.table_of(&self.p, at.gpa, l));
        let Some(page) = below.and_then(|pa| Page::at(&self.p, pa)) else {
            return above;
        };
        let entries = (0..WORDS).map(|i| page.get(i));
        let locked = entries.filter(is_locked);
        locked.fold(above, |n, _| n.wrapping_add(1))
    }

    /// vCPUs of a TD that are in their guest.
    fn guests(&self, tdr: u64) -> u64 {
        self.tdcs_page(tdr).map_or(0, |tdcs| {
            let odd = tdcs.get(tdcs_word::REFCOUNT.wrapping_add(1));
            odd.wrapping_add(tdcs.get(tdcs_word::REFCOUNT))
        })
    }

    /// The S-EPT entry that the call named with those above it, and the page that it gave
    /// back.
    fn check_touched(&self, before: &Before, tdr: u64, status: u64, r: &Regs) -> Finding {
        let gives_back = matches!(
            before.number,
            leaf::MEM_PAGE_REMOVE
                | leaf::MEM_PAGE_RELOCATE
                | leaf::MEM_PAGE_PROMOTE
                | leaf::MEM_SEPT_REMOVE
        );
        if gives_back && status == 0 {
            let size = match before.number {
                leaf::MEM_PAGE_REMOVE => (before.rcx & 7) as u8,
                _ => 0,
            };
            let free = self.pamt_entry(r.rcx, size).map(|e| e.kind());
            if free != Some(pt::NDA) {
                return Err((Wrong::PageNotFreed, r.rcx));
            }
        }
        let names_entry = gives_back
            || matches!(
                before.number,
                leaf::MEM_PAGE_ADD
                    | leaf::MEM_PAGE_AUG
                    | leaf::MEM_PAGE_DEMOTE
                    | leaf::MEM_SEPT_ADD
                    | leaf::MEM_SEPT_RD
                    | leaf::MEM_RANGE_BLOCK
                    | leaf::MEM_RANGE_UNBLOCK
            );
        match GpaLevel::parse(before.rcx, 0..=4) {
            Ok(at) if names_entry => self.check_path(tdr, at.gpa),
            _ => Ok(()),
        }
    }

    /// Root of the S-EPT of a TD that is neither too young nor being taken apart.
    pub(crate) fn live_root(&self, tdr: u64) -> Option<Root> {
        let page = Page::at(&self.p, tdr)?;
        let tdcs = self.tdcs_page(tdr)?;
        let level = tdcs.get(tdcs_word::ROOT_LEVEL) as u8;
        if page.get(tdr_word::LIFECYCLE) != lc::KEYS_CONFIGURED || level == 0 {
            return None;
        }
        let pa = page.get(tdr_word::TDCX.wrapping_add(TDCX_SEPT_ROOT as usize));
        Some(Root { pa, level })
    }

    /// The entries from the root to the one that maps `gpa`, or does not.
    fn check_path(&self, tdr: u64, gpa: u64) -> Finding {
        let Some(root) = self.live_root(tdr) else {
            return Ok(());
        };
        let (mut pa, mut level) = (root.pa, root.level);
        let mut sums = Sums::default();
        loop {
            let table = Page::at(&self.p, pa).ok_or((Wrong::NoMemory, pa))?;
            let index = tree::index(gpa, level);
            let next = self.check_entry(tdr, table.get(index), level, &mut sums)?;
            match next {
                Some(child) => (pa, level) = (child, level.saturating_sub(1)),
                None => return Ok(()),
            }
        }
    }

    /// One entry, with the PAMT entry of what it refers to. Returns the table below it.
    pub(crate) fn check_entry(
        &self,
        tdr: u64,
        raw: u64,
        level: u8,
        sums: &mut Sums,
    ) -> Result<Option<u64>, (Wrong, u64)> {
        let raw = raw & !(LOCK | HOST_PRIORITY);
        let state = State::of(raw).ok_or((Wrong::NoState, raw))?;
        if !is_canonical(raw, level, state) {
            return Err((Wrong::NotCanonical, raw));
        }
        if !state.is_table() && !state.is_leaf() {
            return Ok(None);
        }
        let (pa, size, kind) = match state.is_table() {
            true if level == 0 => return Err((Wrong::TableAtBottom, raw)),
            true => (raw & HPA, 0, pt::EPT),
            false if level > 2 => return Err((Wrong::LeafTooHigh, raw)),
            false => (raw & HPA & !offset_mask(level), level, pt::REG),
        };
        let owned = self
            .pamt_entry(pa, size)
            .is_some_and(|e| e.kind() == kind && e.owner() == tdr);
        if !owned {
            return Err((Wrong::NotOwned, pa));
        }
        sums.add(pa, size);
        Ok(state.is_table().then_some(pa))
    }
}

/// Whether an entry has the bits of its state and no others. The states of migration do
/// not occur.
fn is_canonical(raw: u64, level: u8, state: State) -> bool {
    let pa = raw & HPA & !offset_mask(level);
    // A large pending entry may hold the counter of its accept.
    let counter = match state {
        State::Pending if level > 0 => ACCEPT_COUNTER,
        // A page of 1G that was promoted keeps the counter of its first part.
        State::PendingBlocked if level > 1 => ACCEPT_COUNTER,
        _ => 0,
    };
    let want = match state {
        State::Free => tree::FREE,
        State::NlMapped => tree::table(raw & HPA),
        State::NlBlocked => tree::blocked(tree::table(raw & HPA), level, State::NlMapped),
        State::Mapped => tree::mapped_leaf(pa),
        State::Blocked => tree::blocked(tree::mapped_leaf(pa), level, State::Mapped),
        State::Pending => tree::pending_leaf(pa),
        State::PendingBlocked => tree::blocked(tree::pending_leaf(pa), level, State::Pending),
        _ => return false,
    };
    raw & !counter == want
}
