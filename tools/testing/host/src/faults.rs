// SPDX-License-Identifier: GPL-2.0

//! What tests of vCPUs without progress share: short names, and notes of a vCPU that has faulted.

use crate::mirror::error::RetryReason;
use crate::sept::progress::{Action, Conditions, Done, End, Notes, Policy, Progress, Why};

pub const NONE: Conditions = Conditions::NONE;
pub const SIGNAL: Conditions = Conditions::SIGNAL;
pub const EVENT: Conditions = Conditions::EVENT;
pub const SLOT_GONE: Conditions = Conditions::SLOT_GONE;
pub const VM_DEAD: Conditions = Conditions::VM_DEAD;
pub const PREFAULT: Conditions = Conditions::PREFAULT;
/// A reason of the mirror, where it makes no difference which.
pub const WHY: Why = Why::Mirror(RetryReason::Frozen);

/// Nothing to say after the end of a fault.
pub const ENTERS: Done = Done {
    action: Action::Enter,
    report: false,
};

pub const POLICIES: [Policy; 3] = [Policy::Count, Policy::Warn, Policy::Kill];

/// Notes of a vCPU that has faulted so often at one RIP, on one GFN.
pub fn faulted(faults: u32) -> Notes {
    Notes {
        faults,
        repeats: faults,
        ..Notes::default()
    }
}

/// The fault on `gfn` was served.
pub fn served(p: &Progress, notes: &mut Notes, gfn: u64) {
    let done = p.fault_done(notes, gfn, NONE, End::Mapped);
    assert_eq!(done, ENTERS);
}
