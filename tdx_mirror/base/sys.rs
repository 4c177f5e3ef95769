// SPDX-License-Identifier: GPL-2.0

//! The atomics that the protocol runs on, and the size of a table.
//!
//! In the kernel these are `core`'s: C code never touches an SPTE of the mirror, so no C barrier
//! has to pair with them, and on x86 a `lock cmpxchg` is a full barrier either way.  Under loom
//! they are loom's, which explores the interleavings of the shipped source.

#![forbid(unsafe_code)]

#[cfg(CONFIG_RUST)]
mod kernel;
#[cfg(CONFIG_RUST)]
pub use self::kernel::{AtomicBool, AtomicU64, Ordering, TABLE_CELLS};

#[cfg(all(loom, not(CONFIG_RUST)))]
mod loom;
#[cfg(all(loom, not(CONFIG_RUST)))]
pub use self::loom::{AtomicBool, AtomicU64, Ordering, TABLE_CELLS};

#[cfg(not(any(loom, CONFIG_RUST)))]
mod host;
#[cfg(not(any(loom, CONFIG_RUST)))]
pub use self::host::{AtomicBool, AtomicU64, Ordering, TABLE_CELLS};
