// SPDX-License-Identifier: GPL-2.0

//! State of the whole module and its bring-up: TDH.SYS.*.

use core::sync::atomic::{AtomicU64, Ordering};

use super::abi::{op, st, Res};
use super::check::{Watch, Wrong};
use super::inject::Table;
use super::lock::{Mode, ShareX};
use super::mem::Page;
use super::pamt::{pt, PamtEntry};
use super::platform::{Platform, Regs, PAGE_SIZE};
use super::stats::Stats;

pub(crate) const MAX_TDMRS: usize = 64;
pub(crate) const MAX_RESERVED: usize = 16;
pub(crate) const MAX_HKIDS: usize = 64;
/// Processor packages, see `Config::packages`.
const MAX_PACKAGES: usize = 8;
/// Logical processors that the module can tell apart.
pub const MAX_LPS: usize = 256;

const GIB: u64 = 1 << 30;
/// PAMT entries are 16 bytes at every size.
pub(crate) const PAMT_ENTRY_SIZE: u64 = 16;

/// Progress of the bring-up.
pub(crate) mod sys_state {
    pub(crate) const NEW: u64 = 0;
    pub(crate) const INITIALIZED: u64 = 1;
    pub(crate) const CONFIGURED: u64 = 2;
    pub(crate) const READY: u64 = 3;
    pub(crate) const SHUTDOWN: u64 = 4;
}

/// Key ownership of a HKID.
pub(crate) mod kot {
    pub(crate) const FREE: u64 = 0;
    pub(crate) const ASSIGNED: u64 = 1;
    pub(crate) const FLUSHED: u64 = 2;
}

#[expect(
    clippy::declare_interior_mutable_const,
    reason = "initial value of statics"
)]
const ZERO: AtomicU64 = AtomicU64::new(0);

/// A TDMR. Written once by SYS.CONFIG, but for `done` and its lock.
pub(crate) struct Tdmr {
    base: AtomicU64,
    size: AtomicU64,
    /// PAMT base addresses by size class (4K, 2M, 1G).
    pamt: [AtomicU64; 3],
    /// Offset and size of the reserved areas; unused ones have size 0.
    reserved: [[AtomicU64; 2]; MAX_RESERVED],
    /// First address whose PAMT entries are not initialised yet.
    done: AtomicU64,
    lock: AtomicU64,
}

impl Tdmr {
    #[expect(
        clippy::declare_interior_mutable_const,
        reason = "initial value of static arrays"
    )]
    const NEW: Tdmr = Tdmr {
        base: ZERO,
        size: ZERO,
        pamt: [ZERO; 3],
        reserved: [const { [ZERO; 2] }; MAX_RESERVED],
        done: ZERO,
        lock: ZERO,
    };

    fn base(&self) -> u64 {
        self.base.load(Ordering::Relaxed)
    }

    fn end(&self) -> u64 {
        self.base().wrapping_add(self.size.load(Ordering::Relaxed))
    }

    /// Where its PAMT entries are initialised: from, to.
    pub(crate) fn initialised(&self) -> (u64, u64) {
        (self.base(), self.done.load(Ordering::Acquire))
    }

    /// Physical address of the PAMT entry of `pa` at `size`.
    pub(crate) fn entry_address(&self, pa: u64, size: u8) -> u64 {
        let base = self
            .pamt
            .get(usize::from(size))
            .map_or(0, |a| a.load(Ordering::Relaxed));
        let index = pa.wrapping_sub(self.base()) >> super::tree::shift(size);
        base.wrapping_add(index.wrapping_mul(PAMT_ENTRY_SIZE))
    }

    fn load(&self, info: &TdmrInfo) {
        let set = |a: &AtomicU64, v| a.store(v, Ordering::Relaxed);
        set(&self.base, info.base);
        set(&self.size, info.size);
        for (a, v) in self.pamt.iter().zip(info.pamt) {
            set(a, v.0);
        }
        for (a, v) in self.reserved.iter().zip(info.reserved) {
            set(&a[0], v.0);
            set(&a[1], v.1);
        }
        self.done.store(info.base, Ordering::Release);
    }
}

/// The part of a TDMR_INFO structure that counts: PAMTs by size class 4K, 2M, 1G
/// and reserved areas, as (base or offset, size).
#[derive(Clone, Copy)]
struct TdmrInfo {
    base: u64,
    size: u64,
    pamt: [(u64, u64); 3],
    reserved: [(u64, u64); MAX_RESERVED],
}

impl TdmrInfo {
    fn read<P: Platform>(p: &P, pa: u64) -> Option<TdmrInfo> {
        let mut w = [0u64; 8 + 2 * MAX_RESERVED];
        Page::at(p, pa)?.read((pa & 0xFFF) as usize / 8, &mut w);
        let mut reserved = [(0, 0); MAX_RESERVED];
        for (r, pair) in reserved.iter_mut().zip(w[8..].chunks_exact(2)) {
            if let [offset, size] = *pair {
                *r = (offset, size);
            }
        }
        let pamt = [(w[6], w[7]), (w[4], w[5]), (w[2], w[3])];
        Some(TdmrInfo {
            base: w[0],
            size: w[1],
            pamt,
            reserved,
        })
    }

    fn check(&self) -> Result<(), u64> {
        let whole = |v: u64| v & (GIB - 1) == 0;
        if !whole(self.base) || !whole(self.size) || self.size == 0 {
            return Err(st::INVALID_TDMR);
        }
        if self
            .base
            .checked_add(self.size)
            .is_none_or(|end| end >> 52 != 0)
        {
            return Err(st::INVALID_TDMR);
        }
        for (i, &(base, size)) in self.pamt.iter().enumerate() {
            let need = (self.size >> super::tree::shift(i as u8)) * PAMT_ENTRY_SIZE;
            if base & 0xFFF != 0 || size & 0xFFF != 0 || size < need || base >> 52 != 0 {
                return Err(st::INVALID_PAMT);
            }
        }
        let mut last = 0;
        for &(offset, size) in self.reserved.iter().filter(|r| r.1 != 0) {
            let end = offset.checked_add(size).filter(|&e| e <= self.size);
            match end {
                Some(e) if (offset | size) & 0xFFF == 0 && offset >= last => last = e,
                _ => return Err(st::INVALID_RESERVED_IN_TDMR),
            }
        }
        Ok(())
    }

    /// Whether the part of `[start, end)` in this TDMR lies in reserved areas.
    fn reserves(&self, start: u64, end: u64) -> bool {
        let mut at = start.max(self.base);
        let end = end.min(self.end());
        for &(offset, size) in &self.reserved {
            let from = self.base.saturating_add(offset);
            let to = from.saturating_add(size);
            if from <= at && at < to {
                at = to;
            }
        }
        at >= end
    }
}

/// A write-back of a package's caches.
pub(crate) struct CacheWb {
    pub(crate) lock: AtomicU64,
    /// Part of the cache to go on with after an interrupt, 0 if none waits for that.
    pub(crate) next: AtomicU64,
    /// HKIDs that it is for.
    pub(crate) hkids: AtomicU64,
}

/// Module-wide state.
pub(crate) struct Sys {
    pub(crate) state: AtomicU64,
    /// Serialises SYS.* leaves that change the state.
    lock: AtomicU64,
    lp_done: [AtomicU64; MAX_LPS / 64],
    lp_count: AtomicU64,
    pub(crate) global_hkid: AtomicU64,
    key_packages: AtomicU64,
    tdmr_count: AtomicU64,
    tdmrs: [Tdmr; MAX_TDMRS],
    /// Guards the two arrays below.
    pub(crate) kot_lock: AtomicU64,
    pub(crate) kot: [AtomicU64; MAX_HKIDS],
    /// Packages that have not written back caches for a flushed HKID.
    pub(crate) wb_pending: [AtomicU64; MAX_HKIDS],
    /// CACHE.WB by package.
    pub(crate) wb: [CacheWb; MAX_PACKAGES],
    /// Serialises the making of keys.
    pub(crate) ket_lock: AtomicU64,
    /// TDVPR that ran last on each LP, 0 if none: its translations may be cached.
    pub(crate) lp_last_vcpu: [AtomicU64; MAX_LPS],
}

impl Sys {
    pub(crate) const fn new() -> Self {
        Sys {
            state: ZERO,
            lock: ZERO,
            lp_done: [ZERO; MAX_LPS / 64],
            lp_count: ZERO,
            global_hkid: ZERO,
            key_packages: ZERO,
            tdmr_count: ZERO,
            tdmrs: [Tdmr::NEW; MAX_TDMRS],
            kot_lock: ZERO,
            kot: [ZERO; MAX_HKIDS],
            wb_pending: [ZERO; MAX_HKIDS],
            wb: [const {
                CacheWb {
                    lock: ZERO,
                    next: ZERO,
                    hkids: ZERO,
                }
            }; MAX_PACKAGES],
            ket_lock: ZERO,
            lp_last_vcpu: [ZERO; MAX_LPS],
        }
    }

    pub(crate) fn tdmrs(&self) -> impl Iterator<Item = &Tdmr> {
        let n = self.tdmr_count.load(Ordering::Acquire) as usize;
        self.tdmrs.iter().take(n)
    }

    /// The TDMR that holds `pa`, if its PAMT entries are initialised.
    pub(crate) fn tdmr_of(&self, pa: u64) -> Option<&Tdmr> {
        self.tdmrs()
            .find(|t| t.base() <= pa && pa < t.done.load(Ordering::Acquire))
    }
}

/// The module without its guests: everything but VP.INIT, VP.FLUSH and VP.ENTER.
pub(crate) struct Machine<P> {
    pub(crate) p: P,
    pub(crate) sys: Sys,
    pub(crate) stats: Stats,
    pub(crate) inject: Table,
    pub(crate) watch: Watch,
}

// Leaves are not inlined into the dispatcher: their locals would add up on its stack.
impl<P: Platform> Machine<P> {
    /// A state that cannot be: the real module stops the whole machine. Here it
    /// answers SYS_SHUTDOWN for ever, and counts.
    pub(crate) fn fatal(&self) -> u64 {
        self.violation(Wrong::Fatal, 0xFFFF, 0, 0);
        self.sys.state.store(sys_state::SHUTDOWN, Ordering::Relaxed);
        st::SYS_SHUTDOWN
    }

    /// Pages came to the module or went back to the host.
    pub(crate) fn owner_changed(&self, pa: u64, pages: u64, private: bool) {
        if !private {
            self.drop_held_in(pa, pages);
        }
        self.stats.pages_owned(pages, private);
        self.p.page_owner_changed(pa, pages, private);
    }

    fn sys_lock(&self) -> Res<ShareX<'_>> {
        ShareX::try_lock(&self.sys.lock, Mode::Exclusive).map_err(|_| st::SYS_BUSY)
    }

    fn sys_state(&self) -> u64 {
        self.sys.state.load(Ordering::Acquire)
    }

    /// TDH.SYS.INIT. RCX: attributes, all reserved.
    #[inline(never)]
    pub(crate) fn sys_init(&self, r: &Regs) -> Res<()> {
        let _lock = self.sys_lock()?;
        if self.sys_state() != sys_state::NEW {
            return Err(st::SYS_INIT_NOT_PENDING);
        }
        if r.rcx != 0 {
            return Err(st::OPERAND_INVALID | op::RCX);
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
        r.r8 = super::metadata::global(r.rdx).ok_or(st::METADATA_FIELD_ID_INCORRECT | op::RDX)?;
        Ok(())
    }

    /// TDH.SYS.CONFIG. RCX: array of TDMR_INFO addresses, RDX: their number, R8: global
    /// HKID.
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
        let hkids = u64::from(c.private_hkid_min)..=u64::from(c.private_hkid_max);
        if !hkids.contains(&r.r8) {
            return Err(st::OPERAND_INVALID | op::R8);
        }
        for (i, tdmr) in (0..r.rdx).zip(&self.sys.tdmrs) {
            let info = self.tdmr_info(r.rcx, i)?;
            info.check().map_err(|e| e | i)?;
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
        self.sys.global_hkid.store(r.r8, Ordering::Relaxed);
        if let Some(k) = self.sys.kot.get(r.r8 as usize) {
            k.store(kot::ASSIGNED, Ordering::Relaxed);
        }
        self.sys.tdmr_count.store(r.rdx, Ordering::Release);
        self.sys
            .state
            .store(sys_state::CONFIGURED, Ordering::Release);
        Ok(())
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
        for (size, entries) in [(0, 512 * 512), (1, 512)] {
            let start = tdmr.entry_address(from, size);
            let end = start.wrapping_add(entries * PAMT_ENTRY_SIZE);
            for at in (start..end).step_by(PAGE_SIZE as usize) {
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
                entry(tdmr.entry_address(pa, 0))?.reset(pt::RSVD);
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

impl TdmrInfo {
    fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }
}
