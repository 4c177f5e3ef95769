// SPDX-License-Identifier: GPL-2.0

//! The version table once more, as the published sources of the releases have it: each cell of
//! tdx_emu/module/version.rs is compared with one here. What the cells do is for the recordings
//! and for tests/versions.rs.

use crate::module::lock::Mode;
use crate::module::version::{Details, Entries, Handoff, Rules, TreeLock, TABLE};

const RELEASES: [&str; 10] = [
    "1.5.01", "1.5.05", "1.5.06", "1.5.08", "1.5.09", "1.5.13", "1.5.16", "1.5.20", "1.5.24",
    "1.5.25",
];

/// A line for each kind of cell, a column for each release. `sh` and `ex` are modes of the S-EPT
/// tree lock, numbers are hexadecimal, leaves and versions decimal.
const FACTS: &str = "
number               1           5        6        8         9         13         16         20           24           25
features0            f0ebf       1f0ebf   2e1f0ebf 22e1f0ebf 26f1f0ebf 226f1f0ebf 226f3f0ebf 10326f3f0ebf d1326f3f0ebf d1326f3f0ebf
versioned            3.11.23.26.30 +22    .        .         .         +33        .          .            +53          .
handoff_version      0           .        .        .         .         .          .          .            1            .
handoff_oldest       0           .        .        .         .         .          .          .            .            .
no_downgrade         no          .        .        .         .         .          .          .            yes          .
update_compatibility no          .        .        .         .         .          .          .            yes          .
leaves               52.53        .        .        .         .         .          .          +58.59       .            .
max_vcpus            -           240      .        .         .         .          .          .            .            .
min_virt_maxpa       -           .        2d       .         .         .          .          .            .            .
max_event_filters    -           .        .        .         200       .          .          .            .            .
pamt_bitmap_bits     -           .        .        .         .         .          .          1            .            .
x2apic_unique        no          yes      .        .         .         .          .          .            .            .
failed_vcpu_counts   no          yes      .        .         no        .          .          .            .            .
unblock_untracked    92          1        .        .         .         .          .          .            .            .
vcpu_state           no          .        .        .         .         .          yes        .            .            .
op_state             no          .        .        .         .         .          .          yes          .            .
hkid                 no          .        .        .         .         yes        .          .            .            .
user_execute         no          .        .        .         .         yes        .          .            .            .
keeps_priority       no          .        .        .         .         .          .          yes          .            .
priority             no          .        .        .         .         .          .          yes          .            .
sept_add             sh          .        .        .         .         .          .          .            .            .
sept_remove          ex          .        .        .         .         .          .          .            .            .
sept_rd              sh          .        .        .         .         .          .          .            .            .
page_aug             sh          .        .        .         .         .          .          .            .            .
page_remove          sh          .        .        .         .         .          .          .            .            .
page_relocate        sh          .        .        .         .         .          .          .            .            .
page_promote         sh          .        .        .         .         .          .          ex           .            .
page_demote          sh          .        .        .         .         .          .          .            .            .
range_block          ex          .        .        .         .         .          .          .            .            .
range_unblock        ex          .        .        .         .         .          .          .            .            .
vp_enter             ex          .        .        .         .         .          .          sh           .            .
promote_locks_children yes       .        .        .         .         .          .          no           .            .
yields_to_host       no          .        .        .         .         .          .          yes          .            .
pending_is_no_step   no          .        .        .         .         .          .          yes          .            .
rdmd_size            no          .        .        .         .         .          .          yes          .            .
dynamic_pamt         unknown     .        .        .         .         .          ignored    possible     .            .
";

fn yes(v: bool) -> String {
    if v { "yes" } else { "no" }.into()
}

fn list(mut numbers: Vec<u16>) -> String {
    numbers.sort_unstable();
    match numbers.is_empty() {
        true => "-".into(),
        false => numbers
            .iter()
            .map(u16::to_string)
            .collect::<Vec<_>>()
            .join("."),
    }
}

/// The cells of a row by their names here. Names all fields, so that a new one cannot be left out.
fn cells(rules: &Rules) -> Vec<(&'static str, String)> {
    let Rules {
        name: _,
        number,
        features0,
        leaves,
        versioned,
        fields,
        x2apic_unique,
        failed_vcpu_counts,
        details,
        entries,
        tree,
        promote_locks_children,
        yields_to_host,
        pending_is_no_step,
        rdmd_size,
        dynamic_pamt,
        handoff,
        update_compatibility,
    } = rules;
    let Details {
        unblock_untracked,
        vcpu_state,
        op_state,
    } = details;
    let Entries {
        hkid,
        user_execute,
        keeps_priority,
    } = entries;
    let Handoff {
        version,
        oldest,
        no_downgrade,
    } = handoff;
    let TreeLock {
        priority,
        sept_add,
        sept_remove,
        sept_rd,
        page_aug,
        page_remove,
        page_relocate,
        page_promote,
        page_demote,
        range_block,
        range_unblock,
        vp_enter,
    } = tree;
    assert_eq!(number[..2], [1, 5]);
    let field = |id: u64| {
        let found = fields.iter().find(|f| f.0 == id);
        found.map_or("-".into(), |f| format!("{:x}", f.1))
    };
    let known = [8, 9, 10].map(|n| 0x9900_0000_0000_0000 | n);
    let bitmap = 0x9100_0000_0000_0013;
    assert!(fields.iter().all(|f| known.contains(&f.0) || f.0 == bitmap));
    let mode = |m: &Mode| match m {
        Mode::Shared => "sh".to_string(),
        Mode::Exclusive => "ex".to_string(),
    };
    vec![
        ("number", number[2].to_string()),
        ("features0", format!("{features0:x}")),
        ("versioned", list(versioned.to_vec())),
        ("leaves", list(leaves.to_vec())),
        ("handoff_version", version.to_string()),
        ("handoff_oldest", oldest.to_string()),
        ("no_downgrade", yes(*no_downgrade)),
        ("update_compatibility", yes(*update_compatibility)),
        ("max_vcpus", field(known[0])),
        ("min_virt_maxpa", field(known[1])),
        ("max_event_filters", field(known[2])),
        ("pamt_bitmap_bits", field(bitmap)),
        ("x2apic_unique", yes(*x2apic_unique)),
        ("failed_vcpu_counts", yes(*failed_vcpu_counts)),
        ("unblock_untracked", format!("{unblock_untracked:x}")),
        ("vcpu_state", yes(*vcpu_state)),
        ("op_state", yes(*op_state)),
        ("hkid", yes(*hkid)),
        ("user_execute", yes(*user_execute)),
        ("keeps_priority", yes(*keeps_priority)),
        ("priority", yes(*priority)),
        ("sept_add", mode(sept_add)),
        ("sept_remove", mode(sept_remove)),
        ("sept_rd", mode(sept_rd)),
        ("page_aug", mode(page_aug)),
        ("page_remove", mode(page_remove)),
        ("page_relocate", mode(page_relocate)),
        ("page_promote", mode(page_promote)),
        ("page_demote", mode(page_demote)),
        ("range_block", mode(range_block)),
        ("range_unblock", mode(range_unblock)),
        ("vp_enter", mode(vp_enter)),
        ("promote_locks_children", yes(*promote_locks_children)),
        ("yields_to_host", yes(*yields_to_host)),
        ("pending_is_no_step", yes(*pending_is_no_step)),
        ("rdmd_size", yes(*rdmd_size)),
        ("dynamic_pamt", format!("{dynamic_pamt:?}").to_lowercase()),
    ]
}

/// A cell of [`FACTS`]; `.` is as in the release before, `+n` one more.
fn fact(name: &str, release: usize) -> String {
    let line = FACTS
        .lines()
        .find(|l| l.split_whitespace().next() == Some(name))
        .unwrap_or_else(|| panic!("{name} is not in the facts"));
    let columns: Vec<_> = line.split_whitespace().skip(1).collect();
    assert_eq!(columns.len(), RELEASES.len(), "{name}");
    let mut value = String::new();
    for cell in &columns[..=release] {
        match cell.strip_prefix('+') {
            Some(more) if value == "-" => value = more.into(),
            Some(more) => {
                let numbers = value.split('.').chain(more.split('.'));
                value = list(numbers.map(|n| n.parse().unwrap()).collect());
            }
            None if *cell == "." => {}
            None => value = (*cell).into(),
        }
    }
    value
}

fn row(name: &str) -> &'static Rules {
    TABLE.iter().find(|r| r.name == name).expect("a row")
}

#[test]
fn each_cell_is_as_published() {
    for (i, release) in RELEASES.iter().enumerate() {
        let cells = cells(row(release));
        let lines = FACTS.lines().filter(|l| !l.is_empty()).count();
        assert_eq!(lines, cells.len());
        for (name, got) in cells {
            assert_eq!(got, fact(name, i), "{name} of {release}");
        }
    }
    assert_eq!(TABLE.len(), RELEASES.len() + 1);
}

#[test]
fn the_default_is_1_5_01_but_for_what_linux_demands() {
    assert_eq!(TABLE[0].name, "1.5.01-linux");
    for (name, got) in cells(&TABLE[0]) {
        let want = match name {
            "features0" => "140000".into(),
            "versioned" => "3.11.22.23.26.30".into(),
            "leaves" => "69".into(),
            "max_vcpus" => "240".into(),
            _ => fact(name, 0),
        };
        assert_eq!(got, want, "{name}");
    }
}
