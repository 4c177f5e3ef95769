// SPDX-License-Identifier: GPL-2.0

//! Encoding, transitions, positions.

#![forbid(unsafe_code)]

use super::td::Td;
use super::Outcome;
use crate::base::addr::{
    Gfn,
    GfnRange,
    Pfn,
    FRAME_BITS, //
};
use crate::base::level::{
    Level,
    Position, //
};
use crate::mirror::spte::{
    IllegalTransition as Bad,
    KvmEncoding,
    Spte,
    SpteKind,
    Transition,
    SUPPRESS_VE, //
};

const LEVELS: [Level; 5] = [
    Level::L4K,
    Level::L2M,
    Level::L1G,
    Level::L512G,
    Level::L256T,
];

/// Values of each kind, with two PFNs where there is one.
fn values() -> [Spte; 11] {
    let (a, b) = (pfn(0x1234), pfn(0x5678));
    [
        Spte::NON_PRESENT,
        Spte::FROZEN,
        Spte::leaf(a, Level::L4K),
        Spte::leaf(b, Level::L4K),
        Spte::leaf(a, Level::L2M),
        Spte::blocked(a),
        Spte::blocked(b),
        Spte::quarantined(a),
        Spte::quarantined(b),
        Spte::table(a),
        Spte::from_raw(0),
    ]
}

fn pfn(raw: u64) -> Pfn {
    Pfn::from_pa_bits(raw << 12)
}

/// The values that KVM sees are KVM's.
// Shows: R33.
pub fn values_are_kvms(_: &Td) -> Outcome {
    let ours = KvmEncoding::OURS;
    ensure!(ours.present_mask == 1 << 11);
    ensure!(ours.nonpresent == 1 << 63);
    ensure!(ours.frozen == (1 << 63) | 0x1a0);
    ensure!(Spte::NON_PRESENT.raw() == ours.nonpresent);
    ensure!(Spte::FROZEN.raw() == ours.frozen);
    Ok(())
}

/// No value that the mirror makes lets hardware turn a violation into #VE.
// Shows: R51.
pub fn every_value_suppresses_ve(_: &Td) -> Outcome {
    for value in values() {
        ensure!(value.raw() == 0 || value.raw() & SUPPRESS_VE != 0);
    }
    Ok(())
}

/// Each pair of values has one answer, and a second question gets the same.
pub fn every_pair_has_one_answer(_: &Td) -> Outcome {
    for at in LEVELS {
        for old in values() {
            for new in values() {
                let answer = Transition::classify(old, new, at);
                ensure!(answer == Transition::classify(old, new, at));
                let malformed =
                    old.kind(at) == SpteKind::Malformed || new.kind(at) == SpteKind::Malformed;
                ensure!(malformed == (answer == Err(Bad::Malformed)));
                ensure!(old != new || answer.is_err());
            }
        }
    }
    Ok(())
}

/// A leaf is mapped by one class of change only, from non-present.
// Shows: R27.
pub fn one_class_maps_a_leaf(_: &Td) -> Outcome {
    for at in LEVELS {
        for old in values() {
            for new in values() {
                let maps = matches!(
                    Transition::classify(old, new, at),
                    Ok(Transition::MapLeaf(_))
                );
                let is_leaf = matches!(new.kind(at), SpteKind::Leaf(_));
                ensure!(maps == (is_leaf && old == Spte::NON_PRESENT));
            }
        }
    }
    Ok(())
}

/// Bits of a present leaf may change; no call comes of it.
// Shows: R28.
pub fn bits_of_a_present_leaf_call_nothing(_: &Td) -> Outcome {
    let leaf = Spte::leaf(pfn(7), Level::L4K);
    for bit in [8u32, 9, 10, 52, 57, 58, 60, 61, 62] {
        let new = Spte::from_raw(leaf.raw() ^ 1u64.wrapping_shl(bit));
        let answer = Transition::classify(leaf, new, Level::L4K);
        ensure!(answer == Err(Bad::OverPresent));
    }
    Ok(())
}

/// Another page under a present leaf is a bug.
// Shows: R29.
pub fn another_pfn_is_a_bug(_: &Td) -> Outcome {
    for bit in 12u32..52 {
        let leaf = Spte::leaf(pfn(7), Level::L4K);
        let new = Spte::from_raw(leaf.raw() ^ 1u64.wrapping_shl(bit));
        ensure!(Transition::classify(leaf, new, Level::L4K) == Err(Bad::PfnChanged));
    }
    Ok(())
}

/// A table over a leaf, a leaf over a table, and a table over another are bugs.
// Shows: R30.
pub fn a_table_over_a_present_entry_is_a_bug(_: &Td) -> Outcome {
    let (leaf, table) = (Spte::leaf(pfn(1), Level::L2M), Spte::table(pfn(2)));
    for (old, new) in [(leaf, table), (table, leaf), (table, Spte::table(pfn(3)))] {
        ensure!(Transition::classify(old, new, Level::L2M) == Err(Bad::OverPresent));
    }
    let linked = Transition::classify(Spte::NON_PRESENT, table, Level::L2M);
    ensure!(linked == Ok(Transition::LinkTable(pfn(2))));
    Ok(())
}

/// A leaf without one of read, write and execute is not mapped.
// Shows: R32.
pub fn a_leaf_is_rwx(_: &Td) -> Outcome {
    for bit in 0u32..3 {
        let new = Spte::from_raw(Spte::leaf(pfn(1), Level::L4K).raw() ^ 1u64.wrapping_shl(bit));
        let answer = Transition::classify(Spte::NON_PRESENT, new, Level::L4K);
        ensure!(answer == Err(Bad::NotRwx));
    }
    Ok(())
}

/// What is quarantined stays as it is.
// Shows: R41.
pub fn quarantine_is_final(_: &Td) -> Outcome {
    let old = Spte::quarantined(pfn(0x1234));
    for new in values() {
        let answer = Transition::classify(old, new, Level::L4K);
        ensure!(answer.is_err());
    }
    Ok(())
}

/// Numbers of entries, alignment and the limits of ranges.
pub fn positions_and_ranges(_: &Td) -> Outcome {
    let gfn = need!(Gfn::new(0x1_2345_6789));
    for level in LEVELS {
        let at = Position::covering(gfn, level);
        ensure!(at.gfn().is_aligned(level));
        ensure!(at.gfn() <= gfn && gfn.as_u64() < at.gfn().as_u64().saturating_add(level.pages()));
        ensure!(level.index(gfn) < 512);
        ensure!(Level::from_kvm(level.as_kvm()) == Some(level));
    }
    ensure!(Level::from_kvm(0).is_none() && Level::from_kvm(6).is_none());
    ensure!(Gfn::new(1 << FRAME_BITS).is_none() && Pfn::new(1 << FRAME_BITS).is_none());
    ensure!(GfnRange::new(5, 5).is_none() && GfnRange::new(6, 5).is_none());
    ensure!(GfnRange::new(0, (1 << FRAME_BITS) + 1).is_none());
    let range = need!(GfnRange::new(511, 1025));
    let at = |raw| Gfn::new(raw);
    ensure!(range.contains_entry(need!(at(512)), Level::L2M));
    ensure!(!range.contains_entry(need!(at(1024)), Level::L2M));
    ensure!(range.contains_entry(need!(at(1024)), Level::L4K));
    Ok(())
}
