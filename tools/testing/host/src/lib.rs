// SPDX-License-Identifier: GPL-2.0

//! The pure parts of tdx-mirror, built unchanged on the host, and what their tests share.

/// The folder of the product, whose modules find each other at the root of a crate.
#[macro_use]
#[path = "../../../../tdx_mirror"]
mod product {
    pub mod base;
    #[cfg(not(loom))]
    #[macro_use]
    pub mod kunit;
    pub mod mirror;
    pub mod sept;
    pub mod tdx;
}
#[cfg(not(loom))]
pub use product::kunit;
pub use product::{base, mirror, sept, tdx};

#[cfg(not(loom))]
pub mod aside;
pub mod faults;
pub mod mock;
pub mod vm;
