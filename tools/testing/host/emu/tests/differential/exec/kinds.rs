// SPDX-License-Identifier: GPL-2.0

//! What a step can be, how often it is, and which answers have to come of it.

use super::super::model::BUSY;

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Leaf(u64),
    /// 512 pages for the parts of a table's range.
    Fill,
    Enter,
    Guest,
}

use Kind::*;

/// Kinds by weight.
pub const KINDS: [(u32, Kind); 22] = [
    (28, Leaf(3)),
    (16, Leaf(2)),
    (28, Leaf(6)),
    (28, Leaf(7)),
    (16, Leaf(39)),
    (16, Leaf(29)),
    (12, Leaf(5)),
    (12, Leaf(15)),
    (14, Leaf(23)),
    (12, Leaf(30)),
    (10, Leaf(25)),
    (20, Leaf(38)),
    (6, Leaf(16)),
    (1, Leaf(17)),
    (4, Leaf(24)),
    (4, Leaf(28)),
    (4, Leaf(41)),
    // Leaves that there are not.
    (2, Leaf(12)),
    (2, Leaf(0x8006)),
    (4, Fill),
    (20, Enter),
    (32, Guest),
];

/// Answers that a run must have seen, by leaf and class of the status.
pub const REACHED: [(u64, u64); 58] = [
    (0, BUSY),
    (0, 0xC000_0100_0000_0000),
    (0, 0xC000_0608_0000_0000),
    (0, 0x8000_0701_0000_0000),
    (2, 0),
    (2, BUSY),
    (2, 0xC000_0300_0000_0000),
    (2, 0xC000_0B0D_0000_0000),
    (3, 0),
    (3, BUSY),
    (3, 0xC000_0100_0000_0000),
    (3, 0xC000_0300_0000_0000),
    (3, 0xC000_0B00_0000_0000),
    (3, 0xC000_0B0D_0000_0000),
    (5, 0),
    (5, BUSY),
    (5, 0xC000_0300_0000_0000),
    (5, 0xC000_0B06_0000_0000),
    (5, 0xC000_0B08_0000_0000),
    (5, 0xC000_0B0D_0000_0000),
    (6, 0),
    (6, BUSY),
    (6, 0xC000_0100_0000_0000),
    (6, 0xC000_0101_0000_0000),
    (6, 0xC000_0300_0000_0000),
    (6, 0xC000_0B00_0000_0000),
    (6, 0xC000_0B0D_0000_0000),
    (7, 0),
    (7, BUSY),
    (7, 0x0000_0B07_0000_0000),
    (7, 0xC000_0B0D_0000_0000),
    (15, 0),
    (15, BUSY),
    (15, 0x8000_0004_0000_0000),
    (15, 0xC000_0B06_0000_0000),
    (15, 0xC000_0B0D_0000_0000),
    (16, 0),
    (17, 0),
    (23, 0),
    (23, BUSY),
    (23, 0x8000_0004_0000_0000),
    (23, 0xC000_0B06_0000_0000),
    (23, 0xC000_0B09_0000_0000),
    (25, 0),
    (25, BUSY),
    (28, 0xC000_0300_0000_0000),
    (28, 0xC000_0607_0000_0000),
    (29, 0),
    (29, BUSY),
    (29, 0xC000_0B06_0000_0000),
    (29, 0xC000_0B08_0000_0000),
    (30, 0),
    (30, 0xC000_0B0E_0000_0000),
    (38, 0),
    (38, BUSY),
    (38, 0x8000_0201_0000_0000),
    (39, 0),
    (39, 0xC000_0B08_0000_0000),
];
