// SPDX-License-Identifier: GPL-2.0

//! All TDs of this module: the live ones with their files, and the sums of the finished ones.

use core::{
    fmt,
    mem, //
};
use kernel::{
    list::{
        List,
        ListArc,
        ListLinks, //
    },
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    }, //
};

use super::figures::{
    self,
    Figures, //
};
use super::folder::Folder;
use super::stats;
use super::td_files::TdFiles;
use crate::bindings::tdx_mirror_stats;
use crate::kvm::td::Td;

/// A TD that lives, and its files.
#[pin_data]
pub(crate) struct Live {
    td: Arc<Td>,
    #[pin]
    files: Mutex<Option<TdFiles>>,
    #[pin]
    links: ListLinks,
}

kernel::list::impl_list_arc_safe! {
    impl ListArcSafe<0> for Live { untracked; }
}
kernel::list::impl_list_item! {
    impl ListItem<0> for Live { using ListLinks { self.links }; }
}

impl Live {
    /// Makes the TD's files. Without debugfs, or if it fails, there are none and nothing else
    /// differs. Sleeps.
    pub(crate) fn open_files(&self) {
        let folder = REGISTRY.lock().folder.clone();
        let files = folder.and_then(|folder| TdFiles::new(&folder, &self.td).ok());
        *self.files.lock() = files;
    }

    /// Takes the TD's files away, once nobody reads them, and with them their references to the TD.
    fn close_files(&self) {
        let files = self.files.lock().take();
        drop(files);
    }
}

/// The TDs.
struct Registry {
    live: List<Live>,
    nr_live: u64,
    finished: tdx_mirror_stats,
    created: u64,
    folder: Option<Arc<Folder>>,
    figures: Figures,
}

kernel::sync::global_lock! {
    // SAFETY: `init()` initialises it once, when the module is loaded and before an entry point
    // or a debugfs file can be reached.
    unsafe(uninit) static REGISTRY: Mutex<Registry> = Registry {
        live: List::new(),
        nr_live: 0,
        finished: stats::ZERO,
        created: 0,
        folder: None,
        figures: Figures::ZERO,
    };
}

/// TDs whose creation was begun, wrapping.
static NUMBERS: Atomic<u32> = Atomic::new(0);

/// A number for a new TD, by which events and the folder in debugfs name it.
pub(crate) fn next_number() -> u32 {
    NUMBERS.fetch_add(1, Relaxed).wrapping_add(1)
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

/// Adds a new TD, without files. Sleeps.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn add(td: Arc<Td>) -> Result<Arc<Live>> {
    let live = ListArc::pin_init(
        try_pin_init!(Live {
            td,
            files <- new_mutex!(None),
            links <- ListLinks::new(),
        }? Error),
        GFP_KERNEL_ACCOUNT,
    )?;
    let added = live.clone_arc();
    let mut registry = REGISTRY.lock();
    registry.live.push_back(live);
    registry.nr_live = registry.nr_live.wrapping_add(1);
    registry.created = registry.created.wrapping_add(1);
    Ok(added)
}

fn find(td: &Td) -> Option<Arc<Live>> {
    let registry = REGISTRY.lock();
    let mut all = registry.live.iter();
    all.find(|live| core::ptr::eq(&*live.td, td))
        .map(Into::into)
}

/// Takes the files of a TD away and waits until nobody reads them. Sleeps.
pub(crate) fn end_files(td: &Td) {
    if let Some(live) = find(td) {
        live.close_files();
    }
}

/// Takes a TD out that was torn down: closes its files and moves its figures to the sums in the
/// critical section that takes it out, so that a reader of the totals counts each TD exactly once.
/// Nothing here refers to it afterwards. Sleeps.
pub(crate) fn remove(td: &Td) {
    let Some(live) = find(td) else {
        return;
    };
    live.close_files();
    let mut last = stats::of(td);
    // Figures of what is in use now: nothing is once the TD is dropped.
    last.tables = 0;
    last.external_tables = 0;
    let mut registry = REGISTRY.lock();
    // SAFETY: A `Live` is put into no other list.
    let removed = unsafe { registry.live.remove(&live) };
    registry.nr_live = registry.nr_live.wrapping_sub(1);
    stats::add(&mut registry.finished, &last);
    registry.figures.add(td);
    drop(registry);
    drop(removed);
}

/// Sets the folder in debugfs, or lets go of it. Sleeps.
pub(crate) fn set_folder(folder: Option<Arc<Folder>>) {
    let before = mem::replace(&mut REGISTRY.lock().folder, folder);
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
    registry.finished = stats::ZERO;
    registry.created = 0;
    registry.figures = Figures::ZERO;
    Ok(())
}

/// Writes the totals of all TDs, finished and live. Sleeps.
pub(crate) fn write_totals(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut figures = Figures::boxed()?;
    let (total, live, created) = {
        let registry = REGISTRY.lock();
        let mut total = registry.finished;
        figures.add_sum(&registry.figures);
        for live in registry.live.iter() {
            stats::add(&mut total, &stats::of(&live.td));
            figures.add(&live.td);
        }
        (total, registry.nr_live, registry.created)
    };
    stats::write(&total, f)?;
    writeln!(f, "tds_live {live}")?;
    writeln!(f, "tds_created {created}")?;
    figures::write_memory(&total, f)?;
    figures.write(f)
}
