// SPDX-License-Identifier: GPL-2.0
//! The ACPI tables of a machine with nothing but CPUs, a serial port and a power switch.
//!
//! Hardware-reduced ACPI: no PIC, PIT or RTC. The CPUs other than the first are started
//! by the multiprocessor wake-up structure (MADT type 16), since a TD cannot use
//! INIT and SIPI. Power-off is the sleep control register.

use crate::layout::{at, PAGE};

/// I/O port of the sleep control register.
pub const PORT_SLEEP_CONTROL: u16 = 0x600;
/// I/O port of the sleep status register.
pub const PORT_SLEEP_STATUS: u16 = 0x601;
/// What Linux writes to the sleep control register to power off: SLP_TYP 5, SLP_EN.
pub const SLEEP_OFF: u8 = 5 << 2 | 1 << 5;
/// First port and GSI of COM1.
pub const COM1_PORT: u16 = 0x3f8;
pub const COM1_GSI: u8 = 4;
/// MMIO of the I/O APIC.
pub const IOAPIC_GPA: u64 = 0xfec0_0000;

const OEM: &[u8; 6] = b"TDXMIR";
const OEM_TABLE: &[u8; 8] = b"TDX VMM ";

/// The tables at `gpa`, the RSDP first, for `cpus` CPUs with APIC IDs from 0.
pub fn tables(gpa: u64, cpus: u32, mailbox: u64, reset: u64) -> Vec<u8> {
    let mut out = vec![0u8; 64];
    let mut place = |table: Vec<u8>| {
        let here = gpa + out.len() as u64;
        out.extend(table);
        out.resize(out.len().next_multiple_of(16), 0);
        here
    };
    let dsdt = place(table(b"DSDT", 2, dsdt_aml()));
    let fadt = place(fadt(dsdt));
    let madt = place(madt(cpus, mailbox, reset));
    let pointers = [fadt, madt]
        .iter()
        .flat_map(|gpa| gpa.to_le_bytes())
        .collect();
    let xsdt = place(table(b"XSDT", 1, pointers));
    let rsdp = rsdp(xsdt);
    out[..rsdp.len()].copy_from_slice(&rsdp);
    debug_assert!(out.len() as u64 <= at::EFI - at::ACPI && gpa % PAGE == 0);
    out
}

/// What makes the sum of all bytes 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut out = b"RSD PTR \0".to_vec();
    out.extend(OEM);
    out.push(2); // revision
    out.extend([0; 4]); // RSDT
    out.extend(36u32.to_le_bytes());
    out.extend(xsdt.to_le_bytes());
    out.extend([0; 4]);
    out[8] = checksum(&out[..20]);
    out[32] = checksum(&out);
    out
}

fn table(signature: &[u8; 4], revision: u8, body: Vec<u8>) -> Vec<u8> {
    let mut out = signature.to_vec();
    out.extend((36 + body.len() as u32).to_le_bytes());
    out.extend([revision, 0]);
    out.extend(OEM);
    out.extend(OEM_TABLE);
    out.extend(1u32.to_le_bytes());
    out.extend(b"TDXM");
    out.extend(1u32.to_le_bytes());
    out.extend(body);
    out[9] = checksum(&out);
    out
}

fn fadt(dsdt: u64) -> Vec<u8> {
    const NO_VGA: u16 = 1 << 2;
    const NO_CMOS_RTC: u16 = 1 << 5;
    const WBINVD: u32 = 1;
    const HW_REDUCED: u32 = 1 << 20;
    // Offsets as in the ACPI specification, from the start of the table.
    let mut body = vec![0u8; 276 - 36];
    let mut put = |offset: usize, bytes: &[u8]| {
        body[offset - 36..offset - 36 + bytes.len()].copy_from_slice(bytes);
    };
    put(109, &(NO_VGA | NO_CMOS_RTC).to_le_bytes());
    put(112, &(WBINVD | HW_REDUCED).to_le_bytes());
    put(131, &[5]); // minor revision
    put(140, &dsdt.to_le_bytes());
    put(244, &port(PORT_SLEEP_CONTROL));
    put(256, &port(PORT_SLEEP_STATUS));
    table(b"FACP", 6, body)
}

/// Generic address of an 8-bit port.
fn port(port: u16) -> [u8; 12] {
    let [low, high] = port.to_le_bytes();
    [1, 8, 0, 1, low, high, 0, 0, 0, 0, 0, 0]
}

fn madt(cpus: u32, mailbox: u64, reset: u64) -> Vec<u8> {
    let mut body = 0xfee0_0000u32.to_le_bytes().to_vec();
    body.extend(0u32.to_le_bytes()); // no PC-compatible PICs
    for id in 0..cpus {
        // Processor local x2APIC: enabled.
        body.extend([9, 16, 0, 0]);
        body.extend(id.to_le_bytes());
        body.extend(1u32.to_le_bytes());
        body.extend(id.to_le_bytes());
    }
    // I/O APIC with ID 0, from GSI 0.
    body.extend([1, 12, 0, 0]);
    body.extend((IOAPIC_GPA as u32).to_le_bytes());
    body.extend(0u32.to_le_bytes());
    // Multiprocessor wake-up, version 1: with a way back for CPUs taken offline.
    body.extend([16, 24, 1, 0, 0, 0, 0, 0]);
    body.extend(mailbox.to_le_bytes());
    body.extend(reset.to_le_bytes());
    table(b"APIC", 5, body)
}

/// `Name (_S5, Package () {5, 0})`, and COM1:
///
/// ```text
/// Scope (\_SB) {
///     Device (COM1) {
///         Name (_HID, EisaId ("PNP0501"))
///         Name (_CRS, ResourceTemplate () {
///             IO (Decode16, 0x3f8, 0x3f8, 1, 8)
///             Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {4}
///         })
///     }
/// }
/// ```
fn dsdt_aml() -> Vec<u8> {
    let [low, high] = COM1_PORT.to_le_bytes();
    let mut resources = vec![0x47, 1, low, high, low, high, 1, 8];
    resources.extend([0x89, 6, 0, 0b0011, 1, COM1_GSI, 0, 0, 0]);
    resources.extend([0x79, 0]);

    let mut buffer = vec![0x0a, resources.len() as u8];
    buffer.extend(&resources);
    let mut device = b"COM1".to_vec();
    device.extend(b"\x08_HID\x0c");
    device.extend([0x41, 0xd0, 0x05, 0x01]); // PNP0501
    device.extend(b"\x08_CRS\x11");
    device.extend(package(buffer));

    let mut scope = b"\\_SB_".to_vec();
    scope.extend([0x5b, 0x82]);
    scope.extend(package(device));

    let mut out = b"\x08_S5_\x12".to_vec();
    out.extend(package(vec![2, 0x0a, 5, 0]));
    out.push(0x10);
    out.extend(package(scope));
    out
}

/// With the AML package length before it, which counts itself.
fn package(body: Vec<u8>) -> Vec<u8> {
    let mut out = match body.len() + 1 {
        len @ 0..64 => vec![len as u8],
        len => vec![0x40 | ((len + 1) & 15) as u8, ((len + 1) >> 4) as u8],
    };
    out.extend(body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPA: u64 = 0x1fff_0000;
    const MAILBOX: u64 = 0x1fff_f000;
    const RESET: u64 = 0xffff_f000;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The table at `gpa`, its checksum verified.
    fn table_at<'a>(all: &'a [u8], gpa: u64, signature: &[u8; 4]) -> &'a [u8] {
        let at = (gpa - GPA) as usize;
        let len = u32_at(all, at + 4) as usize;
        let table = &all[at..at + len];
        assert_eq!(&table[..4], signature);
        assert_eq!(sum(table), 0);
        table
    }

    /// From the RSDP, as an operating system walks.
    fn walk(cpus: u32) -> [Vec<u8>; 3] {
        let all = tables(GPA, cpus, MAILBOX, RESET);
        assert_eq!(&all[..8], b"RSD PTR ");
        assert_eq!((sum(&all[..20]), sum(&all[..36]), all[15]), (0, 0, 2));
        let xsdt = table_at(&all, u64_at(&all, 24), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 2 * 8);
        let fadt = table_at(&all, u64_at(xsdt, 36), b"FACP");
        let madt = table_at(&all, u64_at(xsdt, 44), b"APIC");
        let dsdt = table_at(&all, u64_at(fadt, 140), b"DSDT");
        [fadt.to_vec(), madt.to_vec(), dsdt.to_vec()]
    }

    #[test]
    fn fadt_is_hardware_reduced_and_can_power_off() {
        let [fadt, ..] = walk(2);
        assert_eq!((fadt.len(), fadt[8]), (276, 6));
        assert_eq!(u32_at(&fadt, 112) & 1 << 20, 1 << 20);
        // Both registers: system I/O space, 8 bits.
        assert_eq!(fadt[244..247], [1, 8, 0]);
        assert_eq!(u64_at(&fadt, 248), u64::from(PORT_SLEEP_CONTROL));
        assert_eq!(fadt[256..259], [1, 8, 0]);
        assert_eq!(u64_at(&fadt, 260), u64::from(PORT_SLEEP_STATUS));
    }

    #[test]
    fn madt_lists_each_cpu_and_the_mailbox() {
        for cpus in 1..=4 {
            let [_, madt, _] = walk(cpus);
            let (mut at, mut ids, mut mailbox) = (44, vec![], None);
            while at < madt.len() {
                let (kind, len) = (madt[at], usize::from(madt[at + 1]));
                match kind {
                    9 => {
                        assert_eq!((len, u32_at(&madt, at + 8)), (16, 1));
                        ids.push(u32_at(&madt, at + 4));
                    }
                    1 => assert_eq!(u32_at(&madt, at + 4), 0xfec0_0000),
                    16 => mailbox = Some((u64_at(&madt, at + 8), u64_at(&madt, at + 16))),
                    _ => panic!("type {kind}"),
                }
                at += len;
            }
            assert_eq!(at, madt.len());
            assert_eq!(ids, (0..cpus).collect::<Vec<_>>());
            assert_eq!(mailbox, Some((MAILBOX, RESET)));
        }
    }

    #[test]
    fn dsdt_has_s5_and_com1() {
        let [.., dsdt] = walk(1);
        let aml = &dsdt[36..];
        assert_eq!(&aml[..11], b"\x08_S5_\x12\x05\x02\x0a\x05\x00");
        // The scope ends with the table.
        assert_eq!((aml[11], aml[12] & 0xc0), (0x10, 0));
        assert_eq!(12 + usize::from(aml[12]), aml.len());
        let end = aml.len();
        assert_eq!(aml[end - 19..end - 11], [0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8]);
        assert_eq!(aml[end - 2..], [0x79, 0]);
    }

    #[test]
    fn aml_package_lengths() {
        assert_eq!(package(vec![0; 62])[0], 63);
        let long = package(vec![0; 63]);
        assert_eq!((long[0], long[1], long.len()), (0x41, 4, 65));
    }

    #[test]
    fn tables_fit_their_place() {
        assert!(tables(GPA, 8, MAILBOX, RESET).len() as u64 <= at::EFI);
    }
}
