// SPDX-License-Identifier: GPL-2.0

//! S-EPT entries, their states and locks, and the walk.
//!
//! Entries are valid EPT entries in the host's pages, in the format of the real
//! module, so that a CPU with VMX can walk them.

#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::lock::Busy;
use super::mem::{Page, WORDS};
use super::numbers::st;
use super::platform::{Platform, Regs};

pub(crate) const RWX: u64 = 7;
const MT: u64 = 7 << 3;
const IPAT: u64 = 1 << 6;
pub(crate) const PS: u64 = 1 << 7;
/// Execute for user-mode addresses, which no guest here tells apart.
pub(crate) const XU: u64 = 1 << 10;
pub(crate) const LOCK: u64 = 1 << 11;
pub(crate) const HPA: u64 = 0x000F_FFFF_FFFF_F000;
/// Host priority: a host call failed to lock the entry, a guest's must yield.
pub(crate) const HOST_PRIORITY: u64 = 1 << 52;
const WRITE_BLOCKED: u64 = 1 << 54;
const BLOCKED: u64 = 1 << 55;
const PENDING: u64 = 1 << 56;
const SUPPRESS_VE: u64 = 1 << 63;
/// Accept counter of a 2M pending entry, in the address bits that it does not need.
pub(crate) const ACCEPT_COUNTER: u64 = 0x1FF << 12;
pub(crate) const ACCEPT_SHIFT: u32 = 12;

/// An entry that maps nothing. Not zero: the state is encoded in it.
pub(crate) const FREE: u64 = 0x80E0_0000_0000_0000;
const LEAF: u64 = SUPPRESS_VE | PS | IPAT | (6 << 3);

/// What the version of the module and the TD put into entries beyond what the rest of the module
/// says: it sees them without the HKID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    /// Bits of an address that hold a HKID.
    pub(crate) hkid_mask: u64,
    /// The TD's in them, 0 if entries have none.
    pub(crate) hkid: u64,
    /// Set with R, W and X.
    pub(crate) with_access: u64,
    /// The change of an entry keeps the priority of a host that failed to lock it meanwhile.
    pub(crate) keeps_priority: bool,
}

impl Format {
    /// Nothing beyond.
    pub(crate) const PLAIN: Format = Format {
        hkid_mask: 0,
        hkid: 0,
        with_access: 0,
        keeps_priority: false,
    };

    /// The value as it stands in memory.
    pub(crate) fn encode(&self, v: u64) -> u64 {
        let access = match v & RWX {
            RWX => self.with_access,
            _ => 0,
        };
        match v & !(LOCK | HOST_PRIORITY) {
            FREE => v,
            _ => v | access | self.hkid,
        }
    }

    /// The value without the HKID.
    pub(crate) fn decode(&self, raw: u64) -> u64 {
        raw & !self.hkid_mask
    }
}

/// A leaf or a table mapped read, write, execute.
pub(crate) const fn mapped_leaf(hpa: u64) -> u64 {
    LEAF | RWX | hpa & HPA
}

pub(crate) const fn pending_leaf(hpa: u64) -> u64 {
    LEAF | PENDING | hpa & HPA
}

pub(crate) const fn table(hpa: u64) -> u64 {
    SUPPRESS_VE | RWX | hpa & HPA
}

/// Bytes that an entry at `level` (0 = 4K) spans, as a shift.
pub(crate) const fn shift(level: u8) -> u32 {
    let level = if level < 4 { level } else { 4 };
    12 + 9 * level as u32
}

/// Bytes that an entry at `level` spans, less one: the mask of offsets in it.
pub(crate) const fn offset_mask(level: u8) -> u64 {
    (1 << shift(level)) - 1
}

/// Index of the entry of `gpa` in its table at `level`.
pub(crate) const fn index(gpa: u64, level: u8) -> usize {
    (gpa >> shift(level)) as usize & (WORDS - 1)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Free,
    Removed,
    NlMapped,
    NlBlocked,
    Mapped,
    Blocked,
    BlockedW,
    ExportedBlockedW,
    ExportedDirty,
    ExportedDirtyBlockedW,
    Pending,
    PendingBlocked,
    PendingBlockedW,
    PendingExportedBlockedW,
    PendingExportedDirty,
    PendingExportedDirtyBlockedW,
}

use State::*;

impl State {
    /// Decodes {PS, IPAT, TDP, TDB, TDBW, TDEX, D}. `None`: no state has these bits.
    pub(crate) fn of(raw: u64) -> Option<State> {
        let enc = ((raw >> 9) & 1) | (((raw >> 53) & 0xF) << 1) | (((raw >> 6) & 3) << 5);
        Some(match enc {
            0x0E => Free,
            0x0C => Removed,
            0x00 => NlMapped,
            0x08 => NlBlocked,
            0x60 => Mapped,
            0x68 => Blocked,
            0x64 => BlockedW,
            0x66 => ExportedBlockedW,
            0x63 => ExportedDirty,
            0x67 => ExportedDirtyBlockedW,
            0x70 => Pending,
            0x78 => PendingBlocked,
            0x74 => PendingBlockedW,
            0x76 => PendingExportedBlockedW,
            0x73 => PendingExportedDirty,
            0x77 => PendingExportedDirtyBlockedW,
            _ => return None,
        })
    }

    /// The code that leaves report in RDX[15:8].
    pub(crate) fn code(self) -> u64 {
        match self {
            Free => 0,
            Removed => 5,
            NlMapped => 0x84,
            NlBlocked => 0x81,
            Mapped => 4,
            Blocked => 1,
            BlockedW => 8,
            ExportedBlockedW => 9,
            ExportedDirty => 11,
            ExportedDirtyBlockedW => 12,
            Pending => 2,
            PendingBlocked => 3,
            PendingBlockedW => 16,
            PendingExportedBlockedW => 17,
            PendingExportedDirty => 19,
            PendingExportedDirtyBlockedW => 20,
        }
    }

    pub(crate) fn is_table(self) -> bool {
        matches!(self, NlMapped | NlBlocked)
    }

    pub(crate) fn is_leaf(self) -> bool {
        !matches!(self, Free | Removed | NlMapped | NlBlocked)
    }

    pub(crate) fn is_blocked(self) -> bool {
        matches!(self, NlBlocked | Blocked | PendingBlocked)
    }

    /// The guest may use the page.
    pub(crate) fn is_accessible(self) -> bool {
        matches!(
            self,
            Mapped | BlockedW | ExportedBlockedW | ExportedDirty | ExportedDirtyBlockedW
        )
    }

    pub(crate) fn is_acceptable(self) -> bool {
        matches!(self, Pending | PendingExportedDirty)
    }

    pub(crate) fn is_any_pending(self) -> bool {
        self.is_leaf() && !self.is_accessible() && self != Blocked
    }

    /// A translation of it may be cached, so a change needs a shootdown.
    pub(crate) fn needs_tracking(self) -> bool {
        !matches!(
            self,
            Free | Removed | ExportedBlockedW | PendingExportedBlockedW
        )
    }

    pub(crate) fn may_block(self) -> bool {
        matches!(
            self,
            NlMapped | Mapped | BlockedW | Pending | PendingBlockedW
        )
    }

    pub(crate) fn may_remove(self) -> bool {
        matches!(
            self,
            Mapped | Blocked | BlockedW | Pending | PendingBlocked | PendingBlockedW
        )
    }

    pub(crate) fn may_demote(self) -> bool {
        matches!(self, Mapped | Blocked | Pending | PendingBlocked)
    }
}

/// The value without the counter of a half accepted 2M page.
pub(crate) fn without_counter(raw: u64, level: u8, s: State) -> u64 {
    if s.is_acceptable() && level == 1 {
        return raw & !ACCEPT_COUNTER;
    }
    raw
}

/// The value after RANGE.BLOCK.
pub(crate) fn blocked(raw: u64, level: u8, s: State) -> u64 {
    without_counter(raw, level, s) & !(RWX | XU | WRITE_BLOCKED) | BLOCKED
}

/// The value with a blocked state undone; other states are returned as they are.
pub(crate) fn unblocked(raw: u64, s: State) -> u64 {
    match s {
        NlBlocked | Blocked => raw & !BLOCKED | RWX,
        PendingBlocked => raw & !BLOCKED,
        _ => raw,
    }
}

/// A pending leaf once it is accepted.
pub(crate) fn leaf_mapped(raw: u64, level: u8) -> u64 {
    mapped_leaf(raw & HPA & !offset_mask(level))
}

/// A place in the S-EPT.
#[derive(Clone, Copy)]
pub(crate) struct EntryRef<'m> {
    page: Page<'m>,
    index: usize,
    pub(crate) level: u8,
    format: Format,
}

impl<'m> EntryRef<'m> {
    pub(crate) fn new(page: Page<'m>, index: usize, level: u8, format: Format) -> Self {
        EntryRef {
            page,
            index,
            level,
            format,
        }
    }

    pub(crate) fn load(&self) -> u64 {
        self.format.decode(self.in_memory())
    }

    /// With the HKID.
    pub(crate) fn in_memory(&self) -> u64 {
        self.page.word(self.index).load(Ordering::Acquire)
    }

    /// For the holder of the lock, a place that nobody else can reach, or PAGE.ADD, which
    /// excludes all others.
    pub(crate) fn store(&self, v: u64) {
        self.page
            .word(self.index)
            .store(self.format.encode(v), Ordering::Release);
    }

    /// Locks for a host leaf. A failure leaves the host-priority bit, so that the
    /// guest yields; a success clears it.
    pub(crate) fn lock_host(self) -> Result<EntryLock<'m>, Busy> {
        let w = self.page.word(self.index);
        if w.fetch_or(LOCK, Ordering::Acquire) & LOCK != 0 {
            w.fetch_or(HOST_PRIORITY, Ordering::Relaxed);
            return Err(Busy);
        }
        w.fetch_and(!HOST_PRIORITY, Ordering::Relaxed);
        Ok(EntryLock(self))
    }

    pub(crate) fn unlock(self) {
        self.page
            .word(self.index)
            .fetch_and(!LOCK, Ordering::Release);
    }

    /// Locks for a guest leaf: status for RAX without operand on failure.
    pub(crate) fn lock_guest(self) -> Result<EntryLock<'m>, u64> {
        let w = self.page.word(self.index);
        let old = w.fetch_or(LOCK, Ordering::Acquire);
        if old & LOCK != 0 {
            return Err(st::OPERAND_BUSY);
        }
        if old & HOST_PRIORITY != 0 {
            w.fetch_and(!LOCK, Ordering::Release);
            return Err(st::BUSY_HOST_PRIORITY);
        }
        Ok(EntryLock(self))
    }
}

/// A locked entry; dropping unlocks it.
pub(crate) struct EntryLock<'m>(EntryRef<'m>);

impl<'m> EntryLock<'m> {
    pub(crate) fn place(&self) -> EntryRef<'m> {
        self.0
    }

    /// The value without the lock bits.
    pub(crate) fn raw(&self) -> u64 {
        self.0.load() & !(LOCK | HOST_PRIORITY)
    }

    /// Stores `v`, still locked. Like the real module this writes the whole entry: the
    /// priority of a host that failed to lock it meanwhile is lost.
    pub(crate) fn set(&self, v: u64) {
        self.0.store(v & !HOST_PRIORITY | LOCK);
    }

    /// The same for a host leaf, which keeps that priority if the version of the module does.
    pub(crate) fn replace(&self, v: u64) {
        if !self.0.format.keeps_priority {
            return self.set(v);
        }
        let new = self.0.format.encode(v & !HOST_PRIORITY | LOCK);
        let word = self.0.page.word(self.0.index);
        let mut old = word.load(Ordering::Relaxed);
        // Only a bit that another CPU adds makes it fail.
        while let Err(seen) = word.compare_exchange_weak(
            old,
            new | old & HOST_PRIORITY,
            Ordering::Release,
            Ordering::Relaxed,
        ) {
            old = seen;
        }
    }

    /// Leaves the entry locked; [`EntryRef::unlock`] or the end of its page ends that.
    pub(crate) fn forget(self) {
        core::mem::forget(self);
    }
}

impl Drop for EntryLock<'_> {
    fn drop(&mut self) {
        self.0.unlock();
    }
}

/// End of a walk.
pub(crate) struct Walk<'m> {
    pub(crate) entry: EntryRef<'m>,
    /// The entry as it was read.
    pub(crate) raw: u64,
    /// The level asked for was reached.
    pub(crate) hit: bool,
}

/// Root of an S-EPT: its page and the level of the entries in it (3 or 4).
#[derive(Clone, Copy)]
pub(crate) struct Root {
    pub(crate) pa: u64,
    pub(crate) level: u8,
    pub(crate) format: Format,
}

impl Root {
    /// Walks to the entry of `gpa` at `level`. Stops short at an entry that maps no
    /// table. `None` only if a page of the tree has no memory.
    pub(crate) fn walk<'m, P: Platform>(&self, p: &'m P, gpa: u64, level: u8) -> Option<Walk<'m>> {
        let mut pa = self.pa;
        let mut at = self.level;
        loop {
            let entry = EntryRef::new(Page::at(p, pa)?, index(gpa, at), at, self.format);
            let raw = entry.load();
            let hit = at == level;
            if hit || at == 0 || raw & RWX == 0 || raw & PS != 0 {
                return Some(Walk { entry, raw, hit });
            }
            pa = raw & HPA;
            at -= 1;
        }
    }

    /// Physical address of the table that holds the entry of `gpa` at `level`, if there
    /// is one that the walk reaches.
    pub(crate) fn table_of<P: Platform>(&self, p: &P, gpa: u64, level: u8) -> Option<u64> {
        if level >= self.level {
            return (level == self.level).then_some(self.pa);
        }
        let parent = self.walk(p, gpa, level.wrapping_add(1))?;
        let mapped = parent.hit && parent.raw & RWX != 0 && parent.raw & PS == 0;
        mapped.then_some(parent.raw & HPA)
    }

    /// Walks to the leaf that maps `gpa`, whatever its level: `hit` says that it is
    /// a leaf with some access.
    pub(crate) fn walk_leaf<'m, P: Platform>(&self, p: &'m P, gpa: u64) -> Option<Walk<'m>> {
        let mut w = self.walk(p, gpa, 0)?;
        w.hit = w.raw & PS != 0 && w.raw & RWX != 0;
        Some(w)
    }
}

/// Loads RCX and RDX with the view of an entry that leaves report.
pub(crate) fn details(r: &mut Regs, raw: u64, level: u8) {
    let state = State::of(raw);
    r.rcx = match state {
        Some(Free) => SUPPRESS_VE,
        Some(s) if s.is_leaf() => raw & (RWX | XU | MT | IPAT | PS | HPA | SUPPRESS_VE),
        _ => raw & (RWX | XU | PS),
    };
    r.rdx = u64::from(level) | (state.map_or(0, State::code) << 8);
}
