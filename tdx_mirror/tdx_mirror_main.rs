// SPDX-License-Identifier: GPL-2.0

//! `tdx_mirror.ko`: the mirror page table of TDX guests.
//!
//! KVM keeps a readable copy, the mirror, of the Secure EPT, which the TDX module keeps where the
//! host cannot read it. This module owns that copy for the TDs whose KVM asks for it through
//! `tdx_mirror_get_ops()`, see `include/linux/tdx_mirror.h`.

use ::kernel::prelude::*;

mod bindings;
mod kernel;
mod kvm;
mod watch;
// Public, because the pure layers serve other crates too: not each of their items is used here.
pub mod base;
pub mod mirror;
pub mod sept;
pub mod tdx;

module! {
    type: TdxMirror,
    name: "tdx_mirror",
    authors: ["The tdx-mirror developers"],
    description: "Mirror page table of TDX guests",
    license: "GPL",
    params: {
        fault_tries: u32 {
            default: crate::kvm::params::DEFAULT_FAULT_TRIES,
            description: "Tries of a SEAMCALL that finds its operand busy in a fault (1 to 5, default 5)",
        },
        zap_batch: u32 {
            default: crate::kvm::params::DEFAULT_ZAP_BATCH,
            description: "Pages that are zapped with one TDH.MEM.TRACK at most (1 to 512, default 512)",
        },
    },
}

/// What lives while the module is loaded. Fields go in order: the files first, which show the rest.
#[pin_data]
struct TdxMirror {
    _files: watch::debugfs::Files,
    _recording: watch::record::Guard,
}

impl ::kernel::InPlaceModule for TdxMirror {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // SAFETY: Called once, when the module is loaded, before anything else can reach it.
        unsafe { watch::registry::init() };
        // SAFETY: As above.
        let recording = unsafe { watch::record::init() };
        let fault_tries = module_parameters::fault_tries.value();
        let zap_batch = module_parameters::zap_batch.value();
        try_pin_init!(Self {
            _: { kvm::params::set(fault_tries, zap_batch)? },
            _: {
                pr_info!(
                    "mirror page table of TDX guests, ABI version {}, fault_tries={fault_tries}, zap_batch={zap_batch}, vp_enter_policy={}\n",
                    bindings::TDX_MIRROR_ABI_VERSION,
                    kvm::params::vp_enter_policy().name()
                );
            },
            _files: watch::debugfs::Files::new()?,
            _recording: recording,
        })
    }
}
