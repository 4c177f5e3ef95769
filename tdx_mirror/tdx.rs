// SPDX-License-Identifier: GPL-2.0

//! The TDX module's interface: completion status, leaf numbers, S-EPT states, SEAMCALLs.
//!
//! Facts only, no policy.

#![forbid(unsafe_code)]

pub mod call;
pub mod leaf;
pub mod seamcall;
pub mod sept;
pub mod status;
