// SPDX-License-Identifier: GPL-2.0

//! What an operator is shown of a mirror, row by row. A few entries at a time are looked at with the
//! lock held, and the rows that come of them lie in room that the caller has, so that neither the
//! length of a table nor what a guest makes of it decides how much memory or how much time goes by
//! before somebody can stop it.

#![forbid(unsafe_code)]

use super::audit::Compared;
use super::external::External;
use super::spte::SpteKind;
use crate::base::level::Position;
use core::fmt;

/// Entries that are looked at with the lock held once, at most.
pub const CHUNK: u32 = 512;
/// Differences that are listed; all are counted.
pub const LISTED: u64 = 1000;

/// Where entries come from.
pub trait Source {
    /// Why a survey stops before its end.
    type Stop;
    /// Whether to go on; asked with no lock held, before each chunk.
    ///
    /// # Errors
    ///
    /// Why not. A later call of [`Survey::fill()`] may go on.
    fn may_go_on(&self) -> Result<(), Self::Stop>;
    /// Looks at `count` entries at most, from the one for the frame number `from` on, and calls
    /// `visit` for each, of the free ones only with `free`; with what the external table has there
    /// if that was read. Returns the frame number to go on with, `None` at the end.
    fn chunk(
        &self,
        from: u64,
        count: u32,
        free: bool,
        visit: &mut dyn FnMut(Position, SpteKind, Option<&Compared>),
    ) -> Option<u64>;
}

/// What becomes of the entries.
pub trait Report {
    /// A row.
    type Row: Copy;
    /// A row that is never shown.
    const BLANK: Self::Row;
    /// Whether free entries are asked for.
    const FREE: bool;
    /// Takes an entry and returns the row that it completes, if any.
    fn entry(&mut self, at: Position, kind: SpteKind, read: Option<&Compared>)
        -> Option<Self::Row>;
    /// The last row, if any.
    fn end(&mut self) -> Option<Self::Row>;
}

/// A report on its way through a mirror.
#[derive(Debug)]
pub struct Survey<R> {
    report: R,
    next: Option<u64>,
    ended: bool,
}

impl<R: Report> Survey<R> {
    /// Rows for a chunk: each of its entries completes one at most.
    pub const ROOM: usize = CHUNK as usize;

    /// A report from the start.
    pub fn new(report: R) -> Self {
        Self {
            report,
            next: Some(0),
            ended: false,
        }
    }

    /// Goes on until at least one row is in `room`, and returns how many are, 0 at the end. In less
    /// room than [`ROOM`](Self::ROOM) less is looked at with the lock held once.
    ///
    /// # Errors
    ///
    /// Why `source` does not want to go on. No row is lost.
    pub fn fill<S: Source>(&mut self, source: &S, room: &mut [R::Row]) -> Result<usize, S::Stop> {
        let entries = u32::try_from(room.len()).unwrap_or(CHUNK).min(CHUNK);
        let mut count = 0usize;
        while count == 0 && !self.ended && entries != 0 {
            let mut put = |row: Option<R::Row>| {
                if let (Some(row), Some(to)) = (row, room.get_mut(count)) {
                    *to = row;
                    count = count.wrapping_add(1);
                }
            };
            let Some(from) = self.next else {
                self.ended = true;
                put(self.report.end());
                continue;
            };
            source.may_go_on()?;
            let report = &mut self.report;
            self.next = source.chunk(from, entries, R::FREE, &mut |at, kind, read| {
                put(report.entry(at, kind, read));
            });
        }
        Ok(count)
    }
}

/// What an entry is to an operator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// In the mirror, and if the external table was read there as well, and accepted.
    Mapped,
    /// The guest has not accepted it.
    Pending,
    /// Blocked.
    Blocked,
    /// The TDX module may still own the page.
    Quarantined,
    /// Mirror and external table say something else.
    Differs,
}

impl State {
    /// The mirror's, and if it was read what the external table says; none of a free entry.
    pub fn of(kind: SpteKind, read: Option<&Compared>) -> Option<Self> {
        Some(match (kind, read.map(|entry| entry.external)) {
            (SpteKind::NonPresent, _) => return None,
            (SpteKind::Quarantined(_), _) => Self::Quarantined,
            (SpteKind::Blocked(_), None) => Self::Blocked,
            (_, Some(Ok(External::Leaf { blocked: true, .. }))) => Self::Blocked,
            _ if read.is_some_and(|entry| !entry.agrees()) => Self::Differs,
            (_, Some(Ok(External::Leaf { pending: true, .. }))) => Self::Pending,
            _ => Self::Mapped,
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mapped => "mapped",
            Self::Pending => "pending",
            Self::Blocked => "blocked",
            Self::Quarantined => "quarantined",
            Self::Differs => "differs",
        })
    }
}

/// Frame numbers of the same state, half-open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The first one.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// The state.
    pub state: State,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, end, state } = self;
        writeln!(f, "{start:#x} {end:#x} {state}")
    }
}

/// The map: what is not free, in ranges of the same state.
#[derive(Debug, Default)]
pub struct Map {
    open: Option<Range>,
}

impl Report for Map {
    type Row = Range;
    const BLANK: Range = Range {
        start: 0,
        end: 0,
        state: State::Mapped,
    };
    const FREE: bool = false;

    fn entry(&mut self, at: Position, kind: SpteKind, read: Option<&Compared>) -> Option<Range> {
        let state = State::of(kind, read)?;
        let start = at.gfn().as_u64();
        let end = start.saturating_add(at.level().pages());
        match &mut self.open {
            Some(open) if open.end == start && open.state == state => {
                open.end = end;
                None
            }
            open => open.replace(Range { start, end, state }),
        }
    }

    fn end(&mut self) -> Option<Range> {
        self.open.take()
    }
}

/// How many entries an audit met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Audit {
    /// All.
    pub entries: u64,
    /// Those that map a page.
    pub leaves: u64,
    /// Those that the guest has not accepted.
    pub pending: u64,
    /// Those of which mirror and external table say something else.
    pub differences: u64,
    /// Those of which the external table was not, or could not be, read.
    pub unread: u64,
    listed: u64,
}

/// A row of an audit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuditRow {
    /// An entry that differs, or that cannot be read.
    Entry(Compared),
    /// The end.
    Sum(Audit),
}

impl fmt::Display for AuditRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry(Compared { at, kind, external }) => {
                writeln!(f, "{at:?}: mirror {kind:?}, S-EPT {external:?}")
            }
            Self::Sum(sum) => fmt::Display::fmt(sum, f),
        }
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.entries == self.unread {
            f.write_str("nothing compared: the S-EPT is read while read_sept is 1, of a TD that is finalized and has its key\n")?;
        }
        writeln!(f, "entries {}", self.entries)?;
        writeln!(f, "leaves {}", self.leaves)?;
        writeln!(f, "pending {}", self.pending)?;
        writeln!(f, "differences {}", self.differences)?;
        writeln!(f, "unread {}", self.unread)
    }
}

impl Report for Audit {
    type Row = AuditRow;
    const BLANK: AuditRow = AuditRow::Sum(Audit {
        entries: 0,
        leaves: 0,
        pending: 0,
        differences: 0,
        unread: 0,
        listed: 0,
    });
    const FREE: bool = true;

    fn entry(
        &mut self,
        _at: Position,
        kind: SpteKind,
        read: Option<&Compared>,
    ) -> Option<AuditRow> {
        self.entries = self.entries.wrapping_add(1);
        let Some(entry) = read else {
            let leaf = matches!(kind, SpteKind::Leaf(_));
            self.leaves = self.leaves.wrapping_add(u64::from(leaf));
            self.unread = self.unread.wrapping_add(1);
            return None;
        };
        if let Ok(External::Leaf { pending, .. }) = entry.external {
            self.leaves = self.leaves.wrapping_add(1);
            self.pending = self.pending.wrapping_add(u64::from(pending));
        }
        if entry.agrees() {
            return None;
        }
        // What cannot be read is not known to differ.
        let count = match entry.external {
            Ok(_) => &mut self.differences,
            Err(_) => &mut self.unread,
        };
        *count = count.wrapping_add(1);
        self.listed = self.listed.wrapping_add(1);
        (self.listed <= LISTED).then_some(AuditRow::Entry(*entry))
    }

    fn end(&mut self) -> Option<AuditRow> {
        Some(AuditRow::Sum(*self))
    }
}
