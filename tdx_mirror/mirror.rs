// SPDX-License-Identifier: GPL-2.0

//! The mirror page table of one TD and the protocol that keeps it equal to the Secure EPT.
//!
//! Everything here is pure: it needs `core` alone, builds unchanged in the kernel and on the
//! host, and reaches the world through the traits [`external::ExternalPt`], [`mmu::Vm`] and
//! [`table::PageMap`].
//!
//! Two protocols exist and the evidence tokens of [`lock`] keep them apart.  With mmu_lock held
//! for read, an entry is frozen with cmpxchg, the external table is updated, and the entry is
//! thawed to the new value or rolled back to the old one.  With mmu_lock held for write nothing
//! is frozen, and a frozen entry is a bug.

mod audit;
pub mod cell;
pub mod cursor;
pub mod entry;
pub mod error;
pub mod external;
pub mod frozen;
pub mod lock;
mod map;
pub mod mmu;
pub mod spte;
pub mod stats;
pub mod table;
mod teardown;
mod zap;

pub use self::audit::Compared;
