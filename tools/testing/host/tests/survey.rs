// SPDX-License-Identifier: GPL-2.0

//! What an operator is shown of a mirror: in bounded room, with a way out between two chunks, and
//! with all vCPUs out while the S-EPT is read.

use std::cell::{Cell, RefCell};
use tdx_mirror_host::base::addr::{Gfn, Pfn};
use tdx_mirror_host::base::level::{Level, Position};
use tdx_mirror_host::mirror::error::MapOutcome;
use tdx_mirror_host::mirror::spte::{Spte, SpteKind};
use tdx_mirror_host::mirror::survey::{
    Audit, AuditRow, Map, Range, Report, Source, State, Survey, CHUNK, LISTED,
};
use tdx_mirror_host::mirror::Compared;
use tdx_mirror_host::mock::{Entry, Event};
use tdx_mirror_host::sept::SeptBackend;
use tdx_mirror_host::tdx::call::Kind;
use tdx_mirror_host::vm::Td;

const GFN: u64 = 0x4_0000;

/// A TD as a reader of its files has it.
struct Reader<'a> {
    td: &'a Td,
    reads: bool,
    /// Chunks after which it is to stop.
    left: Cell<u32>,
    chunks: Cell<u32>,
    /// Most entries that one chunk showed.
    most: Cell<usize>,
}

impl<'a> Reader<'a> {
    fn new(td: &'a Td, reads: bool) -> Self {
        Self {
            td,
            reads,
            left: Cell::new(u32::MAX),
            chunks: Cell::new(0),
            most: Cell::new(0),
        }
    }

    /// All rows, with room for `room` of them; asserts that each fill stays in it.
    fn rows<R: Report>(&self, report: R, room: usize) -> Vec<R::Row> {
        let (mut survey, mut rows) = (Survey::new(report), vec![]);
        let mut space = vec![R::BLANK; room];
        loop {
            match survey.fill(self, &mut space) {
                Ok(0) => return rows,
                Ok(count) => rows.extend_from_slice(&space[..count]),
                Err(Stopped) => self.left.set(u32::MAX),
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Stopped;

impl Source for Reader<'_> {
    type Stop = Stopped;

    fn may_go_on(&self) -> Result<(), Stopped> {
        match self.left.get() {
            0 => Err(Stopped),
            left => {
                self.left.set(left - 1);
                Ok(())
            }
        }
    }

    fn chunk(
        &self,
        from: u64,
        count: u32,
        free: bool,
        visit: &mut dyn FnMut(Position, SpteKind, Option<&Compared>),
    ) -> Option<u64> {
        self.chunks.set(self.chunks.get() + 1);
        let seen = Cell::new(0);
        let next = self.td.exclusive(|x| {
            if self.reads {
                return self
                    .td
                    .mirror()
                    .compare(x, from, count, free, &mut |entry| {
                        seen.set(seen.get() + 1);
                        visit(entry.at, entry.kind, Some(entry));
                    });
            }
            self.td.mirror().look(x, from, count, &mut |at, kind| {
                if free || kind != SpteKind::NonPresent {
                    seen.set(seen.get() + 1);
                    visit(at, kind, None);
                }
            })
        });
        self.most.set(self.most.get().max(seen.get()));
        assert!(seen.get() <= count as usize);
        next
    }
}

/// A TD with `pages` pages, each `step`-th of its GFNs.
fn td(pages: u64, step: u64) -> Td {
    let td = Td::built();
    for n in 0..pages {
        assert_eq!(td.map(GFN + n * step, 100 + n), Ok(MapOutcome::Fixed));
    }
    td
}

fn mapped(start: u64, end: u64) -> Range {
    Range {
        start,
        end,
        state: State::Mapped,
    }
}

#[test]
fn ranges_go_over_chunks() {
    let td = td(3 * u64::from(CHUNK), 1);
    let whole = [mapped(GFN, GFN + 3 * u64::from(CHUNK))];
    for reads in [false, true] {
        for room in [1, 2, 7, Survey::<Map>::ROOM] {
            let reader = Reader::new(&td, reads);
            assert_eq!(reader.rows(Map::default(), room), whole);
            assert!(reader.chunks.get() > 3 * CHUNK / room as u32);
        }
    }
}

/// Every second page: as many rows as a guest can make of a chunk. They fill the room and no more.
#[test]
fn what_a_guest_shapes_stays_in_the_room() {
    let pages = 2 * u64::from(CHUNK);
    let td = td(pages, 2);
    let rows: Vec<_> = (0..pages)
        .map(|n| mapped(GFN + 2 * n, GFN + 2 * n + 1))
        .collect();
    for room in [1, 3, 256, Survey::<Map>::ROOM] {
        assert_eq!(Reader::new(&td, true).rows(Map::default(), room), rows);
    }
    // Each page is in another state than its neighbours: every entry of a chunk completes a row.
    let pages = 3 * u64::from(CHUNK);
    let td = self::td(pages, 1);
    for n in (1..pages).step_by(2) {
        td.poke(GFN + n, Spte::quarantined(Pfn::new(7).unwrap()));
    }
    let reader = Reader::new(&td, false);
    let mut survey = Survey::new(Map::default());
    let mut room = vec![Map::BLANK; Survey::<Map>::ROOM];
    let (mut most, mut all) = (0, 0);
    while let count @ 1.. = survey.fill(&reader, &mut room).unwrap() {
        (most, all) = (most.max(count), all + count as u64);
    }
    assert_eq!(all, pages);
    assert_eq!(most, CHUNK as usize, "the bound is reached");
    assert_eq!(reader.most.get(), CHUNK as usize);
}

/// Whoever is stopped between two chunks has made none since, and loses no row if it goes on.
#[test]
fn a_reader_stops_between_chunks() {
    let td = td(2 * u64::from(CHUNK), 2);
    let reader = Reader::new(&td, true);
    let whole = reader.rows(Map::default(), 64);
    let chunks = reader.chunks.get();
    let sums = Reader::new(&td, true).rows(Audit::default(), 64);
    assert!(chunks > 16);
    for stop in 0..chunks {
        let reader = Reader::new(&td, true);
        let mut survey = Survey::new(Map::default());
        let (mut rows, mut room) = (vec![], vec![Map::BLANK; 64]);
        reader.left.set(stop);
        let end = loop {
            match survey.fill(&reader, &mut room) {
                Ok(0) => break Ok(()),
                Ok(count) => rows.extend_from_slice(&room[..count]),
                Err(stopped) => break Err(stopped),
            }
        };
        assert_eq!((end, reader.chunks.get()), (Err(Stopped), stop));
        assert!(!td.mock().holding());
        // Again, and again in vain.
        assert_eq!(survey.fill(&reader, &mut room), Err(Stopped));
        assert_eq!(reader.chunks.get(), stop);
        reader.left.set(u32::MAX);
        while let count @ 1.. = survey.fill(&reader, &mut room).unwrap() {
            rows.extend_from_slice(&room[..count]);
        }
        assert_eq!(rows, whole);

        reader.left.set(stop);
        assert_eq!(reader.rows(Audit::default(), 64), sums);
    }
}

/// What the S-EPT is asked for in one chunk: all vCPUs are held and kicked before, once, and let go
/// of at its end.
#[test]
fn vcpus_are_out_while_the_s_ept_is_read() {
    let td = td(600, 1);
    for room in [10, Survey::<Audit>::ROOM] {
        td.mock().clear_log();
        td.mock().enter_guest();
        let reader = Reader::new(&td, true);
        reader.rows(Audit::default(), room);
        let log: Vec<_> = td.mock().log().iter().map(|(event, _)| *event).collect();
        let mut chunks = 0;
        for chunk in log.split_inclusive(|event| *event == Event::Release) {
            assert_eq!(chunk[..2], [Event::Hold, Event::Kick]);
            let (release, reads) = chunk[2..].split_last().unwrap();
            assert_eq!(*release, Event::Release);
            assert!((1..=room).contains(&reads.len()));
            let call = Event::Call(Kind::SeptRd);
            assert!(reads.iter().all(|event| *event == call));
            chunks += 1;
        }
        assert_eq!(chunks, reader.chunks.get());
        assert!(!td.mock().holding());
    }
}

/// A guest that accepts a page: its lock is gone before the entry is read, so that it neither fails
/// nor finds a mark there.
#[test]
fn an_accept_meets_no_read() {
    let td = td(5, 1);
    assert_eq!(td.mock().accept_begin(Level::L4K, GFN + 2), Ok(()));
    let rows = Reader::new(&td, true).rows(Audit::default(), 512);
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(td.mock().marks(), 0);
    assert_eq!(td.mirror().external().stats().busy.get(), 0);
}

/// A chunk without a leaf has nothing to read, and nobody is kicked for it.
#[test]
fn nobody_is_kicked_for_nothing() {
    let td = Td::built();
    td.mock().clear_log();
    assert_eq!(Reader::new(&td, true).rows(Map::default(), 512), []);
    assert_eq!(td.mock().log(), []);
}

#[test]
fn an_audit_says_that_nothing_was_read() {
    let td = td(5, 1);
    let text = |reads| {
        let rows = Reader::new(&td, reads).rows(Audit::default(), 512);
        rows.iter().map(AuditRow::to_string).collect::<String>()
    };
    let (alone, both) = (text(false), text(true));
    assert!(alone.starts_with("nothing compared: "), "{alone}");
    assert!(both.starts_with("entries "), "{both}");
    let value = |text: &str, name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse().unwrap()
    };
    assert_eq!(value(&alone, "unread"), value(&alone, "entries"));
    assert_eq!(value(&both, "unread"), 0);
    for text in [&alone, &both] {
        assert_eq!(value(text, "leaves"), 5);
        assert_eq!(value(text, "differences"), 0);
        assert_eq!(value(text, "entries"), value(&both, "entries"));
    }
}

#[test]
fn differences_are_listed_up_to_a_bound() {
    let pages = LISTED + 5;
    let td = td(pages, 1);
    for n in 0..pages {
        td.mock().tamper(GFN + n, None);
    }
    let rows = Reader::new(&td, true).rows(Audit::default(), 512);
    assert_eq!(rows.len() as u64, LISTED + 1);
    let Some(AuditRow::Sum(sum)) = rows.last() else {
        panic!("{rows:?}");
    };
    assert_eq!((sum.differences, sum.unread), (pages, 0));
    td.mock().tamper(
        GFN,
        Some(Entry::Leaf {
            pfn: 100,
            blocked: None,
        }),
    );
    let rows = Reader::new(&td, true).rows(Audit::default(), 512);
    assert!(rows
        .last()
        .unwrap()
        .to_string()
        .contains(&format!("differences {}", pages - 1)));
}

/// The states of the map, by what the mirror has and what the S-EPT says.
#[test]
fn states() {
    let at = Position::covering(Gfn::new(GFN).unwrap(), Level::L4K);
    let td = td(1, 1);
    let read = RefCell::new(None);
    td.exclusive(|x| {
        td.mirror().compare(x, GFN, 1, false, &mut |entry| {
            *read.borrow_mut() = Some(*entry)
        })
    });
    let good: Compared = read.into_inner().unwrap();
    let pfn = Pfn::new(100).unwrap();
    let state = |kind, read: Option<&Compared>| State::of(kind, read);
    assert_eq!(good.at, at);
    assert_eq!(state(SpteKind::NonPresent, None), None);
    assert_eq!(state(SpteKind::Leaf(pfn), None), Some(State::Mapped));
    assert_eq!(state(SpteKind::Leaf(pfn), Some(&good)), Some(State::Mapped));
    assert_eq!(state(SpteKind::Blocked(pfn), None), Some(State::Blocked));
    assert_eq!(
        state(SpteKind::Quarantined(pfn), None),
        Some(State::Quarantined)
    );
    let other = Compared {
        kind: SpteKind::Leaf(Pfn::new(7).unwrap()),
        ..good
    };
    assert_eq!(state(other.kind, Some(&other)), Some(State::Differs));
    let names: Vec<_> = [
        State::Mapped,
        State::Pending,
        State::Blocked,
        State::Quarantined,
        State::Differs,
    ]
    .iter()
    .map(State::to_string)
    .collect();
    assert_eq!(
        names.join(" "),
        "mapped pending blocked quarantined differs"
    );
    assert!(td.mock().is_hkid_assigned());
}
