// SPDX-License-Identifier: GPL-2.0

//! `tdx_mirror.ko`: the mirror page table of TDX guests.
//!
//! KVM keeps a readable copy, the mirror, of the Secure EPT that the TDX module holds in encrypted
//! memory. This module owns that copy for the TDs whose KVM asks for it through
//! `tdx_mirror_get_ops()`, see `include/linux/tdx_mirror.h`.

#![allow(missing_docs)]

use kernel::prelude::*;

mod bindings;
mod glue;

module! {
    type: TdxMirror,
    name: "tdx_mirror",
    authors: ["The tdx-mirror developers"],
    description: "Mirror page table of TDX guests",
    license: "GPL",
}

#[pin_data(PinnedDrop)]
struct TdxMirror {}

impl kernel::InPlaceModule for TdxMirror {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pr_info!("ABI version {}\n", bindings::TDX_MIRROR_ABI_VERSION);
        // SAFETY: x
        let _ = unsafe { bindings::tdx_mirror_watch_kvm() };
        try_pin_init!(Self {})
    }
}

#[pinned_drop]
impl PinnedDrop for TdxMirror {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: x
        unsafe { bindings::tdx_mirror_unwatch_kvm() };
    }
}
