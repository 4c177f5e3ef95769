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

use mirror::external::ExternalPt;
use mirror::lock::{Exclusive, Shared};
use mirror::mmu::{Mirror, Vm};

#[cfg(control)]
type Token<'l> = Exclusive<'l>;
#[cfg(not(control))]
type Token<'l> = Shared<'l>;

pub fn end<E: ExternalPt, V: Vm>(m: &Mirror<E, V>, token: &mut Token<'_>) {
    m.teardown(token);
}
