// SPDX-License-Identifier: GPL-2.0

//! What is counted of the S-EPT: SEAMCALLs by operation, and what they answered.

use super::op::{Op, LEAVES};
use crate::base::stats::{counters, Count, CountRow};
use crate::base::td::Operand;

counters! {
    /// SEAMCALLs by operation, each try counted.
    SeptStats {
        /// TDH.MEM.SEPT.ADD.
        link_calls,
        /// TDH.MEM.PAGE.ADD and TDH.MEM.PAGE.AUG.
        map_calls,
        /// Of these, TDH.MEM.PAGE.ADD: one try each, while the TD is built.
        add_calls,
        /// TDH.MEM.RANGE.BLOCK.
        block_calls,
        /// TDH.MEM.TRACK.
        track_calls,
        /// TDH.MEM.PAGE.REMOVE.
        remove_calls,
        /// TDH.PHYMEM.PAGE.WBINVD.
        wbinvd_calls,
        /// TDH.MEM.SEPT.RD.
        read_calls,
        /// TDH.PHYMEM.PAGE.RECLAIM of S-EPT pages.
        reclaim_calls,
        /// TDH.PHYMEM.PAGE.RECLAIM of data pages that were quarantined.
        data_reclaim_calls,
        /// Answers that were contention.
        busy,
        /// Tries after the first one.
        retries,
        /// Operations that ended for contention.
        giveups,
        /// Kicks of all vCPUs.
        kicks,
        /// Host-priority marks that operations left when they gave up.
        debts,
        /// Marks of these that are cleared again.
        debts_paid,
        /// Marks of these that nobody will clear: the book was full, or the TD is dead.  What is
        /// neither paid nor lost is in the book.
        debts_lost,
    }
}

/// Names of what may be contended, in the order in which it is counted.
pub const OPERANDS: [&str; 5] = [
    "sept_tree",
    "sept_entry",
    "td_epoch",
    "previous_epoch",
    "tdr",
];

/// Counters of one [`ByOperand`].
pub(super) const BY_OPERAND: usize = LEAVES * OPERANDS.len();

/// A counter for each operation, in the order of [`OPS`](super::OPS), and operand, in that of
/// [`OPERANDS`].
#[derive(Debug)]
pub struct ByOperand<C: Count>(C::Row<BY_OPERAND>);

impl<C: Count> ByOperand<C> {
    pub(super) fn new(row: C::Row<BY_OPERAND>) -> Self {
        Self(row)
    }

    pub(super) fn add(&self, op: Op, operand: Operand) {
        let operand = match operand {
            Operand::SeptTree => 0,
            Operand::SeptEntry => 1,
            Operand::TdEpoch => 2,
            Operand::PreviousEpoch => 3,
            Operand::Tdr => 4usize,
        };
        let first = (op as usize).saturating_mul(OPERANDS.len());
        self.0.inc(first.saturating_add(operand));
    }

    /// All counters: the operation, the operand, the figure.
    pub fn each(&self) -> impl Iterator<Item = (usize, usize, u64)> + '_ {
        (0..BY_OPERAND).map(|index| {
            let (op, operand) = (index / OPERANDS.len(), index % OPERANDS.len());
            (op, operand, self.0.get(index))
        })
    }
}

/// What was answered but success.  What is contention is either retried or given up on.
#[derive(Debug)]
pub struct Given<C: Count> {
    /// Contention after which there was another try.
    pub retries: ByOperand<C>,
    /// Contention after which there was none.
    pub giveups: ByOperand<C>,
    failed: C::Row<LEAVES>,
    noted: C::Row<LEAVES>,
}

impl<C: Count> Given<C> {
    pub(super) fn new(
        retries: ByOperand<C>,
        giveups: ByOperand<C>,
        failed: C::Row<LEAVES>,
        noted: C::Row<LEAVES>,
    ) -> Self {
        Self {
            retries,
            giveups,
            failed,
            noted,
        }
    }

    pub(super) fn failed(&self, op: Op) {
        self.failed.inc(op as usize);
    }

    pub(super) fn noted(&self, op: Op) {
        self.noted.inc(op as usize);
    }

    /// For each operation, answers that were neither done nor contention, and answers that were
    /// done with a remark.
    pub fn others(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        (0..LEAVES).map(|op| (self.failed.get(op), self.noted.get(op)))
    }
}
