// SPDX-License-Identifier: GPL-2.0
//! Replays recordings of the real TDX module: `replay FILE.jsonl.gz...`. Prints a
//! line for each mismatch and ends with `calls=N mismatches=M`; exit status 1 if M
//! is not 0 or a file cannot be read.

use std::io::BufReader;
use std::process::ExitCode;

use tdx_emu_host::replay::replay;

fn main() -> ExitCode {
    let files: Vec<_> = std::env::args_os().skip(1).collect();
    if files.is_empty() {
        eprintln!("usage: replay FILE.jsonl[.gz]...");
        return ExitCode::from(2);
    }
    let (mut calls, mut mismatches, mut failed) = (0, 0, false);
    for name in files {
        let shown = name.to_string_lossy().into_owned();
        let file = match std::fs::File::open(&name) {
            Ok(f) => f,
            Err(e) => {
                eprintln!("{shown}: {e}");
                failed = true;
                continue;
            }
        };
        let outcome = if shown.ends_with(".gz") {
            replay(BufReader::new(flate2::read::MultiGzDecoder::new(file)))
        } else {
            replay(BufReader::new(file))
        };
        for m in &outcome.mismatches {
            println!("{shown}: {m}");
        }
        calls += outcome.calls;
        mismatches += outcome.mismatches.len();
    }
    println!("calls={calls} mismatches={mismatches}");
    if mismatches != 0 || failed || calls == 0 {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
