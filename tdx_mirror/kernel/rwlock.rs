// SPDX-License-Identifier: GPL-2.0

//! Evidence tokens for KVM's `mmu_lock`, backed by lockdep.
//!
//! The contract says which entry point is called with the lock held and how, and the tokens carry
//! that into the signatures of the mirror. Only the files in debugfs take it themselves.

use core::ptr::NonNull;
use kernel::ffi::c_void;

use crate::bindings;
use crate::mirror::lock::{
    Exclusive,
    Shared, //
};

/// The `rwlock_t` that is `mmu_lock` of a VM.
///
/// # Invariants
///
/// It points to an initialised `rwlock_t` that lives longer than this value.
pub(crate) struct MmuLock(NonNull<c_void>);

// SAFETY: Any thread may ask lockdep about the lock, and any may take it: a guard does not move
// between threads, since `write()` takes and releases it in one call.
unsafe impl Send for MmuLock {}
// SAFETY: As above.
unsafe impl Sync for MmuLock {}

impl MmuLock {
    /// Names the lock.
    ///
    /// # Safety
    ///
    /// `lock` points to an initialised `rwlock_t` that lives longer than the returned value.
    pub(crate) unsafe fn new(lock: NonNull<c_void>) -> Self {
        // INVARIANT: By the safety requirements.
        Self(lock)
    }

    /// Evidence for a caller that holds the lock for read; lockdep warns if it does not.
    ///
    /// # Safety
    ///
    /// The calling thread holds the lock for read as long as the token lives.
    pub(crate) unsafe fn assume_read(&self) -> Shared<'_> {
        // SAFETY: By the type invariant.
        unsafe { bindings::tdx_mirror_assert_held_read(self.0.as_ptr()) };
        // SAFETY: By the safety requirements.
        unsafe { Shared::assume_held() }
    }

    /// Runs `f` with the lock taken for write, which only the files in debugfs ask for. `f` must not
    /// sleep.
    pub(crate) fn write<R>(&self, f: impl FnOnce(&Exclusive<'_>) -> R) -> R {
        // SAFETY: By the type invariant. Nothing of the module holds it, as nothing else takes it
        // and KVM calls no file of debugfs.
        unsafe { bindings::tdx_mirror_write_lock(self.0.as_ptr()) };
        // SAFETY: Held until `f` returns, which cannot keep the token.
        let result = f(&unsafe { Exclusive::assume_held() });
        // SAFETY: It was taken above.
        unsafe { bindings::tdx_mirror_write_unlock(self.0.as_ptr()) };
        result
    }

    /// Evidence for a caller that holds the lock for write; lockdep warns if it does not.
    ///
    /// # Safety
    ///
    /// The calling thread holds the lock for write as long as the token lives, but for the time
    /// in which the mirror itself yields it.
    pub(crate) unsafe fn assume_write(&self) -> Exclusive<'_> {
        // SAFETY: By the type invariant.
        unsafe { bindings::tdx_mirror_assert_held_write(self.0.as_ptr()) };
        // SAFETY: By the safety requirements.
        unsafe { Exclusive::assume_held() }
    }
}
