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

mod budget;
mod debt;
mod op;
pub mod progress;
mod stats;

pub use self::budget::{
    BUILD_TRIES, FAULT_TRIES, HOLD_ROUNDS, LOCAL_ROUNDS, MAX_ENTERS, PAY_TRIES, TEARDOWN_TRIES,
    ZAP_TRIES, ZERO_STEP_THRESHOLD,
};
pub use self::debt::DEBT_SLOTS;
pub use self::op::{LEAVES, OPS};
pub use self::stats::{ByOperand, Given, SeptStats, OPERANDS};

use self::debt::Book;
use self::op::Op;
use crate::base::addr::{Gfn, Pfn};
use crate::base::level::Position;
use crate::base::stats::Count;
use crate::base::sys::{AtomicBool, Relaxed};
use crate::base::td::{Operand, Phase};
use crate::mirror::external::{
    Assigned, ExtError, ExtFailure, External, ExternalPage, ExternalPt, Free, Leaked,
};
use crate::mirror::lock::{Exclusive, MmuLocked, Shared};
use crate::tdx::leaf::Leaf;
use crate::tdx::seamcall::{SeamOut, Seamcall};
use crate::tdx::sept::{EntryInfo, SeptState};
use crate::tdx::status::TdxStatus;
use core::cell::Cell;

/// What the policy needs beside the SEAMCALLs.  No method sleeps.
pub trait SeptBackend: Seamcall {
    /// What the figures are counted with.
    type Count: Count;
    /// A counter at 0; asked for a fixed number of times, when the S-EPT is made.
    fn counter(&self) -> Self::Count;
    /// The same of a row of counters.
    fn counter_row<const N: usize>(&self) -> <Self::Count as Count>::Row<N>;
    /// Forces all vCPUs out of the guest and waits until they are.
    fn kick_vcpus(&self);
    /// With `true`, no vCPU enters the guest until the call with `false`.
    fn hold_vcpus(&self, hold: bool);
    /// Whether TDH.MR.FINALIZE was done; asked once for each time that mmu_lock is taken.
    fn is_finalized(&self) -> bool;
    /// Whether the TD's HKID is still assigned.
    fn is_hkid_assigned(&self) -> bool;

    // What follows is told to whoever watches.  Nothing depends on it, and it costs nothing where
    // it is not defined.

    /// A call of `leaf` found `operand` busy; `at` is the entry that it is about, if it is about
    /// one, and `left` the number of tries that are left.
    fn busy(&self, _leaf: Leaf, _at: Option<Position>, _operand: Operand, _left: u32) {}
}

/// The S-EPT of one TD.
#[derive(Debug)]
pub struct Sept<B: SeptBackend> {
    backend: B,
    fault_tries: u32,
    /// vCPUs are held out of the guest.  Changed with mmu_lock held for write only.
    holding: AtomicBool,
    book: Book,
    stats: SeptStats<B::Count>,
    given: Given<B::Count>,
}

/// How a call with a budget of tries ended.
enum Stop {
    Contended(Operand, SeamOut),
    Failed(SeamOut),
}

impl Stop {
    /// Where contention is a failure too.
    fn failure(self, op: Op) -> ExtFailure {
        match self {
            Self::Contended(_, out) | Self::Failed(out) => op.failure(out),
        }
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
        let stats = SeptStats::new(|| backend.counter());
        let given = Given::new(
            ByOperand::new(backend.counter_row()),
            ByOperand::new(backend.counter_row()),
            backend.counter_row(),
            backend.counter_row(),
        );
        Self {
            backend,
            fault_tries: tries.clamp(BUILD_TRIES, FAULT_TRIES),
            holding: AtomicBool::new(false),
            book: Book::new(),
            stats,
            given,
        }
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The figures.
    pub fn stats(&self) -> &SeptStats<B::Count> {
        &self.stats
    }

    /// What was answered but success, by operation.
    pub fn given(&self) -> &Given<B::Count> {
        &self.given
    }

    /// Whether a host-priority mark is owed on an entry that covers `gfn`.
    pub fn owes(&self, gfn: Gfn) -> bool {
        self.book.owes(gfn)
    }

    /// Host-priority marks that are owed now.
    pub fn debts_owed(&self) -> u64 {
        self.book.len()
    }

    /// Calls until it is done, fails or has met contention `tries` times; `again` is told what
    /// was busy before each further try.
    ///
    /// Nearly always the first try succeeds: that much is inlined where it is used.
    #[inline(always)]
    fn tries(
        &self,
        op: Op,
        phase: Phase,
        at: Option<Position>,
        tries: u32,
        calls: &B::Count,
        call: impl Fn(&B) -> SeamOut,
        again: impl FnMut(Operand),
    ) -> Result<(), Stop> {
        calls.inc();
        let out = call(&self.backend);
        if out.status.is_success() {
            return Ok(());
        }
        self.more_tries(op, phase, at, tries, calls, call, again, out)
    }

    /// What follows a first try that was answered `out`.
    #[cold]
    #[inline(never)]
    #[expect(
        clippy::too_many_arguments,
        reason = "those of `tries()` and the answer"
    )]
    fn more_tries(
        &self,
        op: Op,
        phase: Phase,
        at: Option<Position>,
        tries: u32,
        calls: &B::Count,
        call: impl Fn(&B) -> SeamOut,
        mut again: impl FnMut(Operand),
        mut out: SeamOut,
    ) -> Result<(), Stop> {
        let mut left = tries;
        loop {
            if op.is_done(out.status) {
                self.given.noted(op);
                return Ok(());
            }
            match op.contention(out.status, phase) {
                None => {
                    self.given.failed(op);
                    return Err(Stop::Failed(out));
                }
                Some(operand) => {
                    self.stats.busy.inc();
                    left = left.saturating_sub(1);
                    self.backend.busy(op.leaf(phase), at, operand, left);
                    if left == 0 {
                        self.stats.giveups.inc();
                        self.given.giveups.add(op, operand);
                        return Err(Stop::Contended(operand, out));
                    }
                    again(operand);
                    self.stats.retries.inc();
                    self.given.retries.add(op, operand);
                }
            }
            calls.inc();
            out = call(&self.backend);
            if out.status.is_success() {
                return Ok(());
            }
        }
    }

    /// A call on the entry `at` in a fault or while the TD is built: its tries, back to back.
    fn shared_call(
        &self,
        op: Op,
        phase: Phase,
        at: Position,
        calls: &B::Count,
        call: impl Fn(&B) -> SeamOut,
    ) -> Result<(), ExtError> {
        let tries = match phase {
            Phase::Run => self.fault_tries,
            Phase::Build => {
                if op == Op::Map {
                    self.stats.add_calls.inc();
                }
                BUILD_TRIES
            }
        };
        let owed = self.book.take(at);
        // A try that found the entry's lock held left a mark there, whatever a later one found.
        let mut marked = owed;
        let mark = |operand| marked |= operand == Operand::SeptEntry;
        match self.tries(op, phase, Some(at), tries, calls, call, mark) {
            Ok(()) => {
                self.paid(owed);
                Ok(())
            }
            Err(Stop::Failed(out)) => {
                self.owe_again(owed, at);
                Err(ExtError::Failed(op.failure(out)))
            }
            Err(Stop::Contended(operand, _)) => {
                if marked || operand == Operand::SeptEntry {
                    self.give_up(phase, at, owed);
                }
                Err(match phase {
                    Phase::Run => ExtError::Contended(operand),
                    Phase::Build => ExtError::BuildContended(operand),
                })
            }
        }
    }

    /// A call in a zap: one try, then all vCPUs out and held out, and one more.
    ///
    /// Other mappers are kept out by mmu_lock, so that only vCPUs contend; with them out too, the
    /// second try cannot find a lock held.  They stay out until the batch ends, because a guest
    /// that accepts pages all the time would have to be kicked for each of its leaves otherwise,
    /// with mmu_lock held as long.
    #[inline(always)]
    fn exclusive_call(
        &self,
        op: Op,
        phase: Phase,
        at: Option<Position>,
        calls: &B::Count,
        call: impl Fn(&B) -> SeamOut,
    ) -> Result<(), Stop> {
        self.tries(op, phase, at, ZAP_TRIES, calls, call, |_| {
            // Held before the kick: a vCPU that is kicked must not enter again before the retry.
            if !self.holding.xchg(true, Relaxed) {
                self.backend.hold_vcpus(true);
            }
            self.kick();
        })
    }

    /// [`exclusive_call()`](Self::exclusive_call) on the entry `at`, which pays what is owed there.
    #[inline(always)]
    fn exclusive_entry_call(
        &self,
        op: Op,
        phase: Phase,
        at: Position,
        calls: &B::Count,
        call: impl Fn(&B) -> SeamOut,
    ) -> Result<(), ExtFailure> {
        let owed = self.book.take(at);
        match self.exclusive_call(op, phase, Some(at), calls, call) {
            Ok(()) => {
                self.paid(owed);
                Ok(())
            }
            Err(stop) => {
                self.owe_again(owed, at);
                Err(stop.failure(op))
            }
        }
    }

    fn kick(&self) {
        self.stats.kicks.inc();
        self.backend.kick_vcpus();
    }

    #[cold]
    #[inline(never)]
    fn not_written_back(&self, out: SeamOut) -> ExtFailure {
        self.given.failed(Op::Wbinvd);
        Op::Wbinvd.failure(out)
    }

    /// One call of the teardown that gives a page back.
    ///
    /// A busy TDR would mean that somebody still uses the TD: no retry, as for any failure.
    fn reclaim(&self, calls: &B::Count, call: impl Fn(&B) -> SeamOut) -> Result<(), ExtFailure> {
        if self.backend.is_hkid_assigned() {
            // Too early: the TD could still use the page.
            let early = SeamOut::of(TdxStatus::LIFECYCLE_STATE_INCORRECT);
            return Err(Op::Reclaim.failure(early));
        }
        // Nothing may be contended here, whatever the phase was.
        self.tries(
            Op::Reclaim,
            Phase::Run,
            None,
            TEARDOWN_TRIES,
            calls,
            call,
            |_| (),
        )
        .map_err(|stop| stop.failure(Op::Reclaim))
    }
}

// Host-priority marks.
impl<B: SeptBackend> Sept<B> {
    fn paid(&self, owed: bool) {
        if owed {
            self.stats.debts_paid.inc();
        }
    }

    /// Puts back what was taken out of the book before a call that did not clear the mark.
    fn owe_again(&self, owed: bool, at: Position) {
        if owed && self.book.put(at).is_err() {
            self.stats.debts_lost.inc();
        }
    }

    /// The lock of the frozen entry `at` was held at a try and not got at a later one, so the mark
    /// is there: clears it at once, or notes that it is owed.
    fn give_up(&self, phase: Phase, at: Position, owed_before: bool) {
        if !owed_before {
            self.stats.debts.inc();
        }
        match self.read(phase, at, PAY_TRIES) {
            Ok(()) => self.paid(true),
            Err(_) => self.owe_again(true, at),
        }
    }

    fn read(&self, phase: Phase, at: Position, tries: u32) -> Result<(), Stop> {
        let calls = &self.stats.read_calls;
        self.tries(
            Op::Read,
            phase,
            Some(at),
            tries,
            calls,
            |b| b.mem_sept_rd(at),
            |_| (),
        )
    }

    fn read_exclusive(&self, phase: Phase, at: Position) -> Result<(), Stop> {
        let calls = &self.stats.read_calls;
        self.exclusive_call(Op::Read, phase, Some(at), calls, |b| b.mem_sept_rd(at))
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
        let operand = page.operand();
        match self.shared_call(Op::Link, phase, at, &self.stats.link_calls, |b| {
            b.mem_sept_add(at, operand)
        }) {
            Ok(()) => Ok(page.assigned()),
            Err(error) => Err((error, page)),
        }
    }

    fn map_leaf(
        &self,
        _l: &Shared<'_>,
        phase: Phase,
        at: Position,
        pfn: Pfn,
    ) -> Result<(), ExtError> {
        self.shared_call(Op::Map, phase, at, &self.stats.map_calls, |b| {
            b.mem_page_map(at, pfn)
        })
    }

    fn pay_debt(&self, _l: &Shared<'_>, phase: Phase) {
        let Some(at) = self.book.take_any() else {
            return;
        };
        match self.read(phase, at, BUILD_TRIES) {
            Ok(()) => self.paid(true),
            Err(Stop::Contended(..)) => self.owe_again(true, at),
            // The TD is dead: no guest is left that waits.
            Err(Stop::Failed(_)) => self.stats.debts_lost.inc(),
        }
    }

    fn pay_debts(&self, _x: &Exclusive<'_>, phase: Phase) -> Result<(), (Position, ExtFailure)> {
        let mut result = Ok(());
        // Nobody adds to the book now.
        for _ in 0..DEBT_SLOTS {
            let Some(at) = self.book.take_any() else {
                break;
            };
            match self.read_exclusive(phase, at) {
                Ok(()) => self.paid(true),
                Err(Stop::Failed(_)) => self.stats.debts_lost.inc(),
                Err(stop) => {
                    self.stats.debts_lost.inc();
                    result = Err((at, stop.failure(Op::Read)));
                }
            }
        }
        result
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
        let answer = Cell::new(SeamOut::of(TdxStatus::SUCCESS));
        self.exclusive_entry_call(Op::Read, phase, at, &self.stats.read_calls, |b| {
            answer.set(b.mem_sept_rd(at));
            answer.get()
        })?;
        let out = answer.get();
        Ok(external(EntryInfo::decode(out.ext1, out.ext2)))
    }

    #[inline]
    fn block_leaf(&self, _x: &Exclusive<'_>, at: Position) -> Result<(), ExtFailure> {
        self.exclusive_entry_call(Op::Block, Phase::Run, at, &self.stats.block_calls, |b| {
            b.mem_range_block(at)
        })
    }

    fn track(&self, _x: &Exclusive<'_>) -> Result<(), ExtFailure> {
        self.exclusive_call(Op::Track, Phase::Run, None, &self.stats.track_calls, |b| {
            b.mem_track()
        })
        .map_err(|stop| stop.failure(Op::Track))?;
        // Whoever is inside since before the TRACK holds up the removal, and the next TRACK.  The
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
        self.exclusive_entry_call(Op::Remove, phase, at, &self.stats.remove_calls, |b| {
            b.mem_page_remove(at)
        })?;
        // The page is the kernel's again, but until its lines are written back a late eviction
        // could overwrite what the kernel puts there.  Nothing contends: one try.
        self.stats.wbinvd_calls.inc();
        let out = self.backend.phymem_page_wbinvd(at, pfn);
        if out.status.is_success() {
            Ok(())
        } else {
            Err(self.not_written_back(out))
        }
    }

    fn reclaim_leaf(&self, _x: &Exclusive<'_>, at: Position, pfn: Pfn) -> Result<(), ExtFailure> {
        self.reclaim(&self.stats.data_reclaim_calls, |b| {
            b.phymem_data_reclaim(at, pfn)
        })
    }

    fn free_table(
        &self,
        _x: &Exclusive<'_>,
        page: ExternalPage<Assigned>,
    ) -> Result<ExternalPage<Free>, Leaked> {
        let operand = page.operand();
        match self.reclaim(&self.stats.reclaim_calls, |b| {
            b.phymem_page_reclaim(operand)
        }) {
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
