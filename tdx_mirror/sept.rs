// SPDX-License-Identifier: GPL-2.0

//! The policy that turns operations on the external table into SEAMCALLs: which leaf after which,
//! how often again for contention, and when the vCPUs have to leave the guest.
//!
//! What a leaf may find busy follows from the
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
//! [`crate::tdx::call`] has the table by call. A busy operand that is not there is retried as well
//! and reported once for each TD; to a call that may find nothing busy it is a bug.

#![forbid(unsafe_code)]

mod backend;
mod budget;
mod debt;
mod external;
mod marks;
pub mod progress;
mod retry;
mod stats;
mod table;

pub use self::backend::SeptBackend;
pub use self::budget::{
    BUILD_TRIES,
    FAULT_TRIES,
    HOLD_ROUNDS,
    LISTED_AFTER,
    LOCAL_ROUNDS,
    MAX_ENTERS,
    PAY_TRIES,
    TEARDOWN_TRIES,
    WAIT_ROUNDS,
    ZAP_TRIES,
    ZERO_STEP_THRESHOLD, //
};
pub use self::debt::DEBT_SLOTS;
pub use self::stats::{
    ByOperand,
    CallStats,
    SeptStats,
    BY_OPERAND, //
};
pub use self::table::Sept;
