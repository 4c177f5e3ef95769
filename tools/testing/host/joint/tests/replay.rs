// SPDX-License-Identifier: GPL-2.0

//! Recordings of the kernel, replayed on the mirror over the software TDX module.
//! `TDX_RECORDING=<file>` adds one.

use std::path::{Path, PathBuf};

use tdx_joint_host::replay::{
    compose, load, parse, replay, Record, CREATE, DESTROY, FINALIZE, MAP, TEARDOWN, ZAP,
};
use tdx_joint_host::td::Machine;

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vectors")
}

fn event(kind: u8, gfn: u64, other: u64, result: i32) -> Record {
    Record {
        kind,
        level: if kind == CREATE { 4 } else { 1 },
        vcpu: 0.into(),
        result: result.into(),
        gfn: gfn.into(),
        other: other.into(),
        td: 7.into(),
        reserved: 0.into(),
    }
}

/// A TD with two pages that it is built with, two faults and a zap of three pages.
fn small() -> Vec<Record> {
    vec![
        event(CREATE, 35, 0, 0),
        event(MAP, 0x100, 0x5_0000, 1),
        event(MAP, 0x101, 0x5_0001, 1),
        event(FINALIZE, 0, 0, 0),
        event(MAP, 0x102, 0x5_0002, 1),
        event(MAP, 0x102, 0x5_0002, 2),
        event(MAP, 0x4_0000, 0x5_0003, 0),
        event(MAP, 0x4_0000, 0x5_0003, 1),
        event(ZAP, 0, 0x200, 3),
        event(TEARDOWN, 0, 0, 0),
        event(DESTROY, 0, 0, 0),
    ]
}

/// Every recording that is kept: the mirror equals the S-EPT at several points of it and at its
/// end, each zap takes away what it took away in the kernel, and nothing is leaked.
// Shows: R31.
#[test]
fn recordings_replay_with_mirror_and_s_ept_equal() {
    let mut files: Vec<PathBuf> = std::fs::read_dir(vectors())
        .expect("the vectors")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.to_string_lossy().ends_with(".tdxrec.gz"))
        .collect();
    assert!(!files.is_empty(), "no recording");
    files.extend(std::env::var_os("TDX_RECORDING").map(PathBuf::from));
    for file in files {
        let events = load(&file).unwrap_or_else(|why| panic!("{why}"));
        let each = events.len() / 16 + 1;
        let report = replay(&Machine::new(), &events, each)
            .unwrap_or_else(|why| panic!("{}: {why}", file.display()));
        println!("{}: {report:?}", file.display());
        assert!(report.tds > 0 && report.maps > 0 && report.zapped > 0);
        assert!(report.audits > report.tds);
    }
}

#[test]
fn a_replay_does_what_was_recorded() {
    let events = parse(&compose(&small(), 0)).expect("a recording");
    let report = replay(&Machine::new(), &events, 1).expect("no difference");
    assert_eq!((report.tds, report.maps, report.skipped), (1, 5, 1));
    assert_eq!((report.zaps, report.zapped, report.left), (1, 3, 1));
    // After each of the eight events, and at the end.
    assert_eq!((report.audits, report.vcpus), (9, 1));
    // A retry that says why: the S-EPT's entry was busy.
    let mut events = small();
    events[6].result = 0x1100.into();
    let report = replay(&Machine::new(), &events, 1).expect("no difference");
    assert_eq!((report.maps, report.skipped), (5, 1));
}

#[test]
fn a_recording_that_does_not_fit_is_refused() {
    let differs = |change: &dyn Fn(&mut Vec<Record>), why: &str| {
        let mut events = small();
        change(&mut events);
        let error = replay(&Machine::new(), &events, 1).expect_err(why);
        assert!(error.contains(why), "{error}");
    };
    differs(&|e| e[8].result = 2.into(), "the recording says 2");
    differs(&|e| e[5].other = 0x5_0003.into(), "map answered");
    differs(&|e| e[4].result = (-5).into(), "had failed with -5");
    differs(&|e| e[4].kind = 9, "no place there");
    differs(&|e| e[8].other = 0.into(), "no range");
    differs(
        &|e| {
            e.remove(0);
        },
        "without its beginning",
    );
    differs(&|e| e[0].gfn = 47.into(), "another shape");
}

#[test]
fn a_file_that_is_no_whole_recording_is_refused() {
    let good = compose(&small(), 0);
    let refused = |bytes: &[u8], why: &str| {
        let error = parse(bytes).expect_err(why);
        assert!(error.contains(why), "{error}");
    };
    refused(&good[..31], "shorter");
    refused(&good[..good.len() - 1], "within an event");
    refused(&good[..good.len() - 32], "the header says 11");
    refused(&compose(&small(), 5), "5 events lost");
    let mut other = good;
    other[0] = b'X';
    refused(&other, "no recording");
}
