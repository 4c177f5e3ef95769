// SPDX-License-Identifier: GPL-2.0

//! A TD without KVM and without TDX, for one thread, in one block of zeroed memory.
//!
//! Its S-EPT is an array of leaves; whoever changes one against the rules of the TDX module gets a
//! status that no caller may see, and is counted in [`Td::broken`].

use core::cell::{
    Cell,
    UnsafeCell, //
};
use core::ptr::NonNull;

use crate::base::addr::{
    Gfn,
    GfnRange,
    PagePtr,
    Pfn,
    PAGE_SHIFT, //
};
use crate::base::level::{
    Level,
    Position, //
};
use crate::base::stats::Counter;
use crate::mirror::error::{
    Bug,
    Leak,
    MapError,
    MapOutcome, //
};
use crate::mirror::lock::{
    Exclusive,
    RcuRead,
    Shared, //
};
use crate::mirror::mmu::{
    Config,
    Mirror,
    Vm, //
};
use crate::mirror::table::{
    PageMap,
    PageSupplier,
    Root, //
};
use crate::sept::{
    Sept,
    SeptBackend, //
};
use crate::tdx::call::{
    Call,
    Kind,
    KINDS, //
};
use crate::tdx::seamcall::{
    SeamOut,
    Seamcall, //
};
use crate::tdx::status::TdxStatus;

/// Pages of a TD: mirror tables and S-EPT tables.
const PAGES: usize = 32;
/// GFNs whose leaves the S-EPT has room for.
pub const GFNS: usize = 1536;
/// Bits of a GFN.
const GFN_BITS: u32 = 36;
/// PFN of the first page of the TD, and that of the first data page: none of either is memory.
const TABLE_PFN: u64 = 0x10_0000;
const DATA_PFN: u64 = 0x80_0000;

const PRESENT: u64 = 1;
const BLOCKED: u64 = 2;
const TRACKED: u64 = 4;

/// OPERAND_BUSY on the S-EPT tree.
pub const BUSY_TREE: u64 = 0x8000_0200_0000_0092;
/// OPERAND_BUSY on the S-EPT entry, RCX.
pub const BUSY_ENTRY: u64 = 0x8000_0200_0000_0001;
/// OPERAND_BUSY on the TDR.
pub const BUSY_TDR: u64 = 0x8000_0200_0000_0080;
/// OPERAND_BUSY on the epoch.
pub const BUSY_EPOCH: u64 = 0x8000_0200_0000_00a9;
/// OPERAND_INVALID, RCX.
pub const INVALID: u64 = 0xc000_0100_0000_0001;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u64; 512]>);

/// What happens to one SEAMCALL.
struct Script {
    calls: Cell<u32>,
    skip: Cell<u32>,
    fail: Cell<u32>,
    status: Cell<u64>,
}

/// The state of the TD. All zero is a TD that is being built, without anything mapped.
#[repr(C)]
pub struct Td {
    pages: [Page; PAGES],
    used: Cell<u64>,
    companions: [Cell<Option<NonNull<u8>>>; PAGES],
    leaves: [Cell<u64>; GFNS],
    script: [Script; KINDS.len()],
    /// TDH.MR.FINALIZE was done.
    pub finalized: Cell<bool>,
    /// The HKID is released.
    pub hkid_released: Cell<bool>,
    /// Calls fail even with all vCPUs held out.
    pub fail_if_held: Cell<bool>,
    /// mmu_lock is wanted.
    pub resched: Cell<bool>,
    /// vCPUs are held out of the guest.
    pub held: Cell<bool>,
    /// Kicks of all vCPUs.
    pub kicks: Cell<u32>,
    /// Times that mmu_lock was yielded.
    pub yields: Cell<u32>,
    /// Bugs that were reported.
    pub bugs: Cell<u32>,
    /// How often the VM was ended.
    pub ends: Cell<u32>,
    /// Leaks that were reported.
    pub leaks: Cell<u32>,
    /// Data pages kept from the allocator.
    pub kept: Cell<i64>,
    /// Mirror tables in use, by their account.
    pub tables: Cell<i64>,
    /// S-EPT tables in use, by their account.
    pub external_tables: Cell<i64>,
    /// Leaves, by their account.
    pub leaf_account: Cell<i64>,
    /// Calls that broke a rule.
    pub broken: Cell<u32>,
}

/// The mirror of a [`Td`].
pub type TdMirror<'a> = Mirror<Sept<&'a Td>, &'a Td>;

fn add(cell: &Cell<u32>) {
    cell.set(cell.get().saturating_add(1));
}

fn change(cell: &Cell<i64>, more: bool) {
    cell.set(cell.get().saturating_add(if more { 1 } else { -1 }));
}

/// The GFN `raw`; 0 for one that has too many bits.
pub fn gfn(raw: u64) -> Gfn {
    match Gfn::new(raw) {
        Some(gfn) => gfn,
        None => gfn(0),
    }
}

/// The data page that belongs to the GFN `raw`.
pub fn pfn(raw: u64) -> Pfn {
    Pfn::from_pa_bits(DATA_PFN.saturating_add(raw) << PAGE_SHIFT)
}

impl Td {
    /// A mirror for the TD, which is finalized unless `building`.
    pub fn mirror(&self, building: bool, batch: u32) -> Option<TdMirror<'_>> {
        self.finalized.set(!building);
        let config = Config::new(GFN_BITS, Level::L512G).ok()?;
        let page = self.take()?;
        // SAFETY: The page is one of the TD's, whole and nobody else's until it is put.
        let root = unsafe { Root::new(page) };
        let sept = Sept::new(self);
        Some(Mirror::new(config.with_zap_batch(batch), sept, self, root))
    }

    /// The next `times` calls of `call` answer `status`, after `skip` that go on.
    pub fn fail(&self, call: Kind, skip: u32, times: u32, status: u64) {
        if let Some(script) = self.script.get(call as usize) {
            script.skip.set(skip);
            script.fail.set(times);
            script.status.set(status);
        }
    }

    /// No call fails any more.
    pub fn no_fail(&self) {
        for script in &self.script {
            script.fail.set(0);
        }
    }

    /// How often `call` was called.
    pub fn calls(&self, call: Kind) -> u32 {
        self.script.get(call as usize).map_or(0, |s| s.calls.get())
    }

    /// All calls.
    pub fn seamcalls(&self) -> u32 {
        self.script
            .iter()
            .fold(0, |sum, s| sum.saturating_add(s.calls.get()))
    }

    /// Whether the S-EPT maps the GFN `raw` to its page.
    pub fn is_mapped(&self, raw: u64) -> bool {
        self.leaf(gfn(raw)).is_some_and(|leaf| leaf.get() != 0)
    }

    /// Pages that are neither free nor lost.
    pub fn pages_in_use(&self) -> u32 {
        self.used.get().count_ones()
    }

    fn leaf(&self, gfn: Gfn) -> Option<&Cell<u64>> {
        self.leaves.get(usize::try_from(gfn.as_u64()).ok()?)
    }

    fn take(&self) -> Option<PagePtr> {
        let free = self.used.get().trailing_ones();
        let page = self.pages.get(usize::try_from(free).ok()?)?;
        self.used.set(self.used.get() | 1u64.checked_shl(free)?);
        PagePtr::new(page.0.get().cast())
    }

    fn put(&self, page: PagePtr) {
        match self.number(page).and_then(|n| 1u64.checked_shl(n)) {
            Some(bit) if self.used.get() & bit != 0 => self.used.set(self.used.get() & !bit),
            _ => add(&self.broken),
        }
    }

    fn number(&self, page: PagePtr) -> Option<u32> {
        let wanted = page.as_ptr().cast();
        let found = self.pages.iter().position(|p| p.0.get() == wanted)?;
        u32::try_from(found).ok()
    }

    fn word(&self, page: PagePtr) -> Option<&Cell<Option<NonNull<u8>>>> {
        self.companions
            .get(usize::try_from(self.number(page)?).ok()?)
    }

    /// Counts a call; `Some` is the answer that the test asked for.
    fn begin(&self, call: Kind) -> Option<SeamOut> {
        let script = self.script.get(call as usize)?;
        add(&script.calls);
        if script.fail.get() == 0 || (self.held.get() && !self.fail_if_held.get()) {
            return None;
        }
        if let Some(left) = script.skip.get().checked_sub(1) {
            script.skip.set(left);
            return None;
        }
        script.fail.set(script.fail.get().saturating_sub(1));
        Some(SeamOut::of(TdxStatus::new(script.status.get())))
    }

    /// Whether a call may come now, whatever state the leaves are in.
    fn is_in_order(&self, call: Call) -> bool {
        match call {
            Call::SeptAdd { at, .. } => at.level() != Level::L4K,
            Call::PageAdd { .. } => !self.finalized.get(),
            Call::PageAug { .. } | Call::RangeBlock { .. } | Call::Track {} => self.finalized.get(),
            Call::ReclaimTable { .. } | Call::ReclaimData { .. } => self.hkid_released.get(),
            _ => true,
        }
    }

    /// What a call does that the test does not make fail.
    fn perform(&self, call: Call) -> SeamOut {
        match call {
            Call::PageAdd { at, pfn } | Call::PageAug { at, pfn } => {
                self.step(at, 0, |_| pfn.pa() | PRESENT)
            }
            Call::RangeBlock { at } => self.step(at, PRESENT, |leaf| leaf | BLOCKED),
            Call::Track {} => {
                for leaf in &self.leaves {
                    if leaf.get() & BLOCKED != 0 {
                        leaf.set(leaf.get() | TRACKED);
                    }
                }
                SeamOut::of(TdxStatus::SUCCESS)
            }
            Call::PageRemove { at } if self.finalized.get() => {
                self.step(at, PRESENT | BLOCKED | TRACKED, |_| 0)
            }
            Call::PageRemove { at } => self.step(at, PRESENT, |_| 0),
            Call::PageWbinvd { at, .. } => self.step(at, 0, |_| 0),
            Call::ReclaimData { at, .. } => {
                let state = self.leaf(at.gfn()).map_or(0, |leaf| leaf.get() & 7);
                self.step(at, state, |_| 0)
            }
            _ => SeamOut::of(TdxStatus::SUCCESS),
        }
    }

    /// A leaf in one of the states `from` becomes `to`.
    fn step(&self, at: Position, from: u64, to: impl Fn(u64) -> u64) -> SeamOut {
        match self.leaf(at.gfn()) {
            Some(leaf) if at.level() == Level::L4K && leaf.get() & 7 == from => {
                leaf.set(to(leaf.get()));
                SeamOut::of(TdxStatus::SUCCESS)
            }
            _ => {
                add(&self.broken);
                SeamOut::of(TdxStatus::new(INVALID))
            }
        }
    }
}

impl Seamcall for &Td {
    fn call(&self, call: Call) -> SeamOut {
        if !self.is_in_order(call) {
            add(&self.broken);
        }
        match self.begin(call.kind()) {
            Some(answer) => answer,
            None => self.perform(call),
        }
    }
}

impl SeptBackend for &Td {
    type Count = Counter;

    fn counter(&self) -> Counter {
        Counter::new()
    }

    fn counter_row<const N: usize>(&self) -> [Counter; N] {
        Counter::row()
    }

    fn kick_vcpus(&self) {
        add(&self.kicks);
    }

    fn hold_vcpus(&self, hold: bool) {
        if self.held.replace(hold) == hold {
            add(&self.broken);
        }
    }

    fn is_finalized(&self) -> bool {
        self.finalized.get()
    }

    fn is_hkid_assigned(&self) -> bool {
        !self.hkid_released.get()
    }
}

// SAFETY: A page's frame is its number among the TD's pages, and back; the companions stay as they
// were set; a page that is put with delay is put at once, and no RCU reader runs beside a test.
unsafe impl PageMap for &Td {
    fn pfn_of(&self, page: PagePtr) -> Pfn {
        let number = self.number(page).map_or(0, u64::from);
        Pfn::from_pa_bits(TABLE_PFN.saturating_add(number) << PAGE_SHIFT)
    }

    fn page_at(&self, pfn: Pfn) -> Option<PagePtr> {
        let number = usize::try_from(pfn.as_u64().checked_sub(TABLE_PFN)?).ok()?;
        PagePtr::new(self.pages.get(number)?.0.get().cast())
    }

    /// # Safety
    ///
    /// As of the trait.
    unsafe fn set_companion(&self, page: PagePtr, with: Option<PagePtr>) {
        match self.word(page) {
            Some(word) => word.set(with.and_then(|page| NonNull::new(page.as_ptr()))),
            None => add(&self.broken),
        }
    }

    /// # Safety
    ///
    /// As of the trait.
    unsafe fn companion(&self, page: PagePtr) -> Option<PagePtr> {
        PagePtr::new(self.word(page)?.get()?.as_ptr())
    }

    /// # Safety
    ///
    /// As of the trait.
    unsafe fn put_table(&self, page: PagePtr) {
        self.put(page);
    }

    /// # Safety
    ///
    /// As of the trait.
    unsafe fn put_table_deferred(&self, page: PagePtr) {
        self.put(page);
    }

    /// # Safety
    ///
    /// As of the trait.
    unsafe fn put_external(&self, page: PagePtr) {
        self.put(page);
    }
}

// SAFETY: The TD's pages are 4 KiB, aligned, as long-lived as the TD, and handed out once.
unsafe impl PageSupplier for &Td {
    fn take_table(&mut self) -> Option<PagePtr> {
        self.take()
    }

    fn take_external(&mut self) -> Option<PagePtr> {
        self.take()
    }
}

impl Vm for &Td {
    type Count = Counter;

    fn counter(&self) -> Counter {
        Counter::new()
    }

    fn counter_row<const N: usize>(&self) -> [Counter; N] {
        Counter::row()
    }

    fn bug(&self, _bug: &Bug) {
        add(&self.bugs);
    }

    fn end(&self) {
        add(&self.ends);
    }

    fn leaked(&self, _leak: &Leak) {
        add(&self.leaks);
    }

    fn hold_page(&self, _pfn: Pfn) -> bool {
        change(&self.kept, true);
        true
    }

    fn release_page(&self, _pfn: Pfn) {
        change(&self.kept, false);
    }

    fn account(&self, _page: PagePtr, linked: bool) {
        change(&self.tables, linked);
    }

    fn account_external(&self, _page: PagePtr, linked: bool) {
        change(&self.external_tables, linked);
    }

    fn page_stats(&self, _level: Level, mapped: bool) {
        change(&self.leaf_account, mapped);
    }

    fn need_resched(&self) -> bool {
        self.resched.get()
    }

    fn yield_lock(&self, _x: &mut Exclusive<'_>) {
        add(&self.yields);
    }
}

// One thread uses the TD, so each of the locks is its own at any time.

/// Evidence of mmu_lock held for read.
pub fn shared() -> Shared<'static> {
    // SAFETY: The TD has one thread, nobody could hold the lock in another way.
    unsafe { Shared::assume_held() }
}

/// Evidence of mmu_lock held for write.
pub fn exclusive() -> Exclusive<'static> {
    // SAFETY: As in `shared()`.
    unsafe { Exclusive::assume_held() }
}

/// Evidence of a reader.
pub fn reader() -> RcuRead<'static> {
    // SAFETY: As in `shared()`: nobody frees a table meanwhile.
    unsafe { RcuRead::assume_held() }
}

/// Maps the GFN `raw` to its page.
pub fn map(td: &Td, mirror: &TdMirror<'_>, raw: u64) -> Result<MapOutcome, MapError> {
    map_to(td, mirror, raw, raw)
}

/// Maps the GFN `raw` to the page of the GFN `other`.
pub fn map_to(
    td: &Td,
    mirror: &TdMirror<'_>,
    raw: u64,
    other: u64,
) -> Result<MapOutcome, MapError> {
    let (mut pages, shared) = (td, shared());
    let phase = mirror.phase(&shared);
    let (gfn, pfn) = (gfn(raw), pfn(other));
    mirror.map(&shared, phase, &mut pages, gfn, pfn, Level::L4K)
}

/// Zaps GFNs from `start` up to `end`.
pub fn zap(mirror: &TdMirror<'_>, start: u64, end: u64) -> u64 {
    let mut exclusive = exclusive();
    let phase = mirror.phase(&exclusive);
    GfnRange::new(start, end).map_or(0, |range| {
        mirror.zap_range(&mut exclusive, phase, range, false)
    })
}
