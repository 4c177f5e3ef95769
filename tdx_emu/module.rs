// SPDX-License-Identifier: GPL-2.0

//! A software TDX module (TDX 1.5): answers SEAMCALLs and runs TDs. What its releases do
//! differently is in `version.rs`.
//!
//! Pure: `core` only. All state of a TD lives in the pages that the host hands
//! over (PAMT, TDR, TDCS, TDVPS, S-EPT), so nothing is ever allocated, and
//! every lock is a single try as in the real module, so nothing ever waits.
//! A leaf checks everything first and then commits, which cannot fail.

// Two files may have some: see there.
#![deny(unsafe_code)]

pub(crate) mod accept;
pub(crate) mod cpuid;
pub(crate) mod dynamic;
pub(crate) mod entered;
pub(crate) mod epoch;
pub(crate) mod guestop;
pub(crate) mod instruction;
pub mod interp;
pub(crate) mod lock;
pub(crate) mod machine;
pub(crate) mod measure;
pub(crate) mod mem;
pub(crate) mod mem_page;
pub(crate) mod mem_sept;
pub(crate) mod mem_size;
pub(crate) mod metadata;
pub(crate) mod mng;
pub(crate) mod mr;
pub(crate) mod msr;
pub(crate) mod numbers;
pub(crate) mod observer;
pub(crate) mod pamt;
pub(crate) mod phymem;
pub(crate) mod platform;
pub(crate) mod report;
pub(crate) mod sha384;
pub(crate) mod sys;
pub(crate) mod td;
pub(crate) mod td_field;
pub(crate) mod tdcall;
pub(crate) mod tdmr;
pub(crate) mod tracking;
pub(crate) mod tree;
pub(crate) mod update;
pub(crate) mod vcpu;
pub(crate) mod ve;
pub(crate) mod version;
pub(crate) mod vp;
pub(crate) mod zerostep;

use core::sync::atomic::Ordering;

use entered::Entered;
use machine::{sys_state, Machine};
use numbers::{leaf, op, st, Res};
use vcpu::Enter;

pub use machine::MAX_LPS;
pub use numbers::LEAF_NAMES;
pub use observer::{Event, Observer};
pub use platform::*;
pub use version::versions;

/// The module. Entered from all CPUs at once through [`Module::seamcall`].
pub struct Module<P, G, O> {
    m: Machine<P, O>,
    guest: G,
}

impl<P: Platform, G: GuestRun<P>, O: Observer> Module<P, G, O> {
    /// A module before TDH.SYS.INIT. Large (about 40 KiB): meant for a static.
    pub const fn new(platform: P, guest: G, observer: O) -> Self {
        Module {
            m: Machine::new(platform, observer),
            guest,
        }
    }

    /// The module without its guests.
    pub(crate) fn machine(&self) -> &Machine<P, O> {
        &self.m
    }

    /// Makes it the release with that name, as [`versions`] has them. To be called before the
    /// first SEAMCALL. False: there is none of that name.
    pub fn set_version(&self, name: &str) -> bool {
        self.m.set_version(name)
    }

    /// Puts a module of the version with that name in the place of this one, which must have been
    /// shut down; TDH.SYS.INIT follows. Nobody may call the module meanwhile. False: it was not,
    /// or there is none of that name.
    pub fn install(&self, name: &str) -> bool {
        self.m.install(name)
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
        self.seamcall_unless(lp, rax, r, |_| None)
    }

    /// The same, but a call that the module admits is not executed if `refuse` answers for it.
    pub fn seamcall_unless(
        &self,
        lp: u32,
        rax: u64,
        r: &mut Regs,
        refuse: impl FnOnce(&mut Regs) -> Option<u64>,
    ) -> u64 {
        let (number, version) = (rax as u16, (rax >> 16) as u8);
        let _inside = self.m.inside(lp);
        if let Err(status) = self.admit(rax) {
            return status;
        }
        if let Some(status) = refuse(r) {
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
        if rax >> 16 != 0 && !self.m.rules().versioned.contains(&number) {
            return Err(bad);
        }
        let state = self.m.sys.state.load(Ordering::SeqCst);
        if state == sys_state::SHUTDOWN && number != leaf::SYS_LP_SHUTDOWN {
            return Err(st::SYS_SHUTDOWN);
        }
        if state == sys_state::STOPPING {
            return Err(st::SYS_BUSY);
        }
        let bring_up = matches!(
            number,
            leaf::SYS_INIT
                | leaf::SYS_LP_INIT
                | leaf::SYS_RD
                | leaf::SYS_CONFIG
                | leaf::SYS_KEY_CONFIG
                | leaf::SYS_UPDATE
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
            self.m.observer.happened(Event::GuestEntry);
            let why = self.m.observer.outside(|| {
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

impl<P: Platform, O: Observer> Machine<P, O> {
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
            leaf::SYS_INIT => self.sys_init(version, r),
            leaf::SYS_LP_INIT => self.sys_lp_init(lp),
            leaf::SYS_RD => self.sys_rd(r),
            leaf::SYS_CONFIG => self.sys_config(r),
            leaf::SYS_KEY_CONFIG => self.sys_key_config(lp),
            leaf::SYS_TDMR_INIT => self.sys_tdmr_init(r),
            leaf::SYS_LP_SHUTDOWN => self.sys_shutdown(),
            _ if self.rules().leaves.contains(&number) => {
                self.dispatch_newer(lp, number, version, r)
            }
            _ => Err(st::OPERAND_INVALID | op::RAX),
        }
    }
    /// The leaves of the version that not all versions have.
    fn dispatch_newer(&self, lp: u32, number: u16, version: u8, r: &mut Regs) -> Res<()> {
        match number {
            leaf::SYS_SHUTDOWN => self.sys_hand_off(lp, r),
            leaf::SYS_UPDATE => self.sys_update(version, r),
            leaf::PHYMEM_PAMT_ADD => self.phymem_pamt_add(r),
            leaf::PHYMEM_PAMT_REMOVE => self.phymem_pamt_remove(r),
            leaf::SYS_DISABLE => self.sys_shutdown(),
            _ => Err(st::OPERAND_INVALID | op::RAX),
        }
    }
}
