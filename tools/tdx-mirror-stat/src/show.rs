// SPDX-License-Identifier: GPL-2.0
//! The table of figures: totals, and what changed since it was shown last.

use std::fmt::Write;

use serde::Serialize;

use crate::figures::{Figures, TdName};

/// One look at the figures of all TDs or of one.
#[derive(Debug, Serialize)]
pub struct Sample {
    /// Seconds since the first look.
    pub seconds: f64,
    /// None: the sums over all TDs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub td: Option<TdName>,
    pub figures: Figures,
}

/// Headings of the table, and the beginnings of the names below them.
const GROUPS: [(&str, &[&str]); 6] = [
    (
        "pages and tables",
        &[
            "pages_",
            "bytes_",
            "tables",
            "external_tables",
            "mapped",
            "zapped",
        ],
    ),
    ("faults", &["faults_"]),
    ("SEAMCALLs", &["seamcall_"]),
    (
        "contention",
        &[
            "retries",
            "giveups",
            "busy",
            "frozen_seen",
            "local_",
            "held",
        ],
    ),
    ("leaves per TDH.MEM.TRACK", &["batch_"]),
    ("time of a freeze", &["freeze_cycles_"]),
];

fn group_of(name: &str) -> Option<usize> {
    GROUPS.iter().position(|(_, starts)| {
        starts.iter().any(|start| {
            name == *start
                || (start.ends_with('_') || *start == "retries" || *start == "giveups")
                    && name.starts_with(start)
        })
    })
}

/// Nanoseconds of TSC cycles; None without the frequency.
fn nanoseconds(cycles: u64, tsc_khz: u64) -> Option<u128> {
    (tsc_khz != 0).then(|| u128::from(cycles) * 1_000_000 / u128::from(tsc_khz))
}

/// `1.2 us`: three digits are enough for a histogram.
fn duration(ns: u128) -> String {
    match ns {
        0..=9_999 => format!("{ns} ns"),
        10_000..=9_999_999 => format!("{} us", ns / 1000),
        _ => format!("{} ms", ns / 1_000_000),
    }
}

/// What a line calls a figure: buckets of histograms say their range.
fn label(name: &str, figures: &Figures) -> String {
    if let Some(first) = name
        .strip_prefix("batch_")
        .and_then(|n| n.parse::<u64>().ok())
    {
        return match first {
            1 => "1 leaf".to_string(),
            512 => "512 leaves".to_string(),
            _ => format!("{first}..{} leaves", first * 2 - 1),
        };
    }
    if let Some(first) = name
        .strip_prefix("freeze_cycles_")
        .and_then(|n| n.parse::<u64>().ok())
    {
        let tsc_khz = figures.get("tsc_khz");
        return match nanoseconds(first.saturating_mul(2), tsc_khz) {
            Some(ns) => format!("less than {}", duration(ns)),
            None => format!("less than {} cycles", first.saturating_mul(2)),
        };
    }
    name.to_string()
}

/// Name, value and, with an earlier sample, the change per second. Figures that are 0 are left
/// out unless `all`.
pub fn table(now: &Sample, before: Option<&Sample>, all: bool) -> String {
    let mut text = String::new();
    match &now.td {
        Some(td) => {
            let state = if now.figures.get("finalized") != 0 {
                "runs"
            } else {
                "is being built"
            };
            let _ = writeln!(text, "TD {}, process {}, {state}", td.td, td.pid);
        }
        None => {
            let live = now.figures.get("tds_live");
            let created = now.figures.get("tds_created");
            let _ = writeln!(text, "all TDs: {live} live, {created} created");
        }
    }
    let mut rows: Vec<Vec<(String, u64, Option<f64>)>> = vec![Vec::new(); GROUPS.len() + 1];
    for name in now.figures.names() {
        if [
            "td",
            "pid",
            "tid",
            "finalized",
            "tds_live",
            "tds_created",
            "tsc_khz",
        ]
        .contains(&name)
        {
            continue;
        }
        let value = now.figures.get(name);
        let rate = before.and_then(|before| {
            let seconds = now.seconds - before.seconds;
            // Gauges fall.
            let change = i128::from(value) - i128::from(before.figures.get(name));
            (seconds > 0.0 && change != 0).then(|| change as f64 / seconds)
        });
        if all || value != 0 || rate.is_some() {
            let group = group_of(name).unwrap_or(GROUPS.len());
            rows[group].push((label(name, &now.figures), value, rate));
        }
    }
    let titles = GROUPS.iter().map(|(title, _)| *title).chain(["other"]);
    for (title, rows) in titles.zip(rows).filter(|(_, rows)| !rows.is_empty()) {
        let per_second = if before.is_some() { "per second" } else { "" };
        let _ = writeln!(
            text,
            "{}",
            format!("{title:<36}{:>16}{per_second:>14}", "total").trim_end()
        );
        for (name, value, rate) in rows {
            let rate = rate.map_or(String::new(), |rate| format!("{rate:.0}"));
            let _ = writeln!(
                text,
                "{}",
                format!("  {name:<34}{value:>16}{rate:>14}").trim_end()
            );
        }
    }
    text
}

/// What is wrong, by the rules of Documentation/tdx-mirror.rst. The rules that compare figures
/// hold when nothing happens, so that they are applied only while no TD lives.
pub fn problems(totals: &Figures) -> Vec<String> {
    let mut found = Vec::new();
    for (name, what) in [
        ("leaked", "pages are lost until the next boot"),
        (
            "quarantined",
            "pages could not be taken back from the TDX module",
        ),
        ("killed", "VMs were ended, as vp_enter_policy=kill says"),
        ("vp_enter_busy", "TDH.VP.ENTER found the S-EPT busy"),
        ("debts_lost", "pages of the S-EPT were not given back"),
        ("faults_bugged", "faults ended a VM"),
    ] {
        if totals.get(name) != 0 {
            found.push(format!("{name} is {}: {what}", totals.get(name)));
        }
    }
    if totals.get("tds_live") != 0 {
        return found;
    }
    let mut equal = |left: &str, right: &str, sum: u64| {
        if totals.get(left) != sum {
            found.push(format!(
                "{left} is {}, not {right}, {sum}, without a TD",
                totals.get(left)
            ));
        }
    };
    equal("leaf_transitions", "mapped", totals.get("mapped"));
    equal(
        "mapped",
        "zapped + quarantined",
        totals
            .get("zapped")
            .saturating_add(totals.get("quarantined")),
    );
    equal(
        "debts",
        "debts_paid + debts_lost",
        totals
            .get("debts_paid")
            .saturating_add(totals.get("debts_lost")),
    );
    equal("tables", "none", 0);
    equal("external_tables", "none", 0);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seconds: f64, text: &str) -> Sample {
        Sample {
            seconds,
            td: None,
            figures: Figures::parse(text).unwrap(),
        }
    }

    const TD: &str = include_str!("../tests/data/167-3/stats");

    #[test]
    fn recorded_td() {
        let now = Sample {
            td: Some(TdName { td: 3, pid: 167 }),
            ..sample(0.0, TD)
        };
        let text = table(&now, None, false);
        assert!(text.starts_with("TD 3, process 167, runs\n"), "{text}");
        assert!(
            text.contains("\n  mapped                                        2389\n"),
            "{text}"
        );
        assert!(
            text.contains("\n  1 leaf                                         204\n"),
            "{text}"
        );
        // Twice 4096 cycles at 2.596 GHz.
        assert!(
            text.contains("\n  less than 3155 ns                             1638\n"),
            "{text}"
        );
        assert!(!text.contains("faults_invalid"), "{text}");
        assert!(!text.contains("per second"), "{text}");
        assert!(table(&now, None, true).contains("faults_invalid"));
    }

    #[test]
    fn changes_per_second() {
        let before = sample(1.0, "tds_live 1\nmapped 100\npages_mapped 90\nbusy 5\n");
        let now = sample(3.0, "tds_live 1\nmapped 300\npages_mapped 0\nbusy 5\n");
        let text = table(&now, Some(&before), false);
        let line = |name: &str| {
            text.lines()
                .find(|line| line.trim_start().starts_with(name))
                .unwrap()
        };
        assert!(line("mapped").ends_with(" 300           100"), "{text}");
        assert!(line("pages_mapped").ends_with(" 0           -45"), "{text}");
        assert!(line("busy").ends_with(" 5"), "{text}");
    }

    #[test]
    fn every_figure_is_shown_once() {
        let now = sample(0.0, TD);
        let text = table(&now, None, true);
        let shown = text.lines().filter(|line| line.starts_with("  ")).count();
        assert_eq!(shown, now.figures.names().count() - 5);
    }

    #[test]
    fn durations() {
        assert_eq!(nanoseconds(2_596_133, 2_596_133), Some(1_000_000));
        assert_eq!(
            nanoseconds(u64::MAX, 1),
            Some(u128::from(u64::MAX) * 1_000_000)
        );
        assert_eq!(nanoseconds(7, 0), None);
        assert_eq!(duration(9_999), "9999 ns");
        assert_eq!(duration(10_000), "10 us");
        assert_eq!(duration(10_000_000), "10 ms");
        assert_eq!(
            label("freeze_cycles_8", &sample(0.0, "x 1").figures),
            "less than 16 cycles"
        );
        assert_eq!(
            label("batch_64", &sample(0.0, "x 1").figures),
            "64..127 leaves"
        );
    }

    #[test]
    fn healthy() {
        assert_eq!(
            problems(&sample(0.0, "tds_live 0\nmapped 7\nzapped 7\nleaf_transitions 7\n").figures),
            [""; 0]
        );
        // Of a live TD nothing has to be equal.
        assert_eq!(
            problems(&sample(0.0, "tds_live 1\nmapped 7\nzapped 3\ntables 4\n").figures),
            [""; 0]
        );
    }

    #[test]
    fn each_problem() {
        let good = "tds_live 0\nmapped 7\nzapped 7\nleaf_transitions 7\n";
        for bad in [
            "leaked 1",
            "killed 1",
            "vp_enter_busy 2",
            "faults_bugged 1",
            "tables 3",
            "external_tables 1",
            "debts 4",
            "debts_lost 1",
        ] {
            let found = problems(&sample(0.0, &format!("{good}{bad}\n")).figures);
            assert!(!found.is_empty(), "{bad}");
            assert!(
                found[0].starts_with(bad.split(' ').next().unwrap()) || bad == "debts_lost 1",
                "{found:?}"
            );
        }
        let found =
            problems(&sample(0.0, "tds_live 0\nmapped 7\nzapped 6\nleaf_transitions 8\n").figures);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(
            problems(&sample(0.0, "tds_live 3\nquarantined 2\n").figures).len(),
            1
        );
    }
}
