// SPDX-License-Identifier: GPL-2.0

//! `tdx_mirror_test.ko`: a device that joins the mirror of `tdx_mirror.ko` and the software TDX
//! module without KVM, so that kernel threads act as vCPUs on any x86 machine. For tests only.

// The pure layers are `pub` for the crates of tools/testing/host.
#![allow(missing_docs, unreachable_pub)]

use kernel::prelude::*;

mod device;

// The software TDX module of tdx_emu.ko, built a second time.
#[path = "../tdx_emu"]
mod tdx_emu {
    pub mod instruments;
    pub mod module;
}
pub use tdx_emu::{instruments, module};

module! {
    type: TdxMirrorTest,
    name: "tdx_mirror_test",
    authors: ["The tdx-mirror developers"],
    description: "Test device for tdx_mirror on a software TDX module",
    license: "GPL",
}

struct TdxMirrorTest;

impl kernel::Module for TdxMirrorTest {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        device::start()?;
        Ok(TdxMirrorTest)
    }
}

impl Drop for TdxMirrorTest {
    fn drop(&mut self) {
        device::stop();
    }
}
