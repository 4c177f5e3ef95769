// SPDX-License-Identifier: GPL-2.0

//! A software TDX module (TDX 1.5.01): answers SEAMCALLs and runs TDs.
//!
//! Pure: `core` only. All state of a TD lives in the pages that the host hands
//! over (PAMT, TDR, TDCS, TDVPS, S-EPT), so nothing is ever allocated, and
//! every lock is a single try as in the real module, so nothing ever waits.
//! A leaf checks everything first and then commits, which cannot fail.

pub(crate) mod abi;
pub(crate) mod audit;
pub(crate) mod check;
pub(crate) mod cpuid;
pub(crate) mod epoch;
pub(crate) mod guestop;
pub(crate) mod hold;
pub(crate) mod inject;
pub(crate) mod instruction;
pub mod interp;
pub(crate) mod lock;
pub(crate) mod mem;
pub(crate) mod mem_page;
pub(crate) mod mem_sept;
pub(crate) mod mem_size;
pub(crate) mod metadata;
pub(crate) mod mng;
pub(crate) mod mr;
pub(crate) mod msr;
pub(crate) mod pamt;
pub(crate) mod phymem;
pub(crate) mod platform;
pub(crate) mod report;
pub(crate) mod script;
pub(crate) mod sha384;
pub(crate) mod stats;
pub(crate) mod sys;
pub(crate) mod td;
pub(crate) mod tree;
pub(crate) mod vcpu;
mod view;
pub(crate) mod vp;
pub(crate) mod zerostep;

use core::sync::atomic::Ordering;

use abi::{leaf, op, st, Res};
use sys::{sys_state, Machine, Sys};
use vcpu::{Enter, Entered};

pub use abi::LEAF_NAMES;
pub use check::{CheckLevel, Violation};
pub use inject::{Injection, ScriptError, MAX_RULES};
pub use platform::*;
pub use stats::{StatName, Stats};
pub use sys::MAX_LPS;
pub use view::TdView;

/// The module. Entered from all CPUs at once through [`Module::seamcall`].
pub struct Module<P, G> {
    pub(crate) m: Machine<P>,
    guest: G,
}

impl<P: Platform, G: GuestRun<P>> Module<P, G> {
    /// A module before TDH.SYS.INIT. Large (about 40 KiB): meant for a static.
    pub const fn new(platform: P, guest: G) -> Self {
        let m = Machine {
            p: platform,
            sys: Sys::new(),
            stats: Stats::new(),
            inject: inject::Table::new(),
            watch: check::Watch::new(),
        };
        Module { m, guest }
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.m.stats
    }

    /// Fault injection.
    pub fn inject(&self) -> Injection<'_, P> {
        Injection(&self.m)
    }

    /// The platform.
    pub fn platform(&self) -> &P {
        &self.m.p
    }

    /// The processor of the guests.
    pub fn guest(&self) -> &G {
        &self.guest
    }

    /// A SEAMCALL of logical processor `lp` (below [`MAX_LPS`]), which must stay on it:
    /// RAX in, RAX out, other registers in `r`.
    pub fn seamcall(&self, lp: u32, rax: u64, r: &mut Regs) -> u64 {
        let number = rax as u16;
        let watched = self.m.check_begin(number, r);
        let status = if self.m.inject.in_use().is_empty() {
            self.call(lp, rax, r, None)
        } else {
            self.disturbed_call(lp, rax, r)
        };
        self.m.stats.leaf_done(number, status);
        if let Some(before) = watched {
            self.m.check_end(before, status, r);
        }
        status
    }

    /// How much is checked after each call; at first what calls touch if the program has
    /// debug assertions, else nothing. To be called before the first SEAMCALL.
    pub fn set_checks(&self, level: CheckLevel) {
        self.m.watch.set_level(level);
    }

    /// The first invariant that did not hold; the counter `invariant_errors` has all.
    pub fn first_violation(&self) -> Option<Violation> {
        self.m.watch.first()
    }

    /// Checks all TDs now. `None`: a call came in between, so there is no answer.
    pub fn audit(&self) -> Option<Result<(), Violation>> {
        self.m.audit()
    }

    /// A call while the fault injection has rules.
    #[inline(never)]
    fn disturbed_call(&self, lp: u32, rax: u64, r: &mut Regs) -> u64 {
        let number = rax as u16;
        let tdr = self.m.td_of_call(number, r);
        let hkid = match number {
            leaf::MNG_CREATE => Some(r.rdx),
            _ => tdr.and_then(|tdr| self.m.hkid_of(tdr)),
        };
        self.m.hold_locks(|| tdr);
        let status = self.call(lp, rax, r, Some(hkid));
        self.m
            .count_held(tdr, status & st::CLASS == st::OPERAND_BUSY);
        status
    }

    /// `disturb`: the rules of the fault injection apply, to a call about the TD with
    /// that HKID, if any.
    fn call(&self, lp: u32, rax: u64, r: &mut Regs, disturb: Option<Option<u64>>) -> u64 {
        let (number, version) = (rax as u16, (rax >> 16) as u8);
        if let Err(status) = self.admit(rax) {
            return status;
        }
        if let Some(status) = disturb.and_then(|hkid| self.m.inject.fail(number, r.rcx, || hkid)) {
            self.m.stats.add(stats::Count::Injected);
            clear_outputs(number, status, r);
            return status;
        }
        let done = match number {
            leaf::VP_ENTER => return self.vp_enter(lp, r).unwrap_or_else(|status| status),
            leaf::VP_INIT => self.vp_init(lp, version, r),
            leaf::VP_FLUSH => self.vp_flush(lp, r),
            _ => self.m.dispatch(lp, number, version, r),
        };
        done.map_or_else(|status| status, |()| st::SUCCESS)
    }

    /// What the dispatcher checks before any leaf.
    fn admit(&self, rax: u64) -> Res<()> {
        let number = rax as u16;
        let bad = st::OPERAND_INVALID | op::RAX;
        if rax >> 24 != 0 {
            return Err(bad);
        }
        let versioned = matches!(
            number,
            leaf::MEM_PAGE_PROMOTE
                | leaf::MEM_SEPT_ADD
                | leaf::MEM_SEPT_REMOVE
                | leaf::MNG_RD
                | leaf::VP_RD
                | leaf::VP_INIT
        );
        if rax >> 16 != 0 && !versioned {
            return Err(bad);
        }
        let state = self.m.sys.state.load(Ordering::Acquire);
        if state == sys_state::SHUTDOWN && number != leaf::SYS_LP_SHUTDOWN {
            return Err(st::SYS_SHUTDOWN);
        }
        let bring_up = matches!(
            number,
            leaf::SYS_INIT
                | leaf::SYS_LP_INIT
                | leaf::SYS_RD
                | leaf::SYS_CONFIG
                | leaf::SYS_KEY_CONFIG
                | leaf::SYS_LP_SHUTDOWN
                | leaf::SYS_DISABLE
        );
        if state != sys_state::READY && !bring_up {
            return Err(st::SYS_NOT_READY);
        }
        Ok(())
    }

    /// TDH.VP.ENTER: runs the guest until the host is needed.
    #[inline(never)]
    fn vp_enter(&self, lp: u32, r: &mut Regs) -> Res<u64> {
        let mut e = match self.m.vp_enter_begin(lp, r)? {
            Enter::Guest(e) => e,
            Enter::Emulated(rax) => return Ok(rax),
        };
        loop {
            self.m.stats.add(stats::Count::GuestEntries);
            let why = self.m.watch.outside(|| {
                let Entered {
                    vcpu, entry, regs, ..
                } = &mut e;
                self.guest.run(&self.m.p, vcpu, *entry, regs)
            });
            if let Some(rax) = e.event(&self.m, why, r) {
                return Ok(rax);
            }
        }
    }

    #[inline(never)]
    fn vp_init(&self, lp: u32, version: u8, r: &Regs) -> Res<()> {
        let (v, init) = self.m.vp_init_begin(lp, version, r)?;
        let ok = self.guest.init(&self.m.p, &init).is_ok();
        self.m.vp_init_end(&v, &init, ok, version)
    }

    #[inline(never)]
    fn vp_flush(&self, lp: u32, r: &Regs) -> Res<()> {
        let v = self.m.vp_flush_begin(lp, r)?;
        self.guest
            .flush(&self.m.p, &v.tdvps.describe(&v.tdr, &v.tdcs, lp));
        self.m.vp_flush_end(lp, &v);
        Ok(())
    }
}

impl<P: Platform> Machine<P> {
    /// The leaves that involve no guest.
    fn dispatch(&self, lp: u32, number: u16, version: u8, r: &mut Regs) -> Res<()> {
        match number {
            leaf::MEM_SEPT_ADD => self.mem_sept_add(version, r),
            leaf::MEM_SEPT_REMOVE => self.mem_sept_remove(version, r),
            leaf::MEM_SEPT_RD => self.mem_sept_rd(r),
            leaf::MEM_PAGE_ADD => self.mem_page_add(r),
            leaf::MEM_PAGE_AUG => self.mem_page_aug(r),
            leaf::MEM_PAGE_REMOVE => self.mem_page_remove(r),
            leaf::MEM_PAGE_RELOCATE => self.mem_page_relocate(r),
            leaf::MEM_PAGE_PROMOTE => self.mem_page_promote(version, r),
            leaf::MEM_PAGE_DEMOTE => self.mem_page_demote(r),
            leaf::MEM_RANGE_BLOCK => self.mem_range_block(r),
            leaf::MEM_RANGE_UNBLOCK => self.mem_range_unblock(r),
            leaf::MEM_TRACK => self.mem_track(r),
            leaf::MR_EXTEND => self.mr_extend(r),
            leaf::MR_FINALIZE => self.mr_finalize(r),
            leaf::MNG_CREATE => self.mng_create(r),
            leaf::MNG_KEY_CONFIG => self.mng_key_config(lp, r),
            leaf::MNG_ADDCX => self.mng_addcx(r),
            leaf::MNG_INIT => self.mng_init(r),
            leaf::MNG_RD => self.mng_rd(r),
            leaf::MNG_WR => self.mng_wr(r),
            leaf::MNG_VPFLUSHDONE => self.mng_vpflushdone(r),
            leaf::MNG_KEY_FREEID => self.mng_key_freeid(r),
            leaf::MNG_KEY_RECLAIMID => Ok(()),
            leaf::VP_CREATE => self.vp_create(r),
            leaf::VP_ADDCX => self.vp_addcx(r),
            leaf::VP_RD => self.vp_rd(r),
            leaf::VP_WR => self.vp_wr(r),
            leaf::PHYMEM_CACHE_WB => self.phymem_cache_wb(lp, r),
            leaf::PHYMEM_PAGE_RECLAIM => self.phymem_page_reclaim(r),
            leaf::PHYMEM_PAGE_WBINVD => self.phymem_page_wbinvd(r),
            leaf::PHYMEM_PAGE_RDMD => self.phymem_page_rdmd(r),
            leaf::SYS_INIT => self.sys_init(r),
            leaf::SYS_LP_INIT => self.sys_lp_init(lp),
            leaf::SYS_RD => self.sys_rd(r),
            leaf::SYS_CONFIG => self.sys_config(r),
            leaf::SYS_KEY_CONFIG => self.sys_key_config(lp),
            leaf::SYS_TDMR_INIT => self.sys_tdmr_init(r),
            leaf::SYS_DISABLE | leaf::SYS_LP_SHUTDOWN => self.sys_shutdown(),
            _ => Err(st::OPERAND_INVALID | op::RAX),
        }
    }
}

/// Registers after an injected failure: as the leaf leaves them when it fails and has
/// nothing to report. A leaf that is to be started again keeps its operands.
fn clear_outputs(number: u16, status: u64, r: &mut Regs) {
    if status & st::CLASS == st::INTERRUPTED_RESTARTABLE {
        return;
    }
    match number {
        leaf::MEM_SEPT_ADD
        | leaf::MEM_SEPT_REMOVE
        | leaf::MEM_SEPT_RD
        | leaf::MEM_PAGE_ADD
        | leaf::MEM_PAGE_AUG
        | leaf::MEM_PAGE_REMOVE
        | leaf::MEM_PAGE_PROMOTE
        | leaf::MEM_PAGE_DEMOTE
        | leaf::MEM_PAGE_RELOCATE
        | leaf::MEM_RANGE_BLOCK
        | leaf::MEM_RANGE_UNBLOCK
        | leaf::MR_EXTEND => (r.rcx, r.rdx) = (0, 0),
        leaf::PHYMEM_PAGE_RECLAIM | leaf::PHYMEM_PAGE_RDMD => {
            (r.rcx, r.rdx) = (0, 0);
            (r.r8, r.r9, r.r10, r.r11) = (0, 0, 0, 0);
        }
        leaf::MNG_INIT => r.rcx = 0,
        _ => {}
    }
}
