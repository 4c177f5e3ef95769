// SPDX-License-Identifier: GPL-2.0

//! The pure parts of tdx-mirror, built unchanged on the host, and what their tests share.

#[path = "../../../../rust/mirror/mod.rs"]
pub mod mirror;

#[path = "../../../../rust/tdx/mod.rs"]
pub mod tdx;

#[path = "../../../../rust/sept/mod.rs"]
pub mod sept;

#[cfg(not(loom))]
#[macro_use]
#[path = "../../../../rust/kunit/mod.rs"]
pub mod kunit;

#[cfg(not(loom))]
pub mod aside;
pub mod mock;
pub mod vm;
