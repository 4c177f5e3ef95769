// SPDX-License-Identifier: GPL-2.0

//! Words with the interface of `kernel::sync::atomic::Atomic`, on the atomics of another model.

#![forbid(unsafe_code)]

#[cfg(loom)]
use super::loom as machine;
#[cfg(not(loom))]
use core::sync::atomic as machine;

use core::fmt;
use core::sync::atomic::Ordering;

/// No order.
#[derive(Clone, Copy, Debug)]
pub struct Relaxed;
/// What follows stays behind.
#[derive(Clone, Copy, Debug)]
pub struct Acquire;
/// What precedes stays in front.
#[derive(Clone, Copy, Debug)]
pub struct Release;
/// A full barrier.
#[derive(Clone, Copy, Debug)]
pub struct Full;

mod sealed {
    use super::Ordering;

    pub trait Order {
        const ORDER: Ordering;
    }
    pub trait LoadOrder: Order {}
    pub trait StoreOrder: Order {}
    impl Order for super::Relaxed {
        const ORDER: Ordering = Ordering::Relaxed;
    }
    impl Order for super::Acquire {
        const ORDER: Ordering = Ordering::Acquire;
    }
    impl Order for super::Release {
        const ORDER: Ordering = Ordering::Release;
    }
    impl Order for super::Full {
        const ORDER: Ordering = Ordering::SeqCst;
    }
    impl LoadOrder for super::Relaxed {}
    impl LoadOrder for super::Acquire {}
    impl StoreOrder for super::Relaxed {}
    impl StoreOrder for super::Release {}
}
use sealed::{
    LoadOrder,
    Order,
    StoreOrder, //
};

macro_rules! word {
    ($(#[$doc:meta])* $name:ident, $value:ty, $cell:ty, { $($constant:tt)* }) => {
        $(#[$doc])*
        #[repr(transparent)]
        pub struct $name($cell);

        impl $name {
            /// A word with the value `v`.
            pub $($constant)* fn new(v: $value) -> Self {
                Self(<$cell>::new(v))
            }

            /// The value.
            pub fn load<O: LoadOrder>(&self, _: O) -> $value {
                self.0.load(O::ORDER)
            }

            /// Sets the value.
            pub fn store<O: StoreOrder>(&self, v: $value, _: O) {
                self.0.store(v, O::ORDER);
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.load(Relaxed), f)
            }
        }
    };
}

#[cfg(not(loom))]
word! {
    /// An entry, or a word that has its order.
    AtomicU64, u64, machine::AtomicU64, { const }
}
#[cfg(loom)]
word! {
    /// An entry, or a word that has its order.
    AtomicU64, u64, machine::AtomicU64, {}
}

impl AtomicU64 {
    /// Sets the value to `new` if it is `old`.
    ///
    /// # Errors
    ///
    /// The value, if it is another.
    pub fn cmpxchg<O: Order>(&self, old: u64, new: u64, _: O) -> Result<u64, u64> {
        // What depends on the value of a failed one is ordered after it in the kernel. This model
        // knows no order by dependency, so that only an acquire stands for it.
        self.0
            .compare_exchange(old, new, O::ORDER, Ordering::Acquire)
    }
}

#[cfg(not(loom))]
word! {
    /// A condition.
    AtomicBool, bool, machine::AtomicBool, { const }
}
#[cfg(loom)]
word! {
    /// A condition.
    AtomicBool, bool, machine::AtomicBool, {}
}

impl AtomicBool {
    /// Sets the value and returns the one before.
    pub fn xchg<O: Order>(&self, v: bool, _: O) -> bool {
        self.0.swap(v, O::ORDER)
    }
}

word! {
    /// A word on which no order rests: loom does not model it.
    PlainU64, u64, core::sync::atomic::AtomicU64, { const }
}

impl PlainU64 {
    /// Adds `v` and returns the value before.
    pub fn fetch_add<O: Order>(&self, v: u64, _: O) -> u64 {
        self.0.fetch_add(v, O::ORDER)
    }

    /// Subtracts `v` and returns the value before.
    pub fn fetch_sub<O: Order>(&self, v: u64, _: O) -> u64 {
        self.0.fetch_sub(v, O::ORDER)
    }
}
