// SPDX-License-Identifier: GPL-2.0

//! The S-EPT as the external table of a mirror.

#![forbid(unsafe_code)]

use super::backend::SeptBackend;
use super::budget::BUILD_TRIES;
use super::retry::{
    failure,
    CallError, //
};
use super::table::Sept;
use crate::base::addr::Pfn;
use crate::base::level::Position;
use crate::base::sys::Relaxed;
use crate::base::td::{
    Operand,
    Phase, //
};
use crate::mirror::external::{
    Assigned,
    ExtError,
    ExtFailure,
    External,
    ExternalPage,
    ExternalPt,
    Free,
    Leaked, //
};
use crate::mirror::lock::{
    Exclusive,
    MmuLocked,
    Shared, //
};
use crate::tdx::call::{
    Call,
    Kind, //
};
use crate::tdx::seamcall::SeamOut;
use crate::tdx::sept::{
    EntryInfo,
    SeptState, //
};

impl<B: SeptBackend> Sept<B> {
    /// A call on the entry `at` in a fault or while the TD is built: its tries, back to back.
    #[inline(always)]
    fn shared_call(&self, call: Call, phase: Phase, at: Position) -> Result<(), ExtError> {
        let tries = match phase {
            Phase::Run => self.fault_tries,
            Phase::Build => BUILD_TRIES,
        };
        let owed = self.book.take(at);
        // A try that found the entry's lock held left a mark there, whatever a later one found.
        let mut marked = owed;
        let mark = |operand| marked |= operand == Operand::SeptEntry;
        match self.tries(call, phase, tries, mark) {
            Ok(_) => {
                self.paid(owed);
                Ok(())
            }
            Err(CallError::Failed(out)) => {
                self.owe_again(owed, at);
                Err(ExtError::Failed(failure(call.kind(), out)))
            }
            Err(CallError::Contended(operand, _)) => {
                if marked || operand == Operand::SeptEntry {
                    self.give_up(phase, at, owed);
                }
                Err(ExtError::Contended(operand))
            }
        }
    }

    /// TDH.MEM.PAGE.ADD, out of the way of faults.
    #[inline(never)]
    fn add_leaf(&self, at: Position, pfn: Pfn) -> Result<(), ExtError> {
        self.shared_call(Call::PageAdd { at, pfn }, Phase::Build, at)
    }

    /// A [call in a zap](Self::exclusive_call) on the entry `at`, which pays what is owed there.
    #[inline(always)]
    fn exclusive_entry_call(
        &self,
        call: Call,
        phase: Phase,
        at: Position,
    ) -> Result<SeamOut, ExtFailure> {
        let owed = self.book.take(at);
        match self.exclusive_call(call, phase) {
            Ok(out) => {
                self.paid(owed);
                Ok(out)
            }
            Err(error) => {
                self.owe_again(owed, at);
                Err(error.failure(call.kind()))
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn not_written_back(&self, out: SeamOut) -> ExtFailure {
        self.calls.failed(Kind::PageWbinvd);
        failure(Kind::PageWbinvd, out)
    }
}

impl<B: SeptBackend> ExternalPt for Sept<B> {
    fn phase<L: MmuLocked>(&self, _l: &L) -> Phase {
        Phase::of(self.backend.is_finalized())
    }

    fn link_table(
        &self,
        _l: &Shared<'_>,
        phase: Phase,
        at: Position,
        page: ExternalPage<Free>,
    ) -> Result<ExternalPage<Assigned>, (ExtError, ExternalPage<Free>)> {
        let call = Call::SeptAdd {
            at,
            page: page.operand(),
        };
        match self.shared_call(call, phase, at) {
            Ok(()) => Ok(page.assigned()),
            Err(error) => Err((error, page)),
        }
    }

    #[inline(always)]
    fn map_leaf(
        &self,
        _l: &Shared<'_>,
        phase: Phase,
        at: Position,
        pfn: Pfn,
    ) -> Result<(), ExtError> {
        // The one place where ADD or AUG is decided; KVM's hook decides by the state that the phase
        // was read from.
        match phase {
            Phase::Run => self.shared_call(Call::PageAug { at, pfn }, Phase::Run, at),
            Phase::Build => self.add_leaf(at, pfn),
        }
    }

    fn pay_debt(&self, _l: &Shared<'_>, phase: Phase) {
        self.pay_one(phase);
    }

    fn pay_debts(&self, _x: &Exclusive<'_>, phase: Phase) -> Result<(), (Position, ExtFailure)> {
        self.pay_all(phase)
    }

    fn end_batch(&self, _x: &Exclusive<'_>) {
        if self.holding.xchg(false, Relaxed) {
            self.backend.hold_vcpus(false);
        }
    }

    fn read_entry(
        &self,
        _x: &Exclusive<'_>,
        phase: Phase,
        at: Position,
    ) -> Result<External, ExtFailure> {
        // Not only after contention: a guest that accepts the page while the entry is locked here
        // gets BUSY, which Linux takes for a failure that it cannot survive.
        self.shut_vcpus_out();
        let out = self.exclusive_entry_call(Call::SeptRd { at }, phase, at)?;
        Ok(external(EntryInfo::decode(out.ext1, out.ext2)))
    }

    #[inline]
    fn block_leaf(&self, _x: &Exclusive<'_>, at: Position) -> Result<(), ExtFailure> {
        self.exclusive_entry_call(Call::RangeBlock { at }, Phase::Run, at)
            .map(|_| ())
    }

    fn track(&self, _x: &Exclusive<'_>) -> Result<(), ExtFailure> {
        self.exclusive_call(Call::Track {}, Phase::Run)
            .map_err(|error| error.failure(Kind::Track))?;
        // Whoever is inside since before the TRACK holds up the removal, and the next TRACK. The
        // kick is not left out if there was one for contention before: that none entered in
        // between rests on the hold alone, all removals of the batch rest on none being inside,
        // and a kick of vCPUs that are out costs next to nothing.
        self.kick();
        Ok(())
    }

    #[inline]
    fn zap_leaf(
        &self,
        _x: &Exclusive<'_>,
        phase: Phase,
        at: Position,
        pfn: Pfn,
    ) -> Result<(), ExtFailure> {
        self.exclusive_entry_call(Call::PageRemove { at }, phase, at)?;
        // The page is the kernel's again, but until its lines are written back a late eviction
        // could overwrite what the kernel puts there. Nothing contends: one try.
        let out = self.call(Call::PageWbinvd { at, pfn });
        if out.status.is_success() {
            Ok(())
        } else {
            Err(self.not_written_back(out))
        }
    }

    fn reclaim_leaf(&self, _x: &Exclusive<'_>, at: Position, pfn: Pfn) -> Result<(), ExtFailure> {
        self.reclaim(Call::ReclaimData { at, pfn })
    }

    fn free_table(
        &self,
        _x: &Exclusive<'_>,
        page: ExternalPage<Assigned>,
    ) -> Result<ExternalPage<Free>, Leaked> {
        let call = Call::ReclaimTable {
            page: page.operand(),
        };
        match self.reclaim(call) {
            Ok(()) => Ok(page.reclaimed()),
            Err(failure) => Err(Leaked { page, failure }),
        }
    }
}

/// What the state of an entry means to the mirror.
fn external(info: EntryInfo) -> External {
    let leaf = |pending, blocked| External::Leaf {
        pfn: Pfn::from_pa_bits(info.entry),
        pending,
        blocked,
    };
    match info.state {
        SeptState::FREE => External::Free,
        SeptState::MAPPED => leaf(false, false),
        SeptState::PENDING => leaf(true, false),
        SeptState::BLOCKED => leaf(false, true),
        SeptState::PENDING_BLOCKED => leaf(true, true),
        SeptState::NL_MAPPED | SeptState::NL_BLOCKED => External::Table,
        other => External::Other(other.as_u8()),
    }
}
