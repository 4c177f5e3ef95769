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
use mirror::lock::{Exclusive, RcuRead};

#[cfg(control)]
type Token<'l> = Exclusive<'l>;
#[cfg(not(control))]
type Token<'l> = RcuRead<'l>;

pub fn open<'t>(slot: Slot<'t, Token<'t>>) {
    slot.entry();
}
