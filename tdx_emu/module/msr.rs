// SPDX-License-Identifier: GPL-2.0

//! RDMSR and WRMSR that the CPU does not execute in a TD by itself: which MSRs this
//! module answers, which a TD does not have, and which are left to the guest's #VE
//! handler, that is to the VMM.
//!
//! What no exit is needed for is opened in the MSR bitmap by the `GuestRun`.

#![forbid(unsafe_code)]

use super::cpuid::{self, XSS_BITS};
use super::entered::Entered;
use super::machine::Machine;
use super::observer::Observer;
use super::platform::Platform;
use super::td::tdcs_word;
use super::vp::word;

const APIC_BASE: u32 = 0x1B;
const FEATURE_CONTROL: u32 = 0x3A;
const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;
const XAPIC_DISABLE_STATUS: u32 = 0xBD;
const ARCH_CAPABILITIES: u32 = 0x10A;
const FLUSH_CMD: u32 = 0x10B;
const MISC_ENABLE: u32 = 0x1A0;
const DEBUGCTL: u32 = 0x1D9;
const X2APIC_ID: u32 = 0x802;
const XSS: u32 = 0xDA0;

/// IA32_ARCH_CAPABILITIES: RDCL_NO, SKIP_L1DFL_VMENTRY, MDS_NO, PSCHANGE_MC_NO, TAA_NO,
/// and XAPIC_DISABLE_STATUS: the APIC cannot leave x2APIC mode.
const ARCH_CAPABILITIES_BITS: u64 =
    (1 << 0) | (1 << 3) | (1 << 5) | (1 << 6) | (1 << 8) | (1 << 21);
/// IA32_XAPIC_DISABLE_STATUS.LEGACY_XAPIC_DISABLED.
const LEGACY_XAPIC_DISABLED: u64 = 1;

/// IA32_DEBUGCTL.BTF, the one bit that a TD may set.
const DEBUGCTL_BTF: u64 = 1 << 1;
/// IA32_SPEC_CTRL: IBRS, STIBP, SSBD.
const SPEC_CTRL_BITS: u64 = 7;
/// Leaf 7 EDX: IBRS and IBPB, STIBP, L1D_FLUSH, SSBD.
const SPEC_CTRL_FEATURES: u32 = (1 << 26) | (1 << 27) | (1 << 31);
const PRED_CMD_FEATURE: u32 = 1 << 26;
const FLUSH_CMD_FEATURE: u32 = 1 << 28;

/// MSRs of features that no TD has, first and last: KeyIDs, SGX, SMM, performance
/// monitoring, branch records, debug store, processor trace, VMX, CET, user interrupts.
const ABSENT: [(u32, u32); 17] = [
    (0x87, 0x87),
    (0x8C, 0x8F),
    (0x9B, 0x9B),
    (0x9E, 0x9E),
    (0xC1, 0xC8),
    (0x122, 0x122),
    (0x186, 0x18D),
    (0x1C4, 0x1C5),
    (0x309, 0x30C),
    (0x345, 0x345),
    (0x38D, 0x390),
    (0x3F1, 0x3F2),
    (0x480, 0x493),
    (0x560, 0x587),
    (0x600, 0x600),
    (0x6A0, 0x6A8),
    (0x985, 0x98A),
];

/// What becomes of an access to an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access<T> {
    /// Done; a read gives the value.
    Done(T),
    /// #GP(0).
    Refused,
    /// #VE: the guest may ask the VMM.
    Ve,
}

use Access::{Done, Refused, Ve};

fn absent<T>(msr: u32) -> Access<T> {
    if ABSENT
        .iter()
        .any(|(first, last)| (*first..=*last).contains(&msr))
    {
        Refused
    } else {
        Ve
    }
}

impl Entered<'_> {
    /// EDX of leaf 7 as the TD sees it.
    fn speculation_features<P: Platform, O: Observer>(&self, m: &Machine<P, O>) -> u32 {
        cpuid::virtualise(&m.p, &self.tdcs, 7, 0, cpuid::View::default()).map_or(0, |v| v[3])
    }

    /// Leaf Dh, subleaf 1: XSAVES and with it IA32_XSS.
    fn has_xss<P: Platform, O: Observer>(&self, m: &Machine<P, O>) -> bool {
        cpuid::virtualise(&m.p, &self.tdcs, 0xD, 1, cpuid::View::default())
            .is_some_and(|v| v[0] & (1 << 3) != 0)
    }

    /// RDMSR.
    pub(crate) fn read_msr<P: Platform, O: Observer>(
        &self,
        m: &Machine<P, O>,
        msr: u32,
    ) -> Access<u64> {
        match msr {
            // x2APIC mode, boot processor.
            APIC_BASE => Done(0xFEE0_0C00 | (u64::from(self.vcpu.index == 0) << 8)),
            // Locked.
            FEATURE_CONTROL => Done(1),
            ARCH_CAPABILITIES => Done(ARCH_CAPABILITIES_BITS),
            XAPIC_DISABLE_STATUS => Done(LEGACY_XAPIC_DISABLED),
            // Fast strings, neither BTS nor PEBS.
            MISC_ENABLE => Done(1 | (1 << 11) | (1 << 12)),
            SPEC_CTRL if self.speculation_features(m) & SPEC_CTRL_FEATURES != 0 => {
                Done(self.tdvps.get(word::SPEC_CTRL))
            }
            // Commands cannot be read.
            SPEC_CTRL | PRED_CMD | FLUSH_CMD => Refused,
            DEBUGCTL => Done(self.tdvps.get(word::DEBUGCTL)),
            X2APIC_ID if self.tdcs.topology_enumerated() => Done(u64::from(self.vcpu.x2apic_id)),
            XSS if self.has_xss(m) => Done(self.tdvps.get(word::XSS)),
            XSS => Refused,
            _ => absent(msr),
        }
    }

    /// WRMSR.
    pub(crate) fn write_msr<P: Platform, O: Observer>(
        &self,
        m: &Machine<P, O>,
        msr: u32,
        v: u64,
    ) -> Access<()> {
        let features = || self.speculation_features(m);
        let (allowed, kept) = match msr {
            SPEC_CTRL if features() & SPEC_CTRL_FEATURES != 0 => {
                (SPEC_CTRL_BITS, Some(word::SPEC_CTRL))
            }
            PRED_CMD if features() & PRED_CMD_FEATURE != 0 => (1, None),
            FLUSH_CMD if features() & FLUSH_CMD_FEATURE != 0 => (1, None),
            SPEC_CTRL | PRED_CMD | FLUSH_CMD => return Refused,
            DEBUGCTL => (DEBUGCTL_BTF, Some(word::DEBUGCTL)),
            XSS if self.has_xss(m) => {
                let xfam = self.tdcs.get(tdcs_word::XFAM);
                (xfam & XSS_BITS, Some(word::XSS))
            }
            XSS => return Refused,
            _ => return absent(msr),
        };
        if v & !allowed != 0 {
            return Refused;
        }
        if let Some(word) = kept {
            self.tdvps.set(word, v);
        }
        Done(())
    }
}
