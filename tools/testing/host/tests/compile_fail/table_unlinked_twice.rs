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

use mirror::entry::TableEntry;
use mirror::external::ExternalPt;
use mirror::lock::Exclusive;
use mirror::mmu::{Mirror, Vm};

pub fn unlink<E: ExternalPt, V: Vm>(m: &Mirror<E, V>, x: &Exclusive<'_>, table: TableEntry<'_>) {
    m.unlink(x, table);
    #[cfg(not(control))]
    m.unlink(x, table);
}
