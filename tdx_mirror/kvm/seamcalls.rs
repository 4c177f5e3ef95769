// SPDX-License-Identifier: GPL-2.0

//! The SEAMCALLs of one TD, through KVM's hooks.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use super::hooks::{
    Answer,
    Hooks, //
};
use crate::base::td::Operand;
use crate::kernel::percpu::{
    self,
    Block, //
};
use crate::kernel::tsc;
use crate::sept::SeptBackend;
use crate::tdx::call::{
    Call,
    Kind, //
};
use crate::tdx::seamcall::{
    SeamOut,
    Seamcall, //
};
use crate::tdx::status::TdxStatus;
use crate::watch::trace;

/// The SEAMCALLs of one TD, through the hooks.
pub(crate) struct HookSeamcalls {
    hooks: Arc<Hooks>,
    counters: Arc<Block>,
    td: u32,
}

impl HookSeamcalls {
    /// The SEAMCALLs behind `hooks`, for the TD with the number `td`, counted in `counters`.
    pub(crate) fn new(hooks: Arc<Hooks>, counters: Arc<Block>, td: u32) -> Self {
        Self {
            hooks,
            counters,
            td,
        }
    }

    /// Issues a SEAMCALL and traces it.
    #[cold]
    #[inline(never)]
    fn traced(&self, call: Call) -> SeamOut {
        let begin = tsc::cycles();
        let answer = self.hooks.issue(call);
        let cycles = tsc::cycles().wrapping_sub(begin);
        trace::called(self.td, call, answer.status, cycles);
        seam_out(answer)
    }

    #[cold]
    #[inline(never)]
    fn traced_kick(&self) {
        let begin = tsc::cycles();
        self.hooks.kick_vcpus();
        let cycles = tsc::cycles().wrapping_sub(begin);
        trace::kick::emit(self.td, cycles);
    }
}

fn seam_out(answer: Answer) -> SeamOut {
    SeamOut {
        status: TdxStatus::new(answer.status),
        ext1: answer.ext1,
        ext2: answer.ext2,
        ext3: answer.ext3,
    }
}

impl Seamcall for HookSeamcalls {
    // Where the kind of the call is known, which is everywhere but in a retry, one hook's call is
    // left of this, behind the branch of the tracepoint.
    #[inline(always)]
    fn call(&self, call: Call) -> SeamOut {
        if trace::is_called_on(call.kind()) {
            self.traced(call.copied())
        } else {
            seam_out(self.hooks.issue(call))
        }
    }
}

impl SeptBackend for HookSeamcalls {
    type Count = percpu::Counter;

    fn counter(&self) -> percpu::Counter {
        // SAFETY: The S-EPT has its counters and this backend, which keeps the block.
        unsafe { self.counters.counter() }
    }

    fn counter_row<const N: usize>(&self) -> percpu::Row<N> {
        // SAFETY: As in `counter()`.
        unsafe { self.counters.row() }
    }

    fn kick_vcpus(&self) {
        if trace::kick::is_on() {
            return self.traced_kick();
        }
        self.hooks.kick_vcpus();
    }

    fn hold_vcpus(&self, hold: bool) {
        self.hooks.hold_vcpus(hold);
    }

    fn is_finalized(&self) -> bool {
        self.hooks.is_finalized()
    }

    fn is_hkid_assigned(&self) -> bool {
        self.hooks.is_hkid_assigned()
    }

    #[inline(always)]
    fn busy(&self, call: Call, operand: Operand, left: u32) {
        if trace::busy::is_on() {
            trace::contended(self.td, call, operand, left);
        }
    }

    #[cold]
    fn unlisted(&self, kind: Kind, status: TdxStatus) {
        let (td, name, raw) = (self.td, kind.name(), status.raw());
        pr_warn!(
            "TD {td}: {name} is retried, though what it found busy is not known to be locked there, report this line: {status:?} ({raw:#x})\n"
        );
    }
}
