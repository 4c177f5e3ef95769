// SPDX-License-Identifier: GPL-2.0

//! Addresses: guest and host frame numbers in units of 4 KiB, ranges and opaque page pointers.

#![forbid(unsafe_code)]

use core::{
    fmt,
    ptr::NonNull, //
};

/// Bits of a frame number: physical addresses have at most 52 bits.
pub const FRAME_BITS: u32 = 40;

/// Number of bits of an address inside a 4 KiB page.
pub const PAGE_SHIFT: u32 = 12;

/// A guest frame number, in units of 4 KiB, without the shared bit; below `1 << FRAME_BITS`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Gfn(u64);

impl Gfn {
    /// The GFN `raw`, or `None` if it has more than [`FRAME_BITS`] bits.
    pub const fn new(raw: u64) -> Option<Self> {
        if raw >> FRAME_BITS == 0 {
            Some(Self(raw))
        } else {
            None
        }
    }

    /// The frame number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The guest physical address of the frame's first byte.
    pub const fn gpa(self) -> u64 {
        self.0 << PAGE_SHIFT
    }

    /// The GFN without the bits of `mask`.
    pub(super) const fn without(self, mask: u64) -> Self {
        Self(self.0 & !mask)
    }
}

impl fmt::Debug for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gfn {:#x}", self.0)
    }
}

/// A host page frame number, in units of 4 KiB, without HKID bits; below `1 << FRAME_BITS`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Pfn(u64);

impl Pfn {
    /// The PFN `raw`, or `None` if it has more than [`FRAME_BITS`] bits.
    pub const fn new(raw: u64) -> Option<Self> {
        if raw >> FRAME_BITS == 0 {
            Some(Self(raw))
        } else {
            None
        }
    }

    /// The PFN in bits 51:12 of `raw`; all other bits are ignored.
    pub const fn from_pa_bits(raw: u64) -> Self {
        Self((raw >> PAGE_SHIFT) & ((1 << FRAME_BITS) - 1))
    }

    /// The frame number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The physical address of the frame's first byte.
    pub const fn pa(self) -> u64 {
        self.0 << PAGE_SHIFT
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn {:#x}", self.0)
    }
}

/// A half-open range of GFNs, never empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GfnRange {
    start: u64,
    end: u64,
}

impl GfnRange {
    /// The GFNs from `start` up to, not including, `end`; both may be at most `1 << FRAME_BITS`.
    ///
    /// `None` if the range is empty, reversed or beyond that limit.
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        if start < end && end <= 1 << FRAME_BITS {
            Some(Self { start, end })
        } else {
            None
        }
    }

    /// The range cut to GFNs below `limit`, or `None` if nothing is left.
    pub fn below(self, limit: u64) -> Option<Self> {
        Self::new(self.start, self.end.min(limit))
    }

    /// The first frame number.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The frame number after the last one.
    pub const fn end(self) -> u64 {
        self.end
    }
}

/// A page of the kernel, given by its virtual address. Opaque: nothing outside `table` follows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct PagePtr(NonNull<u8>);

impl PagePtr {
    /// The page at `ptr`, or `None` for the null pointer.
    pub fn new(ptr: *mut u8) -> Option<Self> {
        NonNull::new(ptr).map(Self)
    }

    /// The address that [`new()`](Self::new) was given.
    pub const fn as_ptr(self) -> *mut u8 {
        self.0.as_ptr()
    }
}

impl fmt::Debug for PagePtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the address: it would end up in the log.
        f.write_str("page")
    }
}
