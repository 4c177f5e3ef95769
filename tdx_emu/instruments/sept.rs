// SPDX-License-Identifier: GPL-2.0

//! The S-EPT of a TD as it has to be: each entry well formed and agreed with the PAMT.
//!
//! There is no memory for a set of pages, so sets are compared by their number of pages
//! and by a sum of hashes of their addresses: a page that is reachable twice, or owned
//! and not reachable, changes the sums.

#![forbid(unsafe_code)]

use super::kit::Watched;
use super::violation::Wrong;
use crate::module::mem::Page;
use crate::module::numbers::lc;
use crate::module::pamt::pt;
use crate::module::td::{tdcs_word, tdr_word, MIN_TDCX, TDCX_SEPT_ROOT};
use crate::module::tree::{
    self, offset_mask, Format, Root, State, ACCEPT_COUNTER, HOST_PRIORITY, HPA, LOCK,
};
use crate::module::Platform;

/// A set of pages.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// 4K units.
    pub(crate) pages: u64,
    hash: u64,
}

impl Sums {
    pub(crate) fn add(&mut self, pa: u64, size: u8) {
        let key = (pa | u64::from(size)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let hash = (key ^ (key >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        self.hash = self.hash.wrapping_add(hash ^ (hash >> 32));
        self.pages = self.pages.wrapping_add(1 << (9 * (u32::from(size) & 3)));
    }
}

/// TDCS page 0 of a TD that has all of them.
pub(crate) fn tdcs_page<P: Platform>(m: &Watched<P>, tdr: u64) -> Option<Page<'_>> {
    let page = Page::at(&m.p, tdr)?;
    if page.get(tdr_word::NUM_TDCX) < MIN_TDCX {
        return None;
    }
    Page::at(&m.p, page.get(tdr_word::TDCX))
}

/// Root of the S-EPT of a TD that is neither too young nor being taken apart.
pub(crate) fn live_root<P: Platform>(m: &Watched<P>, tdr: u64) -> Option<Root> {
    let page = Page::at(&m.p, tdr)?;
    let tdcs = tdcs_page(m, tdr)?;
    let level = tdcs.get(tdcs_word::ROOT_LEVEL) as u8;
    if page.get(tdr_word::LIFECYCLE) != lc::KEYS_CONFIGURED || level == 0 {
        return None;
    }
    let pa = page.get(tdr_word::TDCX.wrapping_add(TDCX_SEPT_ROOT as usize));
    let format = m.format(page.get(tdr_word::HKID));
    Some(Root { pa, level, format })
}

/// One entry, with the PAMT entry of what it refers to. Returns the table below it.
pub(crate) fn check_entry<P: Platform>(
    m: &Watched<P>,
    tdr: u64,
    raw: u64,
    level: u8,
    sums: &mut Sums,
) -> Result<Option<u64>, (Wrong, u64)> {
    let raw = raw & !(LOCK | HOST_PRIORITY);
    let state = State::of(raw).ok_or((Wrong::NoState, raw))?;
    // An older module may have written the entry, before an update.
    let hkid = Page::at(&m.p, tdr).map_or(0, |tdr| tdr.get(tdr_word::HKID));
    let format = m.format(hkid);
    let (seen, raw) = (raw, format.decode(raw) & !tree::XU);
    let written = [format, Format::PLAIN].map(|f| f.encode(raw));
    if !written.contains(&seen) || !is_canonical(raw, level, state) {
        return Err((Wrong::NotCanonical, raw));
    }
    if !state.is_table() && !state.is_leaf() {
        return Ok(None);
    }
    let (pa, size, kind) = match state.is_table() {
        true if level == 0 => return Err((Wrong::TableAtBottom, raw)),
        true => (raw & HPA, 0, pt::EPT),
        false if level > 2 => return Err((Wrong::LeafTooHigh, raw)),
        false => (raw & HPA & !offset_mask(level), level, pt::REG),
    };
    let owned = m
        .pamt_entry(pa, size)
        .is_some_and(|e| e.kind() == kind && e.owner() == tdr);
    if !owned {
        return Err((Wrong::NotOwned, pa));
    }
    sums.add(pa, size);
    Ok(state.is_table().then_some(pa))
}

/// Whether an entry has the bits of its state and no others. The states of migration do
/// not occur.
fn is_canonical(raw: u64, level: u8, state: State) -> bool {
    let pa = raw & HPA & !offset_mask(level);
    // A large pending entry may hold the counter of its accept.
    let counter = match state {
        State::Pending if level > 0 => ACCEPT_COUNTER,
        // A page of 1G that was promoted keeps the counter of its first part.
        State::PendingBlocked if level > 1 => ACCEPT_COUNTER,
        _ => 0,
    };
    let want = match state {
        State::Free => tree::FREE,
        State::NlMapped => tree::table(raw & HPA),
        State::NlBlocked => tree::blocked(tree::table(raw & HPA), level, State::NlMapped),
        State::Mapped => tree::mapped_leaf(pa),
        State::Blocked => tree::blocked(tree::mapped_leaf(pa), level, State::Mapped),
        State::Pending => tree::pending_leaf(pa),
        State::PendingBlocked => tree::blocked(tree::pending_leaf(pa), level, State::Pending),
        _ => return false,
    };
    raw & !counter == want
}
