// SPDX-License-Identifier: GPL-2.0

//! TDH.VP.ENTER, and what guests do.

use super::*;

impl Model {
    pub(super) fn enter(&mut self, lp: u32, rcx: u64, r: &mut Gpr) -> Res<Outcome> {
        if rcx & !0x003F_FFFF_FFFF_F000 != 0 {
            return Err(INVALID | 1);
        }
        let pa = rcx & 0x000F_FFFF_FFFF_F000;
        self.explicit(pa, 0, TDVPR, false, 1)?;
        if !self.lock_pamt(self.tdr, 0, false) {
            return Err(BUSY | OPERAND_TDR);
        }
        if !self.can_take(Lock::OpState, false) {
            return Err(BUSY | OPERAND_OP_STATE);
        }
        if self.op_state != 2 {
            return Err(OP_STATE);
        }
        let i = self
            .vcpus
            .iter()
            .position(|v| v.tdvpr == pa)
            .expect("a vCPU");
        if self.vcpus[i].lp != lp {
            return Err(0x8000_0701_0000_0000);
        }
        if rcx >> 52 != 0 {
            return Err(INVALID | 1);
        }
        if !self.can_take(Lock::Epoch, false) {
            return Err(BUSY | OPERAND_EPOCH);
        }
        let v = &mut self.vcpus[i];
        v.sampled = v.rip;
        if !v.suspects.is_empty() {
            if self.held(Lock::Tree).is_some() {
                return Err(BUSY | OPERAND_TREE);
            }
            let absent = |gpa: &&u64| {
                let e = self.get(self.find(**gpa, 0).0);
                !matches!(e, Leaf { .. }) || e.rwx() == 0
            };
            if let Some(&gpa) = self.vcpus[i].suspects.iter().find(absent) {
                *r = [2, 0, gpa, 0, 0, 0];
                return Ok(Outcome::Host(48, *r));
            }
        }
        self.refs[(self.epoch & 1) as usize] += 1;
        self.vcpus[i].inside = Some(self.epoch);
        Ok(Outcome::Entered)
    }

    pub(super) fn progress(&mut self, i: usize, rip: u64) {
        let v = &mut self.vcpus[i];
        if rip != v.sampled {
            v.faults = 0;
            v.suspects.clear();
        }
    }

    pub(super) fn leave(&mut self, i: usize, rip: u64, rax: u64, out: Gpr) -> Outcome {
        let v = &mut self.vcpus[i];
        v.rip = rip;
        let epoch = v.inside.take().expect("a guest that runs");
        self.refs[(epoch & 1) as usize] -= 1;
        Outcome::Host(rax, out)
    }

    pub(super) fn resume(&self, i: usize, rax: u64) -> Outcome {
        Outcome::Guest(rax, self.vcpus[i].ve)
    }

    pub fn interrupt(&mut self, i: usize, rip: u64) -> Outcome {
        self.progress(i, rip);
        self.leave(i, rip, 1, [0, 0, 0, 0x8000_0020, 0, 0])
    }

    pub fn ve_info(&mut self, i: usize, rip: u64) -> Outcome {
        self.progress(i, rip);
        let v = &mut self.vcpus[i];
        v.yields_since = 0;
        let status = if v.ve { 0 } else { NO_VE };
        v.ve = false;
        self.resume(i, status)
    }

    pub fn access(&mut self, i: usize, rip: u64, gpa: u64, how: u64) -> Outcome {
        let (key, _) = self.find(gpa, 0);
        let e = self.get(key);
        let allowed = e.rwx();
        if let (Leaf { page, .. }, 7) = (e, allowed) {
            return Outcome::Reached(page | gpa & (span(key.0) - 1));
        }
        self.progress(i, rip);
        let pending = matches!(
            e,
            Leaf {
                pending: true,
                blocked: false,
                ..
            }
        );
        if pending && !self.ve_disabled {
            self.vcpus[i].ve = true;
            return self.resume(i, 0);
        }
        let page = gpa & !0xFFF;
        let v = &mut self.vcpus[i];
        if v.faults < 6 {
            v.faults += 1;
        } else if !v.suspects.contains(&page) && v.suspects.len() < 32 {
            v.suspects.push(page);
        }
        let ext = if pending { 6 } else { 0 };
        self.leave(i, rip, 48, [how | (allowed << 3), ext, page, 0, 0, 0])
    }

    pub fn accept(&mut self, i: usize, rip: u64, rcx: u64) -> Outcome {
        self.progress(i, rip);
        let done = |m: &mut Model, status: u64| {
            m.vcpus[i].yields_since = 0;
            m.resume(i, status)
        };
        let place = self.place(rcx, 0..=1);
        let Ok((level, gpa)) = place.and_then(|p| self.check_private(p.1).map(|()| p)) else {
            return done(self, INVALID | 1);
        };
        let (key, hit) = self.find(gpa, level);
        let e = self.get(key);
        let exit = |m: &mut Model| {
            let leaf = u64::from(matches!(e, Leaf { .. }));
            let info = u64::from(level) | (u64::from(key.0) << 3) | (e.code() << 6) | (leaf << 14);
            let out = [2 | (e.rwx() << 3), 1 | (info << 32), gpa, 0, 0, 0];
            m.leave(i, rip, 48, out)
        };
        let accepted_at = |level: u8| ALREADY_ACCEPTED | u64::from(level);
        let mapped = matches!(e, Leaf { .. }) && e.rwx() != 0;
        if !hit {
            return match mapped {
                true => done(self, accepted_at(key.0)),
                false => exit(self),
            };
        }
        if self.held(Lock::Entry(gpa, level)).is_some() {
            return done(self, BUSY | 1);
        }
        if self.priority.contains(&key) {
            return self.yielded(i, rip);
        }
        match e {
            Table { .. } => done(self, SIZE_MISMATCH | u64::from(level)),
            _ if mapped => done(self, accepted_at(level)),
            Leaf {
                page,
                pending: true,
                blocked: false,
                accepted,
            } => {
                // Only between the 4K parts of a large page does it look for interrupts.
                let stop = self
                    .interrupt_after
                    .map(|polls| accepted + u64::from(polls));
                let pending = level == 1 && stop.is_some_and(|at| at < 511);
                let accepted = if pending { stop.unwrap_or(0) + 1 } else { 0 };
                self.set(
                    key,
                    Leaf {
                        page,
                        pending,
                        blocked: false,
                        accepted,
                    },
                );
                match pending {
                    // The TDCALL runs again: RAX is still its leaf.
                    true => self.resume(i, 6),
                    false => done(self, 0),
                }
            }
            _ => exit(self),
        }
    }

    pub(super) fn yielded(&mut self, i: usize, rip: u64) -> Outcome {
        let v = &mut self.vcpus[i];
        if v.yields_since == 0 {
            v.yields_since = self.tsc;
        } else if self.tsc - v.yields_since >= TIMEOUT {
            v.yields_since = 0;
            return self.leave(i, rip + 4, PRIORITY_TIMEOUT, [0; 6]);
        }
        self.resume(i, BUSY | 1)
    }
}
