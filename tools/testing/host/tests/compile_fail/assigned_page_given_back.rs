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

use mirror::external::{Assigned, ExternalPage, Free};

#[cfg(control)]
type Page = ExternalPage<Free>;
#[cfg(not(control))]
type Page = ExternalPage<Assigned>;

pub fn give_back(page: Page) {
    page.into_page();
}
