// SPDX-License-Identifier: GPL-2.0

//! Pages of the kernel's direct map: their frames and the one word that is kept with each.
//!
//! The word is `page->private`, which the allocator leaves to the owner of a page and which is 0
//! in a page fresh from it. It holds the S-EPT page that stands beside a mirror table and, once a
//! table was unlinked and its S-EPT page taken away, the next one of a [`DeferredPages`].

use kernel::sync::atomic::{
    Atomic,
    Relaxed,
    Release, //
};

use crate::base::addr::{
    PagePtr,
    Pfn,
    PAGE_SHIFT, //
};
use crate::bindings;

/// The direct map: pages lie in it as their frames do in memory, so that no table of the kernel has
/// to be asked. A walk goes through it at each level.
#[derive(Clone, Copy)]
pub(crate) struct DirectMap {
    /// Where frame 0 is.
    start: usize,
}

impl DirectMap {
    /// The direct map, as `page` shows, which KVM's allocator handed out.
    pub(crate) fn with(page: PagePtr) -> Self {
        // SAFETY: Only arithmetic on the address, which is in the direct map.
        let pfn = unsafe { bindings::tdx_mirror_virt_to_pfn(page.as_ptr().cast()) };
        let pa = Pfn::from_pa_bits(pfn << PAGE_SHIFT).pa() as usize;
        Self {
            start: (page.as_ptr() as usize).wrapping_sub(pa),
        }
    }

    /// The frame of a page that a page supplier of KVM handed out.
    #[inline]
    pub(crate) fn pfn_of(self, page: PagePtr) -> Pfn {
        Pfn::from_pa_bits((page.as_ptr() as usize).wrapping_sub(self.start) as u64)
    }

    /// The page of a frame that [`pfn_of()`](Self::pfn_of) answered.
    #[inline]
    pub(crate) fn page_at(self, pfn: Pfn) -> Option<PagePtr> {
        PagePtr::new(self.start.wrapping_add(pfn.pa() as usize) as *mut u8)
    }
}

/// Keeps `word` with a page.
///
/// # Safety
///
/// A page supplier of KVM has handed the page out, and it was not put back.
pub(crate) unsafe fn set_word(page: PagePtr, word: Option<PagePtr>) {
    let word = word.map_or(core::ptr::null_mut(), PagePtr::as_ptr);
    // SAFETY: The page is the mirror's by the safety requirements, and so is its `page->private`.
    unsafe { bindings::tdx_mirror_set_page_private(page.as_ptr().cast(), word.cast()) };
}

/// What was kept with a page.
///
/// # Safety
///
/// As of [`set_word()`].
pub(crate) unsafe fn word(page: PagePtr) -> Option<PagePtr> {
    // SAFETY: As in `set_word()`.
    PagePtr::new(unsafe { bindings::tdx_mirror_page_private(page.as_ptr().cast()) }.cast())
}

/// Takes a reference to a guest's page that is not given back before [`release()`], so that the
/// page is not free before. Returns `false` if it is free already, and then there is none to give
/// back. Frames without a `struct page` have no allocator to keep them from.
pub(crate) fn hold(pfn: Pfn) -> bool {
    // SAFETY: kernel/page.c takes any number, and takes no reference to a page that has none.
    unsafe { bindings::tdx_mirror_hold_page(pfn.as_u64()) }
}

/// Gives back the reference that [`hold()`] took: the TDX module does not own the page any more.
pub(crate) fn release(pfn: Pfn) {
    // SAFETY: kernel/page.c takes any number; the reference is the one that `hold()` took.
    unsafe { bindings::tdx_mirror_release_page(pfn.as_u64()) };
}

/// Pages that were unlinked while a walk may still be at them, chained through their words, so that
/// nothing is allocated under `mmu_lock`.
///
/// # Invariants
///
/// A page supplier of KVM has handed out each page in the chain, it was not put back, and its word is
/// the chain's.
pub(crate) struct DeferredPages {
    head: Atomic<*mut u8>,
}

impl DeferredPages {
    /// None.
    pub(crate) const fn new() -> Self {
        Self {
            head: Atomic::new(core::ptr::null_mut()),
        }
    }

    /// Adds a page.
    ///
    /// # Safety
    ///
    /// A page supplier of KVM has handed the page out, it was not put back, and nobody but this uses
    /// its word from now on.
    pub(crate) unsafe fn add(&self, page: PagePtr) {
        let mut head = self.head.load(Relaxed);
        loop {
            // SAFETY: By the safety requirements.
            unsafe { set_word(page, PagePtr::new(head)) };
            // INVARIANT: By the safety requirements.
            match self.head.cmpxchg(head, page.as_ptr(), Release) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes one page out, its word cleared.
    pub(crate) fn take(&mut self) -> Option<PagePtr> {
        let page = PagePtr::new(*self.head.get_mut())?;
        // SAFETY: By the type invariant.
        let next = unsafe { word(page) };
        *self.head.get_mut() = next.map_or(core::ptr::null_mut(), PagePtr::as_ptr);
        // SAFETY: By the type invariant, which held for it until now.
        unsafe { set_word(page, None) };
        Some(page)
    }
}
