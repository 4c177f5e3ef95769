// SPDX-License-Identifier: GPL-2.0

//! Kernel side of the software TDX module: the one instance of it, and the C
//! entry points that the hook and debugfs call.

mod ffi;
mod host;
mod processor;

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::instruments::{CheckLevel, Instrumented};
use crate::module::{versions, Platform, Regs};
use host::Host;
use kernel::error::to_result;
use kernel::prelude::*;
use processor::Processor;

/// TDH.VP.ENTER.
const VP_ENTER: u64 = 0;
/// TDH.MNG.CREATE.
const MNG_CREATE: u64 = 9;
/// What the kernel's own SEAMCALL wrapper returns if the instruction raised #UD,
/// as it does after VMXOFF (TDX_SEAMCALL_UD).
const SEAMCALL_UD: u64 = 0x8000_ff00_0000_0006;

static MODULE: Instrumented<Host, Processor> = Instrumented::new(Host::new(), Processor::new());

/// TDRs by HKID, for a look at the TDs. One that is gone is told by its page.
static TDRS: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

/// The first violation of an invariant has been reported.
static REPORTED: AtomicBool = AtomicBool::new(false);

/// Attaches the software TDX module to the kernel, which brings TDX up on it.
pub(crate) fn start() -> Result {
    MODULE.set_checks(match ffi::check_level() {
        0 => CheckLevel::Off,
        1 => CheckLevel::Touched,
        2 => CheckLevel::Everything,
        _ => {
            pr_err!("check is 0, 1 or 2\n");
            return Err(EINVAL);
        }
    });
    let version = versions().find(|name| ffi::version_is(name));
    if !version.is_some_and(|name| MODULE.set_version(name)) {
        pr_err!("version names no TDX module, see modinfo\n");
        return Err(EINVAL);
    }
    MODULE.platform().probe();
    let vmx = MODULE.guest().probe();
    let config = MODULE.platform().config();

    pr_info!(
        "software TDX module {} for tests: TDs are NOT protected; {} CPUs, KeyIDs {} to {}, TD code runs on {}\n",
        MODULE.version(),
        config.lps,
        config.private_hkid_min,
        config.private_hkid_max,
        if vmx { "VMX" } else { "the interpreter" },
    );

    to_result(ffi::debugfs_init())?;
    match to_result(ffi::register()) {
        Ok(()) => {
            pr_info!("TDX is up\n");
            Ok(())
        }
        Err(ENODEV) => {
            // A test device may still drive the emulator.
            pr_info!("the platform offers no TDX: SEAMCALLs stay with the CPU\n");
            Ok(())
        }
        Err(error) => {
            ffi::debugfs_exit();
            Err(error)
        }
    }
}

/// Undoes `start`. Comes only if the kernel did not take TDX up on the module, as
/// it holds a reference otherwise.
pub(crate) fn stop() {
    ffi::debugfs_exit();
}

/// A SEAMCALL from the kernel's hook.
///
/// # Safety
///
/// `args` must be valid for reads and writes; preemption must be off.
#[no_mangle]
unsafe extern "C" fn tdx_emu_seamcall(leaf: u64, args: *mut Regs) -> u64 {
    // SAFETY: By the contract; `Regs` has the layout of `struct tdx_module_args`,
    // which tdx_emu/kernel/abi_check.c checks.
    let regs = unsafe { &mut *args };
    let (tdr, hkid) = (regs.rcx, regs.rdx);
    let status = MODULE.seamcall(ffi::this_cpu(), leaf, regs);
    if leaf == MNG_CREATE && status == 0 {
        if let Some(slot) = TDRS.get(hkid as usize) {
            slot.store(tdr, Ordering::Relaxed);
        }
    }

    if leaf == VP_ENTER {
        if MODULE.guest().is_gone() && ffi::rebooting() {
            return SEAMCALL_UD;
        }
    } else {
        report();
    }
    status
}

/// Tells what went wrong since the last call. Not for TDH.VP.ENTER, where printing would
/// take long with interrupts off.
fn report() {
    if let Some((reason, detail)) = MODULE.guest().take_failure() {
        pr_warn!("a vCPU died: VMX exit reason {reason:#x}, detail {detail:#x}\n");
    }
    if let Some(violation) = MODULE.first_violation() {
        if !REPORTED.swap(true, Ordering::Relaxed) {
            pr_err!(
                "invariant broken: {}: at {:#x} of TD {:#x} after leaf {}\n",
                violation.text(),
                violation.at,
                violation.tdr,
                violation.leaf,
            );
        }
    }
}

/// The name of a counter, formatted.
struct Text {
    bytes: [u8; 64],
    len: usize,
}

impl Text {
    fn new() -> Self {
        Self {
            bytes: [0; 64],
            len: 0,
        }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

impl Write for Text {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        let rest = self.bytes.get_mut(self.len..).ok_or(core::fmt::Error)?;
        for (to, from) in rest.iter_mut().zip(s.bytes()) {
            *to = from;
            self.len = self.len.saturating_add(1);
        }
        Ok(())
    }
}

/// Prints all counters.
///
/// # Safety
///
/// `m` must be a seq_file in its show callback.
#[no_mangle]
unsafe extern "C" fn tdx_emu_stats_show(m: *mut ffi::SeqFile) {
    MODULE.stats().each(|name, value| {
        let mut text = Text::new();
        // A name that does not fit is cut, not an error.
        let _ = write!(text, "{name}");
        // SAFETY: By the contract.
        unsafe { ffi::seq_value(m, text.bytes(), value) };
    });
}

/// Prints a line for each TD that has its TDCS.
///
/// # Safety
///
/// `m` must be a seq_file in its show callback.
#[no_mangle]
unsafe extern "C" fn tdx_emu_tds_show(m: *mut ffi::SeqFile) {
    for slot in &TDRS {
        let tdr = slot.load(Ordering::Relaxed);
        if tdr == 0 {
            continue;
        }
        if let Some(td) = MODULE.td_view(tdr) {
            // SAFETY: By the contract.
            unsafe { ffi::seq_td(m, tdr, td.hkid, td.vcpus, td.children, &td.mrtd) };
        }
    }
}

/// Sets the counters to zero.
#[no_mangle]
extern "C" fn tdx_emu_stats_reset() {
    MODULE.stats().reset();
}

/// Bytes of a C string in the making, cut to what fits before the closing NUL.
struct CText<'a> {
    bytes: &'a mut [u8],
    len: usize,
}

impl Write for CText<'_> {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        let room = self.bytes.len().saturating_sub(1);
        for c in s.bytes() {
            match self.bytes.get_mut(self.len) {
                Some(to) if self.len < room => *to = c,
                _ => return Err(core::fmt::Error),
            }
            self.len = self.len.saturating_add(1);
        }
        Ok(())
    }
}

/// Loads a script of the fault injection. 0 or a negative errno; the reason of a refusal
/// is written to `reason`, which is empty otherwise. Callers take turns.
///
/// # Safety
///
/// `script` must be valid for reads of `len` bytes, `reason` for writes of `size`.
#[no_mangle]
unsafe extern "C" fn tdx_emu_inject_load(
    script: *const u8,
    len: usize,
    reason: *mut u8,
    size: usize,
) -> core::ffi::c_int {
    // SAFETY: By the contract; the caller's buffers do not overlap.
    let (script, reason) = unsafe {
        (
            core::slice::from_raw_parts(script, len),
            core::slice::from_raw_parts_mut(reason, size),
        )
    };
    reason.fill(0);
    match MODULE.inject().load(script) {
        Ok(()) => 0,
        Err(error) => {
            let mut text = CText {
                bytes: reason,
                len: 0,
            };
            // A reason that does not fit is cut, not an error.
            let _ = write!(text, "{error}");
            EINVAL.to_errno()
        }
    }
}

/// Writes into a seq_file.
struct SeqText(*mut ffi::SeqFile);

impl Write for SeqText {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        // SAFETY: By the contract of `tdx_emu_inject_show`, which made this value.
        unsafe { ffi::seq_text(self.0, s) };
        Ok(())
    }
}

/// Prints the rules of the fault injection as a script, with what became of each.
///
/// # Safety
///
/// `m` must be a seq_file in its show callback.
#[no_mangle]
unsafe extern "C" fn tdx_emu_inject_show(m: *mut ffi::SeqFile) {
    // A seq_file that is full is shown again with more room.
    let _ = write!(SeqText(m), "{}", MODULE.inject());
}

/// Prints the last VM exits of all vCPUs, the oldest first.
///
/// # Safety
///
/// `m` must be a seq_file in its show callback.
#[no_mangle]
unsafe extern "C" fn tdx_emu_exits_show(m: *mut ffi::SeqFile) {
    if let Some(exits) = MODULE.guest().exits() {
        // A seq_file that is full is shown again with more room.
        let _ = write!(SeqText(m), "{exits}");
    }
}

/// Checks all TDs and prints what is wrong, also what was wrong first.
///
/// # Safety
///
/// `m` must be a seq_file in its show callback.
#[no_mangle]
unsafe extern "C" fn tdx_emu_invariants_show(m: *mut ffi::SeqFile) {
    let mut out = SeqText(m);
    // A seq_file that is full is shown again with more room.
    let _ = match MODULE.audit() {
        None => writeln!(out, "now: a SEAMCALL came in between"),
        Some(Ok(())) => writeln!(out, "now: all hold"),
        Some(Err(violation)) => writeln!(out, "now: {violation}"),
    };
    let _ = match MODULE.first_violation() {
        None => writeln!(out, "first: none"),
        Some(violation) => writeln!(out, "first: {violation}"),
    };
}
