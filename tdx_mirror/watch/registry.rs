// SPDX-License-Identifier: GPL-2.0

//! All mirrors of this module: the live ones, and the sums of the finished ones.

use core::{
    fmt,
    mem,
    sync::atomic::{AtomicU32, Ordering}, //
};
use kernel::{
    debugfs::Dir,
    list::{List, ListArc},
    prelude::*, //
};

use super::figures::{self, Figures};
use crate::bindings::tdx_mirror_stats;
use crate::kvm::entry::Mirror;

/// Names the fields of [`tdx_mirror_stats`] once. The patterns below have no `..`, so a field that
/// the contract gets and this list lacks does not compile.
macro_rules! stats_fields {
    ($($field:ident),* $(,)?) => {
        /// All zero.
        pub(crate) const ZERO_STATS: tdx_mirror_stats = tdx_mirror_stats { $($field: 0),* };

        /// Adds the figures of one TD to a sum. Wraps like every counter of the kernel.
        fn add_stats(sum: &mut tdx_mirror_stats, one: &tdx_mirror_stats) {
            let tdx_mirror_stats { $($field),* } = *one;
            $(sum.$field = sum.$field.wrapping_add($field);)*
        }

        /// Writes one `name value` per line.
        pub(crate) fn write_stats(stats: &tdx_mirror_stats, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let tdx_mirror_stats { $($field),* } = *stats;
            $(writeln!(f, concat!(stringify!($field), " {}"), $field)?;)*
            Ok(())
        }
    };
}

stats_fields!(
    mapped,
    zapped,
    leaf_transitions,
    set_external_spte_calls,
    link_calls,
    block_calls,
    track_calls,
    remove_calls,
    wbinvd_calls,
    reclaim_calls,
    busy,
    retries,
    giveups,
    kicks,
    frozen_seen,
    spurious,
    quarantined,
    leaked,
    tables,
    external_tables,
    resolved,
    zap_batches,
    debts,
    debts_paid,
    debts_lost,
    read_calls,
    local_retries,
    local_giveups,
    held,
    vp_enter_busy,
    vp_enter_busy_other,
    killed,
);

/// The mirrors of all TDs.
pub(crate) struct Registry {
    live: List<Mirror>,
    nr_live: u64,
    finished: tdx_mirror_stats,
    created: u64,
    dir: Option<Dir>,
    figures: Figures,
}

kernel::sync::global_lock! {
    // SAFETY: `init()` initialises it once, when the module is loaded and before an entry point
    // or a debugfs file can be reached.
    unsafe(uninit) static REGISTRY: Mutex<Registry> = Registry {
        live: List::new(),
        nr_live: 0,
        finished: ZERO_STATS,
        created: 0,
        dir: None,
        figures: Figures::ZERO,
    };
}

/// TDs whose creation was begun, wrapping.
static NUMBERS: AtomicU32 = AtomicU32::new(0);

/// A number for a new TD, by which events and the folder in debugfs name it.
pub(crate) fn next_number() -> u32 {
    NUMBERS.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
}

/// Initialises the registry.
///
/// # Safety
///
/// Called once, before every other function of this file.
pub(crate) unsafe fn init() {
    // SAFETY: By the safety requirements.
    unsafe { REGISTRY.init() };
}

/// Adds a new mirror. Sleeps.
pub(crate) fn add(mirror: ListArc<Mirror>) {
    let mut registry = REGISTRY.lock();
    registry.live.push_back(mirror);
    registry.nr_live = registry.nr_live.wrapping_add(1);
    registry.created = registry.created.wrapping_add(1);
}

/// Takes a mirror out that was torn down and moves its figures to the sums in the same critical
/// section, so that a reader of the totals counts each TD exactly once. Sleeps.
pub(crate) fn finish(mirror: &Mirror) {
    let mut registry = REGISTRY.lock();
    // SAFETY: No other list takes mirrors.
    let Some(removed) = (unsafe { registry.live.remove(mirror) }) else {
        return;
    };
    registry.nr_live = registry.nr_live.wrapping_sub(1);
    let mut last = removed.stats();
    // Figures of what is in use now: nothing is once the mirror is dropped.
    last.tables = 0;
    last.external_tables = 0;
    add_stats(&mut registry.finished, &last);
    registry.figures.add(mirror);
}

/// The folder in debugfs. Sleeps.
pub(crate) fn dir() -> Option<Dir> {
    REGISTRY.lock().dir.clone()
}

/// Sets the folder in debugfs, or lets go of it. Sleeps.
pub(crate) fn set_dir(dir: Option<Dir>) {
    let before = mem::replace(&mut REGISTRY.lock().dir, dir);
    drop(before);
}

/// Zeroes the sums. Sleeps.
///
/// # Errors
///
/// `EBUSY` while a TD lives: part of its figures would survive and part would not.
pub(crate) fn reset() -> Result {
    let mut registry = REGISTRY.lock();
    if !registry.live.is_empty() {
        return Err(EBUSY);
    }
    registry.finished = ZERO_STATS;
    registry.created = 0;
    registry.figures = Figures::ZERO;
    Ok(())
}

/// Writes the totals of all TDs, finished and live. Sleeps.
pub(crate) fn write_totals(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut figures = Figures::ZERO;
    let (total, live, created) = {
        let registry = REGISTRY.lock();
        let mut total = registry.finished;
        figures.add_sum(&registry.figures);
        for mirror in registry.live.iter() {
            add_stats(&mut total, &mirror.stats());
            figures.add(&mirror);
        }
        (total, registry.nr_live, registry.created)
    };
    write_stats(&total, f)?;
    writeln!(f, "tds_live {live}")?;
    writeln!(f, "tds_created {created}")?;
    figures::write_memory(&total, f)?;
    figures.write(f)
}
