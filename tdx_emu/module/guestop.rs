// SPDX-License-Identifier: GPL-2.0

//! What the module does when a guest stops: TDCALL leaves, #VE, EPT violations.

use super::abi::{exit, guest_leaf, op, st, Res, GUEST};
use super::mem::Page;
use super::metadata;
use super::mng::CONFIG_NO_RBP_MOD;
use super::platform::{GuestExit, Inject, Platform, Regs, PAGE_SIZE};
use super::stats::Count;
use super::sys::Machine;
use super::td::{tdcs_word, GpaLevel};
use super::tree::{leaf_mapped, State, Walk, ACCEPT_COUNTER, ACCEPT_SHIFT, HPA, RWX};
use super::vcpu::{host_reg, masked, Entered};
use super::vp::{word, VMCALL_PENDING};

/// What follows an exit.
pub(crate) enum Next {
    Resume,
    Inject(Inject),
    /// To the host, with RAX and the other registers.
    Exit(u64, Regs),
    /// To the host with RAX; the vCPU will never run again.
    Dead(u64),
}

/// Bytes of TDCALL.
const TDCALL_LEN: u64 = 4;
/// Extended exit qualification: type in bits 3:0.
const EXT_ACCEPT: u64 = 1;
const EXT_PENDING: u64 = 6;
/// The host sees bits of the exit qualification other than the linear-address ones.
const QUALIFICATION: u64 = !0x1F80;

pub(crate) const GP: Inject = Inject::Exception(13, Some(0));
pub(crate) const UD: Inject = Inject::Exception(6, None);
const DOUBLE_FAULT: Inject = Inject::Exception(8, Some(0));

/// Bits of TDG.VP.CPUIDVE.SET.
pub(crate) const CPUID_VE_KERNEL: u64 = 1;
pub(crate) const CPUID_VE_USER: u64 = 2;

/// Words of the #VE information page. The first four are the architecture's.
mod ve {
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

/// End of a TDCALL.
enum Call {
    /// Back to the guest with RAX.
    Done(u64),
    /// Back to the guest with RAX and RIP as they are: the instruction runs again.
    Again,
    Exit(u64, Regs),
}

impl Entered<'_> {
    pub(crate) fn decide<P: Platform>(&mut self, m: &Machine<P>, why: GuestExit) -> Next {
        let plain = |rax: u64, r9: u32| {
            Next::Exit(
                rax,
                Regs {
                    r9: u64::from(r9),
                    ..Regs::default()
                },
            )
        };
        match why {
            GuestExit::EptViolation {
                gpa,
                gla,
                qualification,
            } => self.ept_violation(m, gpa, gla, qualification),
            GuestExit::EptMisconfig { gpa } => {
                m.fatal();
                Next::Exit(
                    exit::EPT_MISCONFIG,
                    Regs {
                        r8: gpa,
                        ..Regs::default()
                    },
                )
            }
            GuestExit::Tdcall { user: true } => Next::Inject(GP),
            GuestExit::Tdcall { user: false } => self.tdcall(m),
            GuestExit::Instruction {
                reason,
                qualification,
                len,
                info,
            } => self.instruction(m, reason, qualification, len, info),
            GuestExit::Interrupt { info: 0 } | GuestExit::Preempted => plain(exit::OTHER_SMI, 0),
            GuestExit::Interrupt { info } => plain(exit::EXTERNAL_INTERRUPT, info),
            GuestExit::Nmi { info } => plain(exit::EXCEPTION_NMI, info),
            GuestExit::TripleFault => Next::Dead(st::NON_RECOVERABLE_VCPU | exit::TRIPLE_FAULT),
            GuestExit::Failed { reason, .. } => {
                Next::Dead(st::NON_RECOVERABLE_VCPU | u64::from(reason))
            }
        }
    }

    pub(crate) fn advance(&mut self, len: u64) {
        self.regs.rip = self.regs.rip.wrapping_add(len);
    }

    /// Injects #VE, or #DF if the guest has not read the information of the last.
    pub(crate) fn inject_ve<P: Platform>(&mut self, m: &Machine<P>, info: VeInfo) -> Next {
        let Some(page) = m.ve_info_page(&self.tdvps) else {
            return Next::Dead(m.fatal());
        };
        if page.get(ve::REASON) & ve::VALID != 0 {
            return Next::Inject(DOUBLE_FAULT);
        }
        page.set(ve::QUALIFICATION, info.qualification);
        page.set(ve::GLA, info.gla);
        page.set(ve::GPA, info.gpa);
        page.set(ve::INSTRUCTION, info.instruction);
        page.set(ve::REASON, ve::VALID | u64::from(info.reason));
        m.stats.add(Count::GuestVe);
        Next::Inject(Inject::Ve)
    }

    /// Before an entry that zero-step mitigation had doubts about: tells the guest by a
    /// #VE, if it wants to know and has read the information of the last one.
    pub(crate) fn notify_of_steps<P: Platform>(&mut self, m: &Machine<P>) {
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

    /// An access that the EPT does not allow.
    fn ept_violation<P: Platform>(
        &mut self,
        m: &Machine<P>,
        gpa: u64,
        gla: u64,
        qualification: u64,
    ) -> Next {
        let mut out = Regs {
            rcx: qualification & QUALIFICATION,
            r8: gpa & !(PAGE_SIZE - 1),
            ..Regs::default()
        };
        if self.tdcs.is_private(gpa) {
            let Some(walk) = self.tdcs.root().walk(&m.p, gpa, 0) else {
                return Next::Dead(m.fatal());
            };
            if State::of(walk.raw).is_some_and(State::is_acceptable) {
                if !self.tdcs.pending_ve_disabled() {
                    let reason = exit::EPT_VIOLATION as u32;
                    let info = VeInfo {
                        reason,
                        qualification,
                        gla,
                        gpa,
                        instruction: 0,
                    };
                    return self.inject_ve(m, info);
                }
                out.rdx = EXT_PENDING;
            }
            self.tdvps.note_fault(self.regs.rip, out.r8);
            for (w, v) in [
                (word::FAULT_QUALIFICATION, qualification),
                (word::FAULT_GPA, gpa),
                (word::FAULT_GLA, gla),
                (word::FAULTED, 1),
            ] {
                self.tdvps.set(w, v);
            }
        }
        Next::Exit(exit::EPT_VIOLATION, out)
    }

    fn tdcall<P: Platform>(&mut self, m: &Machine<P>) -> Next {
        m.stats.add(Count::GuestTdcalls);
        let hkid = || m.hkid_of(self.vcpu.tdr);
        let injected = m
            .inject
            .fail(named(self.regs.gpr[0]), self.regs.gpr[1], hkid);
        let result = match injected {
            Some(status) => Err(status),
            None => self.dispatch(m),
        };
        let call = match result {
            Ok(call) => call,
            Err(status) => Call::Done(status),
        };
        match call {
            Call::Done(status) if status & st::CLASS == st::BUSY_HOST_PRIORITY => {
                let timeout = self.tdcs.hp_lock_timeout(m.p.config().hp_lock_timeout);
                self.yielded(m.p.tsc(), timeout, status)
            }
            Call::Done(status) => {
                self.tdvps.set(word::HP_SINCE, 0);
                self.regs.gpr[0] = status;
                self.advance(TDCALL_LEN);
                Next::Resume
            }
            Call::Again => {
                self.tdvps.set(word::HP_SINCE, 0);
                Next::Resume
            }
            Call::Exit(rax, out) => Next::Exit(rax, out),
        }
    }

    /// The guest had to yield to the host's priority: it sees a plain busy status, and
    /// if that goes on for too long, the host is told.
    fn yielded(&mut self, now: u64, timeout: u64, status: u64) -> Next {
        self.regs.gpr[0] = st::OPERAND_BUSY | status & !st::CLASS;
        self.advance(TDCALL_LEN);
        let since = self.tdvps.get(word::HP_SINCE);
        if since == 0 {
            self.tdvps.set(word::HP_SINCE, now.max(1));
        } else if now.wrapping_sub(since) >= timeout {
            self.tdvps.set(word::HP_SINCE, 0);
            return Next::Exit(st::HOST_PRIORITY_BUSY_TIMEOUT, Regs::default());
        }
        Next::Resume
    }

    fn dispatch<P: Platform>(&mut self, m: &Machine<P>) -> Res<Call> {
        let leaf = self.regs.gpr[0];
        match leaf {
            guest_leaf::VP_VMCALL => self.vmcall(),
            guest_leaf::VP_INFO => Ok(self.vp_info()),
            guest_leaf::MR_RTMR_EXTEND => self.rtmr_extend(m).map(Call::Done),
            guest_leaf::VP_VEINFO_GET => self.veinfo_get(m),
            guest_leaf::VP_CPUIDVE_SET => self.cpuidve_set(),
            guest_leaf::MR_REPORT => self.mr_report(m).map(Call::Done),
            guest_leaf::MEM_PAGE_ACCEPT => self.page_accept(m),
            guest_leaf::VM_RD => {
                let value = m.td_field(&self.tdcs, self.regs.gpr[2]);
                self.regs.gpr[8] = 0;
                self.regs.gpr[8] = value.ok_or(st::METADATA_FIELD_NOT_READABLE | op::RDX)?;
                Ok(Call::Done(st::SUCCESS))
            }
            guest_leaf::VM_WR => {
                let g = &self.regs.gpr;
                let old = m.set_td_field(&self.tdcs, g[2], g[8], g[9])?;
                self.regs.gpr[8] = old;
                Ok(Call::Done(st::SUCCESS))
            }
            guest_leaf::SYS_RD => {
                let value = metadata::global(self.regs.gpr[2]);
                self.regs.gpr[8] = 0;
                self.regs.gpr[8] = value.ok_or(st::METADATA_FIELD_NOT_READABLE | op::RDX)?;
                Ok(Call::Done(st::SUCCESS))
            }
            _ => Err(st::OPERAND_INVALID | op::RAX),
        }
    }

    /// TDG.VP.VMCALL. RCX: mask of the registers that the host gets and answers in.
    fn vmcall(&mut self) -> Res<Call> {
        let mask = self.regs.gpr[1];
        let keep_rbp = self.tdcs.get(tdcs_word::CONFIG_FLAGS) & CONFIG_NO_RBP_MOD != 0;
        // RAX, RCX and RSP cannot be passed; bits 31:16 are XMM registers, which are not.
        let reserved = !0xFFFF_FFEC | (u64::from(keep_rbp) << 5);
        if mask & reserved != 0 {
            return Err(st::OPERAND_INVALID | op::RCX);
        }
        let mut out = Regs::default();
        for i in masked(mask) {
            if let (Some(to), Some(from)) = (host_reg(&mut out, i), self.regs.gpr.get(i)) {
                *to = *from;
            }
        }
        out.rcx = mask;
        self.tdvps.set(word::VMCALL, mask | VMCALL_PENDING);
        self.advance(TDCALL_LEN);
        Ok(Call::Exit(exit::TDCALL, out))
    }

    /// TDG.VP.INFO.
    fn vp_info(&mut self) -> Call {
        let vcpus = self.tdcs.get(tdcs_word::NUM_VCPUS);
        let max = self.tdcs.get(tdcs_word::MAX_VCPUS);
        let g = &mut self.regs.gpr;
        g[1] = u64::from(self.vcpu.shared_bit) + 1;
        g[2] = self.vcpu.attributes;
        g[8] = vcpus & 0xFFFF_FFFF | (max << 32);
        g[9] = u64::from(self.vcpu.index);
        g[10] = 1; // TDG.SYS.RD is there
        g[11] = 0;
        Call::Done(st::SUCCESS)
    }

    /// TDG.VP.CPUIDVE.SET. RCX: bit 0 has CPUID cause #VE at CPL 0, bit 1 at other CPLs.
    fn cpuidve_set(&mut self) -> Res<Call> {
        let when = self.regs.gpr[1];
        if when & !(CPUID_VE_KERNEL | CPUID_VE_USER) != 0 {
            return Err(st::OPERAND_INVALID | op::RCX);
        }
        self.tdvps.set(word::CPUID_VE, when);
        Ok(Call::Done(st::SUCCESS))
    }

    /// Whether the last #VE's information waits to be read.
    pub(crate) fn ve_outstanding<P: Platform>(&self, m: &Machine<P>) -> bool {
        m.ve_info_page(&self.tdvps)
            .is_none_or(|page| page.get(ve::REASON) & ve::VALID != 0)
    }

    /// TDG.VP.VEINFO.GET.
    fn veinfo_get<P: Platform>(&mut self, m: &Machine<P>) -> Res<Call> {
        let page = m.ve_info_page(&self.tdvps).ok_or_else(|| m.fatal())?;
        let reason = page.get(ve::REASON);
        if reason & ve::VALID == 0 {
            return Err(st::NO_VALID_VE_INFO);
        }
        let g = &mut self.regs.gpr;
        g[1] = reason & !ve::VALID;
        g[2] = page.get(ve::QUALIFICATION);
        g[8] = page.get(ve::GLA);
        g[9] = page.get(ve::GPA);
        g[10] = page.get(ve::INSTRUCTION);
        page.set(ve::INSTRUCTION, 0);
        page.set(ve::REASON, 0);
        Ok(Call::Done(st::SUCCESS))
    }

    /// TDG.MEM.PAGE.ACCEPT. RCX: GPA and level.
    fn page_accept<P: Platform>(&mut self, m: &Machine<P>) -> Res<Call> {
        let at = GpaLevel::parse(self.regs.gpr[1], 0..=1)?.private(&self.tdcs)?;
        let walk = self
            .tdcs
            .root()
            .walk(&m.p, at.gpa, at.level)
            .ok_or_else(|| m.fatal())?;
        let state = State::of(walk.raw).ok_or_else(|| m.fatal())?;
        if !walk.hit {
            if state.is_accessible() {
                return Ok(Call::Done(
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
            return Ok(Call::Done(st::PAGE_ALREADY_ACCEPTED | level));
        }
        if !state.is_acceptable() {
            return Ok(accept_exit(at, &Walk { raw, ..walk }, state));
        }
        m.before_commit(ACCEPT, self.vcpu.tdr);
        if at.level == 0 {
            clear(m, raw & HPA)?;
        } else if let Some(done) = self.clear_large(m, raw)? {
            lock.set(raw & !ACCEPT_COUNTER | (done << ACCEPT_SHIFT));
            return Ok(Call::Again);
        }
        m.stats.add(Count::GuestAccepts);
        lock.set(leaf_mapped(raw, at.level));
        Ok(Call::Done(st::SUCCESS))
    }

    /// Zeroes what is left of a 2M page. `Some(n)`: an interrupt waits after n pages.
    fn clear_large<P: Platform>(&self, m: &Machine<P>, raw: u64) -> Res<Option<u64>> {
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

/// TDG.MEM.PAGE.ACCEPT as the fault injection names it.
const ACCEPT: u16 = GUEST | guest_leaf::MEM_PAGE_ACCEPT as u16;

/// A TDCALL's leaf as the fault injection names it.
fn named(rax: u64) -> u16 {
    GUEST | (rax as u16 & !GUEST)
}

fn clear<P: Platform>(m: &Machine<P>, pa: u64) -> Res<()> {
    let page = Page::at(&m.p, pa).ok_or_else(|| m.fatal())?;
    if !m.p.clear_page(pa) {
        page.fill(0);
    }
    Ok(())
}

/// The exit by which ACCEPT asks the host for a page.
fn accept_exit(at: GpaLevel, walk: &Walk<'_>, state: State) -> Call {
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
    Call::Exit(exit::EPT_VIOLATION, out)
}
