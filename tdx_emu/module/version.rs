// SPDX-License-Identifier: GPL-2.0

//! What the releases of the TDX module do differently, for a host that calls them: one table.
//! Code asks for a rule, never for a release.
//!
//! A row says what is new in a release, the rest is as in the one before it. Releases that were
//! published as source fall into four classes: 1.5.01 | 1.5.05 to 1.5.09 | 1.5.13 and 1.5.16 |
//! 1.5.20 to 1.5.25.

#![forbid(unsafe_code)]

use super::lock::Mode;
use super::numbers::{leaf, op};

use Mode::{Exclusive, Shared};

/// How leaves take the lock of a TD's S-EPT. PAGE.ADD, MR.EXTEND and ACCEPT do without.
pub(crate) struct TreeLock {
    /// A host that fails to get it leaves host priority.
    pub(crate) priority: bool,
    pub(crate) sept_add: Mode,
    pub(crate) sept_remove: Mode,
    pub(crate) sept_rd: Mode,
    pub(crate) page_aug: Mode,
    pub(crate) page_remove: Mode,
    pub(crate) page_relocate: Mode,
    pub(crate) page_promote: Mode,
    pub(crate) page_demote: Mode,
    pub(crate) range_block: Mode,
    pub(crate) range_unblock: Mode,
    /// Of a vCPU with pages on its zero-step list, from the check until the guest runs.
    pub(crate) vp_enter: Mode,
}

/// What is in an S-EPT entry.
pub(crate) struct Entries {
    /// The TD's HKID stands in the address; the host never sees it.
    pub(crate) hkid: bool,
    /// Bit 10 (Xu) comes and goes with R, W and X; the host sees it.
    pub(crate) user_execute: bool,
    /// A host leaf's change keeps the priority of another host that failed meanwhile.
    pub(crate) keeps_priority: bool,
}

/// Which numbers a status carries.
pub(crate) struct Details {
    /// UNBLOCK of a range that is not tracked: the operand.
    pub(crate) unblock_untracked: u64,
    /// VP.ADDCX, VP.INIT: VCPU_STATE_INCORRECT has the state.
    pub(crate) vcpu_state: bool,
    /// OP_STATE_INCORRECT has the state.
    pub(crate) op_state: bool,
}

/// Bit 16 of R8 in SYS.CONFIG.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dynamic {
    /// Must be 0.
    Unknown,
    /// Is of no effect.
    Ignored,
    /// Makes the PAMT a dynamic one.
    Possible,
}

/// Versions of what a module hands to the one that it is updated to.
pub(crate) struct Handoff {
    pub(crate) version: u64,
    pub(crate) oldest: u64,
    /// SYS.SHUTDOWN takes the newest only.
    pub(crate) no_downgrade: bool,
}

/// The rules of a release.
pub(crate) struct Rules {
    /// As the parameter `version` calls it.
    pub(crate) name: &'static str,
    /// Major, minor and update number.
    pub(crate) number: [u64; 3],
    /// TDX_FEATURES0 of a CPU without SEAMVERIFYREPORT.
    pub(crate) features0: u64,
    /// Leaves that not all releases have.
    pub(crate) leaves: &'static [u16],
    /// Leaves that take a version above 0.
    pub(crate) versioned: &'static [u16],
    /// Fields of SYS.RD that not all releases have, with their value.
    pub(crate) fields: &'static [(u64, u64)],
    /// A vCPU's x2APIC identifier must be its own; else VP.INIT takes what it is given.
    pub(crate) x2apic_unique: bool,
    /// VP.INIT that fails for its x2APIC identifier counts the vCPU all the same.
    pub(crate) failed_vcpu_counts: bool,
    pub(crate) details: Details,
    pub(crate) entries: Entries,
    pub(crate) tree: TreeLock,
    /// PROMOTE locks the 512 children; else a child that is locked makes no large page.
    pub(crate) promote_locks_children: bool,
    /// PROMOTE and DEMOTE stop where host priority waits for the S-EPT.
    pub(crate) yields_to_host: bool,
    /// Zero-step check: a page that the guest can accept is no fault, if the access would be a
    /// #VE.
    pub(crate) pending_is_no_step: bool,
    /// RDMD: bits 2:0 of RCX are the smallest size to report.
    pub(crate) rdmd_size: bool,
    pub(crate) dynamic_pamt: Dynamic,
    pub(crate) handoff: Handoff,
    /// TDs have MRTD contexts, which SYS.SHUTDOWN, SYS.INIT and SYS.UPDATE can be told to mind.
    pub(crate) update_compatibility: bool,
}

/// Bits of TDX_FEATURES0.
const fn bits<const N: usize>(list: [u32; N]) -> u64 {
    let mut value = 0;
    let mut i = 0;
    while i < N {
        value |= 1 << list[i];
        i += 1;
    }
    value
}

const MAX_VCPUS_PER_TD: u64 = 0x9900_0000_0000_0008;
const MIN_VIRT_MAXPA: u64 = 0x9900_0000_0000_0009;
const MAX_EVENT_FILTERS: u64 = 0x9900_0000_0000_000A;
const PAMT_PAGE_BITMAP_ENTRY_BITS: u64 = 0x9100_0000_0000_0013;

const MAX_VCPUS: (u64, u64) = (MAX_VCPUS_PER_TD, 576);
const VIRT_MAXPA: (u64, u64) = (MIN_VIRT_MAXPA, 45);
const EVENT_FILTERS: (u64, u64) = (MAX_EVENT_FILTERS, 512);
const PAMT_BITMAP: (u64, u64) = (PAMT_PAGE_BITMAP_ENTRY_BITS, 1);

/// Leaves with a version 1 in every release.
const VERSIONED: [u16; 5] = [
    leaf::MEM_PAGE_PROMOTE,
    leaf::MEM_SEPT_ADD,
    leaf::MEM_SEPT_REMOVE,
    leaf::MNG_RD,
    leaf::VP_RD,
];
const VERSIONED_05: [u16; 6] = with(VERSIONED, leaf::VP_INIT);
const VERSIONED_13: [u16; 7] = with(VERSIONED_05, leaf::SYS_INIT);
const VERSIONED_24: [u16; 8] = with(VERSIONED_13, leaf::SYS_UPDATE);

const fn with<const N: usize, const M: usize>(list: [u16; N], more: u16) -> [u16; M] {
    let mut out = [more; M];
    let mut i = 0;
    while i < N {
        out[i] = list[i];
        i += 1;
    }
    out
}

const V1_5_01: Rules = Rules {
    name: "1.5.01",
    number: [1, 5, 1],
    features0: bits([0, 1, 2, 3, 4, 5, 7, 9, 10, 11, 16, 17, 18, 19]),
    leaves: &[leaf::SYS_SHUTDOWN, leaf::SYS_UPDATE],
    versioned: &VERSIONED,
    fields: &[],
    x2apic_unique: false,
    failed_vcpu_counts: false,
    details: Details {
        unblock_untracked: op::SEPT_TREE,
        vcpu_state: false,
        op_state: false,
    },
    entries: Entries {
        hkid: false,
        user_execute: false,
        keeps_priority: false,
    },
    tree: TreeLock {
        priority: false,
        sept_add: Shared,
        sept_remove: Exclusive,
        sept_rd: Shared,
        page_aug: Shared,
        page_remove: Shared,
        page_relocate: Shared,
        page_promote: Shared,
        page_demote: Shared,
        range_block: Exclusive,
        range_unblock: Exclusive,
        vp_enter: Exclusive,
    },
    promote_locks_children: true,
    yields_to_host: false,
    pending_is_no_step: false,
    rdmd_size: false,
    dynamic_pamt: Dynamic::Unknown,
    handoff: Handoff {
        version: 0,
        oldest: 0,
        no_downgrade: false,
    },
    update_compatibility: false,
};

/// 1.5.01, but for what Linux demands: it shows NO_RBP_MOD and TOPOLOGY_ENUM only, takes the
/// x2APIC identifiers of vCPUs, which it believes, and has SYS.DISABLE.
const V1_5_01_LINUX: Rules = Rules {
    name: "1.5.01-linux",
    features0: bits([18, 20]),
    leaves: &[leaf::SYS_DISABLE],
    versioned: &VERSIONED_05,
    fields: &[MAX_VCPUS],
    ..V1_5_01
};

const V1_5_05: Rules = Rules {
    name: "1.5.05",
    number: [1, 5, 5],
    features0: V1_5_01.features0 | bits([20]),
    versioned: &VERSIONED_05,
    fields: &[MAX_VCPUS],
    x2apic_unique: true,
    failed_vcpu_counts: true,
    details: Details {
        unblock_untracked: op::RCX,
        ..V1_5_01.details
    },
    ..V1_5_01
};

const V1_5_06: Rules = Rules {
    name: "1.5.06",
    number: [1, 5, 6],
    features0: V1_5_05.features0 | bits([25, 26, 27, 29]),
    fields: &[MAX_VCPUS, VIRT_MAXPA],
    ..V1_5_05
};

const V1_5_08: Rules = Rules {
    name: "1.5.08",
    number: [1, 5, 8],
    features0: V1_5_06.features0 | bits([33]),
    ..V1_5_06
};

const V1_5_09: Rules = Rules {
    name: "1.5.09",
    number: [1, 5, 9],
    features0: V1_5_08.features0 | bits([24, 30]),
    fields: &[MAX_VCPUS, VIRT_MAXPA, EVENT_FILTERS],
    failed_vcpu_counts: false,
    ..V1_5_08
};

const V1_5_13: Rules = Rules {
    name: "1.5.13",
    number: [1, 5, 13],
    features0: V1_5_09.features0 | bits([37]),
    versioned: &VERSIONED_13,
    entries: Entries {
        hkid: true,
        user_execute: true,
        ..V1_5_09.entries
    },
    ..V1_5_09
};

const V1_5_16: Rules = Rules {
    name: "1.5.16",
    number: [1, 5, 16],
    features0: V1_5_13.features0 | bits([21]),
    details: Details {
        vcpu_state: true,
        ..V1_5_13.details
    },
    dynamic_pamt: Dynamic::Ignored,
    ..V1_5_13
};

const V1_5_20: Rules = Rules {
    name: "1.5.20",
    number: [1, 5, 20],
    features0: V1_5_16.features0 | bits([36, 44]),
    leaves: &[
        leaf::SYS_SHUTDOWN,
        leaf::SYS_UPDATE,
        leaf::PHYMEM_PAMT_ADD,
        leaf::PHYMEM_PAMT_REMOVE,
    ],
    fields: &[MAX_VCPUS, VIRT_MAXPA, EVENT_FILTERS, PAMT_BITMAP],
    details: Details {
        op_state: true,
        ..V1_5_16.details
    },
    entries: Entries {
        keeps_priority: true,
        ..V1_5_16.entries
    },
    tree: TreeLock {
        priority: true,
        page_promote: Exclusive,
        vp_enter: Shared,
        ..V1_5_16.tree
    },
    promote_locks_children: false,
    yields_to_host: true,
    pending_is_no_step: true,
    rdmd_size: true,
    dynamic_pamt: Dynamic::Possible,
    ..V1_5_16
};

const V1_5_24: Rules = Rules {
    name: "1.5.24",
    number: [1, 5, 24],
    features0: V1_5_20.features0 | bits([40, 46, 47]),
    versioned: &VERSIONED_24,
    handoff: Handoff {
        version: 1,
        no_downgrade: true,
        ..V1_5_20.handoff
    },
    update_compatibility: true,
    ..V1_5_20
};

const V1_5_25: Rules = Rules {
    name: "1.5.25",
    number: [1, 5, 25],
    ..V1_5_24
};

/// All rows. The first is what a module has that nobody gave a version.
pub(crate) static TABLE: [Rules; 11] = [
    V1_5_01_LINUX,
    V1_5_01,
    V1_5_05,
    V1_5_06,
    V1_5_08,
    V1_5_09,
    V1_5_13,
    V1_5_16,
    V1_5_20,
    V1_5_24,
    V1_5_25,
];

/// The names of all versions, the one that a module has at first before the others.
pub fn versions() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|rules| rules.name)
}
