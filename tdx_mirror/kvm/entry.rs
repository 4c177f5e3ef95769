// SPDX-License-Identifier: GPL-2.0

//! The entry points that KVM calls, `struct tdx_mirror_ops`.
//!
//! Everything that comes in is checked here, because nothing behind the edge may panic. Locks are
//! asserted with lockdep when the evidence tokens are made.

use core::{
    convert::Infallible,
    fmt,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering}, //
};
use kernel::{
    error::code,
    ffi::{c_int, c_void},
    list::{ListArc, ListLinks},
    prelude::*,
    sync::{Arc, Mutex, UniqueArc}, //
};

use super::hooks::Hooks;
use super::params;
use super::seamcalls::{Caches, HookSeamcalls, KernelVm};
use super::vcpu;
use crate::base::addr::{Gfn, GfnRange, Pfn, FRAME_BITS};
use crate::base::level::Level;
use crate::base::stats::Count;
use crate::bindings::{
    self, tdx_mirror, tdx_mirror_backend, tdx_mirror_ops, tdx_mirror_stats, tdx_mirror_vcpu,
};
use crate::kernel::percpu::{self, Block};
use crate::kernel::rwlock::MmuLock;
use crate::kernel::{rcu, switches, warn};
use crate::mirror::error::{MapError, MapOutcome};
use crate::mirror::mmu;
use crate::mirror::spte::Spte;
use crate::mirror::table::Root;
use crate::sept::progress::Progress;
use crate::sept::Sept;
use crate::watch::figures::{self, Figures};
use crate::watch::record::Recorder;
use crate::watch::registry;
use crate::watch::td_files::TdFiles;
use crate::watch::trace;

/// Milliseconds after which an entry counts as frozen for long: a freeze takes a few SEAMCALLs, of
/// microseconds each.
const DEFAULT_FROZEN_MS: u32 = 100;

type Inner = mmu::Mirror<Sept<HookSeamcalls>, KernelVm>;

/// The mirror of one TD: what `struct tdx_mirror *` points to.
#[pin_data(PinnedDrop)]
pub(crate) struct Mirror {
    td: u32,
    recorder: Recorder,
    hooks: Arc<Hooks>,
    lock: MmuLock,
    inner: Inner,
    progress: Progress<percpu::Counter>,
    /// What `inner` and `progress` count with.
    counters: Arc<Block>,
    pid: i32,
    /// How long an entry is frozen that the file `frozen` lists.
    frozen_ms: AtomicU32,
    #[pin]
    files: Mutex<Option<Pin<KBox<TdFiles>>>>,
    #[pin]
    links: ListLinks,
}

kernel::list::impl_list_arc_safe! {
    impl ListArcSafe<0> for Mirror { untracked; }
}
kernel::list::impl_list_item! {
    impl ListItem<0> for Mirror { using ListLinks { self.links }; }
}

// The pointer that KVM holds is that of an `Arc`, the registry holds the second reference.
impl Mirror {
    /// Makes the mirror that `backend` asks for and registers it.
    ///
    /// # Safety
    ///
    /// As of [`Hooks::new`]; the returned mirror is what must not outlive `backend`.
    unsafe fn create(backend: *const tdx_mirror_backend) -> Result<Arc<Self>> {
        // SAFETY: By the safety requirements.
        let hooks = unsafe { Hooks::new(backend) }.map_err(|refusal| {
            pr_err!("mirror refused: {refusal}; build kvm_intel and this module from the same sources\n");
            EINVAL
        })?;
        let config = hooks.config().with_zap_batch(params::zap_batch());
        let hooks = Arc::new(hooks, GFP_KERNEL_ACCOUNT)?;
        // SAFETY: KVM's lock lives as long as the backend.
        let lock = unsafe { MmuLock::new(hooks.mmu_lock()) };

        // First all that may fail: the root's page has no owner that would put it back.
        let memory = UniqueArc::<Self>::new_uninit(GFP_KERNEL_ACCOUNT)?;
        let counters = Block::new()?;
        let page = hooks.alloc_root_spt().ok_or(ENOMEM)?;
        // SAFETY: The page is whole and the mirror's alone until it is put.
        let root = unsafe { Root::new(page) };
        let td = registry::next_number();
        let seamcalls = HookSeamcalls::new(hooks.clone(), counters.clone(), td);
        let sept = Sept::with_fault_tries(seamcalls, params::fault_tries());
        let vm = KernelVm::new(hooks.clone(), counters.clone(), td, page);
        // SAFETY: The mirror has the progress and the block.
        let counter = || unsafe { counters.counter() };
        let progress = Progress::with_counters(params::vp_enter_policy(), counter);
        let inner = mmu::Mirror::new(config, sept, vm, root);
        if !counters.is_large_enough() {
            return Err(EOVERFLOW);
        }
        let recorder = Recorder::new(td, config.gfn_bits(), config.root_level().as_kvm());
        let mirror = memory.pin_init_with::<Infallible>(pin_init!(Self {
            td,
            recorder,
            hooks,
            lock,
            inner,
            progress,
            counters,
            pid: kernel::current!().pid(),
            frozen_ms: AtomicU32::new(DEFAULT_FROZEN_MS),
            files <- kernel::new_mutex!(None),
            links <- ListLinks::new(),
        }));
        let listed = match mirror {
            Ok(mirror) => ListArc::<Self>::from(mirror),
            Err(never) => match never {},
        };
        let mirror = listed.clone_arc();
        registry::add(listed);
        mirror.open_files();
        Ok(mirror)
    }

    /// The hooks of KVM.
    pub(crate) fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    /// The S-EPT.
    pub(crate) fn sept(&self) -> &Sept<HookSeamcalls> {
        self.inner.external()
    }

    /// The progress of the TD's vCPUs.
    pub(crate) fn progress(&self) -> &Progress<percpu::Counter> {
        &self.progress
    }

    /// The mirror itself.
    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// KVM's `mmu_lock`.
    pub(crate) fn lock(&self) -> &MmuLock {
        &self.lock
    }

    /// The number of the TD.
    pub(crate) fn number(&self) -> u32 {
        self.td
    }

    /// The thread that made the TD.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Milliseconds for which an entry is frozen that the file `frozen` lists.
    pub(crate) fn frozen_threshold(&self) -> u32 {
        self.frozen_ms.load(Ordering::Relaxed)
    }

    /// Sets [`frozen_threshold()`](Self::frozen_threshold).
    pub(crate) fn set_frozen_threshold(&self, ms: u32) {
        self.frozen_ms.store(ms, Ordering::Relaxed);
    }

    /// Makes the TD's files. Without debugfs, or if it fails, there are none and nothing else
    /// differs.
    fn open_files(self: &Arc<Self>) {
        let files = registry::dir().and_then(|dir| TdFiles::new(&dir, self).ok());
        *self.files.lock() = files;
    }

    /// Takes the TD's files away, once nobody reads them, and with them their references to this.
    fn close_files(&self) {
        let files = self.files.lock().take();
        drop(files);
    }

    /// Writes the TD's figures.
    pub(crate) fn write_stats(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "td {}", self.td)?;
        writeln!(f, "pid {}", self.pid)?;
        writeln!(f, "finalized {}", u8::from(self.hooks.is_finalized()))?;
        let stats = self.stats();
        registry::write_stats(&stats, f)?;
        figures::write_memory(&stats, f)?;
        let mut figures = Figures::ZERO;
        figures.add(self);
        figures.write(f)
    }

    /// The figures now.
    pub(crate) fn stats(&self) -> tdx_mirror_stats {
        let mirror = self.inner.stats();
        let calls = self.sept().stats();
        let vcpus = self.progress.stats();
        tdx_mirror_stats {
            mapped: mirror.mapped.get(),
            zapped: mirror.zapped.get(),
            leaf_transitions: mirror.leaf_transitions.get(),
            set_external_spte_calls: calls.map_calls.get(),
            link_calls: calls.link_calls.get(),
            block_calls: calls.block_calls.get(),
            track_calls: calls.track_calls.get(),
            remove_calls: calls.remove_calls.get(),
            wbinvd_calls: calls.wbinvd_calls.get(),
            reclaim_calls: calls
                .reclaim_calls
                .get()
                .wrapping_add(calls.data_reclaim_calls.get()),
            busy: calls.busy.get(),
            retries: calls.retries.get(),
            giveups: calls.giveups.get(),
            kicks: calls.kicks.get(),
            frozen_seen: mirror.frozen_seen.get(),
            spurious: mirror.spurious.get(),
            quarantined: mirror.quarantined.get(),
            leaked: mirror.leaked.get(),
            tables: mirror.tables.get(),
            external_tables: mirror.external_tables.get(),
            resolved: mirror.resolved.get(),
            zap_batches: mirror.zap_batches.get(),
            debts: calls.debts.get(),
            debts_paid: calls.debts_paid.get(),
            debts_lost: calls.debts_lost.get(),
            read_calls: calls.read_calls.get(),
            local_retries: vcpus.local_retries.get(),
            local_giveups: vcpus.local_giveups.get(),
            held: vcpus.held.get(),
            vp_enter_busy: vcpus.vp_enter_busy.get(),
            vp_enter_busy_other: vcpus.vp_enter_busy_other.get(),
            killed: vcpus.killed.get(),
        }
    }

    fn map(&self, vcpu: *mut c_void, gfn: u64, pfn: u64, level: c_int) -> c_int {
        let (Some(gfn), Some(pfn), Some(level @ Level::L4K)) =
            (Gfn::new(gfn), Pfn::new(pfn), Level::from_kvm(level))
        else {
            return bad_parameter();
        };
        // SAFETY: The contract says that KVM holds mmu_lock for read during the call.
        let shared = unsafe { self.lock.assume_read() };
        // SAFETY: The contract says that the suppliers serve the vCPU during the call.
        let mut pages = unsafe { Caches::new(&self.hooks, vcpu) };
        let phase = self.inner.phase(&shared);
        let outcome = match self.inner.map(&shared, phase, &mut pages, gfn, pfn, level) {
            Ok(MapOutcome::Fixed) => bindings::TDX_MIRROR_MAP_FIXED as c_int,
            Ok(MapOutcome::Spurious) => bindings::TDX_MIRROR_MAP_SPURIOUS as c_int,
            Ok(MapOutcome::Retry(reason)) => {
                (bindings::TDX_MIRROR_MAP_RETRY | vcpu::reason_bits(reason)) as c_int
            }
            Err(MapError::Invalid) => code::EINVAL.to_errno(),
            Err(MapError::Busy(_)) => code::EBUSY.to_errno(),
            Err(MapError::Bugged) => code::EIO.to_errno(),
        };
        if trace::fault::is_on() {
            let (gfn, pfn) = (gfn.as_u64(), pfn.as_u64());
            trace::fault::emit(self.td, gfn, pfn, trace::level(level), outcome);
        }
        if switches::recording() {
            let (gfn, pfn) = (gfn.as_u64(), pfn.as_u64());
            let level = level.as_kvm();
            self.recorder
                .map(phase, vcpu.addr(), gfn, pfn, level, outcome);
        }
        outcome
    }

    fn zap_range(&self, start: u64, end: u64, can_yield: bool) -> u64 {
        // No GFN is larger; what lies between the TD's last one and this limit the mirror skips.
        let Some(range) = GfnRange::new(start, end.min(1 << FRAME_BITS)) else {
            return 0;
        };
        // SAFETY: The contract says that KVM holds mmu_lock for write during the call.
        let mut exclusive = unsafe { self.lock.assume_write() };
        let phase = self.inner.phase(&exclusive);
        let zapped = self
            .inner
            .zap_range(&mut exclusive, phase, range, can_yield);
        if trace::zap::is_on() {
            trace::zap::emit(self.td, range.start(), range.end(), zapped);
        }
        if switches::recording() {
            self.recorder.zap(phase, range.start(), range.end(), zapped);
        }
        zapped
    }

    fn teardown(&self) {
        // SAFETY: The contract says that KVM holds mmu_lock for write during the call.
        let exclusive = unsafe { self.lock.assume_write() };
        self.inner.teardown(&exclusive);
        if switches::recording() {
            self.recorder.teardown();
        }
    }

    /// The SPTE that maps a GFN, and its level.
    pub(super) fn walk(&self, gfn: u64) -> (Spte, c_int) {
        Gfn::new(gfn)
            .and_then(|gfn| rcu::read(|rcu| self.inner.walk(rcu, gfn)))
            .map_or((Spte::NON_PRESENT, 0), |(at, spte)| {
                (spte, at.level().as_kvm())
            })
    }
}

#[pinned_drop]
impl PinnedDrop for Mirror {
    fn drop(self: Pin<&mut Self>) {
        let stats = self.inner.stats();
        let (quarantined, resolved, leaked) = (
            stats.quarantined.get(),
            stats.resolved.get(),
            stats.leaked.get(),
        );
        if quarantined != 0 || leaked != 0 {
            pr_warn!(
                "a TD ended with {quarantined} pages quarantined, {resolved} of them given back, {leaked} leaked; the first lines on it say why\n"
            );
        }
    }
}

/// Reports a caller that breaks the contract. A GFN that is only too large for the TD is no such
/// case: userspace may ask KVM for it.
fn bad_parameter() -> c_int {
    warn::parameter();
    code::EINVAL.to_errno()
}

/// The mirror behind KVM's pointer, or `None` for NULL.
///
/// # Safety
///
/// `mirror` is NULL or came from `create()`, and KVM does not destroy it during `'a`.
pub(super) unsafe fn mirror_of<'a>(mirror: *mut tdx_mirror) -> Option<&'a Mirror> {
    // SAFETY: By the safety requirements.
    unsafe { mirror.cast::<Mirror>().as_ref() }
}

/// Creates a mirror, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// `backend` is what [`Hooks::new`] asks for until `destroy()` returns, `err` is NULL or valid for
/// a write.
unsafe extern "C" fn create(
    backend: *const tdx_mirror_backend,
    err: *mut c_int,
) -> *mut tdx_mirror {
    // SAFETY: The contract says that the backend lives until `destroy()` returns.
    match unsafe { Mirror::create(backend) } {
        Ok(mirror) => Arc::into_raw(mirror).cast_mut().cast(),
        Err(error) => {
            if let Some(err) = NonNull::new(err) {
                // SAFETY: KVM gave a place for it.
                unsafe { err.write(error.to_errno()) };
            }
            core::ptr::null_mut()
        }
    }
}

/// Maps one page, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// As of [`mirror_of`]; `mmu_lock` is held for read and the page suppliers serve `vcpu`.
unsafe extern "C" fn map(
    mirror: *mut tdx_mirror,
    vcpu: *mut c_void,
    gfn: u64,
    pfn: u64,
    level: c_int,
) -> c_int {
    // SAFETY: The contract says that the mirror lives and that mmu_lock is held for read.
    match unsafe { mirror_of(mirror) } {
        Some(mirror) => mirror.map(vcpu, gfn, pfn, level),
        None => bad_parameter(),
    }
}

/// Unmaps a range, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// As of [`mirror_of`]; `mmu_lock` is held for write.
unsafe extern "C" fn zap_range(
    mirror: *mut tdx_mirror,
    start: u64,
    end: u64,
    can_yield: bool,
) -> u64 {
    // SAFETY: The contract says that the mirror lives and that mmu_lock is held for write.
    match unsafe { mirror_of(mirror) } {
        Some(mirror) => mirror.zap_range(start, end, can_yield),
        None => 0,
    }
}

/// Gives back all tables, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// As of [`mirror_of`]; `mmu_lock` is held for write.
unsafe extern "C" fn teardown(mirror: *mut tdx_mirror) {
    // SAFETY: The contract says that the mirror lives and that mmu_lock is held for write.
    if let Some(mirror) = unsafe { mirror_of(mirror) } {
        mirror.teardown();
    }
}

/// Frees a mirror, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// `mirror` is NULL or came from [`create()`] and is used by nobody any more.
unsafe extern "C" fn destroy(mirror: *mut tdx_mirror) {
    if mirror.is_null() {
        return;
    }
    // SAFETY: It came from `Arc::into_raw()` in `create()`, and KVM gives it up with this call.
    let mirror = unsafe { Arc::from_raw(mirror.cast::<Mirror>().cast_const()) };
    mirror.close_files();
    registry::finish(&mirror);
    if switches::recording() {
        mirror.recorder.destroy();
    }
    // The registry let go of its reference: this is the last one.
    drop(mirror);
}

/// The notes behind KVM's pointer, or `None` for NULL.
///
/// # Safety
///
/// `vcpu` is NULL or points to notes that nobody else uses during `'a`.
unsafe fn notes_of<'a>(vcpu: *mut tdx_mirror_vcpu) -> Option<&'a mut tdx_mirror_vcpu> {
    // SAFETY: By the safety requirements.
    unsafe { vcpu.as_mut() }
}

/// Judges a fault that is to be retried, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// As of [`mirror_of`] and [`notes_of`].
unsafe extern "C" fn fault_retry(
    mirror: *mut tdx_mirror,
    vcpu: *mut tdx_mirror_vcpu,
    gfn: u64,
    conditions: u32,
    reason: u32,
) -> u32 {
    // SAFETY: The contract says that the mirror lives and that the notes are the caller's.
    let action = match unsafe { (mirror_of(mirror), notes_of(vcpu)) } {
        (Some(mirror), Some(vcpu)) => mirror.fault_retry(vcpu, gfn, conditions, reason),
        _ => None,
    };
    action.unwrap_or_else(|| {
        bad_parameter();
        bindings::TDX_MIRROR_EXIT
    })
}

/// Ends a fault, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// As of [`mirror_of`] and [`notes_of`].
unsafe extern "C" fn fault_done(mirror: *mut tdx_mirror, vcpu: *mut tdx_mirror_vcpu, gfn: u64) {
    // SAFETY: The contract says that the mirror lives and that the notes are the caller's.
    if let (Some(mirror), Some(vcpu)) = unsafe { (mirror_of(mirror), notes_of(vcpu)) } {
        mirror.fault_done(vcpu, gfn);
    }
}

/// Judges a VP.ENTER that found something busy, see `struct tdx_mirror_ops`.
///
/// # Safety
///
/// As of [`mirror_of`] and [`notes_of`].
unsafe extern "C" fn vp_enter_busy(
    mirror: *mut tdx_mirror,
    vcpu: *mut tdx_mirror_vcpu,
    status: u64,
) -> u32 {
    // SAFETY: The contract says that the mirror lives and that the notes are the caller's.
    match unsafe { (mirror_of(mirror), notes_of(vcpu)) } {
        (Some(mirror), Some(vcpu)) => mirror.vp_enter_busy(vcpu, status),
        _ => {
            bad_parameter();
            bindings::TDX_MIRROR_ENTER
        }
    }
}

static OPS: tdx_mirror_ops = tdx_mirror_ops {
    size: size_of::<tdx_mirror_ops>() as u32,
    abi_version: bindings::TDX_MIRROR_ABI_VERSION,
    create: Some(create),
    map: Some(map),
    zap_range: Some(zap_range),
    teardown: Some(teardown),
    destroy: Some(destroy),
    fault_retry: Some(fault_retry),
    fault_done: Some(fault_done),
    vp_enter_busy: Some(vp_enter_busy),
};

/// The entry points; exported by `tdx_mirror/kvm/exports.c`.
#[no_mangle]
pub(crate) extern "C" fn tdx_mirror_get_ops() -> *const tdx_mirror_ops {
    &OPS
}
