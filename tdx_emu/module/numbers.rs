// SPDX-License-Identifier: GPL-2.0

//! Numbers of the TDX 1.5 interface: completion status, operands, leaves.
//!
//! Written down here a second time, apart from `tdx_mirror/tdx`, because the emulator
//! judges the mirror: a wrong number shared by both would never be seen. A host
//! test compares the two tables.

#![forbid(unsafe_code)]

/// Outcome of a leaf: the error arm is the completion status for RAX.
pub(crate) type Res<T> = Result<T, u64>;

pub(crate) mod st {
    pub(crate) const SUCCESS: u64 = 0;
    pub(crate) const NON_RECOVERABLE_VCPU: u64 = 0x4000_0001_0000_0000;
    pub(crate) const INTERRUPTED_RESUMABLE: u64 = 0x8000_0003_0000_0000;
    pub(crate) const INTERRUPTED_RESTARTABLE: u64 = 0x8000_0004_0000_0000;
    pub(crate) const OPERAND_INVALID: u64 = 0xC000_0100_0000_0000;
    pub(crate) const OPERAND_ADDR_RANGE_ERROR: u64 = 0xC000_0101_0000_0000;
    pub(crate) const OPERAND_BUSY: u64 = 0x8000_0200_0000_0000;
    pub(crate) const PREVIOUS_TLB_EPOCH_BUSY: u64 = 0x8000_0201_0000_0000;
    pub(crate) const SYS_BUSY: u64 = 0x8000_0202_0000_0000;
    pub(crate) const RND_NO_ENTROPY: u64 = 0x8000_0203_0000_0000;
    pub(crate) const BUSY_HOST_PRIORITY: u64 = 0x8000_0204_0000_0000;
    pub(crate) const HOST_PRIORITY_BUSY_TIMEOUT: u64 = 0x9000_0205_0000_0000;
    pub(crate) const INTERRUPTED_BUSY: u64 = 0x8000_0206_0000_0000;
    pub(crate) const PAGE_METADATA_INCORRECT: u64 = 0xC000_0300_0000_0000;
    pub(crate) const PAGE_NOT_FREE: u64 = 0xC000_0303_0000_0000;
    pub(crate) const HPA_RANGE_NOT_FREE: u64 = 0xC000_0304_0000_0000;
    pub(crate) const NO_PAMT_PAGE_PAIR: u64 = 0xC000_0305_0000_0000;
    pub(crate) const PAMT_PAGE_NOT_EMPTY: u64 = 0xC000_0306_0000_0000;
    pub(crate) const MISSING_PAMT_PAGE_PAIR: u64 = 0x8000_0308_0000_0000;
    pub(crate) const TD_ASSOCIATED_PAGES_EXIST: u64 = 0xC000_0400_0000_0000;
    pub(crate) const SYS_INIT_NOT_PENDING: u64 = 0xC000_0500_0000_0000;
    pub(crate) const SYS_LP_INIT_NOT_DONE: u64 = 0xC000_0502_0000_0000;
    pub(crate) const SYS_LP_INIT_DONE: u64 = 0xC000_0503_0000_0000;
    pub(crate) const SYS_NOT_READY: u64 = 0xC000_0505_0000_0000;
    pub(crate) const SYS_SHUTDOWN: u64 = 0xC000_0506_0000_0000;
    pub(crate) const SYS_KEY_CONFIG_NOT_PENDING: u64 = 0xC000_0507_0000_0000;
    pub(crate) const SYS_STATE_INCORRECT: u64 = 0xC000_0508_0000_0000;
    pub(crate) const SYS_INVALID_HANDOFF: u64 = 0xC000_0509_0000_0000;
    pub(crate) const UPDATE_COMPATIBILITY_SENSITIVE: u64 = 0x8000_0512_0000_0000;
    pub(crate) const SYS_CONFIG_NOT_PENDING: u64 = 0xC000_0510_0000_0000;
    pub(crate) const TD_FATAL: u64 = 0xE000_0604_0000_0000;
    pub(crate) const TDCS_NOT_ALLOCATED: u64 = 0xC000_0606_0000_0000;
    pub(crate) const LIFECYCLE_STATE_INCORRECT: u64 = 0xC000_0607_0000_0000;
    pub(crate) const OP_STATE_INCORRECT: u64 = 0xC000_0608_0000_0000;
    pub(crate) const NO_VCPUS: u64 = 0xC000_0609_0000_0000;
    pub(crate) const TDCX_NUM_INCORRECT: u64 = 0xC000_0610_0000_0000;
    pub(crate) const X2APIC_ID_NOT_UNIQUE: u64 = 0xC000_0621_0000_0000;
    pub(crate) const INCOMPATIBLE_MRTD_CONTEXT: u64 = 0xC000_0622_0000_0000;
    pub(crate) const VCPU_STATE_INCORRECT: u64 = 0xC000_0700_0000_0000;
    pub(crate) const VCPU_ASSOCIATED: u64 = 0x8000_0701_0000_0000;
    pub(crate) const VCPU_NOT_ASSOCIATED: u64 = 0x8000_0702_0000_0000;
    pub(crate) const NO_VALID_VE_INFO: u64 = 0xC000_0704_0000_0000;
    pub(crate) const MAX_VCPUS_EXCEEDED: u64 = 0xC000_0705_0000_0000;
    pub(crate) const KEY_GENERATION_FAILED: u64 = 0x8000_0800_0000_0000;
    pub(crate) const TD_KEYS_NOT_CONFIGURED: u64 = 0x8000_0810_0000_0000;
    pub(crate) const KEY_CONFIGURED: u64 = 0x0000_0815_0000_0000;
    pub(crate) const WBCACHE_NOT_COMPLETE: u64 = 0x8000_0817_0000_0000;
    pub(crate) const HKID_NOT_FREE: u64 = 0xC000_0820_0000_0000;
    pub(crate) const NO_HKID_READY_TO_WBCACHE: u64 = 0x0000_0821_0000_0000;
    pub(crate) const WBCACHE_RESUME_ERROR: u64 = 0xC000_0823_0000_0000;
    pub(crate) const FLUSHVP_NOT_DONE: u64 = 0x8000_0824_0000_0000;
    pub(crate) const INVALID_TDMR: u64 = 0xC000_0A00_0000_0000;
    pub(crate) const NON_ORDERED_TDMR: u64 = 0xC000_0A01_0000_0000;
    pub(crate) const TDMR_ALREADY_INITIALIZED: u64 = 0x0000_0A03_0000_0000;
    pub(crate) const INVALID_PAMT: u64 = 0xC000_0A10_0000_0000;
    pub(crate) const PAMT_OVERLAP: u64 = 0xC000_0A12_0000_0000;
    pub(crate) const INVALID_RESERVED_IN_TDMR: u64 = 0xC000_0A13_0000_0000;
    pub(crate) const EPT_WALK_FAILED: u64 = 0xC000_0B00_0000_0000;
    pub(crate) const EPT_ENTRY_NOT_PRESENT: u64 = 0xC000_0B03_0000_0000;
    pub(crate) const GPA_RANGE_NOT_BLOCKED: u64 = 0xC000_0B06_0000_0000;
    pub(crate) const GPA_RANGE_ALREADY_BLOCKED: u64 = 0x0000_0B07_0000_0000;
    pub(crate) const TLB_TRACKING_NOT_DONE: u64 = 0xC000_0B08_0000_0000;
    pub(crate) const EPT_INVALID_PROMOTE_CONDITIONS: u64 = 0xC000_0B09_0000_0000;
    pub(crate) const PAGE_ALREADY_ACCEPTED: u64 = 0x0000_0B0A_0000_0000;
    pub(crate) const PAGE_SIZE_MISMATCH: u64 = 0xC000_0B0B_0000_0000;
    pub(crate) const EPT_ENTRY_STATE_INCORRECT: u64 = 0xC000_0B0D_0000_0000;
    pub(crate) const EPT_PAGE_NOT_FREE: u64 = 0xC000_0B0E_0000_0000;
    pub(crate) const METADATA_FIELD_ID_INCORRECT: u64 = 0xC000_0C00_0000_0000;
    pub(crate) const METADATA_FIELD_NOT_WRITABLE: u64 = 0xC000_0C01_0000_0000;
    pub(crate) const METADATA_FIELD_NOT_READABLE: u64 = 0xC000_0C02_0000_0000;
    pub(crate) const METADATA_FIELD_VALUE_NOT_VALID: u64 = 0xC000_0C03_0000_0000;

    /// Bits that tell the class apart from the operand.
    pub(crate) const CLASS: u64 = 0xFFFF_FFFF_0000_0000;
}

pub(crate) mod op {
    pub(crate) const RAX: u64 = 0;
    pub(crate) const RCX: u64 = 1;
    pub(crate) const RDX: u64 = 2;
    pub(crate) const R8: u64 = 8;
    pub(crate) const R9: u64 = 9;
    pub(crate) const R10: u64 = 10;
    pub(crate) const R12: u64 = 12;
    pub(crate) const R13: u64 = 13;
    pub(crate) const ATTRIBUTES: u64 = 64;
    pub(crate) const XFAM: u64 = 65;
    pub(crate) const EXEC_CONTROLS: u64 = 66;
    pub(crate) const EPTP_CONTROLS: u64 = 67;
    pub(crate) const MAX_VCPUS: u64 = 68;
    pub(crate) const CPUID_CONFIG: u64 = 69;
    pub(crate) const TSC_FREQUENCY: u64 = 70;
    pub(crate) const NUM_L2_VMS: u64 = 71;
    pub(crate) const ARCH_CAPABILITIES: u64 = 72;
    pub(crate) const TDMR_INFO_PA: u64 = 96;
    pub(crate) const TDR: u64 = 128;
    pub(crate) const TDVPR: u64 = 130;
    pub(crate) const SEPT_TREE: u64 = 146;
    pub(crate) const RTMR: u64 = 168;
    pub(crate) const TD_EPOCH: u64 = 169;
    pub(crate) const OP_STATE: u64 = 172;
    pub(crate) const TDMR: u64 = 185;
    pub(crate) const KOT: u64 = 186;
    pub(crate) const KET: u64 = 187;
    pub(crate) const WBCACHE: u64 = 188;
}

/// Host leaves, by number, with the name that statistics use.
macro_rules! leaves {
    ($($num:literal $name:ident $text:literal)*) => {
        pub(crate) mod leaf { $(pub(crate) const $name: u16 = $num;)* }
        /// Numbers and names of the known host leaves.
        pub const LEAF_NAMES: &[(u16, &str)] = &[$(($num, $text)),*];
    };
}
leaves! {
    0 VP_ENTER "tdh_vp_enter"
    1 MNG_ADDCX "tdh_mng_addcx"
    2 MEM_PAGE_ADD "tdh_mem_page_add"
    3 MEM_SEPT_ADD "tdh_mem_sept_add"
    4 VP_ADDCX "tdh_vp_addcx"
    5 MEM_PAGE_RELOCATE "tdh_mem_page_relocate"
    6 MEM_PAGE_AUG "tdh_mem_page_aug"
    7 MEM_RANGE_BLOCK "tdh_mem_range_block"
    8 MNG_KEY_CONFIG "tdh_mng_key_config"
    9 MNG_CREATE "tdh_mng_create"
    10 VP_CREATE "tdh_vp_create"
    11 MNG_RD "tdh_mng_rd"
    13 MNG_WR "tdh_mng_wr"
    15 MEM_PAGE_DEMOTE "tdh_mem_page_demote"
    16 MR_EXTEND "tdh_mr_extend"
    17 MR_FINALIZE "tdh_mr_finalize"
    18 VP_FLUSH "tdh_vp_flush"
    19 MNG_VPFLUSHDONE "tdh_mng_vpflushdone"
    20 MNG_KEY_FREEID "tdh_mng_key_freeid"
    21 MNG_INIT "tdh_mng_init"
    22 VP_INIT "tdh_vp_init"
    23 MEM_PAGE_PROMOTE "tdh_mem_page_promote"
    24 PHYMEM_PAGE_RDMD "tdh_phymem_page_rdmd"
    25 MEM_SEPT_RD "tdh_mem_sept_rd"
    26 VP_RD "tdh_vp_rd"
    27 MNG_KEY_RECLAIMID "tdh_mng_key_reclaimid"
    28 PHYMEM_PAGE_RECLAIM "tdh_phymem_page_reclaim"
    29 MEM_PAGE_REMOVE "tdh_mem_page_remove"
    30 MEM_SEPT_REMOVE "tdh_mem_sept_remove"
    31 SYS_KEY_CONFIG "tdh_sys_key_config"
    33 SYS_INIT "tdh_sys_init"
    34 SYS_RD "tdh_sys_rd"
    35 SYS_LP_INIT "tdh_sys_lp_init"
    36 SYS_TDMR_INIT "tdh_sys_tdmr_init"
    38 MEM_TRACK "tdh_mem_track"
    39 MEM_RANGE_UNBLOCK "tdh_mem_range_unblock"
    40 PHYMEM_CACHE_WB "tdh_phymem_cache_wb"
    41 PHYMEM_PAGE_WBINVD "tdh_phymem_page_wbinvd"
    43 VP_WR "tdh_vp_wr"
    44 SYS_LP_SHUTDOWN "tdh_sys_lp_shutdown"
    45 SYS_CONFIG "tdh_sys_config"
    52 SYS_SHUTDOWN "tdh_sys_shutdown"
    53 SYS_UPDATE "tdh_sys_update"
    58 PHYMEM_PAMT_ADD "tdh_phymem_pamt_add"
    59 PHYMEM_PAMT_REMOVE "tdh_phymem_pamt_remove"
    69 SYS_DISABLE "tdh_sys_disable"
}

/// Added to the number of a guest leaf where host leaves are named as well.
pub(crate) const GUEST: u16 = 0x8000;

/// Guest leaves (TDCALL).
macro_rules! guest_leaves {
    ($($num:literal $name:ident $text:literal)*) => {
        pub(crate) mod guest_leaf { $(pub(crate) const $name: u64 = $num;)* }
        pub(crate) const GUEST_LEAF_NAMES: &[(u16, &str)] = &[$((GUEST | $num, $text)),*];
    };
}
guest_leaves! {
    0 VP_VMCALL "tdg_vp_vmcall"
    1 VP_INFO "tdg_vp_info"
    2 MR_RTMR_EXTEND "tdg_mr_rtmr_extend"
    3 VP_VEINFO_GET "tdg_vp_veinfo_get"
    4 MR_REPORT "tdg_mr_report"
    5 VP_CPUIDVE_SET "tdg_vp_cpuidve_set"
    6 MEM_PAGE_ACCEPT "tdg_mem_page_accept"
    7 VM_RD "tdg_vm_rd"
    8 VM_WR "tdg_vm_wr"
    11 SYS_RD "tdg_sys_rd"
}

/// Operation states of a TD, as bit numbers of the masks below.
pub(crate) mod op_state {
    pub(crate) const UNINITIALIZED: u64 = 0;
    pub(crate) const INITIALIZED: u64 = 1;
    pub(crate) const RUNNABLE: u64 = 2;
    pub(crate) const LIVE_EXPORT: u64 = 3;
    pub(crate) const LIVE_IMPORT: u64 = 9;

    /// Allowed states by leaf.
    pub(crate) const SEPT_ADD: u64 = 0b011_1100_1110;
    pub(crate) const SEPT_ANY: u64 = 0b111_1111_1110;
    pub(crate) const BUILD: u64 = 1 << INITIALIZED;
    pub(crate) const AUG: u64 = 0b010_0000_1110;
    pub(crate) const REMOVE: u64 = 0b111_0011_1110;
    pub(crate) const CHANGE: u64 = 0b011_0011_1110;
    pub(crate) const TRACK: u64 = 0b011_1111_1110;
    pub(crate) const VP_CREATE: u64 = (1 << 1) | (1 << 7);
    pub(crate) const VP_ENTER: u64 = (1 << 2) | (1 << 3) | (1 << 9);
}

/// Lifecycle states of a TD (TDR).
pub(crate) mod lc {
    pub(crate) const HKID_ASSIGNED: u64 = 0;
    pub(crate) const KEYS_CONFIGURED: u64 = 1;
    pub(crate) const BLOCKED: u64 = 2;
    pub(crate) const TEARDOWN: u64 = 3;
}

/// VMX basic exit reasons that the core names.
pub(crate) mod exit {
    pub(crate) const EXCEPTION_NMI: u64 = 0;
    pub(crate) const EXTERNAL_INTERRUPT: u64 = 1;
    pub(crate) const TRIPLE_FAULT: u64 = 2;
    pub(crate) const OTHER_SMI: u64 = 6;
    pub(crate) const CPUID: u32 = 10;
    pub(crate) const RDMSR: u32 = 31;
    pub(crate) const WRMSR: u32 = 32;
    pub(crate) const EPT_VIOLATION: u64 = 48;
    pub(crate) const EPT_MISCONFIG: u64 = 49;
    pub(crate) const XSETBV: u32 = 55;
    pub(crate) const TDCALL: u64 = 77;
}
