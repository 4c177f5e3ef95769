// SPDX-License-Identifier: GPL-2.0

//! Whether a page may lose its place in the S-EPT: TLB tracking.

#![forbid(unsafe_code)]

use super::machine::Machine;
use super::numbers::{op, st, Res};
use super::observer::Observer;
use super::pamt::PamtEntry;
use super::platform::{Platform, Regs};
use super::td::Td;
use super::tree::{details, EntryLock, State};

impl<P: Platform, O: Observer> Machine<P, O> {
    /// A page that is to lose its place must be blocked and shot down first, while
    /// the TD can run. `page` is the PAMT entry that carries the epoch of the block, `seen` the
    /// value of the entry that an error reports.
    pub(crate) fn check_tracked(
        &self,
        td: &Td<'_>,
        entry: &EntryLock<'_>,
        (state, seen): (State, u64),
        page: &PamtEntry<'_>,
        r: &mut Regs,
    ) -> Res<()> {
        if !state.needs_tracking() || !td.tdcs.tracking_required() {
            return Ok(());
        }
        if !state.is_blocked() {
            details(r, seen, entry.place().level);
            return Err(st::GPA_RANGE_NOT_BLOCKED | op::RCX);
        }
        if !td.tdcs.is_tracked(page.block_epoch()) {
            return Err(st::TLB_TRACKING_NOT_DONE | op::RCX);
        }
        Ok(())
    }
}
