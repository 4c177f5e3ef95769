// SPDX-License-Identifier: GPL-2.0

//! The rules of the fault injection that are in use, and when they apply.

#![forbid(unsafe_code)]

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use super::hold::Held;
use super::script::{Lock, Rule, Script, What, When, MAX_RULES};

/// A rule in use. Word 0 is written last and read first, and is 0 while there is none.
///
/// While a script is replaced, a call on another CPU may see a rule of the old script
/// or none, and may count for the rule that follows in the same place.
pub(crate) struct Slot {
    words: [AtomicU64; 4],
    /// How often the rule was looked at since the script was loaded; for `hold`, the
    /// calls made while it held the lock.
    pub(crate) seen: AtomicU64,
    /// How often it applied; for `hold`, the busy answers meanwhile.
    pub(crate) hits: AtomicU64,
    /// RCX of the call with which `stay` began.
    rcx: AtomicU64,
    pub(crate) held: Held,
}

impl Slot {
    pub(crate) fn rule(&self) -> Option<Rule> {
        let head = self.words[0].load(Ordering::Acquire);
        if head == 0 {
            return None;
        }
        let word = |i: usize| self.words.get(i).map_or(0, |w| w.load(Ordering::Relaxed));
        Rule::unpack([head, word(1), word(2), word(3)])
    }

    /// The rule, if it holds a lock, and which.
    pub(crate) fn holds(&self) -> Option<(Rule, Lock)> {
        let rule = self.rule()?;
        match rule.what {
            What::Hold(lock) => Some((rule, lock)),
            _ => None,
        }
    }

    fn set(&self, rule: Option<&Rule>) {
        self.words[0].store(0, Ordering::Release);
        self.seen.store(0, Ordering::Relaxed);
        self.hits.store(0, Ordering::Relaxed);
        self.held.reset();
        let Some(rule) = rule else { return };
        let packed = rule.pack();
        for (w, v) in self.words.iter().zip(packed).skip(1) {
            w.store(v, Ordering::Relaxed);
        }
        self.words[0].store(packed[0], Ordering::Release);
    }

    /// Counts one more occasion, a call with that RCX, and says whether the rule applies
    /// to it. Calls of several CPUs at the moment when `stay` begins may miss it.
    fn applies(&self, rule: &Rule, rcx: u64) -> bool {
        let seen = self.seen.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let n = u64::from(rule.n);
        let hit = match rule.when {
            When::Nth => seen == n,
            When::Every => seen.checked_rem(n) == Some(0),
            When::Chance => {
                let of = u64::from(rule.of);
                mix(rule.seed.wrapping_add(seen))
                    .checked_rem(of)
                    .is_some_and(|v| v < n)
            }
            When::Stay => {
                if seen == n {
                    self.rcx.store(rcx, Ordering::Relaxed);
                }
                seen >= n && self.rcx.load(Ordering::Relaxed) == rcx
            }
        };
        if hit {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
        hit
    }
}

/// A hash whose low bits are as good as the high ones (the finaliser of MurmurHash3).
fn mix(v: u64) -> u64 {
    let v = v.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let v = (v ^ (v >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    let v = (v ^ (v >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    v ^ (v >> 33)
}

/// How long a call is to dawdle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Delay {
    Microseconds(u64),
    Instructions(u64),
}

/// The rules in use.
pub(crate) struct Table {
    pub(crate) slots: [Slot; MAX_RULES],
    /// Slots from 0 that are in use: without rules nothing else is looked at.
    used: AtomicU64,
}

impl Table {
    pub(crate) const fn new() -> Table {
        Table {
            slots: [const {
                Slot {
                    words: [const { AtomicU64::new(0) }; 4],
                    seen: AtomicU64::new(0),
                    hits: AtomicU64::new(0),
                    rcx: AtomicU64::new(0),
                    held: Held::new(),
                }
            }; MAX_RULES],
            used: AtomicU64::new(0),
        }
    }

    /// Slots with rules.
    #[inline]
    pub(crate) fn in_use(&self) -> &[Slot] {
        let n = self.used.load(Ordering::Relaxed) as usize;
        self.slots.get(..n).unwrap_or_default()
    }

    /// Replaces the rules. The locks that old ones hold must have been let go.
    pub(crate) fn replace(&self, script: &Script) {
        let mut n = 0u64;
        for (slot, rule) in self.slots.iter().zip(&script.rules) {
            slot.set(rule.as_ref());
            n = n.wrapping_add(u64::from(rule.is_some()));
        }
        self.used.store(n, Ordering::Relaxed);
    }

    /// Rules of one kind for a leaf that apply now, to a call with that RCX. `hkid` is
    /// asked only for rules that are limited to a TD.
    #[inline]
    fn due(
        &self,
        (leaf, rcx): (u16, u64),
        kind: fn(What) -> bool,
        hkid: impl Fn() -> Option<u64>,
        mut hit: impl FnMut(Rule),
    ) {
        for slot in self.in_use() {
            let Some(rule) = slot.rule() else { continue };
            if rule.leaf != leaf || !kind(rule.what) {
                continue;
            }
            if rule.hkid.is_some_and(|h| hkid() != Some(u64::from(h))) {
                continue;
            }
            if slot.applies(&rule, rcx) {
                hit(rule);
            }
        }
    }

    /// Whether this call of `leaf` with that RCX shall fail, and how.
    #[inline]
    pub(crate) fn fail(&self, leaf: u16, rcx: u64, hkid: impl Fn() -> Option<u64>) -> Option<u64> {
        let mut status = None;
        self.due(
            (leaf, rcx),
            |w| w == What::Fail,
            hkid,
            |rule| status = Some(rule.value),
        );
        status
    }

    /// Whether a poll for interrupts in `leaf` shall find one.
    #[inline]
    pub(crate) fn interrupt(&self, leaf: u16, hkid: impl Fn() -> Option<u64>) -> bool {
        let mut found = false;
        self.due((leaf, 0), |w| w == What::Interrupt, hkid, |_| found = true);
        found
    }

    /// How long this call of `leaf` shall wait before it commits.
    #[inline]
    pub(crate) fn delay(
        &self,
        leaf: u16,
        hkid: impl Fn() -> Option<u64>,
        mut wait: impl FnMut(Delay),
    ) {
        let delays = |w| matches!(w, What::DelayUs | What::DelayInsn);
        self.due((leaf, 0), delays, hkid, |rule| {
            wait(match rule.what {
                What::DelayUs => Delay::Microseconds(rule.value),
                _ => Delay::Instructions(rule.value),
            });
        });
    }
}

impl fmt::Display for Table {
    /// The rules as a script, each with what became of it as a comment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for slot in self.in_use() {
            let Some(rule) = slot.rule() else { continue };
            let seen = slot.seen.load(Ordering::Relaxed);
            let hits = slot.hits.load(Ordering::Relaxed);
            write!(f, "{rule} # ")?;
            match rule.what {
                What::Hold(_) => {
                    let state = slot.held.state();
                    writeln!(f, "{state} calls={seen} busy={hits}")?;
                }
                _ => writeln!(f, "calls={seen} hits={hits}")?,
            }
        }
        Ok(())
    }
}
