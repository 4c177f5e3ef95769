// SPDX-License-Identifier: GPL-2.0

//! Fault injection: makes chosen calls fail, dawdle or meet interrupts. The scripts are
//! described in `script.rs`, locks that rules hold in `hold.rs`.

#![forbid(unsafe_code)]

use core::fmt;
use core::sync::atomic::Ordering;

use super::kit::{Instruments, Watched};
use super::rules::Slot;
use super::script::{Lock, Rule, Script, ScriptError};
use super::stats::Count;
use super::subject::{hkid_of, td_of_call};
use crate::module::numbers::{leaf, st};
use crate::module::{GuestRun, Module, Platform, Regs};

/// A SEAMCALL while there are rules.
#[inline(never)]
pub(crate) fn disturbed_call<P: Platform, G: GuestRun<P>>(
    module: &Module<P, G, Instruments>,
    lp: u32,
    rax: u64,
    r: &mut Regs,
) -> u64 {
    let m = module.machine();
    let number = rax as u16;
    let tdr = td_of_call(m, number, r);
    let hkid = match number {
        leaf::MNG_CREATE => Some(r.rdx),
        _ => tdr.and_then(|tdr| hkid_of(&m.p, tdr)),
    };
    hold_locks(m, tdr);
    let status = module.seamcall_unless(lp, rax, r, |r| {
        let status = m.observer.rules.fail(number, r.rcx, || hkid)?;
        m.observer.stats.add(Count::Injected);
        clear_outputs(number, status, r);
        Some(status)
    });
    count_held(m, tdr, status & st::CLASS == st::OPERAND_BUSY);
    status
}

/// Start of a call: takes the locks that rules want held. `tdr`: the TD that the call is
/// about.
fn hold_locks<P: Platform>(m: &Watched<P>, tdr: Option<u64>) {
    for slot in m.observer.rules.in_use() {
        if let Some((rule, lock)) = slot.holds() {
            hold_lock(m, slot, &rule, lock, tdr);
        }
    }
}

#[inline(never)]
fn hold_lock<P: Platform>(m: &Watched<P>, slot: &Slot, rule: &Rule, lock: Lock, tdr: Option<u64>) {
    let wanted = |tdr| {
        rule.hkid
            .is_none_or(|h| hkid_of(&m.p, tdr) == Some(u64::from(h)))
    };
    let td = match (lock, tdr) {
        (Lock::Pamt | Lock::Kot, _) => 0,
        (_, Some(tdr)) if wanted(tdr) => tdr,
        _ => return,
    };
    if !slot.held.take(m, rule, lock, td) {
        return;
    }
    // The rule may be of a script that was replaced between its reading and the lock: then
    // nobody would let it go. A script that comes from here on does.
    if slot.rule() != Some(*rule) && slot.held.let_go(m) {
        slot.held.again();
    }
}

/// End of a call: counts it for the locks that are held meanwhile.
fn count_held<P: Platform>(m: &Watched<P>, tdr: Option<u64>, busy: bool) {
    for slot in m.observer.rules.in_use() {
        if let Some((rule, _)) = slot.holds() {
            count_for(m, slot, &rule, tdr, busy);
        }
    }
}

fn count_for<P: Platform>(m: &Watched<P>, slot: &Slot, rule: &Rule, tdr: Option<u64>, busy: bool) {
    if slot.held.word().is_none() {
        return;
    }
    let whose = slot.held.whose();
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
        slot.held.let_go(m);
    }
}

/// Registers after an injected failure: as the leaf leaves them when it fails and has
/// nothing to report. A leaf that is to be started again keeps its operands.
fn clear_outputs(number: u16, status: u64, r: &mut Regs) {
    if status & st::CLASS == st::INTERRUPTED_RESTARTABLE {
        return;
    }
    match number {
        leaf::MEM_SEPT_ADD
        | leaf::MEM_SEPT_REMOVE
        | leaf::MEM_SEPT_RD
        | leaf::MEM_PAGE_ADD
        | leaf::MEM_PAGE_AUG
        | leaf::MEM_PAGE_REMOVE
        | leaf::MEM_PAGE_PROMOTE
        | leaf::MEM_PAGE_DEMOTE
        | leaf::MEM_PAGE_RELOCATE
        | leaf::MEM_RANGE_BLOCK
        | leaf::MEM_RANGE_UNBLOCK
        | leaf::MR_EXTEND => (r.rcx, r.rdx) = (0, 0),
        leaf::PHYMEM_PAGE_RECLAIM | leaf::PHYMEM_PAGE_RDMD => {
            (r.rcx, r.rdx) = (0, 0);
            (r.r8, r.r9, r.r10, r.r11) = (0, 0, 0, 0);
        }
        leaf::MNG_INIT => r.rcx = 0,
        _ => {}
    }
}

/// The fault injection of a module.
pub struct Injection<'m, P>(pub(crate) &'m Watched<P>);

impl<P: Platform> Injection<'_, P> {
    /// Replaces the rules by those of a script, see `script.rs`; an empty one leaves none. On
    /// error nothing changes. Not to be called from two places at once.
    pub fn load(&self, text: &[u8]) -> Result<(), ScriptError> {
        let script = Script::parse(text)?;
        let rules = &self.0.observer.rules;
        for slot in &rules.slots {
            slot.held.turn_off(self.0);
        }
        rules.replace(&script);
        Ok(())
    }
}

impl<P> fmt::Display for Injection<'_, P> {
    /// The rules in use as a script, each followed by a comment on what became of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.observer.rules.fmt(f)
    }
}
