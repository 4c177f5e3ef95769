// SPDX-License-Identifier: GPL-2.0

//! Counters of one word on each CPU: to count is one instruction on memory that no other CPU
//! writes, without a lock prefix, and an interrupt or a move to another CPU cannot split it.

use core::{
    fmt,
    ptr::NonNull, //
};
use kernel::{
    alloc::AllocError,
    ffi::c_void,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

use crate::base::stats::{
    Count,
    CountRow, //
};
use crate::bindings;

/// Counters that a TD has: those of the mirror, of the S-EPT and of the vCPUs' progress, the rows
/// by call and by operand, and the histograms of batches and of freezes. What is too few shows
/// when the first TD is made: see [`Block::counter`].
const COUNTERS: u32 = 256;

/// The counters of one TD.
///
/// # Invariants
///
/// `words` is what the allocator of per-CPU memory answered for [`COUNTERS`] words.
pub(crate) struct Block {
    words: NonNull<c_void>,
    taken: Atomic<usize>,
}

// SAFETY: Per-CPU memory may be used by any thread, and is changed by single instructions.
unsafe impl Send for Block {}
// SAFETY: As above.
unsafe impl Sync for Block {}

impl Block {
    /// Counters that are all 0. Sleeps.
    pub(crate) fn new() -> Result<Arc<Self>, AllocError> {
        // SAFETY: May be called where a thread may sleep.
        let words = unsafe { bindings::tdx_mirror_alloc_counters(COUNTERS) };
        // INVARIANT: It is what the allocator answered.
        let block = Self {
            words: NonNull::new(words).ok_or(AllocError)?,
            taken: Atomic::new(0),
        };
        Arc::new(block, GFP_KERNEL_ACCOUNT)
    }

    /// The next counter. Beyond the last one all share it, so that a figure would be wrong and no
    /// memory touched that is not the block's.
    ///
    /// # Safety
    ///
    /// The counter is not used after the block is dropped.
    pub(crate) unsafe fn counter(&self) -> Counter {
        // INVARIANT: The word is the block's, which lives as long by the safety requirements.
        Counter { word: self.take(1) }
    }

    /// The next `N` counters, of which the same holds.
    ///
    /// # Safety
    ///
    /// No counter of the row is used after the block is dropped.
    pub(crate) unsafe fn row<const N: usize>(&self) -> Row<N> {
        const { assert!(N <= COUNTERS as usize) };
        // INVARIANT: The words are the block's, which lives as long by the safety requirements.
        Row {
            first: self.take(N),
        }
    }

    /// The address of the first of `count` words that lie in the block.
    fn take(&self, count: usize) -> usize {
        let last = (COUNTERS as usize).saturating_sub(count);
        let number = self.taken.fetch_add(count, Relaxed);
        let offset = number.min(last).wrapping_mul(size_of::<u64>());
        (self.words.as_ptr() as usize).wrapping_add(offset)
    }

    /// Whether each counter has a word of its own.
    pub(crate) fn is_large_enough(&self) -> bool {
        self.taken.load(Relaxed) <= COUNTERS as usize
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, and no counter is used after this.
        unsafe { bindings::tdx_mirror_free_counters(self.words.as_ptr()) };
    }
}

/// One counter.
///
/// # Invariants
///
/// `word` is the address, as per-CPU memory has them, of a `u64` that lives as long as the counter
/// is used.
pub(crate) struct Counter {
    word: usize,
}

impl Count for Counter {
    type Row<const N: usize> = Row<N>;

    #[inline(always)]
    fn inc(&self) {
        // SAFETY: By the type invariant the word is there on every CPU, reached through the
        // segment that has the CPU's part of per-CPU memory.
        #[cfg(CONFIG_SMP)]
        unsafe {
            kernel::asm!("incq %gs:({})"; in(reg) self.word)
        };
        // SAFETY: As above; the only CPU has its part where the address says.
        #[cfg(not(CONFIG_SMP))]
        unsafe {
            kernel::asm!("incq ({})"; in(reg) self.word)
        };
    }

    #[inline(always)]
    fn dec(&self) {
        // SAFETY: As in `inc()`.
        #[cfg(CONFIG_SMP)]
        unsafe {
            kernel::asm!("decq %gs:({})"; in(reg) self.word)
        };
        // SAFETY: As in `inc()`.
        #[cfg(not(CONFIG_SMP))]
        unsafe {
            kernel::asm!("decq ({})"; in(reg) self.word)
        };
    }

    fn get(&self) -> u64 {
        // SAFETY: By the type invariant.
        unsafe { bindings::tdx_mirror_sum_counter(self.word as *const c_void) }
    }
}

/// `N` counters, one after the other.
///
/// # Invariants
///
/// `first` is the address, as per-CPU memory has them, of `N` words that are each as a
/// [`Counter`]'s.
pub(crate) struct Row<const N: usize> {
    first: usize,
}

impl<const N: usize> Row<N> {
    #[inline(always)]
    fn counter(&self, index: usize) -> Option<Counter> {
        if index >= N {
            return None;
        }
        // INVARIANT: By the type invariant the word at `index` is such a word.
        Some(Counter {
            word: self
                .first
                .wrapping_add(index.wrapping_mul(size_of::<u64>())),
        })
    }
}

impl<const N: usize> CountRow for Row<N> {
    #[inline(always)]
    fn inc(&self, index: usize) {
        if let Some(counter) = self.counter(index) {
            counter.inc();
        }
    }

    fn get(&self, index: usize) -> u64 {
        self.counter(index).map_or(0, |counter| counter.get())
    }
}

impl<const N: usize> fmt::Debug for Row<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counters = (0..N).map(|index| CountRow::get(self, index));
        f.debug_list().entries(counters).finish()
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.get(), f)
    }
}
