// SPDX-License-Identifier: GPL-2.0
//! The software TDX module on the host.

pub mod asm;
pub mod check;
pub mod driver;
#[path = "../../../../../rust/emu/mod.rs"]
pub mod emu;
pub mod host;
pub mod replay;
pub mod vmm;

#[cfg(test)]
mod agree;
#[cfg(test)]
#[path = "../../../../../rust/mirror/mod.rs"]
pub mod mirror;
#[cfg(test)]
#[path = "../../../../../rust/tdx/mod.rs"]
pub mod tdx;
#[cfg(test)]
mod unit;
