// SPDX-License-Identifier: GPL-2.0

//! The S-EPT of one TD: what is kept about it.

#![forbid(unsafe_code)]

use super::backend::SeptBackend;
use super::budget::{
    BUILD_TRIES,
    FAULT_TRIES, //
};
use super::debt::Book;
use super::stats::{
    CallStats,
    SeptStats, //
};
use crate::base::addr::Gfn;
use crate::base::sys::AtomicBool;

/// The S-EPT of one TD.
#[derive(Debug)]
pub struct Sept<B: SeptBackend> {
    pub(super) backend: B,
    pub(super) fault_tries: u32,
    /// vCPUs are held out of the guest. Changed with mmu_lock held for write only.
    pub(super) holding: AtomicBool,
    /// It was reported that something else than the table has is contended.
    pub(super) unlisted: AtomicBool,
    pub(super) book: Book,
    pub(super) stats: SeptStats<B::Count>,
    pub(super) calls: CallStats<B::Count>,
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
        let calls = CallStats::new(&backend);
        Self {
            backend,
            fault_tries: tries.clamp(BUILD_TRIES, FAULT_TRIES),
            holding: AtomicBool::new(false),
            unlisted: AtomicBool::new(false),
            book: Book::new(),
            stats,
            calls,
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

    /// The figures by SEAMCALL.
    pub fn calls(&self) -> &CallStats<B::Count> {
        &self.calls
    }

    /// Whether a host-priority mark is owed on an entry that covers `gfn`.
    pub fn owes(&self, gfn: Gfn) -> bool {
        self.book.owes(gfn)
    }

    /// Host-priority marks that are owed now.
    pub fn debts_owed(&self) -> u64 {
        self.book.len()
    }
}
