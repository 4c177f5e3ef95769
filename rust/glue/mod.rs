// SPDX-License-Identifier: GPL-2.0

//! The edge between KVM's C and the mirror: the only part of the module that knows the kernel.

pub(crate) mod abi;
mod backend;
pub(crate) mod debugfs;
mod figures;
mod hooks;
pub(crate) mod kvm;
mod page;
pub(crate) mod params;
mod percpu;
mod rcu;
pub(crate) mod record;
pub(crate) mod registry;
mod rwlock;
mod switches;
mod td_files;
mod trace;
mod vcpu;
