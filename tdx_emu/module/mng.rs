// SPDX-License-Identifier: GPL-2.0

//! TDH.MNG.*: keys, TDCS pages and configuration of a TD.

#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::lock::{Mode, ShareX};
use super::machine::{kot, Machine};
use super::mem::Page;
use super::metadata as md;
use super::numbers::{lc, leaf, op, op_state, st, Res};
use super::observer::Observer;
use super::pamt::pt;
use super::platform::{Platform, Regs};
use super::td::{tdcs_word, Tdcs, Tdr, MAX_TDCX, MIN_TDCX, TDCX_MSR_BITMAP, TDCX_SEPT_ROOT};
use super::td_field::{HP_LOCK_TIMEOUT, HP_LOCK_TIMEOUTS_US, HP_LOCK_TIMEOUT_US};
use super::tree::FREE;

/// TD_PARAMS as far as it counts.
struct TdParams {
    attributes: u64,
    xfam: u64,
    max_vcpus: u64,
    num_l2_vms: u64,
    /// Reserved bits, which must be 0, and the request for a configured
    /// IA32_ARCH_CAPABILITIES.
    reserved: u64,
    msr_config: u64,
    eptp_controls: u64,
    config_flags: u64,
    tsc_frequency: u64,
    /// MRCONFIGID, MROWNER, MROWNERCONFIG.
    owner: [u64; 18],
    cpuid: [[u32; 4]; md::CPUID_CONFIG.len()],
}

/// CONFIG_FLAGS that exist: GPAW, FLEXIBLE_PENDING_VE, NO_RBP_MOD.
const CONFIG_FLAGS: u64 = 7;
const GPAW: u64 = 1;

impl TdParams {
    fn read(page: &Page<'_>, first: usize) -> TdParams {
        let at = |i: usize| page.get(first.wrapping_add(i));
        TdParams {
            attributes: at(0),
            xfam: at(1),
            max_vcpus: at(2) & 0xFFFF,
            num_l2_vms: (at(2) >> 16) & 0xFF,
            msr_config: (at(2) >> 24) & 0xFF,
            reserved: (at(2) >> 32) | (at(5) >> 16) | at(6) | at(7) | at(8) | at(9),
            eptp_controls: at(3),
            config_flags: at(4),
            tsc_frequency: at(5) & 0xFFFF,
            owner: core::array::from_fn(|i| at(i.wrapping_add(10))),
            cpuid: core::array::from_fn(|i| {
                let (lo, hi) = (at(i.wrapping_mul(2) + 32), at(i.wrapping_mul(2) + 33));
                [lo as u32, (lo >> 32) as u32, hi as u32, (hi >> 32) as u32]
            }),
        }
    }

    /// Level of the root table: 3 or 4.
    fn root_level(&self) -> u64 {
        (self.eptp_controls >> 3) & 7
    }

    /// Operand id of the first field that is wrong.
    fn check(&self) -> Result<(), u64> {
        let ok = |good: bool, operand: u64| if good { Ok(()) } else { Err(operand) };
        let fixed = |v: u64, f0: u64, f1: u64| v & !f0 == 0 && f1 & !v == 0;
        ok(
            fixed(
                self.attributes,
                md::ATTRIBUTES_FIXED0,
                md::ATTRIBUTES_FIXED1,
            ),
            op::ATTRIBUTES,
        )?;
        ok(fixed(self.xfam, md::XFAM_FIXED0, md::XFAM_FIXED1), op::XFAM)?;
        ok(self.reserved == 0, op::RDX)?;
        ok((1..=md::MAX_VCPUS).contains(&self.max_vcpus), op::MAX_VCPUS)?;
        ok(self.num_l2_vms == 0, op::NUM_L2_VMS)?;
        ok(self.msr_config == 0, op::ARCH_CAPABILITIES)?;
        ok(self.config_flags & !CONFIG_FLAGS == 0, op::EXEC_CONTROLS)?;
        let level = self.root_level();
        let wide = self.config_flags & GPAW != 0;
        let eptp = self.eptp_controls & !0x38 == 6 && (level == 4 || level == 3 && !wide);
        ok(eptp, op::EPTP_CONTROLS)?;
        ok((4..=400).contains(&self.tsc_frequency), op::TSC_FREQUENCY)?;
        let configurable = self
            .cpuid
            .iter()
            .zip(&md::CPUID_CONFIG)
            .all(|(v, (_, _, mask))| v.iter().zip(mask).all(|(v, m)| v & !m == 0));
        ok(configurable, op::CPUID_CONFIG)
    }

    /// Makes the TD what it says.
    fn store(&self, tdcs: &Tdcs<'_>, tsc: u64) {
        use tdcs_word as w;
        for (word, v) in [
            (w::ATTRIBUTES, self.attributes),
            (w::XFAM, self.xfam),
            (w::MAX_VCPUS, self.max_vcpus),
            (w::ROOT_LEVEL, self.root_level()),
            (w::CONFIG_FLAGS, self.config_flags),
            (w::TSC_FREQUENCY, self.tsc_frequency),
            (w::TSC_OFFSET, 0u64.wrapping_sub(tsc)),
            (w::TD_CTLS, Tdcs::initial_td_ctls(self.attributes)),
            (w::HP_LOCK_TIMEOUT, HP_LOCK_TIMEOUT_US),
            (w::EPOCH, 1),
            (w::REFCOUNT, 0),
            (w::REFCOUNT + 1, 0),
        ] {
            tdcs.set(word, v);
        }
        for (i, v) in self.owner.into_iter().enumerate() {
            tdcs.set(w::OWNER.wrapping_add(i), v);
        }
        let mut word = w::CPUID;
        for [a, b, c, d] in self.cpuid {
            tdcs.set(word, (u64::from(b) << 32) | u64::from(a));
            tdcs.set(word.wrapping_add(1), (u64::from(d) << 32) | u64::from(c));
            word = word.wrapping_add(2);
        }
        tdcs.start_measurement();
    }
}

impl<P: Platform, O: Observer> Machine<P, O> {
    pub(crate) fn lock_kot(&self, mode: Mode) -> Res<ShareX<'_>> {
        ShareX::try_lock(&self.sys.kot_lock, mode).map_err(|_| st::OPERAND_BUSY | op::KOT)
    }

    fn all_packages(&self) -> u64 {
        (1 << (self.p.config().packages & 31)) - 1
    }

    /// TDH.MNG.CREATE. RCX: page for the TDR, RDX: HKID.
    #[inline(never)]
    pub(crate) fn mng_create(&self, r: &Regs) -> Res<()> {
        let c = self.p.config();
        let hkids = u64::from(c.private_hkid_min)..=u64::from(c.private_hkid_max);
        if !hkids.contains(&r.rdx) {
            return Err(st::OPERAND_INVALID | op::RDX);
        }
        let page = self.lock_explicit(r.rcx, 0, pt::NDA, Mode::Exclusive, op::RCX)?;
        let tdr = Page::at(&self.p, r.rcx).ok_or(st::OPERAND_ADDR_RANGE_ERROR | op::RCX)?;
        let _kot = self.lock_kot(Mode::Exclusive)?;
        let key = self
            .sys
            .kot
            .get(r.rdx as usize)
            .ok_or(st::OPERAND_INVALID | op::RDX)?;
        if key.load(Ordering::Relaxed) != kot::FREE {
            return Err(st::HKID_NOT_FREE);
        }
        self.p.random().ok_or(st::RND_NO_ENTROPY)?;

        self.before_commit(leaf::MNG_CREATE, r.rcx);
        Tdr::create(tdr, r.rdx);
        key.store(kot::ASSIGNED, Ordering::Relaxed);
        page.assign(pt::TDR, 0);
        self.owner_changed(r.rcx, 1, true);
        Ok(())
    }

    /// TDH.MNG.KEY.CONFIG on each package. RCX: TDR.
    #[inline(never)]
    pub(crate) fn mng_key_config(&self, lp: u32, r: &Regs) -> Res<()> {
        let tdr = self.lock_tdr(r.rcx, op::RCX, Mode::Exclusive)?;
        if tdr.is_fatal() {
            return Err(st::TD_FATAL);
        }
        if tdr.lifecycle() != lc::HKID_ASSIGNED {
            return Err(st::LIFECYCLE_STATE_INCORRECT);
        }
        let bit = 1u64 << (self.p.package_of(lp) & 63);
        let done = tdr.key_packages().load(Ordering::Relaxed);
        if done & bit != 0 {
            return Err(st::KEY_CONFIGURED);
        }
        // PCONFIG: one at a time, with a key of the CPU's own making.
        let _ket = ShareX::try_lock(&self.sys.ket_lock, Mode::Exclusive)
            .map_err(|_| st::OPERAND_BUSY | op::KET)?;
        self.p.random().ok_or(st::KEY_GENERATION_FAILED)?;

        self.before_commit(leaf::MNG_KEY_CONFIG, tdr.pa);
        tdr.key_packages().store(done | bit, Ordering::Relaxed);
        if (done | bit).count_ones() >= self.p.config().packages {
            tdr.set_lifecycle(lc::KEYS_CONFIGURED);
        }
        Ok(())
    }

    /// TDH.MNG.ADDCX. RCX: page for the TDCS, RDX: TDR.
    #[inline(never)]
    pub(crate) fn mng_addcx(&self, r: &Regs) -> Res<()> {
        let tdr = self.lock_tdr(r.rdx, op::RDX, Mode::Exclusive)?;
        if tdr.is_fatal() {
            return Err(st::TD_FATAL);
        }
        if tdr.lifecycle() != lc::KEYS_CONFIGURED {
            return Err(st::TD_KEYS_NOT_CONFIGURED);
        }
        let index = tdr.num_tdcx();
        if index >= MAX_TDCX {
            return Err(st::TDCX_NUM_INCORRECT);
        }
        let lock = self.lock_explicit(r.rcx, 0, pt::NDA, Mode::Exclusive, op::RCX)?;
        let page = Page::at(&self.p, r.rcx).ok_or(st::OPERAND_ADDR_RANGE_ERROR | op::RCX)?;
        if let Some(tdcs) = self.tdcs_of(&tdr) {
            tdcs.check_op_state(1 << op_state::UNINITIALIZED)?;
        } else if index.wrapping_add(1) == MIN_TDCX {
            // The last page of a TDCS brings the TD's key for migration.
            self.p.random().ok_or(st::RND_NO_ENTROPY)?;
        }

        self.before_commit(leaf::MNG_ADDCX, tdr.pa);
        page.fill(match index {
            TDCX_MSR_BITMAP => u64::MAX,
            TDCX_SEPT_ROOT => FREE,
            _ => 0,
        });
        lock.assign(pt::TDCX, tdr.pa);
        self.owner_changed(r.rcx, 1, true);
        tdr.add_tdcx(r.rcx);
        tdr.add_children(1);
        Ok(())
    }

    /// TDH.MNG.INIT. RCX: TDR, RDX: TD_PARAMS; out RCX: 0.
    #[inline(never)]
    pub(crate) fn mng_init(&self, r: &mut Regs) -> Res<()> {
        let rcx = core::mem::take(&mut r.rcx);
        let tdr = self.lock_tdr(rcx, op::RCX, Mode::Exclusive)?;
        let tdcs = self.check_built(&tdr)?;
        tdcs.check_op_state(1 << op_state::UNINITIALIZED)?;
        let page = self.shared_page(r.rdx, 1023, op::RDX)?;
        let params = TdParams::read(&page, (r.rdx & 0xFFF) as usize / 8);
        params
            .check()
            .map_err(|operand| st::OPERAND_INVALID | operand)?;

        self.before_commit(leaf::MNG_INIT, tdr.pa);
        params.store(&tdcs, self.p.tsc());
        self.begin_context(&tdcs);
        tdcs.set_op_state(op_state::INITIALIZED);
        Ok(())
    }

    /// TDH.MNG.RD. RCX: TDR, RDX: field; out R8: value.
    #[inline(never)]
    pub(crate) fn mng_rd(&self, r: &mut Regs) -> Res<()> {
        let tdr = self.lock_tdr(r.rcx, op::RCX, Mode::Shared)?;
        let tdcs = self.check_built(&tdr)?;
        let value = self.td_field(&tdcs, r.rdx);
        r.r8 = 0;
        r.r8 = value.ok_or(st::METADATA_FIELD_NOT_READABLE | op::RDX)?;
        Ok(())
    }

    /// TDH.MNG.WR. RCX: TDR, RDX: field, R8: value, R9: mask; out R8: old value. Of a TD that
    /// is no debug TD the host may write the time that a guest yields to it at most.
    #[inline(never)]
    pub(crate) fn mng_wr(&self, r: &mut Regs) -> Res<()> {
        let tdr = self.lock_tdr(r.rcx, op::RCX, Mode::Shared)?;
        let tdcs = self.check_built(&tdr)?;
        let _op_state = tdcs.lock_op_state(Mode::Shared)?;
        if md::field(r.rdx) != HP_LOCK_TIMEOUT {
            return Err(st::METADATA_FIELD_NOT_WRITABLE | op::RDX);
        }
        let old = tdcs.get(tdcs_word::HP_LOCK_TIMEOUT);
        let new = old & !r.r9 | r.r8 & r.r9;
        if !HP_LOCK_TIMEOUTS_US.contains(&new) {
            return Err(st::METADATA_FIELD_VALUE_NOT_VALID | op::RDX);
        }

        tdcs.set(tdcs_word::HP_LOCK_TIMEOUT, new);
        r.r8 = old;
        Ok(())
    }

    /// TDH.MNG.VPFLUSHDONE. RCX: TDR.
    #[inline(never)]
    pub(crate) fn mng_vpflushdone(&self, r: &Regs) -> Res<()> {
        let tdr = self.lock_tdr(r.rcx, op::RCX, Mode::Exclusive)?;
        let _kot = self.lock_kot(Mode::Exclusive)?;
        if !matches!(tdr.lifecycle(), lc::HKID_ASSIGNED | lc::KEYS_CONFIGURED) {
            return Err(st::LIFECYCLE_STATE_INCORRECT);
        }
        if let Some(tdcs) = self.tdcs_of(&tdr) {
            let running = tdcs.word(tdcs_word::NUM_ASSOC).load(Ordering::Relaxed) != 0;
            if tdcs.op_state() != op_state::UNINITIALIZED && running {
                return Err(st::FLUSHVP_NOT_DONE);
            }
        }
        let key = tdr.hkid();
        let (Some(k), Some(wb)) = (self.sys.kot.get(key), self.sys.wb_pending.get(key)) else {
            return Err(self.fatal());
        };

        self.before_commit(leaf::MNG_VPFLUSHDONE, tdr.pa);
        if let Some(tdcs) = self.tdcs_of(&tdr) {
            self.end_context(&tdcs);
        }
        tdr.set_lifecycle(lc::BLOCKED);
        k.store(kot::FLUSHED, Ordering::Relaxed);
        wb.store(self.all_packages(), Ordering::Relaxed);
        Ok(())
    }

    /// TDH.MNG.KEY.FREEID. RCX: TDR.
    #[inline(never)]
    pub(crate) fn mng_key_freeid(&self, r: &Regs) -> Res<()> {
        let tdr = self.lock_tdr(r.rcx, op::RCX, Mode::Exclusive)?;
        if tdr.lifecycle() != lc::BLOCKED {
            return Err(st::LIFECYCLE_STATE_INCORRECT);
        }
        let _kot = self.lock_kot(Mode::Exclusive)?;
        let key = tdr.hkid();
        let (Some(k), Some(wb)) = (self.sys.kot.get(key), self.sys.wb_pending.get(key)) else {
            return Err(self.fatal());
        };
        if wb.load(Ordering::Relaxed) != 0 {
            return Err(st::WBCACHE_NOT_COMPLETE);
        }

        self.before_commit(leaf::MNG_KEY_FREEID, tdr.pa);
        k.store(kot::FREE, Ordering::Relaxed);
        tdr.set_lifecycle(lc::TEARDOWN);
        Ok(())
    }
}

const _: () = assert!(MIN_TDCX > TDCX_SEPT_ROOT && MAX_TDCX > MIN_TDCX);
