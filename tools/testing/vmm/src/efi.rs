// SPDX-License-Identifier: GPL-2.0
//! As much EFI as Linux needs to learn which memory is unaccepted: a system table without
//! services, a memory map, and a configuration table with the ACPI root and the bitmap
//! of unaccepted memory.

use crate::layout::{Layout, MemoryType, Range, PAGE, UNIT};

/// Bytes of a memory descriptor.
pub const DESCRIPTOR_SIZE: u32 = 40;
pub const DESCRIPTOR_VERSION: u32 = 1;

const SYSTEM_TABLE_SIZE: u64 = 120;
const CONFIG_ENTRY_SIZE: u64 = 24;

/// 8868e871-e4f1-11d3-bc22-0080c73c8881
const ACPI_20_GUID: [u8; 16] = [
    0x71, 0xe8, 0x68, 0x88, 0xf1, 0xe4, 0xd3, 0x11, 0xbc, 0x22, 0x00, 0x80, 0xc7, 0x3c, 0x88, 0x81,
];
/// d5d1de3c-105c-44f9-9ea9-bcef98120031, of Linux
const UNACCEPTED_GUID: [u8; 16] = [
    0x3c, 0xde, 0xd1, 0xd5, 0x5c, 0x10, 0xf9, 0x44, 0x9e, 0xa9, 0xbc, 0xef, 0x98, 0x12, 0x00, 0x31,
];

const CONVENTIONAL: u32 = 7;
const ACPI_RECLAIM: u32 = 9;
const ACPI_NVS: u32 = 10;
const RESERVED: u32 = 0;
const UNACCEPTED: u32 = 15;
const WRITE_BACK: u64 = 8;

/// What the boot parameters say about EFI.
pub struct Efi {
    /// contents at the GPA that `build` got; the system table is first
    pub bytes: Vec<u8>,
    /// GPA of the memory map
    pub map: u64,
    /// bytes of the memory map
    pub map_size: u32,
}

/// The tables at `gpa`.
pub fn build(gpa: u64, layout: &Layout, rsdp: u64, unaccepted: u64) -> Efi {
    let config = gpa + SYSTEM_TABLE_SIZE;
    let vendor = config + 2 * CONFIG_ENTRY_SIZE;
    let map = vendor + 16;

    let mut bytes = b"IBI SYST".to_vec();
    bytes.extend(0x0002_0046u32.to_le_bytes()); // 2.7
    bytes.extend((SYSTEM_TABLE_SIZE as u32).to_le_bytes());
    bytes.extend([0; 8]); // checksum, which Linux does not look at
    bytes.extend(vendor.to_le_bytes());
    bytes.extend([0; 8]); // revision of the firmware
    bytes.extend([0; 6 * 8]); // consoles
    bytes.extend([0; 2 * 8]); // runtime and boot services: none
    bytes.extend(2u64.to_le_bytes());
    bytes.extend(config.to_le_bytes());
    debug_assert_eq!(bytes.len() as u64, SYSTEM_TABLE_SIZE);
    for (guid, table) in [(ACPI_20_GUID, rsdp), (UNACCEPTED_GUID, unaccepted)] {
        bytes.extend(guid);
        bytes.extend(table.to_le_bytes());
    }
    for unit in "tdx-vmm\0".encode_utf16() {
        bytes.extend(unit.to_le_bytes());
    }
    let descriptors = memory_map(layout);
    let map_size = descriptors.len() as u32 * DESCRIPTOR_SIZE;
    for (kind, range) in descriptors {
        bytes.extend(u64::from(kind).to_le_bytes());
        bytes.extend(range.start.to_le_bytes());
        bytes.extend([0; 8]); // virtual address
        bytes.extend((range.len() / PAGE).to_le_bytes());
        bytes.extend(WRITE_BACK.to_le_bytes());
    }
    Efi {
        bytes,
        map,
        map_size,
    }
}

/// RAM is split where accepted and unaccepted units meet.
fn memory_map(layout: &Layout) -> Vec<(u32, Range)> {
    let units = layout.unaccepted();
    let mut out: Vec<(u32, Range)> = Vec::new();
    for region in layout.map() {
        let kind = match region.kind {
            MemoryType::Ram => {
                let mut start = region.range.start;
                while start < region.range.end {
                    let end = ((start / UNIT + 1) * UNIT).min(region.range.end);
                    let kind = match units[(start / UNIT) as usize] {
                        true => UNACCEPTED,
                        false => CONVENTIONAL,
                    };
                    match out.last_mut() {
                        Some((last, range)) if *last == kind && range.end == start => {
                            range.end = end;
                        }
                        _ => out.push((kind, Range { start, end })),
                    }
                    start = end;
                }
                continue;
            }
            MemoryType::Reserved => RESERVED,
            MemoryType::Acpi => ACPI_RECLAIM,
            MemoryType::Nvs => ACPI_NVS,
        };
        out.push((kind, region.range));
    }
    out
}

/// The table of unaccepted memory: version, unit, base, bytes of the bitmap, bitmap.
pub fn unaccepted_table(units: &[bool]) -> Vec<u8> {
    let mut bitmap = vec![0u8; units.len().div_ceil(64) * 8];
    for (n, _) in units.iter().enumerate().filter(|(_, lazy)| **lazy) {
        bitmap[n / 8] |= 1 << (n % 8);
    }
    let mut out = 1u32.to_le_bytes().to_vec();
    out.extend((UNIT as u32).to_le_bytes());
    out.extend(0u64.to_le_bytes());
    out.extend((bitmap.len() as u64).to_le_bytes());
    out.extend(bitmap);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::at;

    const MIB: u64 = 1 << 20;

    fn u64_at(bytes: &[u8], at: u64) -> u64 {
        u64::from_le_bytes(bytes[at as usize..at as usize + 8].try_into().unwrap())
    }

    fn layout() -> Layout {
        let mut layout = Layout::new(256 * MIB, true).unwrap();
        layout.need(Range::new(16 * MIB, 20 * MIB));
        layout
    }

    #[test]
    fn system_table_leads_to_the_configuration_tables() {
        const GPA: u64 = 0x40_0000;
        let efi = build(GPA, &layout(), 0x1111, 0x2222);
        let bytes = &efi.bytes;
        assert_eq!(&bytes[..8], b"IBI SYST");
        // Offsets of efi_system_table_64_t.
        let (vendor, runtime) = (u64_at(bytes, 24), u64_at(bytes, 88));
        let (count, config) = (u64_at(bytes, 104), u64_at(bytes, 112));
        assert_eq!((runtime, count), (0, 2));
        let config = config - GPA;
        assert_eq!(bytes[config as usize..config as usize + 16], ACPI_20_GUID);
        assert_eq!(u64_at(bytes, config + 16), 0x1111);
        let config = config + 24;
        assert_eq!(
            bytes[config as usize..config as usize + 16],
            UNACCEPTED_GUID
        );
        assert_eq!(u64_at(bytes, config + 16), 0x2222);
        assert_eq!(bytes[(vendor - GPA) as usize], b't');
        let end = efi.map - GPA + u64::from(efi.map_size);
        assert_eq!(end, bytes.len() as u64);
        assert!(end <= at::UNACCEPTED - at::EFI);
    }

    #[test]
    fn memory_map_covers_what_e820_covers() {
        let layout = layout();
        let map = memory_map(&layout);
        let units = layout.unaccepted();
        let mut next = 0;
        for (kind, range) in &map[..map.len() - 1] {
            assert_eq!(range.start, next);
            next = range.end;
            let lazy = units[(range.start / UNIT) as usize];
            assert_eq!(*kind == UNACCEPTED, lazy, "{range:x?}");
        }
        assert_eq!(next, layout.memory());
        let kinds: Vec<u32> = map.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [7, 0, 7, 15, 7, 15, 7, 9, 0, 10, 0]);
    }

    #[test]
    fn unaccepted_table_has_a_bit_per_unit() {
        let table = unaccepted_table(&[true, false, true, true, false, false, false, false, true]);
        assert_eq!(table[..4], [1, 0, 0, 0]);
        assert_eq!(table[4..8], [0, 0, 0x20, 0]);
        assert_eq!(u64_at(&table, 8), 0);
        // Whole words, as Linux reads the bitmap.
        assert_eq!(u64_at(&table, 16), 8);
        assert_eq!(u64_at(&table, 24), 0b1_0000_1101);
        assert_eq!(table.len(), 32);
    }

    #[test]
    fn largest_table_fits_its_place() {
        let table = unaccepted_table(&vec![true; (3 << 30) / UNIT as usize]);
        assert!(table.len() as u64 <= at::BOOT_PARAMS - at::UNACCEPTED);
    }
}
