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

use mirror::lock::Shared;

#[cfg(control)]
pub fn shared<T>(_: &T) {}
#[cfg(not(control))]
pub fn shared<T: Sync>(_: &T) {}

pub fn lend(token: &Shared<'_>) {
    shared(token);
}
