// SPDX-License-Identifier: GPL-2.0

//! The software TDX module on the host.

pub mod asm;
pub mod check;
pub mod driver;
pub mod host;
pub mod replay;
pub mod vmm;

#[cfg(test)]
mod agree;

#[path = "../../../../../tdx_emu"]
mod tdx_emu {
    pub mod instruments;
    pub mod module;
}

pub use tdx_emu::{instruments, module};

#[cfg(test)]
#[expect(
    unused_macros,
    unused_imports,
    reason = "numbers are compared, nothing is counted"
)]
#[path = "../../../../../tdx_mirror"]
mod tdx_mirror {
    pub mod base;
    pub mod tdx;
}

#[cfg(test)]
pub use tdx_mirror::{base, tdx};
#[cfg(test)]
mod unit;
#[cfg(test)]
mod versions;
