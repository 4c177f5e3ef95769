// SPDX-License-Identifier: GPL-2.0
//! What answers at I/O ports and MMIO.
//!
//! | port | |
//! |---|---|
//! | 3f8..3ff | COM1, a 16550A |
//! | f4 | the TD's own result, one byte: 0 is success |
//! | f5 | a milestone, one byte, noted with the time |
//! | f6 | parking of vCPUs that wait for Linux, see `payload` |
//! | 40..43, 61 | a PIT that stands still: reads 0, and channel 2 is over (20h) |
//! | 600, 601 | ACPI sleep control and status: power-off |
//! | all others | reads are all ones, writes are lost |

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use crate::acpi::{
    COM1_GSI, COM1_PORT, IOAPIC_GPA, PORT_SLEEP_CONTROL, PORT_SLEEP_STATUS, SLEEP_OFF,
};
use crate::console::Console;
use crate::ioapic::{self, IoApic, Message};
use crate::payload::PORT_PARK;
use crate::stats::Stats;

/// The TD's result.
pub const PORT_RESULT: u16 = 0xf4;
/// A milestone of the TD.
pub const PORT_MARK: u16 = 0xf5;

/// How long an answer from the parking port takes.
pub const PARK_TIME: Duration = Duration::from_millis(2);

/// What sends interrupt messages to the TD.
pub type Sender = Box<dyn Fn(Message) + Send + Sync>;

/// COM1's interrupt line.
pub struct Line {
    ioapic: Arc<Mutex<IoApic>>,
    send: Sender,
}

impl Trigger for Line {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        if let Some(message) = locked(&self.ioapic).pulse(COM1_GSI) {
            (self.send)(message);
        }
        Ok(())
    }
}

/// What a port write asks of the caller.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Continue,
    PowerOff,
}

pub struct Devices {
    serial: Mutex<Serial<Line, NoEvents, Console>>,
    ioapic: Arc<Mutex<IoApic>>,
    result: Mutex<Option<u8>>,
    stats: Arc<Stats>,
}

/// A panic of another thread does not make a device unusable.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn com1(port: u16) -> Option<u8> {
    let offset = port.checked_sub(COM1_PORT)?;
    u8::try_from(offset).ok().filter(|offset| *offset < 8)
}

impl Devices {
    pub fn new(console: Console, stats: Arc<Stats>, send: Sender) -> Self {
        let ioapic = Arc::new(Mutex::new(IoApic::new()));
        let line = Line {
            ioapic: ioapic.clone(),
            send,
        };
        Self {
            serial: Mutex::new(Serial::new(line, console)),
            ioapic,
            result: Mutex::new(None),
            stats,
        }
    }

    /// What the TD reported, if it did.
    pub fn result(&self) -> Option<u8> {
        *locked(&self.result)
    }

    /// A key for the TD; lost when the serial port's buffer is full.
    pub fn input(&self, bytes: &[u8]) {
        let _ = locked(&self.serial).enqueue_raw_bytes(bytes);
    }

    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        let Some(first) = data.first_mut() else {
            return;
        };
        match (port, com1(port)) {
            (_, Some(offset)) => *first = locked(&self.serial).read(offset),
            (PORT_PARK, _) => std::thread::sleep(PARK_TIME),
            (PORT_SLEEP_CONTROL | PORT_SLEEP_STATUS, _) => *first = 0,
            // All ones would have Linux poll: a PIT for 50,000 exits, an RTC for a second.
            (0x40..=0x43 | 0x70..=0x71, _) => *first = 0,
            (0x61, _) => *first = 0x20,
            _ => (),
        }
    }

    pub fn port_write(&self, port: u16, data: &[u8]) -> Action {
        let Some(&value) = data.first() else {
            return Action::Continue;
        };
        match (port, com1(port)) {
            (_, Some(offset)) => {
                // Output that cannot be written is lost, as on a line without listener.
                let _ = locked(&self.serial).write(offset, value);
            }
            (PORT_RESULT, _) => *locked(&self.result) = Some(value),
            (PORT_MARK, _) => {
                let (ms, tsc) = self.stats.milestone(&format!("mark {value}"));
                eprintln!("tdx-vmm: mark {value} at {ms} ms, TSC {tsc}");
            }
            (PORT_SLEEP_CONTROL, _) if value == SLEEP_OFF => return Action::PowerOff,
            _ => (),
        }
        Action::Continue
    }

    pub fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (Some(offset), 4) = (ioapic_offset(gpa), data.len()) {
            data.copy_from_slice(&locked(&self.ioapic).read(offset).to_le_bytes());
        }
    }

    pub fn mmio_write(&self, gpa: u64, data: &[u8]) {
        if let (Some(offset), Ok(value)) = (ioapic_offset(gpa), data.try_into()) {
            locked(&self.ioapic).write(offset, u32::from_le_bytes(value));
        }
    }
}

fn ioapic_offset(gpa: u64) -> Option<u64> {
    gpa.checked_sub(IOAPIC_GPA)
        .filter(|offset| *offset < ioapic::SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Choice;

    fn devices() -> (Devices, Arc<Mutex<Vec<Message>>>) {
        let stats = Arc::new(Stats::new(1));
        let console = Console::new(&Choice::None, stats.clone()).unwrap();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let to = sent.clone();
        let send = Box::new(move |message| to.lock().unwrap().push(message));
        (Devices::new(console, stats, send), sent)
    }

    fn read(devices: &Devices, port: u16) -> u8 {
        let mut data = [0];
        devices.port_read(port, &mut data);
        data[0]
    }

    #[test]
    fn power_off_is_one_value_of_one_port() {
        let (devices, _) = devices();
        assert_eq!(
            devices.port_write(PORT_SLEEP_CONTROL, &[0x34]),
            Action::PowerOff
        );
        assert_eq!(
            devices.port_write(PORT_SLEEP_CONTROL, &[0x24]),
            Action::Continue
        );
        assert_eq!(
            devices.port_write(PORT_SLEEP_STATUS, &[0x34]),
            Action::Continue
        );
        assert_eq!(read(&devices, PORT_SLEEP_STATUS), 0);
    }

    #[test]
    fn result_is_what_was_written_last() {
        let (devices, _) = devices();
        assert_eq!(devices.result(), None);
        devices.port_write(PORT_RESULT, &[7]);
        devices.port_write(PORT_RESULT, &[0]);
        assert_eq!(devices.result(), Some(0));
    }

    #[test]
    fn absent_devices_read_all_ones() {
        let (devices, _) = devices();
        for port in [0x60, 0xcfc, PORT_RESULT, 0x3f7, 0x400] {
            assert_eq!(read(&devices, port), 0xff, "{port:x}");
        }
        let mut data = [0u8; 8];
        devices.mmio_read(0xfed0_0000, &mut data);
        assert_eq!(data, [0xff; 8]);
    }

    #[test]
    fn serial_port_is_ready_and_interrupts_for_input() {
        const LSR: u16 = COM1_PORT + 5;
        let (devices, sent) = devices();
        assert_eq!(read(&devices, LSR), 0x60);
        for (register, value) in [(0x18u32, 0x41u32), (0x19, 0)] {
            devices.mmio_write(IOAPIC_GPA, &register.to_le_bytes());
            devices.mmio_write(IOAPIC_GPA + 0x10, &value.to_le_bytes());
        }
        devices.port_write(COM1_PORT + 1, &[1]); // received data
        devices.input(b"k");
        assert_eq!(sent.lock().unwrap().len(), 1);
        assert_eq!(sent.lock().unwrap()[0].data, 0x41);
        assert_eq!(read(&devices, LSR), 0x61);
        assert_eq!(read(&devices, COM1_PORT), b'k');
        assert_eq!(read(&devices, LSR), 0x60);
    }
}
