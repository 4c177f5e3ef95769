// SPDX-License-Identifier: GPL-2.0

//! What stands between the policy and the TDX module.

#![forbid(unsafe_code)]

use crate::base::stats::Count;
use crate::base::td::Operand;
use crate::tdx::call::{
    Call,
    Kind, //
};
use crate::tdx::seamcall::Seamcall;
use crate::tdx::status::TdxStatus;

/// What the policy needs beside the SEAMCALLs. No method sleeps.
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

    // What follows is for observers. Nothing depends on it, and it costs nothing where it is not
    // defined.

    /// `call` found `operand` busy, and `left` tries are left.
    fn busy(&self, _call: Call, _operand: Operand, _left: u32) {}
    /// A call of `kind` answered `status`: something is busy that the table of calls does not
    /// have. Called at most once for each S-EPT.
    fn unlisted(&self, _kind: Kind, _status: TdxStatus) {}
}
