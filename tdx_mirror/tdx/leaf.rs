// SPDX-License-Identifier: GPL-2.0

//! Numbers and names of the host's leaves.

#![forbid(unsafe_code)]

use core::fmt;

/// A leaf of SEAMCALL, bits 15:0 of RAX. Open: an unknown number survives and prints.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Leaf(u16);

macro_rules! leaves {
    ($($name:ident = $number:expr, $text:expr;)*) => {
        impl Leaf {
            $(#[doc = $text] pub const $name: Self = Self($number);)*

            /// The leaf's name, as the architecture writes it.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

leaves! {
    VP_ENTER = 0, "TDH.VP.ENTER";
    MNG_ADDCX = 1, "TDH.MNG.ADDCX";
    MEM_PAGE_ADD = 2, "TDH.MEM.PAGE.ADD";
    MEM_SEPT_ADD = 3, "TDH.MEM.SEPT.ADD";
    VP_ADDCX = 4, "TDH.VP.ADDCX";
    MEM_PAGE_AUG = 6, "TDH.MEM.PAGE.AUG";
    MEM_RANGE_BLOCK = 7, "TDH.MEM.RANGE.BLOCK";
    MNG_KEY_CONFIG = 8, "TDH.MNG.KEY.CONFIG";
    MNG_CREATE = 9, "TDH.MNG.CREATE";
    VP_CREATE = 10, "TDH.VP.CREATE";
    MEM_PAGE_DEMOTE = 15, "TDH.MEM.PAGE.DEMOTE";
    MR_EXTEND = 16, "TDH.MR.EXTEND";
    MR_FINALIZE = 17, "TDH.MR.FINALIZE";
    VP_FLUSH = 18, "TDH.VP.FLUSH";
    MNG_VPFLUSHDONE = 19, "TDH.MNG.VPFLUSHDONE";
    MNG_KEY_FREEID = 20, "TDH.MNG.KEY.FREEID";
    MNG_INIT = 21, "TDH.MNG.INIT";
    VP_INIT = 22, "TDH.VP.INIT";
    MEM_PAGE_PROMOTE = 23, "TDH.MEM.PAGE.PROMOTE";
    PHYMEM_PAGE_RDMD = 24, "TDH.PHYMEM.PAGE.RDMD";
    MEM_SEPT_RD = 25, "TDH.MEM.SEPT.RD";
    MNG_KEY_RECLAIMID = 27, "TDH.MNG.KEY.RECLAIMID";
    PHYMEM_PAGE_RECLAIM = 28, "TDH.PHYMEM.PAGE.RECLAIM";
    MEM_PAGE_REMOVE = 29, "TDH.MEM.PAGE.REMOVE";
    MEM_SEPT_REMOVE = 30, "TDH.MEM.SEPT.REMOVE";
    MEM_TRACK = 38, "TDH.MEM.TRACK";
    MEM_RANGE_UNBLOCK = 39, "TDH.MEM.RANGE.UNBLOCK";
    PHYMEM_CACHE_WB = 40, "TDH.PHYMEM.CACHE.WB";
    PHYMEM_PAGE_WBINVD = 41, "TDH.PHYMEM.PAGE.WBINVD";
}

impl Leaf {
    /// The leaf with this number.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn as_u16(self) -> u16 {
        self.0
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "leaf {}", self.0),
        }
    }
}
