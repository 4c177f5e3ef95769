// SPDX-License-Identifier: GPL-2.0

//! TDG.MEM.PAGE.ACCEPT.

#![forbid(unsafe_code)]

use super::entered::{Entered, Outcome};
use super::machine::Machine;
use super::mem::Page;
use super::numbers::{exit, guest_leaf, op, st, Res, GUEST};
use super::observer::{Event, Observer};
use super::platform::{Platform, Regs};
use super::td::GpaLevel;
use super::tree::{leaf_mapped, State, Walk, ACCEPT_COUNTER, ACCEPT_SHIFT, HPA, RWX};

impl Entered<'_> {
    /// TDG.MEM.PAGE.ACCEPT. RCX: GPA and level.
    pub(crate) fn page_accept<P: Platform, O: Observer>(
        &mut self,
        m: &Machine<P, O>,
    ) -> Res<Outcome> {
        let at = GpaLevel::parse(self.regs.gpr[1], 0..=1)?.private(&self.tdcs)?;
        let walk = self
            .tdcs
            .root()
            .walk(&m.p, at.gpa, at.level)
            .ok_or_else(|| m.fatal())?;
        let state = State::of(walk.raw).ok_or_else(|| m.fatal())?;
        if !walk.hit {
            if state.is_accessible() {
                return Ok(Outcome::Done(
                    st::PAGE_ALREADY_ACCEPTED | u64::from(walk.entry.level),
                ));
            }
            return Ok(accept_exit(at, &walk, state));
        }
        let lock = walk.entry.lock_guest().map_err(|status| status | op::RCX)?;
        let raw = lock.raw();
        let state = State::of(raw).ok_or_else(|| m.fatal())?;
        let level = u64::from(at.level);
        if state.is_table() {
            return Err(st::PAGE_SIZE_MISMATCH | level);
        }
        if state.is_accessible() {
            return Ok(Outcome::Done(st::PAGE_ALREADY_ACCEPTED | level));
        }
        if !state.is_acceptable() {
            return Ok(accept_exit(at, &Walk { raw, ..walk }, state));
        }
        m.before_commit(ACCEPT, self.vcpu.tdr);
        if at.level == 0 {
            clear(m, raw & HPA)?;
        } else if let Some(done) = self.clear_large(m, raw)? {
            lock.set(raw & !ACCEPT_COUNTER | (done << ACCEPT_SHIFT));
            return Ok(Outcome::Again);
        }
        m.observer.happened(Event::GuestAccept);
        lock.set(leaf_mapped(raw, at.level));
        Ok(Outcome::Done(st::SUCCESS))
    }

    /// Zeroes what is left of a 2M page. `Some(n)`: an interrupt waits after n pages.
    fn clear_large<P: Platform, O: Observer>(
        &self,
        m: &Machine<P, O>,
        raw: u64,
    ) -> Res<Option<u64>> {
        let first = (raw & ACCEPT_COUNTER) >> ACCEPT_SHIFT;
        let base = raw & HPA & !ACCEPT_COUNTER;
        for i in first..512 {
            clear(m, base | (i << 12))?;
            if i < 511 && m.guest_interrupted(ACCEPT, self.vcpu.tdr) {
                return Ok(Some(i.wrapping_add(1)));
            }
        }
        Ok(None)
    }
}

/// Its number where host leaves are named as well.
const ACCEPT: u16 = GUEST | guest_leaf::MEM_PAGE_ACCEPT as u16;

fn clear<P: Platform, O: Observer>(m: &Machine<P, O>, pa: u64) -> Res<()> {
    let page = Page::at(&m.p, pa).ok_or_else(|| m.fatal())?;
    if !m.p.clear_page(pa) {
        page.fill(0);
    }
    Ok(())
}

/// Extended exit qualification, type in bits 3:0.
const EXT_ACCEPT: u64 = 1;

/// The exit by which ACCEPT asks the host for a page.
fn accept_exit(at: GpaLevel, walk: &Walk<'_>, state: State) -> Outcome {
    let info = u64::from(at.level)
        | (u64::from(walk.entry.level) << 3)
        | (state.code() << 6)
        | (u64::from(state.is_leaf()) << 14);
    let out = Regs {
        rcx: 2 | ((walk.raw & RWX) << 3),
        rdx: EXT_ACCEPT | (info << 32),
        r8: at.gpa,
        ..Regs::default()
    };
    Outcome::Exit(exit::EPT_VIOLATION, out)
}
