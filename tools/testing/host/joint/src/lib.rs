// SPDX-License-Identifier: GPL-2.0

//! The mirror over the software TDX module, without KVM: both as they are shipped, joined as
//! kvm_intel joins them, with one call of the module for each operation.
//!
//! The mirror's pages and the TD's pages are no memory of this program that the mirror could
//! follow: tables lie in an arena under frame numbers of their own, and data pages and pages of
//! the S-EPT have physical addresses of the emulated machine only.

pub mod arena;
pub mod backend;
mod check;
pub mod compare;
pub mod drive;
pub mod guests;
pub mod lock;
pub mod model;
pub mod ops;
pub mod replay;
pub mod tally;
pub mod td;
pub mod watch;
