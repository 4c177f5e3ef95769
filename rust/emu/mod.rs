// SPDX-License-Identifier: GPL-2.0
//! A software TDX module (TDX 1.5.01): answers SEAMCALLs and runs TDs.
//!
//! Pure: `core` only. All state of a TD lives in the pages that the host hands
//! over (PAMT, TDR, TDCS, TDVPS, S-EPT), so nothing is ever allocated, and
//! every lock is a single try as in the real module, so nothing ever waits.
//!
//! ```text
//! impl<P: Platform, G: GuestRun<P>> Module<P, G> {
//!     pub const fn new(platform: P, guest: G) -> Self;      // fit for a static
//!     pub fn seamcall(&self, lp: u32, rax: u64, regs: &mut Regs) -> u64;   // RAX out
//!     pub fn stats(&self) -> &Stats;     // atomics; Stats::each(|name, value|), reset()
//!     pub fn inject(&self) -> &InjectTable;   // InjectTable::load(&[u8]) -> Result<(), ScriptError>
//!     pub fn platform(&self) -> &P;   pub fn guest(&self) -> &G;
//! }
//! ```
//! `seamcall` is entered concurrently from all CPUs; the caller pins itself to
//! `lp` (interrupts or preemption off).

mod platform;

pub use platform::*;
