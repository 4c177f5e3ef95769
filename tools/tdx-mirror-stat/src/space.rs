// SPDX-License-Identifier: GPL-2.0
//! A picture of a TD's guest physical address space, from its `map` file.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::{bail, Context, Result};
use serde::Serialize;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// States in the order in which one hides another in the same cell.
pub const STATES: [(&str, char, [u8; 3]); 5] = [
    ("mapped", '#', [0x3b, 0x9c, 0x4e]),
    ("pending", '+', [0xe8, 0xc5, 0x3a]),
    ("blocked", 'b', [0x3c, 0x78, 0xd8]),
    ("quarantined", 'Q', [0xd0, 0x34, 0x2c]),
    ("differs", '!', [0xa0, 0x20, 0xc0]),
];
const FREE: (char, [u8; 3]) = ('.', [0xee, 0xee, 0xee]);
/// A cell of which some pages are free.
const PARTLY: char = 'o';

/// A run of GFNs in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    pub start: u64,
    /// First GFN behind it.
    pub end: u64,
    #[serde(serialize_with = "name_of")]
    pub state: usize,
}

fn name_of<S: serde::Serializer>(state: &usize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(STATES[*state].0)
}

fn gfn(word: &str) -> Option<u64> {
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()
}

/// Parses `0xSTART 0xEND state` lines, which must ascend.
pub fn parse(text: &str) -> Result<Vec<Range>> {
    let mut ranges: Vec<Range> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [start, end, state] = words[..] else {
            bail!("'{line}' is not 'START END state'");
        };
        let (Some(start), Some(end)) = (gfn(start), gfn(end)) else {
            bail!("'{line}' has no GFNs");
        };
        let state = STATES
            .iter()
            .position(|(name, ..)| *name == state)
            .with_context(|| format!("'{line}' has a state that is not known"))?;
        if start >= end || ranges.last().is_some_and(|last| last.end > start) {
            bail!("'{line}' does not ascend");
        }
        ranges.push(Range { start, end, state });
    }
    Ok(ranges)
}

/// Pages in each state.
pub fn sums(ranges: &[Range]) -> [u64; STATES.len()] {
    let mut sums = [0; STATES.len()];
    for range in ranges {
        sums[range.state] += range.end - range.start;
    }
    sums
}

/// Rows of cells; rows without a page are left out.
#[derive(Debug, PartialEq)]
pub struct Grid {
    /// Pages of a cell, a power of two.
    pub cell: u64,
    pub width: u64,
    /// First GFN of a row, and its cells: pages in each state.
    pub rows: Vec<(u64, Vec<[u64; STATES.len()]>)>,
}

impl Grid {
    /// The finest grid of `width` cells in a row that needs at most `height` rows.
    pub fn new(ranges: &[Range], width: u64, height: usize) -> Self {
        let mut cell = 1;
        while Self::rows_needed(ranges, cell * width, height) > height {
            cell *= 2;
        }
        let mut rows: Vec<(u64, Vec<[u64; STATES.len()]>)> = Vec::new();
        for range in ranges {
            let mut at = range.start;
            while at < range.end {
                let row = at - at % (cell * width);
                if rows.last().map(|(first, _)| *first) != Some(row) {
                    rows.push((row, vec![[0; STATES.len()]; width as usize]));
                }
                let end = range
                    .end
                    .min((at / cell).saturating_add(1).saturating_mul(cell));
                if let Some((_, cells)) = rows.last_mut() {
                    cells[((at - row) / cell) as usize][range.state] += end - at;
                }
                at = end;
            }
        }
        Self { cell, width, rows }
    }

    /// Rows of so many pages that hold something; not counted beyond `enough`.
    fn rows_needed(ranges: &[Range], pages: u64, enough: usize) -> usize {
        let (mut count, mut next) = (0usize, 0);
        for range in ranges {
            let first = (range.start / pages).max(next);
            let last = (range.end - 1) / pages;
            if last >= first {
                count = count.saturating_add((last - first + 1) as usize);
                next = last + 1;
            }
            if count > enough {
                break;
            }
        }
        count
    }

    /// The state that a cell shows.
    fn shown(cell: &[u64; STATES.len()]) -> Option<usize> {
        (0..STATES.len()).rev().find(|state| cell[*state] != 0)
    }

    /// For a terminal: a line per row with its GPA, `...` where rows are left out.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut next = None;
        for (first, cells) in &self.rows {
            if next.is_some_and(|next| next != *first) {
                text.push_str("             ...\n");
            }
            next = Some(first + self.cell * self.width);
            let line: String = cells
                .iter()
                .map(|cell| match Self::shown(cell) {
                    None => FREE.0,
                    Some(0) if cell[0] < self.cell => PARTLY,
                    Some(state) => STATES[state].1,
                })
                .collect();
            let _ = writeln!(text, "{:>#12x} {line}", first * PAGE);
        }
        text
    }

    /// As a PNG; each cell is a square of `size` pixels.
    pub fn png(&self, out: impl Write, size: usize) -> Result<()> {
        let width = self.width as usize * size;
        let height = self.rows.len().max(1) * size;
        let mut pixels = Vec::with_capacity(width * height * 3);
        let empty = vec![[0; STATES.len()]; self.width as usize];
        let rows = self.rows.iter().map(|(_, cells)| cells);
        let rows: Vec<_> = if self.rows.is_empty() {
            vec![&empty]
        } else {
            rows.collect()
        };
        for cells in rows {
            let line: Vec<u8> = cells
                .iter()
                .flat_map(|cell| Self::colour(cell, self.cell).repeat(size))
                .collect();
            pixels.extend(line.repeat(size));
        }
        let mut encoder = png::Encoder::new(out, width as u32, height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header()?.write_image_data(&pixels)?;
        Ok(())
    }

    /// The state's colour, paler the less of the cell is mapped.
    fn colour(cell: &[u64; STATES.len()], pages: u64) -> [u8; 3] {
        let Some(state) = Self::shown(cell) else {
            return FREE.1;
        };
        let colour = STATES[state].2;
        if state != 0 || cell[0] >= pages {
            return colour;
        }
        // Never so pale that a single page is not seen.
        let share = 64 + 191 * cell[0] / pages;
        std::array::from_fn(|i| {
            let (free, full) = (u64::from(FREE.1[i]), u64::from(colour[i]));
            ((full * share + free * (255 - share)) / 255) as u8
        })
    }
}

/// The legend below a picture, with the pages in each state.
pub fn legend(ranges: &[Range], cell: u64) -> String {
    let mut text = format!(
        "a cell is {} KiB; {} free, {PARTLY} partly mapped",
        cell * PAGE / 1024,
        FREE.0
    );
    for ((name, sign, _), pages) in STATES.iter().zip(sums(ranges)) {
        let _ = write!(text, ", {sign} {name} {pages}");
    }
    text.push_str(" pages\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = include_str!("../tests/data/167-3/map");

    #[test]
    fn recorded_map() {
        let ranges = parse(MAP).unwrap();
        assert_eq!(sums(&ranges), [17, 13, 0, 0, 0]);
        let grid = Grid::new(&ranges, 16, 8);
        assert_eq!(grid.cell, 1);
        assert_eq!(
            grid.text(),
            "         0x0 ################\n     0x10000 +.+++++++++++.+.\n             ...\n  0xffff0000 ...............#\n"
        );
    }

    #[test]
    fn coarser_when_it_must_fit() {
        let ranges = parse("0x0 0x400 mapped\n0x500 0x501 blocked\n").unwrap();
        let grid = Grid::new(&ranges, 16, 4);
        assert_eq!(grid.cell, 0x20);
        assert_eq!(grid.rows.len(), 3);
        assert_eq!(
            grid.text().lines().last(),
            Some("    0x400000 ........b.......")
        );
        assert_eq!(Grid::new(&ranges, 16, 1).cell, 128);
    }

    #[test]
    fn worse_states_hide_better_ones() {
        let ranges =
            parse("0x0 0x3 mapped\n0x3 0x4 quarantined\n0x4 0x7 mapped\n0x8 0xc pending\n")
                .unwrap();
        let grid = Grid::new(&ranges, 4, 1);
        assert_eq!(grid.cell, 4);
        assert_eq!(grid.text(), "         0x0 Qo+.\n");
    }

    #[test]
    fn the_ends_of_the_address_space() {
        let last = format!("{:#x}", (1u64 << 39) - 1);
        let end = format!("{:#x}", 1u64 << 39);
        let ranges = parse(&format!("0x0 0x1 mapped\n{last} {end} mapped\n")).unwrap();
        let grid = Grid::new(&ranges, 64, 24);
        assert_eq!((grid.cell, grid.rows.len()), (1, 2));
        // A huge range ends quickly, too.
        let grid = Grid::new(&parse(&format!("0x0 {end} mapped\n")).unwrap(), 64, 24);
        assert!(grid.rows.len() <= 24 && grid.text().matches('#').count() >= 12 * 64);
    }

    #[test]
    fn damaged_maps() {
        for text in [
            "0x0 0x1",
            "0x0 1 mapped",
            "0x1 0x1 mapped",
            "0x0 0x2 mapped\n0x1 0x3 mapped",
            "0x0 0x1 lost",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn a_png_that_reads_back() {
        let grid = Grid::new(&parse(MAP).unwrap(), 16, 8);
        let mut file = Vec::new();
        grid.png(&mut file, 3).unwrap();
        let decoder = png::Decoder::new(std::io::Cursor::new(file));
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (48, 9));
        let pixel = |x: usize, y: usize| &pixels[(y * 48 + x) * 3..][..3];
        assert_eq!(pixel(0, 0), STATES[0].2);
        assert_eq!(pixel(2, 5), STATES[1].2);
        assert_eq!(pixel(3, 3), FREE.1);
        assert_eq!(pixel(47, 8), STATES[0].2);
        let mut file = Vec::new();
        Grid::new(&[], 16, 8).png(&mut file, 1).unwrap();
        assert!(file.starts_with(b"\x89PNG"));
    }
}
