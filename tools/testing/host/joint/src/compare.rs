// SPDX-License-Identifier: GPL-2.0

//! Whether mirror and S-EPT say the same, entry by entry, from the words in memory: nothing of the
//! mirror's own walk and nothing of the emulator's code takes part.

use tdx_mirror_host::base::addr::{Gfn, PagePtr, Pfn};
use tdx_mirror_host::base::level::{Level, Position};
use tdx_mirror_host::mirror::spte::{Spte, SpteKind};

use crate::backend::{ADDRESS, FREE, LOCK, PRIORITY};
use crate::td::{Machine, Td};

/// Other words of the S-EPT, without the address.
const TABLE: u64 = 0x8000_0000_0000_0007;
const MAPPED: u64 = 0x8000_0000_0000_00f7;
const PENDING: u64 = 0x8100_0000_0000_00f0;
const BLOCKED: u64 = 0x8080_0000_0000_00f0;
const PENDING_BLOCKED: u64 = 0x8180_0000_0000_00f0;

/// An entry of the S-EPT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sept {
    Free,
    Table(u64),
    /// PFN, and whether it is accepted.
    Leaf(u64, bool),
    Blocked(u64),
    Other(u64),
}

impl Sept {
    /// What the word says, whatever its lock and its mark.
    pub fn of(word: u64, level: Level) -> Self {
        let word = word & !(LOCK | PRIORITY);
        let pa = word & ADDRESS;
        match (word & !ADDRESS, level) {
            _ if word == FREE => Self::Free,
            (TABLE, l) if l != Level::L4K => Self::Table(pa),
            (MAPPED, Level::L4K) => Self::Leaf(pa >> 12, true),
            (PENDING, Level::L4K) => Self::Leaf(pa >> 12, false),
            (BLOCKED | PENDING_BLOCKED, Level::L4K) => Self::Blocked(pa >> 12),
            _ => Self::Other(word),
        }
    }
}

/// What was found, where all is equal.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Census {
    /// Leaves: GFN and PFN, in order.
    pub leaves: Vec<(u64, u64)>,
    /// Leaves that the guest has not accepted.
    pub pending: u64,
    /// Mirror tables without the root.
    pub tables: u64,
    /// GFN and PFN of what is quarantined.
    pub quarantined: Vec<(u64, u64)>,
    /// Entries with a host-priority mark.
    pub marks: Vec<Position>,
}

/// What one entry is in both.
fn entry(at: Position, mirror: u64, sept: u64) -> Result<(SpteKind, Sept), String> {
    let kind = Spte::from_raw(mirror).kind(at.level());
    let other = Sept::of(sept, at.level());
    let same = match (kind, other) {
        (SpteKind::NonPresent, Sept::Free) => true,
        (SpteKind::Table(_), Sept::Table(_)) => true,
        (SpteKind::Leaf(p), Sept::Leaf(q, _)) => p.as_u64() == q,
        // Whether the page is the TDX module's is what is not known.
        (SpteKind::Quarantined(_), Sept::Free) => true,
        (SpteKind::Quarantined(p), Sept::Leaf(q, _) | Sept::Blocked(q)) => p.as_u64() == q,
        _ => false,
    };
    if !same {
        return Err(format!(
            "{at:?}: mirror {mirror:#018x} ({kind:?}), S-EPT {sept:#018x} ({other:?})"
        ));
    }
    if sept & LOCK != 0 {
        return Err(format!("{at:?}: locked, S-EPT {sept:#018x}"));
    }
    Ok((kind, other))
}

/// Compares the two entries that end the walk for `gfn`, and those above.
pub fn at_gfn(td: &Td, gfn: u64) -> Result<(SpteKind, Sept), String> {
    let memory = td.machine.vmm.host();
    let (mut table, mut sept) = (root(td), td.backend().root());
    let mut level = Level::L512G;
    loop {
        let at = Position::covering(Gfn::new(gfn).expect("a GFN"), level);
        let i = level.index(at.gfn());
        let word = memory.read(sept + 8 * i as u64);
        let both = entry(at, td.machine.arena.word(table, i), word)?;
        let (SpteKind::Table(pfn), Sept::Table(pa), Some(below)) = (both.0, both.1, level.child())
        else {
            return Ok(both);
        };
        table = follow(&td.machine, pfn, pa, at)?;
        (sept, level) = (pa, below);
    }
}

/// The mirror's root.
fn root(td: &Td) -> PagePtr {
    td.machine.arena.page(td.root.as_u64())
}

/// The mirror table `pfn`, which must stand beside the S-EPT page `pa`.
fn follow(machine: &Machine, pfn: Pfn, pa: u64, at: Position) -> Result<PagePtr, String> {
    let table = machine.arena.page(pfn.as_u64());
    let companion = machine.arena.companion_of(table);
    if companion != pa {
        return Err(format!("{at:?}: companion {companion:#x}, linked {pa:#x}"));
    }
    Ok(table)
}

/// Where the S-EPT has the word for `gfn` at `level`; `None` if a table above lacks.
pub fn word_of(td: &Td, gfn: u64, level: Level) -> Option<u64> {
    let memory = td.machine.vmm.host();
    let mut sept = td.backend().root();
    let mut here = Level::L512G;
    loop {
        let at = Gfn::new(gfn)?.align_down(here);
        let word = sept + 8 * here.index(at) as u64;
        if here == level {
            return Some(word);
        }
        match Sept::of(memory.read(word), here) {
            Sept::Table(pa) => sept = pa,
            _ => return None,
        }
        here = here.child()?;
    }
}

/// Compares all entries of a TD at which nobody is at work.
pub fn whole(td: &Td) -> Result<Census, String> {
    let mut census = Census::default();
    let root = (root(td), td.backend().root());
    table(&td.machine, root, Level::L512G, 0, &mut census)?;
    Ok(census)
}

fn table(
    machine: &Machine,
    (mirror, sept): (PagePtr, u64),
    level: Level,
    first: u64,
    census: &mut Census,
) -> Result<(), String> {
    let memory = machine.vmm.host();
    for i in 0..512usize {
        let m = machine.arena.word(mirror, i);
        let s = memory.read(sept + 8 * i as u64);
        if m == Spte::NON_PRESENT.raw() && s == FREE {
            continue;
        }
        let gfn = first + i as u64 * level.pages();
        let at = Position::covering(Gfn::new(gfn).expect("a GFN"), level);
        let both = entry(at, m, s)?;
        if s & PRIORITY != 0 {
            census.marks.push(at);
        }
        match both {
            (SpteKind::Table(pfn), Sept::Table(pa)) => {
                let below = level.child().expect("a level below");
                let child = follow(machine, pfn, pa, at)?;
                census.tables += 1;
                table(machine, (child, pa), below, gfn, census)?;
            }
            (SpteKind::Leaf(pfn), Sept::Leaf(_, accepted)) => {
                census.leaves.push((gfn, pfn.as_u64()));
                census.pending += u64::from(!accepted);
            }
            (SpteKind::Quarantined(pfn), _) => census.quarantined.push((gfn, pfn.as_u64())),
            _ => (),
        }
    }
    Ok(())
}
