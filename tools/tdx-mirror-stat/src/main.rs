// SPDX-License-Identifier: GPL-2.0
//! Shows the figures of tdx_mirror. Documentation/figures.rst says what each means.

mod figures;
mod show;
mod space;
mod trace;

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use figures::{Source, TdName};
use show::Sample;

/// Exit statuses beside 0; clap ends with 2 when the usage is wrong.
const FAILED: u8 = 1;
const FOUND_PROBLEM: u8 = 3;

#[derive(Parser)]
#[command(
    version,
    about = "Figures of tdx_mirror, the mirror page table of TDX guests"
)]
#[command(
    after_help = "Exit status: 0 all well; 1 something could not be read or written; 2 wrong \
usage; 3 check, audit or trace found that something is wrong."
)]
struct Options {
    /// The module's folder in debugfs, or a copy of it
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/sys/kernel/debug/tdx_mirror"
    )]
    root: PathBuf,
    /// Print JSON, one object per line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Figures of all TDs together or of one, once or again and again (the default)
    Show(Show),
    /// TDs that live, with what they hold
    List,
    /// A picture of the guest physical addresses of a TD
    Map(Map),
    /// Compare mirror and S-EPT of a TD, entry by entry
    Audit {
        /// Number of the TD, or PID-NUMBER
        td: String,
    },
    /// Whether the figures of all TDs show that something is wrong
    Check,
    /// Report from a text trace of the events tdx_mirror:*
    Trace {
        /// Copy of /sys/kernel/tracing/trace, or output of trace-cmd report or perf script; - is
        /// the standard input
        file: PathBuf,
    },
}

#[derive(Args, Default)]
struct Show {
    /// Number of the TD, or PID-NUMBER; without it the sums over all TDs
    #[arg(long)]
    td: Option<String>,
    /// Show again every so many seconds, with changes per second
    #[arg(long, short, value_name = "SECONDS", value_parser = seconds)]
    interval: Option<f64>,
    /// End after so many times; needs --interval
    #[arg(long, short = 'n', requires = "interval", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Also figures that are 0
    #[arg(long, short)]
    all: bool,
}

#[derive(Args)]
struct Map {
    /// Number of the TD, or PID-NUMBER
    td: String,
    /// Write a picture to this file
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
    /// Cells in a row
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1024))]
    width: u64,
    /// Rows at most; those without a page are left out
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(2..=4096))]
    height: u64,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if (0.01..=86_400.0).contains(&value) => Ok(value),
        _ => Err("must be from 0.01 to 86400".into()),
    }
}

fn json(out: &mut impl Write, value: &impl Serialize) -> Result<()> {
    writeln!(out, "{}", serde_json::to_string(value)?)?;
    Ok(())
}

fn show(source: &Source, options: &Show, as_json: bool, out: &mut impl Write) -> Result<u8> {
    let td = options.td.as_deref().map(|td| source.td(td)).transpose()?;
    let start = Instant::now();
    let clear = options.interval.is_some() && !as_json && io::stdout().is_terminal();
    let mut before: Option<Sample> = None;
    let mut shown = 0;
    loop {
        let figures = match source.figures(td.as_ref()) {
            Ok(figures) => figures,
            // What was watched has ended.
            Err(_) if shown > 0 && td.as_ref().is_some_and(|td| gone(source, td)) => return Ok(0),
            Err(error) => return Err(error),
        };
        let now = Sample {
            seconds: start.elapsed().as_secs_f64(),
            td: td.clone(),
            figures,
        };
        if as_json {
            json(out, &now)?;
        } else {
            if clear {
                write!(out, "\x1b[H\x1b[2J")?;
            } else if shown > 0 {
                writeln!(out)?;
            }
            write!(out, "{}", show::table(&now, before.as_ref(), options.all))?;
        }
        out.flush()?;
        shown += 1;
        let Some(interval) = options.interval else {
            return Ok(0);
        };
        if options.count.is_some_and(|count| shown >= count) {
            return Ok(0);
        }
        before = Some(now);
        sleep(Duration::from_secs_f64(interval));
    }
}

/// Whether a TD that was there is not there any more.
fn gone(source: &Source, td: &TdName) -> bool {
    source.tds().is_ok_and(|tds| !tds.contains(td))
}

fn list(source: &Source, as_json: bool, out: &mut impl Write) -> Result<u8> {
    if !as_json {
        writeln!(
            out,
            "{:>6} {:>8} {:>10} {:>12} {:>12} {:>12}",
            "TD", "process", "state", "pages", "quarantined", "tables KiB"
        )?;
    }
    for td in source.tds()? {
        // It may end between the two looks.
        let Ok(figures) = source.figures(Some(&td)) else {
            continue;
        };
        if as_json {
            json(
                out,
                &Sample {
                    seconds: 0.0,
                    td: Some(td),
                    figures,
                },
            )?;
            continue;
        }
        let state = if figures.get("finalized") != 0 {
            "runs"
        } else {
            "built"
        };
        let tables = (figures.get("bytes_mirror") + figures.get("bytes_external")) / 1024;
        writeln!(
            out,
            "{:>6} {:>8} {state:>10} {:>12} {:>12} {tables:>12}",
            td.td,
            td.pid,
            figures.get("pages_mapped"),
            figures.get("pages_quarantined")
        )?;
    }
    Ok(0)
}

#[derive(Serialize)]
struct Space<'a> {
    td: &'a TdName,
    /// GFNs; free ranges are left out.
    ranges: &'a [space::Range],
}

fn map(source: &Source, options: &Map, as_json: bool, out: &mut impl Write) -> Result<u8> {
    let td = source.td(&options.td)?;
    let ranges = space::parse(&source.file(&td, "map")?).context("the file map of the TD")?;
    let grid = space::Grid::new(&ranges, options.width, options.height as usize);
    if let Some(path) = &options.png {
        let file =
            File::create(path).with_context(|| format!("{} cannot be written", path.display()))?;
        let mut file = BufWriter::new(file);
        grid.png(&mut file, 4)?;
        file.flush()
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    if as_json {
        json(
            out,
            &Space {
                td: &td,
                ranges: &ranges,
            },
        )?;
    } else {
        write!(out, "{}{}", grid.text(), space::legend(&ranges, grid.cell))?;
    }
    Ok(0)
}

#[derive(Serialize)]
struct Audit {
    td: TdName,
    entries: u64,
    leaves: u64,
    pending: u64,
    differences: u64,
    /// Entries of which the S-EPT was not, or could not be, read.
    unread: u64,
    /// Entries of which it was.
    compared: u64,
    /// The first of both.
    listed: Vec<String>,
}

fn audit(source: &Source, td: &str, as_json: bool, out: &mut impl Write) -> Result<u8> {
    let td = source.td(td)?;
    let text = source.file(&td, "audit")?;
    let count = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok())
            .with_context(|| format!("audit of the TD has no line '{name} N'"))
    };
    let audit = Audit {
        entries: count("entries")?,
        leaves: count("leaves")?,
        pending: count("pending")?,
        differences: count("differences")?,
        unread: count("unread")?,
        compared: count("entries")?.saturating_sub(count("unread")?),
        listed: text
            .lines()
            .filter(|line| line.contains(": mirror "))
            .map(String::from)
            .collect(),
        td,
    };
    if as_json {
        json(out, &audit)?;
    } else {
        write!(out, "{text}")?;
    }
    Ok(if audit.differences == 0 {
        0
    } else {
        FOUND_PROBLEM
    })
}

fn check(source: &Source, as_json: bool, out: &mut impl Write) -> Result<u8> {
    let found = show::problems(&source.figures(None)?);
    if as_json {
        json(out, &found)?;
    } else if found.is_empty() {
        writeln!(out, "no problem found")?;
    } else {
        for line in &found {
            writeln!(out, "{line}")?;
        }
    }
    Ok(if found.is_empty() { 0 } else { FOUND_PROBLEM })
}

fn trace(file: &Path, as_json: bool, out: &mut impl Write) -> Result<u8> {
    let text = if file == Path::new("-") {
        io::read_to_string(io::stdin())?
    } else {
        // Task names may have any bytes.
        let bytes =
            std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let report = trace::Report::parse(&text);
    if report.tds.is_empty() {
        bail!(
            "{} has no event of tdx_mirror ({} lines of something else)",
            file.display(),
            report.other_lines
        );
    }
    if as_json {
        json(out, &report)?;
    } else {
        write!(out, "{}", report.text())?;
    }
    Ok(if report.alarming() { FOUND_PROBLEM } else { 0 })
}

fn run(options: &Options, out: &mut impl Write) -> Result<u8> {
    if let Some(Command::Trace { file }) = &options.command {
        return trace(file, options.json, out);
    }
    let source = Source::new(&options.root)?;
    match &options.command {
        None => show(&source, &Show::default(), options.json, out),
        Some(Command::Show(what)) => show(&source, what, options.json, out),
        Some(Command::List) => list(&source, options.json, out),
        Some(Command::Map(what)) => map(&source, what, options.json, out),
        Some(Command::Audit { td }) => audit(&source, td, options.json, out),
        Some(Command::Check) => check(&source, options.json, out),
        Some(Command::Trace { file }) => trace(file, options.json, out),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options, &mut io::stdout().lock()) {
        Ok(status) => ExitCode::from(status),
        // Whoever read has enough.
        Err(error)
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) =>
        {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("tdx-mirror-stat: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

    /// Runs with arguments on the recorded files: exit status and output.
    fn stat(arguments: &[&str]) -> Result<(u8, String)> {
        stat_of(DATA, arguments)
    }

    fn stat_of(root: &str, arguments: &[&str]) -> Result<(u8, String)> {
        let program = ["tdx-mirror-stat", "--root", root];
        let all = program.iter().chain(arguments);
        let mut out = Vec::new();
        let status = run(&Options::try_parse_from(all)?, &mut out)?;
        Ok((status, String::from_utf8(out)?))
    }

    #[test]
    fn shows_without_a_command() {
        let (status, out) = stat(&[]).unwrap();
        assert_eq!(status, 0);
        assert!(out.starts_with("all TDs: 0 live, 8 created\n"), "{out}");
    }

    #[test]
    fn json_of_a_td() {
        let (_, out) = stat(&["show", "--td", "3", "--json"]).unwrap();
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(value["td"]["pid"], 167);
        assert_eq!(value["figures"]["mapped"], 2389);
        assert_eq!(value["figures"]["faults_invalid"], 0);
    }

    #[test]
    fn shows_again_and_ends() {
        let (_, out) = stat(&["--json", "show", "-i", "0.01", "-n", "3"]).unwrap();
        let lines: Vec<serde_json::Value> = out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[2]["seconds"].as_f64() >= Some(0.02));
    }

    #[test]
    fn lists() {
        let (_, out) = stat(&["list"]).unwrap();
        assert_eq!(out.lines().count(), 3);
        assert_eq!(
            out.lines()
                .nth(1)
                .map(|l| l.split_whitespace().collect::<Vec<_>>()),
            Some(vec!["3", "167", "runs", "24", "0", "44"])
        );
        assert_eq!(stat(&["list", "--json"]).unwrap().1.lines().count(), 2);
    }

    #[test]
    fn draws() {
        let png = std::env::temp_dir().join(format!("tdx-mirror-stat.{}.png", std::process::id()));
        let (_, out) =
            stat(&["map", "3", "--width", "16", "--png", png.to_str().unwrap()]).unwrap();
        assert!(
            out.contains("a cell is 4 KiB") && out.contains("# mapped 17, + pending 13"),
            "{out}"
        );
        assert!(std::fs::read(&png).unwrap().starts_with(b"\x89PNG"));
        std::fs::remove_file(&png).unwrap();
        let value: serde_json::Value =
            serde_json::from_str(&stat(&["map", "3", "--json"]).unwrap().1).unwrap();
        assert_eq!(value["ranges"][1]["state"], "pending");
        assert!(stat(&["map", "3", "--png", "/nonexistent/x"]).is_err());
    }

    #[test]
    fn audits() {
        let (status, out) = stat(&["audit", "167-3"]).unwrap();
        assert_eq!((status, out.lines().next()), (0, Some("entries 2811")));
        let (status, out) = stat_of(&format!("{DATA}/bad"), &["audit", "1", "--json"]).unwrap();
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(status, FOUND_PROBLEM);
        assert_eq!(value["listed"].as_array().map(Vec::len), Some(1));
        // Of a TD whose S-EPT was not read.
        let (status, out) = stat(&["audit", "8"]).unwrap();
        assert!(
            status == 0 && out.starts_with("nothing compared: "),
            "{out}"
        );
        let (_, out) = stat(&["audit", "8", "--json"]).unwrap();
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            (&value["compared"], &value["listed"]),
            (&0.into(), &serde_json::json!([]))
        );
    }

    #[test]
    fn checks() {
        assert_eq!(stat(&["check"]).unwrap().0, 0);
        let (status, out) = stat_of(&format!("{DATA}/bad"), &["check"]).unwrap();
        assert_eq!(status, FOUND_PROBLEM);
        assert!(out.starts_with("leaked is 1: "), "{out}");
    }

    #[test]
    fn reports_a_trace() {
        let (status, out) = stat(&["trace", &format!("{DATA}/trace.txt")]).unwrap();
        assert_eq!(status, 0);
        assert!(
            out.starts_with("TD 52: 50 events in 0.010509 s, 18 changes of the mirror\n"),
            "{out}"
        );
        let (status, out) = stat(&["trace", &format!("{DATA}/trace-wrong.txt"), "--json"]).unwrap();
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(status, FOUND_PROBLEM);
        assert_eq!(value["tds"]["15"]["quarantined"], 1);
        assert_eq!(
            value["tds"]["4"]["alarms"].as_array().map(Vec::len),
            Some(1)
        );
        assert!(stat(&["trace", &format!("{DATA}/stats")]).is_err());
        assert!(stat(&["trace", "/nonexistent"]).is_err());
    }

    #[test]
    fn refuses() {
        for arguments in [
            &["show", "--td", "99"][..],
            &["map", "99"],
            &["map", "3", "--width", "0"],
            &["show", "-i", "0"],
            &["show", "-n", "3"],
            &["nonsense"],
        ] {
            assert!(stat(arguments).is_err(), "{arguments:?}");
        }
        assert!(stat_of("/nonexistent", &[]).is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Options::command().debug_assert();
    }
}
