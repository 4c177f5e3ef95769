// SPDX-License-Identifier: GPL-2.0

//! What a SEAMCALL says about an S-EPT entry in RCX and RDX.

#![forbid(unsafe_code)]

use crate::base::level::Level;
use core::fmt;

/// The state of an S-EPT entry by its architectural code. Open: other codes survive and print.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct SeptState(u8);

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $code:expr;)*) => {
        impl SeptState {
            $($(#[$doc])* pub const $name: Self = Self($code);)*

            /// The state's name.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

states! {
    /// Nothing mapped.
    FREE = 0;
    /// A leaf, blocked.
    BLOCKED = 1;
    /// A leaf that the guest has not accepted.
    PENDING = 2;
    /// A leaf that the guest has not accepted, blocked.
    PENDING_BLOCKED = 3;
    /// A leaf.
    MAPPED = 4;
    /// A leaf removed during an import.
    REMOVED = 5;
    /// A table, blocked.
    NL_BLOCKED = 0x81;
    /// A table.
    NL_MAPPED = 0x84;
}

impl SeptState {
    /// The state with this code.
    pub const fn new(code: u8) -> Self {
        Self(code)
    }

    /// The code.
    pub const fn as_u8(self) -> u8 {
        self.0
    }
}

impl fmt::Debug for SeptState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "state {:#x}", self.0),
        }
    }
}

/// An S-EPT entry as RCX and RDX of a failed leaf report it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryInfo {
    /// The entry without its software bits; a table's address is never shown.
    pub entry: u64,
    /// The level that the walk reached.
    pub level: Option<Level>,
    /// The state.
    pub state: SeptState,
}

impl EntryInfo {
    /// Decodes RCX and RDX.
    pub const fn decode(rcx: u64, rdx: u64) -> Self {
        Self {
            entry: rcx,
            level: Level::from_kvm((rdx & 7) as i32 + 1),
            state: SeptState((rdx >> 8) as u8),
        }
    }
}
