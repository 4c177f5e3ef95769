// SPDX-License-Identifier: GPL-2.0

//! Metadata fields of a TD: what the host reads by TDH.MNG.RD, and a guest by TDG.VM.RD, and what
//! they may write.

#![forbid(unsafe_code)]

use super::cpuid;
use super::machine::Machine;
use super::metadata::field;
use super::numbers::{op, st, Res};
use super::observer::Observer;
use super::platform::Platform;
use super::td::{tdcs_word, Tdcs, ENUM_TOPOLOGY, PENDING_VE_DISABLE};

/// CONFIG_FLAGS.
pub(crate) const CONFIG_NO_RBP_MOD: u64 = 4;
const CONFIG_FLEXIBLE_PENDING_VE: u64 = 2;

/// Field HP_LOCK_TIMEOUT: for how long a guest's TDCALLs may yield to the host's priority,
/// in microseconds; its first value and what it can be set to.
pub(crate) const HP_LOCK_TIMEOUT: u64 = 0x9100_0000_0000_0011;
pub(crate) const HP_LOCK_TIMEOUT_US: u64 = 1_000_000;
/// Field TOPOLOGY_ENUM_CONFIGURED: the guest may set TD_CTLS.ENUM_TOPOLOGY.
const TOPOLOGY_ENUM_CONFIGURED: u64 = 0x9100_0000_0000_0019;
pub(crate) const HP_LOCK_TIMEOUTS_US: core::ops::RangeInclusive<u64> = 10_000..=100_000_000;

impl Tdcs<'_> {
    /// HP_LOCK_TIMEOUT in ticks of the TSC; `second`: ticks of its first value.
    pub(crate) fn hp_lock_timeout(&self, second: u64) -> u64 {
        second.saturating_mul(self.get(tdcs_word::HP_LOCK_TIMEOUT)) / HP_LOCK_TIMEOUT_US
    }
}

impl<P: Platform, O: Observer> Machine<P, O> {
    /// Value of a field of a TD, as MNG.RD and TDG.VM.RD read it.
    pub(crate) fn td_field(&self, tdcs: &Tdcs<'_>, id: u64) -> Option<u64> {
        use tdcs_word as w;
        Some(match field(id) {
            0x1100_0000_0000_0000 => tdcs.get(w::ATTRIBUTES),
            0x1100_0000_0000_0001 => tdcs.get(w::XFAM),
            0x1100_0000_0000_0002 => tdcs.get(w::MAX_VCPUS),
            0x1100_0000_0000_0003 => u64::from(tdcs.shared_bit() == 51),
            0x1100_0000_0000_0004 => (tdcs.get(w::ROOT_LEVEL) << 3) | 6,
            0x1100_0000_0000_000A => tdcs.get(w::TSC_OFFSET),
            0x1100_0000_0000_000B => 1 << 48, // TSC multiplier
            0x1100_0000_0000_000C => tdcs.get(w::TSC_FREQUENCY),
            0x1100_0000_0000_0016 => tdcs.get(w::CONFIG_FLAGS),
            0x1100_0000_0000_0017 => tdcs.get(w::TD_CTLS),
            0x9100_0000_0000_0010 => tdcs.get(w::NOTIFY_ENABLES),
            HP_LOCK_TIMEOUT => tdcs.get(w::HP_LOCK_TIMEOUT),
            TOPOLOGY_ENUM_CONFIGURED => u64::from(tdcs.topology_configured()),
            f @ 0x9400_0000_0000_0000..=0x9400_0000_0001_FFFF => {
                return cpuid::field(&self.p, tdcs, f & 0x1FFFF)
            }
            _ => return None,
        })
    }

    /// TDG.VM.WR of the fields that a guest may write. Returns the old value.
    pub(crate) fn set_td_field(&self, tdcs: &Tdcs<'_>, id: u64, v: u64, mask: u64) -> Res<u64> {
        let flexible = tdcs.get(tdcs_word::CONFIG_FLAGS) & CONFIG_FLEXIBLE_PENDING_VE != 0;
        let topology = u64::from(tdcs.topology_configured()) * ENUM_TOPOLOGY;
        let (word, writable) = match field(id) {
            0x1100_0000_0000_0017 => {
                let pending_ve = u64::from(flexible) * PENDING_VE_DISABLE;
                (tdcs_word::TD_CTLS, pending_ve | topology)
            }
            0x9100_0000_0000_0010 => (tdcs_word::NOTIFY_ENABLES, 1),
            _ => return Err(st::METADATA_FIELD_NOT_WRITABLE | op::RDX),
        };
        let old = tdcs.get(word);
        let new = old & !mask | v & mask;
        if (old ^ new) & !writable != 0 {
            return Err(st::METADATA_FIELD_VALUE_NOT_VALID | op::RDX);
        }
        tdcs.set(word, new);
        Ok(old)
    }
}
