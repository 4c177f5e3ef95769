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

use mirror::entry::{BlockedEntry, Tracked};
use mirror::external::ExternalPt;
use mirror::lock::Exclusive;
use mirror::mmu::{Mirror, Vm};

pub fn remove<E: ExternalPt, V: Vm>(
    m: &Mirror<E, V>,
    x: &Exclusive<'_>,
    tracked: &Tracked<'_>,
    leaf: BlockedEntry<'_>,
) {
    m.remove(x, tracked, leaf);
    #[cfg(not(control))]
    m.remove(x, tracked, leaf);
}
