// SPDX-License-Identifier: GPL-2.0

//! The complete dumps of S-EPT and PAMT at the end of a recording and of its tear-down.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::fields::Fields;
use super::Replay;
use crate::module::pamt::{pt, PamtEntry};
use crate::module::tree::{shift, Root, FREE, HPA, PS};

/// (address, level or size class)
type Key = (u64, u64);
type SeptDump = BTreeMap<Key, Raw>;
type PamtDump = BTreeMap<Key, Page>;

#[derive(PartialEq)]
struct Raw(u64);

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[derive(PartialEq)]
enum Page {
    Owned {
        kind: u64,
        owner: u64,
        block_epoch: u64,
        lock: u64,
    },
    /// A range with a pair.
    Pair {
        pages: [u64; 2],
        count: u64,
        lock: u64,
    },
}

impl Page {
    fn read(f: &mut Fields) -> Result<Page, String> {
        let kind = f.num("pt")?;
        Ok(match kind == u64::from(pt::PAMT) {
            true => Page::Pair {
                pages: [f.num("page0")?, f.num("page1")?],
                count: f.num("count")?,
                lock: f.num("lock")?,
            },
            false => Page::Owned {
                kind,
                owner: f.num("owner")?,
                block_epoch: f.num("bepoch")?,
                lock: f.num("lock")?,
            },
        })
    }

    fn of(e: &PamtEntry<'_>) -> Page {
        let lock = e.head() & 0xFFFF;
        match e.kind() {
            pt::PAMT => Page::Pair {
                pages: e.pair(),
                count: e.in_use(),
                lock,
            },
            kind => Page::Owned {
                kind: kind.into(),
                owner: e.owner(),
                block_epoch: e.block_epoch(),
                lock,
            },
        }
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Page::Owned {
                kind,
                owner,
                block_epoch: b,
                lock: l,
            } => write!(f, "pt {kind} owner {owner:#x} bepoch {b:#x} lock {l:#x}"),
            Page::Pair {
                pages: [first, second],
                count,
                lock: l,
            } => write!(f, "pair {first:#x} {second:#x} count {count} lock {l:#x}"),
        }
    }
}

/// What has been read.
#[derive(Default)]
pub struct Dumps {
    septe: SeptDump,
    pamt: PamtDump,
    /// Pages in pairs.
    bitmap: Option<BTreeSet<u64>>,
    /// `final` was read.
    complete: bool,
    teardown: bool,
}

impl Dumps {
    pub fn septe(&mut self, mut f: Fields) -> Result<(), String> {
        let (key, raw) = ((f.num("gpa")?, f.num("level")?), f.num("raw")?);
        f.end()?;
        if self.complete {
            return Err("final_septe after final".into());
        }
        match self.septe.insert(key, Raw(raw)) {
            None => Ok(()),
            Some(_) => Err("final_septe twice for one entry".into()),
        }
    }

    pub fn pamt(&mut self, mut f: Fields) -> Result<(), String> {
        let key = (f.num("pa")?, f.num("size")?);
        let entry = Page::read(&mut f)?;
        f.end()?;
        if self.complete && !self.teardown {
            return Err("final_pamt between final and teardown".into());
        }
        match self.pamt.insert(key, entry) {
            None => Ok(()),
            Some(_) => Err("final_pamt twice for one entry".into()),
        }
    }

    /// Follows the dump of a dynamic PAMT.
    pub fn bitmap(&mut self, mut f: Fields) -> Result<(), String> {
        let pages = f.all_nums("pages")?;
        f.end()?;
        if self.complete && !self.teardown {
            return Err("final_bitmap between final and teardown".into());
        }
        let n = pages.len();
        let pages: BTreeSet<u64> = pages.into_iter().collect();
        if pages.len() != n {
            return Err("final_bitmap has a page twice".into());
        }
        match self.bitmap.replace(pages) {
            None => Ok(()),
            Some(_) => Err("final_bitmap twice".into()),
        }
    }

    pub fn start_teardown(&mut self) -> Result<(), String> {
        if !self.complete || self.teardown {
            return Err("teardown must come once, after final".into());
        }
        self.teardown = true;
        Ok(())
    }

    /// A call may follow: not in a dump, and not between `final` and `teardown`.
    pub fn expect_call(&self) -> Result<(), String> {
        let dumping = !self.septe.is_empty() || !self.pamt.is_empty();
        match dumping || self.complete && !self.teardown {
            true => Err("a call in or after the final dump".into()),
            false => Ok(()),
        }
    }

    pub fn is_cut_short(&self) -> bool {
        !self.complete
    }
}

impl Replay<'_> {
    pub fn end_of_first_dump(&mut self) -> Result<(), String> {
        if self.dumps.complete {
            return Err("final twice".into());
        }
        self.dumps.complete = true;
        let want = std::mem::take(&mut self.dumps.septe);
        let mut got = SeptDump::new();
        if let Some(root) = self.root()? {
            self.dump_table(root, root.pa, 0, &mut got)?;
        }
        self.diff("final_septe", want, got);
        self.diff_pamt("final_pamt")
    }

    /// The end of the file ends the dump of the tear-down.
    pub fn end_of_last_dump(&mut self) -> Result<(), String> {
        match self.dumps.teardown {
            true => self.diff_pamt("teardown final_pamt"),
            false => Ok(()),
        }
    }

    fn diff_pamt(&mut self, what: &str) -> Result<(), String> {
        let want = std::mem::take(&mut self.dumps.pamt);
        let mut got = PamtDump::new();
        let dynamic = self.m().is_dynamic();
        let (base, size) = self.header.tdmr;
        for class in 0..3u8 {
            for pa in (base..base + size).step_by(1 << shift(class)) {
                let Some(e) = self.m().pamt_entry(pa, class) else {
                    if class == 0 && dynamic {
                        continue;
                    }
                    return Err(format!("no PAMT entry for {pa:#x} of size {class}"));
                };
                let lock = e.head() & 0xFFFF;
                let key = (pa, class.into());
                // A host that met a holder leaves its priority, also at a page that nobody owns. Of
                // those pages only the ones in the recording count.
                const HOST_PRIORITY: u64 = 2;
                let owned = !matches!(e.kind(), pt::NDA | pt::RSVD);
                if owned || lock & !HOST_PRIORITY != 0 || want.contains_key(&key) {
                    got.insert(key, Page::of(&e));
                }
            }
        }
        self.diff(what, want, got);
        self.diff_bitmap()
    }

    fn diff_bitmap(&mut self) -> Result<(), String> {
        let want = self.dumps.bitmap.take();
        if want.is_some() != self.m().is_dynamic() {
            return Err("final_bitmap belongs to a dynamic PAMT".into());
        }
        let Some(want) = want else { return Ok(()) };
        let (base, size) = self.header.tdmr;
        let reserved = |pa: u64| {
            let mut areas = self.header.reserved.iter();
            areas.any(|&(offset, size)| (pa - base).wrapping_sub(offset) < size)
        };
        let pages = (base..base + size).step_by(4096);
        let got: BTreeSet<u64> = pages
            .filter(|&pa| !reserved(pa) && self.m().is_pamt_page(pa))
            .collect();
        for pa in want.symmetric_difference(&got) {
            let (want, got) = (want.contains(pa), got.contains(pa));
            self.mismatch("final_bitmap", &format!("{pa:#x}"), want, got);
        }
        Ok(())
    }

    fn diff<V: PartialEq + fmt::Display>(
        &mut self,
        what: &str,
        want: BTreeMap<Key, V>,
        got: BTreeMap<Key, V>,
    ) {
        let show = |v: Option<&V>| v.map_or("nothing".to_string(), V::to_string);
        let keys: BTreeSet<Key> = want.keys().chain(got.keys()).copied().collect();
        for k in keys {
            let (w, g) = (want.get(&k), got.get(&k));
            if w != g {
                self.mismatch(what, &format!("{:#x} level {}", k.0, k.1), show(w), show(g));
            }
        }
    }

    /// A table and all below it; `root` says level and format.
    fn dump_table(&self, root: Root, pa: u64, gpa: u64, out: &mut SeptDump) -> Result<(), String> {
        let page = self.page(pa)?;
        let Root { level, format, .. } = root;
        for i in 0..512usize {
            let raw = page.get(i);
            if raw == FREE {
                continue;
            }
            let at = gpa | ((i as u64) << shift(level));
            out.insert((at, level.into()), Raw(raw));
            let pa = format.decode(raw) & HPA;
            if raw & PS == 0 && level > 0 && pa != 0 {
                let level = level - 1;
                self.dump_table(Root { level, ..root }, pa, at, out)?;
            }
        }
        Ok(())
    }
}
