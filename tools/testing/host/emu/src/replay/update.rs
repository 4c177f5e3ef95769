// SPDX-License-Identifier: GPL-2.0

//! Updates of the module in a recording: what lies between TDH.SYS.SHUTDOWN of one and
//! TDH.SYS.UPDATE of the next, which are calls like others.

use std::sync::atomic::Ordering;

use super::fields::Fields;
use super::machine::{features0, Release, LPS};
use super::Replay;
use crate::module::machine::sys_state;
use crate::module::numbers::leaf;
use crate::module::Regs;

impl Replay<'_> {
    fn state(&self) -> u64 {
        self.m().sys.state.load(Ordering::Relaxed)
    }

    pub fn is_ready(&self) -> bool {
        self.state() == sys_state::READY
    }

    /// A call of the bring-up that is not recorded.
    fn bring_up_call(&mut self, lp: u32, leaf: u16) {
        let rax = self.module.seamcall(lp, leaf.into(), &mut Regs::default());
        self.compare("module_update", &format!("leaf {leaf}"), 0, rax);
    }

    /// The next module is there, with SYS.INIT done, and LP.INIT on some processors.
    pub fn module_update(&mut self, mut f: Fields) -> Result<(), String> {
        let version = f.text("version")?;
        let handed = f.num("handoff_version")?;
        let lps = f.num("lps_initialised")?;
        f.end()?;
        self.dumps.expect_call()?;
        if self.entered.iter().any(Option::is_some) {
            return Err("module_update while a guest runs".into());
        }
        if lps >= LPS as u64 {
            return Err(format!("module_update: lps_initialised is {lps}"));
        }
        let got = self.m().handed_off();
        if got != Some(handed) {
            self.mismatch(
                "module_update",
                "handoff_version",
                handed,
                format!("{got:?}"),
            );
        }
        self.module_is = Release::of(&version)?;
        if !self.module.install(&version) {
            return Err(format!("module_update: {version} cannot be put in place"));
        }
        self.sampled = [0; LPS];
        self.bring_up_call(0, leaf::SYS_INIT);
        for lp in 0..lps as u32 {
            self.bring_up_call(lp, leaf::SYS_LP_INIT);
        }
        Ok(())
    }

    /// The rest of the processors.
    pub fn lps_initialised(&mut self, mut f: Fields) -> Result<(), String> {
        let n = f.num("n")?;
        f.end()?;
        self.dumps.expect_call()?;
        let done = self.m().sys.lp_count.load(Ordering::Relaxed);
        if self.state() != sys_state::INITIALIZED || n != LPS as u64 || n <= done {
            return Err(format!("lps_initialised: {n} after {done}"));
        }
        for lp in done as u32..n as u32 {
            self.bring_up_call(lp, leaf::SYS_LP_INIT);
        }
        Ok(())
    }

    pub fn module_ready(&mut self, mut f: Fields) -> Result<(), String> {
        let version = f.text("version")?;
        let features = f.num("features0")?;
        if !f.has("dynamic_pamt") {
            return Err("module_ready: field dynamic_pamt is missing".into());
        }
        let dynamic = f.flag("dynamic_pamt")?;
        f.end()?;
        self.dumps.expect_call()?;
        let got = (self.module.version(), self.is_ready());
        if got != (version.as_str(), true) {
            self.mismatch("module_ready", "version", version, format!("{got:?}"));
        }
        let got = features0(self.module)?;
        self.compare("module_ready", "features0", features, got);
        let got = self.m().is_dynamic();
        if got != dynamic {
            self.mismatch("module_ready", "dynamic_pamt", dynamic, got);
        }
        Ok(())
    }
}
