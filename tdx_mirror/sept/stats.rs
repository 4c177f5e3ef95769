// SPDX-License-Identifier: GPL-2.0

//! What is counted of the S-EPT: SEAMCALLs by operation, and what they answered.

use super::op::{Op, LEAVES};
use crate::base::stats::counters;
use crate::mirror::external::{Count, Operand};

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

/// A counter for each operation, in the order of [`OPS`](super::OPS), and operand, in that of
/// [`OPERANDS`].
#[derive(Debug)]
pub struct ByOperand<C>([[C; OPERANDS.len()]; LEAVES]);

impl<C: Count> ByOperand<C> {
    fn new(mut make: impl FnMut() -> C) -> Self {
        Self(core::array::from_fn(|_| core::array::from_fn(|_| make())))
    }

    pub(super) fn add(&self, op: Op, operand: Operand) {
        let operand = match operand {
            Operand::SeptTree => 0,
            Operand::SeptEntry => 1,
            Operand::TdEpoch => 2,
            Operand::PreviousEpoch => 3,
            Operand::Tdr => 4usize,
        };
        let row = self.0.get(op as usize);
        if let Some(count) = row.and_then(|row| row.get(operand)) {
            count.inc();
        }
    }

    /// All counters: the operation, the operand, the figure.
    pub fn each(&self) -> impl Iterator<Item = (usize, usize, u64)> + '_ {
        let rows = self.0.iter().enumerate();
        rows.flat_map(|(op, row)| {
            let counts = row.iter().enumerate();
            counts.map(move |(operand, count)| (op, operand, count.get()))
        })
    }
}

/// What was answered but success.  What is contention is either retried or given up on.
#[derive(Debug)]
pub struct Given<C> {
    /// Contention after which there was another try.
    pub retries: ByOperand<C>,
    /// Contention after which there was none.
    pub giveups: ByOperand<C>,
    failed: [C; LEAVES],
    noted: [C; LEAVES],
}

impl<C: Count> Given<C> {
    pub(super) fn new(mut make: impl FnMut() -> C) -> Self {
        Self {
            retries: ByOperand::new(&mut make),
            giveups: ByOperand::new(&mut make),
            failed: core::array::from_fn(|_| make()),
            noted: core::array::from_fn(|_| make()),
        }
    }

    pub(super) fn failed(&self, op: Op) {
        if let Some(count) = self.failed.get(op as usize) {
            count.inc();
        }
    }

    pub(super) fn noted(&self, op: Op) {
        if let Some(count) = self.noted.get(op as usize) {
            count.inc();
        }
    }

    /// For each operation, answers that were neither done nor contention, and answers that were
    /// done with a remark.
    pub fn others(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let both = self.failed.iter().zip(&self.noted);
        both.map(|(failed, noted)| (failed.get(), noted.get()))
    }
}
