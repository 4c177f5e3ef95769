// SPDX-License-Identifier: GPL-2.0

//! Invariants, checked after calls when asked for: the S-EPT is well formed, PAMT and
//! S-EPT agree, CHLDCNT counts what is there, no page is owned twice, no call leaves a
//! lock held.
//!
//! The checks take no locks and make nobody wait. What they see only counts if no other
//! call, and no guest's TDCALL, was in the module from the first look to the last; so
//! under load many calls go unchecked. After a call only what it may have changed is
//! looked at, and everything once in [`AUDIT_PERIOD`] calls.

#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::audit::audit_td;
use super::kit::Watched;
use super::sept::{check_entry, live_root, tdcs_page, Sums};
use super::subject::td_of_call;
use super::violation::{Finding, Wrong};
use crate::module::dynamic::PAIR_IS_EMPTY;
use crate::module::mem::{Page, WORDS};
use crate::module::numbers::leaf;
use crate::module::pamt::pt;
use crate::module::td::{tdcs_word, GpaLevel};
use crate::module::tree::{self, LOCK};
use crate::module::{Platform, Regs};

/// Calls between two checks of everything.
const AUDIT_PERIOD: u64 = 4096;

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

/// Start of a call, if calls are checked.
#[inline]
pub(crate) fn begin<P: Platform>(m: &Watched<P>, number: u16, r: &Regs) -> Option<Before> {
    if !m.observer.watch.is_on() {
        return None;
    }
    let (alone, ticket) = m.observer.watch.come();
    let tdr = td_of_call(m, number, r);
    Some(Before {
        alone,
        ticket,
        number,
        tdr,
        rcx: r.rcx,
        locks: tdr.map_or([0; 5], |tdr| lock_words(m, tdr)),
        entries: tdr.map_or(0, |tdr| locked_entries(m, tdr, r.rcx)),
    })
}

/// End of a call that [`begin`] saw.
#[inline(never)]
pub(crate) fn end<P: Platform>(m: &Watched<P>, mut before: Before, status: u64, r: &Regs) {
    if before.number == leaf::VP_ENTER {
        // The exits of its guest were entries, too.
        before.ticket = m.observer.watch.again();
        before.alone = false;
    }
    if m.observer.watch.undisturbed(before.ticket) && m.observer.watch.is_last() {
        check_call(m, &before, status, r);
    }
    m.observer.watch.go();
}

fn check_call<P: Platform>(m: &Watched<P>, before: &Before, status: u64, r: &Regs) {
    let Some(tdr) = before.tdr else { return };
    let everything = m.observer.watch.is_thorough();
    let due = everything || before.ticket & (AUDIT_PERIOD - 1) == 0;
    let found = check_locks(m, before, tdr)
        .and_then(|()| check_touched(m, before, tdr, status, r))
        .and_then(|()| if due { audit_td(m, tdr) } else { Ok(()) });
    if let Err((what, at)) = found {
        if m.observer.watch.undisturbed(before.ticket) {
            m.observer.violation(what, before.number, tdr, at);
        }
    }
}

/// The lock bits of a TD: TDR, OP_STATE, S-EPT tree, epoch; and of the KOT. Without
/// host priority.
fn lock_words<P: Platform>(m: &Watched<P>, tdr: u64) -> [u64; 5] {
    const HELD_HP: u64 = 0xFFFD;
    let tree = match m.rules().tree.priority {
        true => HELD_HP,
        false => u64::MAX,
    };
    let head = m.pamt_entry(tdr, 0).map_or(0, |e| e.head());
    let kot = m.sys.kot_lock.load(Ordering::Relaxed);
    let Some(tdcs) = tdcs_page(m, tdr) else {
        return [head & HELD_HP, 0, 0, 0, kot];
    };
    [
        head & HELD_HP,
        tdcs.get(tdcs_word::OP_STATE_LOCK) & HELD_HP,
        tdcs.get(tdcs_word::SEPT_LOCK) & tree,
        tdcs.get(tdcs_word::EPOCH_LOCK),
        kot,
    ]
}

/// The locks are as they were; each vCPU in its guest has the TDR. Those of the fault
/// injection come and go.
fn check_locks<P: Platform>(m: &Watched<P>, before: &Before, tdr: u64) -> Finding {
    let entered = before.number == leaf::VP_ENTER;
    let created = before.number == leaf::MNG_ADDCX;
    let comparable = before.alone && !created || entered;
    if !comparable || !m.observer.rules.in_use().is_empty() {
        return Ok(());
    }
    let locks = lock_words(m, tdr);
    let was = match entered {
        true => [guests(m, tdr).wrapping_mul(4), 0, 0, 0, 0],
        false => before.locks,
    };
    let changed = |(a, b): (&u64, &u64)| a != b;
    if let Some(i) = was.iter().zip(&locks).position(changed) {
        return Err((Wrong::LockLeft, i as u64));
    }
    if before.alone && locked_entries(m, tdr, before.rcx) > before.entries {
        return Err((Wrong::EntryLocked, before.rcx));
    }
    Ok(())
}

/// Entries that are locked from the root to the one that a call names in RCX, and in
/// the table below it.
fn locked_entries<P: Platform>(m: &Watched<P>, tdr: u64, rcx: u64) -> u64 {
    let (Some(root), Ok(at)) = (live_root(m, tdr), GpaLevel::parse(rcx, 0..=4)) else {
        return 0;
    };
    let tables = (at.level..=root.level).filter_map(|l| {
        let page = Page::at(&m.p, root.table_of(&m.p, at.gpa, l)?)?;
        Some(page.get(tree::index(at.gpa, l)))
    });
    let is_locked = |raw: &u64| raw & LOCK != 0;
    let above = tables
        .filter(is_locked)
        .fold(0u64, |n, _| n.wrapping_add(1));
    let below = at.level.checked_sub(1);
    let below = below.and_then(|l| root.table_of(&m.p, at.gpa, l));
    let Some(page) = below.and_then(|pa| Page::at(&m.p, pa)) else {
        return above;
    };
    let entries = (0..WORDS).map(|i| page.get(i));
    let locked = entries.filter(is_locked);
    locked.fold(above, |n, _| n.wrapping_add(1))
}

/// vCPUs of a TD that are in their guest.
fn guests<P: Platform>(m: &Watched<P>, tdr: u64) -> u64 {
    tdcs_page(m, tdr).map_or(0, |tdcs| {
        let odd = tdcs.get(tdcs_word::REFCOUNT.wrapping_add(1));
        odd.wrapping_add(tdcs.get(tdcs_word::REFCOUNT))
    })
}

/// The S-EPT entry that the call named with those above it, and the page that it gave
/// back.
fn check_touched<P: Platform>(
    m: &Watched<P>,
    before: &Before,
    tdr: u64,
    status: u64,
    r: &Regs,
) -> Finding {
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
        let page = r.rcx & !PAIR_IS_EMPTY;
        let free = m.pamt_entry(page, size).map(|e| e.kind());
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
        Ok(at) if names_entry => check_path(m, tdr, at.gpa),
        _ => Ok(()),
    }
}

/// The entries from the root to the one that maps `gpa`, or does not.
fn check_path<P: Platform>(m: &Watched<P>, tdr: u64, gpa: u64) -> Finding {
    let Some(root) = live_root(m, tdr) else {
        return Ok(());
    };
    let (mut pa, mut level) = (root.pa, root.level);
    let mut sums = Sums::default();
    loop {
        let table = Page::at(&m.p, pa).ok_or((Wrong::NoMemory, pa))?;
        let index = tree::index(gpa, level);
        let next = check_entry(m, tdr, table.get(index), level, &mut sums)?;
        match next {
            Some(child) => (pa, level) = (child, level.saturating_sub(1)),
            None => return Ok(()),
        }
    }
}
