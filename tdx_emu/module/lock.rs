// SPDX-License-Identifier: GPL-2.0

//! The module's locks. Every acquisition is a single try: a collision is the
//! caller's problem and becomes OPERAND_BUSY.
//!
//! Two kinds. `ShareX`: bit 0 exclusive, bits 15:1 readers; guards the S-EPT tree,
//! the TD epoch and the KOT. `ShareXHp`: bit 0 exclusive, bit 1 host priority, bits
//! 15:2 readers; guards PAMT entries and OP_STATE, in the low 16 bits of a word whose
//! other bits may hold what it guards.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

const MASK: u64 = 0xFFFF;
const EXCLUSIVE: u64 = 1;
const READER: u64 = 2;
const HOST_PRIORITY: u64 = 2;
const READER_HP: u64 = 4;

/// How a lock is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

/// The lock was held by somebody else.
#[derive(Debug)]
pub(crate) struct Busy;

/// A held lock without host priority; dropping releases it.
pub(crate) struct ShareX<'a>(&'a AtomicU64, Mode);

impl<'a> ShareX<'a> {
    /// Takes over a lock that [`ShareX::forget`] left held in `mode`.
    pub(crate) fn adopt(word: &'a AtomicU64, mode: Mode) -> Self {
        ShareX(word, mode)
    }

    /// Leaves the lock held.
    pub(crate) fn forget(self) {
        core::mem::forget(self);
    }

    pub(crate) fn try_lock(word: &'a AtomicU64, mode: Mode) -> Result<Self, Busy> {
        match mode {
            Mode::Shared => {
                // A failed try leaves its count behind; the exclusive holder's release, which has
                // to come, sets the word to zero.
                if word.fetch_add(READER, Ordering::Acquire) & EXCLUSIVE != 0 {
                    return Err(Busy);
                }
            }
            Mode::Exclusive => {
                word.compare_exchange(0, EXCLUSIVE, Ordering::Acquire, Ordering::Relaxed)
                    .map_err(|_| Busy)?;
            }
        }
        Ok(ShareX(word, mode))
    }
}

impl Drop for ShareX<'_> {
    fn drop(&mut self) {
        match self.1 {
            Mode::Shared => {
                self.0.fetch_sub(READER, Ordering::Release);
            }
            Mode::Exclusive => {
                // Also takes back the counts that readers added in vain.
                self.0.swap(0, Ordering::Release);
            }
        }
    }
}

/// A held lock with host priority, taken on the host's side; dropping releases it.
///
/// A host that fails leaves the priority bit, a host that succeeds clears it. As in
/// `ShareX` a reader that fails leaves its count to the writer's release.
pub(crate) struct ShareXHp<'a>(&'a AtomicU64, Mode);

/// Applies `f` to the word until no other CPU interferes. Not a wait for a holder:
/// each failure of the exchange is another CPU's completed attempt.
fn update(word: &AtomicU64, f: impl Fn(u64) -> u64) -> u64 {
    let mut old = word.load(Ordering::Relaxed);
    loop {
        match word.compare_exchange_weak(old, f(old), Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return old,
            Err(seen) => old = seen,
        }
    }
}

/// One more reader in the 16 bits of the lock; what is above them stays.
fn one_more(word: u64) -> u64 {
    word & !MASK | word.wrapping_add(READER_HP) & MASK
}

impl<'a> ShareXHp<'a> {
    /// Takes over a lock that [`ShareXHp::forget`] left held in `mode`.
    pub(crate) fn adopt(word: &'a AtomicU64, mode: Mode) -> Self {
        ShareXHp(word, mode)
    }

    /// Leaves the lock held.
    pub(crate) fn forget(self) {
        core::mem::forget(self);
    }

    pub(crate) fn try_lock(word: &'a AtomicU64, mode: Mode) -> Result<Self, Busy> {
        let old = update(word, |w| match mode {
            Mode::Shared if w & EXCLUSIVE == 0 => one_more(w & !HOST_PRIORITY),
            Mode::Shared => one_more(w) | HOST_PRIORITY,
            Mode::Exclusive if w & MASK & !HOST_PRIORITY == 0 => w & !HOST_PRIORITY | EXCLUSIVE,
            Mode::Exclusive => w | HOST_PRIORITY,
        });
        let free = match mode {
            Mode::Shared => old & EXCLUSIVE == 0,
            Mode::Exclusive => old & MASK & !HOST_PRIORITY == 0,
        };
        if free {
            Ok(ShareXHp(word, mode))
        } else {
            Err(Busy)
        }
    }

    /// From shared to exclusive, if this is the only reader; else host priority.
    pub(crate) fn promote(&mut self) -> Result<(), Busy> {
        if self.1 == Mode::Exclusive {
            return Ok(());
        }
        let sole = |w: u64| w & MASK & !HOST_PRIORITY == READER_HP;
        let old = update(self.0, |w| {
            if sole(w) {
                w & !MASK | EXCLUSIVE
            } else {
                w | HOST_PRIORITY
            }
        });
        if !sole(old) {
            return Err(Busy);
        }
        self.1 = Mode::Exclusive;
        Ok(())
    }
}

/// A held lock of a kind that depends on the version of the module: with host priority or
/// without. Both kinds are free at 0.
pub(crate) enum TreeLock<'a> {
    Plain(ShareX<'a>),
    Priority(ShareXHp<'a>),
}

impl<'a> TreeLock<'a> {
    pub(crate) fn try_lock(word: &'a AtomicU64, mode: Mode, priority: bool) -> Result<Self, Busy> {
        Ok(match priority {
            false => TreeLock::Plain(ShareX::try_lock(word, mode)?),
            true => TreeLock::Priority(ShareXHp::try_lock(word, mode)?),
        })
    }

    /// Leaves the lock held.
    pub(crate) fn forget(self) {
        match self {
            TreeLock::Plain(lock) => lock.forget(),
            TreeLock::Priority(lock) => lock.forget(),
        }
    }

    /// A host failed to get the lock since it was taken.
    pub(crate) fn host_waits(&self) -> bool {
        match self {
            TreeLock::Plain(_) => false,
            TreeLock::Priority(lock) => lock.0.load(Ordering::Relaxed) & HOST_PRIORITY != 0,
        }
    }
}

impl Drop for ShareXHp<'_> {
    fn drop(&mut self) {
        match self.1 {
            Mode::Shared => {
                self.0.fetch_sub(READER_HP, Ordering::Release);
            }
            Mode::Exclusive => {
                self.0.fetch_and(!MASK | HOST_PRIORITY, Ordering::Release);
            }
        }
    }
}
