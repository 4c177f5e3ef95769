// SPDX-License-Identifier: GPL-2.0

//! The VM of one TD as the mirror sees it, on top of KVM's hooks.

use core::{
    marker::PhantomData,
    sync::atomic::{AtomicU32, Ordering}, //
};
use kernel::{
    ffi::c_void,
    prelude::*,
    sync::Arc,
    types::NotThreadSafe, //
};

use super::hooks::{Answer, Hooks};
use super::page::{self, DeferredPages};
use crate::bindings;
use crate::mirror::addr::{PagePtr, Pfn};
use crate::mirror::error::{Bug, Leak};
use crate::mirror::level::{Level, Position};
use crate::mirror::lock::Exclusive;
use crate::mirror::mmu::Vm;
use crate::mirror::table::{PageMap, PageSupplier};
use crate::sept::SeptBackend;
use crate::tdx::seamcall::{SeamOut, Seamcall};
use crate::tdx::status::TdxStatus;

/// The SEAMCALLs of one TD, through the hooks.
pub(super) struct HookSeamcalls {
    hooks: Arc<Hooks>,
}

impl HookSeamcalls {
    /// The SEAMCALLs behind `hooks`.
    pub(super) fn new(hooks: Arc<Hooks>) -> Self {
        Self { hooks }
    }
}

fn seam_out(answer: Answer) -> SeamOut {
    SeamOut {
        status: TdxStatus::new(answer.status),
        ext1: answer.ext1,
        ext2: answer.ext2,
        ext3: answer.ext3,
    }
}

impl Seamcall for HookSeamcalls {
    fn mem_sept_add(&self, at: Position, page: PagePtr) -> SeamOut {
        seam_out(self.hooks.link_external_spt(at, page))
    }

    fn mem_page_map(&self, at: Position, pfn: Pfn) -> SeamOut {
        seam_out(self.hooks.set_external_spte(at, pfn))
    }

    fn mem_range_block(&self, at: Position) -> SeamOut {
        seam_out(self.hooks.block_external_spte(at))
    }

    fn mem_track(&self) -> SeamOut {
        seam_out(self.hooks.track_external())
    }

    fn mem_page_remove(&self, at: Position) -> SeamOut {
        seam_out(self.hooks.remove_external_spte(at))
    }

    fn phymem_page_wbinvd(&self, at: Position, pfn: Pfn) -> SeamOut {
        seam_out(self.hooks.wbinvd_external_page(pfn, at.level()))
    }

    fn mem_sept_rd(&self, at: Position) -> SeamOut {
        seam_out(self.hooks.read_external_spte(at))
    }

    fn phymem_page_reclaim(&self, page: PagePtr) -> SeamOut {
        seam_out(self.hooks.free_external_spt(page))
    }

    fn phymem_data_reclaim(&self, at: Position, pfn: Pfn) -> SeamOut {
        seam_out(self.hooks.reclaim_external_page(pfn, at.level()))
    }
}

impl SeptBackend for HookSeamcalls {
    fn kick_vcpus(&self) {
        self.hooks.kick_vcpus();
    }

    fn hold_vcpus(&self, hold: bool) {
        self.hooks.hold_vcpus(hold);
    }

    fn is_finalized(&self) -> bool {
        self.hooks.is_finalized()
    }

    fn is_hkid_assigned(&self) -> bool {
        self.hooks.is_hkid_assigned()
    }
}

/// Lines that the bugs and leaks of one TD may put into the log: a broken TD can have as many as it
/// has pages, they are written under a lock, and the first ones tell most. All are counted.
const MAX_REPORTS: u32 = 10;

/// The VM that a mirror belongs to.
pub(super) struct KernelVm {
    hooks: Arc<Hooks>,
    deferred: DeferredPages,
    reports: AtomicU32,
}

impl KernelVm {
    /// The VM behind `hooks`.
    pub(super) fn new(hooks: Arc<Hooks>) -> Self {
        Self {
            hooks,
            deferred: DeferredPages::new(),
            reports: AtomicU32::new(0),
        }
    }

    /// Whether one more line may go to the log for this TD.
    fn may_report(&self) -> bool {
        // Wraps after 2^32 reports, and then some more lines come.
        self.reports.fetch_add(1, Ordering::Relaxed) < MAX_REPORTS
    }

    /// Gives the unlinked tables back. The mirror ends: no walk is under way any more.
    pub(super) fn put_deferred(&mut self) {
        while let Some(page) = self.deferred.take() {
            // SAFETY: The mirror took it from the supplier, a teardown unlinked it, and no walk
            // that began before can still be at it.
            unsafe { self.hooks.put_spt(page) };
        }
    }
}

// SAFETY: Pages of the suppliers are in the direct map, where page and frame are converted one to
// one, and `page->private` keeps what was stored. Deferred pages are touched by nothing but their
// word until `put_deferred()`, which runs when no walk is left.
unsafe impl PageMap for KernelVm {
    fn pfn_of(&self, page: PagePtr) -> Pfn {
        page::pfn_of(page)
    }

    fn page_at(&self, pfn: Pfn) -> Option<PagePtr> {
        page::page_at(pfn)
    }

    fn set_companion(&self, page: PagePtr, with: Option<PagePtr>) {
        page::set_word(page, with);
    }

    fn companion(&self, page: PagePtr) -> Option<PagePtr> {
        page::word(page)
    }

    fn put_table(&self, page: PagePtr) {
        // SAFETY: The mirror took it from the supplier and says that nobody refers to it.
        unsafe { self.hooks.put_spt(page) };
    }

    fn put_table_deferred(&self, page: PagePtr) {
        self.deferred.add(page);
    }

    fn put_external(&self, page: PagePtr) {
        // SAFETY: The mirror took it from the supplier, and it is no assigned page any more, or
        // never was.
        unsafe { self.hooks.put_external_spt(page) };
    }
}

impl Vm for KernelVm {
    fn bug(&self, bug: &Bug) {
        if self.may_report() {
            pr_err!("bug, the VM ends, report this line: {bug:?}\n");
        }
        // SAFETY: May be called in any context.
        unsafe { bindings::tdx_mirror_warn_bug() };
        self.hooks.bug_vm();
    }

    fn leaked(&self, leak: &Leak) {
        if self.may_report() {
            pr_err!("page leaked, unusable until the next boot, report this line: {leak:?}\n");
        }
        let (Leak::SeptTable { failure, .. } | Leak::Data { failure, .. }) = leak;
        if TdxStatus::new(failure.status).is_operand_busy() {
            // SAFETY: May be called in any context.
            unsafe { bindings::tdx_mirror_warn_reclaim_busy() };
        }
    }

    fn hold_page(&self, pfn: Pfn) {
        page::hold(pfn);
    }

    fn release_page(&self, pfn: Pfn) {
        page::release(pfn);
    }

    fn account(&self, page: PagePtr, linked: bool) {
        self.hooks.account(page, if linked { 1 } else { -1 });
    }

    fn account_external(&self, page: PagePtr, linked: bool) {
        self.hooks
            .account_external(page, if linked { 1 } else { -1 });
    }

    fn page_stats(&self, level: Level, mapped: bool) {
        self.hooks.page_stats(level, if mapped { 1 } else { -1 });
    }

    fn need_resched(&self) -> bool {
        self.hooks.need_resched()
    }

    fn yield_lock(&self, _x: &mut Exclusive<'_>) {
        self.hooks.yield_lock();
    }
}

/// KVM's pre-filled page caches of the vCPU for which an operation runs.
///
/// # Invariants
///
/// `vcpu` is what KVM gave for the operation that is under way for `'a`.
pub(super) struct Caches<'a> {
    hooks: &'a Hooks,
    vcpu: *mut c_void,
    _call: PhantomData<(&'a (), NotThreadSafe)>,
}

impl<'a> Caches<'a> {
    /// The caches of `vcpu`.
    ///
    /// # Safety
    ///
    /// `vcpu` is what KVM gave for the operation that is under way for `'a`.
    pub(super) unsafe fn new(hooks: &'a Hooks, vcpu: *mut c_void) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            hooks,
            vcpu,
            _call: PhantomData,
        }
    }
}

// SAFETY: The contract says of both suppliers that the page is whole and nobody else's.
unsafe impl PageSupplier for Caches<'_> {
    fn take_table(&mut self) -> Option<PagePtr> {
        // SAFETY: By the type invariant.
        unsafe { self.hooks.take_spt(self.vcpu) }
    }

    fn take_external(&mut self) -> Option<PagePtr> {
        // SAFETY: By the type invariant.
        unsafe { self.hooks.take_external_spt(self.vcpu) }
    }
}
