// SPDX-License-Identifier: GPL-2.0
//! Halts; each time the vCPU is woken it says so at the port of finished lists.
#![no_std]
#![no_main]

use rt::{abi, tdcall};

#[no_mangle]
extern "C" fn td_main(_vcpu: u32, _param: u64) -> ! {
    let mut woken = 0;
    loop {
        tdcall::request(tdcall::HLT, 0, 0, 0, 0);
        woken += 1;
        tdcall::port_out(abi::PORT_DONE, 4, woken);
    }
}
