// SPDX-License-Identifier: GPL-2.0
//! A vCPU's thread: runs it and answers its exits.

use std::sync::Arc;

use anyhow::{bail, Result};
use kvm_bindings::{
    KVM_MEMORY_EXIT_FLAG_PRIVATE, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::convert::Conversion;
use crate::devices::{Action, Devices};
use crate::layout::PAGE;
use crate::outcome::{fatal_error, Outcome};
use crate::payload::PORT_PARK;
use crate::stats::{Reason, Stats};
use crate::vm::{Vm, KVM_HC_MAP_GPA_RANGE};

/// Of KVM's interface, not in kvm-bindings.
const KVM_EXIT_TDX: u32 = 40;
const SYSTEM_EVENT_TDX_FATAL: u32 = 7;

const MAP_GPA_ENCRYPTED: u64 = 1 << 4;

/// TDVMCALL sub-functions that KVM leaves to the VMM, and answers.
const GET_TDVMCALL_INFO: u64 = 0x10000;
const SUBFUNCTION_UNSUPPORTED: u64 = 0x8000_0000_0000_0003;

/// Faults on one page in a row after which it is not converted again: KVM must have
/// another reason to refuse the access.
const FAULT_LIMIT: u32 = 1000;

pub struct Vcpu {
    pub index: usize,
    pub fd: VcpuFd,
    pub vm: Arc<Vm>,
    pub devices: Arc<Devices>,
    pub stats: Arc<Stats>,
    /// last fault and how often it came in a row
    pub fault: (u64, u32),
    /// it waits for Linux in the payload
    pub parked: bool,
}

impl Vcpu {
    /// Runs until the TD ends.
    pub fn run(&mut self) -> Outcome {
        loop {
            match self.step() {
                Ok(None) => (),
                Ok(Some(outcome)) => return outcome,
                Err(error) => return Outcome::Error(format!("vCPU {}: {error:#}", self.index)),
            }
        }
    }

    fn count(&mut self, reason: Reason) {
        self.stats.exit(self.index, reason);
        if self.parked && reason != Reason::Park && reason != Reason::Interrupted {
            self.parked = false;
            self.stats.milestone(&format!("vcpu {}", self.index));
        }
    }

    fn step(&mut self) -> Result<Option<Outcome>> {
        let (vm, devices) = (self.vm.clone(), self.devices.clone());
        let reason = match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                devices.port_read(port, data);
                match port {
                    PORT_PARK => Reason::Park,
                    _ => Reason::IoIn,
                }
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                if devices.port_write(port, data) == Action::PowerOff {
                    self.count(Reason::IoOut);
                    return Ok(Some(Outcome::PowerOff(devices.result())));
                }
                Reason::IoOut
            }
            Ok(VcpuExit::MmioRead(gpa, data)) => {
                devices.mmio_read(gpa, data);
                Reason::MmioRead
            }
            Ok(VcpuExit::MmioWrite(gpa, data)) => {
                devices.mmio_write(gpa, data);
                Reason::MmioWrite
            }
            Ok(VcpuExit::Hypercall(exit)) if exit.nr == KVM_HC_MAP_GPA_RANGE => {
                let [gpa, pages, attributes, ..] = exit.args;
                *exit.ret = map_gpa(&vm, &self.stats, gpa, pages, attributes)?;
                Reason::MapGpa
            }
            Ok(VcpuExit::Hypercall(exit)) => {
                // As KVM answers a hypercall that it does not know.
                *exit.ret = -i64::from(libc::ENOSYS) as u64;
                Reason::Hypercall
            }
            Ok(VcpuExit::MemoryFault { flags, gpa, size }) => {
                self.memory_fault(flags, gpa, size)?;
                Reason::MemoryFault
            }
            Ok(VcpuExit::Unsupported(KVM_EXIT_TDX)) => {
                self.tdvmcall();
                Reason::Tdx
            }
            Ok(VcpuExit::SystemEvent(kind, data)) => {
                let outcome = system_event(kind, data, devices.result());
                self.count(Reason::SystemEvent);
                return Ok(Some(outcome));
            }
            Ok(VcpuExit::Shutdown) => {
                self.count(Reason::Shutdown);
                let text = format!("triple fault of vCPU {}", self.index);
                return Ok(Some(Outcome::Crash(text)));
            }
            Ok(VcpuExit::Intr) => Reason::Interrupted,
            Ok(exit) => bail!("KVM_RUN ended with an exit that is not supported: {exit:?}"),
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {
                Reason::Interrupted
            }
            Err(error) if error.errno() == libc::EIO => {
                bail!("KVM_RUN: {error}: the VM is dead, the host's dmesg may say why")
            }
            Err(error) => bail!("KVM_RUN: {error}"),
        };
        self.count(reason);
        Ok(None)
    }

    /// The TD used memory as private that is shared, or the other way round: as it wants.
    fn memory_fault(&mut self, flags: u64, gpa: u64, size: u64) -> Result<()> {
        let private = flags & u64::from(KVM_MEMORY_EXIT_FLAG_PRIVATE) != 0;
        let side = if private { "private" } else { "shared" };
        let (last, times) = self.fault;
        self.fault = match last == gpa {
            true => (gpa, times + 1),
            false => (gpa, 1),
        };
        if self.fault.1 > FAULT_LIMIT {
            bail!("{side} access to {gpa:#x} fails although that memory is {side}");
        }
        let conversion = Conversion { gpa, size, private };
        if !self.vm.covers(&conversion) {
            bail!("{side} access of the TD to {gpa:#x}, where it has no memory");
        }
        self.vm.convert(&conversion, &self.stats)
    }

    /// Answers a TDVMCALL that KVM hands on: nothing is supported but the question
    /// what is.
    fn tdvmcall(&mut self) {
        /// Of `struct kvm_run`'s `tdx`: flags, nr, ret.
        const NR: usize = 8;
        const RET: usize = 16;
        let run = self.fd.get_kvm_run();
        // SAFETY: for this exit KVM has filled the union, of which any bytes are valid.
        let bytes = unsafe { &mut run.__bindgen_anon_1.padding };
        let mut nr = [0u8; 8];
        for (to, from) in nr.iter_mut().zip(&bytes[NR..]) {
            *to = *from as u8;
        }
        let ret = match u64::from_le_bytes(nr) {
            GET_TDVMCALL_INFO => 0,
            _ => SUBFUNCTION_UNSUPPORTED,
        };
        for (to, from) in bytes[RET..].iter_mut().zip(ret.to_le_bytes()) {
            *to = from as _;
        }
    }
}

/// MapGPA: returns what the TD is told.
fn map_gpa(vm: &Vm, stats: &Stats, gpa: u64, pages: u64, attributes: u64) -> Result<u64> {
    let conversion = pages.checked_mul(PAGE).map(|size| Conversion {
        gpa,
        size,
        private: attributes & MAP_GPA_ENCRYPTED != 0,
    });
    match conversion {
        Some(conversion) if vm.covers(&conversion) => {
            vm.convert(&conversion, stats)?;
            Ok(0)
        }
        _ => Ok(libc::EINVAL as u64),
    }
}

fn system_event(kind: u32, data: &[u64], result: Option<u8>) -> Outcome {
    match kind {
        SYSTEM_EVENT_TDX_FATAL => Outcome::Crash(fatal_error(data)),
        KVM_SYSTEM_EVENT_SHUTDOWN | KVM_SYSTEM_EVENT_RESET => Outcome::PowerOff(result),
        kind => Outcome::Crash(format!("system event {kind}")),
    }
}
