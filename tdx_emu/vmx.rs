// SPDX-License-Identifier: GPL-2.0

//! Runs a TD's own code on the CPU's VMX: [`GuestRun`] for the software TDX module.
//!
//! Linux keeps every CPU in VMX operation while TDX is up. Each vCPU has a VMCS in its
//! TDVPS; KVM's current VMCS is put aside for the time of an entry. The S-EPT is
//! what the host built by SEAMCALLs: its entries are EPT entries, which the CPU
//! walks. All of this happens with interrupts off and allocates nothing.

mod ept;
mod exits;
mod ffi;
mod posted;
mod setup;
mod state;
mod trace;
mod vmcs;
mod walk;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::module::{
    Entry, GuestExit, GuestRegs, GuestRun, Inject, Platform, Unavailable, Vcpu, VcpuInit,
};
use ffi::{Gprs, VmxError};
use setup::Controls;
use state::{Pages, State};
use trace::TRACE;
use vmcs::{field, Current};

/// Entries that one `run` makes by itself when the exit needs no decision.
const SELF_HANDLED_MAX: u32 = 64;
/// Interruptibility: blocking by STI and by MOV SS, which last one instruction.
const SHADOW: u64 = 3;
/// Exit reason of a failed VM entry, see `GuestExit::Failed`.
const NOT_ENTERED: u16 = 0xffff;

/// VMX of this machine as an executor of TDs.
pub(crate) struct Vmx {
    controls: Controls,
    /// Ticks of the preemption timer, the longest that the host waits for its CPU.
    timer: u64,
    /// VMX turned out to be off.
    gone: AtomicBool,
    /// Reason (low 16 bits) and detail of the last exit that killed a vCPU, 0 if
    /// none since it was last asked for.
    failure: AtomicU64,
}

impl Vmx {
    /// `None` if the CPU lacks VMX or something of it that is needed here.
    pub(crate) fn probe(tsc_hz: u64) -> Option<Self> {
        let controls = Controls::probe()?;
        Some(Self {
            controls,
            timer: (tsc_hz / 20 >> controls.timer_shift).clamp(16, 0xffff_ffff),
            gone: AtomicBool::new(false),
            failure: AtomicU64::new(0),
        })
    }

    /// Whether an instruction of VMX has faulted, as it does when the machine
    /// goes down with a vCPU in KVM_RUN.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Why a vCPU died since the last call: VMX exit reason and detail. There is no
    /// printing where it happens.
    pub(crate) fn take_failure(&self) -> Option<(u16, u64)> {
        if self.failure.load(Ordering::Relaxed) == 0 {
            return None;
        }
        match self.failure.swap(0, Ordering::Relaxed) {
            0 => None,
            failure => Some((failure as u16, failure >> 16)),
        }
    }

    /// The last VM exits, a line for each.
    pub(crate) fn exits(&self) -> &impl core::fmt::Display {
        &TRACE
    }

    fn failed(&self, vm: Option<&Current>, error: VmxError) -> GuestExit {
        let detail = match error {
            VmxError::Fault => {
                self.gone.store(true, Ordering::Relaxed);
                0x100
            }
            VmxError::Refused => 0x200,
            VmxError::Fail => vm
                .and_then(|vm| vm.read(field::INSTRUCTION_ERROR).ok())
                .unwrap_or(0),
        };
        GuestExit::Failed {
            reason: NOT_ENTERED,
            detail,
        }
    }

    /// Brings the VMCS up to date for an entry. False if what is to be injected is a triple
    /// fault instead.
    fn prepare<P: Platform>(
        &self,
        p: &P,
        vcpu: &Vcpu,
        entry: &Entry,
        vm: &Current,
        state: &mut State,
        regs: &GuestRegs,
    ) -> Result<bool, VmxError> {
        if !state.ready {
            setup::write_first(vm, &self.controls, vcpu)?;
            ept::clear_root(p, vcpu, &mut state.copied).ok_or(VmxError::Fail)?;
            state.host = ffi::HostFields::default();
            state.ready = true;
        }
        setup::write_host(vm, &mut state.host)?;
        if entry.first {
            ept::refresh_root(p, vcpu, &mut state.copied).ok_or(VmxError::Fail)?;
            posted::sync(p, vcpu)?;
        }
        if entry.flush {
            ffi::invept_all()?;
        }

        if vm.read(field::GUEST_RIP)? != regs.rip {
            let blocking = vm.read(field::GUEST_INTERRUPTIBILITY)?;
            vm.write(field::GUEST_INTERRUPTIBILITY, blocking & !SHADOW)?;
            vm.write(field::GUEST_RIP, regs.rip)?;
        }
        let alive = match entry.inject {
            Inject::None => true,
            Inject::Ve => exits::raise_fault(vm, 20, None)?,
            Inject::Exception(vector, code) => exits::raise_fault(vm, vector, code)?,
            Inject::Nmi => {
                exits::raise_nmi(vm, true)?;
                true
            }
        };

        posted::request(p, vcpu, vm)?;
        vm.write(field::PREEMPTION_TIMER, self.timer)?;
        Ok(alive)
    }

    /// Enters until an exit needs a decision.
    fn enter<P: Platform>(
        &self,
        p: &P,
        vcpu: &Vcpu,
        vm: &Current,
        gprs: &mut Gprs,
        state: &mut State,
        xsave: *mut u8,
    ) -> Result<GuestExit, VmxError> {
        let mut launch = true;
        for _ in 0..SELF_HANDLED_MAX {
            // SAFETY: `prepare` has written every field that an entry needs, the
            // host's for this CPU. The EPT maps what the core's S-EPT and KVM's
            // EPT map: the TD's pages and shared memory. Interrupts are off in
            // TDH.VP.ENTER. The XSAVE page is the vCPU's, which only this CPU runs, and
            // `state::init` has checked that XFAM fits.
            unsafe { ffi::enter(gprs, &mut state.guest, xsave, launch)? };
            launch = false;
            TRACE.record(vcpu, vm, gprs)?;
            if let Some(exit) = exits::decode(p, vcpu, vm, &mut state.copied)? {
                return Ok(exit);
            }
        }
        Ok(GuestExit::Preempted)
    }
}

impl<P: Platform> GuestRun<P> for Vmx {
    fn init(&self, p: &P, init: &VcpuInit) -> Result<(), Unavailable> {
        state::init(p, init, self.controls.revision).ok_or(Unavailable)
    }

    fn flush(&self, _p: &P, _vcpu: &Vcpu) {
        // `Current` leaves the VMCS clear after each run.
    }

    fn run(&self, p: &P, vcpu: &Vcpu, entry: Entry, regs: &mut GuestRegs) -> GuestExit {
        let Some(mut pages) = Pages::of(p, vcpu) else {
            return self.failed(None, VmxError::Fail);
        };
        let xsave = pages.xsave();
        // SAFETY: The page is a VMCS since `init`, and `GuestRun` promises that no
        // other CPU uses the vCPU. Interrupts are off in TDH.VP.ENTER.
        let vm = match unsafe { Current::load(pages.vmcs) } {
            Ok(vm) => vm,
            Err(error) => return self.failed(None, error),
        };
        // SAFETY: As above; this is the only reference.
        let state = unsafe { pages.state() };

        state.guest.xcr0 = entry.xcr0;
        let mut gprs = Gprs {
            gpr: regs.gpr,
            cr2: state.cr2,
        };
        let exit = self
            .prepare(p, vcpu, &entry, &vm, state, regs)
            .and_then(|alive| match alive {
                true => self.enter(p, vcpu, &vm, &mut gprs, state, xsave),
                false => Ok(GuestExit::TripleFault),
            });
        state.cr2 = gprs.cr2;
        regs.gpr = gprs.gpr;

        let exit = exit.and_then(|exit| {
            regs.rip = vm.read(field::GUEST_RIP)?;
            if let GuestExit::Instruction { reason: 10, .. } = exit {
                regs.cr4 = vm.read(field::GUEST_CR4)?;
                regs.user = exits::is_user(&vm)?;
            }
            Ok(exit)
        });
        let exit = match exit {
            Ok(exit) => exit,
            Err(error) => self.failed(Some(&vm), error),
        };
        if let GuestExit::Failed { reason, detail } = exit {
            let failure = u64::from(reason) | detail << 16;
            self.failure.store(failure.max(1 << 16), Ordering::Relaxed);
        }
        exit
    }
}
