// SPDX-License-Identifier: GPL-2.0
#![allow(
    missing_docs,
    dead_code,
    unused_variables,
    unused_must_use,
    unexpected_cfgs
)]

#[path = "../../../../../tdx_mirror"]
mod product {
    pub mod base;
    pub mod mirror;
}
pub use product::{base, mirror};

use mirror::cursor::Slot;
use mirror::lock::Exclusive;

pub fn open<'t>(slot: Slot<'t, Exclusive<'t>>) {
    slot.entry();
    #[cfg(not(control))]
    slot.entry();
}
