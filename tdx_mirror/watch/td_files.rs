// SPDX-License-Identifier: GPL-2.0

//! `/sys/kernel/debug/tdx_mirror/<pid>-<td>/`: one TD, named by who made it and its number.
//!
//! * `stats`: its figures, one `name value` per line.
//! * `map`: the GFNs that are not free, in ranges: `start end state`, hexadecimal, half-open. The
//!   states are `mapped`, `pending` (the guest has not accepted it), `blocked`, `quarantined`, and
//!   `differs` for what `audit` would list.
//! * `audit`: each entry of mirror and S-EPT that differs, and how many were compared.
//! * `frozen`: entries that stay frozen, with the operation. A write sets for how long, in
//!   milliseconds.
//!
//! While `read_sept` of the folder above is 1 and once the TD is finalized, `map` and `audit` read the
//! S-EPT with TDH.MEM.SEPT.RD, [`CHUNK`] entries at a time with `mmu_lock` held for write, which makes
//! faults wait as long as a zap of as many pages does. Else they have the mirror alone.

use core::fmt;
use kernel::{
    debugfs::{
        Dir,
        File, //
    },
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    uaccess::UserSliceReader, //
};

use super::figures;
use crate::base::addr::Gfn;
use crate::base::level::{
    Level,
    Position, //
};
use crate::kernel::{
    rcu,
    sched,
    switches,
    uaccess, //
};
use crate::kvm::td::Td;
use crate::mirror::external::External;
use crate::mirror::spte::SpteKind;
use crate::mirror::Compared;

/// Entries that are read with the lock held once.
const CHUNK: u32 = 512;
/// Differences that are listed; all are counted.
const LISTED: u64 = 1000;
/// Frozen entries that are watched: one for each thread that maps, and more than vCPUs fault.
const WATCHED: usize = 64;
/// Looks at a frozen entry.
const LOOKS: u32 = 8;
/// Milliseconds after which an entry counts as frozen for long: a freeze takes a few SEAMCALLs, of
/// microseconds each.
const DEFAULT_FROZEN_MS: u32 = 100;
/// Longest time that may be asked for, in milliseconds.
const LONGEST: usize = 10_000;

/// The files of a TD. To drop it waits for readers.
#[pin_data]
pub(crate) struct TdFiles {
    _dir: Dir,
    #[pin]
    _stats: File<Arc<Td>>,
    #[pin]
    _map: File<Arc<Td>>,
    #[pin]
    _audit: File<Arc<Td>>,
    #[pin]
    _frozen: File<Frozen>,
}

impl TdFiles {
    /// The files of `td` in a folder below `parent`. Sleeps.
    pub(crate) fn new(parent: &Dir, td: &Arc<Td>) -> Result<Pin<KBox<Self>>> {
        let name = CString::try_from_fmt(kernel::prelude::fmt!("{}-{}", td.pid(), td.number()))?;
        let dir = parent.subdir(&name);
        KBox::try_pin_init(
            try_pin_init!(Self {
                _stats <- dir.read_callback_file(c"stats", td.clone(), &stats),
                _map <- dir.read_callback_file(c"map", td.clone(), &map),
                _audit <- dir.read_callback_file(c"audit", td.clone(), &audit),
                _frozen <- dir.read_write_callback_file(
                    c"frozen",
                    Frozen {
                        td: td.clone(),
                        threshold: Atomic::new(DEFAULT_FROZEN_MS),
                    },
                    &frozen,
                    &set_frozen
                ),
                _dir: dir,
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )
    }
}

fn stats(td: &Arc<Td>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    figures::write_td(td, f)
}

/// A state of [`map`]: the mirror's, and if it was read what the S-EPT says.
fn state(kind: SpteKind, read: Option<&Compared>) -> Option<&'static str> {
    Some(match (kind, read.map(|entry| entry.external)) {
        (SpteKind::NonPresent, _) => return None,
        (SpteKind::Quarantined(_), _) => "quarantined",
        (SpteKind::Blocked(_), None) => "blocked",
        (_, Some(Ok(External::Leaf { blocked: true, .. }))) => "blocked",
        _ if read.is_some_and(|entry| !entry.agrees()) => "differs",
        (_, Some(Ok(External::Leaf { pending: true, .. }))) => "pending",
        _ => "mapped",
    })
}

/// Ranges of the same state, put together.
#[derive(Default)]
struct Ranges {
    open: Option<(u64, u64, &'static str)>,
}

impl Ranges {
    fn add(
        &mut self,
        f: &mut fmt::Formatter<'_>,
        at: Position,
        state: Option<&'static str>,
    ) -> fmt::Result {
        let Some(state) = state else {
            return Ok(());
        };
        let start = at.gfn().as_u64();
        let end = start.saturating_add(at.level().pages());
        match &mut self.open {
            Some((_, last, was)) if *last == start && *was == state => {
                *last = end;
                Ok(())
            }
            _ => {
                self.close(f)?;
                self.open = Some((start, end, state));
                Ok(())
            }
        }
    }

    fn close(&mut self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.open.take() {
            Some((start, end, state)) => writeln!(f, "{start:#x} {end:#x} {state}"),
            None => Ok(()),
        }
    }
}

/// Calls `visit` for the mirror's entries, of the free ones only with `free`; with what the S-EPT
/// has there if that may be read.
fn compare(
    td: &Td,
    free: bool,
    visit: &mut dyn FnMut(Position, SpteKind, Option<&Compared>) -> fmt::Result,
) -> fmt::Result {
    let mut next = Some(0u64);
    let mut result = Ok(());
    while let (Some(from), Ok(())) = (next, result) {
        next = td.lock().write(|x| {
            if !td.hooks().is_hkid_assigned() {
                // There is no S-EPT any more.
                return None;
            }
            if switches::reads_sept() && td.hooks().is_finalized() {
                return td.mirror().compare(x, from, CHUNK, free, &mut |entry| {
                    if result.is_ok() {
                        result = visit(entry.at, entry.kind, Some(entry));
                    }
                });
            }
            td.mirror().look(x, from, CHUNK, &mut |at, kind| {
                if result.is_ok() && (free || kind != SpteKind::NonPresent) {
                    result = visit(at, kind, None);
                }
            })
        });
        sched::cond_resched();
    }
    result
}

fn map(td: &Arc<Td>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut ranges = Ranges::default();
    compare(td, false, &mut |at, kind, read| {
        ranges.add(f, at, state(kind, read))
    })?;
    ranges.close(f)
}

fn audit(td: &Arc<Td>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (mut entries, mut leaves, mut pending) = (0u64, 0u64, 0u64);
    let (mut differences, mut unread) = (0u64, 0u64);
    compare(td, true, &mut |at, kind, read| {
        entries = entries.wrapping_add(1);
        let Some(entry) = read else {
            leaves = leaves.wrapping_add(u64::from(matches!(kind, SpteKind::Leaf(_))));
            unread = unread.wrapping_add(1);
            return Ok(());
        };
        if let Ok(External::Leaf { pending: yet, .. }) = entry.external {
            leaves = leaves.wrapping_add(1);
            pending = pending.wrapping_add(u64::from(yet));
        }
        if entry.agrees() {
            return Ok(());
        }
        // While the TD's key is given back, the TDX module refuses to read before KVM says that the
        // key is gone. What cannot be read is not known to differ.
        let count = match entry.external {
            Ok(_) => &mut differences,
            Err(_) => &mut unread,
        };
        *count = count.wrapping_add(1);
        if differences.wrapping_add(unread) > LISTED {
            return Ok(());
        }
        writeln!(f, "{at:?}: mirror {kind:?}, S-EPT {:?}", entry.external)
    })?;
    writeln!(f, "entries {entries}")?;
    writeln!(f, "leaves {leaves}")?;
    writeln!(f, "pending {pending}")?;
    writeln!(f, "differences {differences}")?;
    writeln!(f, "unread {unread}")
}

/// Whether the entry `at` is frozen now.
fn is_frozen(td: &Td, at: Position) -> bool {
    rcu::read(|rcu| {
        let slot = td.mirror().slot(rcu, at.gfn());
        slot.is_some_and(|slot| slot.at == at && slot.kind() == SpteKind::Frozen)
    })
}

/// The entries that are frozen now, as many as are watched.
fn frozen_now(td: &Td) -> Result<KVec<Option<Position>>> {
    let mut found = KVec::with_capacity(WATCHED, GFP_KERNEL_ACCOUNT)?;
    let mut next = Some(0u64);
    while let Some(from) = next {
        next = rcu::read(|rcu| {
            td.mirror().look(rcu, from, CHUNK, &mut |at, kind| {
                if kind == SpteKind::Frozen {
                    // What there is no room for is not watched.
                    let _ = found.push_within_capacity(Some(at));
                }
            })
        });
        sched::cond_resched();
    }
    Ok(found)
}

/// What the file `frozen` is about.
struct Frozen {
    td: Arc<Td>,
    /// Milliseconds for which an entry is frozen that is listed.
    threshold: Atomic<u32>,
}

fn frozen(file: &Frozen, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let threshold = file.threshold.load(Relaxed);
    let mut found = frozen_now(&file.td).map_err(|_| fmt::Error)?;
    for _ in 1..LOOKS {
        if found.iter().all(Option::is_none) {
            return Ok(());
        }
        let step = threshold.div_ceil(LOOKS.saturating_sub(1));
        fsleep(Delta::from_millis(i64::from(step)));
        for entry in &mut found {
            *entry = entry.filter(|at| is_frozen(&file.td, *at));
        }
    }
    for at in found.iter().flatten() {
        let operation = match at.level() {
            Level::L4K => "page_map",
            _ => "sept_add",
        };
        let (gfn, level): (Gfn, i32) = (at.gfn(), at.level().as_kvm());
        let gfn = gfn.as_u64();
        writeln!(f, "{gfn:#x} level {level} {operation} {threshold} ms")?;
    }
    Ok(())
}

fn set_frozen(file: &Frozen, reader: &mut UserSliceReader) -> Result {
    let threshold = uaccess::number(reader)?;
    if !(1..=LONGEST).contains(&threshold) {
        return Err(EINVAL);
    }
    let threshold = u32::try_from(threshold).map_err(|_| EINVAL)?;
    file.threshold.store(threshold, Relaxed);
    Ok(())
}
