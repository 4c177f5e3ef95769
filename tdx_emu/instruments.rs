// SPDX-License-Identifier: GPL-2.0

//! What watches, delays, disturbs and checks the software TDX module, for tests.
//!
//! The instruments stand around the module: a SEAMCALL goes through [`Instrumented`], which looks
//! before and after it. Where they need a point inside of the module, they are its
//! [`Observer`](crate::module::Observer). The module knows none of them.
//!
//! Pure: `core` only.

#![forbid(unsafe_code)]

pub(crate) mod audit;
pub(crate) mod check;
pub(crate) mod hold;
pub(crate) mod inject;
pub(crate) mod kit;
pub(crate) mod rules;
pub(crate) mod script;
pub(crate) mod sept;
pub(crate) mod stats;
pub(crate) mod subject;
pub(crate) mod view;
pub(crate) mod violation;
pub(crate) mod watch;

use kit::{Instruments, Watched};

use crate::module::{GuestRun, Module, Platform, Regs};

pub use inject::Injection;
pub use script::{ScriptError, MAX_RULES};
pub use stats::{StatName, Stats};
pub use view::TdView;
pub use violation::Violation;
pub use watch::CheckLevel;

/// A module with instruments. Entered from all CPUs at once through [`Instrumented::seamcall`].
pub struct Instrumented<P, G> {
    module: Module<P, G, Instruments>,
}

impl<P: Platform, G: GuestRun<P>> Instrumented<P, G> {
    /// A module before TDH.SYS.INIT. Large (about 40 KiB): meant for a static.
    pub const fn new(platform: P, guest: G) -> Self {
        Instrumented {
            module: Module::new(platform, guest, Instruments::new()),
        }
    }

    /// The module without its guests.
    pub(crate) fn machine(&self) -> &Watched<P> {
        self.module.machine()
    }

    fn kit(&self) -> &Instruments {
        &self.machine().observer
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.kit().stats
    }

    /// Fault injection.
    pub fn inject(&self) -> Injection<'_, P> {
        Injection(self.machine())
    }

    /// The platform.
    pub fn platform(&self) -> &P {
        self.module.platform()
    }

    /// The processor of the guests.
    pub fn guest(&self) -> &G {
        self.module.guest()
    }

    /// [`Module::seamcall`], counted, disturbed as the rules say, and checked.
    pub fn seamcall(&self, lp: u32, rax: u64, r: &mut Regs) -> u64 {
        let (m, kit) = (self.machine(), self.kit());
        let number = rax as u16;
        let watched = check::begin(m, number, r);
        let status = if kit.rules.in_use().is_empty() {
            self.module.seamcall(lp, rax, r)
        } else {
            inject::disturbed_call(&self.module, lp, rax, r)
        };
        kit.stats.leaf_done(number, status);
        if let Some(before) = watched {
            check::end(m, before, status, r);
        }
        status
    }

    /// [`Module::set_version`].
    pub fn set_version(&self, name: &str) -> bool {
        self.module.set_version(name)
    }

    /// [`Module::install`].
    pub fn install(&self, name: &str) -> bool {
        self.module.install(name)
    }

    /// The version that this module is.
    pub fn version(&self) -> &'static str {
        self.machine().rules().name
    }

    /// How much is checked after each call; at first what calls touch if the program has
    /// debug assertions, else nothing. To be called before the first SEAMCALL.
    pub fn set_checks(&self, level: CheckLevel) {
        self.kit().watch.set_level(level);
    }

    /// The first invariant that did not hold; the counter `invariant_errors` has all.
    pub fn first_violation(&self) -> Option<Violation> {
        self.kit().watch.first()
    }

    /// Checks all TDs now. `None`: a call came in between, so there is no answer.
    pub fn audit(&self) -> Option<Result<(), Violation>> {
        audit::audit(self.machine())
    }

    /// Looks at the TD whose TDR is at `tdr` (no HKID). `None` if that is no TDR or
    /// the TD has no TDCS yet.
    pub fn td_view(&self, tdr: u64) -> Option<TdView> {
        view::td_view(self.machine(), tdr)
    }
}
