// SPDX-License-Identifier: GPL-2.0

//! Checks of everything that a TD has: its whole S-EPT against the whole PAMT.

#![forbid(unsafe_code)]

use super::kit::Watched;
use super::sept::{check_entry, live_root, Sums};
use super::violation::{Finding, Violation, Wrong, NO_LEAF};
use crate::module::mem::{Page, WORDS};
use crate::module::pamt::{pt, PamtEntry};
use crate::module::td::tdr_word;
use crate::module::tdmr::Tdmr;
use crate::module::tree::shift;
use crate::module::{Platform, PAGE_SIZE};

/// What the PAMT gives to a TD.
#[derive(Default)]
struct Owned {
    /// Data and S-EPT pages.
    mapped: Sums,
    /// Control pages, but for the TDR.
    control: Sums,
}

/// Checks all TDs, if nobody disturbs. `None`: somebody did.
pub(crate) fn audit<P: Platform>(m: &Watched<P>) -> Option<Result<(), Violation>> {
    let (alone, ticket) = m.observer.watch.come();
    let mut bad = None;
    let found = each_owned(m, |pa, size, entry| {
        let kind = entry.kind();
        let owner = if kind == pt::TDR { pa } else { entry.owner() };
        let result = match kind {
            pt::TDR => audit_td(m, pa),
            _ => check_owner(m, pa, size, &entry),
        };
        result.inspect_err(|_| bad = Some(owner))
    });
    let undisturbed = alone && m.observer.watch.undisturbed(ticket);
    m.observer.watch.go();
    if !undisturbed {
        return None;
    }
    Some(found.map_err(|(what, at)| m.observer.violation(what, NO_LEAF, bad.unwrap_or(0), at)))
}

/// Calls `f` for each PAMT entry that gives a page to somebody.
fn each_owned<'m, P: Platform>(
    m: &'m Watched<P>,
    mut f: impl FnMut(u64, u8, PamtEntry<'m>) -> Finding,
) -> Finding {
    let dynamic = m.is_dynamic();
    for tdmr in m.sys.tdmrs() {
        for size in 0..3u8 {
            match size {
                0 if dynamic => each_owned_in_pairs(m, tdmr, &mut f)?,
                _ => each_owned_in(m, tdmr, size, &mut f)?,
            }
        }
    }
    Ok(())
}

/// The 4K entries of a dynamic PAMT.
fn each_owned_in_pairs<'m, P: Platform>(
    m: &'m Watched<P>,
    tdmr: &Tdmr,
    f: &mut impl FnMut(u64, u8, PamtEntry<'m>) -> Finding,
) -> Finding {
    let (base, end) = tdmr.initialised();
    for range in (base..end).step_by(1 << shift(1)) {
        let Some(parts) = m.pamt_parts(range, 1) else {
            continue;
        };
        let mut in_use = 0u64;
        for (i, entry) in (0..WORDS as u64).zip(parts.iter()) {
            if entry.kind() != pt::NDA {
                in_use = in_use.wrapping_add(1);
                f(range | (i << shift(0)), 0, entry)?;
            }
        }
        let node = m.pamt_entry(range, 1).ok_or((Wrong::NoMemory, range))?;
        if node.in_use() != in_use {
            return Err((Wrong::PairCount, range));
        }
    }
    Ok(())
}

fn each_owned_in<'m, P: Platform>(
    m: &'m Watched<P>,
    tdmr: &Tdmr,
    size: u8,
    f: &mut impl FnMut(u64, u8, PamtEntry<'m>) -> Finding,
) -> Finding {
    const ENTRIES: u64 = PAGE_SIZE / 16;
    let (base, end) = tdmr.initialised();
    let step = ENTRIES << shift(size);
    let mut from = base;
    while from < end {
        let at = tdmr.entry_address(from, size);
        let page = Page::at(&m.p, at).ok_or((Wrong::NoMemory, at))?;
        for i in 0..ENTRIES {
            let pa = from.wrapping_add(i << shift(size));
            let entry = PamtEntry::new(page, (i as usize) << 1);
            if pa < end && !matches!(entry.kind(), pt::NDA | pt::RSVD | pt::PAMT) {
                f(pa, size, entry)?;
            }
        }
        from = from.wrapping_add(step);
    }
    Ok(())
}

/// A page that is no TDR: its owner is one, and it is owned at this size only.
fn check_owner<P: Platform>(m: &Watched<P>, pa: u64, size: u8, entry: &PamtEntry<'_>) -> Finding {
    let owner = m.pamt_entry(entry.owner(), 0);
    if owner.map(|o| o.kind()) != Some(pt::TDR) {
        return Err((Wrong::Orphan, pa));
    }
    for larger in size.wrapping_add(1)..3 {
        let above = m.pamt_entry(pa, larger);
        // A pair has the entries of smaller pages.
        let kind = above.map_or(pt::NDA, |e| e.kind());
        if kind != pt::NDA && (larger, kind) != (1, pt::PAMT) {
            return Err((Wrong::OwnedTwice, pa));
        }
    }
    Ok(())
}

/// Everything of the TD with this TDR.
#[inline(never)]
pub(crate) fn audit_td<P: Platform>(m: &Watched<P>, tdr: u64) -> Finding {
    let mut owned = Owned::default();
    each_owned(m, |pa, size, entry| {
        let kind = entry.kind();
        if kind == pt::TDR || entry.owner() != tdr {
            return Ok(());
        }
        match kind {
            pt::REG | pt::EPT => owned.mapped.add(pa, size),
            _ => owned.control.add(pa, size),
        }
        check_owner(m, pa, size, &entry)
    })?;
    let page = Page::at(&m.p, tdr).ok_or((Wrong::NoMemory, tdr))?;
    let children = page.get(tdr_word::CHLDCNT);
    if children != owned.mapped.pages.wrapping_add(owned.control.pages) {
        return Err((Wrong::Children, children));
    }
    let Some(root) = live_root(m, tdr) else {
        return Ok(());
    };
    let mut reachable = Sums::default();
    audit_table(m, tdr, root.pa, root.level, &mut reachable)?;
    if reachable != owned.mapped {
        return Err((Wrong::Reachable, reachable.pages));
    }
    Ok(())
}

/// A table and all below it.
fn audit_table<P: Platform>(
    m: &Watched<P>,
    tdr: u64,
    pa: u64,
    level: u8,
    sums: &mut Sums,
) -> Finding {
    let table = Page::at(&m.p, pa).ok_or((Wrong::NoMemory, pa))?;
    for i in 0..WORDS {
        if let Some(child) = check_entry(m, tdr, table.get(i), level, sums)? {
            audit_table(m, tdr, child, level.saturating_sub(1), sums)?;
        }
    }
    Ok(())
}
