// SPDX-License-Identifier: GPL-2.0

//! Calls that clear the host-priority marks that are owed, see [`super::debt`].

#![forbid(unsafe_code)]

use super::backend::SeptBackend;
use super::budget::{
    BUILD_TRIES,
    PAY_TRIES, //
};
use super::debt::DEBT_SLOTS;
use super::retry::CallError;
use super::table::Sept;
use crate::base::level::Position;
use crate::base::stats::Count;
use crate::base::td::Phase;
use crate::mirror::external::ExtFailure;
use crate::tdx::call::{
    Call,
    Kind, //
};

impl<B: SeptBackend> Sept<B> {
    pub(super) fn paid(&self, owed: bool) {
        if owed {
            self.stats.debts_paid.inc();
        }
    }

    /// Puts back what was taken out of the book before a call that did not clear the mark.
    pub(super) fn owe_again(&self, owed: bool, at: Position) {
        if owed && self.book.put(at).is_err() {
            self.stats.debts_lost.inc();
        }
    }

    /// The lock of the frozen entry `at` was held at a try and not got at a later one, so the mark
    /// is there: clears it at once, or puts it into the book.
    pub(super) fn give_up(&self, phase: Phase, at: Position, owed_before: bool) {
        if !owed_before {
            self.stats.debts.inc();
        }
        match self.read(phase, at, PAY_TRIES) {
            Ok(()) => self.paid(true),
            Err(_) => self.owe_again(true, at),
        }
    }

    /// Clears one mark that is owed, if one try does it.
    #[inline]
    pub(super) fn pay_one(&self, phase: Phase) {
        if let Some(at) = self.book.take_any() {
            self.pay(phase, at);
        }
    }

    #[cold]
    #[inline(never)]
    fn pay(&self, phase: Phase, at: Position) {
        match self.read(phase, at, BUILD_TRIES) {
            Ok(()) => self.paid(true),
            Err(CallError::Contended(..)) => self.owe_again(true, at),
            // The TD is dead: no guest is left that waits.
            Err(CallError::Failed(_)) => self.stats.debts_lost.inc(),
        }
    }

    /// Clears all marks that are owed, with mmu_lock held for write.
    ///
    /// # Errors
    ///
    /// An entry whose lock is held though nobody is left who could hold it.
    pub(super) fn pay_all(&self, phase: Phase) -> Result<(), (Position, ExtFailure)> {
        let mut result = Ok(());
        // Nobody adds to the book now.
        for _ in 0..DEBT_SLOTS {
            let Some(at) = self.book.take_any() else {
                break;
            };
            match self.exclusive_call(Call::SeptRd { at }, phase) {
                Ok(_) => self.paid(true),
                Err(CallError::Failed(_)) => self.stats.debts_lost.inc(),
                Err(error) => {
                    self.stats.debts_lost.inc();
                    result = Err((at, error.failure(Kind::SeptRd)));
                }
            }
        }
        result
    }

    fn read(&self, phase: Phase, at: Position, tries: u32) -> Result<(), CallError> {
        self.tries(Call::SeptRd { at }, phase, tries, |_| ())
            .map(|_| ())
    }
}
