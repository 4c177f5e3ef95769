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

use mirror::entry::{LeafEntry, TableEntry};
use mirror::external::ExternalPt;
use mirror::lock::Exclusive;
use mirror::mmu::{Mirror, Vm};

#[cfg(control)]
type Entry<'t> = TableEntry<'t>;
#[cfg(not(control))]
type Entry<'t> = LeafEntry<'t>;

pub fn unlink<E: ExternalPt, V: Vm>(m: &Mirror<E, V>, x: &Exclusive<'_>, entry: Entry<'_>) {
    m.unlink(x, entry);
}
