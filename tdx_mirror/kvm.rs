// SPDX-License-Identifier: GPL-2.0

//! The edge between KVM's C and the mirror.

pub(crate) mod entry;
mod hooks;
pub(crate) mod params;
pub(crate) mod probe;
mod seamcalls;
mod test_ops;
mod vcpu;
