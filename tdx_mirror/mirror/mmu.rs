// SPDX-License-Identifier: GPL-2.0

//! The mirror of one TD: its shape, its parts and what it needs of the VM.

#![forbid(unsafe_code)]

use super::cursor::{
    self,
    Slot, //
};
use super::error::{
    Bug,
    ConfigError,
    Leak, //
};
use super::external::ExternalPt;
use super::lock::{
    Exclusive,
    MmuLocked,
    TablesStay, //
};
use super::spte::{
    KvmEncoding,
    Spte,
    SpteKind, //
};
use super::stats::Stats;
use super::table::{
    PageMap,
    Root, //
};
use crate::base::addr::{
    Gfn,
    PagePtr,
    Pfn, //
};
use crate::base::level::{
    Level,
    Position, //
};
use crate::base::stats::{
    Count,
    Histogram, //
};
use crate::base::sys::{
    AtomicBool,
    Relaxed, //
};
use crate::base::td::Phase;

/// Leaves that a zap takes away with one TRACK, at most: what one 4K table maps. It bounds the
/// time for which a blocked leaf waits for its removal and for which mmu_lock is not yielded.
pub const ZAP_BATCH: u32 = 512;

/// Leaves of a zap's first pass, or calls of a teardown, between two looks at whether mmu_lock is to
/// be yielded. A batch that nobody waits for grows to its full size, and has one TRACK.
pub const HOLD_STRETCH: u32 = 16;

/// Buckets of the sizes of batches.
pub const BATCH_SIZES: usize = ZAP_BATCH.ilog2() as usize + 1;

/// What the mirror needs of the VM. Nothing here sleeps but [`yield_lock()`](Self::yield_lock).
pub trait Vm: PageMap {
    /// What the mirror's figures are counted with.
    type Count: Count;
    /// A counter at 0; asked for a fixed number of times, when the mirror is made.
    fn counter(&self) -> Self::Count;
    /// The same of a row of counters.
    fn counter_row<const N: usize>(&self) -> <Self::Count as Count>::Row<N>;
    /// Reports a broken invariant. Called for each, and for the first one before
    /// [`end()`](Self::end).
    fn bug(&self, bug: &Bug);
    /// Ends the VM: no vCPU may enter any more. Called once.
    fn end(&self);
    /// Reports a page that is never given back.
    fn leaked(&self, leak: &Leak);
    /// Keeps `pfn` from the allocator: the TDX module may still own it. Returns `false` if the page
    /// is free already, and then nothing is to be undone.
    fn hold_page(&self, pfn: Pfn) -> bool;
    /// Undoes one [`hold_page()`](Self::hold_page): the TDX module gave the page back.
    fn release_page(&self, pfn: Pfn);
    /// A mirror page came into use (`linked`) or went out of it.
    fn account(&self, page: PagePtr, linked: bool);
    /// The same of a page of an S-EPT table. A page that is leaked goes out of use as well.
    fn account_external(&self, page: PagePtr, linked: bool);
    /// A leaf at `level` was mapped (`mapped`) or is so no more.
    fn page_stats(&self, level: Level, mapped: bool);
    /// Whether mmu_lock, held for write, should be yielded now.
    fn need_resched(&self) -> bool;
    /// Lets go of mmu_lock, held for write, for a moment.
    fn yield_lock(&self, x: &mut Exclusive<'_>);

    // What follows is told to whoever watches. Nothing depends on it, and it costs nothing where
    // it is not defined.

    /// The entry `at` has changed, and the external table has followed where it has to. An entry
    /// that was frozen meanwhile is told of as a whole: its value before and its value after.
    fn spte_changed(&self, _at: Position, _old: Spte, _new: Spte) {}
    /// An entry was frozen; what it returns is handed to
    /// [`freeze_ended()`](Self::freeze_ended).
    fn freeze_begins(&self) -> u64 {
        0
    }
    /// The freeze that [`freeze_begins()`](Self::freeze_begins) answered `begun` for is over.
    fn freeze_ended(&self, _begun: u64) {}
    /// The page `pfn` of the entry `at` is [held](Self::hold_page) from now on.
    fn quarantined(&self, _at: Position, _pfn: Pfn) {}
}

/// The shape of a mirror.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    gfn_bits: u32,
    root_level: Level,
    zap_batch: u32,
}

impl Config {
    /// GFNs below `1 << gfn_bits` under a root at `root_level`, which is above 4K.
    ///
    /// # Errors
    ///
    /// The root's level, or that it does not resolve `gfn_bits` bits.
    pub fn new(gfn_bits: u32, root_level: Level) -> Result<Self, ConfigError> {
        if root_level == Level::L4K {
            return Err(ConfigError::RootLevel);
        }
        if gfn_bits == 0
            || gfn_bits > root_level.gfn_bits()
            || gfn_bits > crate::base::addr::FRAME_BITS
        {
            return Err(ConfigError::GfnBits);
        }
        Ok(Self {
            gfn_bits,
            root_level,
            zap_batch: ZAP_BATCH,
        })
    }

    /// The same with at most `leaves` leaves zapped with one TRACK, 1 to [`ZAP_BATCH`]; other
    /// numbers count as the nearest of these. With 1, each page is blocked, tracked and removed
    /// by itself.
    pub fn with_zap_batch(mut self, leaves: u32) -> Self {
        self.zap_batch = leaves.clamp(1, ZAP_BATCH);
        self
    }

    /// Leaves that are zapped with one TRACK.
    pub fn zap_batch(self) -> u32 {
        self.zap_batch
    }

    /// The number of bits of a GFN.
    pub fn gfn_bits(self) -> u32 {
        self.gfn_bits
    }

    /// The level of the root's entries.
    pub fn root_level(self) -> Level {
        self.root_level
    }

    /// The shape of a TD's mirror, as the C contract gives it: 4 or 5 levels, KVM's encoding.
    ///
    /// # Errors
    ///
    /// As [`new()`](Self::new), or another encoding than the mirror's.
    pub fn for_td(gfn_bits: u32, root_level: u32, kvm: KvmEncoding) -> Result<Self, ConfigError> {
        if kvm != KvmEncoding::OURS {
            return Err(ConfigError::Encoding);
        }
        match root_level {
            4 => Self::new(gfn_bits, Level::L512G),
            5 => Self::new(gfn_bits, Level::L256T),
            _ => Err(ConfigError::RootLevel),
        }
    }

    /// The number of GFNs.
    pub(super) fn limit(self) -> u64 {
        // At most FRAME_BITS by construction.
        1u64.checked_shl(self.gfn_bits).unwrap_or(0)
    }
}

/// The mirror page table of one TD.
///
/// It is dropped after its [`teardown()`](Self::teardown), in place, when no walker is left.
#[derive(Debug)]
pub struct Mirror<E: ExternalPt, V: Vm> {
    pub(super) config: Config,
    pub(super) root: Root,
    pub(super) ext: E,
    pub(super) vm: V,
    bugged: AtomicBool,
    /// Whether the root is part of the account still.
    root_counted: AtomicBool,
    pub(super) stats: Stats<V::Count>,
    pub(super) batch_sizes: Histogram<V::Count, BATCH_SIZES>,
}

impl<E: ExternalPt, V: Vm> Mirror<E, V> {
    /// An empty mirror with the table `root`.
    pub fn new(config: Config, ext: E, vm: V, root: Root) -> Self {
        let stats = Stats::new(|| vm.counter());
        let batch_sizes = Histogram::new(vm.counter_row());
        stats.tables.inc();
        vm.account(root.page(), true);
        Self {
            config,
            root,
            ext,
            vm,
            bugged: AtomicBool::new(false),
            root_counted: AtomicBool::new(true),
            stats,
            batch_sizes,
        }
    }

    /// The external table.
    pub fn external(&self) -> &E {
        &self.ext
    }

    /// The VM.
    pub fn vm(&self) -> &V {
        &self.vm
    }

    /// The figures.
    pub fn stats(&self) -> &Stats<V::Count> {
        &self.stats
    }

    /// How many leaves the batches had that were zapped with one TRACK.
    pub fn batch_sizes(&self) -> &Histogram<V::Count, BATCH_SIZES> {
        &self.batch_sizes
    }

    /// The phase of the TD, which stays as it is while the lock is held: read it once and give it to
    /// what is done under the lock.
    pub fn phase<L: MmuLocked>(&self, l: &L) -> Phase {
        self.ext.phase(l)
    }

    /// Whether an invariant was broken; every map fails from then on.
    pub fn is_bugged(&self) -> bool {
        self.bugged.load(Relaxed)
    }

    /// The entry that ends the walk for `gfn`, and its value; `None` for a GFN out of range.
    pub fn walk<L: TablesStay>(&self, l: &L, gfn: Gfn) -> Option<(Position, Spte)> {
        let slot = self.slot(l, gfn)?;
        if slot.kind() == SpteKind::Frozen {
            self.stats.frozen_seen.inc();
        }
        Some((slot.at, slot.spte()))
    }

    /// The entry that ends the walk for `gfn`, as it is now; `None` for a GFN out of range.
    pub fn slot<'t, L: TablesStay>(&'t self, l: &'t L, gfn: Gfn) -> Option<Slot<'t, L>> {
        if gfn.as_u64() >= self.config.limit() {
            return None;
        }
        let root = self.root.table(l);
        cursor::find(&self.vm, l, root, self.config.root_level(), gfn)
    }

    /// Takes the root out of the account, once: KVM expects that balanced after the teardown.
    pub(super) fn uncount_root(&self) {
        if self.root_counted.xchg(false, Relaxed) {
            self.stats.tables.dec();
            self.vm.account(self.root.page(), false);
        }
    }

    /// Ends the VM.
    pub(super) fn bugged(&self, bug: Bug) {
        let ended = self.bugged.xchg(true, Relaxed);
        self.vm.bug(&bug);
        // All vCPUs are asked to leave: not once for each page of a TD that is lost as a whole.
        if !ended {
            self.vm.end();
        }
    }
}

impl<E: ExternalPt, V: Vm> Drop for Mirror<E, V> {
    /// Gives the root back.
    fn drop(&mut self) {
        self.uncount_root();
        self.root.put(&self.vm);
    }
}
