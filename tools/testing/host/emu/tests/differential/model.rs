// SPDX-License-Identifier: GPL-2.0

//! What the TDX module answers to the leaves that change the S-EPT, in terms of states and
//! owners: a second description, which shares nothing with tdx_emu/module but the interface. It
//! keeps no tables and no bits, takes no locks, and says what each call must return.

mod guest;
mod leaves;
mod locks;
mod parts;

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

    /// The entry of a page of 2 MiB without what is left of an unfinished accept.
    fn cleaned(self, level: u8) -> Entry {
        match self {
            Leaf {
                page,
                pending: true,
                blocked: false,
                ..
            } if level == 1 => Leaf {
                page,
                pending: true,
                blocked: false,
                accepted: 0,
            },
            other => other,
        }
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
                accepted,
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

    pub fn any_inside(&self) -> bool {
        self.is_inside()
    }
}
