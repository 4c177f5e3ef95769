// SPDX-License-Identifier: GPL-2.0
#![allow(
    missing_docs,
    dead_code,
    unused_variables,
    unused_must_use,
    unexpected_cfgs
)]

#[path = "../../../../../rust/mirror/mod.rs"]
pub mod mirror;

use mirror::addr::{Gfn, Pfn};
use mirror::external::ExternalPt;
use mirror::level::Level;
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
    m.map(token, pages, gfn, pfn, Level::L4K);
}
