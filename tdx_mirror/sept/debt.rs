// SPDX-License-Identifier: GPL-2.0

//! Host-priority marks that are owed.
//!
//! A host's SEAMCALL that finds the lock of an S-EPT entry held leaves a mark on the entry. Until
//! some SEAMCALL of the host locks that entry, the guest's TDG.MEM.PAGE.ACCEPT of it answers busy
//! without any TD exit. So whoever gives up on an entry owes the guest one more locking of it, and
//! the book keeps that until it is done.
//!
//! Everybody takes a position out of the book *before* the SEAMCALL that may clear its mark and
//! puts it back if the mark may be there again. Removing it afterwards would be wrong: between
//! the two, another vCPU's SEAMCALL may leave a new mark.

#![forbid(unsafe_code)]

use crate::base::addr::Gfn;
use crate::base::level::{
    Level,
    Position, //
};
use crate::base::sys::{
    AtomicU64,
    Full,
    PlainU64,
    Relaxed, //
};

/// Positions that the book has room for. Each vCPU owes one at a time, unless even its payment
/// met contention and it went on elsewhere. A model has few, as it has few entries of a table.
pub const DEBT_SLOTS: usize = if cfg!(all(loom, not(CONFIG_RUST))) {
    2
} else {
    64
};

/// A slot that is not in use.
const EMPTY: u64 = 0;
/// Set in every slot in use.
const USED: u64 = 1 << 63;
const LEVEL_SHIFT: u32 = 56;

const fn encode(at: Position) -> u64 {
    // 40 bits of GFN, a level below 8.
    USED | ((at.level().as_kvm() as u64) << LEVEL_SHIFT) | at.gfn().as_u64()
}

fn decode(slot: u64) -> Option<Position> {
    if slot & USED == 0 {
        return None;
    }
    let level = Level::from_kvm((slot >> LEVEL_SHIFT) as i32 & 7)?;
    let gfn = Gfn::new(slot & ((1 << crate::base::addr::FRAME_BITS) - 1))?;
    Some(Position::covering(gfn, level))
}

/// The marks that are owed, by position. No allocation, no lock, bounded steps.
#[derive(Debug)]
pub(super) struct Book {
    slots: [AtomicU64; DEBT_SLOTS],
    /// Slots in use, or more for a moment, never fewer: raised before a slot is taken, lowered
    /// after it is emptied. Only there to leave the slots alone where nothing is owed. A plain
    /// atomic, because no order rests on it: who freezes an entry after another mapper sees at
    /// least what that one saw.
    used: PlainU64,
    /// Where the next search for any debt begins, so that one that cannot be paid stops no other.
    turn: PlainU64,
}

impl Book {
    pub(super) fn new() -> Self {
        Self {
            slots: core::array::from_fn(|_| AtomicU64::new(EMPTY)),
            used: PlainU64::new(0),
            turn: PlainU64::new(0),
        }
    }

    fn is_empty(&self) -> bool {
        self.used.load(Relaxed) == 0
    }

    /// Empties `slot`, if it still holds `value`.
    fn empty(&self, slot: &AtomicU64, value: u64) -> bool {
        let mine = slot.cmpxchg(value, EMPTY, Full).is_ok();
        if mine {
            self.used.fetch_sub(1, Relaxed);
        }
        mine
    }

    /// Notes that `at` is owed.
    ///
    /// # Errors
    ///
    /// The book is full: the debt is lost.
    pub(super) fn put(&self, at: Position) -> Result<(), ()> {
        self.used.fetch_add(1, Relaxed);
        for slot in &self.slots {
            if slot.cmpxchg(EMPTY, encode(at), Full).is_ok() {
                return Ok(());
            }
        }
        self.used.fetch_sub(1, Relaxed);
        Err(())
    }

    /// Takes `at` out, if it is owed.
    pub(super) fn take(&self, at: Position) -> bool {
        let value = encode(at);
        !self.is_empty()
            && self
                .slots
                .iter()
                .any(|slot| slot.load(Relaxed) == value && self.empty(slot, value))
    }

    /// Takes a position out, each in turn.
    pub(super) fn take_any(&self) -> Option<Position> {
        if self.is_empty() {
            return None;
        }
        let turn = self.turn.fetch_add(1, Relaxed) as usize % DEBT_SLOTS;
        let (head, tail) = self.slots.split_at_checked(turn)?;
        tail.iter().chain(head).find_map(|slot| {
            let value = slot.load(Relaxed);
            decode(value).filter(|_| self.empty(slot, value))
        })
    }

    /// Whether an entry that covers `gfn` is owed, at any level.
    pub(super) fn owes(&self, gfn: Gfn) -> bool {
        !self.is_empty()
            && self.slots.iter().any(|slot| {
                decode(slot.load(Relaxed))
                    .is_some_and(|at| Position::covering(gfn, at.level()) == at)
            })
    }

    /// Positions that are owed.
    pub(super) fn len(&self) -> u64 {
        self.used.load(Relaxed)
    }
}
