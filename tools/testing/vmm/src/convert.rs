// SPDX-License-Identifier: GPL-2.0
//! Conversions of memory between private and shared, cut into pieces.

use crate::layout::{Range, PAGE};

/// Bytes that are converted at a time, so that a vCPU can be stopped between two
/// pieces and the kernel is not long in one system call.
pub const CHUNK: u64 = 2 << 20;

/// A request of the TD, by MapGPA or by an access of the other kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversion {
    pub gpa: u64,
    pub size: u64,
    pub private: bool,
}

/// Slot number and range of each piece, in order: within a slot, at most [`CHUNK`], and
/// ending at a multiple of it where it can. `None` unless all of it lies in `slots` and
/// is whole pages.
pub fn chunks(conversion: &Conversion, slots: &[Range]) -> Option<Vec<(usize, Range)>> {
    let end = conversion.gpa.checked_add(conversion.size)?;
    if conversion.size == 0 || conversion.gpa % PAGE != 0 || conversion.size % PAGE != 0 {
        return None;
    }
    let mut out = Vec::new();
    let mut start = conversion.gpa;
    while start < end {
        let n = slots
            .iter()
            .position(|slot| (slot.start..slot.end).contains(&start))?;
        let next = ((start / CHUNK + 1) * CHUNK)
            .min(end)
            .min(slots.get(n)?.end);
        out.push((n, Range { start, end: next }));
        start = next;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn slots() -> Vec<Range> {
        vec![
            Range::new(0, 64 * MIB),
            Range::new(0xffff_0000, 1 << 32),
            Range::new(64 * MIB, 65 * MIB),
        ]
    }

    fn cut(gpa: u64, size: u64) -> Option<Vec<(usize, u64, u64)>> {
        let conversion = Conversion {
            gpa,
            size,
            private: false,
        };
        let chunks = chunks(&conversion, &slots())?;
        Some(
            chunks
                .into_iter()
                .map(|(n, r)| (n, r.start, r.end))
                .collect(),
        )
    }

    #[test]
    fn pieces_end_at_chunks_and_slots() {
        assert_eq!(cut(0x1000, 0x1000).unwrap(), [(0, 0x1000, 0x2000)]);
        assert_eq!(
            cut(3 * MIB, 4 * MIB).unwrap(),
            [
                (0, 3 * MIB, 4 * MIB),
                (0, 4 * MIB, 6 * MIB),
                (0, 6 * MIB, 7 * MIB)
            ]
        );
        assert_eq!(
            cut(63 * MIB, 2 * MIB).unwrap(),
            [(0, 63 * MIB, 64 * MIB), (2, 64 * MIB, 65 * MIB)]
        );
    }

    #[test]
    fn pieces_cover_the_request_once() {
        for (gpa, size) in [
            (0, 64 * MIB),
            (5 * MIB + 0x3000, 20 * MIB),
            (0xffff_0000, 0x1_0000),
        ] {
            let mut next = gpa;
            for (_, start, end) in cut(gpa, size).unwrap() {
                assert_eq!(start, next);
                assert!(end - start <= CHUNK && end > start);
                next = end;
            }
            assert_eq!(next, gpa + size);
        }
    }

    #[test]
    fn what_is_not_memory_is_refused() {
        assert_eq!(cut(64 * MIB, 2 * MIB), None);
        assert_eq!(cut(0xfec0_0000, 0x1000), None);
        assert_eq!(cut(0x1000, 0), None);
        assert_eq!(cut(0x1001, 0x1000), None);
        assert_eq!(cut(0x1000, 0x801), None);
        assert_eq!(cut(0xffff_f000, u64::MAX - 0xfff), None);
    }
}
