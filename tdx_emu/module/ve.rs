// SPDX-License-Identifier: GPL-2.0

//! Virtualization exceptions: what one reports, and who may be told when.

#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::entered::{Entered, Next, DOUBLE_FAULT};
use super::machine::Machine;
use super::numbers::{exit, st, Res};
use super::observer::{Event, Observer};
use super::platform::{Inject, Platform};
use super::td::tdcs_word;
use super::vp::word;

/// Words of the #VE information page. The first four are the architecture's.
mod area {
    pub(super) const REASON: usize = 0;
    pub(super) const QUALIFICATION: usize = 1;
    pub(super) const GLA: usize = 2;
    pub(super) const GPA: usize = 3;
    /// Instruction length and information.
    pub(super) const INSTRUCTION: usize = 8;
    pub(super) const VALID: u64 = 0xFFFF_FFFF << 32;
}

/// What a #VE reports.
#[derive(Default)]
pub(crate) struct VeInfo {
    pub(crate) reason: u32,
    pub(crate) qualification: u64,
    pub(crate) gla: u64,
    pub(crate) gpa: u64,
    pub(crate) instruction: u64,
}

impl Entered<'_> {
    /// Injects #VE, or #DF if the guest has not read the information of the last.
    pub(crate) fn inject_ve<P: Platform, O: Observer>(
        &mut self,
        m: &Machine<P, O>,
        info: VeInfo,
    ) -> Next {
        let Some(page) = m.ve_info_page(&self.tdvps) else {
            return Next::Dead(m.fatal());
        };
        if page.get(area::REASON) & area::VALID != 0 {
            return Next::Inject(DOUBLE_FAULT);
        }
        page.set(area::QUALIFICATION, info.qualification);
        page.set(area::GLA, info.gla);
        page.set(area::GPA, info.gpa);
        page.set(area::INSTRUCTION, info.instruction);
        page.set(area::REASON, area::VALID | u64::from(info.reason));
        m.observer.happened(Event::GuestVe);
        Next::Inject(Inject::Ve)
    }

    /// Before an entry that zero-step mitigation had doubts about: tells the guest by a
    /// #VE, if it wants to know and has read the information of the last one.
    pub(crate) fn notify_of_steps<P: Platform, O: Observer>(&mut self, m: &Machine<P, O>) {
        const ON_EPT_FAULTS: u64 = 1;
        let v = &self.tdvps;
        let wanted = self.tdcs.get(tdcs_word::NOTIFY_ENABLES) & ON_EPT_FAULTS != 0;
        if !wanted || self.ve_outstanding(m) || v.get(word::FAULTED) == 0 {
            return;
        }
        let info = VeInfo {
            reason: exit::EPT_VIOLATION as u32,
            qualification: v.get(word::FAULT_QUALIFICATION),
            gla: v.get(word::FAULT_GLA),
            gpa: v.get(word::FAULT_GPA),
            instruction: 0,
        };
        if let Next::Inject(event) = self.inject_ve(m, info) {
            self.entry.inject = event;
        }
    }

    /// Whether the last #VE's information waits to be read.
    pub(crate) fn ve_outstanding<P: Platform, O: Observer>(&self, m: &Machine<P, O>) -> bool {
        m.ve_info_page(&self.tdvps)
            .is_none_or(|page| page.get(area::REASON) & area::VALID != 0)
    }

    /// Injects an NMI that the host asked for. It waits behind another event, and until
    /// the guest has read the information of a #VE: the NMI handler might cause the next.
    pub(crate) fn take_nmi<P: Platform, O: Observer>(&mut self, m: &Machine<P, O>) {
        let free = self.entry.inject == Inject::None && !self.ve_outstanding(m);
        let nmi = self.tdvps.word(word::PEND_NMI);
        if free && nmi.swap(0, Ordering::Relaxed) != 0 {
            self.entry.inject = Inject::Nmi;
        }
    }

    /// TDG.VP.VEINFO.GET. Returns the status.
    pub(crate) fn veinfo_get<P: Platform, O: Observer>(&mut self, m: &Machine<P, O>) -> Res<u64> {
        let page = m.ve_info_page(&self.tdvps).ok_or_else(|| m.fatal())?;
        let reason = page.get(area::REASON);
        if reason & area::VALID == 0 {
            return Err(st::NO_VALID_VE_INFO);
        }
        let g = &mut self.regs.gpr;
        g[1] = reason & !area::VALID;
        g[2] = page.get(area::QUALIFICATION);
        g[8] = page.get(area::GLA);
        g[9] = page.get(area::GPA);
        g[10] = page.get(area::INSTRUCTION);
        page.set(area::INSTRUCTION, 0);
        page.set(area::REASON, 0);
        Ok(st::SUCCESS)
    }
}
