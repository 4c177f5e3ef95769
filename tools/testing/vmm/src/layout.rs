// SPDX-License-Identifier: GPL-2.0
//! Where things lie in the TD's memory, and who accepts what.
//!
//! ```text
//! 0          .. a0000      RAM
//! a0000      .. 100000     reserved, as on a PC
//! 100000     .. top-64K    RAM: kernel, and the initramfs at its end
//! top-64K    .. top        tables for the kernel: ACPI, EFI, boot_params, mailbox
//! ffff0000   .. 100000000  the boot payload
//! ```
//!
//! Linux accepts memory in units of 2 MiB, by a bitmap. A unit is *taken* when something
//! is in it before the kernel runs; the payload accepts what is missing in it. All other
//! units are left to the kernel.

use std::ops::Range as StdRange;

use thiserror::Error;

pub const PAGE: u64 = 4096;
/// Bytes that a bit of the unaccepted-memory bitmap stands for.
pub const UNIT: u64 = 2 << 20;

const LOW_END: u64 = 0xa_0000;
const HIGH_START: u64 = 0x10_0000;

/// Bytes at the top of RAM that hold tables.
pub const TABLES_SIZE: u64 = 0x1_0000;
/// Offsets of the tables in that area, each at a page of its own.
pub mod at {
    pub const ACPI: u64 = 0;
    pub const EFI: u64 = 0x4000;
    pub const UNACCEPTED: u64 = 0x6000;
    pub const BOOT_PARAMS: u64 = 0xa000;
    pub const CMDLINE: u64 = 0xc000;
    /// Here the reserved pages end and the mailbox (ACPI NVS) begins.
    pub const MAILBOX: u64 = 0xf000;
}

/// Smallest and largest memory size in bytes; above comes the hole for devices.
pub const MEMORY_LIMITS: StdRange<u64> = (64 << 20)..(3 << 30) + 1;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    #[error(
        "memory of {0} bytes: it must be a multiple of 2 MiB, from 64 MiB to 3 GiB; see --memory"
    )]
    Memory(u64),
    #[error("{what} needs GPA {start:#x}..{end:#x}, which is not free RAM below {limit:#x}; give the TD more --memory")]
    Room {
        what: &'static str,
        start: u64,
        end: u64,
        limit: u64,
    },
}

/// GPAs `start..end`, whole pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    pub start: u64,
    pub end: u64,
}

impl Range {
    /// Extended to whole pages.
    pub fn new(start: u64, end: u64) -> Self {
        Self {
            start: start & !(PAGE - 1),
            end: end.div_ceil(PAGE) * PAGE,
        }
    }

    pub fn len(&self) -> u64 {
        self.end - self.start
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryType {
    Ram,
    Reserved,
    Acpi,
    Nvs,
}

/// An entry of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    pub range: Range,
    pub kind: MemoryType,
}

/// The TD's memory.
#[derive(Debug, Clone)]
pub struct Layout {
    memory: u64,
    /// what is in memory at the start, by the VMM's hand
    loaded: Vec<Range>,
    /// what must be usable when the kernel starts
    needed: Vec<Range>,
    lazy: bool,
}

impl Layout {
    /// `lazy`: leave memory unaccepted where that is possible.
    pub fn new(memory: u64, lazy: bool) -> Result<Self, LayoutError> {
        if !MEMORY_LIMITS.contains(&memory) || memory % UNIT != 0 {
            return Err(LayoutError::Memory(memory));
        }
        let mut layout = Self {
            memory,
            loaded: Vec::new(),
            needed: vec![Range::new(0, HIGH_START)],
            lazy,
        };
        layout.load(Range::new(layout.tables(), memory));
        Ok(layout)
    }

    /// GPA of the tables.
    pub fn tables(&self) -> u64 {
        self.memory - TABLES_SIZE
    }

    /// Bytes of RAM.
    #[cfg(test)]
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Checks that `start..end` is RAM that can hold `what`.
    pub fn check(&self, what: &'static str, start: u64, end: u64) -> Result<Range, LayoutError> {
        let limit = self.tables();
        if start < HIGH_START || end > limit || start > end {
            return Err(LayoutError::Room {
                what,
                start,
                end,
                limit,
            });
        }
        Ok(Range::new(start, end))
    }

    /// Where an initramfs of `size` bytes goes: right below the tables, and not below
    /// `floor`, the end of the kernel.
    pub fn initrd(&self, size: u64, floor: u64) -> Result<Range, LayoutError> {
        let end = self.tables();
        let start = end.saturating_sub(size.div_ceil(PAGE) * PAGE);
        self.check("the initramfs", start.min(end), end)
            .ok()
            .filter(|range| range.start >= floor)
            .ok_or(LayoutError::Room {
                what: "the initramfs",
                start,
                end,
                limit: end,
            })
    }

    /// The VMM puts contents at `range`.
    pub fn load(&mut self, range: Range) {
        self.loaded.push(range);
    }

    /// `range` must be accepted before the kernel runs.
    pub fn need(&mut self, range: Range) {
        self.needed.push(range);
    }

    /// Pages with contents, in order, without overlap.
    pub fn loaded(&self) -> Vec<Range> {
        merge(self.loaded.clone())
    }

    /// For each unit, whether the kernel is to accept it.
    pub fn unaccepted(&self) -> Vec<bool> {
        let mut units = vec![self.lazy; (self.memory / UNIT) as usize];
        for range in self.loaded.iter().chain(&self.needed) {
            let last = range.end.div_ceil(UNIT) as usize;
            for unit in &mut units[(range.start / UNIT) as usize..last] {
                *unit = false;
            }
        }
        units
    }

    /// What the payload accepts: all of the units that are not left to the kernel,
    /// but for the pages with contents.
    pub fn accept(&self) -> Vec<Range> {
        let units = self.unaccepted();
        let taken = units.iter().enumerate().filter(|(_, lazy)| !**lazy);
        let taken = taken.map(|(n, _)| Range {
            start: n as u64 * UNIT,
            end: (n as u64 + 1) * UNIT,
        });
        let mut out = Vec::new();
        for unit in merge(taken.collect()) {
            let mut next = unit.start;
            for full in self.loaded() {
                if full.end <= unit.start || full.start >= unit.end {
                    continue;
                }
                if full.start > next {
                    out.push(Range {
                        start: next,
                        end: full.start,
                    });
                }
                next = next.max(full.end);
            }
            if next < unit.end {
                out.push(Range {
                    start: next,
                    end: unit.end,
                });
            }
        }
        out
    }

    /// The memory map of the kernel.
    pub fn map(&self) -> Vec<Region> {
        let top = self.tables();
        let region = |start, end, kind| Region {
            range: Range { start, end },
            kind,
        };
        use MemoryType::*;
        vec![
            region(0, LOW_END, Ram),
            region(LOW_END, HIGH_START, Reserved),
            region(HIGH_START, top, Ram),
            region(top, top + at::BOOT_PARAMS, Acpi),
            region(top + at::BOOT_PARAMS, top + at::MAILBOX, Reserved),
            region(top + at::MAILBOX, self.memory, Nvs),
            region(
                crate::payload::SLOT_GPA,
                crate::payload::SLOT_GPA + crate::payload::SLOT_SIZE,
                Reserved,
            ),
        ]
    }
}

/// Sorted, touching ranges joined.
fn merge(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort();
    let mut out: Vec<Range> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn layout() -> Layout {
        let mut layout = Layout::new(512 * MIB, true).unwrap();
        layout.load(Range::new(16 * MIB, 16 * MIB + 0x5123));
        layout.need(Range::new(16 * MIB, 21 * MIB));
        layout
    }

    #[test]
    fn memory_size_has_limits() {
        for bad in [0, 32 * MIB, 65 * MIB, 3073 * MIB, 4096 * MIB] {
            assert_eq!(
                Layout::new(bad, true).unwrap_err(),
                LayoutError::Memory(bad)
            );
        }
        for good in [64 * MIB, 512 * MIB, 3072 * MIB] {
            assert!(Layout::new(good, true).is_ok());
        }
    }

    /// Each page of RAM has contents, is accepted by the payload, or is left to the
    /// kernel: exactly one of these.
    #[test]
    fn every_page_has_one_owner() {
        for lazy in [true, false] {
            let mut layout = layout();
            layout.lazy = lazy;
            let units = layout.unaccepted();
            let within = |ranges: &[Range], gpa| {
                ranges
                    .iter()
                    .filter(|r| (r.start..r.end).contains(&gpa))
                    .count()
            };
            let (loaded, accept) = (layout.loaded(), layout.accept());
            for gpa in (0..layout.memory()).step_by(PAGE as usize) {
                let owners = within(&loaded, gpa)
                    + within(&accept, gpa)
                    + usize::from(units[(gpa / UNIT) as usize]);
                assert_eq!(owners, 1, "{gpa:x}");
            }
            assert_eq!(units.contains(&true), lazy);
        }
    }

    #[test]
    fn what_the_kernel_needs_is_not_left_to_it() {
        let units = layout().unaccepted();
        // 0..2M, 16M..22M, the unit of the tables.
        let taken: Vec<usize> = (0..256).filter(|n| !units[*n]).collect();
        assert_eq!(taken, [0, 8, 9, 10, 255]);
        assert_eq!(
            layout().accept(),
            [
                Range::new(0, 2 * MIB),
                Range::new(16 * MIB + 0x6000, 22 * MIB),
                Range::new(510 * MIB, 512 * MIB - TABLES_SIZE),
            ]
        );
    }

    #[test]
    fn map_covers_ram_without_overlap() {
        let map = layout().map();
        let mut next = 0;
        for region in &map[..map.len() - 1] {
            assert_eq!(region.range.start, next);
            assert!(region.range.end > next);
            next = region.range.end;
        }
        assert_eq!(next, 512 * MIB);
        assert_eq!(map.last().unwrap().range.end, 1 << 32);
    }

    #[test]
    fn initrd_lies_above_the_kernel() {
        let layout = layout();
        let range = layout.initrd(5000, 21 * MIB).unwrap();
        assert_eq!(range, Range::new(layout.tables() - 0x2000, layout.tables()));
        assert!(layout.initrd(500 * MIB, 21 * MIB).is_err());
        assert!(layout.initrd(600 * MIB, 21 * MIB).is_err());
        assert!(layout.check("x", 0x9_0000, 0x10_0000).is_err());
        assert!(layout.check("x", MIB, 512 * MIB).is_err());
    }

    #[test]
    fn ranges_are_merged() {
        let r = |start, end| Range { start, end };
        assert_eq!(
            merge(vec![r(8, 9), r(0, 3), r(3, 4), r(1, 2)]),
            [r(0, 4), r(8, 9)]
        );
    }
}
