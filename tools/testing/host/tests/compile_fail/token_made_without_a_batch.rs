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

use mirror::entry::Tracked;

#[cfg(control)]
pub fn make<'b>(tracked: Tracked<'b>) -> Tracked<'b> {
    tracked
}

#[cfg(not(control))]
pub fn make<'b>() -> Tracked<'b> {
    Tracked(core::marker::PhantomData)
}
