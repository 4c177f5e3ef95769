// SPDX-License-Identifier: GPL-2.0

//! Bring-up of the module: TDH.SYS.*.

#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::lock::{Mode, ShareX};
use super::machine::{kot, sys_state, Machine, MAX_TDMRS};
use super::mem::Page;
use super::mem_sept::check_version;
use super::metadata;
use super::numbers::{op, st, Res};
use super::observer::Observer;
use super::pamt::{pt, PamtEntry};
use super::platform::{Platform, Regs, PAGE_SIZE};
use super::tdmr::{Tdmr, TdmrInfo, GIB, PAMT_ENTRY_SIZE};
use super::version::Dynamic;

/// SYS.CONFIG, R8: the PAMT is to be dynamic.
const DYNAMIC_PAMT: u64 = 1 << 16;

// Leaves are not inlined into the dispatcher: their locals would add up on its stack.
impl<P: Platform, O: Observer> Machine<P, O> {
    pub(crate) fn sys_lock(&self) -> Res<ShareX<'_>> {
        ShareX::try_lock(&self.sys.lock, Mode::Exclusive).map_err(|_| st::SYS_BUSY)
    }

    fn sys_state(&self) -> u64 {
        self.sys.state.load(Ordering::Acquire)
    }

    /// TDH.SYS.INIT. RCX: attributes, all reserved; in version 1 R9: features to enable.
    #[inline(never)]
    pub(crate) fn sys_init(&self, version: u8, r: &Regs) -> Res<()> {
        check_version(version)?;
        let _lock = self.sys_lock()?;
        if self.sys_state() != sys_state::NEW {
            return Err(st::SYS_INIT_NOT_PENDING);
        }
        if r.rcx != 0 {
            return Err(st::OPERAND_INVALID | op::RCX);
        }
        if version > 0 {
            self.enable(r)?;
        }
        self.sys
            .state
            .store(sys_state::INITIALIZED, Ordering::Release);
        Ok(())
    }

    /// TDH.SYS.LP.INIT, once on every LP, also after the module is ready (hotplug).
    #[inline(never)]
    pub(crate) fn sys_lp_init(&self, lp: u32) -> Res<()> {
        let _lock = ShareX::try_lock(&self.sys.lock, Mode::Shared).map_err(|_| st::SYS_BUSY)?;
        if self.sys_state() == sys_state::NEW {
            return Err(st::SYS_NOT_READY);
        }
        let bit = 1 << (lp % 64);
        let word = self
            .sys
            .lp_done
            .get(lp as usize / 64)
            .ok_or(st::OPERAND_INVALID)?;
        if word.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            return Err(st::SYS_LP_INIT_DONE);
        }
        self.sys.lp_count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// TDH.SYS.RD. RDX: field, out R8: value.
    #[inline(never)]
    pub(crate) fn sys_rd(&self, r: &mut Regs) -> Res<()> {
        if self.sys_state() == sys_state::NEW {
            return Err(st::SYS_NOT_READY);
        }
        r.r8 = metadata::global(self.rules(), self.p.config(), r.rdx)
            .ok_or(st::METADATA_FIELD_ID_INCORRECT | op::RDX)?;
        Ok(())
    }

    /// TDH.SYS.CONFIG. RCX: array of TDMR_INFO addresses, RDX: their number, R8: global
    /// HKID, in some versions bit 16: dynamic PAMT.
    #[inline(never)]
    pub(crate) fn sys_config(&self, r: &Regs) -> Res<()> {
        let _lock = self.sys_lock()?;
        if self.sys_state() != sys_state::INITIALIZED {
            return Err(st::SYS_CONFIG_NOT_PENDING);
        }
        let c = self.p.config();
        if self.sys.lp_count.load(Ordering::Relaxed) < u64::from(c.lps) {
            return Err(st::SYS_LP_INIT_NOT_DONE);
        }
        if r.rcx & 511 != 0 || r.rcx >> 52 != 0 || self.strip_hkid(r.rcx) != r.rcx {
            return Err(st::OPERAND_INVALID | op::RCX);
        }
        if r.rdx == 0 || r.rdx > MAX_TDMRS as u64 {
            return Err(st::OPERAND_INVALID | op::RDX);
        }
        let (hkid, dynamic) = self.hkid_and_pamt(r.r8)?;
        for (i, tdmr) in (0..r.rdx).zip(&self.sys.tdmrs) {
            let info = self.tdmr_info(r.rcx, i)?;
            info.check(dynamic).map_err(|e| e | i)?;
            if i > 0 && info.base < self.tdmr_info(r.rcx, i - 1)?.end() {
                return Err(st::NON_ORDERED_TDMR | i);
            }
            for (base, size) in info.pamt {
                for j in 0..r.rdx {
                    if !self
                        .tdmr_info(r.rcx, j)?
                        .reserves(base, base.saturating_add(size))
                    {
                        return Err(st::PAMT_OVERLAP | i);
                    }
                }
            }
            // Not visible before `tdmr_count` is set below.
            tdmr.load(&info);
        }
        self.sys
            .dynamic_pamt
            .store(u64::from(dynamic), Ordering::Relaxed);
        self.sys.global_hkid.store(hkid, Ordering::Relaxed);
        if let Some(k) = self.sys.kot.get(hkid as usize) {
            k.store(kot::ASSIGNED, Ordering::Relaxed);
        }
        self.sys.tdmr_count.store(r.rdx, Ordering::Release);
        self.sys
            .state
            .store(sys_state::CONFIGURED, Ordering::Release);
        Ok(())
    }

    /// R8 of SYS.CONFIG: the global HKID, and whether the PAMT is to be dynamic.
    fn hkid_and_pamt(&self, r8: u64) -> Res<(u64, bool)> {
        let c = self.p.config();
        let bad = Err(st::OPERAND_INVALID | op::R8);
        let asked = r8 & DYNAMIC_PAMT != 0;
        let (hkid, dynamic) = match self.rules().dynamic_pamt {
            Dynamic::Unknown => (r8, false),
            Dynamic::Ignored => (r8 & !DYNAMIC_PAMT, false),
            Dynamic::Possible => (r8 & !DYNAMIC_PAMT, asked),
        };
        let hkids = u64::from(c.private_hkid_min)..=u64::from(c.private_hkid_max);
        if !hkids.contains(&hkid) {
            return bad;
        }
        // PFNs of pairs must fit into their entries.
        if dynamic && c.hkid_start_bit > metadata::PAMT_ADDRESS_BITS {
            return bad;
        }
        Ok((hkid, dynamic))
    }

    fn tdmr_info(&self, array: u64, i: u64) -> Res<TdmrInfo> {
        let at = array.wrapping_add(i.wrapping_mul(8));
        let page = Page::at(&self.p, at).ok_or(st::OPERAND_INVALID | op::RCX)?;
        let pa = page.get((at & 0xFFF) as usize / 8);
        let bad = st::OPERAND_INVALID | op::TDMR_INFO_PA;
        if pa & 511 != 0 || pa >> 52 != 0 || self.strip_hkid(pa) != pa {
            return Err(bad);
        }
        TdmrInfo::read(&self.p, pa).ok_or(bad)
    }

    /// TDH.SYS.KEY.CONFIG, once on every package.
    #[inline(never)]
    pub(crate) fn sys_key_config(&self, lp: u32) -> Res<()> {
        let _lock = self.sys_lock()?;
        if self.sys_state() != sys_state::CONFIGURED {
            return Err(st::SYS_KEY_CONFIG_NOT_PENDING);
        }
        let bit = 1u64 << (self.p.package_of(lp) & 63);
        let before = self.sys.key_packages.fetch_or(bit, Ordering::Relaxed);
        if before & bit != 0 {
            return Err(st::KEY_CONFIGURED);
        }
        if (before | bit).count_ones() >= self.p.config().packages {
            self.sys.state.store(sys_state::READY, Ordering::Release);
        }
        Ok(())
    }

    /// TDH.SYS.TDMR.INIT. RCX: base of the TDMR; out RDX: next address to initialise,
    /// one gibibyte further at each call.
    #[inline(never)]
    pub(crate) fn sys_tdmr_init(&self, r: &mut Regs) -> Res<()> {
        let tdmr = self.sys.tdmrs().find(|t| t.base() == r.rcx);
        let tdmr = tdmr.ok_or(st::OPERAND_INVALID | op::RCX)?;
        let _lock = ShareX::try_lock(&tdmr.lock, Mode::Exclusive)
            .map_err(|_| st::OPERAND_BUSY | op::TDMR)?;
        let from = tdmr.done.load(Ordering::Relaxed);
        if from >= tdmr.end() {
            r.rdx = from;
            return Err(st::TDMR_ALREADY_INITIALIZED);
        }
        self.reset_pamt(tdmr, from)
            .ok_or(st::OPERAND_ADDR_RANGE_ERROR | op::RCX)?;
        tdmr.done.store(from.wrapping_add(GIB), Ordering::Release);
        r.rdx = from.wrapping_add(GIB);
        Ok(())
    }

    /// Initialises the PAMT entries of the gibibyte at `from`.
    fn reset_pamt(&self, tdmr: &Tdmr, from: u64) -> Option<()> {
        let dynamic = self.is_dynamic();
        let small = match dynamic {
            true => (tdmr.bit_address(from).0, 512 * 512 / 8),
            false => (tdmr.entry_address(from, 0), 512 * 512 * PAMT_ENTRY_SIZE),
        };
        let large = (tdmr.entry_address(from, 1), 512 * PAMT_ENTRY_SIZE);
        for (start, size) in [small, large] {
            for at in (start..start.wrapping_add(size)).step_by(PAGE_SIZE as usize) {
                Page::at(&self.p, at)?.fill(0);
            }
        }
        let entry = |at: u64| {
            Some(PamtEntry::new(
                Page::at(&self.p, at)?,
                (at & 0xFFF) as usize / 8,
            ))
        };
        entry(tdmr.entry_address(from, 2))?.reset(pt::NDA);
        for [offset, size] in &tdmr.reserved {
            let start = tdmr.base().wrapping_add(offset.load(Ordering::Relaxed));
            let end = start.wrapping_add(size.load(Ordering::Relaxed));
            for pa in (start.max(from)..end.min(from.wrapping_add(GIB))).step_by(PAGE_SIZE as usize)
            {
                if !dynamic {
                    entry(tdmr.entry_address(pa, 0))?.reset(pt::RSVD);
                    continue;
                }
                let (at, bit) = tdmr.bit_address(pa);
                let word = Page::at(&self.p, at)?.word((at & 0xFFF) as usize / 8);
                word.fetch_or(1 << bit, Ordering::Relaxed);
            }
        }
        Some(())
    }

    /// TDH.SYS.DISABLE and TDH.SYS.LP.SHUTDOWN: nothing works any more.
    #[inline(never)]
    pub(crate) fn sys_shutdown(&self) -> Res<()> {
        let _lock = self.sys_lock()?;
        self.sys.state.store(sys_state::SHUTDOWN, Ordering::Release);
        Ok(())
    }
}
