// SPDX-License-Identifier: GPL-2.0
//! Never exits of its own accord: the VMM must force it out.
#![no_std]
#![no_main]

use rt as _;

#[no_mangle]
extern "C" fn td_main(_vcpu: u32, _param: u64) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
