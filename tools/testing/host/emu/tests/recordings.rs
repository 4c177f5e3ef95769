// SPDX-License-Identifier: GPL-2.0
//! The recordings of the real module replay without a mismatch, and the replayer
//! sees one where there is one.

use std::io::{BufReader, Cursor, Read};
use std::path::PathBuf;

use tdx_emu_host::replay::replay;

fn vectors() -> Vec<PathBuf> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../vectors");
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .expect("folder of the recordings")
        .map(|e| e.unwrap().path())
        .filter(|p| p.to_string_lossy().ends_with(".jsonl.gz"))
        .collect();
    files.sort();
    files
}

fn text(path: &PathBuf) -> String {
    let mut s = String::new();
    let file = std::fs::File::open(path).unwrap();
    flate2::read::MultiGzDecoder::new(file)
        .read_to_string(&mut s)
        .unwrap();
    s
}

#[test]
fn all_recordings_match() {
    let files = vectors();
    assert_eq!(files.len(), 17);
    let mut calls = 0;
    for f in files {
        let out = replay(BufReader::new(Cursor::new(text(&f))));
        assert!(
            out.mismatches.is_empty(),
            "{}: {:#?}",
            f.display(),
            out.mismatches
        );
        calls += out.calls;
    }
    assert_eq!(calls, 7918);
}

/// Replays `t02` with one change; it must be noticed.
fn altered(from: &str, to: &str) -> Vec<String> {
    let file = vectors()
        .into_iter()
        .find(|f| f.to_string_lossy().contains("t02"))
        .unwrap();
    let original = text(&file);
    let changed = original.replacen(from, to, 1);
    assert_ne!(original, changed, "the recording does not contain {from}");
    replay(BufReader::new(Cursor::new(changed))).mismatches
}

#[test]
fn altered_recordings_do_not_match() {
    for (from, to, field) in [
        (
            "\"rax\":\"0x0000000000000000\"",
            "\"rax\":\"0x0000000000000001\"",
            "rax",
        ),
        (
            "\"septe\":{\"level\":1,\"raw\":\"0x8",
            "\"septe\":{\"level\":1,\"raw\":\"0x7",
            "septe.raw",
        ),
        ("\"chldcnt\":7", "\"chldcnt\":8", "st.chldcnt"),
        ("\"epoch\":3", "\"epoch\":4", "st.epoch"),
        ("\"kind\":\"tdentry\"", "\"kind\":\"seamret\"", "kind"),
        ("0xe0a848abf42af93a", "0xe0a848abf42af93b", "mrtd"),
        (
            "\"pt\":3,\"owner\":\"0x40000000\"",
            "\"pt\":3,\"owner\":\"0x40001000\"",
            "final_pamt",
        ),
        (
            "{\"type\":\"final_septe\",\"gpa\":\"0x0\"",
            "{\"type\":\"final_septe\",\"gpa\":\"0x1000\"",
            "final_septe",
        ),
    ] {
        let found = altered(from, to);
        assert!(
            found.iter().any(|m| m.contains(field)),
            "{field}: {found:?}"
        );
    }
}
