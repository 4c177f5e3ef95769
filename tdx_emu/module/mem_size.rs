// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.PAGE.{PROMOTE, DEMOTE}: between a table of 512 mappings and one large one.

#![forbid(unsafe_code)]

use super::lock::{Busy, Mode, ShareXHp};
use super::machine::Machine;
use super::mem::{Page, WORDS};
use super::mem_page::{leaf_page, take_operands, Target};
use super::mem_sept::{check_version, no_l2_pages, tdr_and_flag};
use super::numbers::{leaf, op, op_state, st, Res};
use super::observer::Observer;
use super::pamt::{pt, PamtEntry, PamtParts};
use super::platform::{Platform, Regs};
use super::td::{state_error, Td};
use super::tree::{
    shift, table, unblocked, without_counter, EntryRef, Format, State, HOST_PRIORITY, HPA, LOCK,
};

/// The entries of a table. With `locks` those that were read are locked for the host.
struct Children<'m> {
    page: Page<'m>,
    level: u8,
    format: Format,
    locks: bool,
    locked: usize,
}

impl<'m> Children<'m> {
    fn entry(&self, i: usize) -> EntryRef<'m> {
        EntryRef::new(self.page, i, self.level, self.format)
    }

    /// The value of an entry; they are read in order.
    fn read(&mut self, i: usize) -> Result<u64, Busy> {
        if !self.locks {
            return Ok(self.entry(i).load() & !IGNORED);
        }
        let lock = self.entry(i).lock_host()?;
        let raw = lock.raw();
        lock.forget();
        self.locked = i.wrapping_add(1);
        Ok(raw)
    }
}

impl Drop for Children<'_> {
    fn drop(&mut self) {
        for i in 0..self.locked {
            self.entry(i).unlock();
        }
    }
}

/// Bits that do not count where entries are compared without being locked: A, D, host priority.
const IGNORED: u64 = (1 << 8) | (1 << 9) | HOST_PRIORITY;

/// The PAMT entries of a large page to be: its own, which is locked, and its parts'.
struct Merge<'m> {
    whole: PamtEntry<'m>,
    /// Pages with the entries of the parts that are not needed any more.
    pair: Option<[u64; 2]>,
    _lock: ShareXHp<'m>,
    parts: PamtParts<'m>,
    kind: u8,
    owner: u64,
    dynamic: bool,
}

impl Merge<'_> {
    /// The entry of the large page takes over what its parts agree on. In a static PAMT its
    /// block epoch stays as it was.
    fn commit(&self) {
        match self.dynamic {
            true => self.whole.assign_new(self.kind, self.owner),
            false => self.whole.assign(self.kind, self.owner),
        }
        if self.pair.is_some() {
            return;
        }
        for part in self.parts.iter() {
            part.release();
        }
    }
}

impl<P: Platform, O: Observer> Machine<P, O> {
    /// TDH.MEM.PAGE.PROMOTE. RCX: GPA and level, RDX: TDR; out RCX: the freed S-EPT
    /// page.
    #[inline(never)]
    pub(crate) fn mem_page_promote(&self, version: u8, r: &mut Regs) -> Res<()> {
        let (rcx, rdx) = take_operands(r);
        no_l2_pages(version, r);
        check_version(version)?;
        let td = self.begin(rdx, op::RDX, op_state::CHANGE)?;
        let t = self.target(&td, rcx, 1..=2, td.tdcs.rules.tree.page_promote, r)?;
        let (entry, state) = self.lock_entry(t.entry, r)?;
        if !state.is_table() {
            return Err(state_error(st::EPT_ENTRY_STATE_INCORRECT, &entry, r));
        }
        let sept_pa = entry.raw() & HPA;
        let sept = self.pamt_implicit(sept_pa, 0, Mode::Exclusive, op::RCX)?;
        self.check_tracked(&td, &entry, (state, entry.raw()), &sept.entry, r)?;
        let page = Page::at(&self.p, sept_pa).ok_or_else(|| self.fatal())?;
        let mut children = Children {
            page,
            level: t.at.level.saturating_sub(1),
            format: td.tdcs.format,
            locks: td.tdcs.rules.promote_locks_children,
            locked: 0,
        };
        let merged = match mergeable(&mut children, t.at.level) {
            Ok(Some(v)) => v,
            Ok(None) => return Err(state_error(st::EPT_INVALID_PROMOTE_CONDITIONS, &entry, r)),
            Err(Busy) => return Err(state_error(st::OPERAND_BUSY, &entry, r)),
        };
        self.may_go_on(leaf::MEM_PAGE_PROMOTE, &td, &t)
            .inspect_err(|_| (r.rcx, r.rdx) = (rcx, rdx))?;
        let pamt = self.check_merge(leaf_page(merged, t.at.level), t.at.level)?;

        self.before_commit(leaf::MEM_PAGE_PROMOTE, td.tdr.pa);
        pamt.commit();
        entry.replace(merged);
        // The table is gone: its entries stay as they are.
        children.locked = 0;
        let hint = sept.release();
        self.owner_changed(sept_pa, 1, false);
        if let Some(pair) = pamt.pair {
            self.return_pair(pair);
            (r.r12, r.r13) = (pair[0], pair[1]);
        }
        td.tdr.sub_children(1);
        r.rcx = sept_pa | hint;
        Ok(())
    }

    /// Whether the leaf may go on: no interrupt waits, and no host for the S-EPT.
    fn may_go_on(&self, leaf: u16, td: &Td<'_>, t: &Target<'_>) -> Res<()> {
        if self.host_interrupted(leaf, td.tdr.pa) {
            return Err(st::INTERRUPTED_RESTARTABLE);
        }
        if td.tdcs.rules.yields_to_host && t.tree.host_waits() {
            return Err(st::INTERRUPTED_BUSY);
        }
        Ok(())
    }

    /// Locks the PAMT entry of the large page, which must be free or name the pair of its
    /// parts, and checks that these have one owner and type. Those in a pair are not compared.
    fn check_merge(&self, pa: u64, size: u8) -> Res<Merge<'_>> {
        let whole = self.pamt_entry(pa, size).ok_or_else(|| self.fatal())?;
        let lock = whole.lock(Mode::Exclusive);
        let _lock = lock.map_err(|Busy| st::OPERAND_BUSY | op::RCX)?;
        let parts = self.pamt_parts(pa, size).ok_or_else(|| self.fatal())?;
        let first = parts.first();
        let (kind, owner) = (first.kind(), first.owner());
        let agree = |part: PamtEntry<'_>| part.kind() == kind && part.owner() == owner;
        let dynamic = self.is_dynamic();
        let pair = (dynamic && size == 1).then(|| whole.pair());
        if pair.is_none() && (whole.kind() != pt::NDA || !parts.iter().all(agree)) {
            return Err(self.fatal());
        }
        Ok(Merge {
            whole,
            pair,
            _lock,
            parts,
            kind,
            owner,
            dynamic,
        })
    }

    /// TDH.MEM.PAGE.DEMOTE. RCX: GPA and level, RDX: TDR and L2 flag, R8: page for the
    /// table.
    #[inline(never)]
    pub(crate) fn mem_page_demote(&self, r: &mut Regs) -> Res<()> {
        let (rcx, rdx) = take_operands(r);
        let (tdr, _) = tdr_and_flag(rdx)?;
        let td = self.begin(tdr, op::RDX, op_state::CHANGE)?;
        let t = self.target(&td, rcx, 1..=2, td.tdcs.rules.tree.page_demote, r)?;
        let (entry, state) = self.lock_entry(t.entry, r)?;
        if !state.may_demote() {
            return Err(state_error(st::EPT_ENTRY_STATE_INCORRECT, &entry, r));
        }
        let level = t.at.level;
        let large_pa = leaf_page(entry.raw(), level);
        let large = self
            .pamt_entry(large_pa, level)
            .ok_or_else(|| self.fatal())?;
        // Here too the accept counter is gone from the copy by then.
        let seen = without_counter(entry.raw(), level, state);
        self.check_tracked(&td, &entry, (state, seen), &large, r)?;
        let sept = self.lock_explicit(r.r8, 0, pt::NDA, Mode::Exclusive, op::R8)?;
        let page = Page::at(&self.p, r.r8).ok_or(st::OPERAND_ADDR_RANGE_ERROR | op::R8)?;
        // The new table is filled before the last checks: until the commit it is the host's.
        let small = unblocked(entry.raw() & !HPA, state);
        for i in 0..WORDS {
            let offset = (i as u64) << shift(level.saturating_sub(1));
            page.set(i, td.tdcs.format.encode(small | large_pa | offset));
        }
        self.may_go_on(leaf::MEM_PAGE_DEMOTE, &td, &t)
            .inspect_err(|_| (r.rcx, r.rdx) = (rcx, rdx))?;
        let whole = self.pamt_implicit(large_pa, level, Mode::Exclusive, op::RCX)?;
        let (kind, owner) = (whole.entry.kind(), whole.entry.owner());
        if self.is_dynamic() && level == 1 {
            let pair = self.claim_pair_of_demote(r)?;
            self.before_commit(leaf::MEM_PAGE_DEMOTE, td.tdr.pa);
            self.fill_pair(pair, kind, owner)?;
            whole.entry.set_pair(pair, WORDS as u64);
        } else {
            let parts = self.pamt_parts(large_pa, level);
            let parts = parts.ok_or_else(|| self.fatal())?;
            self.before_commit(leaf::MEM_PAGE_DEMOTE, td.tdr.pa);
            for part in parts.iter() {
                part.assign_new(kind, owner);
            }
            whole.entry.release();
        }
        // Unlike other new pages this one keeps its old block epoch.
        sept.assign(pt::EPT, td.tdr.pa);
        self.owner_changed(r.r8, 1, true);
        td.tdr.add_children(1);
        entry.replace(table(r.r8));
        Ok(())
    }
}

/// Compares the children: the merged entry, or `None` if they do not make one page. How far the
/// accept of a 2M child has come does not count, but that of the first one stays in the merged
/// entry. One that somebody holds is not like the others, if it could be read at all.
fn mergeable(children: &mut Children<'_>, level: u8) -> Result<Option<u64>, Busy> {
    let below = level.saturating_sub(1);
    let step = 1u64 << shift(below);
    let clean = |raw: u64| State::of(raw).map_or(raw, |s| without_counter(raw, below, s));
    let first = children.read(0)?;
    let wanted = clean(first);
    let aligned = wanted & HPA & super::tree::offset_mask(level) == 0;
    if !aligned
        || first & LOCK != 0
        || !matches!(State::of(first), Some(State::Mapped | State::Pending))
    {
        return Ok(None);
    }
    for i in 1..WORDS {
        let offset = step.wrapping_mul(i as u64);
        if clean(children.read(i)?) != wanted.wrapping_add(offset) {
            return Ok(None);
        }
    }
    Ok(Some(first))
}
