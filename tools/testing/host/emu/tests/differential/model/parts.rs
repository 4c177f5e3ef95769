// SPDX-License-Identifier: GPL-2.0

//! What several leaves do.

use super::*;

impl Model {
    pub(super) fn begin(&mut self, tdr: u64, op: u64, exclusive: bool, states: &[u64]) -> Res<()> {
        self.explicit(tdr, 0, TDR, exclusive, op)?;
        if !exclusive && !self.can_take(Lock::OpState, false) {
            return Err(BUSY | OPERAND_OP_STATE);
        }
        match states.contains(&self.op_state) {
            true => Ok(()),
            false => Err(OP_STATE),
        }
    }

    pub(super) fn place(&self, rcx: u64, levels: std::ops::RangeInclusive<u8>) -> Res<Key> {
        let (level, gpa) = ((rcx & 7) as u8, rcx & !7);
        let reserved = rcx & 0xFFF0_0000_0000_0FF8 != 0;
        if reserved || !levels.contains(&level) || gpa & (span(level) - 1) != 0 {
            return Err(INVALID | 1);
        }
        Ok((level, gpa))
    }

    pub(super) fn check_private(&self, gpa: u64) -> Res<()> {
        match gpa >> self.shared_bit {
            0 => Ok(()),
            _ => Err(INVALID | 1),
        }
    }

    /// Where a walk to `level` ends, and whether that is the level.
    pub fn find(&self, gpa: u64, level: u8) -> (Key, bool) {
        let mut at = self.root;
        loop {
            let key = (at, gpa & !(span(at) - 1));
            let on = matches!(self.get(key), Table { blocked: false, .. });
            if at <= level || !on || at == 0 {
                return (key, at == level);
            }
            at -= 1;
        }
    }

    /// RCX and RDX that describe an entry.
    pub(super) fn details(&self, r: &mut Gpr, key: Key) {
        self.describe(r, key.0, self.get(key));
    }

    fn describe(&self, r: &mut Gpr, level: u8, e: Entry) {
        r[RCX] = match e {
            Free => 1 << 63,
            Table { .. } => e.rwx(),
            Leaf { .. } => e.raw() & 0x800F_FFFF_FFFF_F0FF,
        };
        r[RDX] = u64::from(level) | (e.code() << 8);
    }

    pub(super) fn fail<T>(&self, status: u64, key: Key, r: &mut Gpr) -> Res<T> {
        self.details(r, key);
        Err(status | 1)
    }

    pub(super) fn reach(&self, (level, gpa): Key, r: &mut Gpr) -> Res<Key> {
        match self.find(gpa, level) {
            (key, true) => Ok(key),
            (key, false) => self.fail(WALK, key, r),
        }
    }

    pub(super) fn lock_entry(&mut self, key: Key, r: &mut Gpr) -> Res<()> {
        if self.held(Lock::Entry(key.1, key.0)).is_some() {
            self.priority.insert(key);
            return self.fail(BUSY, key, r);
        }
        self.priority.remove(&key);
        Ok(())
    }

    /// Operand, tree lock, walk and entry lock.
    pub(super) fn target(
        &mut self,
        rcx: u64,
        levels: std::ops::RangeInclusive<u8>,
        exclusive: bool,
        r: &mut Gpr,
    ) -> Res<(Key, Entry)> {
        let place = self.place(rcx, levels)?;
        self.check_private(place.1)?;
        if !self.can_take(Lock::Tree, exclusive) {
            return Err(BUSY | OPERAND_TREE);
        }
        let key = self.reach(place, r)?;
        self.lock_entry(key, r)?;
        Ok((key, self.get(key)))
    }

    pub(super) fn is_tracked(&self, blocked_in: u64) -> bool {
        match self.epoch.checked_sub(blocked_in) {
            None | Some(0) => false,
            Some(1) => self.refs[(blocked_in & 1) as usize] == 0,
            Some(_) => true,
        }
    }

    /// The page whose PAMT entry carries the epoch of the last block.
    pub(super) fn carrier(&self, key: Key) -> (u64, u8) {
        match self.get(key) {
            Free => panic!("nothing to block at {key:x?}"),
            Table { page, .. } => (page, 0),
            Leaf { page, .. } => (page, key.0),
        }
    }

    pub(super) fn check_tracked(&self, key: Key, r: &mut Gpr) -> Res<()> {
        if self.op_state != 2 {
            return Ok(());
        }
        if !self.get(key).is_blocked() {
            // The leaf has put the counter of an accept aside by then.
            self.describe(r, key.0, self.get(key).cleaned(key.0));
            return Err(NOT_BLOCKED | 1);
        }
        let (pa, size) = self.carrier(key);
        match self.is_tracked(self.page(pa, size).epoch) {
            true => Ok(()),
            false => Err(NOT_TRACKED | 1),
        }
    }

    pub(super) fn interrupted(&self) -> bool {
        self.interrupt_after == Some(0)
    }
}
