// SPDX-License-Identifier: GPL-2.0

//! The way to the TDX module, and what it answers.

#![forbid(unsafe_code)]

use super::call::Call;
use super::status::TdxStatus;

/// What a SEAMCALL answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeamOut {
    /// Completion status, RAX.
    pub status: TdxStatus,
    /// RCX, 0 if the leaf has no such output.
    pub ext1: u64,
    /// RDX, 0 if the leaf has no such output.
    pub ext2: u64,
    /// R8, 0 if the leaf has no such output.
    pub ext3: u64,
}

impl SeamOut {
    /// A status without outputs.
    pub const fn of(status: TdxStatus) -> Self {
        Self {
            status,
            ext1: 0,
            ext2: 0,
            ext3: 0,
        }
    }
}

/// One TD's SEAMCALLs.
pub trait Seamcall {
    /// Makes one call: no retry, no sleep.
    fn call(&self, call: Call) -> SeamOut;
}
