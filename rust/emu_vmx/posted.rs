// SPDX-License-Identifier: GPL-2.0
//! Posted interrupts: moved from KVM's descriptor into the virtual APIC by hand at
//! each TDH.VP.ENTER. The CPU could do it, but Bochs wants the descriptor page
//! aligned, where the architecture asks for 64 bytes only.

use core::sync::atomic::Ordering;

use super::ept;
use super::ffi::VmxError;
use super::vmcs::{field, Current};
use crate::emu::{Platform, Vcpu, TDVPS_VAPIC};

const VIRR: usize = 0x200;
/// Bit 256 of the descriptor: an interrupt was posted since it was last cleared.
const OUTSTANDING: u64 = 1;

/// Delivers what is posted to `vcpu`. KVM sets request bits first and the
/// outstanding bit after; clearing them in the opposite order loses none.
pub(super) fn sync<P: Platform>(p: &P, vcpu: &Vcpu, vm: &Current) -> Result<(), VmxError> {
    if vcpu.pi_desc == 0 {
        return Ok(());
    }
    let (Some(words), Some(vapic)) = (
        ept::table(p, vcpu.pi_desc),
        vcpu.pages
            .get(TDVPS_VAPIC)
            .and_then(|pa| ept::table(p, *pa)),
    ) else {
        return Err(VmxError::Fail);
    };
    let first = (vcpu.pi_desc as usize & 0xfff) / 8;
    let control = words.get(first.wrapping_add(4)).ok_or(VmxError::Fail)?;
    if control.load(Ordering::Acquire) & OUTSTANDING == 0 {
        return Ok(());
    }
    control.fetch_and(!OUTSTANDING, Ordering::AcqRel);

    let mut highest = None;
    // The APIC page holds 32 vectors in the first half of each 16 bytes.
    let mut irr = vapic.iter().skip(VIRR / 8).step_by(2);
    let mut base = 0u64;
    for word in words.iter().skip(first).take(4) {
        let posted = word.swap(0, Ordering::AcqRel);
        for bits in [posted & 0xffff_ffff, posted >> 32] {
            if let Some(irr) = irr.next() {
                irr.fetch_or(bits, Ordering::Relaxed);
            }
        }
        if let Some(bit) = posted.checked_ilog2() {
            highest = Some(base | u64::from(bit));
        }
        base = base.wrapping_add(64);
    }

    if let Some(vector) = highest {
        let status = vm.read(field::GUEST_INTR_STATUS)?;
        let requested = (status & 0xff).max(vector);
        vm.write(field::GUEST_INTR_STATUS, (status & 0xff00) | requested)?;
    }
    Ok(())
}
