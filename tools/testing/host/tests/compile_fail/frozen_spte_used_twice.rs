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

use base::addr::Pfn;
use base::td::Phase;
use mirror::external::ExternalPt;
use mirror::frozen::FrozenSpte;
use mirror::lock::Shared;

pub fn twice<E: ExternalPt>(frozen: FrozenSpte<'_>, l: &Shared<'_>, ext: &E, pfn: Pfn) {
    frozen.map_leaf(l, ext, Phase::Run, pfn);
    #[cfg(not(control))]
    frozen.map_leaf(l, ext, Phase::Run, pfn);
}
