// SPDX-License-Identifier: GPL-2.0

//! The recordings of the real module replay without a mismatch, and whatever is changed
//! in one is noticed: each field of each kind of record is altered and removed.

use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

use serde_json::Value;
use tdx_emu_host::replay::{replay, Outcome};

/// The folders of the recordings by version, with their number and the calls in them.
const FOLDERS: [(&str, usize, u64); 4] = [
    ("", 17, 7918),
    ("1.5.16", 11, 8683),
    ("1.5.24", 14, 10_729),
    ("update", 14, 9290),
];

/// The recordings in a folder.
fn vectors(folder: &str) -> Vec<PathBuf> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../vectors");
    let mut files: Vec<_> = std::fs::read_dir(Path::new(dir).join(folder))
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

/// A recording by its path.
fn vector(name: &str) -> String {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../vectors");
    text(&Path::new(dir).join(name))
}

fn run(text: &str) -> Outcome {
    replay(Cursor::new(text.to_string()))
}

/// What a replay says: its error and its mismatches.
fn complaints(text: &str) -> Vec<String> {
    let out = run(text);
    let lines = out.mismatches.iter().map(|m| m.to_string());
    out.error.into_iter().chain(lines).collect()
}

#[test]
fn all_recordings_match() {
    for (folder, number, all) in FOLDERS {
        let files = vectors(folder);
        assert_eq!(files.len(), number, "{folder}");
        let mut calls = 0;
        for f in files {
            let out = run(&text(&f));
            let shown = f.display();
            assert_eq!(out.error, None, "{shown}");
            let first = out.mismatches.first().map(|m| m.to_string());
            assert_eq!(first, None, "{shown}");
            calls += out.calls;
        }
        assert_eq!(calls, all, "{folder}");
    }
}

/// The address bits of a HKID, and Xu.
const HKID: u64 = 0x3F << 46;
const XU: u64 = 1 << 10;

/// Takes bits out of a number, if it is there.
fn clear(v: &mut Value, path: &str, bits: u64) {
    if let Some(Value::String(s)) = v.pointer_mut(path) {
        let n = u64::from_str_radix(s.strip_prefix("0x").unwrap(), 16).unwrap();
        *s = format!("{:#x}", n & !bits);
    }
}

/// The recording as another release would have made it that answers alike: but for the entries,
/// if it has neither HKID nor Xu in them, and for the count of vCPUs, if one counts that was
/// refused for its x2APIC identifier.
fn as_release(original: &str, release: &str, features: &str, bare: bool, counts: bool) -> String {
    let mut refused = 0;
    let lines = original.lines().map(|line| {
        let mut v: Value = serde_json::from_str(line).unwrap();
        if v["type"] == "header" {
            v["module"] = format!("TDX module {release} (see tests)").into();
            v["version"] = release.into();
            v["features0"] = features.into();
        }
        if bare {
            clear(&mut v, "/septe/raw", HKID | XU);
            clear(&mut v, "/raw", HKID | XU);
            if v.pointer("/out/rcx") != v.pointer("/in/rcx") {
                clear(&mut v, "/out/rcx", XU);
            }
        }
        let rax = v.get("rax").and_then(Value::as_str).unwrap_or_default();
        refused += u64::from(counts && rax.starts_with("0xc0000621"));
        if let Some(n) = v.pointer_mut("/st/vcpus") {
            *n = (n.as_u64().unwrap() + refused).into();
        }
        v.to_string()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn recordings_stand_for_the_releases_that_answer_alike() {
    for (folder, release, features, bare, counts) in [
        ("1.5.16", "1.5.05", "0x1f0ebf", true, true),
        ("1.5.16", "1.5.06", "0x2e1f0ebf", true, true),
        ("1.5.16", "1.5.08", "0x22e1f0ebf", true, true),
        ("1.5.16", "1.5.09", "0x26f1f0ebf", true, false),
        ("1.5.16", "1.5.13", "0x226f1f0ebf", false, false),
        ("1.5.24", "1.5.20", "0x10326f3f0ebf", false, false),
        ("1.5.24", "1.5.25", "0xd1326f3f0ebf", false, false),
    ] {
        for f in vectors(folder) {
            let text = as_release(&text(&f), release, features, bare, counts);
            let wrong = complaints(&text);
            assert_eq!(wrong.first(), None, "{} as {release}", f.display());
        }
    }
}

#[test]
fn releases_that_answer_otherwise_are_told_apart() {
    // The neighbours across the borders of the classes.
    for (file, release, features, bare, counts) in [
        ("1.5.16/t02.jsonl.gz", "1.5.01", "0xf0ebf", true, false),
        ("1.5.16/t02.jsonl.gz", "1.5.08", "0x22e1f0ebf", true, false),
        ("1.5.16/t02.jsonl.gz", "1.5.09", "0x26f1f0ebf", false, false),
        (
            "1.5.16/t02.jsonl.gz",
            "1.5.20",
            "0x10326f3f0ebf",
            false,
            false,
        ),
        (
            "1.5.24/t02.jsonl.gz",
            "1.5.16",
            "0x226f3f0ebf",
            false,
            false,
        ),
    ] {
        let text = as_release(&vector(file), release, features, bare, counts);
        assert!(!complaints(&text).is_empty(), "{file} as {release}");
    }
}

/// A value in a recording: file, line, path to it.
type Place = (usize, usize, String);

/// Paths to the values of an object, with numbers in lists as `[i]`.
fn paths(v: &Value, prefix: &str, out: &mut Vec<String>) {
    match v {
        Value::Object(map) => {
            for (k, v) in map {
                paths(v, &format!("{prefix}/{k}"), out);
            }
        }
        Value::Array(list) => {
            for (i, v) in list.iter().enumerate() {
                paths(v, &format!("{prefix}/{i}"), out);
            }
        }
        _ => out.push(prefix.into()),
    }
}

/// The same value, a little different.
fn altered(v: &Value) -> Value {
    match v {
        Value::String(s) => match s.strip_prefix("0x") {
            Some(hex) => {
                let n = u64::from_str_radix(hex, 16).unwrap() ^ 0x1000;
                format!("{n:#x}").into()
            }
            // Locks in another mode, and names that do not exist.
            None if s == "ex" => "sh".into(),
            None if s == "sh" => "ex".into(),
            None => format!("{s}x").into(),
        },
        Value::Bool(b) => (!b).into(),
        Value::Number(n) => match n.as_i64() {
            Some(-1) => 0.into(),
            // Steps of the TSC are larger.
            Some(n) if n > 1_000_000 => (n + 5_000_000_000).into(),
            Some(n) => (n + 1).into(),
            None => panic!("{n}"),
        },
        other => panic!("{other} is not a plain value"),
    }
}

/// Each line of the recordings, and all places in them by kind of record and field.
struct Corpus {
    files: Vec<Vec<String>>,
    places: BTreeMap<String, Vec<Place>>,
}

impl Corpus {
    fn read() -> Corpus {
        let files: Vec<Vec<String>> = FOLDERS
            .iter()
            .flat_map(|(folder, ..)| vectors(folder))
            .map(|f| text(&f).lines().map(String::from).collect())
            .collect();
        let mut places: BTreeMap<String, Vec<Place>> = BTreeMap::new();
        for (f, lines) in files.iter().enumerate() {
            for (n, line) in lines.iter().enumerate() {
                let v: Value = serde_json::from_str(line).unwrap();
                let kind = match v["type"].as_str().unwrap() {
                    "op" if v.get("rax_in").is_some() => "host",
                    "op" => "guest",
                    other => other,
                };
                let mut found = Vec::new();
                paths(&v, "", &mut found);
                for path in found {
                    let place = (f, n, path.clone());
                    places
                        .entry(format!("{kind}{path}"))
                        .or_default()
                        .push(place);
                }
            }
        }
        Corpus { files, places }
    }

    /// The recording with one line changed.
    fn with(&self, file: usize, line: usize, change: impl FnOnce(&mut Value)) -> String {
        let lines = &self.files[file];
        let mut v: Value = serde_json::from_str(&lines[line]).unwrap();
        change(&mut v);
        let mut out = lines.clone();
        out[line] = v.to_string();
        out.join("\n")
    }

    fn notices(&self, (file, line, path): &Place) -> bool {
        let text = self.with(*file, *line, |v| {
            let slot = v.pointer_mut(path).unwrap();
            *slot = altered(slot);
        });
        !complaints(&text).is_empty()
    }
}

/// Records between the modules before and after an update.
#[test]
fn what_an_update_says_is_checked() {
    let original = vector("update/u16-24-402.jsonl.gz");
    for (from, to, message) in [
        (
            "\"type\":\"module_update\",\"version\":\"1.5.24\"",
            "\"type\":\"module_update\",\"version\":\"1.5.28\"",
            "1.5.28 cannot be put in place",
        ),
        (
            "\"lps_initialised\":2",
            "\"lps_initialised\":3",
            "lps_initialised is 3",
        ),
        ("\"n\":3", "\"n\":2", "lps_initialised: 2 after 2"),
        (
            "\"type\":\"lps_initialised\"",
            "\"type\":\"module_ready\"",
            "module_ready: field version is missing",
        ),
    ] {
        let changed = original.replacen(from, to, 1);
        assert_ne!(original, changed, "the recording does not contain {from}");
        let got = run(&changed).error.expect("an error");
        assert!(
            got.contains(message) || got.contains("is missing"),
            "{to}: {got}"
        );
    }
    for (from, to, message) in [
        (
            "\"handoff_version\":0",
            "\"handoff_version\":1",
            "handoff_version: expected 1",
        ),
        (
            "\"type\":\"module_update\",\"version\":\"1.5.24\"",
            "\"type\":\"module_update\",\"version\":\"1.5.25\"",
            "module_ready version: expected 1.5.24",
        ),
    ] {
        let changed = original.replacen(from, to, 1);
        assert_ne!(original, changed, "the recording does not contain {from}");
        let got = complaints(&changed).join("\n");
        assert!(got.contains(message), "{to}: {got}");
    }
    // Without the SHUTDOWN that did it there is nothing to put in place.
    let shutdown = original
        .lines()
        .find(|l| l.contains("TDH.SYS.SHUTDOWN") && l.contains("\"rax\":\"0x0000000000000000\""));
    let changed = original
        .replacen(shutdown.unwrap(), "", 1)
        .replacen("\n\n", "\n", 1);
    assert!(!complaints(&changed).is_empty());
}

/// Fields that a call or the machine is made from: a change shows only where the outcome
/// depends on it. Of these the first places are tried until one shows.
fn is_input(field: &str) -> bool {
    let inputs = [
        "host/in/",
        "host/rax_in",
        "host/lp",
        "host/hold/",
        "host/intr_after",
        "host/hp_after",
        "guest/hold/",
        "guest/intr_after",
        "guest/rip",
        "guest/lp",
        "guest/gpa",
        "guest/level",
        "guest/rwx",
        "guest/leaf",
        "guest/rcx",
        "guest/tsc_after",
        "header/",
    ];
    inputs.iter().any(|i| field.starts_with(i))
}

/// Accepts meet locks that are not of an entry, so the address of the entry says nothing.
fn is_idle(field: &str) -> bool {
    UNUSED.contains(&field) || field == "guest/hold/arg" || field == "guest/hold/level"
}

/// Values that are not used, or that no recorded call depends on.
const UNUSED: [&str; 10] = [
    // How the recording came to be.
    "header/seed",
    "header/module",
    // What its calls say again.
    "header/td_hkid",
    "header/chunk_pool/base",
    "header/chunk_pool/n",
    "header/page_pool/n",
    "header/pair_pool/base",
    "header/pair_pool/n",
    // No recorded PAGE.ADD copies from the SEAM range.
    "header/seamrr/base",
    "header/seamrr/size",
];

/// Places of a field, spread over all recordings.
fn spread(places: &[Place], n: usize) -> impl Iterator<Item = &Place> {
    places.iter().step_by((places.len() / n).max(1))
}

fn check_field(c: &Corpus, field: &str, places: &[Place]) -> Result<(), String> {
    if is_idle(field) {
        return Ok(());
    }
    if is_input(field) {
        return match spread(places, 60).any(|p| c.notices(p)) {
            true => Ok(()),
            false => Err(format!("{field}: no change of it was noticed")),
        };
    }
    match spread(places, 3).find(|p| !c.notices(p)) {
        None => Ok(()),
        Some((f, n, _)) => Err(format!(
            "{field}: file {f} line {n}: a change went unnoticed"
        )),
    }
}

/// Runs `check` on all items, on two threads.
fn on_threads<T: Sync>(items: &[T], check: impl Fn(&T) -> Result<(), String> + Sync) {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(e) = check(item) {
                        failed.lock().unwrap().push(e);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn a_change_of_any_field_is_noticed() {
    let c = Corpus::read();
    let fields: Vec<_> = c.places.iter().collect();
    assert!(fields.len() > 80, "{} fields", fields.len());
    on_threads(&fields, |(field, places)| check_field(&c, field, places));
}

#[test]
fn a_missing_field_is_noticed() {
    let c = Corpus::read();
    let fields: Vec<_> = c.places.iter().collect();
    on_threads(&fields, |(field, places)| {
        // Where a lock, an interrupt or a jump of the clock decides the outcome; a page index
        // and the entry after a call are not always there.
        let optional = [
            "/hold",
            "/intr_after",
            "/hp_after",
            "/septe",
            "/page",
            "host/gpa",
            "host/level",
        ];
        if optional.iter().any(|o| field.ends_with(o)) {
            return Ok(());
        }
        let (file, line, path) = &places[places.len() / 2];
        let (object, name) = path.rsplit_once('/').unwrap();
        let text = c.with(*file, *line, |v| {
            match v.pointer_mut(object).unwrap() {
                Value::Object(map) => drop(map.remove(name)),
                Value::Array(list) => drop(list.pop()),
                _ => unreachable!(),
            };
        });
        match complaints(&text).is_empty() {
            false => Ok(()),
            true => Err(format!("{field} is gone and nobody noticed")),
        }
    });
}

#[test]
fn held_locks_interrupts_and_jumps_decide() {
    let c = Corpus::read();
    for name in ["hold", "intr_after", "hp_after", "tsc_jump"] {
        let mut tried = 0;
        let noticed = c.files.iter().enumerate().any(|(f, lines)| {
            lines.iter().enumerate().any(|(n, line)| {
                if !line.contains(&format!("\"{name}\":")) {
                    return false;
                }
                tried += 1;
                let text = c.with(f, n, |v| drop(v.as_object_mut().unwrap().remove(name)));
                !complaints(&text).is_empty()
            })
        });
        assert!(noticed, "{name}: {tried} removed, none was missed");
    }
}

/// The error that a text ends with.
fn error(text: &str) -> String {
    run(text).error.expect("an error")
}

#[test]
fn what_is_not_known_is_an_error() {
    let original = vector("t02.jsonl.gz");
    let replaced = |from: &str, to: &str| {
        let changed = original.replacen(from, to, 1);
        assert_ne!(original, changed, "the recording does not contain {from}");
        error(&changed)
    };
    for (from, to, message) in [
        (
            "\"type\":\"op\"",
            "\"type\":\"opera\"",
            "line 2: unknown record type opera",
        ),
        (
            "\"type\":\"op\"",
            "\"type\":\"op\",\"more\":1",
            "line 2: record: unknown field more",
        ),
        (
            "\"st\":{",
            "\"st\":{\"x\":1,",
            "line 2: record.st: unknown field x",
        ),
        (
            "\"format\":1",
            "\"format\":2",
            "line 1: header.format is 2; only 1 is supported",
        ),
        ("\"num_l2_vms\":0", "\"num_l2_vms\":1", "num_l2_vms is 1"),
        (
            "\"seed\":2",
            "\"seed\":2,\"debug\":1",
            "line 1: record: unknown field debug",
        ),
        (
            "TDX module 1.5.01",
            "TDX module 2.0",
            "but its version 1.5.01",
        ),
        ("mod 256", "mod 255", "header.src"),
        (
            "{\"type\":\"op\",\"i\":0",
            "{\"type\":\"op\",\"i\":1",
            "call 1 where call 0",
        ),
        (
            "\"obj\":\"sept_tree\"",
            "\"obj\":\"semaphore\"",
            "unknown object semaphore",
        ),
        (
            "\"op\":\"GUEST.ACCESS\"",
            "\"op\":\"GUEST.DANCE\"",
            "unknown guest operation GUEST.DANCE",
        ),
        (
            "\"chldcnt\":",
            "\"chldcnt\":\"many\",\"y\":",
            "a number expected, got \"many\"",
        ),
        ("\"lp\":2", "\"lp\":3", "there is no logical processor 3"),
    ] {
        let got = replaced(from, to);
        assert!(got.contains(message), "{to}: {got}");
    }
}

#[test]
fn what_a_newer_version_adds_is_checked() {
    let original = vector("1.5.24/t02.jsonl.gz");
    for (from, to, message) in [
        (
            "\"version\":\"1.5.24\"",
            "\"version\":\"1.5.16\"",
            "but its version 1.5.16",
        ),
        (
            "1.5.24 (murrowow/tdx-concurrency 307fc86)\",\"version\":\"1.5.24\"",
            "1.5.28 (x)\",\"version\":\"1.5.28\"",
            "header.version: 1.5.28 is not supported",
        ),
        (
            "\"features0\":\"0xd1326f3f0ebf\"",
            "\"features0\":\"0xd1326f3f0ebe\"",
            "features0 is 0xd1326f3f0ebe; only 0xd1326f3f0ebf",
        ),
        ("\"features0\":\"0xd1326f3f0ebf\",", "", "belong together"),
        (
            "\"dynamic_pamt\":false",
            "\"dynamic_pamt\":true",
            "field pair_pool is missing",
        ),
        ("\"r12\":", "\"r14\":", "r12 is missing"),
    ] {
        let changed = original.replacen(from, to, 1);
        assert_ne!(original, changed, "the recording does not contain {from}");
        let got = error(&changed);
        assert!(got.contains(message), "{to}: {got}");
    }
    // A module that has no dynamic PAMT.
    let original = vector("1.5.16/t02.jsonl.gz");
    let got = error(&original.replacen("\"dynamic_pamt\":false", "\"dynamic_pamt\":true", 1));
    assert!(got.contains("TDX module 1.5.16 has none"), "{got}");
    // The bitmap belongs to the dump.
    let original = vector("1.5.24/d06.jsonl.gz");
    let bitmap = original.lines().position(|l| l.contains("final_bitmap"));
    let lines: Vec<_> = original.lines().collect();
    let without = [&lines[..bitmap.unwrap()], &lines[bitmap.unwrap() + 1..]].concat();
    let got = error(&without.join("\n"));
    assert!(
        got.contains("final_bitmap belongs to a dynamic PAMT"),
        "{got}"
    );
    let twice = [
        &lines[..bitmap.unwrap()],
        &lines[bitmap.unwrap()..=bitmap.unwrap()],
    ]
    .concat();
    let twice = [&twice[..], &lines[bitmap.unwrap()..]].concat();
    assert!(error(&twice.join("\n")).contains("final_bitmap twice"));
    // An older one has no R12.
    let original = vector("1.5.16/t02.jsonl.gz");
    let got = error(&original.replacen("\"in\":{", "\"in\":{\"r12\":\"0x0\",", 1));
    assert!(got.contains("unknown field r12"), "{got}");
}

#[test]
fn a_damaged_recording_is_an_error() {
    let original = vector("t02.jsonl.gz");
    let lines: Vec<_> = original.lines().collect();
    assert!(error("").contains("no recording"));
    assert!(error("\n\n").contains("line 1: no JSON"));
    // A call is missing, the end is missing, a line is cut.
    let without = |n: usize| [&lines[..n], &lines[n + 1..]].concat().join("\n");
    assert!(error(&without(40)).contains("call 40 where call 39 should be"));
    let last_call = lines
        .iter()
        .position(|l| l.contains("final_septe"))
        .unwrap();
    assert!(error(&lines[..last_call].join("\n")).contains("before its final record"));
    assert!(error(&original[..original.len() / 2]).contains("no JSON"));
    // The dump after the tear-down has no closing record: a missing line is a mismatch.
    assert!(!complaints(&lines[..lines.len() - 1].join("\n")).is_empty());
    let final_record = lines.iter().position(|l| l.contains("\"final\"")).unwrap();
    let swapped = [&lines[..last_call], &lines[final_record..]].concat();
    assert!(complaints(&swapped.join("\n"))
        .iter()
        .any(|c| c.contains("final_septe")));
    // Compressed and cut.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(original.as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    assert!(replay(Cursor::new(packed.clone())).error.is_none());
    let cut = replay(Cursor::new(packed[..packed.len() / 2].to_vec()));
    assert!(cut.calls > 0 && cut.error.is_some());
}

/// Output and exit status of the program.
fn program(args: &[&str]) -> (String, String, Option<i32>) {
    let out = Command::new(env!("CARGO_BIN_EXE_replay"))
        .args(args)
        .output()
        .expect("the program runs");
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (text(out.stdout), text(out.stderr), out.status.code())
}

#[test]
fn the_program_counts_and_fails() {
    let dir = std::env::temp_dir().join(format!("tdx-emu-replay-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let original = vector("t03.jsonl.gz");
    let calls = run(&original).calls;
    let (good, bad, broken) = (path("good"), path("bad"), path("broken"));
    std::fs::write(&good, &original).unwrap();
    std::fs::write(&bad, original.replacen("\"chldcnt\":7", "\"chldcnt\":8", 1)).unwrap();
    std::fs::write(&broken, &original[..5000]).unwrap();

    let (out, err, code) = program(&[&good]);
    assert_eq!(
        (out, err.as_str(), code),
        (format!("calls={calls} mismatches=0\n"), "", Some(0))
    );
    let (out, _, code) = program(&[&good, &bad]);
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].starts_with(&format!("{bad}: #")), "{out}");
    assert!(
        lines[0].ends_with("TDH.MNG.ADDCX st.chldcnt: expected 0x8 got 0x7")
            || lines[0].contains("st.chldcnt: expected 0x8 got 0x7"),
        "{out}"
    );
    assert_eq!(lines[1..], [format!("calls={} mismatches=1", 2 * calls)]);
    assert_eq!(code, Some(1));
    // A broken file does not hide the others, and is not hidden by them.
    let (out, err, code) = program(&["--as", "first.gz", &broken, &bad]);
    assert!(
        err.starts_with("first.gz: line ") && err.contains("no JSON"),
        "{err}"
    );
    assert!(out.contains("mismatches=1"), "{out}");
    assert_eq!(code, Some(2));
    let (_, err, code) = program(&[&path("nowhere")]);
    assert!(err.contains("nowhere: No such file"), "{err}");
    assert_eq!(code, Some(2));
    assert_eq!(program(&[]).2, Some(2));
    std::fs::remove_dir_all(dir).unwrap();
}
