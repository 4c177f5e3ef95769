// SPDX-License-Identifier: GPL-2.0

//! Where the module can be watched and disturbed from outside. The module knows nothing of who
//! does; with `()` nobody does, and nothing of it is left in the program.

#![forbid(unsafe_code)]

use super::platform::Platform;

/// Something that happened in the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A guest is about to run, at first or again.
    GuestEntry,
    /// A guest executed TDCALL.
    GuestTdcall,
    /// A guest accepted a page.
    GuestAccept,
    /// A guest got a #VE from the module.
    GuestVe,
    /// The module met a state that cannot be, and shut down.
    Fatal,
}

/// The points inside of the module at which somebody outside has a say. Called from all CPUs at
/// once, with locks of the module held: no method may wait for another CPU.
///
/// What can be seen before and after a call is no matter of this trait.
pub trait Observer: Sync {
    /// Something happened.
    #[inline]
    fn happened(&self, _event: Event) {}

    /// The checks of a leaf are over and its locks are held: from here on it cannot fail.
    /// `tdr`: the TD that it changes, 0 if none. A delay is possible here.
    #[inline]
    fn before_commit<P: Platform>(&self, _p: &P, _leaf: u16, _tdr: u64) {}

    /// Whether a poll for interrupts in a leaf about that TD finds one that the machine does not
    /// have. Guest leaves have [`GUEST`](super::numbers::GUEST) added to their number.
    #[inline]
    fn interrupts<P: Platform>(&self, _p: &P, _leaf: u16, _tdr: u64) -> bool {
        false
    }

    /// A status that a TDCALL with this RCX, of a vCPU of that TD, is to answer, unexecuted.
    #[inline]
    fn refuses<P: Platform>(&self, _p: &P, _leaf: u16, _rcx: u64, _tdr: u64) -> Option<u64> {
        None
    }

    /// Pages come to the module or are about to go back to the host.
    #[inline]
    fn owner_changed<P: Platform>(&self, _p: &P, _pa: u64, _pages: u64, _private: bool) {}

    /// Runs a guest, which is outside of the module.
    #[inline]
    fn outside<R>(&self, guest: impl FnOnce() -> R) -> R {
        guest()
    }
}

/// Nobody watches.
impl Observer for () {}
