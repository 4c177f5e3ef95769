// SPDX-License-Identifier: GPL-2.0

//! What a vCPU does next whose fault could not be served, or whose VP.ENTER found the S-EPT busy.
//!
//! The fault is repeated without entering the guest, a bounded number of times. Progress is
//! counted in VP.ENTERs at one RIP of the guest, because that is what the TDX module counts: a
//! vCPU whose next VP.ENTER would come too close to the zero-step threshold is held until its
//! fault is served. It never waits for anybody in the kernel: it stays killable and gives way to
//! whoever deletes its memslot.
//!
//! The guest gets its interrupts meanwhile: a vCPU enters for each new event, held or not. Whatever
//! KVM sees pending is the TDX module's after one VP.ENTER, whether the guest masks it or not, so
//! that each further VP.ENTER takes an event that came since.

#![forbid(unsafe_code)]

use super::budget::{
    HOLD_ROUNDS,
    LISTED_AFTER,
    LOCAL_ROUNDS,
    MAX_ENTERS,
    WAIT_ROUNDS,
    ZERO_STEP_THRESHOLD, //
};
use crate::base::stats::{
    counters,
    Count,
    Counter, //
};
use crate::base::sys::{
    AtomicBool,
    Relaxed, //
};
use crate::base::td::RetryReason;
use crate::tdx::status::{
    OperandId,
    TdxStatus, //
};

/// The notes on one vCPU, used by its own thread alone.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Notes {
    /// VP.ENTERs in a row, at most, that ended in an EPT violation of a private GPA which the TDX
    /// module counts, at one RIP, the last one included. Not changed here.
    pub faults: u32,
    /// VP.ENTERs in a row that ended in an EPT violation of one private GPA, whether the TDX
    /// module counts it or not. Not changed here.
    pub repeats: u32,
    /// Local retries of the fault under way for which the mirror asked.
    pub rounds: u32,
    /// Those for which KVM asked.
    pub waits: u32,
    /// The GFN of the fault under way.
    pub gfn: u64,
    /// Faults in a row on this GFN that found it mapped.
    pub spurious: u32,
    /// The last EPT violation was one of TDG.MEM.PAGE.ACCEPT, which the TDX module does not count.
    /// Not changed here.
    pub accept: bool,
    /// The fault is to be served before the next VP.ENTER.
    pub held: bool,
}

impl Notes {
    /// Whether the next VP.ENTER could be the one that reaches the zero-step threshold, or the
    /// guest is stuck as often at one ACCEPT, which is to be noticed as well.
    const fn is_near(&self) -> bool {
        let enters = if self.accept {
            self.repeats
        } else {
            self.faults
        };
        enters >= MAX_ENTERS
    }

    /// Whether a vCPU may enter for an event with its fault unserved.
    ///
    /// [`MAX_ENTERS`] leaves one count below the threshold for that. The TDX module zeroes its
    /// count when it sees that the RIP has moved, which the handler of an event does not show by
    /// itself: it returns to where it came from. An ACCEPT costs no count, so that the guest gets
    /// every event there.
    ///
    /// This goes by the faults on one GFN, because the count at one RIP is only an upper bound:
    /// who touches many pages without a TDVMCALL would get no event at all.
    const fn may_enter_for_event(&self) -> bool {
        self.accept || self.repeats < ZERO_STEP_THRESHOLD
    }

    /// Whether the TDX module may have a GPA of this vCPU on its zero-step list though no fault was
    /// left unserved by the host: the guest touched that many pages at one RIP, or its userspace
    /// took the pages away as often.
    pub const fn may_be_listed(&self) -> bool {
        self.faults > ZERO_STEP_THRESHOLD
    }

    /// The rounds of the fault under way for that reason, one more now.
    fn spend(&mut self, why: Why) -> u32 {
        let spent = match why {
            Why::Invalidation => &mut self.waits,
            Why::Mirror(_) => &mut self.rounds,
        };
        *spent = spent.saturating_add(1);
        *spent
    }

    /// The fault on `gfn` begins, unless it is under way.
    fn begin(&mut self, gfn: u64) {
        if self.gfn != gfn {
            self.gfn = gfn;
            self.spurious = 0;
            self.end();
        }
    }

    /// No fault is under way.
    fn end(&mut self) {
        self.rounds = 0;
        self.waits = 0;
        self.held = false;
    }
}

/// What holds when a fault asks for a retry; a set of bits.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Conditions(u32);

impl Conditions {
    /// None.
    pub const NONE: Self = Self(0);
    /// A signal is pending.
    pub const SIGNAL: Self = Self(0x01);
    /// An event is to be injected.
    pub const EVENT: Self = Self(0x02);
    /// The memslot is being deleted or moved, which waits for this thread.
    pub const SLOT_GONE: Self = Self(0x04);
    /// The VM is dead.
    pub const VM_DEAD: Self = Self(0x10);
    /// The fault is not the guest's; no VP.ENTER follows.
    pub const PREFAULT: Self = Self(0x20);

    /// The conditions with these bits; others mean nothing.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Both.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Why a fault is to be tried again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// KVM began anew without asking the mirror: an invalidation that covers the GFN, or seems to,
    /// is under way, or the memslot or the root changed. Nothing is contended, and how long it
    /// lasts says nothing about the vCPU.
    Invalidation,
    /// The mirror did not map.
    Mirror(RetryReason),
}

/// How a fault ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The page is mapped now.
    Mapped,
    /// The page was mapped already.
    Spurious,
    /// Userspace gets an error.
    Error,
}

/// What follows the end of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Done {
    /// What the vCPU does next: [`Action::Enter`] or [`Action::Exit`].
    pub action: Action,
    /// Whether to report that the TDX module keeps the vCPU out: true at most once for each TD.
    pub report: bool,
}

/// What a vCPU does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Action {
    /// Map once more.
    Again,
    /// Enter the guest, which faults again if need be.
    Enter,
    /// Return to userspace.
    Exit,
    /// Nothing: the VM is dead, or is to be ended.
    Kill,
}

/// What is done about a vCPU without progress.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Policy {
    /// It is counted.
    Count,
    /// It is counted, and the first time of each TD is reported.
    #[default]
    Warn,
    /// The VM ends.
    Kill,
}

impl Policy {
    /// The policy with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "count" => Self::Count,
            "warn" => Self::Warn,
            "kill" => Self::Kill,
            _ => return None,
        })
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Warn => "warn",
            Self::Kill => "kill",
        }
    }
}

/// What to do about a VP.ENTER that answered busy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct EnterBusy {
    /// What the vCPU does next: [`Action::Enter`] or [`Action::Kill`].
    pub action: Action,
    /// Whether to report it: true at most once for each TD.
    pub report: bool,
}

counters! {
    /// Figures of the vCPUs of one TD.
    ProgressStats {
        /// Rounds that returned [`Action::Again`].
        local_retries,
        /// Faults that ended without the page mapped.
        local_giveups,
        /// Retries that KVM itself asked for.
        why_invalidation,
        /// Retries because somebody else held an entry.
        why_frozen,
        /// Retries because the TDX module was busy.
        why_contended,
        /// Retries because there was no page for a table.
        why_no_page,
        /// Faults whose vCPU was kept from VP.ENTER near the zero-step threshold.
        held,
        /// VP.ENTERs that found the S-EPT tree busy, which is a bug.
        vp_enter_busy,
        /// VP.ENTERs that found something else busy.
        vp_enter_busy_other,
        /// Whether the policy ended the VM: 0 or 1.
        killed,
    }
}

/// The progress of the vCPUs of one TD.
#[derive(Debug)]
pub struct Progress<C = Counter> {
    policy: Policy,
    reported: AtomicBool,
    listed: AtomicBool,
    killed: AtomicBool,
    stats: ProgressStats<C>,
}

impl Progress {
    /// No vCPU has run yet.
    pub fn new(policy: Policy) -> Self {
        Self::with_counters(policy, Counter::new)
    }
}

impl<C: Count> Progress<C> {
    /// As [`new()`](Progress::new), with counters that `make` makes.
    pub fn with_counters(policy: Policy, make: impl FnMut() -> C) -> Self {
        Self {
            policy,
            reported: AtomicBool::new(false),
            listed: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            stats: ProgressStats::new(make),
        }
    }

    /// The policy.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The figures.
    pub fn stats(&self) -> &ProgressStats<C> {
        &self.stats
    }

    /// A fault on `gfn` is not served and may be tried again, for the reason `why`. `owes` returns
    /// whether a host-priority mark is owed on an entry that covers `gfn`; it is called only if the
    /// vCPU has something else to do, which is what such a mark has precedence over.
    ///
    /// [`Action::Again`] is answered at most [`HOLD_ROUNDS`] times for what the mirror asks, at
    /// most [`LOCAL_ROUNDS`] times for a prefault or a vCPU far from the threshold, and at most
    /// [`WAIT_ROUNDS`] times for what KVM asks; not at all if the memslot is gone.
    /// [`Action::Enter`] is answered for no prefault, and for a vCPU near the threshold only if it
    /// has a new event. What KVM asks leads neither to the threshold nor to the end of the VM.
    pub fn fault_retry(
        &self,
        notes: &mut Notes,
        gfn: u64,
        now: Conditions,
        why: Why,
        owes: impl FnOnce() -> bool,
    ) -> Action {
        self.count(why);
        notes.begin(gfn);
        let spent = notes.spend(why);
        let errand = now.has(Conditions::SIGNAL.with(Conditions::EVENT));
        let owes = errand && owes();
        let prefault = now.has(Conditions::PREFAULT);
        let limit = match why {
            Why::Invalidation if !errand => WAIT_ROUNDS,
            _ => LOCAL_ROUNDS,
        };
        // A memslot's deletion waits for this thread, and the zap that comes of it pays what is
        // owed. A signal can wait for the bounded rounds of a fault that owes the guest a mark.
        let patient = !now.has(Conditions::SLOT_GONE)
            && (owes || !now.has(Conditions::SIGNAL))
            && spent <= limit;
        let action = if now.has(Conditions::VM_DEAD) {
            Action::Kill
        } else if patient && (prefault || owes || !now.has(Conditions::EVENT)) {
            Action::Again
        } else if prefault {
            Action::Exit
        } else if notes.is_near() {
            self.near(notes, now, why, spent)
        } else {
            Self::far(notes, now, why)
        };
        match action {
            Action::Again => self.stats.local_retries.inc(),
            Action::Enter | Action::Exit | Action::Kill => {
                // Whoever enters is not held: what comes next may be another fault, or none.
                let held = notes.held && action != Action::Enter;
                notes.end();
                notes.held = held;
                self.stats.local_giveups.inc();
            }
        }
        action
    }

    /// The fault on `gfn` ended. `now` tells of an event only if userspace was told of the fault
    /// before, so that the vCPU may enter the guest for the event instead.
    ///
    /// A fault that ended in an error is still there: a vCPU near the threshold is to have it served
    /// before the next VP.ENTER, or userspace could have the TDX module list the page by doing no
    /// more than running the vCPU.
    pub fn fault_done(&self, notes: &mut Notes, gfn: u64, now: Conditions, end: End) -> Done {
        let mut done = Done {
            action: Action::Enter,
            report: false,
        };
        if end == End::Mapped && notes.gfn != gfn {
            return done;
        }
        notes.begin(gfn);
        let was_held = notes.held;
        notes.end();
        notes.spurious = match end {
            End::Spurious => notes.spurious.saturating_add(1),
            End::Mapped | End::Error => 0,
        };
        // A page that is mapped and missing again and again at one RIP: it is listed, and the
        // TDX module takes a page that is pending for one that is missing.
        if notes.spurious == LISTED_AFTER && notes.may_be_listed() {
            done.report = !self.listed.xchg(true, Relaxed);
        }
        let event = now.has(Conditions::EVENT) && notes.may_enter_for_event();
        if end == End::Error && !(event && was_held) {
            done.action = Action::Exit;
            if notes.is_near() {
                self.hold(notes, was_held);
            }
        }
        done
    }

    /// VP.ENTER answered `status`, OPERAND_BUSY.
    ///
    /// The S-EPT tree is busy for a VP.ENTER only if the TDX module has a GPA of the vCPU on its
    /// zero-step list, which [`fault_retry()`](Self::fault_retry) is there to prevent. Whether it
    /// could be there for another reason [`Notes::may_be_listed()`] says.
    pub fn vp_enter_busy(&self, status: TdxStatus) -> EnterBusy {
        if !status.is_operand_busy() || status.operand() != OperandId::SEPT_TREE {
            self.stats.vp_enter_busy_other.inc();
            return EnterBusy {
                action: Action::Enter,
                report: false,
            };
        }
        self.stats.vp_enter_busy.inc();
        let report = self.policy != Policy::Count && !self.reported.xchg(true, Relaxed);
        let action = if self.policy == Policy::Kill {
            self.kill()
        } else {
            Action::Enter
        };
        EnterBusy { action, report }
    }

    fn count(&self, why: Why) {
        match why {
            Why::Invalidation => &self.stats.why_invalidation,
            Why::Mirror(RetryReason::Frozen) => &self.stats.why_frozen,
            Why::Mirror(RetryReason::Contended(_)) => &self.stats.why_contended,
            Why::Mirror(RetryReason::NoPage) => &self.stats.why_no_page,
        }
        .inc();
    }

    /// A fault of the guest whose vCPU may enter without the page.
    fn far(notes: &mut Notes, now: Conditions, why: Why) -> Action {
        let errand = Conditions::SIGNAL
            .with(Conditions::EVENT)
            .with(Conditions::SLOT_GONE);
        if why == Why::Invalidation && !now.has(errand) {
            // The guest would only repeat the fault, and come nearer to the threshold.
            notes.held = true;
            Action::Exit
        } else {
            Action::Enter
        }
    }

    /// A fault of the guest whose vCPU is too close to the threshold to enter without the page, but
    /// for an event.
    fn near(&self, notes: &mut Notes, now: Conditions, why: Why, spent: u32) -> Action {
        if now.has(Conditions::EVENT) && notes.may_enter_for_event() {
            return Action::Enter;
        }
        self.hold(notes, notes.held);
        let leave = now.has(Conditions::SIGNAL.with(Conditions::SLOT_GONE));
        match why {
            _ if leave => Action::Exit,
            Why::Invalidation if spent <= WAIT_ROUNDS => Action::Again,
            Why::Invalidation => Action::Exit,
            Why::Mirror(_) if spent <= HOLD_ROUNDS => Action::Again,
            Why::Mirror(_) if self.policy == Policy::Kill => self.kill(),
            Why::Mirror(_) => Action::Exit,
        }
    }

    /// Keeps a vCPU from the next VP.ENTER; `already`, it was counted for this fault before.
    fn hold(&self, notes: &mut Notes, already: bool) {
        notes.held = true;
        if !already {
            self.stats.held.inc();
        }
    }

    fn kill(&self) -> Action {
        if !self.killed.xchg(true, Relaxed) {
            self.stats.killed.inc();
        }
        Action::Kill
    }
}
