// SPDX-License-Identifier: GPL-2.0

//! Metadata fields: what TDH.SYS.RD answers, and how field identifiers decode.

#![forbid(unsafe_code)]

use super::machine::MAX_TDMRS;
use super::platform::{Config, PAGE_SIZE, TDVPS_PAGES};
use super::td::MIN_TDCX;
use super::tdmr::{MAX_RESERVED, PAMT_ENTRY_SIZE};
use super::version::{Dynamic, Rules};

/// ATTRIBUTES that may be 1: SEPT_VE_DISABLE. Debug TDs are not modelled.
pub(crate) const ATTRIBUTES_FIXED0: u64 = 1 << 28;
/// ATTRIBUTES that must be 1.
pub(crate) const ATTRIBUTES_FIXED1: u64 = 0;
/// XFAM bits that may be 1.
pub(crate) const XFAM_FIXED0: u64 = 0x6DBE7;
/// XFAM bits that must be 1: x87 and SSE.
pub(crate) const XFAM_FIXED1: u64 = 3;
pub(crate) const MAX_VCPUS: u64 = 576;

/// HKIDs have to take so many bits that those left for addresses are [`PAMT_ADDRESS_BITS`].
const MIN_DYNAMIC_PAMT_NUM_HKID_BITS: u64 = 0x9100_0000_0000_0014;
/// Bits of an address in an entry of a dynamic PAMT.
pub(crate) const PAMT_ADDRESS_BITS: u32 = 48;

/// Directly configurable CPUID leaves: leaf, subleaf (FFFFFFFFh: it has none) and the
/// configurable bits of EAX, EBX, ECX, EDX. Their order is that of TD_PARAMS.
pub(crate) const CPUID_CONFIG: [(u32, u32, [u32; 4]); 12] = [
    (
        0x1,
        NO_SUBLEAF,
        [0x0FFF_3FFF, 0x00FF_0000, 0x3104_4988, 0xB840_0000],
    ),
    (0x4, 0, [!0, !0, !0, !0]),
    (0x4, 1, [!0, !0, !0, !0]),
    (0x4, 2, [!0, !0, !0, !0]),
    (0x4, 3, [!0, !0, !0, !0]),
    (0x7, 0, [0, 0xD02B_9B18, 0x0280_0B30, 0x5414_4190]),
    (0x7, 1, [0x0000_1C30, 0, 0, 0]),
    (0x1F, 0, [!0, !0, !0, 0]),
    (0x1F, 1, [!0, !0, !0, 0]),
    (0x1F, 2, [!0, !0, !0, 0]),
    (0x8000_0007, NO_SUBLEAF, [0, 0, 0, 0x100]),
    (0x8000_0008, NO_SUBLEAF, [0xFF, 0x200, 0, 0]),
];
pub(crate) const NO_SUBLEAF: u32 = !0;

/// Class and code of a field identifier; element size and sequence bits do not count.
pub(crate) fn field(id: u64) -> u64 {
    id & 0xBF00_0000_00FF_FFFF
}

/// Value of a global field.
pub(crate) fn global(rules: &Rules, c: Config, id: u64) -> Option<u64> {
    let id = field(id);
    if let Some((_, value)) = rules.fields.iter().find(|(known, _)| *known == id) {
        return Some(*value);
    }
    let [major, minor, update] = rules.number;
    Some(match id {
        0x0800_0000_0000_0003 => minor,
        0x0800_0000_0000_0004 => major,
        0x0800_0000_0000_0005 => update,
        0x0A00_0000_0000_0008 => rules.features0,
        0x8900_0000_0000_0000 => rules.handoff.version,
        0x8900_0000_0000_0001 => rules.handoff.oldest,
        0x8900_0000_0000_0002 => rules.handoff.no_downgrade.into(),
        MIN_DYNAMIC_PAMT_NUM_HKID_BITS if rules.dynamic_pamt == Dynamic::Possible => {
            let bits = c.hkid_start_bit.saturating_add(c.hkid_bits).min(52);
            bits.saturating_sub(PAMT_ADDRESS_BITS).into()
        }
        0x9100_0000_0000_0008 => MAX_TDMRS as u64,
        0x9100_0000_0000_0009 => MAX_RESERVED as u64,
        0x9100_0000_0000_0010..=0x9100_0000_0000_0012 => PAMT_ENTRY_SIZE,
        0x9800_0000_0000_0000 => PAGE_SIZE, // TDR
        0x9800_0000_0000_0100 => MIN_TDCX * PAGE_SIZE,
        0x9800_0000_0000_0200 => TDVPS_PAGES as u64 * PAGE_SIZE,
        0x1900_0000_0000_0000 => ATTRIBUTES_FIXED0,
        0x1900_0000_0000_0001 => ATTRIBUTES_FIXED1,
        0x1900_0000_0000_0002 => XFAM_FIXED0,
        0x1900_0000_0000_0003 => XFAM_FIXED1,
        0x9900_0000_0000_0004 => CPUID_CONFIG.len() as u64,
        0x9900_0000_0000_0400..=0x9900_0000_0000_04FF => {
            let (leaf, sub, _) = CPUID_CONFIG.get((id & 0xFF) as usize)?;
            (u64::from(*sub) << 32) | u64::from(*leaf)
        }
        0x9900_0000_0000_0500..=0x9900_0000_0000_05FF => {
            let (_, _, [a, b, c, d]) = *CPUID_CONFIG.get((id & 0xFF) as usize / 2)?;
            match id & 1 {
                0 => (u64::from(b) << 32) | u64::from(a),
                _ => (u64::from(d) << 32) | u64::from(c),
            }
        }
        _ => return None,
    })
}
