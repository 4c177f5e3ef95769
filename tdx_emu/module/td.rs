// SPDX-License-Identifier: GPL-2.0

//! TDR and TDCS: state of a TD, and the checks that its leaves begin with.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::lock::{Mode, ShareX, ShareXHp, TreeLock};
use super::machine::Machine;
use super::mem::Page;
use super::numbers::{lc, op, op_state, st, Res};
use super::observer::Observer;
use super::pamt::{pt, PamtEntry, PamtLock};
use super::platform::{Platform, Regs};
use super::tree::{details, EntryLock, EntryRef, Format, Root, State, Walk, HPA, XU};
use super::version::Rules;

/// Pages of a TDCS: the least that make a TD, and the most.
pub(crate) const MIN_TDCX: u64 = 6;
pub(crate) const MAX_TDCX: u64 = 9;
/// TDCS page that TDs start with all ones: the MSR bitmaps.
pub(crate) const TDCX_MSR_BITMAP: u64 = 2;
/// TDCS page that is the root of the S-EPT.
pub(crate) const TDCX_SEPT_ROOT: u64 = 3;

/// ATTRIBUTES.SEPT_VE_DISABLE.
const SEPT_VE_DISABLE: u64 = 1 << 28;
/// Bits of TD_CTLS.
pub(crate) const PENDING_VE_DISABLE: u64 = 1;
pub(crate) const ENUM_TOPOLOGY: u64 = 2;

/// Words of the TDR page.
pub(crate) mod tdr_word {
    pub(crate) const LIFECYCLE: usize = 0;
    pub(crate) const FATAL: usize = 1;
    pub(crate) const CHLDCNT: usize = 2;
    pub(crate) const NUM_TDCX: usize = 3;
    pub(crate) const HKID: usize = 4;
    pub(crate) const KEY_PACKAGES: usize = 5;
    pub(crate) const TDCX: usize = 8;
}

/// Words of TDCS page 0.
pub(crate) mod tdcs_word {
    pub(crate) const OP_STATE: usize = 0;
    pub(crate) const OP_STATE_LOCK: usize = 1;
    pub(crate) const SEPT_LOCK: usize = 2;
    pub(crate) const EPOCH_LOCK: usize = 3;
    pub(crate) const EPOCH: usize = 4;
    /// Reference counts of the even and the odd epochs.
    pub(crate) const REFCOUNT: usize = 5;
    pub(crate) const NUM_VCPUS: usize = 7;
    pub(crate) const NUM_ASSOC: usize = 8;
    pub(crate) const ATTRIBUTES: usize = 9;
    pub(crate) const XFAM: usize = 10;
    pub(crate) const MAX_VCPUS: usize = 11;
    pub(crate) const ROOT_LEVEL: usize = 12;
    pub(crate) const CONFIG_FLAGS: usize = 13;
    pub(crate) const TSC_FREQUENCY: usize = 14;
    pub(crate) const TSC_OFFSET: usize = 15;
    pub(crate) const TD_CTLS: usize = 16;
    pub(crate) const NOTIFY_ENABLES: usize = 17;
    /// Microseconds.
    pub(crate) const HP_LOCK_TIMEOUT: usize = 18;
    /// SHA-384 chaining value and number of bytes hashed.
    pub(crate) const SHA: usize = 20;
    pub(crate) const SHA_LEN: usize = 28;
    pub(crate) const MRTD: usize = 30;
    /// MRCONFIGID, MROWNER and MROWNERCONFIG, 18 words.
    pub(crate) const OWNER: usize = 40;
    /// Two words for each entry of the CPUID configuration list.
    pub(crate) const CPUID: usize = 64;
    /// vCPUs whose x2APIC identifier the host chose.
    pub(crate) const IDENTIFIED: usize = 93;
    pub(crate) const RTMR_LOCK: usize = 94;
    /// RTMR0 to RTMR3, six words each.
    pub(crate) const RTMR: usize = 96;
    /// MRTD context that the TD began with, and whether it counts as one that is being built.
    pub(crate) const MRTD_CONTEXT: usize = 120;
    pub(crate) const COUNTED: usize = 121;
    /// x2APIC identifiers of the vCPUs, two in a word.
    pub(crate) const X2APIC_IDS: usize = 128;
}

/// A TD whose TDR is locked.
pub(crate) struct Tdr<'m> {
    pub(crate) pa: u64,
    page: Page<'m>,
    _lock: PamtLock<'m>,
}

impl<'m> Tdr<'m> {
    pub(crate) fn lifecycle(&self) -> u64 {
        self.page.get(tdr_word::LIFECYCLE)
    }

    pub(crate) fn set_lifecycle(&self, v: u64) {
        self.page.set(tdr_word::LIFECYCLE, v);
    }

    pub(crate) fn is_fatal(&self) -> bool {
        self.page.get(tdr_word::FATAL) != 0
    }

    pub(crate) fn hkid(&self) -> usize {
        self.page.get(tdr_word::HKID) as usize
    }

    /// CHLDCNT is changed under a shared lock, hence atomically.
    pub(crate) fn children(&self) -> &'m AtomicU64 {
        self.page.word(tdr_word::CHLDCNT)
    }

    pub(crate) fn add_children(&self, n: u64) {
        self.children().fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn sub_children(&self, n: u64) {
        self.children().fetch_sub(n, Ordering::Relaxed);
    }

    pub(crate) fn key_packages(&self) -> &'m AtomicU64 {
        self.page.word(tdr_word::KEY_PACKAGES)
    }

    pub(crate) fn num_tdcx(&self) -> u64 {
        self.page.get(tdr_word::NUM_TDCX)
    }

    pub(crate) fn add_tdcx(&self, pa: u64) {
        let n = self.num_tdcx();
        self.page.set(tdr_word::TDCX.wrapping_add(n as usize), pa);
        self.page.set(tdr_word::NUM_TDCX, n.wrapping_add(1));
    }

    pub(crate) fn tdcx(&self, i: u64) -> u64 {
        self.page.get(tdr_word::TDCX.wrapping_add(i as usize))
    }

    /// Lifecycle state in a TDR page whose own PAMT entry is locked already.
    pub(crate) fn lifecycle_in(page: &Page<'_>) -> u64 {
        page.get(tdr_word::LIFECYCLE)
    }

    /// CHLDCNT likewise.
    pub(crate) fn children_in(page: &Page<'m>) -> &'m AtomicU64 {
        page.word(tdr_word::CHLDCNT)
    }

    /// Fresh TDR.
    pub(crate) fn create(page: Page<'m>, hkid: u64) {
        page.fill(0);
        page.set(tdr_word::HKID, hkid);
    }
}

/// The control structure of a TD, valid while its TDR is locked.
#[derive(Clone, Copy)]
pub(crate) struct Tdcs<'m> {
    page: Page<'m>,
    root_pa: u64,
    pub(crate) msr_bitmap: u64,
    pub(crate) format: Format,
    pub(crate) rules: &'static Rules,
}

impl<'m> Tdcs<'m> {
    pub(crate) fn get(&self, w: usize) -> u64 {
        self.page.get(w)
    }

    pub(crate) fn set(&self, w: usize, v: u64) {
        self.page.set(w, v);
    }

    pub(crate) fn word(&self, w: usize) -> &'m AtomicU64 {
        self.page.word(w)
    }

    pub(crate) fn op_state(&self) -> u64 {
        self.word(tdcs_word::OP_STATE).load(Ordering::Acquire)
    }

    pub(crate) fn set_op_state(&self, s: u64) {
        self.word(tdcs_word::OP_STATE).store(s, Ordering::Release);
    }

    pub(crate) fn root(&self) -> Root {
        Root {
            pa: self.root_pa,
            level: self.get(tdcs_word::ROOT_LEVEL) as u8,
            format: self.format,
        }
    }

    /// Bit of a GPA that makes it shared.
    pub(crate) fn shared_bit(&self) -> u32 {
        if self.get(tdcs_word::CONFIG_FLAGS) & 1 != 0 {
            51
        } else {
            47
        }
    }

    /// Whether `gpa` is a possible private address.
    pub(crate) fn is_private(&self, gpa: u64) -> bool {
        gpa >> self.shared_bit() == 0
    }

    /// A private page that is pending makes the guest exit instead of taking #VE.
    pub(crate) fn pending_ve_disabled(&self) -> bool {
        self.get(tdcs_word::TD_CTLS) & PENDING_VE_DISABLE != 0
    }

    /// The host named the x2APIC identifiers of all vCPUs, so that they can be shown.
    pub(crate) fn topology_configured(&self) -> bool {
        let vcpus = self.get(tdcs_word::NUM_VCPUS);
        vcpus != 0 && self.get(tdcs_word::IDENTIFIED) == vcpus
    }

    /// The guest reads its topology in CPUID instead of taking #VE.
    pub(crate) fn topology_enumerated(&self) -> bool {
        self.get(tdcs_word::TD_CTLS) & ENUM_TOPOLOGY != 0
    }

    /// TD_CTLS as ATTRIBUTES define it at first.
    pub(crate) fn initial_td_ctls(attributes: u64) -> u64 {
        u64::from(attributes & SEPT_VE_DISABLE != 0) * PENDING_VE_DISABLE
    }

    pub(crate) fn lock_op_state(&self, mode: Mode) -> Res<ShareXHp<'m>> {
        ShareXHp::try_lock(self.word(tdcs_word::OP_STATE_LOCK), mode)
            .map_err(|_| st::OPERAND_BUSY | op::OP_STATE)
    }

    pub(crate) fn lock_tree(&self, mode: Mode) -> Res<TreeLock<'m>> {
        let priority = self.rules.tree.priority;
        TreeLock::try_lock(self.word(tdcs_word::SEPT_LOCK), mode, priority)
            .map_err(|_| st::OPERAND_BUSY | op::SEPT_TREE)
    }

    pub(crate) fn lock_epoch(&self, mode: Mode) -> Res<ShareX<'m>> {
        ShareX::try_lock(self.word(tdcs_word::EPOCH_LOCK), mode)
            .map_err(|_| st::OPERAND_BUSY | op::TD_EPOCH)
    }

    /// Fails unless the bit of the operation state is in `allowed`.
    pub(crate) fn check_op_state(&self, allowed: u64) -> Res<()> {
        let state = self.op_state();
        if (1u64 << (state & 63)) & allowed == 0 {
            let detail = if self.rules.details.op_state {
                state
            } else {
                0
            };
            return Err(st::OP_STATE_INCORRECT | detail);
        }
        Ok(())
    }

    /// Whether a page must be blocked and its translations shot down before a change.
    pub(crate) fn tracking_required(&self) -> bool {
        matches!(
            self.op_state(),
            op_state::RUNNABLE | op_state::LIVE_EXPORT | op_state::LIVE_IMPORT
        )
    }
}

impl<P: Platform, O: Observer> Machine<P, O> {
    /// Locks a TDR that the host names.
    pub(crate) fn lock_tdr(&self, pa: u64, op: u64, mode: Mode) -> Res<Tdr<'_>> {
        let lock = self.lock_explicit(pa, 0, pt::TDR, mode, op)?;
        let page = Page::at(&self.p, pa).ok_or(st::OPERAND_ADDR_RANGE_ERROR | op)?;
        Ok(Tdr {
            pa,
            page,
            _lock: lock,
        })
    }

    /// Locks the TDR that owns a page.
    pub(crate) fn lock_owner(&self, owned: &PamtEntry<'_>, mode: Mode) -> Res<Tdr<'_>> {
        let pa = owned.owner();
        let lock = self.pamt_implicit(pa, 0, mode, op::TDR)?;
        if lock.entry.kind() != pt::TDR {
            return Err(self.fatal());
        }
        let page = Page::at(&self.p, pa).ok_or_else(|| self.fatal())?;
        Ok(Tdr {
            pa,
            page,
            _lock: lock,
        })
    }

    /// What is in the S-EPT entries of the TD with that HKID.
    pub(crate) fn format(&self, hkid: u64) -> Format {
        let entries = &self.rules().entries;
        let hkid_mask = self.entry_hkids();
        let c = self.p.config();
        let bits = hkid.wrapping_shl(c.hkid_start_bit) & hkid_mask;
        Format {
            hkid_mask,
            hkid: if entries.hkid { bits } else { 0 },
            with_access: if entries.user_execute { XU } else { 0 },
            keeps_priority: entries.keeps_priority,
        }
    }

    /// Bits of S-EPT entries that can hold a HKID. None where the CPU takes no bits of the physical
    /// address for HKIDs, or walks the entries without knowing them.
    fn entry_hkids(&self) -> u64 {
        match self.p.config().hkid_in_entries {
            true => HPA & !self.strip_hkid(HPA),
            false => 0,
        }
    }

    /// The TDCS of a TD, if there are enough pages for one.
    pub(crate) fn tdcs_of(&self, tdr: &Tdr<'_>) -> Option<Tdcs<'_>> {
        if tdr.num_tdcx() < MIN_TDCX {
            return None;
        }
        Some(Tdcs {
            page: Page::at(&self.p, tdr.tdcx(0))?,
            root_pa: tdr.tdcx(TDCX_SEPT_ROOT),
            msr_bitmap: tdr.tdcx(TDCX_MSR_BITMAP),
            format: self.format(tdr.hkid() as u64),
            rules: self.rules(),
        })
    }

    /// Checks that the TD has its keys and its TDCS.
    pub(crate) fn check_built(&self, tdr: &Tdr<'_>) -> Res<Tdcs<'_>> {
        if tdr.is_fatal() {
            return Err(st::TD_FATAL);
        }
        if tdr.lifecycle() != lc::KEYS_CONFIGURED {
            return Err(st::TD_KEYS_NOT_CONFIGURED);
        }
        self.tdcs_of(tdr).ok_or(st::TDCS_NOT_ALLOCATED)
    }

    /// Beginning of a leaf that changes the S-EPT: TDR shared, OP_STATE shared,
    /// operation state.
    pub(crate) fn begin(&self, tdr_pa: u64, op: u64, allowed: u64) -> Res<Td<'_>> {
        let tdr = self.lock_tdr(tdr_pa, op, Mode::Shared)?;
        let tdcs = self.check_built(&tdr)?;
        let op_lock = tdcs.lock_op_state(Mode::Shared)?;
        tdcs.check_op_state(allowed)?;
        Ok(Td {
            _op: Some(op_lock),
            tdcs,
            tdr,
        })
    }

    /// Beginning of a leaf of the build phase: TDR exclusive, no OP_STATE lock.
    pub(crate) fn begin_build(&self, tdr_pa: u64, op: u64) -> Res<Td<'_>> {
        let tdr = self.lock_tdr(tdr_pa, op, Mode::Exclusive)?;
        let tdcs = self.check_built(&tdr)?;
        tdcs.check_op_state(op_state::BUILD)?;
        Ok(Td {
            _op: None,
            tdcs,
            tdr,
        })
    }

    /// Walks to `at`, which must be reached; else details of where the walk ended.
    pub(crate) fn walk_to(&self, td: &Td<'_>, at: GpaLevel, r: &mut Regs) -> Res<EntryRef<'_>> {
        let w: Walk<'_> = td
            .tdcs
            .root()
            .walk(&self.p, at.gpa, at.level)
            .ok_or_else(|| self.fatal())?;
        if !w.hit {
            details(r, w.raw, w.entry.level);
            return Err(st::EPT_WALK_FAILED | op::RCX);
        }
        Ok(w.entry)
    }

    /// Locks an entry and decodes its state.
    pub(crate) fn lock_entry<'m>(
        &'m self,
        e: EntryRef<'m>,
        r: &mut Regs,
    ) -> Res<(EntryLock<'m>, State)> {
        let seen = e.load();
        let Ok(lock) = e.lock_host() else {
            details(r, seen, e.level);
            return Err(st::OPERAND_BUSY | op::RCX);
        };
        let state = State::of(lock.raw()).ok_or_else(|| self.fatal())?;
        Ok((lock, state))
    }
}

/// `status` with operand RCX and the details of `entry`.
pub(crate) fn state_error(status: u64, entry: &EntryLock<'_>, r: &mut Regs) -> u64 {
    details(r, entry.raw(), entry.place().level);
    status | op::RCX
}

/// A TD in an allowed state; fields are released in order.
pub(crate) struct Td<'m> {
    _op: Option<ShareXHp<'m>>,
    pub(crate) tdcs: Tdcs<'m>,
    pub(crate) tdr: Tdr<'m>,
}

/// The GPA and level operand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GpaLevel {
    pub(crate) gpa: u64,
    pub(crate) level: u8,
}

impl GpaLevel {
    /// Checks reserved bits, level range and alignment, in this order.
    pub(crate) fn parse(raw: u64, levels: core::ops::RangeInclusive<u8>) -> Res<GpaLevel> {
        let bad = st::OPERAND_INVALID | op::RCX;
        if raw & 0xFFF0_0000_0000_0FF8 != 0 {
            return Err(bad);
        }
        let level = (raw & 7) as u8;
        let gpa = raw & !7;
        if !levels.contains(&level) || gpa & super::tree::offset_mask(level) != 0 {
            return Err(bad);
        }
        Ok(GpaLevel { gpa, level })
    }

    /// Also checks that it is a private address of the TD.
    pub(crate) fn private(self, tdcs: &Tdcs<'_>) -> Res<GpaLevel> {
        if !tdcs.is_private(self.gpa) {
            return Err(st::OPERAND_INVALID | op::RCX);
        }
        Ok(self)
    }
}
