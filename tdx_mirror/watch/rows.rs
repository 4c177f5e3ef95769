// SPDX-License-Identifier: GPL-2.0

//! Texts row by row, each with as much memory as a chunk of them needs at most.

use core::fmt;
use kernel::prelude::*;

use super::access::Visit;
use crate::base::level::{
    Level,
    Position, //
};
use crate::kernel::{
    rcu,
    sched, //
};
use crate::mirror::spte::SpteKind;
use crate::mirror::survey::{
    Report,
    Source,
    Survey,
    CHUNK, //
};

/// Bytes that a [`Text`] has at most: the figures are as many as there are names for them.
const MOST: usize = 32 << 10;
/// Frozen entries that are watched: one for each thread that maps, and more than vCPUs fault.
const WATCHED: usize = 64;
/// Looks at a frozen entry.
const LOOKS: u32 = 8;

/// A text that was written at once; a row is a line of it.
pub(crate) struct Text {
    bytes: KVVec<u8>,
    from: usize,
    to: usize,
}

struct Written<F>(F);

impl<F: Fn(&mut fmt::Formatter<'_>) -> fmt::Result> fmt::Display for Written<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.0)(f)
    }
}

impl Text {
    /// What `write` writes. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(write: impl Fn(&mut fmt::Formatter<'_>) -> fmt::Result) -> Result<Self> {
        let mut text = Self {
            bytes: KVVec::with_capacity(MOST, GFP_KERNEL_ACCOUNT)?,
            from: 0,
            to: 0,
        };
        fmt::write(&mut text, format_args!("{}", Written(write))).map_err(|_| ENOMEM)?;
        Ok(text)
    }

    /// Moves on to the next row, if there is one.
    pub(crate) fn advance(&mut self) -> bool {
        let rest = self.bytes.as_slice().get(self.to..).unwrap_or(&[]);
        let end = rest.iter().position(|byte| *byte == b'\n');
        let length = end.map_or(rest.len(), |end| end.saturating_add(1));
        self.from = self.to;
        self.to = self.to.saturating_add(length);
        length != 0
    }

    /// The row.
    pub(crate) fn row(&self) -> &str {
        let row = self.bytes.as_slice().get(self.from..self.to);
        row.and_then(|row| core::str::from_utf8(row).ok())
            .unwrap_or("")
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            self.bytes
                .push_within_capacity(byte)
                .map_err(|_| fmt::Error)?;
        }
        Ok(())
    }
}

/// A report on a TD's mirror. The rows of one chunk are kept.
pub(crate) struct Scan<R: Report> {
    survey: Survey<R>,
    room: KVVec<R::Row>,
    count: usize,
    at: usize,
}

impl<R: Report> Scan<R> {
    /// A report from the start. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(report: R) -> Result<Self> {
        let mut room = KVVec::with_capacity(Survey::<R>::ROOM, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..Survey::<R>::ROOM {
            room.push_within_capacity(R::BLANK).map_err(|_| ENOMEM)?;
        }
        Ok(Self {
            survey: Survey::new(report),
            room,
            count: 0,
            at: 0,
        })
    }

    /// Moves on to the next row, if there is one. Sleeps.
    ///
    /// # Errors
    ///
    /// Those of the visit; the next call goes on.
    pub(crate) fn advance(&mut self, visit: &Visit) -> Result<bool> {
        self.at = self.at.saturating_add(1);
        if self.at >= self.count {
            self.count = 0;
            self.count = self.survey.fill(visit, self.room.as_mut_slice())?;
            self.at = 0;
        }
        Ok(self.count != 0)
    }

    /// The row.
    pub(crate) fn row(&self) -> Option<&R::Row> {
        self.room.as_slice().get(self.at)
    }
}

/// Whether the entry `at` is frozen now.
fn is_frozen(visit: &Visit, at: Position) -> bool {
    rcu::read(|rcu| {
        let slot = visit.td().mirror().slot(rcu, at.gfn());
        slot.is_some_and(|slot| slot.at == at && slot.kind() == SpteKind::Frozen)
    })
}

/// The entries that are frozen now, as many as are watched. Sleeps.
fn frozen_now(visit: &Visit) -> Result<KVec<Option<Position>>> {
    let mut found = KVec::with_capacity(WATCHED, GFP_KERNEL_ACCOUNT)?;
    let mut next = Some(0u64);
    while let Some(from) = next {
        visit.may_go_on()?;
        next = rcu::read(|rcu| {
            visit.td().mirror().look(rcu, from, CHUNK, &mut |at, kind| {
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

/// Entries that were frozen at each look; a row for each.
pub(crate) struct Frozen {
    /// None of those that were not frozen once.
    found: KVec<Option<Position>>,
    threshold: u32,
    next: usize,
}

impl Frozen {
    /// Looks for the time of the threshold, if anything is frozen. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, and those of the visit.
    pub(crate) fn new(visit: &Visit) -> Result<Self> {
        let threshold = visit.threshold();
        let mut found = frozen_now(visit)?;
        for _ in 1..LOOKS {
            if found.iter().all(Option::is_none) {
                break;
            }
            visit.sleep(threshold.div_ceil(LOOKS.saturating_sub(1)))?;
            for entry in &mut found {
                *entry = entry.filter(|at| is_frozen(visit, *at));
            }
        }
        Ok(Self {
            found,
            threshold,
            next: 0,
        })
    }

    /// Moves on to the next row, if there is one.
    pub(crate) fn advance(&mut self) -> bool {
        let rest = self.found.as_slice().get(self.next..).unwrap_or(&[]);
        let gone = rest.iter().take_while(|entry| entry.is_none()).count();
        // One past the row.
        self.next = self.next.saturating_add(gone).saturating_add(1);
        gone < rest.len()
    }
}

impl fmt::Display for Frozen {
    /// Writes the row.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = self.found.as_slice();
        let Some(Some(at)) = found.get(self.next.wrapping_sub(1)) else {
            return Ok(());
        };
        let operation = match at.level() {
            Level::L4K => "page_map",
            _ => "sept_add",
        };
        let (gfn, level) = (at.gfn().as_u64(), at.level().as_kvm());
        let threshold = self.threshold;
        writeln!(f, "{gfn:#x} level {level} {operation} {threshold} ms")
    }
}
