// SPDX-License-Identifier: GPL-2.0

//! The edge between KVM's C and the mirror.

mod entry;
mod hooks;
pub(crate) mod params;
mod seamcalls;
pub(crate) mod td;
mod test_ops;
mod vcpu;
pub(crate) mod vm;
