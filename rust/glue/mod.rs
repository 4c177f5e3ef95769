// SPDX-License-Identifier: GPL-2.0

use crate::bindings;

#[no_mangle]
pub extern "C" fn tdx_mirror_get_ops() -> *const bindings::tdx_mirror_ops {
    core::ptr::null()
}
