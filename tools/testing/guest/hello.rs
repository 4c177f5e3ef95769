// SPDX-License-Identifier: GPL-2.0
//! Needs nothing of the VMM but port I/O: writes one line to the text port,
//! then the vCPU's index to the port of finished lists, for ever.
#![no_std]
#![no_main]

use rt::{abi, tdcall};

#[no_mangle]
extern "C" fn td_main(vcpu: u32, _param: u64) -> ! {
    for byte in b"TD runs\n" {
        tdcall::port_out(abi::PORT_TEXT, 1, u64::from(*byte));
    }
    loop {
        tdcall::port_out(abi::PORT_DONE, 4, u64::from(vcpu));
    }
}
