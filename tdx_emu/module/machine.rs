// SPDX-License-Identifier: GPL-2.0

//! The ground that all leaves stand on: the platform, and the state of the whole module.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::numbers::st;
use super::observer::{Event, Observer};
use super::platform::Platform;
use super::tdmr::Tdmr;
use super::version::{Rules, TABLE};

pub(crate) const MAX_TDMRS: usize = 64;
pub(crate) const MAX_HKIDS: usize = 64;
/// Processor packages, see `Config::packages`.
const MAX_PACKAGES: usize = 8;
/// Logical processors that the module can tell apart.
pub const MAX_LPS: usize = 256;

/// Progress of the bring-up.
pub(crate) mod sys_state {
    pub(crate) const NEW: u64 = 0;
    pub(crate) const INITIALIZED: u64 = 1;
    pub(crate) const CONFIGURED: u64 = 2;
    pub(crate) const READY: u64 = 3;
    pub(crate) const SHUTDOWN: u64 = 4;
    /// SYS.SHUTDOWN looks whether it may.
    pub(crate) const STOPPING: u64 = 5;
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
    pub(crate) lock: AtomicU64,
    pub(crate) lp_done: [AtomicU64; MAX_LPS / 64],
    pub(crate) lp_count: AtomicU64,
    pub(crate) global_hkid: AtomicU64,
    pub(crate) key_packages: AtomicU64,
    /// SYS.CONFIG asked for a dynamic PAMT.
    pub(crate) dynamic_pamt: AtomicU64,
    pub(crate) tdmr_count: AtomicU64,
    pub(crate) tdmrs: [Tdmr; MAX_TDMRS],
    /// Guards the two arrays below.
    pub(crate) kot_lock: AtomicU64,
    pub(crate) kot: [AtomicU64; MAX_HKIDS],
    /// Packages that have not written back caches for a flushed HKID.
    pub(crate) wb_pending: [AtomicU64; MAX_HKIDS],
    /// CACHE.WB by package.
    pub(crate) wb: [CacheWb; MAX_PACKAGES],
    /// Serialises the making of keys.
    pub(crate) ket_lock: AtomicU64,
    /// Whether an LP is in the module, or in a guest.
    pub(crate) lp_busy: [AtomicU64; MAX_LPS],
    /// Version of what SYS.SHUTDOWN left for the next module, plus one; 0 if it did not.
    pub(crate) handed_off: AtomicU64,
    /// TDs that are being built, in versions with MRTD contexts.
    pub(crate) builds: AtomicU64,
    /// TDs without such a context cannot be built any further.
    pub(crate) compatible: AtomicU64,
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
            dynamic_pamt: ZERO,
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
            lp_busy: [ZERO; MAX_LPS],
            handed_off: ZERO,
            builds: ZERO,
            compatible: ZERO,
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
pub(crate) struct Machine<P, O> {
    pub(crate) p: P,
    /// Row of the version table.
    version: AtomicUsize,
    pub(crate) sys: Sys,
    /// Who watches.
    pub(crate) observer: O,
}

impl<P: Platform, O: Observer> Machine<P, O> {
    /// A module before TDH.SYS.INIT.
    pub(crate) const fn new(p: P, observer: O) -> Self {
        Machine {
            p,
            version: AtomicUsize::new(0),
            sys: Sys::new(),
            observer,
        }
    }

    /// What is right for the version of this module.
    pub(crate) fn rules(&self) -> &'static Rules {
        let row = self.version.load(Ordering::Relaxed);
        TABLE.get(row).unwrap_or(&TABLE[0])
    }

    /// Makes it the version with that name. False if there is none.
    pub(crate) fn set_version(&self, name: &str) -> bool {
        let is_named = |&row: &usize| TABLE.get(row).is_some_and(|r| r.name == name);
        let row = (0..TABLE.len()).find(is_named);
        row.inspect(|&row| self.version.store(row, Ordering::Relaxed))
            .is_some()
    }

    /// A state that cannot be: the real module stops the whole machine. Here it
    /// answers SYS_SHUTDOWN for ever, and the observer is told.
    pub(crate) fn fatal(&self) -> u64 {
        self.observer.happened(Event::Fatal);
        self.sys.state.store(sys_state::SHUTDOWN, Ordering::Relaxed);
        st::SYS_SHUTDOWN
    }

    /// Pages came to the module or went back to the host.
    pub(crate) fn owner_changed(&self, pa: u64, pages: u64, private: bool) {
        self.observer.owner_changed(&self.p, pa, pages, private);
        self.p.page_owner_changed(pa, pages, private);
    }

    /// The checks of a leaf are over and its locks are held: from here on it cannot fail.
    /// `tdr`: the TD that it changes.
    #[inline]
    pub(crate) fn before_commit(&self, leaf: u16, tdr: u64) {
        self.observer.before_commit(&self.p, leaf, tdr);
    }

    /// Poll of a leaf of the host for interrupts.
    #[inline]
    pub(crate) fn host_interrupted(&self, leaf: u16, tdr: u64) -> bool {
        self.observer.interrupts(&self.p, leaf, tdr) || self.p.host_interrupt_pending()
    }

    /// Poll of a leaf of a guest.
    #[inline]
    pub(crate) fn guest_interrupted(&self, leaf: u16, tdr: u64) -> bool {
        self.observer.interrupts(&self.p, leaf, tdr) || self.p.interrupt_pending()
    }
}
