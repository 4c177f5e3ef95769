// SPDX-License-Identifier: GPL-2.0

//! What executes TDs here: VMX if the CPU has it, else the interpreter.

use super::ffi;
use super::host::Host;
use crate::module::interp::Interpreter;
use crate::module::{Entry, GuestExit, GuestRegs, GuestRun, Unavailable, Vcpu, VcpuInit};
use crate::vmx::Vmx;
use kernel::sync::SetOnce;

/// The executor of this machine.
pub(super) struct Processor {
    vmx: SetOnce<Vmx>,
}

impl Processor {
    pub(super) const fn new() -> Self {
        Self {
            vmx: SetOnce::new(),
        }
    }

    /// Finds VMX; true if it is there.
    pub(super) fn probe(&self) -> bool {
        if let Some(vmx) = Vmx::probe(ffi::tsc_hz()) {
            self.vmx.populate(vmx);
        }
        self.vmx.as_ref().is_some()
    }

    /// Why a vCPU died since the last call, see `Vmx::take_failure`.
    pub(super) fn take_failure(&self) -> Option<(u16, u64)> {
        self.vmx.as_ref()?.take_failure()
    }

    /// The last VM exits as text; nothing without VMX.
    pub(super) fn exits(&self) -> Option<&impl core::fmt::Display> {
        self.vmx.as_ref().map(Vmx::exits)
    }

    /// Whether VMX was turned off under us.
    pub(super) fn is_gone(&self) -> bool {
        self.vmx.as_ref().is_some_and(Vmx::is_gone)
    }
}

impl GuestRun<Host> for Processor {
    fn init(&self, p: &Host, init: &VcpuInit) -> Result<(), Unavailable> {
        match self.vmx.as_ref() {
            Some(vmx) => vmx.init(p, init),
            None => Interpreter.init(p, init),
        }
    }

    fn flush(&self, p: &Host, vcpu: &Vcpu) {
        match self.vmx.as_ref() {
            Some(vmx) => vmx.flush(p, vcpu),
            None => Interpreter.flush(p, vcpu),
        }
    }

    fn run(&self, p: &Host, vcpu: &Vcpu, entry: Entry, regs: &mut GuestRegs) -> GuestExit {
        match self.vmx.as_ref() {
            Some(vmx) => vmx.run(p, vcpu, entry, regs),
            None => Interpreter.run(p, vcpu, entry, regs),
        }
    }
}
