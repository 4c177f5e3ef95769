// SPDX-License-Identifier: GPL-2.0

//! A VM and an S-EPT for measuring: nothing is checked, counted or locked that the mirror itself
//! does not do, and each SEAMCALL is done at once.

pub mod scale;

use std::alloc::{alloc, dealloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::Relaxed};

use tdx_mirror_host::base::addr::{Gfn, GfnRange, PagePtr, Pfn};
use tdx_mirror_host::base::level::{Level, Position};
use tdx_mirror_host::base::stats::Count;
use tdx_mirror_host::mirror::error::{Bug, Leak, MapOutcome};
use tdx_mirror_host::mirror::lock::{Exclusive, RcuRead, Shared};
use tdx_mirror_host::mirror::mmu::{Config, Mirror, Vm};
use tdx_mirror_host::mirror::spte::Spte;
use tdx_mirror_host::mirror::table::{PageMap, PageSupplier, Root};
use tdx_mirror_host::sept::{Sept, SeptBackend};
use tdx_mirror_host::tdx::call::Call;
use tdx_mirror_host::tdx::seamcall::{SeamOut, Seamcall};
use tdx_mirror_host::tdx::status::TdxStatus;

const PAGE: usize = 4096;
/// What no page is at: only the operand of a SEAMCALL.
const EXTERNAL: usize = 0x7000_0000_0000_0000;

/// Counters that a mirror and its S-EPT have, at least.
const COUNTERS: usize = 256;

thread_local! {
    static COUNTS: [Cell<u64>; COUNTERS] = const { [const { Cell::new(0) }; COUNTERS] };
}

/// A counter of one word of each thread, as the kernel's are of one word of each CPU.
#[derive(Debug)]
pub struct PerThread(usize);

impl PerThread {
    /// The next counter; those of mirrors that are made later share words with it.
    fn next() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self(NEXT.fetch_add(1, Relaxed) % COUNTERS)
    }

    fn change(&self, by: u64) {
        COUNTS.with(|counts| counts[self.0].set(counts[self.0].get().wrapping_add(by)));
    }
}

impl Count for PerThread {
    type Row<const N: usize> = [Self; N];

    fn inc(&self) {
        self.change(1);
    }
    fn dec(&self) {
        self.change(u64::MAX);
    }
    /// What the calling thread counted.
    fn get(&self) -> u64 {
        COUNTS.with(|counts| counts[self.0].get())
    }
}

/// An S-EPT that does everything at once.
#[derive(Debug, Default)]
pub struct Nothing;

const DONE: SeamOut = SeamOut::of(TdxStatus::SUCCESS);

impl Seamcall for Nothing {
    #[inline(always)]
    fn call(&self, _call: Call) -> SeamOut {
        DONE
    }
}

impl SeptBackend for Nothing {
    type Count = PerThread;
    fn counter(&self) -> PerThread {
        PerThread::next()
    }
    fn counter_row<const N: usize>(&self) -> [PerThread; N] {
        std::array::from_fn(|_| PerThread::next())
    }
    fn kick_vcpus(&self) {}
    fn hold_vcpus(&self, _hold: bool) {}
    fn is_finalized(&self) -> bool {
        true
    }
    fn is_hkid_assigned(&self) -> bool {
        true
    }
}

/// Pages for tables, handed out in order and taken back all at once.
#[derive(Debug)]
pub struct Arena {
    base: PagePtr,
    pages: usize,
    next: AtomicUsize,
    companions: Vec<AtomicPtr<u8>>,
}

// SAFETY: the pages are reached through atomics only, and live as long as the arena.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Room for `pages` pages.
    pub fn new(pages: usize) -> Self {
        let layout = Self::layout(pages);
        // SAFETY: the size is not zero.
        let base = unsafe { alloc(layout) };
        // Faults of the machine's own memory are none of the figures.
        // SAFETY: the allocation has that many bytes.
        unsafe { base.write_bytes(0, layout.size()) };
        Self {
            base: PagePtr::new(base).expect("memory"),
            pages,
            next: AtomicUsize::new(0),
            companions: (0..pages).map(|_| AtomicPtr::default()).collect(),
        }
    }

    fn layout(pages: usize) -> Layout {
        Layout::from_size_align(pages.max(1) * PAGE, PAGE).expect("a size")
    }

    fn take(&self) -> Option<PagePtr> {
        let n = self.next.fetch_add(1, Relaxed);
        // SAFETY: the page lies in the allocation.
        (n < self.pages).then(|| PagePtr::new(unsafe { self.base.as_ptr().add(n * PAGE) }))?
    }

    fn companion(&self, page: PagePtr) -> &AtomicPtr<u8> {
        let n = (page.as_ptr() as usize - self.base.as_ptr() as usize) / PAGE;
        &self.companions[n]
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: it is what `new()` allocated, and nobody is left to use it.
        unsafe { dealloc(self.base.as_ptr(), Self::layout(self.pages)) };
    }
}

// SAFETY: a page's frame number is its address without the low bits; the companions are words of
// their own; no page is used again before the arena ends.
unsafe impl PageMap for Arena {
    fn pfn_of(&self, page: PagePtr) -> Pfn {
        Pfn::new(page.as_ptr() as u64 >> 12).expect("an address")
    }
    fn page_at(&self, pfn: Pfn) -> Option<PagePtr> {
        PagePtr::new(std::ptr::with_exposed_provenance_mut(pfn.pa() as usize))
    }
    unsafe fn set_companion(&self, page: PagePtr, with: Option<PagePtr>) {
        let with = with.map_or(std::ptr::null_mut(), PagePtr::as_ptr);
        self.companion(page).store(with, Relaxed);
    }
    unsafe fn companion(&self, page: PagePtr) -> Option<PagePtr> {
        PagePtr::new(self.companion(page).load(Relaxed))
    }
    unsafe fn put_table(&self, _page: PagePtr) {}
    unsafe fn put_table_deferred(&self, _page: PagePtr) {}
    unsafe fn put_external(&self, _page: PagePtr) {}
}

impl Vm for Arena {
    type Count = PerThread;
    fn counter(&self) -> PerThread {
        PerThread::next()
    }
    fn counter_row<const N: usize>(&self) -> [PerThread; N] {
        std::array::from_fn(|_| PerThread::next())
    }
    fn bug(&self, bug: &Bug) {
        panic!("{bug:?}");
    }
    fn end(&self) {}
    fn leaked(&self, leak: &Leak) {
        panic!("{leak:?}");
    }
    fn hold_page(&self, _pfn: Pfn) -> bool {
        true
    }
    fn release_page(&self, _pfn: Pfn) {}
    fn account(&self, _page: PagePtr, _linked: bool) {}
    fn account_external(&self, _page: PagePtr, _linked: bool) {}
    fn page_stats(&self, _level: Level, _mapped: bool) {}
    fn need_resched(&self) -> bool {
        false
    }
    fn yield_lock(&self, _x: &mut Exclusive<'_>) {}
}

struct Caches<'a>(&'a Arena);

// SAFETY: pages of the arena, each handed out once.
unsafe impl PageSupplier for Caches<'_> {
    fn take_table(&mut self) -> Option<PagePtr> {
        self.0.take()
    }
    fn take_external(&mut self) -> Option<PagePtr> {
        PagePtr::new(std::ptr::without_provenance_mut(EXTERNAL))
    }
}

/// A TD of which only the mirror is there.
#[derive(Debug)]
pub struct Td {
    mirror: Mirror<Sept<Nothing>, Arena>,
}

impl Td {
    /// An empty mirror that has room for `tables` tables.
    pub fn new(tables: usize) -> Self {
        let arena = Arena::new(tables + 1);
        let root = arena.take().expect("a page");
        // SAFETY: the arena handed it out, and lives as long as the mirror.
        let root = unsafe { Root::new(root) };
        let config = Config::new(35, Level::L512G).expect("a shape");
        Self {
            mirror: Mirror::new(config, Sept::new(Nothing), arena, root),
        }
    }

    /// Maps `gfn` to the frame of the same number.
    pub fn map(&self, gfn: u64) -> MapOutcome {
        // SAFETY: nobody writes: threads map and walk, or one thread zaps.
        let shared = unsafe { Shared::assume_held() };
        let mut pages = Caches(self.mirror.vm());
        let (gfn, pfn) = (Gfn::new(gfn).expect("a GFN"), Pfn::new(gfn).expect("a PFN"));
        let phase = self.mirror.phase(&shared);
        let mirror = &self.mirror;
        let outcome = mirror.map(&shared, phase, &mut pages, gfn, pfn, Level::L4K);
        outcome.expect("a map that works")
    }

    /// Maps `first` and what follows.
    pub fn map_all(&self, first: u64, count: u64) {
        for gfn in first..first + count {
            assert_eq!(self.map(gfn), MapOutcome::Fixed);
        }
    }

    /// Zaps `[start, end)`.
    pub fn zap(&mut self, start: u64, end: u64) -> u64 {
        // SAFETY: `&mut self`: nobody else uses the mirror.
        let mut exclusive = unsafe { Exclusive::assume_held() };
        let range = GfnRange::new(start, end).expect("a range");
        let phase = self.mirror.phase(&exclusive);
        self.mirror.zap_range(&mut exclusive, phase, range, false)
    }

    /// What maps `gfn`.
    pub fn walk(&self, gfn: u64) -> Option<(Position, Spte)> {
        // SAFETY: no table is freed before the arena ends.
        let rcu = unsafe { RcuRead::assume_held() };
        self.mirror.walk(&rcu, Gfn::new(gfn)?)
    }
}
