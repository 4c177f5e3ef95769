// SPDX-License-Identifier: GPL-2.0

//! Facilities of the kernel that its Rust crate does not offer.

pub(crate) mod page;
pub(crate) mod percpu;
pub(crate) mod rcu;
pub(crate) mod rwlock;
pub(crate) mod sched;
pub(crate) mod switches;
pub(crate) mod tsc;
pub(crate) mod uaccess;
pub(crate) mod warn;
