// SPDX-License-Identifier: GPL-2.0

//! Bindings of the C contract (`include/linux/tdx_mirror.h`), of what tests ask beyond it
//! (`tdx_mirror/kvm/test_ops.h`) and of the C beside the Rust
//! (`tdx_mirror/kernel/ffi.h`, `tdx_mirror/kvm/ffi.h`, `tdx_mirror/watch/ffi.h`).
//!
//! External modules have no bindgen rule, so the generated file is checked in. `regenerate.sh`
//! writes it, `abi_check.c` asserts the layout against the headers at build time.

#![allow(missing_docs, non_camel_case_types, non_upper_case_globals, dead_code)]
#![allow(unreachable_pub, clippy::all, clippy::undocumented_unsafe_blocks)]

use kernel::ffi;

mod contract;
pub(crate) use contract::*;
