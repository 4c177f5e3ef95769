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

pub fn make() {
    #[cfg(control)]
    // SAFETY: a fixture, never run.
    let token = unsafe { Shared::assume_held() };
    #[cfg(not(control))]
    let token = Shared::assume_held();
}
