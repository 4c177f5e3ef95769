// SPDX-License-Identifier: GPL-2.0

//! Evidence that mmu_lock is held, in the signature instead of in a `bool shared`.
//!
//! The tokens have no size and cannot leave the thread that holds the lock. mmu_lock itself
//! stays KVM's.

use core::marker::PhantomData;

/// Neither `Send` nor `Sync`, and bound to `'l`, the time for which the lock is held.
type Evidence<'l> = PhantomData<(&'l (), *mut ())>;

/// mmu_lock of the VM is held for read.
#[derive(Debug)]
pub struct Shared<'l>(Evidence<'l>);

/// mmu_lock of the VM is held for write.
#[derive(Debug)]
pub struct Exclusive<'l>(Evidence<'l>);

/// An RCU read-side critical section is open: tables may be unlinked, but none is freed.
#[derive(Debug)]
pub struct RcuRead<'l>(Evidence<'l>);

impl Shared<'_> {
    /// Makes the evidence.
    ///
    /// # Safety
    ///
    /// The caller holds mmu_lock of the VM that owns the mirror for read, and goes on holding it
    /// for as long as the token lives.
    pub unsafe fn assume_held() -> Self {
        Self(PhantomData)
    }
}

impl Exclusive<'_> {
    /// Makes the evidence.
    ///
    /// # Safety
    ///
    /// The caller holds mmu_lock of the VM that owns the mirror for write, and goes on holding it
    /// for as long as the token lives, but for [`Vm::yield_lock()`](super::mmu::Vm::yield_lock).
    pub unsafe fn assume_held() -> Self {
        Self(PhantomData)
    }
}

impl RcuRead<'_> {
    /// Makes the evidence.
    ///
    /// # Safety
    ///
    /// The caller is in an RCU read-side critical section, and stays there for as long as the
    /// token lives.
    pub unsafe fn assume_held() -> Self {
        Self(PhantomData)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Shared<'_> {}
    impl Sealed for super::Exclusive<'_> {}
    impl Sealed for super::RcuRead<'_> {}
}

/// Any evidence under which no table page is freed, so that a walk may follow pointers.
pub trait TablesStay: sealed::Sealed {}

impl TablesStay for Shared<'_> {}
impl TablesStay for Exclusive<'_> {}
impl TablesStay for RcuRead<'_> {}

/// Evidence of mmu_lock, held for read or for write.
pub trait MmuLocked: sealed::Sealed {}

impl MmuLocked for Shared<'_> {}
impl MmuLocked for Exclusive<'_> {}
