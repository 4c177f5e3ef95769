// SPDX-License-Identifier: GPL-2.0

//! The completion status of a SEAMCALL, as in RAX.

#![forbid(unsafe_code)]

use core::fmt;

/// A completion status. Open: a code that is not named here survives and prints.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct TdxStatus(u64);

/// The operand or other detail in bits 31:0.
const DETAILS: u64 = 0xffff_ffff;

macro_rules! classes {
    ($($(#[$doc:meta])* $name:ident = $value:expr;)*) => {
        impl TdxStatus {
            $($(#[$doc])* pub const $name: Self = Self($value);)*
        }

        /// The name of a status without details.
        const fn name_of(class: u64) -> Option<&'static str> {
            match class {
                $($value => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

classes! {
    /// Done.
    SUCCESS = 0;
    /// The vCPU cannot run again.
    NON_RECOVERABLE_VCPU = 0x4000_0001_0000_0000;
    /// The TD cannot run again.
    NON_RECOVERABLE_TD = 0x6000_0002_0000_0000;
    /// Interrupted; call again to go on.
    INTERRUPTED_RESUMABLE = 0x8000_0003_0000_0000;
    /// Interrupted with nothing done; call again to start over.
    INTERRUPTED_RESTARTABLE = 0x8000_0004_0000_0000;
    /// The operand in the details is invalid.
    OPERAND_INVALID = 0xc000_0100_0000_0000;
    /// The address in the operand is in no TDMR.
    OPERAND_ADDR_RANGE_ERROR = 0xc000_0101_0000_0000;
    /// The lock of the operand in the details is held.
    OPERAND_BUSY = 0x8000_0200_0000_0000;
    /// A vCPU that entered in the previous epoch is still inside.
    PREVIOUS_TLB_EPOCH_BUSY = 0x8000_0201_0000_0000;
    /// The module as a whole is busy.
    SYS_BUSY = 0x8000_0202_0000_0000;
    /// No entropy at the moment.
    RND_NO_ENTROPY = 0x8000_0203_0000_0000;
    /// The guest met a lock that the host wants; never an answer to the host.
    OPERAND_BUSY_HOST_PRIORITY = 0x8000_0204_0000_0000;
    /// The guest met such a lock for too long: a TD exit.
    HOST_PRIORITY_BUSY_TIMEOUT = 0x9000_0205_0000_0000;
    /// The page's owner or type is not the expected one.
    PAGE_METADATA_INCORRECT = 0xc000_0300_0000_0000;
    /// The TD still owns pages.
    TD_ASSOCIATED_PAGES_EXIST = 0xc000_0400_0000_0000;
    /// The module is not initialised.
    SYS_NOT_READY = 0xc000_0505_0000_0000;
    /// The module was shut down.
    SYS_SHUTDOWN = 0xc000_0506_0000_0000;
    /// The TD had a fatal error.
    TD_FATAL = 0xe000_0604_0000_0000;
    /// The TD has no control structure yet.
    TDCS_NOT_ALLOCATED = 0xc000_0606_0000_0000;
    /// Not in this state of the TD's life cycle.
    LIFECYCLE_STATE_INCORRECT = 0xc000_0607_0000_0000;
    /// Not in this operation state of the TD.
    OP_STATE_INCORRECT = 0xc000_0608_0000_0000;
    /// The TD has no vCPU.
    NO_VCPUS = 0xc000_0609_0000_0000;
    /// The vCPU is in another state.
    VCPU_STATE_INCORRECT = 0xc000_0700_0000_0000;
    /// The vCPU belongs to another logical processor.
    VCPU_ASSOCIATED = 0x8000_0701_0000_0000;
    /// The vCPU belongs to no logical processor, or to another one.
    VCPU_NOT_ASSOCIATED = 0x8000_0702_0000_0000;
    /// The TD's keys are not configured, or no more.
    TD_KEYS_NOT_CONFIGURED = 0x8000_0810_0000_0000;
    /// The walk met an entry that does not lead to the wanted level.
    EPT_WALK_FAILED = 0xc000_0b00_0000_0000;
    /// The walk met an entry that is not present.
    EPT_ENTRY_NOT_PRESENT = 0xc000_0b03_0000_0000;
    /// The entry is not blocked.
    GPA_RANGE_NOT_BLOCKED = 0xc000_0b06_0000_0000;
    /// The entry is blocked already; no error.
    GPA_RANGE_ALREADY_BLOCKED = 0x0000_0b07_0000_0000;
    /// No TLB tracking since the entry was blocked.
    TLB_TRACKING_NOT_DONE = 0xc000_0b08_0000_0000;
    /// The children of a table differ.
    EPT_INVALID_PROMOTE_CONDITIONS = 0xc000_0b09_0000_0000;
    /// The guest accepted the page before; no error.
    PAGE_ALREADY_ACCEPTED = 0x0000_0b0a_0000_0000;
    /// The guest accepted at another level than the page is mapped at.
    PAGE_SIZE_MISMATCH = 0xc000_0b0b_0000_0000;
    /// The entry's state does not allow that.
    EPT_ENTRY_STATE_INCORRECT = 0xc000_0b0d_0000_0000;
    /// The table still has entries.
    EPT_PAGE_NOT_FREE = 0xc000_0b0e_0000_0000;
}

impl TdxStatus {
    /// The status with the value `rax`.
    pub const fn new(rax: u64) -> Self {
        Self(rax)
    }

    /// The value as in RAX.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The status with the operand `id` in its details.
    pub const fn with_operand(self, id: OperandId) -> Self {
        Self(self.class().0 | id.0 as u64)
    }

    /// Whether all is done and nothing else is to be said.
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }

    /// Whether bit 63 is set.
    pub const fn is_error(self) -> bool {
        self.0 >> 63 != 0
    }

    /// The status without its details.
    pub const fn class(self) -> Self {
        Self(self.0 & !DETAILS)
    }

    /// The operand in the details. Means an operand for the classes that have one.
    pub const fn operand(self) -> OperandId {
        OperandId((self.0 & DETAILS) as u32)
    }

    /// Whether the TD, or the TDX module as a whole, has ended: a machine check in the TD's memory, an
    /// error of the TD's that the module found fatal, a shutdown. Whoever sees that has made no
    /// mistake, and no call on the TD will be served any more.
    pub const fn is_ended(self) -> bool {
        matches!(
            self.class(),
            Self::TD_FATAL | Self::NON_RECOVERABLE_TD | Self::SYS_SHUTDOWN
        )
    }

    /// Whether the class is [`OPERAND_BUSY`](Self::OPERAND_BUSY).
    pub const fn is_operand_busy(self) -> bool {
        self.class().0 == Self::OPERAND_BUSY.0
    }

    /// The name of the class.
    pub const fn name(self) -> Option<&'static str> {
        name_of(self.class().0)
    }
}

impl fmt::Debug for TdxStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self.operand()) {
            (Some(name), OperandId(0)) => f.write_str(name),
            (Some(name), operand) => write!(f, "{name}|{operand:?}"),
            (None, _) => write!(f, "{:#018x}", self.0),
        }
    }
}

/// What the details of a status name. Open, as the status.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct OperandId(u32);

impl OperandId {
    /// RAX.
    pub const RAX: Self = Self(0);
    /// RCX; of a busy S-EPT leaf: the entry, or the page that the entry maps.
    pub const RCX: Self = Self(1);
    /// RDX; of a busy S-EPT leaf: the TD's root page.
    pub const RDX: Self = Self(2);
    /// R8; of a busy S-EPT leaf: the new page.
    pub const R8: Self = Self(8);
    /// The TD's root page, where it is no operand.
    pub const TDR: Self = Self(0x80);
    /// The lock of the S-EPT tree.
    pub const SEPT_TREE: Self = Self(0x92);
    /// The epoch lock.
    pub const TD_EPOCH: Self = Self(0xa9);
    /// The lock of the operation state.
    pub const OP_STATE: Self = Self(0xac);
    /// The table of key owners.
    pub const KOT: Self = Self(0xba);

    /// The operand with number `id`.
    pub const fn new(id: u32) -> Self {
        Self(id)
    }

    /// The number.
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for OperandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::RAX => f.write_str("RAX"),
            Self::RCX => f.write_str("RCX"),
            Self::RDX => f.write_str("RDX"),
            Self::R8 => f.write_str("R8"),
            Self::TDR => f.write_str("TDR"),
            Self::SEPT_TREE => f.write_str("SEPT_TREE"),
            Self::TD_EPOCH => f.write_str("TD_EPOCH"),
            Self::OP_STATE => f.write_str("OP_STATE"),
            Self::KOT => f.write_str("KOT"),
            Self(id) => write!(f, "{id:#x}"),
        }
    }
}
