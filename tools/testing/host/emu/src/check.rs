// SPDX-License-Identifier: GPL-2.0

//! Invariants of a TD at rest: S-EPT and PAMT agree, no page has two owners, CHLDCNT
//! counts what is reachable, no lock is left held.

use std::collections::BTreeSet;

use crate::host::Host;
use crate::instruments::kit::Watched;
use crate::instruments::Instrumented;
use crate::module::mem::Page;
use crate::module::pamt::pt;
use crate::module::td::{tdcs_word, tdr_word};
use crate::module::tree::{shift, Format, State, FREE, HOST_PRIORITY, HPA, LOCK};
use crate::module::GuestRun;

/// Low 16 bits of a word with a lock, without host priority.
const HELD: u64 = 0xFFFD;

/// What hangs below a TD.
#[derive(Default, Debug)]
pub struct Census {
    pub tables: u64,
    pub leaves: u64,
    /// 4K pages that leaves map.
    pub pages: u64,
    pub host_priority: u64,
}

struct Checker<'a> {
    m: &'a Watched<Host>,
    tdr: u64,
    format: Format,
    seen: BTreeSet<u64>,
    census: Census,
}

/// Checks a TD that nobody is using. `control` is the number of its TDCS and TDVPS
/// pages.
pub fn check_td<G: GuestRun<Host>>(
    module: &Instrumented<Host, G>,
    tdr: u64,
    control: u64,
) -> Result<Census, String> {
    let m = &module.machine();
    let page = |pa| Page::at(&m.p, pa).ok_or(format!("no memory at {pa:#x}"));
    let t = page(tdr)?;
    let mut c = Checker {
        m,
        tdr,
        format: m.format(t.get(tdr_word::HKID)),
        seen: BTreeSet::new(),
        census: Census::default(),
    };
    let tdcs = page(t.get(tdr_word::TDCX))?;
    c.table(
        t.get(tdr_word::TDCX + 3),
        tdcs.get(tdcs_word::ROOT_LEVEL) as u8,
    )?;
    let children = t.get(tdr_word::CHLDCNT);
    let reachable = control + c.census.tables + c.census.pages;
    if children != reachable {
        return Err(format!("CHLDCNT {children}, reachable {reachable}"));
    }
    for w in [
        tdcs_word::OP_STATE_LOCK,
        tdcs_word::SEPT_LOCK,
        tdcs_word::EPOCH_LOCK,
    ] {
        if tdcs.get(w) & !2 != 0 {
            return Err(format!("lock in TDCS word {w} is {:#x}", tdcs.get(w)));
        }
    }
    for w in [tdcs_word::REFCOUNT, tdcs_word::REFCOUNT + 1] {
        if tdcs.get(w) != 0 {
            return Err(format!(
                "reference count in TDCS word {w} is {}",
                tdcs.get(w)
            ));
        }
    }
    Ok(c.census)
}

/// Checks that no PAMT entry of `[from, to)` is locked.
pub fn check_unlocked<G: GuestRun<Host>>(
    module: &Instrumented<Host, G>,
    from: u64,
    to: u64,
) -> Result<(), String> {
    let m = &module.machine();
    for size in 0..3u8 {
        for pa in (from..to).step_by(1 << shift(size)) {
            let e = m
                .pamt_entry(pa, size)
                .ok_or(format!("no PAMT entry for {pa:#x}"))?;
            if e.head() & HELD != 0 {
                return Err(format!(
                    "PAMT entry {pa:#x}/{size} is locked: {:#x}",
                    e.head()
                ));
            }
        }
    }
    Ok(())
}

impl Checker<'_> {
    fn table(&mut self, pa: u64, level: u8) -> Result<(), String> {
        let page = Page::at(&self.m.p, pa).ok_or(format!("no memory at {pa:#x}"))?;
        for i in 0..512usize {
            let raw = page.get(i);
            if raw & LOCK != 0 {
                return Err(format!("entry {i} of table {pa:#x} is locked: {raw:#x}"));
            }
            self.census.host_priority += u64::from(raw & HOST_PRIORITY != 0);
            let raw = raw & !HOST_PRIORITY;
            let raw = self.format.decode(raw);
            let state = State::of(raw).ok_or(format!("entry {raw:#x} has no state"))?;
            if state == State::Free {
                if raw != FREE {
                    return Err(format!("free entry is {raw:#x}"));
                }
            } else if state.is_table() {
                self.owned(raw & HPA, 0, pt::EPT)?;
                self.census.tables += 1;
                self.table(raw & HPA, level - 1)?;
            } else {
                self.owned(raw & HPA & !((1 << shift(level)) - 1), level, pt::REG)?;
                self.census.leaves += 1;
                self.census.pages += 1 << (9 * u32::from(level));
            }
        }
        Ok(())
    }

    fn owned(&mut self, pa: u64, size: u8, kind: u8) -> Result<(), String> {
        if !self.seen.insert(pa) {
            return Err(format!("page {pa:#x} is reachable twice"));
        }
        let e = self
            .m
            .pamt_entry(pa, size)
            .ok_or(format!("no PAMT entry for {pa:#x}"))?;
        if e.kind() != kind || e.owner() != self.tdr {
            return Err(format!(
                "page {pa:#x}: type {} owner {:#x}",
                e.kind(),
                e.owner()
            ));
        }
        Ok(())
    }
}
