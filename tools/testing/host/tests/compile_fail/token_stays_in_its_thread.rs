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

use mirror::lock::Exclusive;

#[cfg(control)]
pub fn moved<T>(_: T) {}
#[cfg(not(control))]
pub fn moved<T: Send>(_: T) {}

pub fn hand_over(token: Exclusive<'_>) {
    moved(token);
}
