// SPDX-License-Identifier: GPL-2.0

//! What is counted of the S-EPT: SEAMCALLs, and what they answered.

#![forbid(unsafe_code)]

use super::backend::SeptBackend;
use crate::base::stats::{
    counters,
    Count,
    CountRow, //
};
use crate::base::td::Operand;
use crate::tdx::call::{
    Kind,
    KINDS,
    LABELS, //
};

counters! {
    /// Figures of one S-EPT that are not told apart by SEAMCALL.
    SeptStats {
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
        /// Marks of these that nobody will clear: the book was full, or the TD is dead. What is
        /// neither paid nor lost is in the book.
        debts_lost,
    }
}

/// Counters of one [`ByOperand`].
pub const BY_OPERAND: usize = LABELS * Operand::ALL.len();

/// A counter for each label of calls, in the order of [`FIGURES`](crate::tdx::call::FIGURES), and
/// operand, in that of [`Operand::ALL`].
#[derive(Debug)]
pub struct ByOperand<C: Count>(C::Row<BY_OPERAND>);

impl<C: Count> ByOperand<C> {
    pub(super) fn add(&self, kind: Kind, operand: Operand) {
        let first = kind.figure().saturating_mul(Operand::ALL.len());
        self.0.inc(first.saturating_add(operand.index()));
    }

    /// All counters: the index of the label, that of the operand, the figure.
    pub fn each(&self) -> impl Iterator<Item = (usize, usize, u64)> + '_ {
        (0..BY_OPERAND).map(|index| {
            let (label, operand) = (index / Operand::ALL.len(), index % Operand::ALL.len());
            (label, operand, self.0.get(index))
        })
    }
}

/// SEAMCALLs, each try counted, and those that were answered something else than success. What is
/// contention is either retried or given up on.
#[derive(Debug)]
pub struct CallStats<C: Count> {
    /// Contention after which there was another try.
    pub retries: ByOperand<C>,
    /// Contention after which there was none.
    pub giveups: ByOperand<C>,
    made: C::Row<{ KINDS.len() }>,
    failed: C::Row<LABELS>,
    informational: C::Row<LABELS>,
}

impl<C: Count> CallStats<C> {
    pub(super) fn new<B: SeptBackend<Count = C>>(backend: &B) -> Self {
        Self {
            retries: ByOperand(backend.counter_row()),
            giveups: ByOperand(backend.counter_row()),
            made: backend.counter_row(),
            failed: backend.counter_row(),
            informational: backend.counter_row(),
        }
    }

    #[inline(always)]
    pub(super) fn count(&self, kind: Kind) {
        self.made.inc(kind as usize);
    }

    pub(super) fn failed(&self, kind: Kind) {
        self.failed.inc(kind.figure());
    }

    pub(super) fn informational(&self, kind: Kind) {
        self.informational.inc(kind.figure());
    }

    /// Calls of this kind.
    pub fn made(&self, kind: Kind) -> u64 {
        self.made.get(kind as usize)
    }

    /// Calls with each label, answers to them that were neither done nor contention, and answers
    /// that were done with an informational status.
    pub fn each(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        (0..LABELS).map(|label| {
            let kinds = KINDS.iter().filter(|kind| kind.figure() == label);
            let made = kinds.fold(0u64, |sum, kind| sum.wrapping_add(self.made(*kind)));
            let others = (self.failed.get(label), self.informational.get(label));
            (made, others.0, others.1)
        })
    }
}
