// SPDX-License-Identifier: GPL-2.0

//! Replays recordings of the real TDX module: `replay [--as NAME] FILE...`; `--as` is what
//! messages call the next file. Prints a line for each mismatch and ends with
//! `calls=N mismatches=M`. Exit status 1 if M is not 0, 2 if a file cannot be read or is
//! not understood.

use std::process::ExitCode;

use tdx_emu_host::replay::replay;

const USAGE: &str = "usage: replay [--as NAME] FILE.jsonl[.gz]...";

fn main() -> ExitCode {
    let (mut calls, mut mismatches, mut files, mut broken) = (0, 0, 0, false);
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        let (shown, file) = match arg == "--as" {
            false => (arg.clone(), Some(arg)),
            true => (args.next().unwrap_or_default(), args.next()),
        };
        let Some(file) = file else {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        };
        files += 1;
        let shown = shown.to_string_lossy();
        let outcome = match std::fs::File::open(&file) {
            Ok(f) => replay(f),
            Err(e) => {
                eprintln!("{shown}: {e}");
                broken = true;
                continue;
            }
        };
        for m in &outcome.mismatches {
            println!("{shown}: {m}");
        }
        if let Some(e) = outcome.error {
            eprintln!("{shown}: {e}");
            broken = true;
        }
        calls += outcome.calls;
        mismatches += outcome.mismatches.len();
    }
    if files == 0 {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    println!("calls={calls} mismatches={mismatches}");
    match (broken, mismatches) {
        (true, _) => ExitCode::from(2),
        (false, 0) => ExitCode::SUCCESS,
        (false, _) => ExitCode::from(1),
    }
}
