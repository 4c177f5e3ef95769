// SPDX-License-Identifier: GPL-2.0

//! The tracepoints of `tdx_mirror/watch/events.h`.
//!
//! A site asks `is_on()`, which is one static branch and nothing else, and computes what an event
//! says, the time included, only then. The macros of the kernel crate serve tracepoints that its
//! own bindings know; here the two symbols of each event are declared by hand.

use crate::base::addr::Pfn;
use crate::base::level::{
    Level,
    Position, //
};
use crate::base::td::Operand;
use crate::mirror::error::{
    Bug,
    Leak, //
};
use crate::mirror::spte::Spte;
use crate::tdx::call::{
    Call,
    Kind, //
};

/// Declares a module for each event, with `is_on()` and `emit()`. The parameters are those of the
/// event's `TP_PROTO`; the name lacks the `tdx_mirror_` that the event's begins with.
macro_rules! events {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),* $(,)?);)*) => {$(
        $(#[$doc])*
        pub(crate) mod $name {
            #[allow(unused_imports)]
            use kernel::ffi::c_int;

            kernel::macros::paste! {
                // Nothing is read of it but its key, by address.
                #[allow(improper_ctypes)]
                #[cfg(CONFIG_TRACEPOINTS)]
                extern "C" {
                    static [< __tracepoint_tdx_mirror_ $name >]: kernel::bindings::tracepoint;
                    fn [< rust_do_trace_tdx_mirror_ $name >]($($arg: $ty),*);
                }

                /// Whether somebody listens.
                #[inline(always)]
                pub(crate) fn is_on() -> bool {
                    #[cfg(CONFIG_TRACEPOINTS)]
                    // SAFETY: The key is that of a tracepoint of this module.
                    unsafe {
                        kernel::static_branch_unlikely!(
                            [< __tracepoint_tdx_mirror_ $name >],
                            kernel::bindings::tracepoint,
                            key
                        )
                    }
                    #[cfg(not(CONFIG_TRACEPOINTS))]
                    false
                }

                /// Reports to those who listen.
                #[cold]
                #[inline(never)]
                pub(crate) fn emit($($arg: $ty),*) {
                    #[cfg(CONFIG_TRACEPOINTS)]
                    // SAFETY: Takes any numbers, in any context.
                    unsafe {
                        [< rust_do_trace_tdx_mirror_ $name >]($($arg),*)
                    }
                    #[cfg(not(CONFIG_TRACEPOINTS))]
                    {
                        $(let _ = $arg;)*
                    }
                }
            }
        }
    )*};
}

events! {
    /// A change of the mirror.
    spte_changed(td: u32, gpa: u64, level: u32, old: u64, new: u64);
    /// The end of a map.
    fault(td: u32, gfn: u64, pfn: u64, level: u32, outcome: c_int);
    /// The end of a zap.
    zap(td: u32, start: u64, end: u64, zapped: u64);
    /// A SEAMCALL.
    seamcall(td: u32, leaf: u32, gpa: u64, level: u32, pa: u64, status: u64, cycles: u64);
    /// Contention.
    busy(td: u32, leaf: u32, gpa: u64, level: u32, operand: u32, left: u32);
    /// A kick of all vCPUs.
    kick(td: u32, cycles: u64);
    /// A try of TDH.MEM.TRACK.
    track(td: u32, status: u64);
    /// A page is kept from the allocator.
    quarantine(td: u32, gpa: u64, level: u32, pfn: u64);
    /// A page is never given back.
    leak(td: u32, gpa: u64, level: u32, pfn: u64, status: u64);
    /// A broken invariant.
    bug(td: u32, kind: u32, gpa: u64, level: u32, value: u64, other: u64);
}

/// The level of an entry, as the events have it.
pub(crate) fn level(level: Level) -> u32 {
    level.as_kvm().unsigned_abs()
}

/// GPA and level of an entry; both 0 for none.
pub(crate) fn entry(at: Option<Position>) -> (u64, u32) {
    at.map_or((0, 0), |at| (at.gfn().gpa(), level(at.level())))
}

/// The number of an operand, as `TDX_MIRROR_TRACE_OPERANDS` lists them; 0 is none.
fn operand(operand: Operand) -> u32 {
    (operand as u32).saturating_add(1)
}

// What an event says is put together in these, out of line, so that nothing of it is done where
// nobody listens.

/// Reports a change of the mirror.
#[cold]
#[inline(never)]
pub(crate) fn changed(td: u32, at: Position, old: Spte, new: Spte) {
    let (gpa, level) = entry(Some(at));
    spte_changed::emit(td, gpa, level, old.raw(), new.raw());
}

/// Whether somebody listens to what [`called()`] says of such a call.
#[inline(always)]
pub(crate) fn is_called_on(kind: Kind) -> bool {
    seamcall::is_on() || kind == Kind::Track && track::is_on()
}

/// Reports a SEAMCALL that was answered `status`.
#[cold]
#[inline(never)]
pub(crate) fn called(td: u32, call: Call, status: u64, cycles: u64) {
    if seamcall::is_on() {
        let (gpa, level) = entry(call.entry());
        let leaf = u32::from(call.kind().leaf().as_u16());
        let pa = call.page().map_or(0, Pfn::pa);
        seamcall::emit(td, leaf, gpa, level, pa, status, cycles);
    }
    if call.kind() == Kind::Track && track::is_on() {
        track::emit(td, status);
    }
}

/// Reports contention.
#[cold]
#[inline(never)]
pub(crate) fn contended(td: u32, call: Call, what: Operand, left: u32) {
    let (gpa, level) = entry(call.entry());
    let leaf = u32::from(call.kind().leaf().as_u16());
    busy::emit(td, leaf, gpa, level, operand(what), left);
}

/// Reports a page that is kept from the allocator.
#[cold]
#[inline(never)]
pub(crate) fn kept(td: u32, at: Position, pfn: Pfn) {
    let (gpa, level) = entry(Some(at));
    quarantine::emit(td, gpa, level, pfn.as_u64());
}

/// Reports a leak.
pub(crate) fn leaked(td: u32, what: &Leak) {
    if leak::is_on() {
        let (at, pfn) = match *what {
            Leak::SeptTable { at, .. } => (at, 0),
            Leak::Data { at, pfn, .. } | Leak::Freed { at, pfn } => (at, Pfn::as_u64(pfn)),
        };
        let (gpa, level) = entry(Some(at));
        let status = what.failure().map_or(0, |failure| failure.status);
        leak::emit(td, gpa, level, pfn, status);
    }
}

/// Reports a broken invariant.
pub(crate) fn bugged(td: u32, what: &Bug) {
    if bug::is_on() {
        let (kind, at, value, other) = match *what {
            Bug::Transition { at, old, new, .. } => (0, at, old.raw(), new.raw()),
            Bug::Unexpected { at, found } => (1, at, found.raw(), 0),
            Bug::External { at, failure } => (2, at, failure.status, failure.ext1),
            Bug::NoEntry { at } => (3, at, 0, 0),
        };
        let (gpa, level) = entry(Some(at));
        bug::emit(td, kind, gpa, level, value, other);
    }
}
