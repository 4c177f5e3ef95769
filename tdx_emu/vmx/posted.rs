// SPDX-License-Identifier: GPL-2.0

//! Interrupts of the guest: moved from KVM's posted-interrupt descriptor into the
//! virtual APIC by hand at each TDH.VP.ENTER, and requested from the CPU, which
//! delivers them when the guest can take them.
//!
//! The CPU could do the first as well, but Bochs wants the descriptor page aligned,
//! where the architecture asks for 64 bytes only.

use core::sync::atomic::Ordering;

use super::ept;
use super::ffi::VmxError;
use super::vmcs::{field, Current};
use crate::module::{Platform, Vcpu, TDVPS_VAPIC};

const VIRR: usize = 0x200;
/// Bit 256 of the descriptor: an interrupt was posted since it was last cleared.
const OUTSTANDING: u64 = 1;

/// Moves what is posted to `vcpu` into its virtual APIC. KVM sets request bits first and the
/// outstanding bit after; clearing them in the opposite order loses none.
pub(super) fn sync<P: Platform>(p: &P, vcpu: &Vcpu) -> Result<(), VmxError> {
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

    // The APIC page holds 32 vectors in the first half of each 16 bytes.
    let mut irr = vapic.iter().skip(VIRR / 8).step_by(2);
    for word in words.iter().skip(first).take(4) {
        let posted = word.swap(0, Ordering::AcqRel);
        for bits in [posted & 0xffff_ffff, posted >> 32] {
            if let Some(irr) = irr.next() {
                irr.fetch_or(bits, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// Sets the requesting virtual interrupt for an entry: the highest vector of the
/// virtual APIC that waits, or none.
pub(super) fn request<P: Platform>(p: &P, vcpu: &Vcpu, vm: &Current) -> Result<(), VmxError> {
    let vapic = vcpu
        .pages
        .get(TDVPS_VAPIC)
        .and_then(|pa| ept::table(p, *pa));
    let mut requested = 0;
    let mut base = 0;
    for word in vapic
        .ok_or(VmxError::Fail)?
        .iter()
        .skip(VIRR / 8)
        .step_by(2)
        .take(8)
    {
        if let Some(bit) = (word.load(Ordering::Relaxed) as u32).checked_ilog2() {
            requested = base | u64::from(bit);
        }
        base = u64::wrapping_add(base, 32);
    }
    let status = vm.read(field::GUEST_INTR_STATUS)?;
    if status & 0xff != requested {
        vm.write(field::GUEST_INTR_STATUS, (status & 0xff00) | requested)?;
    }
    Ok(())
}
