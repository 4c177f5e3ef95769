// SPDX-License-Identifier: GPL-2.0
#![allow(missing_docs, dead_code, unexpected_cfgs)]
#![deny(unused_must_use)]

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
use mirror::lock::Shared;
use mirror::mmu::{Mirror, Vm};
use mirror::table::PageSupplier;

pub fn ignored<E: ExternalPt, V: Vm, P: PageSupplier>(
    mirror: &Mirror<E, V>,
    l: &Shared<'_>,
    pages: &mut P,
    gfn: Gfn,
    pfn: Pfn,
) {
    #[cfg(control)]
    let _outcome = mirror.map(l, Phase::Run, pages, gfn, pfn, Level::L4K);
    #[cfg(not(control))]
    mirror.map(l, Phase::Run, pages, gfn, pfn, Level::L4K);
}
