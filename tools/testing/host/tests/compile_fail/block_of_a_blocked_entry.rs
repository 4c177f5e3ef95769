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

use mirror::entry::{BlockedEntry, LeafEntry, Untracked};
use mirror::external::ExternalPt;
use mirror::lock::Exclusive;
use mirror::mmu::{Mirror, Vm};

#[cfg(control)]
type Leaf<'t> = LeafEntry<'t>;
#[cfg(not(control))]
type Leaf<'t> = BlockedEntry<'t>;

pub fn block<E: ExternalPt, V: Vm>(
    m: &Mirror<E, V>,
    x: &Exclusive<'_>,
    batch: &Untracked<'_>,
    leaf: Leaf<'_>,
) {
    m.block(x, batch, leaf);
}
