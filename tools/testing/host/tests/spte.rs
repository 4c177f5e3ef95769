// SPDX-License-Identifier: GPL-2.0

//! Encoding and classification of SPTEs, addresses and statuses.

use proptest::prelude::*;
use tdx_mirror_host::base::addr::{Gfn, GfnRange, Pfn};
use tdx_mirror_host::base::level::{Level, Position};
use tdx_mirror_host::mirror::error::ConfigError;
use tdx_mirror_host::mirror::mmu::Config;
use tdx_mirror_host::mirror::spte::{
    IllegalTransition as Bad, KvmEncoding, Spte, SpteKind, Transition,
};
use tdx_mirror_host::tdx::leaf::Leaf;
use tdx_mirror_host::tdx::sept::{EntryInfo, SeptState};
use tdx_mirror_host::tdx::status::{OperandId, TdxStatus};

const LEVELS: [Level; 5] = [
    Level::L4K,
    Level::L2M,
    Level::L1G,
    Level::L512G,
    Level::L256T,
];

fn pfn(n: u64) -> Pfn {
    Pfn::new(n).unwrap()
}

/// One value of each kind that is legal at `level`, with the PFN `n`.
fn values(level: Level, n: u64) -> Vec<Spte> {
    let mut v = vec![
        Spte::NON_PRESENT,
        Spte::FROZEN,
        Spte::blocked(pfn(n)),
        Spte::quarantined(pfn(n)),
    ];
    if level <= Level::L1G {
        v.push(Spte::leaf(pfn(n), level));
    }
    if level > Level::L4K {
        v.push(Spte::table(pfn(n)));
    }
    v
}

// Shows: R33.
#[test]
fn encoding_is_kvms() {
    assert_eq!(
        KvmEncoding::OURS,
        KvmEncoding {
            present_mask: 1 << 11,
            frozen: 0x8000_0000_0000_01a0,
            nonpresent: 0x8000_0000_0000_0000,
        }
    );
    let ok = Config::for_td(35, 4, KvmEncoding::OURS);
    assert_eq!(ok.map(Config::gfn_bits), Ok(35));
    assert!(ok.is_ok());
    for flip in 0..3 {
        let mut kvm = KvmEncoding::OURS;
        *[&mut kvm.present_mask, &mut kvm.frozen, &mut kvm.nonpresent][flip] ^= 1 << 40;
        assert_eq!(Config::for_td(35, 4, kvm), Err(ConfigError::Encoding));
    }
}

#[test]
fn config_limits() {
    let td = |bits, level| Config::for_td(bits, level, KvmEncoding::OURS);
    for level in [0, 1, 2, 3, 6, u32::MAX] {
        assert_eq!(td(35, level), Err(ConfigError::RootLevel));
    }
    assert!(td(36, 4).is_ok());
    assert_eq!(td(37, 4), Err(ConfigError::GfnBits));
    assert!(td(40, 5).is_ok());
    assert_eq!(td(41, 5), Err(ConfigError::GfnBits));
    assert_eq!(td(0, 4), Err(ConfigError::GfnBits));
    assert_eq!(Config::new(9, Level::L4K), Err(ConfigError::RootLevel));
}

// Shows: R51.
#[test]
fn every_value_suppresses_ve() {
    for level in LEVELS {
        for v in values(level, 0xff_ffff_ffff) {
            assert_ne!(v.raw() & 1 << 63, 0, "{v:?}");
        }
    }
    assert_eq!(Spte::NON_PRESENT.raw() & 1 << 11, 0);
    assert_eq!(Spte::FROZEN.raw() & 1 << 11, 0);
}

#[test]
fn values_keep_kind_and_pfn() {
    for level in LEVELS {
        for n in [0, 1, 0x1234_5678, (1 << 40) - 1] {
            let p = pfn(n);
            assert_eq!(Spte::blocked(p).kind(level), SpteKind::Blocked(p));
            assert_eq!(Spte::quarantined(p).kind(level), SpteKind::Quarantined(p));
            if level <= Level::L1G {
                assert_eq!(Spte::leaf(p, level).kind(level), SpteKind::Leaf(p));
            }
            if level > Level::L4K {
                assert_eq!(Spte::table(p).kind(level), SpteKind::Table(p));
            }
        }
        assert_eq!(Spte::NON_PRESENT.kind(level), SpteKind::NonPresent);
        assert_eq!(Spte::FROZEN.kind(level), SpteKind::Frozen);
        // A zeroed page is no mirror table.
        assert_eq!(Spte::from_raw(0).kind(level), SpteKind::Malformed);
    }
}

// Shows: R27.
#[test]
fn one_class_maps_a_leaf() {
    for level in LEVELS {
        for old in values(level, 3) {
            for new in values(level, 3).into_iter().chain(values(level, 4)) {
                let class = Transition::classify(old, new, level);
                let maps = matches!(class, Ok(Transition::MapLeaf(_)));
                let is_leaf = matches!(new.kind(level), SpteKind::Leaf(_));
                assert_eq!(
                    maps,
                    old == Spte::NON_PRESENT && is_leaf,
                    "{old:?} -> {new:?} at {level:?}: {class:?}"
                );
            }
        }
    }
}

/// Every pair of kinds and what a map of one over the other means, written down instead of
/// computed.
///
/// Columns are new values in the order of the rows: non-present, frozen, blocked and quarantined
/// with the PFNs a and b, leaf a, leaf b, leaf a with other bits, leaf a without write, table a,
/// table b, malformed.  Capitals are legal: Map, linK.
const CHANGES: [(&str, &str); 13] = [
    ("non-present", "nnnnnnMMMxKKm"),
    ("frozen", "ffffffffffffm"),
    ("blocked a", "bbbbbbbbbbbbm"),
    ("blocked b", "bbbbbbbbbbbbm"),
    ("quarantined a", "qqqqqqqqqqqqm"),
    ("quarantined b", "qqqqqqqqqqqqm"),
    ("leaf a", "nnnnnnopoooom"),
    ("leaf b", "nnnnnnpoppoom"),
    ("leaf a, other bits", "nnnnnnopoooom"),
    ("leaf a, read-only", "nnnnnnopoooom"),
    ("table a", "nnnnnnoooooom"),
    ("table b", "nnnnnnoooooom"),
    ("malformed", "mmmmmmmmmmmmm"),
];

fn letter(class: Result<Transition, Bad>) -> char {
    match class {
        Ok(Transition::MapLeaf(_)) => 'M',
        Ok(Transition::LinkTable(_)) => 'K',
        Err(Bad::PfnChanged) => 'p',
        Err(Bad::NotRwx) => 'x',
        Err(Bad::OverPresent) => 'o',
        Err(Bad::FromFrozen) => 'f',
        Err(Bad::FromBlocked) => 'b',
        Err(Bad::FromQuarantined) => 'q',
        Err(Bad::Malformed) => 'm',
        Err(Bad::NothingMapped) => 'n',
    }
}

/// The PFN that a legal change is about.
fn subject(class: Transition) -> Pfn {
    match class {
        Transition::MapLeaf(p) | Transition::LinkTable(p) => p,
    }
}

// Shows: R27, R29, R30, R32.
#[test]
fn every_change_has_its_class() {
    let (a, b) = (pfn(0x4_0000), pfn(0x8_0000));
    for level in LEVELS {
        let leaf = |p| Spte::leaf(p, level);
        let values = [
            Spte::NON_PRESENT,
            Spte::FROZEN,
            Spte::blocked(a),
            Spte::blocked(b),
            Spte::quarantined(a),
            Spte::quarantined(b),
            leaf(a),
            leaf(b),
            Spte::from_raw(leaf(a).raw() | (3 << 8)),
            Spte::from_raw(leaf(a).raw() & !2),
            Spte::table(a),
            Spte::table(b),
            Spte::from_raw(0),
        ];
        // No leaf is that large, no table that low.
        let exists = |i: usize| match i {
            6..=9 => level <= Level::L1G,
            10 | 11 => level > Level::L4K,
            _ => true,
        };
        let pfn_of = |i: usize| if matches!(i, 7 | 11) { b } else { a };
        for (i, old) in values.into_iter().enumerate().filter(|(i, _)| exists(*i)) {
            for (j, new) in values.into_iter().enumerate().filter(|(j, _)| exists(*j)) {
                let (name, row) = CHANGES[i];
                let class = Transition::classify(old, new, level);
                assert_eq!(
                    letter(class),
                    row.chars().nth(j).unwrap(),
                    "{name} to {} at {level:?}",
                    CHANGES[j].0
                );
                if let Ok(class) = class {
                    assert_eq!(subject(class), pfn_of(j), "{name} at {level:?}");
                }
            }
        }
    }
}

// Shows: R28.
#[test]
fn bits_of_a_present_leaf_call_nothing() {
    for level in [Level::L4K, Level::L2M, Level::L1G] {
        let old = Spte::leaf(pfn(0x5555), level);
        for bit in 0..64 {
            let new = Spte::from_raw(old.raw() ^ 1 << bit);
            for (old, new) in [(old, new), (new, old)] {
                let class = Transition::classify(old, new, level);
                assert!(class.is_err(), "bit {bit} at {level:?}: {class:?}");
            }
        }
        for accessed_dirty in [1 << 8, 1 << 9, 3 << 8] {
            let new = Spte::from_raw(old.raw() | accessed_dirty);
            assert_eq!(Transition::classify(old, new, level), Err(Bad::OverPresent));
        }
    }
}

// Shows: R29.
#[test]
fn another_pfn_is_a_bug() {
    for level in [Level::L4K, Level::L2M, Level::L1G] {
        let old = Spte::leaf(pfn(3), level);
        let new = Spte::leaf(pfn(4), level);
        assert_eq!(Transition::classify(old, new, level), Err(Bad::PfnChanged));
    }
}

// Shows: R30.
#[test]
fn table_over_a_present_entry() {
    for level in [Level::L2M, Level::L1G] {
        let leaf = Spte::leaf(pfn(3), level);
        let table = Spte::table(pfn(4));
        assert_eq!(
            Transition::classify(leaf, table, level),
            Err(Bad::OverPresent)
        );
        assert_eq!(
            Transition::classify(table, leaf, level),
            Err(Bad::OverPresent)
        );
        assert_eq!(
            Transition::classify(table, Spte::table(pfn(5)), level),
            Err(Bad::OverPresent)
        );
    }
}

// Shows: R32.
#[test]
fn leaf_without_rwx() {
    let leaf = Spte::leaf(pfn(3), Level::L4K);
    for bit in 0..3 {
        let new = Spte::from_raw(leaf.raw() & !(1 << bit));
        assert_eq!(
            Transition::classify(Spte::NON_PRESENT, new, Level::L4K),
            Err(Bad::NotRwx)
        );
    }
}

#[test]
fn a_map_leaves_what_others_hold() {
    for level in LEVELS {
        for new in values(level, 3).into_iter().chain(values(level, 4)) {
            for (old, why) in [
                (Spte::quarantined(pfn(3)), Bad::FromQuarantined),
                (Spte::blocked(pfn(3)), Bad::FromBlocked),
                (Spte::FROZEN, Bad::FromFrozen),
            ] {
                assert_eq!(Transition::classify(old, new, level), Err(why), "{new:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    /// Whatever is in memory has one meaning, and no change of it panics.
    #[test]
    fn classification_is_total(old: u64, new: u64, level in 0usize..5, near: bool) {
        let level = LEVELS[level];
        // Random values are mostly malformed; near ones differ from a real value in a bit.
        let pick = |raw: u64| {
            let all = values(level, raw >> 24);
            let v = all[raw as usize % all.len()];
            if near { Spte::from_raw(v.raw() ^ (raw & 1) << (raw >> 1 & 63)) } else { Spte::from_raw(raw) }
        };
        let (old, new) = (pick(old), pick(new));
        match Transition::classify(old, new, level) {
            Ok(Transition::MapLeaf(p)) => {
                prop_assert_eq!(old, Spte::NON_PRESENT);
                prop_assert_eq!(new.kind(level), SpteKind::Leaf(p));
            }
            Ok(Transition::LinkTable(p)) => {
                prop_assert_eq!(old, Spte::NON_PRESENT);
                prop_assert_eq!(new.kind(level), SpteKind::Table(p));
            }
            Err(why) => prop_assert_eq!(
                why == Bad::Malformed,
                [old, new].iter().any(|v| v.kind(level) == SpteKind::Malformed)
            ),
        }
    }

    // Shows: B18.
    #[test]
    fn ranges_at_the_limits(start: u64, len: u64, limit_bits in 1u32..41, snap: bool) {
        // Snapped ones lie around the end of the GFNs.
        let start = if snap { (1u64 << 40).wrapping_add(start % 5).wrapping_sub(2) } else { start };
        let len = if snap { len % 5 } else { len };
        let end = start.wrapping_add(len);
        match GfnRange::new(start, end) {
            Some(r) => {
                prop_assert!(r.start() < r.end() && r.end() <= 1 << 40);
                if let Some(cut) = r.below(1 << limit_bits) {
                    prop_assert!(cut.start() < cut.end() && cut.end() <= 1 << limit_bits);
                    prop_assert_eq!(cut.start(), r.start());
                } else {
                    prop_assert!(r.start() >= 1 << limit_bits);
                }
            }
            None => prop_assert!(start >= end || end > 1 << 40),
        }
    }

    #[test]
    fn positions_cover_their_gfn(gfn in 0u64..1 << 40, level in 0usize..5) {
        let level = LEVELS[level];
        let at = Position::covering(Gfn::new(gfn).unwrap(), level);
        prop_assert!(at.gfn().is_aligned(level));
        prop_assert!(at.gfn().as_u64() <= gfn && gfn - at.gfn().as_u64() < level.pages());
        prop_assert!(level.index(at.gfn()) < 512);
        // Index and table position together are the GFN.
        let table = gfn.checked_shr(level.gfn_bits()).unwrap_or(0);
        let rebuilt = (table << level.gfn_bits()) | (level.index(at.gfn()) as u64 * level.pages());
        prop_assert_eq!(rebuilt, at.gfn().as_u64());
    }
}

#[test]
fn frames_have_40_bits() {
    assert!(Gfn::new((1 << 40) - 1).is_some() && Gfn::new(1 << 40).is_none());
    assert!(Pfn::new((1 << 40) - 1).is_some() && Pfn::new(1 << 40).is_none());
    assert_eq!(Gfn::new(0x12).unwrap().gpa(), 0x12000);
    assert_eq!(Pfn::new(0x12).unwrap().pa(), 0x12000);
    assert_eq!(Pfn::from_pa_bits(u64::MAX).as_u64(), (1 << 40) - 1);
}

#[test]
fn entries_that_a_range_contains() {
    let r = GfnRange::new(512, 1024).unwrap();
    let g = |n| Gfn::new(n).unwrap();
    assert!(r.contains_entry(g(512), Level::L2M));
    assert!(r.contains_entry(g(1023), Level::L4K));
    assert!(!r.contains_entry(g(1024), Level::L4K));
    assert!(!r.contains_entry(g(511), Level::L4K));
    assert!(!GfnRange::new(513, 1024)
        .unwrap()
        .contains_entry(g(512), Level::L2M));
    assert!(!GfnRange::new(512, 1023)
        .unwrap()
        .contains_entry(g(512), Level::L2M));
}

#[test]
fn levels_are_kvms_and_the_tdx_modules() {
    for (i, level) in LEVELS.into_iter().enumerate() {
        assert_eq!(level.as_kvm(), i as i32 + 1);
        assert_eq!(level.as_sept(), i as u64);
        assert_eq!(Level::from_kvm(i as i32 + 1), Some(level));
        assert_eq!(level.pages(), 512u64.pow(i as u32));
        assert_eq!(level.child(), i.checked_sub(1).map(|i| LEVELS[i]));
    }
    for bad in [i32::MIN, -1, 0, 6, i32::MAX] {
        assert_eq!(Level::from_kvm(bad), None);
    }
}

#[test]
fn statuses_decode_and_print() {
    let s = TdxStatus::new(0x8000_0200_0000_0092);
    assert!(s.is_operand_busy() && s.is_error() && !s.is_success());
    assert_eq!(s.operand(), OperandId::SEPT_TREE);
    assert_eq!(format!("{s:?}"), "OPERAND_BUSY|SEPT_TREE");
    assert_eq!(
        TdxStatus::OPERAND_BUSY.with_operand(OperandId::SEPT_TREE),
        s
    );
    assert_eq!(format!("{:?}", TdxStatus::SUCCESS), "SUCCESS");
    assert!(!TdxStatus::GPA_RANGE_ALREADY_BLOCKED.is_error());
    // A code of a later module survives.
    let unknown = TdxStatus::new(0x8000_7777_0000_0003);
    assert_eq!(unknown.raw(), 0x8000_7777_0000_0003);
    assert_eq!(format!("{unknown:?}"), "0x8000777700000003");
    assert!(!TdxStatus::PREVIOUS_TLB_EPOCH_BUSY.is_operand_busy());
    assert_eq!(format!("{:?}", OperandId::new(0x77)), "0x77");
}

#[test]
fn leaves_and_states_print() {
    assert_eq!(format!("{:?}", Leaf::new(6)), "TDH.MEM.PAGE.AUG");
    assert_eq!(format!("{:?}", Leaf::new(999)), "leaf 999");
    assert_eq!(Leaf::MEM_PAGE_REMOVE.as_u16(), 29);
    let info = EntryInfo::decode(0x8080_0000_1234_50f0, 0x0100);
    assert_eq!(info.level, Some(Level::L4K));
    assert_eq!(info.state, SeptState::BLOCKED);
    assert_eq!(EntryInfo::decode(7, 0x8403).level, Some(Level::L512G));
    assert_eq!(EntryInfo::decode(7, 0x8403).state, SeptState::NL_MAPPED);
    assert_eq!(EntryInfo::decode(0, 7).level, None);
    assert_eq!(format!("{:?}", SeptState::new(0x42)), "state 0x42");
}
