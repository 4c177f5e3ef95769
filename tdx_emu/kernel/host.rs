// SPDX-License-Identifier: GPL-2.0

//! The kernel as the [`Platform`] of the software TDX module.

use core::ptr::NonNull;

use super::ffi;
use crate::module::{Config, Platform};
use kernel::sync::SetOnce;

/// KeyIDs where the machine has none: as many as TDX ever splits off.
const NO_TDX_PARTITIONING: u64 = 32 << 32 | 31;
/// A KeyID has at most this many bits.
const KEYID_BITS_MAX: u32 = 6;

/// This machine. Its properties are read by [`Host::probe`]; before that no
/// SEAMCALL comes.
pub(super) struct Host {
    config: SetOnce<Config>,
}

impl Host {
    pub(super) const fn new() -> Self {
        Self {
            config: SetOnce::new(),
        }
    }

    /// Reads the properties of the machine, once.
    pub(super) fn probe(&self) {
        let partitioning = match ffi::keyid_partitioning() {
            0 => NO_TDX_PARTITIONING,
            value => value,
        };
        let mktme = (partitioning & 0x7fff) as u16;
        let tdx = (partitioning >> 32 & 0x7fff) as u16;
        let last = mktme.saturating_add(tdx);
        self.config.populate(Config {
            hkid_start_bit: ffi::phys_bits(),
            hkid_bits: (u16::BITS - last.leading_zeros()).min(KEYID_BITS_MAX),
            // TDs have no keys here: the CPU that walks the S-EPT must not see any.
            hkid_in_entries: false,
            private_hkid_min: mktme.saturating_add(1),
            private_hkid_max: last.min(63),
            seamrr_base: 0,
            seamrr_size: 0,
            packages: ffi::nr_packages(),
            lps: ffi::nr_cpus(),
            hp_lock_timeout: ffi::tsc_hz(),
        });
    }
}

/// What a machine looks like before `probe`: no CPU, no key.
const UNKNOWN: Config = Config {
    hkid_start_bit: 52,
    hkid_bits: 0,
    hkid_in_entries: false,
    private_hkid_min: 1,
    private_hkid_max: 0,
    seamrr_base: 0,
    seamrr_size: 0,
    packages: 1,
    lps: 0,
    hp_lock_timeout: 0,
};

// SAFETY: The direct map stays for the life of the kernel and maps whole pages; a
// hot-unplugged one can hold no TDX memory, as the kernel has handed it over.
// The pages belong to the TDX module, so nobody else accesses them, or are
// parameters and EPT pages of KVM, which changes them by atomic accesses.
unsafe impl Platform for Host {
    fn page(&self, pa: u64) -> Option<NonNull<u8>> {
        ffi::page(pa)
    }

    fn clear_page(&self, pa: u64) -> bool {
        // SAFETY: The core asks for it with the page's S-EPT entry locked and not yet
        // present, so that neither a guest nor a SEAMCALL uses the page.
        unsafe { ffi::clear_page(pa) }
    }

    fn config(&self) -> Config {
        self.config.as_ref().copied().unwrap_or(UNKNOWN)
    }

    fn tsc(&self) -> u64 {
        ffi::tsc()
    }

    fn package_of(&self, lp: u32) -> u32 {
        ffi::package_of(lp)
    }

    fn interrupt_pending(&self) -> bool {
        ffi::interrupt_pending()
    }

    fn host_interrupt_pending(&self) -> bool {
        // With interrupts off the host wants none now; the CPU takes NMIs by itself.
        ffi::interrupts_on() && ffi::interrupt_pending()
    }

    fn pause(&self, us: u64) {
        ffi::pause(us);
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        ffi::cpuid(leaf, subleaf)
    }

    fn random(&self) -> Option<u64> {
        ffi::random()
    }
}
