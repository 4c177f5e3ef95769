// SPDX-License-Identifier: GPL-2.0
//! The selftests' payload: every vCPU runs the op lists of its parameter block.
#![no_std]
#![no_main]

#[no_mangle]
extern "C" fn td_main(vcpu: u32, param: u64) -> ! {
    rt::ops::run(vcpu, param)
}
