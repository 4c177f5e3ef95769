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

use mirror::entry::{Building, LeafEntry, Untracked};
use mirror::external::ExternalPt;
use mirror::lock::Exclusive;
use mirror::mmu::{Mirror, Vm};

#[cfg(control)]
type Batch<'b> = Untracked<'b>;
#[cfg(not(control))]
type Batch<'b> = Building<'b>;

pub fn block<E: ExternalPt, V: Vm>(
    m: &Mirror<E, V>,
    x: &Exclusive<'_>,
    batch: &Batch<'_>,
    leaf: LeafEntry<'_>,
) {
    m.block(x, batch, leaf);
}
