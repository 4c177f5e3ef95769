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

pub fn reclaim_twice(page: ExternalPage<Assigned>) -> (ExternalPage<Free>, bool) {
    let free = page.reclaimed();
    #[cfg(not(control))]
    page.reclaimed().into_page();
    (free, true)
}
