// SPDX-License-Identifier: GPL-2.0

//! `tdx_emu.ko`: a software TDX module that answers the kernel's SEAMCALLs, for tests on machines
//! without TDX. It protects nothing.

// The pure layers are `pub` for the crates of tools/testing/host.
#![allow(missing_docs, unreachable_pub)]

use ::kernel::prelude::*;

pub mod instruments;
mod kernel;
pub mod module;
mod vmx;

module! {
    type: TdxEmu,
    name: "tdx_emu",
    authors: ["The tdx-mirror developers"],
    description: "Software TDX module, for tests",
    license: "GPL",
}

struct TdxEmu;

impl ::kernel::Module for TdxEmu {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        crate::kernel::start()?;
        Ok(TdxEmu)
    }
}

impl Drop for TdxEmu {
    fn drop(&mut self) {
        crate::kernel::stop();
    }
}
