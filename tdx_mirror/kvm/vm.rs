// SPDX-License-Identifier: GPL-2.0

//! The VM of one TD as the mirror sees it, and the page caches of its vCPUs, on top of KVM's hooks.

use core::marker::PhantomData;
use kernel::{
    ffi::c_void,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    types::NotThreadSafe, //
};

use super::hooks::Hooks;
use crate::base::addr::{
    PagePtr,
    Pfn, //
};
use crate::base::level::{
    Level,
    Position, //
};
use crate::base::stats::Histogram;
use crate::kernel::page::{
    self,
    DeferredPages,
    DirectMap, //
};
use crate::kernel::percpu::{
    self,
    Block, //
};
use crate::kernel::{
    switches,
    tsc,
    warn, //
};
use crate::mirror::error::{
    Bug,
    Leak, //
};
use crate::mirror::external::ExtFailure;
use crate::mirror::lock::Exclusive;
use crate::mirror::mmu::Vm;
use crate::mirror::spte::Spte;
use crate::mirror::table::{
    PageMap,
    PageSupplier, //
};
use crate::tdx::status::TdxStatus;
use crate::watch::trace;

/// Buckets of the times of freezes, by powers of two of TSC cycles; the last one is minutes.
pub(crate) const FREEZES: usize = 40;

/// Lines that the bugs and leaks of one TD may put into the log: a broken TD can have as many as it
/// has pages, they are written under a lock, and the first ones tell most. All are counted.
const MAX_REPORTS: u32 = 10;

/// The VM that a mirror belongs to.
pub(crate) struct KernelVm {
    hooks: Arc<Hooks>,
    counters: Arc<Block>,
    freezes: Histogram<percpu::Counter, FREEZES>,
    td: u32,
    map: DirectMap,
    deferred: DeferredPages,
    reports: Atomic<u32>,
    /// Not 0: it was said that the TDX module has ended the TD.
    ended_said: Atomic<u32>,
}

/// Not 0: it was said that the TDX module was shut down.
static SHUTDOWN_SAID: Atomic<u32> = Atomic::new(0);

/// What a call was answered that failed.
fn status(failure: Option<&ExtFailure>) -> Option<TdxStatus> {
    failure.map(|failure| TdxStatus::new(failure.status))
}

impl KernelVm {
    /// The VM behind `hooks`, with the number `td` and the root's page `root`.
    pub(crate) fn new(hooks: Arc<Hooks>, counters: Arc<Block>, td: u32, root: PagePtr) -> Self {
        // SAFETY: The histogram is in this structure, which keeps the block.
        let freezes = Histogram::new(unsafe { counters.row() });
        Self {
            hooks,
            counters,
            freezes,
            td,
            map: DirectMap::with(root),
            deferred: DeferredPages::new(),
            reports: Atomic::new(0),
            ended_said: Atomic::new(0),
        }
    }

    /// How long entries were frozen, in TSC cycles, while that was measured.
    pub(crate) fn freezes(&self) -> &Histogram<percpu::Counter, FREEZES> {
        &self.freezes
    }

    /// A freeze is over that began at `begun`, or when its time was not taken.
    #[cold]
    #[inline(never)]
    fn timed(&self, begun: u64) {
        if begun != 0 {
            self.freezes.add(tsc::cycles().saturating_sub(begun));
        }
    }

    /// The TDX module serves this TD no more, and nobody has made a mistake: one line, however many
    /// pages that concerns.
    #[cold]
    fn ended(&self, status: TdxStatus) {
        if status.class() == TdxStatus::SYS_SHUTDOWN {
            // Of all TDs at once.
            if SHUTDOWN_SAID.xchg(1, Relaxed) == 0 {
                pr_warn!("the TDX module was shut down: TDs end, their pages stay with it until the next boot\n");
            }
        } else if self.ended_said.xchg(1, Relaxed) == 0 {
            pr_err!(
                "the TDX module has ended the TD {} ({status:?}), as after a memory error in it: the VM ends, look for machine checks\n",
                self.td
            );
        }
    }

    /// Whether one more line may go to the log for this TD.
    fn may_report(&self) -> bool {
        // Wraps after 2^32 reports, and then some more lines come.
        self.reports.fetch_add(1, Relaxed) < MAX_REPORTS
    }
}

impl Drop for KernelVm {
    /// Gives the unlinked tables back. The mirror has ended: no walk is under way any more.
    fn drop(&mut self) {
        while let Some(page) = self.deferred.take() {
            // SAFETY: The mirror took it from the supplier, a teardown unlinked it, and no walk
            // that began before can still be at it.
            unsafe { self.hooks.put_spt(page) };
        }
    }
}

// SAFETY: Pages of the suppliers are in the direct map, where page and frame are converted one to
// one, and `page->private` keeps what was stored. Deferred pages are touched by nothing but their
// word until this is dropped, when no walk is left.
unsafe impl PageMap for KernelVm {
    fn pfn_of(&self, page: PagePtr) -> Pfn {
        self.map.pfn_of(page)
    }

    fn page_at(&self, pfn: Pfn) -> Option<PagePtr> {
        self.map.page_at(pfn)
    }

    /// # Safety
    ///
    /// As of the trait.
    unsafe fn set_companion(&self, page: PagePtr, with: Option<PagePtr>) {
        // SAFETY: By the safety requirements.
        unsafe { page::set_word(page, with) };
    }

    /// # Safety
    ///
    /// As of the trait.
    unsafe fn companion(&self, page: PagePtr) -> Option<PagePtr> {
        // SAFETY: By the safety requirements.
        unsafe { page::word(page) }
    }

    /// # Safety
    ///
    /// As of the trait.
    unsafe fn put_table(&self, page: PagePtr) {
        // SAFETY: By the safety requirements.
        unsafe { self.hooks.put_spt(page) };
    }

    /// # Safety
    ///
    /// As of the trait.
    unsafe fn put_table_deferred(&self, page: PagePtr) {
        // SAFETY: By the safety requirements; the mirror has emptied the word before.
        unsafe { self.deferred.add(page) };
    }

    /// # Safety
    ///
    /// As of the trait.
    unsafe fn put_external(&self, page: PagePtr) {
        // SAFETY: By the safety requirements.
        unsafe { self.hooks.put_external_spt(page) };
    }
}

impl Vm for KernelVm {
    type Count = percpu::Counter;

    fn counter(&self) -> percpu::Counter {
        // SAFETY: The mirror has its counters and this VM, which keeps the block.
        unsafe { self.counters.counter() }
    }

    fn counter_row<const N: usize>(&self) -> percpu::Row<N> {
        // SAFETY: As in `counter()`.
        unsafe { self.counters.row() }
    }

    fn bug(&self, bug: &Bug) {
        trace::bugged(self.td, bug);
        if let Some(status) = status(bug.failure()).filter(|status| status.is_ended()) {
            return self.ended(status);
        }
        if self.may_report() {
            pr_err!("bug, the VM ends, report this line: {bug:?}\n");
        }
        warn::bug();
    }

    fn end(&self) {
        self.hooks.bug_vm();
    }

    fn leaked(&self, leak: &Leak) {
        trace::leaked(self.td, leak);
        let status = status(leak.failure());
        if let Some(status) = status.filter(|status| status.is_ended()) {
            return self.ended(status);
        }
        if self.may_report() {
            pr_err!("page leaked, unusable until the next boot, report this line: {leak:?}\n");
        }
        if status.is_some_and(TdxStatus::is_operand_busy) {
            warn::reclaim_busy();
        }
    }

    fn hold_page(&self, pfn: Pfn) -> bool {
        page::hold(pfn)
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

    #[inline(always)]
    fn spte_changed(&self, at: Position, old: Spte, new: Spte) {
        if trace::spte_changed::is_on() {
            trace::changed(self.td, at, old, new);
        }
    }

    #[inline(always)]
    fn freeze_begins(&self) -> u64 {
        if switches::timing() {
            tsc::cycles()
        } else {
            0
        }
    }

    #[inline(always)]
    fn freeze_ended(&self, begun: u64) {
        if switches::timing() {
            self.timed(begun);
        }
    }

    #[inline(always)]
    fn quarantined(&self, at: Position, pfn: Pfn) {
        if trace::quarantine::is_on() {
            trace::kept(self.td, at, pfn);
        }
    }
}

/// KVM's pre-filled page caches of the vCPU for which an operation runs.
///
/// # Invariants
///
/// `vcpu` is what KVM gave for the operation that is under way for `'a`.
pub(crate) struct Caches<'a> {
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
    pub(crate) unsafe fn new(hooks: &'a Hooks, vcpu: *mut c_void) -> Self {
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
