// SPDX-License-Identifier: GPL-2.0

//! What the mirror needs of a VM: pages for its tables from an arena, an account of each, and
//! what it reported.

use std::alloc::{alloc_zeroed, dealloc, Layout};
use std::collections::BTreeSet;
use std::ptr::{without_provenance_mut, NonNull};
use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU64, AtomicU8, AtomicUsize, Ordering::SeqCst,
};
use std::sync::{Arc, Mutex};

use tdx_mirror_host::base::addr::{PagePtr, Pfn};
use tdx_mirror_host::base::level::Level;
use tdx_mirror_host::base::stats::Counter;
use tdx_mirror_host::mirror::error::{Bug, Leak};
use tdx_mirror_host::mirror::lock::Exclusive;
use tdx_mirror_host::mirror::mmu::Vm;
use tdx_mirror_host::mirror::table::{PageMap, PageSupplier};

use crate::lock::MmuLock;
use crate::td::Machine;

/// Pages that an arena has.
const PAGES: usize = 1024;
const SIZE: usize = 4096;
/// Frame number of an arena's first page.  No machine has memory there.
const FIRST_PFN: u64 = 0x80_0000_0000;

const FREE: u8 = 0;
const USED: u8 = 1;
/// Put, but walkers may still be on it.
const DEFERRED: u8 = 2;

/// Pages for mirror tables.
pub struct Arena {
    base: NonNull<u8>,
    state: Vec<AtomicU8>,
    companions: Vec<AtomicUsize>,
    free: Mutex<Vec<usize>>,
}

// SAFETY: the memory is accessed through the mirror's atomics and `word()` only.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    const fn layout() -> Layout {
        match Layout::from_size_align(PAGES * SIZE, SIZE) {
            Ok(layout) => layout,
            Err(_) => panic!("a constant layout"),
        }
    }

    pub fn new() -> Self {
        // SAFETY: the size is not 0.
        let base = unsafe { alloc_zeroed(Self::layout()) };
        Self {
            base: NonNull::new(base).expect("memory"),
            state: (0..PAGES).map(|_| AtomicU8::new(FREE)).collect(),
            companions: (0..PAGES).map(|_| AtomicUsize::new(0)).collect(),
            free: Mutex::new((0..PAGES).rev().collect()),
        }
    }

    fn index(&self, page: PagePtr) -> usize {
        let offset = (page.as_ptr() as usize).wrapping_sub(self.base.as_ptr() as usize);
        assert!(offset % SIZE == 0 && offset / SIZE < PAGES, "no table page");
        offset / SIZE
    }

    fn at(&self, index: usize) -> PagePtr {
        assert!(index < PAGES);
        // SAFETY: inside the arena.
        PagePtr::new(unsafe { self.base.as_ptr().add(index * SIZE) }).expect("not null")
    }

    fn take(&self) -> Option<PagePtr> {
        let index = self.free.lock().unwrap().pop()?;
        assert_eq!(self.state[index].swap(USED, SeqCst), FREE);
        Some(self.at(index))
    }

    fn put(&self, page: PagePtr, state: u8) {
        let index = self.index(page);
        assert_eq!(self.companions[index].load(SeqCst), 0, "with a companion");
        assert_eq!(self.state[index].swap(state, SeqCst), USED, "put twice");
        if state == FREE {
            self.free.lock().unwrap().push(index);
        }
    }

    /// Ends the grace period of the pages that wait for it.
    pub fn quiesce(&self) {
        for (index, state) in self.state.iter().enumerate() {
            if state.load(SeqCst) == DEFERRED {
                state.store(FREE, SeqCst);
                self.free.lock().unwrap().push(index);
            }
        }
    }

    /// Pages in use.
    pub fn used(&self) -> usize {
        let used = |s: &&AtomicU8| s.load(SeqCst) == USED;
        self.state.iter().filter(used).count()
    }

    /// The page with the frame number `pfn`.
    pub fn page(&self, pfn: u64) -> PagePtr {
        let index = pfn.wrapping_sub(FIRST_PFN) as usize;
        let page = self.at(index);
        assert_ne!(self.state[index].load(SeqCst), FREE, "a free page");
        page
    }

    /// Entry `i` of a table, as it is in memory.
    pub fn word(&self, table: PagePtr, i: usize) -> u64 {
        assert!(i < SIZE / 8);
        let page = self.at(self.index(table)).as_ptr().cast::<AtomicU64>();
        // SAFETY: inside the arena and aligned; every access to it is atomic.
        unsafe { &*page.add(i) }.load(SeqCst)
    }

    /// What is kept beside a table: the physical address of its S-EPT page.
    pub fn companion_of(&self, table: PagePtr) -> u64 {
        self.companions[self.index(table)].load(SeqCst) as u64
    }
}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new()` with that layout; nobody borrows it any more.
        unsafe { dealloc(self.base.as_ptr(), Self::layout()) };
    }
}

/// A page that the emulated machine has at `pa`, as an operand.  Following it faults.
pub fn operand(pa: u64) -> PagePtr {
    PagePtr::new(without_provenance_mut(pa as usize)).expect("not null")
}

/// What the mirror of one TD needs of its VM.
pub struct Host {
    machine: Arc<Machine>,
    pub mmu_lock: Arc<MmuLock>,
    pub bugs: Mutex<Vec<Bug>>,
    /// The VM was ended.
    pub ended: AtomicBool,
    pub leaks: Mutex<Vec<Leak>>,
    /// Data pages that were kept back, how often.
    pub held: Mutex<Vec<Pfn>>,
    /// Table pages of the mirror and of the S-EPT by the account, and leaves.
    pub accounted: AtomicI64,
    pub accounted_external: AtomicI64,
    pub leaves: AtomicI64,
    /// S-EPT pages handed out and not put.
    pub external: Mutex<BTreeSet<u64>>,
    /// How often `need_resched()` says yes whoever waits.
    pub resched: AtomicI64,
    pub yields: AtomicU64,
}

impl Host {
    pub fn new(machine: Arc<Machine>, mmu_lock: Arc<MmuLock>) -> Self {
        Self {
            machine,
            mmu_lock,
            bugs: Mutex::default(),
            ended: AtomicBool::new(false),
            leaks: Mutex::default(),
            held: Mutex::default(),
            accounted: AtomicI64::new(0),
            accounted_external: AtomicI64::new(0),
            leaves: AtomicI64::new(0),
            external: Mutex::default(),
            resched: AtomicI64::new(0),
            yields: AtomicU64::new(0),
        }
    }

    /// A page for a table.
    pub fn take_table(&self) -> Option<PagePtr> {
        self.machine.arena.take()
    }
}

fn step(up: bool) -> i64 {
    if up {
        1
    } else {
        -1
    }
}

// SAFETY: frame numbers of the arena and its pages are inverse to each other; a companion is kept
// until it is set anew; no page is used again before `quiesce()`.
unsafe impl PageMap for Host {
    fn pfn_of(&self, page: PagePtr) -> Pfn {
        Pfn::new(FIRST_PFN + self.machine.arena.index(page) as u64).expect("a frame number")
    }

    fn page_at(&self, pfn: Pfn) -> Option<PagePtr> {
        Some(self.machine.arena.page(pfn.as_u64()))
    }

    unsafe fn set_companion(&self, page: PagePtr, with: Option<PagePtr>) {
        let arena = &self.machine.arena;
        let address = with.map_or(0, |p| p.as_ptr() as usize);
        arena.companions[arena.index(page)].store(address, SeqCst);
    }

    unsafe fn companion(&self, page: PagePtr) -> Option<PagePtr> {
        let arena = &self.machine.arena;
        PagePtr::new(without_provenance_mut(
            arena.companions[arena.index(page)].load(SeqCst),
        ))
    }

    unsafe fn put_table(&self, page: PagePtr) {
        self.machine.arena.put(page, FREE);
    }

    unsafe fn put_table_deferred(&self, page: PagePtr) {
        self.machine.arena.put(page, DEFERRED);
    }

    unsafe fn put_external(&self, page: PagePtr) {
        let pa = page.as_ptr() as u64;
        assert!(self.external.lock().unwrap().remove(&pa), "put twice");
        self.machine.vmm.free(pa);
    }
}

impl Vm for Host {
    type Count = Counter;

    fn counter(&self) -> Counter {
        Counter::new()
    }

    fn counter_row<const N: usize>(&self) -> [Counter; N] {
        Counter::row()
    }

    fn bug(&self, bug: &Bug) {
        self.bugs.lock().unwrap().push(*bug);
    }

    fn end(&self) {
        assert!(!self.ended.swap(true, SeqCst), "the VM is ended twice");
    }

    fn leaked(&self, leak: &Leak) {
        self.leaks.lock().unwrap().push(*leak);
    }

    fn hold_page(&self, pfn: Pfn) -> bool {
        self.held.lock().unwrap().push(pfn);
        true
    }

    fn release_page(&self, pfn: Pfn) {
        let mut held = self.held.lock().unwrap();
        let i = held.iter().position(|p| *p == pfn).expect("a held page");
        held.swap_remove(i);
    }

    fn account(&self, _page: PagePtr, linked: bool) {
        self.accounted.fetch_add(step(linked), SeqCst);
    }

    fn account_external(&self, _page: PagePtr, linked: bool) {
        self.accounted_external.fetch_add(step(linked), SeqCst);
    }

    fn page_stats(&self, _level: Level, mapped: bool) {
        self.leaves.fetch_add(step(mapped), SeqCst);
    }

    fn need_resched(&self) -> bool {
        self.resched
            .fetch_update(SeqCst, SeqCst, |n| (n > 0).then(|| n - 1))
            .is_ok()
            || self.mmu_lock.is_wanted()
    }

    fn yield_lock(&self, _x: &mut Exclusive<'_>) {
        self.yields.fetch_add(1, SeqCst);
        self.mmu_lock.unlock_write();
        std::thread::yield_now();
        self.mmu_lock.lock_write();
    }
}

/// One vCPU's pages for tables.
pub struct Caches<'h> {
    pub host: &'h Host,
    /// Tables that it can still supply.
    pub left: u32,
}

// SAFETY: pages come from the arena and are used by nobody else until they are put.
unsafe impl PageSupplier for Caches<'_> {
    fn take_table(&mut self) -> Option<PagePtr> {
        self.left = self.left.checked_sub(1)?;
        self.host.take_table()
    }

    fn take_external(&mut self) -> Option<PagePtr> {
        let pa = self.host.machine.vmm.page();
        self.host.external.lock().unwrap().insert(pa);
        Some(operand(pa))
    }
}
