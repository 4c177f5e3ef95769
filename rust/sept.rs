// SPDX-License-Identifier: GPL-2.0

//! The policy that turns operations on the external table into SEAMCALLs: which leaf after which,
//! how often again for contention, and when the vCPUs have to leave the guest.
//!
//! Contention is retried only where it is legitimate.  What a leaf may find busy follows from the
//! locks that other leaves take:
//!
//! | operand | who holds it | busy for |
//! |---|---|---|
//! | S-EPT tree | TDH.VP.ENTER with a GPA on its zero-step list; TDH.MEM.RANGE.BLOCK | all S-EPT leaves |
//! | S-EPT entry (RCX) | the guest's TDG.MEM.PAGE.ACCEPT; another mapper's leaf | all S-EPT leaves |
//! | TD epoch | TDH.VP.ENTER, for a moment | TDH.MEM.TRACK |
//! | previous epoch | a vCPU inside since before the last TRACK | TDH.MEM.TRACK |
//! | TDR | TDH.MR.EXTEND, TDH.VP.INIT and the like, while the TD is built | S-EPT leaves until then |
//!
//! Any other busy operand is a bug.

use crate::mirror::addr::Pfn;
use crate::mirror::external::{
    Assigned, Counter, ExtError, ExtFailure, ExternalPage, ExternalPt, Free, Leaked, Operand,
};
use crate::mirror::level::Position;
use crate::mirror::lock::{Exclusive, Shared};
use crate::tdx::seamcall::{SeamOut, Seamcall};
use crate::tdx::status::{OperandId, TdxStatus};

/// EPT-violation exits at one guest RIP after which the TDX module lists the GPA and makes each
/// VP.ENTER walk the S-EPT under the exclusive tree lock.
pub const ZERO_STEP_THRESHOLD: u32 = 6;

/// Tries of one SEAMCALL while the TD is built: contention goes to userspace.
pub const BUILD_TRIES: u32 = 1;

/// Tries of one SEAMCALL inside the freeze of a fault.
///
/// A fault that gives up may send the vCPU back into the guest, where it faults at the same RIP
/// and so counts towards the threshold.  With fewer tries than the threshold, even a caller that
/// re-entered the guest once for each of them could not make the module list the GPA: whatever
/// contention these tries wait out, zero-step mitigation did not cause it.
pub const FAULT_TRIES: u32 = 5;

const _: () = assert!(FAULT_TRIES >= BUILD_TRIES && FAULT_TRIES < ZERO_STEP_THRESHOLD);

/// What the policy needs beside the SEAMCALLs.  No method sleeps.
pub trait SeptBackend: Seamcall {
    /// Forces all vCPUs out of the guest and waits until they are.
    fn kick_vcpus(&self);
    /// With `true`, no vCPU enters the guest until the call with `false`.
    fn hold_vcpus(&self, hold: bool);
    /// Whether TDH.MR.FINALIZE was done.
    fn is_finalized(&self) -> bool;
    /// Whether the TD's HKID is still assigned.
    fn is_hkid_assigned(&self) -> bool;
}

/// SEAMCALLs by operation, each try counted.
#[derive(Debug, Default)]
pub struct SeptStats {
    /// TDH.MEM.SEPT.ADD.
    pub link_calls: Counter,
    /// TDH.MEM.PAGE.ADD and TDH.MEM.PAGE.AUG.
    pub map_calls: Counter,
    /// TDH.MEM.RANGE.BLOCK.
    pub block_calls: Counter,
    /// TDH.MEM.TRACK.
    pub track_calls: Counter,
    /// TDH.MEM.PAGE.REMOVE.
    pub remove_calls: Counter,
    /// TDH.PHYMEM.PAGE.WBINVD.
    pub wbinvd_calls: Counter,
    /// TDH.PHYMEM.PAGE.RECLAIM.
    pub reclaim_calls: Counter,
    /// Answers that were contention.
    pub busy: Counter,
    /// Tries after the first one.
    pub retries: Counter,
    /// Operations that ended for contention.
    pub giveups: Counter,
    /// Kicks of all vCPUs.
    pub kicks: Counter,
}

/// The S-EPT of one TD.
#[derive(Debug)]
pub struct Sept<B: SeptBackend> {
    backend: B,
    fault_tries: u32,
    stats: SeptStats,
}

/// What an answer means.
enum Verdict {
    Done,
    Contended(Operand),
    Failed(ExtFailure),
}

/// The leaf, for the decoding of its busy operands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Link,
    Map,
    Block,
    Track,
    Remove,
    Wbinvd,
    Reclaim,
}

impl Op {
    const fn name(self) -> &'static str {
        match self {
            Self::Link => "TDH.MEM.SEPT.ADD",
            Self::Map => "TDH.MEM.PAGE.ADD/AUG",
            Self::Block => "TDH.MEM.RANGE.BLOCK",
            Self::Track => "TDH.MEM.TRACK",
            Self::Remove => "TDH.MEM.PAGE.REMOVE",
            Self::Wbinvd => "TDH.PHYMEM.PAGE.WBINVD",
            Self::Reclaim => "TDH.PHYMEM.PAGE.RECLAIM",
        }
    }

    /// The operand that `status` says is busy, if it is one that this leaf may find busy.
    const fn contention(self, status: TdxStatus, built: bool) -> Option<Operand> {
        if matches!(self, Self::Track)
            && status.class().raw() == TdxStatus::PREVIOUS_TLB_EPOCH_BUSY.raw()
        {
            return Some(Operand::PreviousEpoch);
        }
        if !status.is_operand_busy() {
            return None;
        }
        match (self, status.operand()) {
            (Self::Link | Self::Map | Self::Block | Self::Remove, OperandId::SEPT_TREE) => {
                Some(Operand::SeptTree)
            }
            (Self::Link | Self::Map | Self::Block | Self::Remove, OperandId::RCX) => {
                Some(Operand::SeptEntry)
            }
            (Self::Link | Self::Map | Self::Remove, OperandId::RDX) if !built => Some(Operand::Tdr),
            (Self::Track, OperandId::TD_EPOCH) => Some(Operand::TdEpoch),
            _ => None,
        }
    }

    fn judge(self, out: SeamOut, built: bool) -> Verdict {
        if out.status.is_success() {
            return Verdict::Done;
        }
        match self.contention(out.status, built) {
            Some(operand) => Verdict::Contended(operand),
            None => Verdict::Failed(self.failure(out)),
        }
    }

    fn failure(self, out: SeamOut) -> ExtFailure {
        ExtFailure {
            op: self.name(),
            status: out.status.raw(),
            ext1: out.ext1,
            ext2: out.ext2,
            ext3: out.ext3,
        }
    }
}

/// vCPUs are held out of the guest for as long as this lives, whatever way its scope is left.
struct Hold<'b, B: SeptBackend>(&'b B);

impl<'b, B: SeptBackend> Hold<'b, B> {
    fn new(backend: &'b B) -> Self {
        backend.hold_vcpus(true);
        Self(backend)
    }
}

impl<B: SeptBackend> Drop for Hold<'_, B> {
    fn drop(&mut self) {
        self.0.hold_vcpus(false);
    }
}

impl<B: SeptBackend> Sept<B> {
    /// The S-EPT that `backend` reaches.
    pub fn new(backend: B) -> Self {
        Self::with_fault_tries(backend, FAULT_TRIES)
    }

    /// As [`new()`](Self::new), with `tries` instead of [`FAULT_TRIES`]; that bound is never
    /// exceeded, and at least one try is made.
    pub fn with_fault_tries(backend: B, tries: u32) -> Self {
        Self {
            backend,
            fault_tries: tries.clamp(BUILD_TRIES, FAULT_TRIES),
            stats: SeptStats::default(),
        }
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The figures.
    pub fn stats(&self) -> &SeptStats {
        &self.stats
    }

    /// A call in a fault or while the TD is built: its budget of tries, back to back.
    fn shared_call(
        &self,
        op: Op,
        calls: &Counter,
        call: impl Fn(&B) -> SeamOut,
    ) -> Result<(), ExtError> {
        let built = self.backend.is_finalized();
        let mut left = if built { self.fault_tries } else { BUILD_TRIES };
        loop {
            calls.inc();
            match op.judge(call(&self.backend), built) {
                Verdict::Done => return Ok(()),
                Verdict::Failed(failure) => return Err(ExtError::Failed(failure)),
                Verdict::Contended(operand) => {
                    self.stats.busy.inc();
                    left = left.saturating_sub(1);
                    if left == 0 {
                        self.stats.giveups.inc();
                        return Err(if built {
                            ExtError::Contended(operand)
                        } else {
                            ExtError::BuildContended(operand)
                        });
                    }
                    self.stats.retries.inc();
                }
            }
        }
    }

    /// A call in a zap: one try, then all vCPUs out and held out, and one more.
    ///
    /// Other mappers are kept out by mmu_lock, so that only vCPUs contend; with them out too, the
    /// second try cannot find a lock held.
    fn exclusive_call(
        &self,
        op: Op,
        calls: &Counter,
        call: impl Fn(&B) -> SeamOut,
    ) -> Result<(), ExtFailure> {
        let built = self.backend.is_finalized();
        calls.inc();
        match op.judge(call(&self.backend), built) {
            Verdict::Done => return Ok(()),
            Verdict::Failed(failure) => return Err(failure),
            Verdict::Contended(_) => self.stats.busy.inc(),
        }
        // Held before the kick: a vCPU that is kicked must not enter again before the retry.
        let _hold = Hold::new(&self.backend);
        self.kick();
        self.stats.retries.inc();
        calls.inc();
        let out = call(&self.backend);
        match op.judge(out, built) {
            Verdict::Done => Ok(()),
            Verdict::Failed(failure) => Err(failure),
            Verdict::Contended(_) => {
                self.stats.busy.inc();
                self.stats.giveups.inc();
                Err(op.failure(out))
            }
        }
    }

    fn kick(&self) {
        self.stats.kicks.inc();
        self.backend.kick_vcpus();
    }
}

impl<B: SeptBackend> ExternalPt for Sept<B> {
    fn link_table(
        &self,
        _l: &Shared<'_>,
        at: Position,
        page: ExternalPage<Free>,
    ) -> Result<ExternalPage<Assigned>, (ExtError, ExternalPage<Free>)> {
        let operand = page.operand();
        match self.shared_call(Op::Link, &self.stats.link_calls, |b| {
            b.mem_sept_add(at, operand)
        }) {
            Ok(()) => Ok(page.assigned()),
            Err(error) => Err((error, page)),
        }
    }

    fn map_leaf(&self, _l: &Shared<'_>, at: Position, pfn: Pfn) -> Result<(), ExtError> {
        self.shared_call(Op::Map, &self.stats.map_calls, |b| b.mem_page_map(at, pfn))
    }

    fn needs_tracking(&self, _x: &Exclusive<'_>) -> bool {
        self.backend.is_finalized()
    }

    fn block_leaf(&self, _x: &Exclusive<'_>, at: Position) -> Result<(), ExtFailure> {
        self.exclusive_call(Op::Block, &self.stats.block_calls, |b| {
            b.mem_range_block(at)
        })
    }

    fn track(&self, _x: &Exclusive<'_>) -> Result<(), ExtFailure> {
        self.exclusive_call(Op::Track, &self.stats.track_calls, |b| b.mem_track())?;
        // Whoever is inside since before the TRACK holds up the removal, and the next TRACK.
        self.kick();
        Ok(())
    }

    fn zap_leaf(&self, _x: &Exclusive<'_>, at: Position, pfn: Pfn) -> Result<(), ExtFailure> {
        self.exclusive_call(Op::Remove, &self.stats.remove_calls, |b| {
            b.mem_page_remove(at)
        })?;
        // The page is the kernel's again, but until its lines are written back a late eviction
        // could overwrite what the kernel puts there.  Nothing contends: one try.
        self.stats.wbinvd_calls.inc();
        let out = self.backend.phymem_page_wbinvd(at, pfn);
        if out.status.is_success() {
            Ok(())
        } else {
            Err(Op::Wbinvd.failure(out))
        }
    }

    fn free_table(
        &self,
        _x: &Exclusive<'_>,
        page: ExternalPage<Assigned>,
    ) -> Result<ExternalPage<Free>, Leaked> {
        if self.backend.is_hkid_assigned() {
            // Too early: the TD could still run on this table.
            let failure = Op::Reclaim.failure(SeamOut::of(TdxStatus::LIFECYCLE_STATE_INCORRECT));
            return Err(Leaked { page, failure });
        }
        self.stats.reclaim_calls.inc();
        let out = self.backend.phymem_page_reclaim(page.operand());
        // A busy TDR would mean that somebody still uses the TD: no retry, as for any failure.
        if out.status.is_success() {
            Ok(page.reclaimed())
        } else {
            Err(Leaked {
                page,
                failure: Op::Reclaim.failure(out),
            })
        }
    }
}
