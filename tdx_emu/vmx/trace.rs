// SPDX-License-Identifier: GPL-2.0

//! The last VM exits of all vCPUs, for debugging what a TD does. Nothing is printed
//! where exits happen; debugfs shows the ring.

use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::ffi::{Gprs, VmxError};
use super::vmcs::{field, Current};
use crate::module::Vcpu;

/// Exits that are kept.
const EXITS: usize = 256;

/// Words of an exit in the ring.
mod word {
    pub(super) const NUMBER: usize = 0;
    /// Basic exit reason; bits 31:16 vCPU, 47:32 LP.
    pub(super) const REASON: usize = 1;
    pub(super) const RIP: usize = 2;
    pub(super) const QUALIFICATION: usize = 3;
    pub(super) const GPA: usize = 4;
    /// VM-exit interruption information, IDT-vectoring information in the high half.
    pub(super) const EVENT: usize = 5;
    pub(super) const CR3: usize = 6;
    pub(super) const RSP: usize = 7;
    pub(super) const RFLAGS: usize = 8;
    pub(super) const RAX: usize = 9;
    pub(super) const RCX: usize = 10;
    pub(super) const CR2: usize = 11;
}

const WORDS: usize = 12;

/// The ring. Writers take turns by number; a reader sees an exit that is being
/// overwritten as a mixture of both.
pub(super) struct Trace {
    next: AtomicUsize,
    exits: [[AtomicU64; WORDS]; EXITS],
}

/// A static, since it is too large for the stack on which the rest of the state is made.
pub(super) static TRACE: Trace = Trace::new();

impl Trace {
    const fn new() -> Self {
        Self {
            next: AtomicUsize::new(0),
            exits: [const { [const { AtomicU64::new(0) }; WORDS] }; EXITS],
        }
    }

    /// Notes the exit that the current VMCS holds.
    pub(super) fn record(&self, vcpu: &Vcpu, vm: &Current, gprs: &Gprs) -> Result<(), VmxError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let Some(exit) = self.exits.get(number % EXITS) else {
            return Ok(());
        };
        let place = u64::from(vcpu.index) << 16 | u64::from(vcpu.lp) << 32;
        let event = vm.read(field::EXIT_INTR_INFO)? | vm.read(field::IDT_VECTORING_INFO)? << 32;
        for (i, value) in [
            (word::NUMBER, (number as u64).wrapping_add(1)),
            (word::REASON, vm.read(field::EXIT_REASON)? & 0xffff | place),
            (word::RIP, vm.read(field::GUEST_RIP)?),
            (word::QUALIFICATION, vm.read(field::EXIT_QUALIFICATION)?),
            (word::GPA, vm.read(field::GUEST_PHYSICAL_ADDRESS)?),
            (word::EVENT, event),
            (word::CR3, vm.read(field::GUEST_CR3)?),
            (word::RSP, vm.read(field::GUEST_RSP)?),
            (word::RFLAGS, vm.read(field::GUEST_RFLAGS)?),
            (word::RAX, gprs.gpr.first().copied().unwrap_or(0)),
            (word::RCX, gprs.gpr.get(1).copied().unwrap_or(0)),
            (word::CR2, gprs.cr2),
        ] {
            if let Some(word) = exit.get(i) {
                word.store(value, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

impl fmt::Display for Trace {
    /// One line for each exit, the oldest first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let next = self.next.load(Ordering::Relaxed);
        for i in 0..EXITS {
            let Some(exit) = self.exits.get(next.wrapping_add(i) % EXITS) else {
                continue;
            };
            let get = |w: usize| exit.get(w).map_or(0, |word| word.load(Ordering::Relaxed));
            if get(word::NUMBER) == 0 {
                continue;
            }
            let (reason, event) = (get(word::REASON), get(word::EVENT));
            writeln!(
                f,
                "{} vcpu={} lp={} reason={} rip={:x} qualification={:x} gpa={:x} event={:x} \
                 vectoring={:x} cr3={:x} rsp={:x} rflags={:x} rax={:x} rcx={:x} cr2={:x}",
                get(word::NUMBER),
                reason >> 16 & 0xffff,
                reason >> 32,
                reason & 0xffff,
                get(word::RIP),
                get(word::QUALIFICATION),
                get(word::GPA),
                event & 0xffff_ffff,
                event >> 32,
                get(word::CR3),
                get(word::RSP),
                get(word::RFLAGS),
                get(word::RAX),
                get(word::RCX),
                get(word::CR2),
            )?;
        }
        Ok(())
    }
}
