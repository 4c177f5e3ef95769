// SPDX-License-Identifier: GPL-2.0

//! What a vCPU does next whose fault could not be served, or whose VP.ENTER found the S-EPT busy.
//!
//! The fault is repeated without entering the guest, a bounded number of times. Progress is
//! counted in VP.ENTERs at one RIP of the guest, because that is what the TDX module counts: a
//! vCPU whose next VP.ENTER would come too close to the zero-step threshold is held until its
//! fault is served. It never waits for anybody in the kernel: it stays killable and gives way to
//! whoever deletes its memslot.

#![forbid(unsafe_code)]

use super::budget::{
    HOLD_ROUNDS,
    LOCAL_ROUNDS,
    MAX_ENTERS,
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
    /// VP.ENTERs in a row, at most, that ended in an EPT violation of a private GPA at one RIP,
    /// the last one included. Not changed here.
    pub faults: u32,
    /// Local retries of the fault under way.
    pub rounds: u32,
    /// The GFN of the fault under way.
    pub gfn: u64,
    /// The fault is to be served before the next VP.ENTER.
    pub held: bool,
}

impl Notes {
    /// Whether the next VP.ENTER could be the one that reaches the zero-step threshold.
    const fn is_near(&self) -> bool {
        self.faults >= MAX_ENTERS
    }

    /// Whether the TDX module may have a GPA of this vCPU on its zero-step list though no fault was
    /// left unserved by the host: the guest touched that many pages at one RIP, or its userspace
    /// entered it again without giving it a page, or took the pages away as often.
    pub const fn may_be_listed(&self) -> bool {
        self.faults > ZERO_STEP_THRESHOLD
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
    /// The root that the fault began with is obsolete.
    pub const ROOT_GONE: Self = Self(0x08);
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
    /// KVM began anew without asking the mirror: an invalidation that covers the GFN is under way,
    /// or the memslot or the root changed.
    Invalidation,
    /// The mirror did not map.
    Mirror(RetryReason),
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
    /// [`Action::Again`] is answered at most [`HOLD_ROUNDS`] times in a row, at most
    /// [`LOCAL_ROUNDS`] times for a prefault or a vCPU far from the threshold, and not at all for
    /// one whose memslot or root is gone. [`Action::Enter`] is answered for no prefault and for no
    /// vCPU near the threshold.
    pub fn fault_retry(
        &self,
        notes: &mut Notes,
        gfn: u64,
        now: Conditions,
        why: Why,
        owes: impl FnOnce() -> bool,
    ) -> Action {
        self.count(why);
        if notes.gfn != gfn {
            notes.gfn = gfn;
            notes.rounds = 0;
            notes.held = false;
        }
        notes.rounds = notes.rounds.saturating_add(1);
        let owes = now.has(Conditions::SIGNAL.with(Conditions::EVENT)) && owes();
        let prefault = now.has(Conditions::PREFAULT);
        let patient = Self::is_patient(notes, now, owes);
        let action = if now.has(Conditions::VM_DEAD) {
            Action::Kill
        } else if !prefault && notes.is_near() {
            self.near(notes, now, patient)
        } else if patient && (prefault || owes || !now.has(Conditions::EVENT)) {
            Action::Again
        } else if prefault {
            Action::Exit
        } else {
            Action::Enter
        };
        if action == Action::Again {
            self.stats.local_retries.inc();
        } else {
            notes.rounds = 0;
            self.stats.local_giveups.inc();
        }
        action
    }

    /// The fault on `gfn` was served, or ended in an error.
    pub fn fault_done(&self, notes: &mut Notes, gfn: u64) {
        if notes.gfn == gfn {
            notes.rounds = 0;
            notes.held = false;
        }
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

    /// Whether a fault may be tried again that need not be served before the next VP.ENTER.
    fn is_patient(notes: &Notes, now: Conditions, owes: bool) -> bool {
        // A memslot's deletion waits for this thread, and a map into an obsolete root can never
        // succeed: the zap that comes of either pays what is owed.
        !now.has(Conditions::SLOT_GONE.with(Conditions::ROOT_GONE))
            // A signal can wait for the bounded rounds of a fault that owes the guest a mark.
            && (owes || !now.has(Conditions::SIGNAL))
            && notes.rounds <= LOCAL_ROUNDS
    }

    /// A fault of the guest whose vCPU is too close to the threshold to enter without the page.
    fn near(&self, notes: &mut Notes, now: Conditions, patient: bool) -> Action {
        if patient && !now.has(Conditions::EVENT) {
            return Action::Again;
        }
        if !notes.held {
            notes.held = true;
            self.stats.held.inc();
        }
        let leave = Conditions::SIGNAL
            .with(Conditions::SLOT_GONE)
            .with(Conditions::ROOT_GONE);
        if patient || !now.has(leave) && notes.rounds <= HOLD_ROUNDS {
            Action::Again
        } else if self.policy == Policy::Kill && !now.has(leave) {
            self.kill()
        } else {
            Action::Exit
        }
    }

    fn kill(&self) -> Action {
        if !self.killed.xchg(true, Relaxed) {
            self.stats.killed.inc();
        }
        Action::Kill
    }
}
