// SPDX-License-Identifier: GPL-2.0

//! The complete dumps of S-EPT and PAMT at the end of a recording and of its tear-down.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::fields::Fields;
use super::Replay;
use crate::module::pamt::pt;
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
struct Page {
    kind: u64,
    owner: u64,
    block_epoch: u64,
    lock: u64,
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pt, o, b, l) = (self.kind, self.owner, self.block_epoch, self.lock);
        write!(f, "pt {pt} owner {o:#x} bepoch {b:#x} lock {l:#x}")
    }
}

/// What has been read.
#[derive(Default)]
pub struct Dumps {
    septe: SeptDump,
    pamt: PamtDump,
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
        let entry = Page {
            kind: f.num("pt")?,
            owner: f.num("owner")?,
            block_epoch: f.num("bepoch")?,
            lock: f.num("lock")?,
        };
        f.end()?;
        if self.complete && !self.teardown {
            return Err("final_pamt between final and teardown".into());
        }
        match self.pamt.insert(key, entry) {
            None => Ok(()),
            Some(_) => Err("final_pamt twice for one entry".into()),
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
        let (base, size) = self.header.tdmr;
        for class in 0..3u8 {
            for pa in (base..base + size).step_by(1 << shift(class)) {
                let Some(e) = self.m().pamt_entry(pa, class) else {
                    return Err(format!("no PAMT entry for {pa:#x} of size {class}"));
                };
                let lock = e.head() & 0xFFFF;
                let key = (pa, class.into());
                // A host that met a holder leaves its priority, also at a page that nobody owns. Of
                // those pages only the ones in the recording count.
                const HOST_PRIORITY: u64 = 2;
                let owned = !matches!(e.kind(), pt::NDA | pt::RSVD);
                if owned || lock & !HOST_PRIORITY != 0 || want.contains_key(&key) {
                    let entry = Page {
                        kind: e.kind().into(),
                        owner: e.owner(),
                        block_epoch: e.block_epoch(),
                        lock,
                    };
                    got.insert(key, entry);
                }
            }
        }
        self.diff(what, want, got);
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
