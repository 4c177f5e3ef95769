// SPDX-License-Identifier: GPL-2.0

//! The leaves of the host.

use super::*;

impl Model {
    pub fn host(&mut self, lp: u32, rax: u64, input: Gpr) -> Outcome {
        let mut r = input;
        self.taken.clear();
        let result = self.leaf(lp, rax, &mut r);
        self.taken.clear();
        match result {
            Ok(Some(outcome)) => outcome,
            Ok(None) => Outcome::Host(0, r),
            Err(status) => Outcome::Host(status, r),
        }
    }

    pub(super) fn leaf(&mut self, lp: u32, rax: u64, r: &mut Gpr) -> Res<Option<Outcome>> {
        let (leaf, version) = (rax & 0xFFFF, (rax >> 16) & 0xFF);
        let versioned = matches!(leaf, 3 | 23 | 30);
        if rax >> 24 != 0 || version > 0 && !versioned {
            return Err(INVALID);
        }
        let (rcx, rdx) = (r[RCX], r[RDX]);
        if matches!(leaf, 2 | 3 | 5 | 6 | 7 | 15 | 16 | 23 | 25 | 29 | 30 | 39) {
            (r[RCX], r[RDX]) = (0, 0);
        }
        if matches!(leaf, 23 | 30) && version > 0 {
            (r[R9], r[R10], r[R11]) = (NONE, NONE, NONE);
        }
        if version > 1 {
            return Err(INVALID);
        }
        match leaf {
            0 => return self.enter(lp, rcx, r).map(Some),
            2 => self.page_add(rcx, rdx, r)?,
            3 => self.sept_add(version, rcx, rdx, r)?,
            5 => self.relocate(rcx, rdx, r)?,
            6 => self.aug(rcx, rdx, r)?,
            7 => self.block(rcx, rdx, r)?,
            15 => self.demote(rcx, rdx, r)?,
            16 => self.extend(rcx, rdx, r)?,
            17 => {
                self.begin(rcx, 1, true, &[1])?;
                self.op_state = 2;
            }
            23 => self.promote(rcx, rdx, r)?,
            24 | 28 => self.look_at_page(leaf == 28, rcx, r)?,
            25 => {
                self.begin(rdx & !1, 2, false, &[1, 2])?;
                if rdx & 1 != 0 {
                    return Err(INVALID | 2);
                }
                let (key, _) = self.target(rcx, 0..=self.root, false, r)?;
                self.details(r, key);
            }
            29 => self.remove(rcx, rdx, r)?,
            30 => self.sept_remove(rcx, rdx, r)?,
            38 => self.track(rcx)?,
            39 => self.unblock(rcx, rdx, r)?,
            41 => self.explicit(rcx & !KEY_BITS, 0, NDA, false, 1)?,
            _ => return Err(INVALID),
        }
        Ok(None)
    }

    pub(super) fn sept_add(&mut self, version: u64, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        // Also an error returns the pages, without the bit that says "not needed".
        let given = r[R8];
        for page in r.iter_mut().skip(R8).filter(|p| version > 0 && **p != NONE) {
            *page &= !(1 << 63);
        }
        if rdx & 0xFFF0_0000_0000_0FFE != 0 {
            return Err(INVALID | 2);
        }
        self.begin(rdx & !1, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 1..=self.root, false, r)?;
        let is_table = matches!(e, Table { blocked: false, .. });
        if e != Free && !is_table {
            return self.fail(ENTRY_STATE, key, r);
        }
        let pa = given & !(1 << 63);
        if given == NONE {
            if version == 0 {
                return Err(INVALID | 8);
            }
            if !is_table {
                return self.fail(ENTRY_STATE, key, r);
            }
        } else if !is_table {
            self.explicit(pa, 0, NDA, true, 8)?;
        } else if rdx & 1 == 0 {
            return self.fail(ENTRY_STATE, key, r);
        }
        if version > 0 {
            if is_table && given != NONE {
                r[R8] = pa | (1 << 63);
            }
            for (register, operand) in [(R9, 9), (R10, 10), (R11, 11)] {
                if r[register] != NONE {
                    return Err(INVALID | operand);
                }
            }
        }
        if !is_table {
            self.own(pa, 0, EPT);
            self.children += 1;
            self.set(
                key,
                Table {
                    page: pa,
                    blocked: false,
                },
            );
        }
        if version > 0 && !is_table {
            r[R8] = NONE;
        }
        Ok(())
    }

    pub(super) fn sept_remove(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 1..=self.root, true, r)?;
        let Table { page, .. } = e else {
            return self.fail(ENTRY_STATE, key, r);
        };
        self.implicit(page, 0)?;
        self.check_tracked(key, r)?;
        let (level, gpa) = key;
        let below = (level - 1, gpa)..(level - 1, gpa + span(level));
        // Lock and host's priority of a free entry go with the table.
        if self.entries.range(below.clone()).next().is_some() {
            return self.fail(NOT_FREE, key, r);
        }
        self.priority.retain(|k| !below.contains(k));
        self.set(key, Free);
        self.free(page, 0);
        self.children -= 1;
        r[RCX] = page;
        Ok(())
    }

    pub(super) fn page_add(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, true, &[1])?;
        let place = self.place(rcx, 0..=0)?;
        self.check_private(place.1)?;
        let key = self.reach(place, r)?;
        if self.get(key) != Free {
            return self.fail(ENTRY_STATE, key, r);
        }
        if r[R9] & 0xFFF != 0 || !self.source.contains(&r[R9]) {
            return Err(INVALID | 9);
        }
        self.explicit(r[R8], 0, NDA, true, 8)?;
        self.own(r[R8], 0, REG);
        self.children += 1;
        // The entry is written without its lock; a priority in it goes.
        self.priority.remove(&key);
        let page = r[R8];
        self.set(
            key,
            Leaf {
                page,
                pending: false,
                blocked: false,
                accepted: 0,
            },
        );
        Ok(())
    }

    pub(super) fn aug(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 0..=1, false, r)?;
        if e != Free {
            return self.fail(ENTRY_STATE, key, r);
        }
        self.explicit(r[R8], key.0, NDA, true, 8)?;
        let small = (0..span(key.0) / 4096).map(|i| r[R8] + i * 4096);
        if key.0 == 1 && small.into_iter().any(|pa| self.page(pa, 0).kind != NDA) {
            return Err(METADATA | 8);
        }
        self.own(r[R8], key.0, REG);
        self.children += span(key.0) / 4096;
        let page = r[R8];
        self.set(
            key,
            Leaf {
                page,
                pending: true,
                blocked: false,
                accepted: 0,
            },
        );
        Ok(())
    }

    pub(super) fn remove(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 0..=2, false, r)?;
        let Leaf { page, .. } = e else {
            return self.fail(ENTRY_STATE, key, r);
        };
        self.implicit(page, key.0)?;
        self.check_tracked(key, r)?;
        self.set(key, Free);
        self.free(page, key.0);
        self.children -= span(key.0) / 4096;
        r[RCX] = page;
        Ok(())
    }

    pub(super) fn relocate(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 0..=0, false, r)?;
        let Leaf { page, pending, .. } = e else {
            return self.fail(ENTRY_STATE, key, r);
        };
        let to = r[R8];
        if to == page {
            return Err(INVALID | 8);
        }
        self.implicit(page, 0)?;
        self.check_tracked(key, r)?;
        self.explicit(to, 0, NDA, true, 8)?;
        self.free(page, 0);
        self.own(to, 0, REG);
        self.set(
            key,
            Leaf {
                page: to,
                pending,
                blocked: false,
                accepted: 0,
            },
        );
        r[RCX] = page;
        Ok(())
    }

    pub(super) fn promote(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 1..=2, false, r)?;
        let Table { page: table, .. } = e else {
            return self.fail(ENTRY_STATE, key, r);
        };
        self.implicit(table, 0)?;
        self.check_tracked(key, r)?;
        let (level, gpa) = key;
        let mut merged = Free;
        for i in 0..512 {
            let child = (level - 1, gpa + i * span(level - 1));
            if self.held(Lock::Entry(child.1, child.0)).is_some() {
                self.priority.insert(child);
                return self.fail(BUSY, key, r);
            }
            // Locking it takes the host's priority away.
            self.priority.remove(&child);
            let e = self.get(child);
            let clean = e.cleaned(level - 1);
            let fits = match (i, clean, merged) {
                (0, Leaf { page, blocked, .. }, _) => {
                    // What the first one has of an accept stays.
                    merged = e;
                    !blocked && page & (span(level) - 1) == 0
                }
                (_, Leaf { .. }, Leaf { .. }) => {
                    let first = merged.cleaned(level - 1);
                    clean.raw() == first.raw() + i * span(level - 1)
                }
                _ => false,
            };
            if !fits {
                return self.fail(PROMOTE_CONDITIONS, key, r);
            }
        }
        if self.interrupted() {
            (r[RCX], r[RDX]) = (rcx, rdx);
            return Err(RESTARTABLE);
        }
        let Leaf { page, .. } = merged else {
            unreachable!()
        };
        if !self.lock_pamt(page, level, true) {
            return Err(BUSY | 1);
        }
        for i in 0..512 {
            self.set((level - 1, gpa + i * span(level - 1)), Free);
            self.free(page + i * span(level - 1), level - 1);
        }
        let epoch = self.page(page, level).epoch;
        self.own(page, level, REG);
        self.pages.get_mut(&(page, level)).unwrap().epoch = epoch;
        self.set(key, merged);
        self.free(table, 0);
        self.children -= 1;
        r[RCX] = table;
        Ok(())
    }

    pub(super) fn demote(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        if rdx & 0xFFF0_0000_0000_0FFE != 0 {
            return Err(INVALID | 2);
        }
        self.begin(rdx & !1, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 1..=2, false, r)?;
        let Leaf { page, pending, .. } = e else {
            return self.fail(ENTRY_STATE, key, r);
        };
        self.check_tracked(key, r)?;
        let table = r[R8];
        self.explicit(table, 0, NDA, true, 8)?;
        if self.interrupted() {
            (r[RCX], r[RDX]) = (rcx, rdx);
            return Err(RESTARTABLE);
        }
        let (level, gpa) = key;
        if !self.lock_pamt(page, level, true) {
            return Err(BUSY | 1);
        }
        for i in 0..512 {
            let offset = i * span(level - 1);
            let page = page + offset;
            self.own(page, level - 1, REG);
            let part = Leaf {
                page,
                pending,
                blocked: false,
                accepted: 0,
            };
            self.set((level - 1, gpa + offset), part);
        }
        self.free(page, level);
        // Unlike any other new page it keeps the epoch of its last block.
        let epoch = self.page(table, 0).epoch;
        self.own(table, 0, EPT);
        self.pages.get_mut(&(table, 0)).unwrap().epoch = epoch;
        self.set(
            key,
            Table {
                page: table,
                blocked: false,
            },
        );
        self.children += 1;
        Ok(())
    }

    pub(super) fn block(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 0..=self.root, true, r)?;
        if e == Free {
            return self.fail(ENTRY_STATE, key, r);
        }
        if e.is_blocked() {
            return self.fail(ALREADY_BLOCKED, key, r);
        }
        let carrier = self.carrier(key);
        self.pages.get_mut(&carrier).unwrap().epoch = self.epoch;
        self.set(key, e.cleaned(key.0).with_blocked(true));
        Ok(())
    }

    pub(super) fn unblock(&mut self, rcx: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, false, &[1, 2])?;
        let (key, e) = self.target(rcx, 0..=self.root, true, r)?;
        if !e.is_blocked() {
            return self.fail(ENTRY_STATE, key, r);
        }
        let (pa, size) = self.carrier(key);
        if self.op_state == 2 && !self.is_tracked(self.page(pa, size).epoch) {
            return Err(NOT_TRACKED | OPERAND_TREE);
        }
        self.set(key, e.with_blocked(false));
        Ok(())
    }

    pub(super) fn track(&mut self, rcx: u64) -> Res<()> {
        self.begin(rcx, 1, false, &[1, 2])?;
        if !self.can_take(Lock::Epoch, true) {
            return Err(BUSY | OPERAND_EPOCH);
        }
        if self.refs[((self.epoch + 1) & 1) as usize] != 0 {
            return Err(PREVIOUS_EPOCH);
        }
        self.epoch += 1;
        Ok(())
    }

    pub(super) fn extend(&mut self, gpa: u64, rdx: u64, r: &mut Gpr) -> Res<()> {
        self.begin(rdx, 2, true, &[1])?;
        if gpa & 255 != 0 {
            return Err(INVALID | 1);
        }
        self.check_private(gpa)?;
        let (key, _) = self.find(gpa, 0);
        let leaf = matches!(
            self.get(key),
            Leaf {
                pending: false,
                blocked: false,
                ..
            }
        );
        match leaf {
            true => Ok(()),
            false => self.fail(NOT_PRESENT, key, r),
        }
    }

    /// PHYMEM.PAGE.RECLAIM, which this TD is not ready for, and RDMD.
    pub(super) fn look_at_page(&mut self, reclaim: bool, pa: u64, r: &mut Gpr) -> Res<()> {
        *r = [0; 6];
        self.check_pa(pa, 0, 1)?;
        let size = self.walk_pamt(pa, 0, reclaim, 1)?;
        let page = self.page(pa, size);
        if reclaim && matches!(page.kind, RSVD | NDA) {
            return Err(METADATA | 1);
        }
        (r[RCX], r[RDX], r[R8]) = (page.kind.into(), page.owner, size.into());
        if !reclaim {
            if matches!(page.kind, REG | EPT) {
                r[R9] = page.epoch;
            }
            return Ok(());
        }
        if pa & (span(size) - 1) != 0 {
            return Err(INVALID | 1);
        }
        if page.kind != TDR && !self.lock_pamt(self.tdr, 0, false) {
            return Err(BUSY | OPERAND_TDR);
        }
        Err(LIFECYCLE)
    }
}
