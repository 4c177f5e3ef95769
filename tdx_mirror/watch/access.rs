// SPDX-License-Identifier: GPL-2.0

//! How the readers of a TD's files come to the TD, and how they are kept from it when it ends.
//!
//! A file that is open outlives the TD. So nothing that is open refers to the TD: a [`Visit`] does,
//! for one read at a time, and [`Access::end()`] waits for those that are under way, which see
//! between two chunks that they are to end.

use kernel::{
    new_condvar,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        CondVar,
        CondVarTimeoutResult,
        Mutex, //
    },
    time::msecs_to_jiffies, //
};

use crate::base::level::Position;
use crate::kernel::{
    sched,
    switches, //
};
use crate::kvm::td::Td;
use crate::mirror::spte::SpteKind;
use crate::mirror::survey::Source;
use crate::mirror::Compared;

/// Milliseconds after which an entry counts as frozen for long: a freeze takes a few SEAMCALLs, of
/// microseconds each.
const DEFAULT_FROZEN_MS: u32 = 100;
/// Longest time that may be asked for, in milliseconds.
const LONGEST: usize = 10_000;

struct State {
    /// The TD, until it ends.
    td: Option<Arc<Td>>,
    visits: usize,
}

/// What the files of one TD share.
#[pin_data]
pub(crate) struct Access {
    #[pin]
    state: Mutex<State>,
    /// A visit is over, or the TD ends.
    #[pin]
    changed: CondVar,
    /// The TD ends: what is asked between two chunks, without the lock.
    ended: Atomic<bool>,
    /// Milliseconds for which an entry is frozen that `frozen` lists.
    threshold: Atomic<u32>,
}

impl Access {
    /// Access to `td`. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(td: Arc<Td>) -> Result<Arc<Self>> {
        let state = State {
            td: Some(td),
            visits: 0,
        };
        Arc::pin_init(
            try_pin_init!(Self {
                state <- new_mutex!(state),
                changed <- new_condvar!(),
                ended: Atomic::new(false),
                threshold: Atomic::new(DEFAULT_FROZEN_MS),
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Whether the TD's files may still be read.
    ///
    /// # Errors
    ///
    /// `ENODEV`: the TD has ended.
    pub(crate) fn is_open(&self) -> Result {
        if self.ended.load(Relaxed) {
            return Err(ENODEV);
        }
        Ok(())
    }

    /// Comes to the TD, which stays until the visit is dropped.
    ///
    /// # Errors
    ///
    /// `ENODEV`: it has ended.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Visit> {
        let mut state = self.state.lock();
        let td = state.td.clone().ok_or(ENODEV)?;
        state.visits = state.visits.wrapping_add(1);
        drop(state);
        Ok(Visit {
            td,
            entered: Entered(self.clone()),
        })
    }

    /// Lets nobody in any more and waits until nobody is in. Sleeps, for as long as a visitor takes
    /// for a chunk.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        self.ended.store(true, Relaxed);
        let td = state.td.take();
        self.changed.notify_all();
        while state.visits != 0 {
            self.changed.wait(&mut state);
        }
        drop(state);
        drop(td);
    }

    /// Milliseconds for which an entry is frozen that `frozen` lists.
    pub(crate) fn threshold(&self) -> u32 {
        self.threshold.load(Relaxed)
    }

    /// Sets them.
    ///
    /// # Errors
    ///
    /// `EINVAL`.
    pub(crate) fn set_threshold(&self, threshold: usize) -> Result {
        if !(1..=LONGEST).contains(&threshold) {
            return Err(EINVAL);
        }
        let threshold = u32::try_from(threshold).map_err(|_| EINVAL)?;
        self.threshold.store(threshold, Relaxed);
        Ok(())
    }
}

/// One visit, counted.
struct Entered(Arc<Access>);

impl Drop for Entered {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.visits = state.visits.wrapping_sub(1);
        self.0.changed.notify_all();
    }
}

/// A thread that reads a TD's file. Fields go in order: once the visit is counted as over, nothing
/// refers to the TD.
pub(crate) struct Visit {
    td: Arc<Td>,
    entered: Entered,
}

impl Visit {
    /// The TD.
    pub(crate) fn td(&self) -> &Td {
        &self.td
    }

    /// Milliseconds for which an entry is frozen that `frozen` lists.
    pub(crate) fn threshold(&self) -> u32 {
        self.entered.0.threshold()
    }

    /// Sleeps for a time in milliseconds, unless the TD ends.
    ///
    /// # Errors
    ///
    /// `ENODEV`, or `ERESTARTSYS` for a signal.
    pub(crate) fn sleep(&self, time: u32) -> Result {
        let access = &self.entered.0;
        let mut left = msecs_to_jiffies(time);
        let mut state = access.state.lock();
        while state.td.is_some() {
            // What is over sooner, another visit has brought about, or the TD's end.
            left = match access.changed.wait_interruptible_timeout(&mut state, left) {
                CondVarTimeoutResult::Timeout => return Ok(()),
                CondVarTimeoutResult::Woken { jiffies } => jiffies,
                CondVarTimeoutResult::Signal { .. } => return Err(ERESTARTSYS),
            };
        }
        Err(ENODEV)
    }
}

impl Source for Visit {
    type Stop = Error;

    fn may_go_on(&self) -> Result {
        self.entered.0.is_open()?;
        if kernel::current!().signal_pending() {
            return Err(ERESTARTSYS);
        }
        Ok(())
    }

    fn chunk(
        &self,
        from: u64,
        count: u32,
        free: bool,
        visit: &mut dyn FnMut(Position, SpteKind, Option<&Compared>),
    ) -> Option<u64> {
        let td = self.td();
        let mut read = false;
        let next = td.lock().write(|x| {
            if !td.hooks().is_hkid_assigned() {
                // There is no S-EPT yet.
                return None;
            }
            if switches::reads_sept() && td.hooks().is_finalized() {
                read = true;
                return td.mirror().compare(x, from, count, free, &mut |entry| {
                    visit(entry.at, entry.kind, Some(entry));
                });
            }
            td.mirror().look(x, from, count, &mut |at, kind| {
                if free || kind != SpteKind::NonPresent {
                    visit(at, kind, None);
                }
            })
        });
        if read && next.is_some() {
            // All vCPUs were out: let them run for about as long.
            sched::pause();
        } else {
            sched::cond_resched();
        }
        next
    }
}
