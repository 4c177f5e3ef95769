// SPDX-License-Identifier: GPL-2.0

//! What every layer stands on: frame numbers, levels, counters, the phase of a TD, and the
//! atomics of the machine.

#![forbid(unsafe_code)]

pub mod addr;
pub mod level;
pub mod stats;
pub mod sys;
pub mod td;
