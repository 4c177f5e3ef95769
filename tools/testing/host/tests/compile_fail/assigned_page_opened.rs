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

use base::addr::PagePtr;
use mirror::external::{Assigned, ExternalPage};

pub fn open(page: ExternalPage<Assigned>) -> PagePtr {
    #[cfg(control)]
    return page.operand();
    #[cfg(not(control))]
    return page.page;
}
