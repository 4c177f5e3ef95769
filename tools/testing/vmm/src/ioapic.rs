// SPDX-License-Identifier: GPL-2.0
//! An I/O APIC, as much as edge-triggered interrupts need: KVM has the local APICs
//! only, and takes interrupts as messages.

/// Pins.
pub const PINS: usize = 24;
/// Bytes of its MMIO.
pub const SIZE: u64 = 0x1000;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;

const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const TABLE: u8 = 0x10;

const VERSION_VALUE: u32 = 0x11 | (PINS as u32 - 1) << 16;

const MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR: read only.
const READ_ONLY: u64 = 1 << 12 | 1 << 14;

/// An interrupt message as the local APICs take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    pub address: u32,
    pub data: u32,
}

pub struct IoApic {
    select: u8,
    id: u32,
    table: [u64; PINS],
}

impl IoApic {
    pub fn new() -> Self {
        Self {
            select: 0,
            id: 0,
            table: [MASKED; PINS],
        }
    }

    /// An edge at a pin.
    pub fn pulse(&self, pin: u8) -> Option<Message> {
        let entry = *self.table.get(usize::from(pin))?;
        if entry & MASKED != 0 {
            return None;
        }
        let logical = (entry >> 11 & 1) as u32;
        let destination = (entry >> 56) as u32;
        Some(Message {
            address: 0xfee0_0000 | destination << 12 | logical << 2,
            // Vector and delivery mode.
            data: (entry & 0x7ff) as u32,
        })
    }

    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            SELECT => self.select.into(),
            WINDOW => match self.select {
                ID | ARBITRATION => self.id,
                VERSION => VERSION_VALUE,
                n => {
                    let entry = self.entry(n).unwrap_or(0);
                    (entry >> (32 * (n & 1))) as u32
                }
            },
            _ => 0,
        }
    }

    pub fn write(&mut self, offset: u64, value: u32) {
        match (offset, self.select) {
            (SELECT, _) => self.select = value as u8,
            (WINDOW, ID) => self.id = value & 0x0f00_0000,
            (WINDOW, n) => {
                let shift = 32 * (n & 1);
                if let Some(entry) = Self::index(n).and_then(|n| self.table.get_mut(n)) {
                    let new = *entry & !(0xffff_ffff << shift) | u64::from(value) << shift;
                    *entry = new & !READ_ONLY;
                }
            }
            _ => (),
        }
    }

    fn index(register: u8) -> Option<usize> {
        Some(usize::from(register.checked_sub(TABLE)?) / 2)
    }

    fn entry(&self, register: u8) -> Option<u64> {
        self.table.get(Self::index(register)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(apic: &mut IoApic, register: u8, value: u32) {
        apic.write(SELECT, register.into());
        apic.write(WINDOW, value);
    }

    fn get(apic: &mut IoApic, register: u8) -> u32 {
        apic.write(SELECT, register.into());
        apic.read(WINDOW)
    }

    #[test]
    fn a_pin_is_masked_until_programmed() {
        let mut apic = IoApic::new();
        assert_eq!(apic.pulse(4), None);
        assert_eq!(get(&mut apic, 1), 0x0017_0011);
        set(&mut apic, 0x10 + 9, 1 << 24);
        set(&mut apic, 0x10 + 8, 0x31 | READ_ONLY as u32);
        assert_eq!(get(&mut apic, 0x18), 0x31);
        let message = Message {
            address: 0xfee0_1000,
            data: 0x31,
        };
        assert_eq!(apic.pulse(4), Some(message));
        assert_eq!(apic.pulse(5), None);
        set(&mut apic, 0x18, 0x31 | 1 << 16);
        assert_eq!(apic.pulse(4), None);
    }

    #[test]
    fn logical_destination_and_delivery_mode_go_into_the_message() {
        let mut apic = IoApic::new();
        set(&mut apic, 0x11, 3 << 24);
        set(&mut apic, 0x10, 0x42 | 1 << 8 | 1 << 11);
        let message = apic.pulse(0).unwrap();
        assert_eq!(message.address, 0xfee0_3004);
        assert_eq!(message.data, 0x142);
    }

    #[test]
    fn registers_that_do_not_exist_read_zero() {
        let mut apic = IoApic::new();
        for register in [3, 0xf, 0x40, 0xff] {
            set(&mut apic, register, 5);
            assert_eq!(get(&mut apic, register), 0, "{register:x}");
        }
        apic.write(0x40, 1);
        assert_eq!((apic.read(0x40), apic.pulse(24)), (0, None));
    }
}
