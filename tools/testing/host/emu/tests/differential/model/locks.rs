// SPDX-License-Identifier: GPL-2.0

//! Who holds what, and whether a call gets the lock that it wants.

use super::*;

impl Model {
    pub(super) fn held(&self, lock: Lock) -> Option<bool> {
        self.hold.filter(|h| h.0 == lock).map(|h| h.1)
    }

    /// Whether a lock can be had beside the one that is held.
    pub(super) fn can_take(&self, lock: Lock, exclusive: bool) -> bool {
        !self.held(lock).is_some_and(|ex| ex || exclusive)
    }

    pub(super) fn is_inside(&self) -> bool {
        self.vcpus.iter().any(|v| v.inside.is_some())
    }

    /// Readers of a PAMT entry, and whether there is a writer.
    pub(super) fn pamt_users(&self, pa: u64, size: u8) -> (usize, bool) {
        let at = pa & !(span(size) - 1);
        let (mut readers, mut writer) = (0, false);
        let mut add = |exclusive: bool| match exclusive {
            true => writer = true,
            false => readers += 1,
        };
        if let Some(ex) = self.held(Lock::Pamt(at, size)) {
            add(ex);
        }
        for (_, _, ex) in self.taken.iter().filter(|t| (t.0, t.1) == (at, size)) {
            add(*ex);
        }
        for v in self.vcpus.iter().filter(|v| v.inside.is_some()) {
            if v.tdvpr & !(span(size) - 1) == at {
                add(false);
            }
            if size == 0 && at == self.tdr {
                add(false);
            }
        }
        (readers, writer)
    }

    pub(super) fn lock_pamt(&mut self, pa: u64, size: u8, exclusive: bool) -> bool {
        let (readers, writer) = self.pamt_users(pa, size);
        let free = !writer && (!exclusive || readers == 0);
        if free {
            self.taken.push((pa & !(span(size) - 1), size, exclusive));
        }
        free
    }

    /// Whether a test can take a lock now.
    pub fn can_hold(&self, lock: Lock, exclusive: bool) -> bool {
        match lock {
            Lock::Tree | Lock::Epoch | Lock::OpState => true,
            Lock::Pamt(pa, size) => {
                let (readers, writer) = self.pamt_users(pa, size);
                !writer && (!exclusive || readers == 0)
            }
            Lock::Entry(gpa, level) => {
                let (key, hit) = self.find(gpa, level);
                hit && !self.priority.contains(&key)
            }
        }
    }

    /// Locks the entry that owns a page, at `target` size or larger: its size.
    pub(super) fn walk_pamt(&mut self, pa: u64, target: u8, exclusive: bool, op: u64) -> Res<u8> {
        for size in [2, 1] {
            if !self.lock_pamt(pa, size, false) {
                return Err(BUSY | op);
            }
            if size == target || self.page(pa, size).kind == REG {
                // The only reader may become the writer.
                if exclusive && self.pamt_users(pa, size) != (1, false) {
                    return Err(BUSY | op);
                }
                return Ok(size);
            }
        }
        match self.lock_pamt(pa, 0, exclusive) {
            true => Ok(0),
            false => Err(BUSY | op),
        }
    }

    pub(super) fn check_pa(&self, pa: u64, size: u8, op: u64) -> Res<()> {
        if pa & (span(size) - 1) != 0 || pa & KEY_BITS != 0 || pa >> 52 != 0 {
            return Err(INVALID | op);
        }
        match self.tdmr.contains(&pa) {
            true => Ok(()),
            false => Err(RANGE | op),
        }
    }

    /// A page that a register names, which must be of a type.
    pub(super) fn explicit(
        &mut self,
        pa: u64,
        size: u8,
        kind: u8,
        exclusive: bool,
        op: u64,
    ) -> Res<()> {
        self.check_pa(pa, size, op)?;
        let found = self.walk_pamt(pa, size, exclusive, op)?;
        match found == size && self.page(pa, size).kind == kind {
            true => Ok(()),
            false => Err(METADATA | op),
        }
    }

    /// A page that the S-EPT names.
    pub(super) fn implicit(&mut self, pa: u64, size: u8) -> Res<()> {
        assert_ne!(self.page(pa, size).kind, NDA, "{pa:#x}/{size}");
        match self.lock_pamt(pa, size, true) {
            true => Ok(()),
            false => Err(BUSY | 1),
        }
    }
}
