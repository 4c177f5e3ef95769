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
use crate::base::addr::{PagePtr, Pfn};
use crate::base::level::{Level, Position};
use crate::base::stats::Histogram;
use crate::base::td::Operand;
use crate::kernel::page::{self, DeferredPages, DirectMap};
use crate::kernel::percpu::{self, Block};
use crate::kernel::{switches, tsc, warn};
use crate::mirror::error::{Bug, Leak};
use crate::mirror::lock::Exclusive;
use crate::mirror::mmu::Vm;
use crate::mirror::spte::Spte;
use crate::mirror::table::{PageMap, PageSupplier};
use crate::sept::SeptBackend;
use crate::tdx::leaf::Leaf;
use crate::tdx::seamcall::{SeamOut, Seamcall};
use crate::tdx::status::TdxStatus;
use crate::watch::figures::FREEZES;
use crate::watch::trace;

/// The SEAMCALLs of one TD, through the hooks.
pub(crate) struct HookSeamcalls {
    hooks: Arc<Hooks>,
    counters: Arc<Block>,
    td: u32,
}

/// A SEAMCALL with what it is about.
#[derive(Clone, Copy)]
enum Call {
    Link(Position, PagePtr),
    Map(Position, Pfn),
    Block(Position),
    Track,
    Remove(Position),
    Wbinvd(Position, Pfn),
    Read(Position),
    ReclaimTable(PagePtr),
    ReclaimData(Position, Pfn),
}

/// What the event of a SEAMCALL says about it: the leaf, the entry and the address of the data page.
/// Of an S-EPT page nothing is asked, not even where it is.
type Described = (Leaf, Option<Position>, u64);

impl HookSeamcalls {
    /// The SEAMCALLs behind `hooks`, for the TD with the number `td`, counted in `counters`.
    pub(crate) fn new(hooks: Arc<Hooks>, counters: Arc<Block>, td: u32) -> Self {
        Self {
            hooks,
            counters,
            td,
        }
    }

    #[inline(always)]
    fn issue(&self, call: Call) -> Answer {
        match call {
            Call::Link(at, page) => self.hooks.link_external_spt(at, page),
            Call::Map(at, pfn) => self.hooks.set_external_spte(at, pfn),
            Call::Block(at) => self.hooks.block_external_spte(at),
            Call::Track => self.hooks.track_external(),
            Call::Remove(at) => self.hooks.remove_external_spte(at),
            Call::Wbinvd(at, pfn) => self.hooks.wbinvd_external_page(pfn, at.level()),
            Call::Read(at) => self.hooks.read_external_spte(at),
            Call::ReclaimTable(page) => self.hooks.free_external_spt(page),
            Call::ReclaimData(at, pfn) => self.hooks.reclaim_external_page(pfn, at.level()),
        }
    }

    fn describe(&self, call: Call) -> Described {
        match call {
            Call::Link(at, _) => (Leaf::MEM_SEPT_ADD, Some(at), 0),
            Call::Map(at, pfn) if self.hooks.is_finalized() => {
                (Leaf::MEM_PAGE_AUG, Some(at), pfn.pa())
            }
            Call::Map(at, pfn) => (Leaf::MEM_PAGE_ADD, Some(at), pfn.pa()),
            Call::Block(at) => (Leaf::MEM_RANGE_BLOCK, Some(at), 0),
            Call::Track => (Leaf::MEM_TRACK, None, 0),
            Call::Remove(at) => (Leaf::MEM_PAGE_REMOVE, Some(at), 0),
            Call::Wbinvd(at, pfn) => (Leaf::PHYMEM_PAGE_WBINVD, Some(at), pfn.pa()),
            Call::Read(at) => (Leaf::MEM_SEPT_RD, Some(at), 0),
            Call::ReclaimTable(_) => (Leaf::PHYMEM_PAGE_RECLAIM, None, 0),
            Call::ReclaimData(at, pfn) => (Leaf::PHYMEM_PAGE_RECLAIM, Some(at), pfn.pa()),
        }
    }

    /// Issues a SEAMCALL and tells of it.
    #[cold]
    #[inline(never)]
    fn traced(&self, call: Call) -> SeamOut {
        let begin = tsc::cycles();
        let answer = self.issue(call);
        let cycles = tsc::cycles().wrapping_sub(begin);
        let (leaf, at, pa) = self.describe(call);
        let (gpa, level) = trace::entry(at);
        let leaf = u32::from(leaf.as_u16());
        trace::seamcall::emit(self.td, leaf, gpa, level, pa, answer.status, cycles);
        seam_out(answer)
    }

    #[cold]
    #[inline(never)]
    fn traced_kick(&self) {
        let begin = tsc::cycles();
        self.hooks.kick_vcpus();
        let cycles = tsc::cycles().wrapping_sub(begin);
        trace::kick::emit(self.td, cycles);
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

/// Issues a SEAMCALL, and tells of it if somebody listens. A macro, so that nothing is put together
/// before the branch.
macro_rules! seamcall {
    ($self:ident, $call:expr) => {
        if trace::seamcall::is_on() {
            $self.traced($call)
        } else {
            seam_out($self.issue($call))
        }
    };
}

impl Seamcall for HookSeamcalls {
    fn mem_sept_add(&self, at: Position, page: PagePtr) -> SeamOut {
        seamcall!(self, Call::Link(at, page))
    }

    fn mem_page_map(&self, at: Position, pfn: Pfn) -> SeamOut {
        seamcall!(self, Call::Map(at, pfn))
    }

    fn mem_range_block(&self, at: Position) -> SeamOut {
        seamcall!(self, Call::Block(at))
    }

    fn mem_track(&self) -> SeamOut {
        let out = seamcall!(self, Call::Track);
        if trace::track::is_on() {
            trace::track::emit(self.td, out.status.raw());
        }
        out
    }

    fn mem_page_remove(&self, at: Position) -> SeamOut {
        seamcall!(self, Call::Remove(at))
    }

    fn phymem_page_wbinvd(&self, at: Position, pfn: Pfn) -> SeamOut {
        seamcall!(self, Call::Wbinvd(at, pfn))
    }

    fn mem_sept_rd(&self, at: Position) -> SeamOut {
        seamcall!(self, Call::Read(at))
    }

    fn phymem_page_reclaim(&self, page: PagePtr) -> SeamOut {
        seamcall!(self, Call::ReclaimTable(page))
    }

    fn phymem_data_reclaim(&self, at: Position, pfn: Pfn) -> SeamOut {
        seamcall!(self, Call::ReclaimData(at, pfn))
    }
}

impl SeptBackend for HookSeamcalls {
    type Count = percpu::Counter;

    fn counter(&self) -> percpu::Counter {
        // SAFETY: The S-EPT has its counters and this backend, which keeps the block.
        unsafe { self.counters.counter() }
    }

    fn counter_row<const N: usize>(&self) -> percpu::Row<N> {
        // SAFETY: As in `counter()`.
        unsafe { self.counters.row() }
    }

    fn kick_vcpus(&self) {
        if trace::kick::is_on() {
            return self.traced_kick();
        }
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

    #[inline(always)]
    fn busy(&self, leaf: Leaf, at: Option<Position>, operand: Operand, left: u32) {
        if trace::busy::is_on() {
            trace::contended(self.td, leaf, at, operand, left);
        }
    }
}

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
    reports: AtomicU32,
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
            reports: AtomicU32::new(0),
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

    /// Whether one more line may go to the log for this TD.
    fn may_report(&self) -> bool {
        // Wraps after 2^32 reports, and then some more lines come.
        self.reports.fetch_add(1, Ordering::Relaxed) < MAX_REPORTS
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
        if self.may_report() {
            pr_err!("bug, the VM ends, report this line: {bug:?}\n");
        }
        warn::bug();
        self.hooks.bug_vm();
    }

    fn leaked(&self, leak: &Leak) {
        trace::leaked(self.td, leak);
        if self.may_report() {
            pr_err!("page leaked, unusable until the next boot, report this line: {leak:?}\n");
        }
        let (Leak::SeptTable { failure, .. } | Leak::Data { failure, .. }) = leak;
        if TdxStatus::new(failure.status).is_operand_busy() {
            warn::reclaim_busy();
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
