// SPDX-License-Identifier: GPL-2.0
//! What the TDX module answers to the leaves that change the S-EPT, in terms of states and
//! owners: a second description, which shares nothing with rust/emu but the interface. It
//! keeps no tables and no bits, takes no locks, and says what each call must return.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tdx_emu_host::driver::Lock;

/// RCX, RDX, R8, R9, R10, R11.
pub type Gpr = [u64; 6];
const RCX: usize = 0;
const RDX: usize = 1;
const R8: usize = 2;
const R9: usize = 3;
const R10: usize = 4;
const R11: usize = 5;

/// Status, with an operand added.
const INVALID: u64 = 0xC000_0100_0000_0000;
const RANGE: u64 = 0xC000_0101_0000_0000;
pub const BUSY: u64 = 0x8000_0200_0000_0000;
const METADATA: u64 = 0xC000_0300_0000_0000;
const PREVIOUS_EPOCH: u64 = 0x8000_0201_0000_0000;
const RESTARTABLE: u64 = 0x8000_0004_0000_0000;
const LIFECYCLE: u64 = 0xC000_0607_0000_0000;
const OP_STATE: u64 = 0xC000_0608_0000_0000;
const WALK: u64 = 0xC000_0B00_0000_0000;
const NOT_PRESENT: u64 = 0xC000_0B03_0000_0000;
const NOT_BLOCKED: u64 = 0xC000_0B06_0000_0000;
const ALREADY_BLOCKED: u64 = 0x0000_0B07_0000_0000;
const NOT_TRACKED: u64 = 0xC000_0B08_0000_0000;
const PROMOTE_CONDITIONS: u64 = 0xC000_0B09_0000_0000;
const ENTRY_STATE: u64 = 0xC000_0B0D_0000_0000;
const NOT_FREE: u64 = 0xC000_0B0E_0000_0000;
const ALREADY_ACCEPTED: u64 = 0x0000_0B0A_0000_0000;
const SIZE_MISMATCH: u64 = 0xC000_0B0B_0000_0000;
const PRIORITY_TIMEOUT: u64 = 0x9000_0205_0000_0000;
const NO_VE: u64 = 0xC000_0704_0000_0000;

const OPERAND_TDR: u64 = 0x80;
const OPERAND_TREE: u64 = 0x92;
const OPERAND_EPOCH: u64 = 0xA9;
const OPERAND_OP_STATE: u64 = 0xAC;

const NONE: u64 = u64::MAX;
const KEY_BITS: u64 = 0x3F << 46;
pub const TIMEOUT: u64 = 1_000_000_000;

/// Page types.
pub const NDA: u8 = 0;
const RSVD: u8 = 1;
const REG: u8 = 3;
const TDR: u8 = 4;
const TDVPR: u8 = 6;
const EPT: u8 = 8;

/// What an S-EPT entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    Free,
    Table {
        page: u64,
        blocked: bool,
    },
    Leaf {
        page: u64,
        pending: bool,
        blocked: bool,
        /// 4K pages of a pending 2M page that are accepted already.
        accepted: u64,
    },
}
use Entry::*;

impl Entry {
    fn rwx(self) -> u64 {
        match self {
            Table { blocked: false, .. } => 7,
            Leaf {
                pending: false,
                blocked: false,
                ..
            } => 7,
            _ => 0,
        }
    }

    /// The entry as it is in memory, without lock and priority.
    pub fn raw(self) -> u64 {
        let bits = |blocked: bool, pending: bool| {
            (1 << 63) | (u64::from(blocked) << 55) | (u64::from(pending) << 56)
        };
        match self {
            Free => 0x80E0_0000_0000_0000,
            Table { page, blocked } => bits(blocked, false) | page | self.rwx(),
            Leaf {
                page,
                pending,
                blocked,
                accepted,
            } => bits(blocked, pending) | page | (accepted << 12) | 0xF0 | self.rwx(),
        }
    }

    fn code(self) -> u64 {
        match self {
            Free => 0,
            Table { blocked, .. } => [0x84, 0x81][usize::from(blocked)],
            Leaf {
                pending, blocked, ..
            } => match (pending, blocked) {
                (false, false) => 4,
                (false, true) => 1,
                (true, false) => 2,
                (true, true) => 3,
            },
        }
    }

    fn is_blocked(self) -> bool {
        matches!(
            self,
            Table { blocked: true, .. } | Leaf { blocked: true, .. }
        )
    }

    fn with_blocked(self, to: bool) -> Entry {
        match self {
            Free => Free,
            Table { page, .. } => Table { page, blocked: to },
            Leaf {
                page,
                pending,
                accepted,
                ..
            } => Leaf {
                page,
                pending,
                blocked: to,
                accepted: if to { 0 } else { accepted },
            },
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Page {
    pub kind: u8,
    pub owner: u64,
    pub epoch: u64,
}

/// A vCPU.
#[derive(Default)]
pub struct Vcpu {
    pub tdvpr: u64,
    /// Where it is bound to.
    pub lp: u32,
    /// The epoch it is inside in.
    pub inside: Option<u64>,
    rip: u64,
    sampled: u64,
    faults: u64,
    suspects: Vec<u64>,
    /// When its TDCALLs began to yield to the host.
    yields_since: u64,
    pub ve: bool,
}

/// How a call ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Host(u64, Gpr),
    Guest(u64, bool),
    Entered,
    Reached(u64),
}

impl Vcpu {
    /// As TDH.VP.INIT on `lp` leaves it.
    pub fn new(tdvpr: u64, lp: u32) -> Vcpu {
        Vcpu {
            tdvpr,
            lp,
            rip: 0xFFFF_FFF0,
            ..Vcpu::default()
        }
    }
}

type Res<T> = Result<T, u64>;
/// Level and address.
pub type Key = (u8, u64);

pub fn span(level: u8) -> u64 {
    1 << (12 + 9 * u32::from(level))
}

pub struct Model {
    pub tdr: u64,
    pub root: u8,
    pub shared_bit: u32,
    pub ve_disabled: bool,
    pub tdmr: std::ops::Range<u64>,
    pub reserved: std::ops::Range<u64>,
    /// Ranges that PAGE.ADD may copy from.
    pub source: std::ops::Range<u64>,
    pub op_state: u64,
    pub children: u64,
    pub epoch: u64,
    pub refs: [u64; 2],
    pub vcpus: Vec<Vcpu>,
    /// Entries that are not free, and entries that carry the host's priority.
    pub entries: BTreeMap<Key, Entry>,
    pub priority: BTreeSet<Key>,
    pub pages: HashMap<(u64, u8), Page>,
    /// Somebody else's lock, exclusive or not.
    pub hold: Option<(Lock, bool)>,
    pub interrupt_after: Option<u32>,
    pub tsc: u64,
    /// PAMT locks of the call in progress: address, size, exclusive.
    taken: Vec<(u64, u8, bool)>,
}

impl Model {
    pub fn new(tdr: u64, root: u8, shared_bit: u32, tdmr: std::ops::Range<u64>) -> Model {
        Model {
            tdr,
            root,
            shared_bit,
            ve_disabled: false,
            tdmr,
            reserved: 0..0,
            source: 0..0,
            op_state: 1,
            children: 0,
            epoch: 1,
            refs: [0; 2],
            vcpus: Vec::new(),
            entries: BTreeMap::new(),
            priority: BTreeSet::new(),
            pages: HashMap::new(),
            hold: None,
            interrupt_after: None,
            tsc: 0,
            taken: Vec::new(),
        }
    }

    pub fn page(&self, pa: u64, size: u8) -> Page {
        let kind = match size == 0 && self.reserved.contains(&pa) {
            true => RSVD,
            false => NDA,
        };
        let fresh = Page {
            kind,
            ..Page::default()
        };
        self.pages
            .get(&(pa & !(span(size) - 1), size))
            .copied()
            .unwrap_or(fresh)
    }
    pub fn own(&mut self, pa: u64, size: u8, kind: u8) {
        let owner = if kind == TDR { 0 } else { self.tdr };
        let epoch = 0;
        self.pages.insert((pa, size), Page { kind, owner, epoch });
    }
    fn free(&mut self, pa: u64, size: u8) {
        self.pages.entry((pa, size)).or_default().kind = NDA;
    }
    pub fn get(&self, key: Key) -> Entry {
        self.entries.get(&key).copied().unwrap_or(Free)
    }
    fn set(&mut self, key: Key, e: Entry) {
        match e {
            Free => drop(self.entries.remove(&key)),
            _ => drop(self.entries.insert(key, e)),
        }
    }

    // Locks.

    fn held(&self, lock: Lock) -> Option<bool> {
        self.hold.filter(|h| h.0 == lock).map(|h| h.1)
    }
    /// Whether a lock can be had beside the one that is held.
    fn can_take(&self, lock: Lock, exclusive: bool) -> bool {
        !self.held(lock).is_some_and(|ex| ex || exclusive)
    }
    fn is_inside(&self) -> bool {
        self.vcpus.iter().any(|v| v.inside.is_some())
    }
    /// Readers of a PAMT entry, and whether there is a writer.
    fn pamt_users(&self, pa: u64, size: u8) -> (usize, bool) {
        let at = pa & !(span(size) - 1);
        let (mut readers, mut writer) = (0, false);
        let mut add = |exclusive: bool| match exclusive {
            true => writer = true,
            false => readers += 1,
        };
        if let Some(ex) = self.held(Lock::Pamt(at, size)) {
            add(ex);
        }
        for (_, _, ex) in self.taken.iter().filter(|t| (t.0, t.1) == (at, size)) {
            add(*ex);
        }
        for v in self.vcpus.iter().filter(|v| v.inside.is_some()) {
            if v.tdvpr & !(span(size) - 1) == at {
                add(false);
            }
            if size == 0 && at == self.tdr {
                add(false);
            }
        }
        (readers, writer)
    }
    fn lock_pamt(&mut self, pa: u64, size: u8, exclusive: bool) -> bool {
        let (readers, writer) = self.pamt_users(pa, size);
        let free = !writer && (!exclusive || readers == 0);
        if free {
            self.taken.push((pa & !(span(size) - 1), size, exclusive));
        }
        free
    }
    /// Whether a test can take a lock now.
    pub fn can_hold(&self, lock: Lock, exclusive: bool) -> bool {
        match lock {
            Lock::Tree | Lock::Epoch | Lock::OpState => true,
            Lock::Pamt(pa, size) => {
                let (readers, writer) = self.pamt_users(pa, size);
                !writer && (!exclusive || readers == 0)
            }
            Lock::Entry(gpa, level) => {
                let (key, hit) = self.find(gpa, level);
                hit && !self.priority.contains(&key)
            }
        }
    }

    /// Locks the entry that owns a page, at `target` size or larger: its size.
    fn walk_pamt(&mut self, pa: u64, target: u8, exclusive: bool, op: u64) -> Res<u8> {
        for size in [2, 1] {
            if !self.lock_pamt(pa, size, false) {
                return Err(BUSY | op);
            }
            if size == target || self.page(pa, size).kind == REG {
                // The only reader may become the writer.
                if exclusive && self.pamt_users(pa, size) != (1, false) {
                    return Err(BUSY | op);
                }
                return Ok(size);
            }
        }
        match self.lock_pamt(pa, 0, exclusive) {
            true => Ok(0),
            false => Err(BUSY | op),
        }
    }
    fn check_pa(&self, pa: u64, size: u8, op: u64) -> Res<()> {
        if pa & (span(size) - 1) != 0 || pa & KEY_BITS != 0 || pa >> 52 != 0 {
            return Err(INVALID | op);
        }
        match self.tdmr.contains(&pa) {
            true => Ok(()),
            false => Err(RANGE | op),
        }
    }
    /// A page that a register names, which must be of a type.
    fn explicit(&mut self, pa: u64, size: u8, kind: u8, exclusive: bool, op: u64) -> Res<()> {
        self.check_pa(pa, size, op)?;
        let found = self.walk_pamt(pa, size, exclusive, op)?;
        match found == size && self.page(pa, size).kind == kind {
            true => Ok(()),
            false => Err(METADATA | op),
        }
    }
    /// A page that the S-EPT names.
    fn implicit(&mut self, pa: u64, size: u8) -> Res<()> {
        assert_ne!(self.page(pa, size).kind, NDA, "{pa:#x}/{size}");
        match self.lock_pamt(pa, size, true) {
            true => Ok(()),
            false => Err(BUSY | 1),
        }
    }

    // Parts of the leaves.

    fn begin(&mut self, tdr: u64, op: u64, exclusive: bool, states: &[u64]) -> Res<()> {
        self.explicit(tdr, 0, TDR, exclusive, op)?;
        if !exclusive && !self.can_take(Lock::OpState, false) {
            return Err(BUSY | OPERAND_OP_STATE);
        }
        match states.contains(&self.op_state) {
            true => Ok(()),
            false => Err(OP_STATE),
        }
    }
    fn place(&self, rcx: u64, levels: std::ops::RangeInclusive<u8>) -> Res<Key> {
        let (level, gpa) = ((rcx & 7) as u8, rcx & !7);
        let reserved = rcx & 0xFFF0_0000_0000_0FF8 != 0;
        if reserved || !levels.contains(&level) || gpa & (span(level) - 1) != 0 {
            return Err(INVALID | 1);
        }
        Ok((level, gpa))
    }
    fn check_private(&self, gpa: u64) -> Res<()> {
        match gpa >> self.shared_bit {
            0 => Ok(()),
            _ => Err(INVALID | 1),
        }
    }
    /// Where a walk to `level` ends, and whether that is the level.
    pub fn find(&self, gpa: u64, level: u8) -> (Key, bool) {
        let mut at = self.root;
        loop {
            let key = (at, gpa & !(span(at) - 1));
            let on = matches!(self.get(key), Table { blocked: false, .. });
            if at <= level || !on || at == 0 {
                return (key, at == level);
            }
            at -= 1;
        }
    }
    /// RCX and RDX that describe an entry.
    fn details(&self, r: &mut Gpr, key: Key) {
        let e = self.get(key);
        r[RCX] = match e {
            Free => 1 << 63,
            Table { .. } => e.rwx(),
            Leaf { .. } => e.raw() & 0x800F_FFFF_FFFF_F0FF,
        };
        r[RDX] = u64::from(key.0) | (e.code() << 8);
    }
    fn fail<T>(&self, status: u64, key: Key, r: &mut Gpr) -> Res<T> {
        self.details(r, key);
        Err(status | 1)
    }
    fn reach(&self, (level, gpa): Key, r: &mut Gpr) -> Res<Key> {
        match self.find(gpa, level) {
            (key, true) => Ok(key),
            (key, false) => self.fail(WALK, key, r),
        }
    }
    fn lock_entry(&mut self, key: Key, r: &mut Gpr) -> Res<()> {
        if self.held(Lock::Entry(key.1, key.0)).is_some() {
            self.priority.insert(key);
            return self.fail(BUSY, key, r);
        }
        self.priority.remove(&key);
        Ok(())
    }
    /// Operand, tree lock, walk and entry lock.
    fn target(
        &mut self,
        rcx: u64,
        levels: std::ops::RangeInclusive<u8>,
        exclusive: bool,
        r: &mut Gpr,
    ) -> Res<(Key, Entry)> {
        let place = self.place(rcx, levels)?;
        self.check_private(place.1)?;
        if !self.can_take(Lock::Tree, exclusive) {
            return Err(BUSY | OPERAND_TREE);
        }
        let key = self.reach(place, r)?;
        self.lock_entry(key, r)?;
        Ok((key, self.get(key)))
    }
    fn is_tracked(&self, blocked_in: u64) -> bool {
        match self.epoch.checked_sub(blocked_in) {
            None | Some(0) => false,
            Some(1) => self.refs[(blocked_in & 1) as usize] == 0,
            Some(_) => true,
        }
    }
    /// The page whose PAMT entry carries the epoch of the last block.
    fn carrier(&self, key: Key) -> (u64, u8) {
        match self.get(key) {
            Free => panic!("nothing to block at {key:x?}"),
            Table { page, .. } => (page, 0),
            Leaf { page, .. } => (page, key.0),
        }
    }
    fn check_tracked(&self, key: Key, r: &mut Gpr) -> Res<()> {
        if self.op_state != 2 {
            return Ok(());
        }
        if !self.get(key).is_blocked() {
            return self.fail(NOT_BLOCKED, key, r);
        }
        let (pa, size) = self.carrier(key);
        match self.is_tracked(self.page(pa, size).epoch) {
            true => Ok(()),
            false => Err(NOT_TRACKED | 1),
        }
    }
    fn interrupted(&self) -> bool {
        self.interrupt_after == Some(0)
    }

    // Leaves.

    pub fn host(&mut self, lp: u32, rax: u64, input: Gpr) -> Outcome {
        let mut r = input;
        self.taken.clear();
        let result = self.leaf(lp, rax, &mut r);
        self.taken.clear();
        match result {
            Ok(Some(outcome)) => outcome,
            Ok(None) => Outcome::Host(0, r),
            Err(status) => Outcome::Host(status, r),
        }
    }

    fn leaf(&mut self, lp: u32, rax: u64, r: &mut Gpr) -> Res<Option<Outcome>> {
        let (leaf, version) = (rax & 0xFFFF, (rax >> 16) & 0xFF);
        let versioned = matches!(leaf, 3 | 23 | 30);
        if rax >> 24 != 0 || version > 0 && !versioned {
            return Err(INVALID);
        }
        let (rcx, rdx) = (r[RCX], r[RDX]);
        if matches!(leaf, 2 | 3 | 5 | 6 | 7 | 15 | 16 | 23 | 25 | 29 | 30 | 39) {
            (r[RCX], r[RDX]) = (0, 0);
        }
        if matches!(leaf, 23 | 30) && version > 0 {
            (r[R9], r[R10], r[R11]) = (NONE, NONE, NONE);
        }
        if version > 1 {
            return Err(INVALID);
        }
        match leaf {
            0 => return self.enter(lp, rcx, r).map(Some),
            2 => self.page_add(rcx, rdx, r)?,
            3 => self.sept_add(version, rcx, rdx, r)?,
            5 => self.relocate(rcx, rdx, r)?,
            6 => self.aug(rcx, rdx, r)?,
            7 => self.block(rcx, rdx, r)?,
            15 => self.demote(rcx, rdx, r)?,
            16 => self.extend(rcx, rdx, r)?,
            17 => {
                self.begin(rcx, 1, true, &[1])?;
                self.op_state = 2;
            }
            23 => self.promote(rcx, rdx, r)?,
            24 | 28 => self.look_at_page(leaf == 28, rcx, r)?,
            25 => {
                self.begin(rdx & !1, 2, false, &[1, 2])?;
                if rdx & 1 != 0 {
                    return Err(INVALID | 2);
                }
                let (key, _) = self.target(rcx, 0..=self.root, false, r)?;
                self.details(r, key);
            }
            29 => self.remove(rcx, rdx, r)?,
            30 => self.sept_remove(rcx, rdx, r)?,
            38 => self.track(rcx)?,
            39 => self.unblock(rcx, rdx, r)?,
            41 => self.explicit(rcx & !KEY_BITS, 0, NDA, false, 1)?,
            _ => return Err(INVALID),
        }
        Ok(None)
    }

    fn sept_add(&mut self, version: u64, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        if rdx & 0xFFF0_0000_0000_0FFE != 0 {
            return Err(INVALID | 2);
        }
        self.begin(rdx & !1, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 1..=self.root, false, r)?;
        let is_table = matches!(e, Table { blocked: false, .. });
        if e != Free && !is_table {
            return self.fail(ENTRY_STATE, key, r);
        }
        let pa = r[R8] & !(1 << 63);
        if r[R8] == NONE {
            if version == 0 {
                return Err(INVALID | 8);
            }
            if !is_table {
                return self.fail(ENTRY_STATE, key, r);
            }
        } else if !is_table {
            self.explicit(pa, 0, NDA, true, 8)?;
        } else if rdx & 1 == 0 {
            return self.fail(ENTRY_STATE, key, r);
        }
        if version > 0 {
            for (register, operand) in [(R9, 9), (R10, 10), (R11, 11)] {
                if r[register] != NONE {
                    return Err(INVALID | operand);
                }
            }
        }
        if !is_table {
            self.own(pa, 0, EPT);
            self.children += 1;
            self.set(
                key,
                Table {
                    page: pa,
                    blocked: false,
                },
            );
        }
        if version > 0 && r[R8] != NONE {
            r[R8] = if is_table { pa | (1 << 63) } else { NONE };
        }
        Ok(())
    }

    fn sept_remove(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 1..=self.root, true, r)?;
        let Table { page, .. } = e else {
            return self.fail(ENTRY_STATE, key, r);
        };
        self.implicit(page, 0)?;
        self.check_tracked(key, r)?;
        let (level, gpa) = key;
        let below = (level - 1, gpa)..(level - 1, gpa + span(level));
        // Lock and host's priority of a free entry go with the table.
        if self.entries.range(below.clone()).next().is_some() {
            return self.fail(NOT_FREE, key, r);
        }
        self.priority.retain(|k| !below.contains(k));
        self.set(key, Free);
        self.free(page, 0);
        self.children -= 1;
        r[RCX] = page;
        Ok(())
    }

    fn page_add(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, true, &[1])?;
        let place = self.place(rcx, 0..=0)?;
        self.check_private(place.1)?;
        let key = self.reach(place, r)?;
        if self.get(key) != Free {
            return self.fail(ENTRY_STATE, key, r);
        }
        if r[R9] & 0xFFF != 0 || !self.source.contains(&r[R9]) {
            return Err(INVALID | 9);
        }
        self.explicit(r[R8], 0, NDA, true, 8)?;
        self.own(r[R8], 0, REG);
        self.children += 1;
        // The entry is written without its lock; a priority in it goes.
        self.priority.remove(&key);
        let page = r[R8];
        self.set(
            key,
            Leaf {
                page,
                pending: false,
                blocked: false,
                accepted: 0,
            },
        );
        Ok(())
    }

    fn aug(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 0..=1, false, r)?;
        if e != Free {
            return self.fail(ENTRY_STATE, key, r);
        }
        self.explicit(r[R8], key.0, NDA, true, 8)?;
        let small = (0..span(key.0) / 4096).map(|i| r[R8] + i * 4096);
        if key.0 == 1 && small.into_iter().any(|pa| self.page(pa, 0).kind != NDA) {
            return Err(METADATA | 8);
        }
        self.own(r[R8], key.0, REG);
        self.children += span(key.0) / 4096;
        let page = r[R8];
        self.set(
            key,
            Leaf {
                page,
                pending: true,
                blocked: false,
                accepted: 0,
            },
        );
        Ok(())
    }

    fn remove(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 0..=2, false, r)?;
        let Leaf { page, .. } = e else {
            return self.fail(ENTRY_STATE, key, r);
        };
        self.implicit(page, key.0)?;
        self.check_tracked(key, r)?;
        self.set(key, Free);
        self.free(page, key.0);
        self.children -= span(key.0) / 4096;
        r[RCX] = page;
        Ok(())
    }

    fn relocate(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 0..=0, false, r)?;
        let Leaf { page, pending, .. } = e else {
            return self.fail(ENTRY_STATE, key, r);
        };
        let to = r[R8];
        if to == page {
            return Err(INVALID | 8);
        }
        self.implicit(page, 0)?;
        self.check_tracked(key, r)?;
        self.explicit(to, 0, NDA, true, 8)?;
        self.free(page, 0);
        self.own(to, 0, REG);
        self.set(
            key,
            Leaf {
                page: to,
                pending,
                blocked: false,
                accepted: 0,
            },
        );
        r[RCX] = page;
        Ok(())
    }

    fn promote(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 1..=2, false, r)?;
        let Table { page: table, .. } = e else {
            return self.fail(ENTRY_STATE, key, r);
        };
        self.implicit(table, 0)?;
        self.check_tracked(key, r)?;
        let (level, gpa) = key;
        let mut merged = Free;
        for i in 0..512 {
            let child = (level - 1, gpa + i * span(level - 1));
            if self.held(Lock::Entry(child.1, child.0)).is_some() {
                self.priority.insert(child);
                return self.fail(BUSY, key, r);
            }
            // Locking it takes the host's priority away.
            self.priority.remove(&child);
            let e = self.get(child);
            let fits = match (i, e, merged) {
                (
                    0,
                    Leaf {
                        page,
                        blocked,
                        accepted,
                        ..
                    },
                    _,
                ) => {
                    merged = e;
                    !blocked && (page | accepted << 12) & (span(level) - 1) == 0
                }
                (_, Leaf { .. }, Leaf { .. }) => e.raw() == merged.raw() + i * span(level - 1),
                _ => false,
            };
            if !fits {
                return self.fail(PROMOTE_CONDITIONS, key, r);
            }
        }
        if self.interrupted() {
            (r[RCX], r[RDX]) = (rcx, rdx);
            return Err(RESTARTABLE);
        }
        let Leaf { page, .. } = merged else {
            unreachable!()
        };
        if !self.lock_pamt(page, level, true) {
            return Err(BUSY | 1);
        }
        for i in 0..512 {
            self.set((level - 1, gpa + i * span(level - 1)), Free);
            self.free(page + i * span(level - 1), level - 1);
        }
        let epoch = self.page(page, level).epoch;
        self.own(page, level, REG);
        self.pages.get_mut(&(page, level)).unwrap().epoch = epoch;
        self.set(key, merged);
        self.free(table, 0);
        self.children -= 1;
        r[RCX] = table;
        Ok(())
    }

    fn demote(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        if rdx & 0xFFF0_0000_0000_0FFE != 0 {
            return Err(INVALID | 2);
        }
        self.begin(rdx & !1, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 1..=2, false, r)?;
        let Leaf { page, pending, .. } = e else {
            return self.fail(ENTRY_STATE, key, r);
        };
        self.check_tracked(key, r)?;
        let table = r[R8];
        self.explicit(table, 0, NDA, true, 8)?;
        if self.interrupted() {
            (r[RCX], r[RDX]) = (rcx, rdx);
            return Err(RESTARTABLE);
        }
        let (level, gpa) = key;
        if !self.lock_pamt(page, level, true) {
            return Err(BUSY | 1);
        }
        for i in 0..512 {
            let offset = i * span(level - 1);
            let page = page + offset;
            self.own(page, level - 1, REG);
            let part = Leaf {
                page,
                pending,
                blocked: false,
                accepted: 0,
            };
            self.set((level - 1, gpa + offset), part);
        }
        self.free(page, level);
        // Unlike any other new page it keeps the epoch of its last block.
        let epoch = self.page(table, 0).epoch;
        self.own(table, 0, EPT);
        self.pages.get_mut(&(table, 0)).unwrap().epoch = epoch;
        self.set(
            key,
            Table {
                page: table,
                blocked: false,
            },
        );
        self.children += 1;
        Ok(())
    }

    fn block(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 0..=self.root, true, r)?;
        if e == Free {
            return self.fail(ENTRY_STATE, key, r);
        }
        if e.is_blocked() {
            return self.fail(ALREADY_BLOCKED, key, r);
        }
        let carrier = self.carrier(key);
        self.pages.get_mut(&carrier).unwrap().epoch = self.epoch;
        self.set(key, e.with_blocked(true));
        Ok(())
    }

    fn unblock(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 0..=self.root, true, r)?;
        if !e.is_blocked() {
            return self.fail(ENTRY_STATE, key, r);
        }
        let (pa, size) = self.carrier(key);
        if self.op_state == 2 && !self.is_tracked(self.page(pa, size).epoch) {
            return Err(NOT_TRACKED | OPERAND_TREE);
        }
        self.set(key, e.with_blocked(false));
        Ok(())
    }

    fn track(&mut self, rcx: u64) -> Res<()> {
        self.begin(rcx, 1, false, &[1, 2])?;
        if !self.can_take(Lock::Epoch, true) {
            return Err(BUSY | OPERAND_EPOCH);
        }
        if self.refs[((self.epoch + 1) & 1) as usize] != 0 {
            return Err(PREVIOUS_EPOCH);
        }
        self.epoch += 1;
        Ok(())
    }

    fn extend(&mut self, gpa: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, true, &[1])?;
        if gpa & 255 != 0 {
            return Err(INVALID | 1);
        }
        self.check_private(gpa)?;
        let (key, _) = self.find(gpa, 0);
        let leaf = matches!(
            self.get(key),
            Leaf {
                pending: false,
                blocked: false,
                ..
            }
        );
        match leaf {
            true => Ok(()),
            false => self.fail(NOT_PRESENT, key, r),
        }
    }

    /// PHYMEM.PAGE.RECLAIM, which this TD is not ready for, and RDMD.
    fn look_at_page(&mut self, reclaim: bool, pa: u64, r: &mut Gpr) -> Res<()> {
        *r = [0; 6];
        self.check_pa(pa, 0, 1)?;
        let size = self.walk_pamt(pa, 0, reclaim, 1)?;
        let page = self.page(pa, size);
        if page.kind == RSVD || reclaim && page.kind == NDA {
            return Err(METADATA | 1);
        }
        (r[RCX], r[RDX], r[R8]) = (page.kind.into(), page.owner, size.into());
        if !reclaim {
            if matches!(page.kind, REG | EPT) {
                r[R9] = page.epoch;
            }
            return Ok(());
        }
        if pa & (span(size) - 1) != 0 {
            return Err(INVALID | 1);
        }
        if page.kind != TDR && !self.lock_pamt(self.tdr, 0, false) {
            return Err(BUSY | OPERAND_TDR);
        }
        Err(LIFECYCLE)
    }

    // The guest.

    fn enter(&mut self, lp: u32, rcx: u64, r: &mut Gpr) -> Res<Outcome> {
        if rcx & !0x003F_FFFF_FFFF_F000 != 0 {
            return Err(INVALID | 1);
        }
        let pa = rcx & 0x000F_FFFF_FFFF_F000;
        self.explicit(pa, 0, TDVPR, false, 1)?;
        if !self.lock_pamt(self.tdr, 0, false) {
            return Err(BUSY | OPERAND_TDR);
        }
        if !self.can_take(Lock::OpState, false) {
            return Err(BUSY | OPERAND_OP_STATE);
        }
        if self.op_state != 2 {
            return Err(OP_STATE);
        }
        let i = self
            .vcpus
            .iter()
            .position(|v| v.tdvpr == pa)
            .expect("a vCPU");
        if self.vcpus[i].lp != lp {
            return Err(0x8000_0701_0000_0000);
        }
        if rcx >> 52 != 0 {
            return Err(INVALID | 1);
        }
        if !self.can_take(Lock::Epoch, false) {
            return Err(BUSY | OPERAND_EPOCH);
        }
        let v = &mut self.vcpus[i];
        v.sampled = v.rip;
        if !v.suspects.is_empty() {
            if self.held(Lock::Tree).is_some() {
                return Err(BUSY | OPERAND_TREE);
            }
            let absent = |gpa: &&u64| {
                let e = self.get(self.find(**gpa, 0).0);
                !matches!(e, Leaf { .. }) || e.rwx() == 0
            };
            if let Some(&gpa) = self.vcpus[i].suspects.iter().find(absent) {
                *r = [2, 0, gpa, 0, 0, 0];
                return Ok(Outcome::Host(48, *r));
            }
        }
        self.refs[(self.epoch & 1) as usize] += 1;
        self.vcpus[i].inside = Some(self.epoch);
        Ok(Outcome::Entered)
    }

    fn progress(&mut self, i: usize, rip: u64) {
        let v = &mut self.vcpus[i];
        if rip != v.sampled {
            v.faults = 0;
            v.suspects.clear();
        }
    }
    fn leave(&mut self, i: usize, rip: u64, rax: u64, out: Gpr) -> Outcome {
        let v = &mut self.vcpus[i];
        v.rip = rip;
        let epoch = v.inside.take().expect("a guest that runs");
        self.refs[(epoch & 1) as usize] -= 1;
        Outcome::Host(rax, out)
    }
    fn resume(&self, i: usize, rax: u64) -> Outcome {
        Outcome::Guest(rax, self.vcpus[i].ve)
    }

    pub fn interrupt(&mut self, i: usize, rip: u64) -> Outcome {
        self.progress(i, rip);
        self.leave(i, rip, 1, [0, 0, 0, 0x8000_0020, 0, 0])
    }

    pub fn ve_info(&mut self, i: usize, rip: u64) -> Outcome {
        self.progress(i, rip);
        let v = &mut self.vcpus[i];
        v.yields_since = 0;
        let status = if v.ve { 0 } else { NO_VE };
        v.ve = false;
        self.resume(i, status)
    }

    pub fn access(&mut self, i: usize, rip: u64, gpa: u64, how: u64) -> Outcome {
        let (key, _) = self.find(gpa, 0);
        let e = self.get(key);
        let allowed = e.rwx();
        if let (Leaf { page, .. }, 7) = (e, allowed) {
            return Outcome::Reached(page | gpa & (span(key.0) - 1));
        }
        self.progress(i, rip);
        let pending = matches!(
            e,
            Leaf {
                pending: true,
                blocked: false,
                ..
            }
        );
        if pending && !self.ve_disabled {
            self.vcpus[i].ve = true;
            return self.resume(i, 0);
        }
        let page = gpa & !0xFFF;
        let v = &mut self.vcpus[i];
        if v.faults < 6 {
            v.faults += 1;
        } else if !v.suspects.contains(&page) && v.suspects.len() < 32 {
            v.suspects.push(page);
        }
        let ext = if pending { 6 } else { 0 };
        self.leave(i, rip, 48, [how | (allowed << 3), ext, page, 0, 0, 0])
    }

    pub fn accept(&mut self, i: usize, rip: u64, rcx: u64) -> Outcome {
        self.progress(i, rip);
        let done = |m: &mut Model, status: u64| {
            m.vcpus[i].yields_since = 0;
            m.resume(i, status)
        };
        let place = self.place(rcx, 0..=1);
        let Ok((level, gpa)) = place.and_then(|p| self.check_private(p.1).map(|()| p)) else {
            return done(self, INVALID | 1);
        };
        let (key, hit) = self.find(gpa, level);
        let e = self.get(key);
        let exit = |m: &mut Model| {
            let leaf = u64::from(matches!(e, Leaf { .. }));
            let info = u64::from(level) | (u64::from(key.0) << 3) | (e.code() << 6) | (leaf << 14);
            let out = [2 | (e.rwx() << 3), 1 | (info << 32), gpa, 0, 0, 0];
            m.leave(i, rip, 48, out)
        };
        let accepted_at = |level: u8| ALREADY_ACCEPTED | u64::from(level);
        let mapped = matches!(e, Leaf { .. }) && e.rwx() != 0;
        if !hit {
            return match mapped {
                true => done(self, accepted_at(key.0)),
                false => exit(self),
            };
        }
        if self.held(Lock::Entry(gpa, level)).is_some() {
            return done(self, BUSY | 1);
        }
        if self.priority.contains(&key) {
            return self.yielded(i, rip);
        }
        match e {
            Table { .. } => done(self, SIZE_MISMATCH | u64::from(level)),
            _ if mapped => done(self, accepted_at(level)),
            Leaf {
                page,
                pending: true,
                blocked: false,
                accepted,
            } => {
                // Only between the 4K parts of a large page does it look for interrupts.
                let stop = self
                    .interrupt_after
                    .map(|polls| accepted + u64::from(polls));
                let pending = level == 1 && stop.is_some_and(|at| at < 511);
                let accepted = if pending { stop.unwrap_or(0) + 1 } else { 0 };
                self.set(
                    key,
                    Leaf {
                        page,
                        pending,
                        blocked: false,
                        accepted,
                    },
                );
                match pending {
                    // The TDCALL runs again: RAX is still its leaf.
                    true => self.resume(i, 6),
                    false => done(self, 0),
                }
            }
            _ => exit(self),
        }
    }

    fn yielded(&mut self, i: usize, rip: u64) -> Outcome {
        let v = &mut self.vcpus[i];
        if v.yields_since == 0 {
            v.yields_since = self.tsc;
        } else if self.tsc - v.yields_since >= TIMEOUT {
            v.yields_since = 0;
            return self.leave(i, rip + 4, PRIORITY_TIMEOUT, [0; 6]);
        }
        self.resume(i, BUSY | 1)
    }

    pub fn any_inside(&self) -> bool {
        self.is_inside()
    }
}
