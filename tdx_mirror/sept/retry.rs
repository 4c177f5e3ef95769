// SPDX-License-Identifier: GPL-2.0

//! SEAMCALLs with a budget of tries.

#![forbid(unsafe_code)]

use super::backend::SeptBackend;
use super::budget::{
    TEARDOWN_TRIES,
    ZAP_TRIES, //
};
use super::table::Sept;
use crate::base::stats::Count;
use crate::base::sys::Relaxed;
use crate::base::td::{
    Operand,
    Phase, //
};
use crate::mirror::external::ExtFailure;
use crate::tdx::call::{
    Call,
    Kind, //
};
use crate::tdx::seamcall::SeamOut;
use crate::tdx::status::TdxStatus;

/// Why a call is not done.
pub(super) enum CallError {
    /// Contention for the whole budget.
    Contended(Operand, SeamOut),
    /// Another answer.
    Failed(SeamOut),
}

impl CallError {
    /// Where contention is a failure too.
    pub(super) fn failure(self, kind: Kind) -> ExtFailure {
        match self {
            Self::Contended(_, out) | Self::Failed(out) => failure(kind, out),
        }
    }
}

/// What a call of `kind` answered, for the report.
pub(super) fn failure(kind: Kind, out: SeamOut) -> ExtFailure {
    ExtFailure {
        op: kind.name(),
        status: out.status.raw(),
        ext1: out.ext1,
        ext2: out.ext2,
        ext3: out.ext3,
    }
}

impl<B: SeptBackend> Sept<B> {
    /// Makes a call and counts it.
    #[inline(always)]
    pub(super) fn call(&self, call: Call) -> SeamOut {
        self.calls.count(call.kind());
        self.backend.call(call)
    }

    /// Calls until it is done, fails or has met contention `tries` times; `again` is given what
    /// was busy before each further try.
    ///
    /// Nearly always the first try succeeds: that much is inlined where it is used, and there the
    /// kind of the call is known.
    #[inline(always)]
    pub(super) fn tries(
        &self,
        call: Call,
        phase: Phase,
        tries: u32,
        mut again: impl FnMut(Operand),
    ) -> Result<SeamOut, CallError> {
        let out = self.call(call);
        if out.status.is_success() {
            return Ok(out);
        }
        self.more_tries(call.copied(), phase, tries, &mut again, out)
    }

    /// What follows a first try that was answered `out`.
    #[cold]
    #[inline(never)]
    fn more_tries(
        &self,
        call: Call,
        phase: Phase,
        tries: u32,
        again: &mut dyn FnMut(Operand),
        mut out: SeamOut,
    ) -> Result<SeamOut, CallError> {
        let kind = call.kind();
        let mut left = tries;
        loop {
            if out.status.is_success() {
                return Ok(out);
            }
            if kind.is_done(out.status, out.ext1) {
                self.calls.informational(kind);
                return Ok(out);
            }
            let Some(operand) = kind.contention(out.status, phase) else {
                self.calls.failed(kind);
                return Err(CallError::Failed(out));
            };
            self.stats.busy.inc();
            left = left.saturating_sub(1);
            self.backend.busy(call, operand, left);
            if operand == Operand::Other && !self.unlisted.xchg(true, Relaxed) {
                self.backend.unlisted(kind, out.status);
            }
            if left == 0 {
                self.stats.giveups.inc();
                self.calls.giveups.add(kind, operand);
                return Err(CallError::Contended(operand, out));
            }
            again(operand);
            self.stats.retries.inc();
            self.calls.retries.add(kind, operand);
            out = self.call(call);
        }
    }

    /// A call in a zap: one try, then all vCPUs out and held out, and one more.
    ///
    /// Other mappers are kept out by mmu_lock, so that only vCPUs contend; with them out too, the
    /// second try cannot find a lock held. They stay out until the batch ends, because a guest
    /// that accepts pages all the time would have to be kicked for each of its leaves otherwise,
    /// with mmu_lock held as long.
    #[inline(always)]
    pub(super) fn exclusive_call(&self, call: Call, phase: Phase) -> Result<SeamOut, CallError> {
        self.tries(call, phase, ZAP_TRIES, |_| {
            // Held before the kick: a vCPU that is kicked must not enter again before the retry.
            if !self.holding.xchg(true, Relaxed) {
                self.backend.hold_vcpus(true);
            }
            self.kick();
        })
    }

    /// Keeps all vCPUs out of the guest until the batch ends.
    pub(super) fn shut_vcpus_out(&self) {
        if !self.holding.xchg(true, Relaxed) {
            self.backend.hold_vcpus(true);
            self.kick();
        }
    }

    pub(super) fn kick(&self) {
        self.stats.kicks.inc();
        self.backend.kick_vcpus();
    }

    /// A call of the teardown that gives a page back.
    ///
    /// A busy TDR would mean that somebody still uses the TD: no retry, as for any failure.
    pub(super) fn reclaim(&self, call: Call) -> Result<(), ExtFailure> {
        let kind = call.kind();
        if self.backend.is_hkid_assigned() {
            // Too early: the TD could still use the page.
            let early = SeamOut::of(TdxStatus::LIFECYCLE_STATE_INCORRECT);
            return Err(failure(kind, early));
        }
        // Nothing may be busy here, in whatever phase the TD ended.
        match self.tries(call, Phase::Run, TEARDOWN_TRIES, |_| ()) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.failure(kind)),
        }
    }
}
