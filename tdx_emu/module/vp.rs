// SPDX-License-Identifier: GPL-2.0

//! TDH.VP.{CREATE, ADDCX, INIT, FLUSH, RD, WR}, and the TDVPS.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

use super::lock::{Mode, ShareXHp};
use super::machine::Machine;
use super::mem::Page;
use super::metadata::field;
use super::numbers::{lc, leaf, op, op_state, st, Res};
use super::observer::Observer;
use super::pamt::{pt, PamtLock};
use super::platform::{
    GuestRegs, Platform, Regs, Vcpu, VcpuInit, TDVPS_PAGES, TDVPS_VAPIC, TDVPS_VE_INFO,
};
use super::td::{tdcs_word, Tdcs, Tdr};

/// Words of the TDVPR page.
pub(crate) mod word {
    pub(crate) const STATE: usize = 0;
    pub(crate) const NUM_PAGES: usize = 1;
    /// Physical addresses of the TDVPS pages, the TDVPR first.
    pub(crate) const PAGES: usize = 2;
    /// Associated LP plus one, 0 if none.
    pub(crate) const ASSOC: usize = 8;
    pub(crate) const EPOCH: usize = 9;
    pub(crate) const INDEX: usize = 10;
    pub(crate) const X2APIC_ID: usize = 11;
    /// Register mask of a TDG.VP.VMCALL that waits for the host's answer, 0 if none.
    pub(crate) const VMCALL: usize = 12;
    pub(crate) const PEND_NMI: usize = 13;
    pub(crate) const SHARED_EPT: usize = 14;
    pub(crate) const PI_DESC: usize = 15;
    pub(crate) const PI_NV: usize = 16;
    pub(crate) const PIN_BASED: usize = 17;
    pub(crate) const XCR0: usize = 18;
    /// TSC at the first of a row of TDCALLs that yielded to the host, 0 if none.
    pub(crate) const HP_SINCE: usize = 19;
    /// Zero-step state: RIP at VP.ENTER, counter, list length, list.
    pub(crate) const ZS_RIP: usize = 20;
    pub(crate) const ZS_COUNT: usize = 21;
    pub(crate) const ZS_LEN: usize = 22;
    pub(crate) const SECONDARY: usize = 23;
    pub(crate) const NOTIFY_WINDOW: usize = 24;
    /// The last exit was a trap: the instruction is complete, RAX may get a hint.
    pub(crate) const TRAPPED: usize = 25;
    /// The last exit was an EPT violation of a private page: 1, its exit qualification,
    /// guest physical and linear address.
    pub(crate) const FAULTED: usize = 26;
    pub(crate) const FAULT_QUALIFICATION: usize = 27;
    pub(crate) const FAULT_GPA: usize = 28;
    pub(crate) const FAULT_GLA: usize = 29;
    /// CPUIDVE.SET: bit 0 CPL 0, bit 1 other CPLs.
    pub(crate) const CPUID_VE: usize = 30;
    pub(crate) const GPR: usize = 32;
    pub(crate) const RIP: usize = 48;
    /// MSRs that the core keeps.
    pub(crate) const XSS: usize = 49;
    pub(crate) const SPEC_CTRL: usize = 50;
    pub(crate) const DEBUGCTL: usize = 51;
    pub(crate) const ZS_LIST: usize = 64;
}

/// States of a vCPU.
pub(crate) mod vcpu_state {
    pub(crate) const UNINITIALIZED: u64 = 0;
    pub(crate) const READY: u64 = 1;
    pub(crate) const DISABLED: u64 = 2;
}

/// Set with the mask in `word::VMCALL`, which may be zero.
pub(crate) const VMCALL_PENDING: u64 = 1 << 63;

/// TDVPS pages at most: three more for each of three L2 VMs. They are taken, not used.
const MAX_TDVPS_PAGES: u64 = TDVPS_PAGES as u64 + 9;

const PENDING_NMI: u64 = 0x2000_0000_0000_000B;

/// State of a vCPU, in its TDVPR.
#[derive(Clone, Copy)]
pub(crate) struct Tdvps<'m> {
    page: Page<'m>,
}

impl<'m> Tdvps<'m> {
    pub(crate) fn get(&self, w: usize) -> u64 {
        self.page.get(w)
    }

    pub(crate) fn set(&self, w: usize, v: u64) {
        self.page.set(w, v);
    }

    pub(crate) fn word(&self, w: usize) -> &'m AtomicU64 {
        self.page.word(w)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.get(word::NUM_PAGES) >= TDVPS_PAGES as u64
    }

    /// Whether the vCPU belongs to `lp`.
    pub(crate) fn is_on(&self, lp: u32) -> bool {
        self.get(word::ASSOC) == u64::from(lp).wrapping_add(1)
    }

    pub(crate) fn page_pa(&self, i: usize) -> u64 {
        self.get(word::PAGES.wrapping_add(i))
    }

    pub(crate) fn load_regs(&self) -> GuestRegs {
        GuestRegs {
            gpr: core::array::from_fn(|i| self.get(word::GPR.wrapping_add(i))),
            rip: self.get(word::RIP),
            ..GuestRegs::default()
        }
    }

    pub(crate) fn store_regs(&self, regs: &GuestRegs) {
        for (i, v) in regs.gpr.into_iter().enumerate() {
            self.set(word::GPR.wrapping_add(i), v);
        }
        self.set(word::RIP, regs.rip);
    }

    /// The vCPU as a `GuestRun` is to see it.
    pub(crate) fn describe(&self, tdr: &Tdr<'_>, tdcs: &Tdcs<'_>, lp: u32) -> Vcpu {
        Vcpu {
            tdr: tdr.pa,
            pages: core::array::from_fn(|i| self.page_pa(i)),
            msr_bitmap: tdcs.msr_bitmap,
            sept_root: tdcs.root().pa,
            sept_levels: u32::from(tdcs.root().level).wrapping_add(1),
            shared_bit: tdcs.shared_bit(),
            shared_ept: self.get(word::SHARED_EPT),
            pi_desc: self.get(word::PI_DESC),
            pi_nv: self.get(word::PI_NV) as u16,
            pin_based: self.get(word::PIN_BASED) as u32,
            tsc_offset: tdcs.get(tdcs_word::TSC_OFFSET),
            tsc_multiplier: 1 << 48,
            attributes: tdcs.get(tdcs_word::ATTRIBUTES),
            xfam: tdcs.get(tdcs_word::XFAM),
            index: self.get(word::INDEX) as u32,
            x2apic_id: self.get(word::X2APIC_ID) as u32,
            lp,
        }
    }
}

/// A vCPU whose TDVPR and TD are locked; fields are released in order.
pub(crate) struct LockedVcpu<'m> {
    pub(crate) op_lock: Option<ShareXHp<'m>>,
    pub(crate) tdcs: Tdcs<'m>,
    pub(crate) tdr: Tdr<'m>,
    pub(crate) tdvps: Tdvps<'m>,
    pub(crate) lock: PamtLock<'m>,
}

impl<P: Platform, O: Observer> Machine<P, O> {
    /// TDVPR, its TD and the TD's OP_STATE, in this order. `allowed`: operation states,
    /// `None` for any.
    pub(crate) fn lock_vcpu(
        &self,
        pa: u64,
        operand: u64,
        mode: Mode,
        tdr_mode: Mode,
        allowed: Option<u64>,
    ) -> Res<LockedVcpu<'_>> {
        let lock = self.lock_explicit(pa, 0, pt::TDVPR, mode, operand)?;
        let page = Page::at(&self.p, pa).ok_or(st::OPERAND_ADDR_RANGE_ERROR | operand)?;
        let tdr = self.lock_owner(&lock.entry, tdr_mode)?;
        let tdcs = self.check_built(&tdr)?;
        let op_lock = tdcs.lock_op_state(Mode::Shared)?;
        if let Some(allowed) = allowed {
            tdcs.check_op_state(allowed)?;
        }
        Ok(LockedVcpu {
            op_lock: Some(op_lock),
            tdcs,
            tdr,
            tdvps: Tdvps { page },
            lock,
        })
    }

    /// TDH.VP.CREATE. RCX: page for the TDVPR, RDX: TDR.
    #[inline(never)]
    pub(crate) fn vp_create(&self, r: &Regs) -> Res<()> {
        let td = self.begin(r.rdx, op::RDX, op_state::VP_CREATE)?;
        let lock = self.lock_explicit(r.rcx, 0, pt::NDA, Mode::Exclusive, op::RCX)?;
        let page = Page::at(&self.p, r.rcx).ok_or(st::OPERAND_ADDR_RANGE_ERROR | op::RCX)?;

        self.before_commit(leaf::VP_CREATE, td.tdr.pa);
        page.fill(0);
        page.set(word::NUM_PAGES, 1);
        page.set(word::PAGES, r.rcx);
        page.set(word::XCR0, 1);
        lock.assign(pt::TDVPR, td.tdr.pa);
        self.owner_changed(r.rcx, 1, true);
        td.tdr.add_children(1);
        Ok(())
    }

    /// TDH.VP.ADDCX. RCX: page for the TDVPS, RDX: TDVPR.
    #[inline(never)]
    pub(crate) fn vp_addcx(&self, r: &Regs) -> Res<()> {
        let allowed = Some(op_state::VP_CREATE);
        let v = self.lock_vcpu(r.rdx, op::RDX, Mode::Exclusive, Mode::Shared, allowed)?;
        check_new(&v)?;
        let n = v.tdvps.get(word::NUM_PAGES);
        if n >= MAX_TDVPS_PAGES {
            return Err(st::TDCX_NUM_INCORRECT);
        }
        let lock = self.lock_explicit(r.rcx, 0, pt::NDA, Mode::Exclusive, op::RCX)?;
        let page = Page::at(&self.p, r.rcx).ok_or(st::OPERAND_ADDR_RANGE_ERROR | op::RCX)?;

        self.before_commit(leaf::VP_ADDCX, v.tdr.pa);
        page.fill(0);
        lock.assign(pt::TDCX, v.tdr.pa);
        self.owner_changed(r.rcx, 1, true);
        if n < TDVPS_PAGES as u64 {
            v.tdvps.set(word::PAGES.wrapping_add(n as usize), r.rcx);
        }
        v.tdvps.set(word::NUM_PAGES, n.wrapping_add(1));
        v.tdr.add_children(1);
        Ok(())
    }

    /// First half of TDH.VP.INIT: RCX: TDVPR, RDX: initial RCX of the guest, version 1
    /// also R8: x2APIC id. Numbers the vCPU.
    #[inline(never)]
    pub(crate) fn vp_init_begin(
        &self,
        lp: u32,
        version: u8,
        r: &Regs,
    ) -> Res<(LockedVcpu<'_>, VcpuInit)> {
        check_init_version(version)?;
        // With topology the identifiers of all vCPUs must not change meanwhile.
        let tdr_mode = if version > 0 {
            Mode::Exclusive
        } else {
            Mode::Shared
        };
        let allowed = Some(op_state::BUILD);
        let v = self.lock_vcpu(r.rcx, op::RCX, Mode::Exclusive, tdr_mode, allowed)?;
        if version > 0 && r.r8 >> 32 != 0 {
            return Err(st::OPERAND_INVALID | op::R8);
        }
        if !v.tdvps.is_complete() {
            return Err(st::TDCX_NUM_INCORRECT);
        }
        check_new(&v)?;
        let max = v.tdcs.get(tdcs_word::MAX_VCPUS);
        let index = v
            .tdcs
            .word(tdcs_word::NUM_VCPUS)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < max).then(|| n.wrapping_add(1))
            })
            .map_err(|_| st::MAX_VCPUS_EXCEEDED)?;
        let x2apic = if version > 0 { r.r8 } else { index };
        if let Err(status) = v.tdcs.take_x2apic_id(index, x2apic, version > 0) {
            if !v.tdcs.rules.failed_vcpu_counts {
                v.tdcs
                    .word(tdcs_word::NUM_VCPUS)
                    .fetch_sub(1, Ordering::Relaxed);
            }
            return Err(status);
        }
        v.tdvps.set(word::INDEX, index);
        v.tdvps.set(word::X2APIC_ID, x2apic);
        let mut regs = GuestRegs {
            rip: 0xFFFF_FFF0,
            ..GuestRegs::default()
        };
        regs.gpr[1] = r.rdx;
        regs.gpr[2] = u64::from(self.p.cpuid(1, 0)[0]);
        regs.gpr[3] = if v.tdcs.shared_bit() == 51 { 52 } else { 48 };
        regs.gpr[6] = index;
        regs.gpr[8] = r.rdx;
        let vcpu = v.tdvps.describe(&v.tdr, &v.tdcs, lp);
        Ok((v, VcpuInit { vcpu, regs }))
    }

    /// Second half of TDH.VP.INIT; `ok`: whether the guest could be prepared.
    #[inline(never)]
    pub(crate) fn vp_init_end(
        &self,
        v: &LockedVcpu<'_>,
        init: &VcpuInit,
        ok: bool,
        version: u8,
    ) -> Res<()> {
        if !ok {
            v.tdcs
                .word(tdcs_word::NUM_VCPUS)
                .fetch_sub(1, Ordering::Relaxed);
            return Err(st::OPERAND_BUSY | op::TDVPR);
        }
        self.before_commit(leaf::VP_INIT, v.tdr.pa);
        v.tdvps.store_regs(&init.regs);
        if version > 0 {
            // The TDR is held exclusively.
            let identified = v.tdcs.get(tdcs_word::IDENTIFIED);
            v.tdcs
                .set(tdcs_word::IDENTIFIED, identified.wrapping_add(1));
        }
        v.tdvps
            .set(word::ASSOC, u64::from(init.vcpu.lp).wrapping_add(1));
        v.tdcs
            .word(tdcs_word::NUM_ASSOC)
            .fetch_add(1, Ordering::Relaxed);
        v.tdvps.set(word::STATE, vcpu_state::READY);
        Ok(())
    }

    /// TDH.VP.FLUSH up to the commit. RCX: TDVPR. In any operation state, and without a
    /// lock on it.
    #[inline(never)]
    pub(crate) fn vp_flush_begin(&self, lp: u32, r: &Regs) -> Res<LockedVcpu<'_>> {
        let lock = self.lock_explicit(r.rcx, 0, pt::TDVPR, Mode::Exclusive, op::RCX)?;
        let page = Page::at(&self.p, r.rcx).ok_or(st::OPERAND_ADDR_RANGE_ERROR | op::RCX)?;
        let tdr = self.lock_owner(&lock.entry, Mode::Shared)?;
        if tdr.lifecycle() != lc::KEYS_CONFIGURED {
            return Err(st::TD_KEYS_NOT_CONFIGURED);
        }
        let tdcs = self.tdcs_of(&tdr).ok_or_else(|| self.fatal())?;
        let tdvps = Tdvps { page };
        if !tdvps.is_complete() {
            return Err(st::TDCX_NUM_INCORRECT);
        }
        if !tdvps.is_on(lp) {
            return Err(st::VCPU_NOT_ASSOCIATED);
        }

        self.before_commit(leaf::VP_FLUSH, tdr.pa);
        Ok(LockedVcpu {
            op_lock: None,
            tdcs,
            tdr,
            tdvps,
            lock,
        })
    }

    /// The vCPU leaves `lp`.
    #[inline(never)]
    pub(crate) fn vp_flush_end(&self, lp: u32, v: &LockedVcpu<'_>) {
        v.tdvps.set(word::ASSOC, 0);
        v.tdcs
            .word(tdcs_word::NUM_ASSOC)
            .fetch_sub(1, Ordering::Relaxed);
        if let Some(last) = self.sys.lp_last_vcpu.get(lp as usize) {
            last.store(0, Ordering::Relaxed);
        }
    }

    /// TDH.VP.RD. RCX: TDVPR, RDX: field; out R8: value.
    #[inline(never)]
    pub(crate) fn vp_rd(&self, r: &mut Regs) -> Res<()> {
        let v = self.lock_vcpu(r.rcx, op::RCX, Mode::Shared, Mode::Shared, None)?;
        r.r8 = 0;
        r.r8 = match field(r.rdx) {
            // VCPU_STATE_DETAILS: whether a virtual interrupt waits.
            0x9100_0000_0000_0100 => u64::from(self.interrupt_waits(&v.tdvps)),
            id => {
                let word = vp_word(id).ok_or(st::METADATA_FIELD_NOT_READABLE | op::RDX)?;
                v.tdvps.get(word)
            }
        };
        Ok(())
    }

    /// TDH.VP.WR. RCX: TDVPR, RDX: field, R8: value, R9: mask; out R8: old value.
    #[inline(never)]
    pub(crate) fn vp_wr(&self, r: &mut Regs) -> Res<()> {
        let v = self.lock_vcpu(r.rcx, op::RCX, Mode::Shared, Mode::Shared, None)?;
        let word = vp_word(field(r.rdx)).ok_or(st::METADATA_FIELD_NOT_WRITABLE | op::RDX)?;
        let new = v.tdvps.get(word) & !r.r9 | r.r8 & r.r9;
        let valid = match word {
            word::SHARED_EPT => new & 0xFFF == 0 && new >> 52 == 0,
            word::PI_DESC => new & 63 == 0 && new >> 52 == 0,
            word::PI_NV => new <= 255,
            word::PEND_NMI => new <= 1,
            _ => true,
        };
        if !valid {
            return Err(st::METADATA_FIELD_VALUE_NOT_VALID | op::RDX);
        }
        r.r8 = v.tdvps.get(word);
        v.tdvps.set(word, new);
        Ok(())
    }

    /// Whether an interrupt waits for the vCPU: posted, or in its virtual APIC above the
    /// processor priority.
    fn interrupt_waits(&self, v: &Tdvps<'_>) -> bool {
        const PPR: usize = 0xA0 / 8;
        const IRR: usize = 0x200 / 8;

        let at = v.get(word::PI_DESC);
        let first = (at & 0xFFF) as usize / 8;
        let posted = |page: Page<'_>| (0..4).any(|i| page.get(first.wrapping_add(i)) != 0);
        if at != 0 && Page::at(&self.p, at).is_some_and(posted) {
            return true;
        }
        let Some(apic) = Page::at(&self.p, v.page_pa(TDVPS_VAPIC)) else {
            return false;
        };
        // 32 vectors in the first half of each 16 bytes; a priority class has 16.
        let class = ((apic.get(PPR) >> 4) & 15) as u32;
        (0..8u32).any(|i| {
            let bits = apic.get(IRR.wrapping_add(2 * i as usize)) as u32;
            bits.checked_ilog2()
                .is_some_and(|bit| (32 * i + bit) >> 4 > class)
        })
    }

    /// The page with the #VE information of a vCPU.
    pub(crate) fn ve_info_page(&self, v: &Tdvps<'_>) -> Option<Page<'_>> {
        Page::at(&self.p, v.page_pa(TDVPS_VE_INFO))
    }
}

/// Fails unless the vCPU is still to be initialised.
fn check_new(v: &LockedVcpu<'_>) -> Res<()> {
    let state = v.tdvps.get(word::STATE);
    if state != vcpu_state::UNINITIALIZED {
        let known = v.tdcs.rules.details.vcpu_state;
        return Err(st::VCPU_STATE_INCORRECT | if known { state } else { 0 });
    }
    Ok(())
}

impl Tdcs<'_> {
    /// The word with the x2APIC identifier of the vCPU with that index, and where it is there.
    fn x2apic_id(&self, index: u64) -> (&AtomicU64, u32) {
        let word = tdcs_word::X2APIC_IDS.wrapping_add((index >> 1) as usize);
        (self.word(word), (index & 1) as u32 * 32)
    }

    /// Gives an x2APIC identifier to the vCPU with that index, unless an earlier one has it. The
    /// TDR is held exclusively if the host `chose` it.
    fn take_x2apic_id(&self, index: u64, id: u64, chose: bool) -> Res<()> {
        let taken = |i: u64| {
            let (word, shift) = self.x2apic_id(i);
            (word.load(Ordering::Relaxed) >> shift) & 0xFFFF_FFFF == id
        };
        let unique = !chose || !self.rules.x2apic_unique || !(0..index).any(taken);
        // Its half of the word is zero, unless the vCPU before it with that index failed.
        let (word, shift) = self.x2apic_id(index);
        word.fetch_and(!(0xFFFF_FFFF << shift), Ordering::Relaxed);
        word.fetch_or(id << shift, Ordering::Relaxed);
        if !unique {
            return Err(st::X2APIC_ID_NOT_UNIQUE | id);
        }
        Ok(())
    }
}

fn check_init_version(version: u8) -> Res<()> {
    if version > 1 {
        return Err(st::OPERAND_INVALID | op::RAX);
    }
    Ok(())
}

/// Where a field that the host may read and write is kept.
fn vp_word(id: u64) -> Option<usize> {
    Some(match id {
        0x0002 => word::PI_NV,
        0x2016 => word::PI_DESC,
        0x203C => word::SHARED_EPT,
        0x4000 => word::PIN_BASED,
        0x401E => word::SECONDARY,
        0x4024 => word::NOTIFY_WINDOW,
        PENDING_NMI => word::PEND_NMI,
        _ => return None,
    })
}
