// SPDX-License-Identifier: GPL-2.0

//! RCU: walks without `mmu_lock` read tables that a teardown may unlink at the same time.
//!
//! No grace period is waited for: a teardown puts no table back, the mirror's end does, and when
//! KVM ends a mirror no walk of it is under way.

use kernel::sync::rcu;

use crate::mirror::lock::RcuRead;

/// Runs `f` in an RCU read-side critical section. `f` must not sleep.
pub(crate) fn read<R>(f: impl FnOnce(&RcuRead<'_>) -> R) -> R {
    let guard = rcu::read_lock();
    // SAFETY: The guard outlives the token, which `f` cannot keep.
    let evidence = unsafe { RcuRead::assume_held() };
    let result = f(&evidence);
    drop(guard);
    result
}
