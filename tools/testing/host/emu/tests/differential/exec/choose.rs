// SPDX-License-Identifier: GPL-2.0

//! Operands for a step: mostly such that the call means something.

use super::*;

impl Run<'_> {
    /// Registers of a call, and the entry that it is about.
    pub(super) fn decode(&self, leaf: u64, s: &Step) -> (u64, Gpr, Option<Key>) {
        let m = s.more;
        let (rcx, key) = match leaf {
            2 => self.place(s.at, Want::Slot(0..=0)),
            3 => self.place(s.at, Want::Slot(1..=self.model.root)),
            6 => self.place(s.at, Want::Slot(0..=1)),
            15 => self.place(s.at, Want::Leaf(1..=2)),
            23 => self.place(s.at, Want::Table(1..=2)),
            30 => self.place(s.at, Want::Table(1..=self.model.root)),
            5 | 16 => self.place(s.at, Want::Leaf(0..=0)),
            29 => self.place(s.at, Want::Leaf(0..=2)),
            // What is blocked high up hides all that is below.
            7 => self.place(
                s.at,
                Want::Entry(0..=[0, 0, 1, 1, 1, 2, 2, self.model.root][pick(m, 8)]),
            ),
            _ => self.place(s.at, Want::Entry(0..=self.model.root)),
        };
        let level = key.map_or(0, |k| k.0);
        let page = self.page(s.page, if leaf == 6 { level } else { 0 });
        let mut tdr = match m % 64 {
            1 => {
                [
                    2,
                    4096,
                    1 << 46,
                    1 << 63,
                    RESERVED ^ TDR,
                    POOL ^ TDR,
                    1 << 52,
                ][pick(m / 64, 7)]
                    ^ TDR
            }
            _ => TDR,
        };
        if matches!(leaf, 3 | 25 | 15) && (m / 64) % 8 == 1 {
            tdr |= 1;
        }
        let versioned = matches!(leaf, 3 | 23 | 30);
        let version = match (m / 512) % 8 {
            1..=3 if versioned => 1,
            4 if versioned || m % 16 == 1 => 2,
            _ => 0,
        };
        let rax = leaf | (version << 16);
        let none = if version == 1 && m / 4096 != 1 {
            u64::MAX
        } else {
            u64::from(m)
        };
        let input = match leaf {
            2 if m / 4096 == 1 => [rcx, tdr, page, layout::SOURCE + 8, 0, 0],
            2 => [
                rcx,
                tdr,
                page,
                layout::SOURCE + 4096 * u64::from(m / 4096),
                0,
                0,
            ],
            16 => {
                let part = 256 * u64::from(m / 4096) + if m % 32 == 1 { 8 } else { 0 };
                [rcx & !7 | part, tdr, page, 0, 0, 0]
            }
            17 | 38 => [tdr, rcx, page, none, 0, 0],
            24 | 28 | 41 => {
                let pa = match (m & 3, key.map(|k| self.model.get(k))) {
                    (1, Some(Entry::Table { page, .. } | Entry::Leaf { page, .. })) => {
                        page + 4096 * u64::from(m / 4096)
                    }
                    _ => page,
                };
                let hkid = if m % 8 > 3 { HKID << 46 } else { 0 };
                [if leaf == 41 { pa | hkid } else { pa }, 1, 2, 3, 4, 5]
            }
            _ => [rcx, tdr, page, none, none, none],
        };
        let is_about_entry = matches!(leaf, 2 | 3 | 5 | 6 | 7 | 15 | 23 | 25 | 29 | 30 | 39);
        (rax, input, key.filter(|_| is_about_entry))
    }

    /// RCX, and the entry that it names if it names one.
    pub(super) fn place(&self, at: u16, want: Want) -> (u64, Option<Key>) {
        let (how, n) = (at % 16, at / 16);
        let named = |key: Key| (key.1 | u64::from(key.0), Some(key));
        let gpas = [
            0,
            1 << 30,
            1 << 39,
            (1 << 47) - (1 << 30),
            1 << 47,
            1 << 48,
            1 << 50,
            1 << 51,
        ];
        let grid = |level: u8| {
            let large = [0, 1, 2, 511][pick(n / 8, 4)] * CHUNK;
            let small = [0, 1, 511, 0][pick(n / 32, 4)] * 4096;
            // Addresses that are not private only now and then.
            let base = if how == 15 { pick(n, 8) } else { pick(n, 3) };
            let gpa = gpas[base] + large + small;
            (level, gpa & !(span(level.min(4)) - 1))
        };
        match how {
            0..=11 => self
                .existing(n, &want)
                .map_or_else(|| named(grid(want.low())), named),
            12 | 13 => named(grid(pick(n / 128, 3) as u8)),
            14 => {
                let (level, gpa) = grid(pick(n / 128, 8) as u8);
                (gpa | u64::from(level), (level < 5).then_some((level, gpa)))
            }
            _ => {
                let (level, gpa) = grid(pick(n / 128, 3) as u8);
                let junk = [0, 8, 1 << 11, 1 << 52, 1 << 63, 1 << 12][pick(n / 512, 6)];
                ((gpa ^ junk) | u64::from(level), None)
            }
        }
    }

    /// The nth entry of the wanted sort.
    pub(super) fn existing(&self, n: u16, want: &Want) -> Option<Key> {
        let entries = &self.model.entries;
        let is_table = |e: &Entry| matches!(e, Entry::Table { .. });
        match want {
            Want::Slot(levels) => {
                let root = (self.model.root + 1, 0);
                let tables = entries.iter().filter(|(_, e)| is_table(e)).map(|(k, _)| *k);
                let fit = |k: &Key| k.0 > 0 && levels.contains(&(k.0 - 1));
                let tables: Vec<Key> = tables.chain([root]).filter(fit).collect();
                let (level, gpa) = *tables.get(pick(n, tables.len().max(1)))?;
                let slot = [0, 1, 2, 511][pick(n / tables.len() as u16, 4)];
                Some((level - 1, gpa + slot * span(level - 1)))
            }
            Want::Entry(levels) | Want::Table(levels) | Want::Leaf(levels) => {
                let fits = |e: &Entry| match want {
                    Want::Table(_) => is_table(e),
                    Want::Leaf(_) => matches!(e, Entry::Leaf { .. }),
                    _ => true,
                };
                let of = |level: u8| {
                    let all = entries.range((level, 0)..=(level, u64::MAX));
                    all.filter(|(_, e)| fits(e)).map(|(k, _)| *k)
                };
                let levels: Vec<u8> = levels.clone().filter(|&l| of(l).next().is_some()).collect();
                let level = *levels.get(pick(n, levels.len().max(1)))?;
                let count = of(level).count();
                of(level).nth(pick(n / levels.len() as u16, count))
            }
        }
    }

    pub(super) fn page(&self, p: u16, level: u8) -> u64 {
        let (how, n) = (p % 16, p / 16);
        let free = |base: u64, count: u64, size: u8| {
            let all = (0..count).map(|i| base + i * span(size));
            let free: Vec<u64> = all
                .filter(|&pa| self.model.page(pa, size).kind == NDA)
                .collect();
            free.get(pick(n, free.len().clamp(1, 8)))
                .copied()
                .unwrap_or(base)
        };
        let special = [
            TDR,
            TDVPR[0],
            TDR + 4096,
            RESERVED,
            0x1000,
            TDMR + TDMR_SIZE,
            LARGE,
            CHUNKS,
        ];
        let junk = [8, 1 << 46, 1 << 52, !POOL, 1 << 63, !(1 << 63) ^ POOL];
        match (how, level) {
            (12, _) => special[pick(n, 8)],
            (13, _) => POOL ^ junk[pick(n, 6)],
            (10, 0) => POOL + 4096 * (u64::from(n) % POOL_PAGES),
            (10, _) => LARGE + CHUNK * u64::from(n % 512),
            (11, 0) => CHUNKS + CHUNK * u64::from(n % 6) + 4096 * u64::from(n / 6 % 4),
            (11, _) => POOL & !(CHUNK - 1),
            (_, 0) => free(POOL, POOL_PAGES, 0),
            _ => free(CHUNKS, 6, 1),
        }
    }
}

/// `n` modulo `of`, as an index.
pub(super) fn pick(n: u16, of: usize) -> usize {
    usize::from(n) % of
}

/// What sort of entry a leaf is best tried on, by levels.
pub(super) enum Want {
    /// One that exists.
    Entry(RangeInclusive<u8>),
    Table(RangeInclusive<u8>),
    Leaf(RangeInclusive<u8>),
    /// A place in a table.
    Slot(RangeInclusive<u8>),
}

impl Want {
    pub(super) fn low(&self) -> u8 {
        match self {
            Want::Entry(l) | Want::Table(l) | Want::Leaf(l) | Want::Slot(l) => *l.start(),
        }
    }
}
