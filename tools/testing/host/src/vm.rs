// SPDX-License-Identifier: GPL-2.0

//! A VM for the tests: mmu_lock, pages with an account of each, and the mirror over a mock S-EPT.

use crate::base::addr::{Gfn, GfnRange, PagePtr, Pfn};
use crate::base::level::{Level, Position};
use crate::base::stats::Counter;
#[cfg(not(loom))]
use crate::mirror::cell::SpteCell;
use crate::mirror::error::{Bug, Leak, MapError, MapOutcome};
use crate::mirror::lock::{Exclusive, RcuRead, Shared};
use crate::mirror::mmu::{Config, Mirror, Vm, ZAP_BATCH};
use crate::mirror::spte::{Spte, SpteKind};
use crate::mirror::table::{PageMap, PageSupplier, Root, Table};
use crate::mock::Mock;
use crate::sept::Sept;
use crate::tdx::call::Kind;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Deref;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[cfg(loom)]
use loom::sync::{RwLock, RwLockWriteGuard};
#[cfg(not(loom))]
use std::sync::{RwLock, RwLockWriteGuard};

/// A page of the allocator.  Aligned, so that its frame number says where it is.
#[repr(C, align(4096))]
struct Page {
    table: Table,
    companion: Mutex<Option<usize>>,
}

/// Pages by what became of them; none is freed before the test ends, so a use after it was put is
/// seen instead of being undefined.
#[derive(Default, Debug)]
struct Pages {
    all: HashSet<usize>,
    used: HashSet<usize>,
    deferred: Vec<usize>,
    external: HashSet<usize>,
}

/// What the mirror needs of a VM.  It outlives the mirror where a test asks it what is left.
#[derive(Clone, Debug)]
pub struct Host(Arc<HostState>);

/// What there is once of each [`Host`].
#[derive(Debug)]
pub struct HostState {
    pages: Mutex<Pages>,
    next_external: AtomicUsize,
    bugs: Mutex<Vec<Bug>>,
    leaks: Mutex<Vec<Leak>>,
    held: Mutex<HashSet<u64>>,
    /// Data pages that nobody refers to.
    free: Mutex<HashSet<u64>>,
    /// S-EPT pages in the account.
    accounted_external: Mutex<HashSet<usize>>,
    /// Mirror pages in use by the account.
    pub accounted: AtomicI64,
    /// Leaves by the page statistics.
    pub leaves: AtomicI64,
    /// How often `need_resched()` still says yes.
    pub resched: AtomicU32,
    pub yields: AtomicU64,
    /// How often the VM was ended.
    pub ends: AtomicU64,
    on_yield: Callback,
}

/// What runs while mmu_lock is let go of.
#[derive(Default)]
struct Callback(std::sync::OnceLock<Box<dyn Fn() + Send + Sync>>);

impl std::fmt::Debug for Callback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Callback")
    }
}

/// Pages that the hardware does not have: following one of these faults.
const EXTERNAL_BASE: usize = 0x7000_0000_0000_0000;

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Host {
    type Target = HostState;

    fn deref(&self) -> &HostState {
        &self.0
    }
}

impl Host {
    pub fn new() -> Self {
        Self(Arc::new(HostState {
            pages: Mutex::default(),
            next_external: AtomicUsize::new(EXTERNAL_BASE),
            bugs: Mutex::default(),
            leaks: Mutex::default(),
            held: Mutex::default(),
            free: Mutex::default(),
            accounted_external: Mutex::default(),
            accounted: AtomicI64::new(0),
            leaves: AtomicI64::new(0),
            resched: AtomicU32::new(0),
            yields: AtomicU64::new(0),
            ends: AtomicU64::new(0),
            on_yield: Callback::default(),
        }))
    }
}

impl HostState {
    fn alloc(&self) -> PagePtr {
        let page = Box::new(Page {
            // Not a table yet: whoever reads this did not wait for the link.
            table: Table::filled(Spte::from_raw(0)),
            companion: Mutex::new(None),
        });
        let ptr = Box::into_raw(page);
        let mut pages = locked(&self.pages);
        pages.all.insert(ptr as usize);
        pages.used.insert(ptr as usize);
        PagePtr::new(ptr.cast()).unwrap()
    }

    fn alloc_external(&self) -> PagePtr {
        let addr = self.next_external.fetch_add(4096, SeqCst);
        locked(&self.pages).external.insert(addr);
        PagePtr::new(std::ptr::without_provenance_mut(addr)).unwrap()
    }

    fn page(&self, page: PagePtr) -> &Page {
        let addr = page.as_ptr() as usize;
        assert!(locked(&self.pages).all.contains(&addr), "no page of ours");
        // SAFETY: `alloc()` made it, and it is freed when `self` is dropped.
        unsafe { &*page.as_ptr().cast::<Page>() }
    }

    fn has_no_companion(&self, page: PagePtr) -> bool {
        locked(&self.page(page).companion).is_none()
    }

    /// Has `f` run whenever mmu_lock is yielded; once for each host.
    pub fn on_yield(&self, f: impl Fn() + Send + Sync + 'static) {
        assert!(self.on_yield.0.set(Box::new(f)).is_ok(), "set before");
    }

    /// Forgets the S-EPT page beside the one mirror page that has `external`, as a stray write to
    /// `page->private` would.
    pub fn lose_companion(&self, external: usize) {
        let all = locked(&self.pages).all.clone();
        for addr in all {
            // SAFETY: `alloc()` made it, and it is freed when `self` is dropped.
            let page = unsafe { &*(addr as *const Page) };
            locked(&page.companion).take_if(|c| *c == external);
        }
    }

    pub fn bugs(&self) -> Vec<Bug> {
        locked(&self.bugs).clone()
    }

    pub fn leaks(&self) -> Vec<Leak> {
        locked(&self.leaks).clone()
    }

    /// The last reference to the data page `pfn` is gone.
    pub fn free_page(&self, pfn: u64) {
        locked(&self.free).insert(pfn);
    }

    /// Whether the data page was kept from the allocator.
    pub fn holds(&self, pfn: u64) -> bool {
        locked(&self.held).contains(&pfn)
    }

    /// S-EPT pages in use by the account.
    pub fn accounted_external(&self) -> usize {
        locked(&self.accounted_external).len()
    }

    /// The data pages that are kept from the allocator.
    pub fn held_pages(&self) -> Vec<u64> {
        locked(&self.held).iter().copied().collect()
    }

    /// Mirror pages that were handed out and not put, nor waiting for a grace period.
    pub fn used_pages(&self) -> usize {
        locked(&self.pages).used.len()
    }

    /// External pages that were handed out and not put.
    pub fn used_external(&self) -> usize {
        locked(&self.pages).external.len()
    }

    pub fn deferred_pages(&self) -> usize {
        locked(&self.pages).deferred.len()
    }
}

/// A lock whatever became of who had it: a test that failed still drops its TD, and must not end all
/// tests with a second panic.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As `assert!()`, but for a test that has failed already.
fn require(holds: bool, what: &str) {
    assert!(holds || std::thread::panicking(), "{what}");
}

impl Drop for HostState {
    fn drop(&mut self) {
        for addr in &locked(&self.pages).all {
            // SAFETY: `alloc()` made it with `Box`, and nobody is left to use it.
            drop(unsafe { Box::from_raw(*addr as *mut Page) });
        }
    }
}

// SAFETY: a page's frame number is its address without the low bits, so both ways are inverse;
// the companion is a field of the page; no page is freed before the host is.
unsafe impl PageMap for Host {
    fn pfn_of(&self, page: PagePtr) -> Pfn {
        Pfn::new(page.as_ptr() as u64 >> 12).unwrap()
    }

    fn page_at(&self, pfn: Pfn) -> Option<PagePtr> {
        let addr = pfn.pa() as usize;
        let pages = locked(&self.pages);
        require(pages.all.contains(&addr), "no page of ours");
        PagePtr::new(std::ptr::with_exposed_provenance_mut(addr))
    }

    unsafe fn set_companion(&self, page: PagePtr, with: Option<PagePtr>) {
        *locked(&self.page(page).companion) = with.map(|p| p.as_ptr() as usize);
    }

    unsafe fn companion(&self, page: PagePtr) -> Option<PagePtr> {
        let addr = *locked(&self.page(page).companion);
        PagePtr::new(std::ptr::without_provenance_mut(addr?))
    }

    unsafe fn put_table(&self, page: PagePtr) {
        require(self.has_no_companion(page), "put with a companion");
        let mut pages = locked(&self.pages);
        require(pages.used.remove(&(page.as_ptr() as usize)), "put twice");
    }

    unsafe fn put_table_deferred(&self, page: PagePtr) {
        require(self.has_no_companion(page), "put with a companion");
        let addr = page.as_ptr() as usize;
        let mut pages = locked(&self.pages);
        require(pages.used.remove(&addr), "put twice");
        pages.deferred.push(addr);
    }

    unsafe fn put_external(&self, page: PagePtr) {
        let mut pages = locked(&self.pages);
        require(
            pages.external.remove(&(page.as_ptr() as usize)),
            "put twice",
        );
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
        locked(&self.bugs).push(*bug);
    }

    fn end(&self) {
        assert!(!locked(&self.bugs).is_empty(), "ended without a reason");
        self.ends.fetch_add(1, SeqCst);
    }

    fn leaked(&self, leak: &Leak) {
        locked(&self.leaks).push(*leak);
    }

    fn hold_page(&self, pfn: Pfn) -> bool {
        if locked(&self.free).contains(&pfn.as_u64()) {
            return false;
        }
        let held = locked(&self.held).insert(pfn.as_u64());
        assert!(held, "{pfn:?} held twice");
        true
    }

    fn release_page(&self, pfn: Pfn) {
        let held = locked(&self.held).remove(&pfn.as_u64());
        assert!(held, "{pfn:?} released and not held");
    }

    fn account(&self, _page: PagePtr, linked: bool) {
        self.accounted
            .fetch_add(if linked { 1 } else { -1 }, SeqCst);
    }

    fn account_external(&self, page: PagePtr, linked: bool) {
        let addr = page.as_ptr() as usize;
        assert!(
            locked(&self.pages).external.contains(&addr),
            "account of a page that was put"
        );
        let mut accounted = locked(&self.accounted_external);
        let changed = if linked {
            accounted.insert(addr)
        } else {
            accounted.remove(&addr)
        };
        assert!(changed, "account out of balance");
    }

    fn page_stats(&self, _level: Level, mapped: bool) {
        self.leaves.fetch_add(if mapped { 1 } else { -1 }, SeqCst);
    }

    fn need_resched(&self) -> bool {
        self.resched
            .fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1))
            .is_ok()
    }

    fn yield_lock(&self, _x: &mut Exclusive<'_>) {
        self.yields.fetch_add(1, SeqCst);
        if let Some(f) = self.on_yield.0.get() {
            f();
        }
    }
}

/// One vCPU's caches.
#[derive(Debug)]
pub struct Caches<'h> {
    host: &'h Host,
    /// Pages left of each kind.
    pub tables: u32,
    pub externals: u32,
}

// SAFETY: pages come from `Host::alloc()`.
unsafe impl PageSupplier for Caches<'_> {
    fn take_table(&mut self) -> Option<PagePtr> {
        self.tables = self.tables.checked_sub(1)?;
        Some(self.host.alloc())
    }

    fn take_external(&mut self) -> Option<PagePtr> {
        self.externals = self.externals.checked_sub(1)?;
        Some(self.host.alloc_external())
    }
}

/// A TD: mmu_lock and what it protects.
#[derive(Debug)]
pub struct Td {
    mmu_lock: RwLock<()>,
    mirror: Mirror<Sept<Mock>, Host>,
    root_level: Level,
}

pub type Outcome = Result<MapOutcome, MapError>;

impl Td {
    pub fn new(root_level: Level, mock: Mock) -> Self {
        Self::with_zap_batch(root_level, mock, ZAP_BATCH)
    }

    /// As [`new()`](Self::new), with `zap_batch` leaves for each TRACK.
    pub fn with_zap_batch(root_level: Level, mock: Mock, zap_batch: u32) -> Self {
        let host = Host::new();
        let page = host.alloc();
        // SAFETY: the page is the host's and given to nobody else.
        let root = unsafe { Root::new(page) };
        let config = Config::new(root_level.gfn_bits().min(40), root_level).unwrap();
        let config = config.with_zap_batch(zap_batch);
        Self {
            mmu_lock: RwLock::new(()),
            mirror: Mirror::new(config, Sept::new(mock), host, root),
            root_level,
        }
    }

    /// A finalized TD with four levels.
    pub fn built() -> Self {
        Self::new(Level::L512G, Mock::new(Level::L512G))
    }

    /// A TD with four levels that is not finalized.
    pub fn in_build() -> Self {
        let td = Self::built();
        td.mock().set_finalized(false);
        td
    }

    pub fn mirror(&self) -> &Mirror<Sept<Mock>, Host> {
        &self.mirror
    }

    /// SEAMCALLs of one kind, as the S-EPT counts them.
    pub fn made(&self, kind: Kind) -> u64 {
        self.mirror.external().calls().made(kind)
    }

    pub fn mock(&self) -> &Mock {
        self.mirror.external().backend()
    }

    pub fn host(&self) -> &Host {
        self.mirror.vm()
    }

    pub fn caches(&self) -> Caches<'_> {
        Caches {
            host: self.host(),
            tables: u32::MAX,
            externals: u32::MAX,
        }
    }

    /// Runs `f` with mmu_lock held for read.
    pub fn shared<R>(&self, f: impl FnOnce(&Shared<'_>) -> R) -> R {
        let _guard = self.mmu_lock.read().unwrap();
        // SAFETY: held until the end of this function, and the token does not get out.
        f(&unsafe { Shared::assume_held() })
    }

    /// Runs `f` with mmu_lock held for write.
    pub fn exclusive<R>(&self, f: impl FnOnce(&mut Exclusive<'_>) -> R) -> R {
        let _guard: RwLockWriteGuard<'_, ()> = self.mmu_lock.write().unwrap();
        // SAFETY: as above.
        f(&mut unsafe { Exclusive::assume_held() })
    }

    pub fn map_with(&self, caches: &mut Caches<'_>, gfn: u64, pfn: u64) -> Outcome {
        let (gfn, pfn) = (Gfn::new(gfn).unwrap(), Pfn::new(pfn).unwrap());
        self.shared(|l| self.map_locked(l, caches, gfn, pfn))
    }

    /// A map with mmu_lock held for read.
    pub fn map_locked(
        &self,
        l: &Shared<'_>,
        caches: &mut Caches<'_>,
        gfn: Gfn,
        pfn: Pfn,
    ) -> Outcome {
        let phase = self.mirror.phase(l);
        self.mirror.map(l, phase, caches, gfn, pfn, Level::L4K)
    }

    pub fn map(&self, gfn: u64, pfn: u64) -> Outcome {
        self.map_with(&mut self.caches(), gfn, pfn)
    }

    /// Zaps with leave to yield.
    pub fn zap_yielding(&self, start: u64, end: u64) -> u64 {
        let range = GfnRange::new(start, end).unwrap();
        self.exclusive(|x| self.mirror.zap_range(x, self.mirror.phase(x), range, true))
    }

    pub fn zap(&self, start: u64, end: u64) -> u64 {
        let range = GfnRange::new(start, end).unwrap();
        self.exclusive(|x| self.mirror.zap_range(x, self.mirror.phase(x), range, false))
    }

    /// Ends the TD's use of its key, then tears the mirror down.
    pub fn teardown(&self) {
        self.mock().release_hkid();
        self.exclusive(|x| self.mirror.teardown(x));
    }

    pub fn walk(&self, gfn: u64) -> Option<(Position, Spte)> {
        // SAFETY: the host frees no page before it is dropped itself.
        let rcu = unsafe { RcuRead::assume_held() };
        self.mirror.walk(&rcu, Gfn::new(gfn)?)
    }

    /// Overwrites the entry that ends the walk for `gfn`, as nobody may.  Answers its position.
    #[cfg(not(loom))]
    pub fn poke(&self, gfn: u64, v: Spte) -> Position {
        use std::sync::atomic::AtomicU64;
        self.exclusive(|x| {
            let slot = self.mirror.slot(x, Gfn::new(gfn).unwrap()).unwrap();
            let cell: *const SpteCell = slot.cell;
            // SAFETY: an entry is a transparent atomic word.
            unsafe { &*cell.cast::<AtomicU64>() }.store(v.raw(), SeqCst);
            slot.at
        })
    }

    pub fn kind(&self, gfn: u64) -> SpteKind {
        let (at, spte) = self.walk(gfn).unwrap();
        spte.kind(at.level())
    }

    /// Compares the mirror with the mock S-EPT at `gfns`; nobody else may be at work.
    pub fn check_same(&self, gfns: &[u64]) {
        let leaves = self.mock().leaves();
        let mut seen = BTreeMap::new();
        for &gfn in gfns {
            let (at, spte) = self.walk(gfn).unwrap();
            match spte.kind(at.level()) {
                SpteKind::NonPresent => {
                    assert_eq!(leaves.get(&gfn), None, "gfn {gfn:#x}: S-EPT only");
                    assert_eq!(
                        self.mock().entry(at.level(), gfn),
                        None,
                        "gfn {gfn:#x}: {:?} of the S-EPT only",
                        at.level()
                    );
                }
                SpteKind::Leaf(pfn) => {
                    assert_eq!(leaves.get(&gfn), Some(&pfn.as_u64()), "gfn {gfn:#x}");
                    seen.insert(gfn, pfn.as_u64());
                }
                SpteKind::Quarantined(pfn) => {
                    assert!(self.host().holds(pfn.as_u64()), "not held back");
                    assert!(self.mirror.is_bugged());
                }
                other => panic!("gfn {gfn:#x}: {other:?} with nobody at work"),
            }
        }
        let mut owners = HashMap::new();
        for (gfn, pfn) in &leaves {
            assert_eq!(owners.insert(*pfn, *gfn), None, "pfn {pfn:#x} mapped twice");
        }
        let stats = self.mirror.stats();
        let tables = self.mock().tables() as u64;
        let root = u64::from(self.mock_has_key());
        assert_eq!(stats.tables.get(), tables + root, "tables");
        assert_eq!(
            stats.tables.get() as i64,
            self.host().accounted.load(SeqCst)
        );
        assert_eq!(seen.len() as i64, self.host().leaves.load(SeqCst));
        assert_eq!(stats.leaf_transitions.get(), stats.mapped.get());
        assert_eq!(
            stats.mapped.get(),
            stats.zapped.get() + stats.quarantined.get() + seen.len() as u64
        );
        // Mirror pages: the linked ones, and the root until it is destroyed.
        assert_eq!(self.host().used_pages() as u64, tables + 1);
        assert_eq!(self.host().used_external() as u64, tables);
        assert_eq!(stats.external_tables.get(), tables);
        assert_eq!(self.host().accounted_external() as u64, tables);
        // Whoever waits for the host's priority to end is in the book.
        let sept = self.mirror.external();
        let (debts, paid, lost) = (
            sept.stats().debts.get(),
            sept.stats().debts_paid.get(),
            sept.stats().debts_lost.get(),
        );
        assert_eq!(debts, paid + lost + sept.debts_owed(), "debts");
        if !self.mirror.is_bugged() {
            assert!(self.mock().marks() as u64 <= sept.debts_owed() + lost);
        }
    }

    fn mock_has_key(&self) -> bool {
        use crate::sept::SeptBackend;
        self.mock().is_hkid_assigned()
    }

    /// The level of the root.
    pub fn root_level(&self) -> Level {
        self.root_level
    }

    /// Gives the root back; nobody else may be at work.
    pub fn destroy(self) -> Host {
        self.host().clone()
    }
}
