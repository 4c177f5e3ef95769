// SPDX-License-Identifier: GPL-2.0

//! Pages as arrays of atomic words: the only unsafe code of the core.
//!
//! All of the module's state is shared by all CPUs, so every access is atomic.
//! Words are accessed with relaxed ordering; what orders them are the locks of
//! `lock.rs` and the S-EPT entry locks, which acquire and release.

#![expect(unsafe_code, reason = "a page by its address")]

use core::sync::atomic::{AtomicU64, Ordering};

use super::platform::{Platform, PAGE_SIZE};

/// Words of a page.
pub(crate) const WORDS: usize = 512;

/// One 4 KiB page.
#[derive(Clone, Copy)]
pub(crate) struct Page<'p>(&'p [AtomicU64; WORDS]);

impl<'p> Page<'p> {
    /// The page at `pa` (low bits ignored), or `None` if there is no memory.
    pub(crate) fn at<P: Platform>(p: &'p P, pa: u64) -> Option<Self> {
        let ptr = p.page(pa & !(PAGE_SIZE - 1))?;
        // SAFETY: Platform::page() promises 4096 bytes, aligned to 4096, valid while `p` is
        // borrowed, with no access by this program other than atomic ones. [AtomicU64; 512] has
        // that size and every bit pattern is a value of it.
        Some(Page(unsafe { ptr.cast::<[AtomicU64; WORDS]>().as_ref() }))
    }

    /// Word `i`; only its low nine bits count.
    #[inline]
    pub(crate) fn word(&self, i: usize) -> &'p AtomicU64 {
        &self.0[i & (WORDS - 1)]
    }

    #[inline]
    pub(crate) fn get(&self, i: usize) -> u64 {
        self.word(i).load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set(&self, i: usize, v: u64) {
        self.word(i).store(v, Ordering::Relaxed);
    }

    /// Sets every word to `v`.
    pub(crate) fn fill(&self, v: u64) {
        for w in self.0 {
            w.store(v, Ordering::Relaxed);
        }
    }

    /// Copies all of `src`.
    pub(crate) fn copy_from(&self, src: &Page<'_>) {
        for (d, s) in self.0.iter().zip(src.0) {
            d.store(s.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Words `first..first + out.len()`, for structures that the host passes.
    pub(crate) fn read(&self, first: usize, out: &mut [u64]) {
        let mut i = first;
        for o in out.iter_mut() {
            *o = self.get(i);
            i = i.wrapping_add(1);
        }
    }
}
