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

use base::addr::{Gfn, Pfn};
use base::level::Level;
use base::td::Phase;
use mirror::external::ExternalPt;
#[cfg(not(control))]
use mirror::lock::RcuRead as Token;
#[cfg(control)]
use mirror::lock::Shared as Token;
use mirror::mmu::{Mirror, Vm};
use mirror::table::PageSupplier;

pub fn map<E: ExternalPt, V: Vm, P: PageSupplier>(
    m: &Mirror<E, V>,
    token: &Token<'_>,
    pages: &mut P,
    gfn: Gfn,
    pfn: Pfn,
) {
    m.map(token, Phase::Run, pages, gfn, pfn, Level::L4K);
}
