// SPDX-License-Identifier: GPL-2.0
//! A report from a text trace of the events tdx_mirror:*, as /sys/kernel/tracing/trace,
//! `trace-cmd report` and `perf script` print them.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

/// The names of the events, after what each begins with.
const PREFIX: &str = "tdx_mirror_";
const EVENTS: [&str; 10] = [
    "spte_changed",
    "fault",
    "zap",
    "seamcall",
    "busy",
    "kick",
    "track",
    "quarantine",
    "leak",
    "bug",
];

/// Calls of one leaf.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Leaf {
    pub success: u64,
    pub busy: u64,
    pub failed: u64,
    pub cycles_median: u64,
    pub cycles_max: u64,
    pub cycles_sum: u64,
    pub ns_sum: u64,
    #[serde(skip)]
    cycles: Vec<u64>,
}

/// What one TD did.
#[derive(Debug, Default, Serialize)]
pub struct Td {
    pub first: Option<f64>,
    pub last: Option<f64>,
    pub events: u64,
    pub spte_changes: u64,
    /// By outcome.
    pub faults: BTreeMap<String, u64>,
    pub seamcalls: BTreeMap<String, Leaf>,
    /// By leaf and operand.
    pub busy: BTreeMap<String, u64>,
    pub giveups: u64,
    pub kicks: u64,
    pub kick_cycles: u64,
    pub tracks: u64,
    pub zaps: u64,
    pub zapped: u64,
    pub quarantined: u64,
    /// Lines of leaks and broken invariants, as they are.
    pub alarms: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub tds: BTreeMap<u64, Td>,
    /// Lines that are no event of the mirror.
    pub other_lines: u64,
    /// Events that the kernel's or the tracer's buffer lost.
    pub lost: u64,
}

/// An event's name without the prefix, the time before it if there is one, and what it says.
fn split(line: &str) -> Option<(&str, Option<f64>, &str)> {
    // trace-cmd pads names with blanks.
    let (head, body) = line
        .match_indices(" td ")
        .map(|(at, _)| (line[..at].trim_end(), line[at..].trim_start()))
        .find_map(|(head, body)| Some((head.strip_suffix(':')?, body)))?;
    let name = head.rsplit([' ', ':', '\t']).next()?;
    let before = head[..head.len() - name.len()].trim_end();
    let before = before
        .strip_suffix("tdx_mirror:")
        .unwrap_or(before)
        .trim_end();
    let time = before
        .strip_suffix(':')
        .and_then(|text| text.rsplit(' ').next()?.parse().ok());
    let name = name.strip_prefix(PREFIX)?;
    EVENTS.contains(&name).then_some((name, time, body))
}

/// The word after `key`.
fn word<'a>(body: &'a str, key: &str) -> Option<&'a str> {
    let mut words = body.split_whitespace();
    words.find(|word| *word == key)?;
    words.next()
}

fn number(body: &str, key: &str) -> Option<u64> {
    let text = word(body, key)?;
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

impl Td {
    /// None if the body is not what the event prints.
    fn take(&mut self, name: &str, body: &str, line: &str) -> Option<()> {
        match name {
            "spte_changed" => {
                number(body, "gpa")?;
                self.spte_changes += 1;
            }
            "fault" => {
                number(body, "gfn")?;
                *self
                    .faults
                    .entry(body.split_whitespace().last()?.to_string())
                    .or_default() += 1;
            }
            "zap" => {
                self.zapped += number(body, "zapped")?;
                self.zaps += 1;
            }
            "seamcall" => {
                let (status, cycles) = (number(body, "status")?, number(body, "cycles")?);
                let ns = number(body, "ns")?;
                let leaf = self
                    .seamcalls
                    .entry(body.split_whitespace().nth(2)?.to_string())
                    .or_default();
                match status >> 62 {
                    0 | 1 => leaf.success += 1,
                    2 => leaf.busy += 1,
                    _ => leaf.failed += 1,
                }
                leaf.cycles.push(cycles);
                leaf.cycles_sum += cycles;
                leaf.ns_sum += ns;
            }
            "busy" => {
                let leaf = body.split_whitespace().nth(2)?;
                let operand = word(body, "operand")?;
                if number(body, "left")? == 0 {
                    self.giveups += 1;
                }
                *self.busy.entry(format!("{leaf} {operand}")).or_default() += 1;
            }
            "kick" => {
                self.kick_cycles += number(body, "cycles")?;
                self.kicks += 1;
            }
            "track" => {
                number(body, "status")?;
                self.tracks += 1;
            }
            "quarantine" => {
                number(body, "pfn")?;
                self.quarantined += 1;
            }
            _ => self.alarms.push(line.trim().to_string()),
        }
        Some(())
    }
}

impl Report {
    pub fn parse(text: &str) -> Self {
        let mut report = Self::default();
        for line in text
            .lines()
            .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        {
            if let Some(lost) = lost(line) {
                report.lost += lost;
                continue;
            }
            let event = split(line)
                .and_then(|(name, time, body)| Some((name, time, body, number(body, "td")?)));
            let Some((name, time, body, number)) = event else {
                report.other_lines += 1;
                continue;
            };
            let td = report.tds.entry(number).or_default();
            if td.take(name, body, line).is_none() {
                report.other_lines += 1;
                continue;
            }
            td.events += 1;
            td.first = td.first.or(time);
            td.last = time.or(td.last);
        }
        report.tds.retain(|_, td| td.events != 0);
        for leaf in report
            .tds
            .values_mut()
            .flat_map(|td| td.seamcalls.values_mut())
        {
            leaf.cycles.sort_unstable();
            leaf.cycles_median = leaf.cycles[leaf.cycles.len() / 2];
            leaf.cycles_max = leaf.cycles[leaf.cycles.len() - 1];
        }
        report
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for (number, td) in &self.tds {
            let _ = write!(text, "TD {number}: {} events", td.events);
            if let (Some(first), Some(last)) = (td.first, td.last) {
                let _ = write!(text, " in {:.6} s", last - first);
            }
            let _ = writeln!(text, ", {} changes of the mirror", td.spte_changes);
            for (outcome, count) in &td.faults {
                let _ = writeln!(text, "  faults, {outcome:<24} {count:>10}");
            }
            if !td.seamcalls.is_empty() {
                let _ = writeln!(
                    text,
                    "  {:<22} {:>9} {:>8} {:>7} {:>14} {:>12} {:>12}",
                    "SEAMCALL",
                    "success",
                    "busy",
                    "failed",
                    "median cycles",
                    "max cycles",
                    "us in all"
                );
            }
            for (name, leaf) in &td.seamcalls {
                let _ = writeln!(
                    text,
                    "  {name:<22} {:>9} {:>8} {:>7} {:>14} {:>12} {:>12}",
                    leaf.success,
                    leaf.busy,
                    leaf.failed,
                    leaf.cycles_median,
                    leaf.cycles_max,
                    leaf.ns_sum / 1000
                );
            }
            for (what, count) in &td.busy {
                let _ = writeln!(text, "  busy, {what:<26} {count:>10}");
            }
            for (what, count) in [
                ("give-ups", td.giveups),
                ("kicks", td.kicks),
                ("cycles of kicks", td.kick_cycles),
                ("tries of TDH.MEM.TRACK", td.tracks),
                ("zaps", td.zaps),
                ("leaves zapped", td.zapped),
                ("pages quarantined", td.quarantined),
            ] {
                if count != 0 {
                    let _ = writeln!(text, "  {what:<32} {count:>10}");
                }
            }
            for line in &td.alarms {
                let _ = writeln!(text, "  alarm: {line}");
            }
        }
        if self.lost != 0 {
            let _ = writeln!(text, "{} events were lost: use a larger buffer", self.lost);
        }
        text
    }

    /// Whether something leaked or broke.
    pub fn alarming(&self) -> bool {
        self.tds.values().any(|td| !td.alarms.is_empty())
    }
}

/// `CPU:0 [LOST 12 EVENTS]` and `CPU:0 [12 EVENTS DROPPED]`.
fn lost(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once('[')?;
    let inside = rest.strip_suffix(']')?;
    let mut words = inside.split_whitespace();
    match (words.next()?, words.next()?, words.next()?) {
        ("LOST", count, "EVENTS") | (count, "EVENTS", "DROPPED") => count.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FTRACE: &str = "\
# tracer: nop
            life-87      [001] .....    12.000100: tdx_mirror_seamcall: td 3 MEM.PAGE.AUG gpa 0x5000 level 1 pa 0x1234000 status 0x8000020000000001 operand 0x1 cycles 900 ns 400
            life-87      [001] .....    12.000200: tdx_mirror_busy: td 3 MEM.PAGE.AUG gpa 0x5000 level 1 operand sept_tree tries left 4
            life-87      [001] .....    12.000300: tdx_mirror_seamcall: td 3 MEM.PAGE.AUG gpa 0x5000 level 1 pa 0x1234000 status 0x0000000000000000 operand 0x0 cycles 1100 ns 500
            life-87      [001] .....    12.000400: tdx_mirror_spte_changed: td 3 gpa 0x5000 level 1 old 0x0000000000000000 new 0x8008000001234837
            life-87      [001] .....    12.000500: tdx_mirror_fault: td 3 gfn 0x5 pfn 0x1234 level 1 fixed
            life-87      [001] .....    12.000600: tdx_mirror_kick: td 3 cycles 777
            life-87      [001] .....    12.000700: tdx_mirror_track: td 3 status 0x0000000000000000
            life-87      [001] .....    12.000800: tdx_mirror_zap: td 3 gfns 0x0-0x10 zapped 1
            life-87      [001] .....    12.000900: tdx_mirror_something: td 3 else
            life-87      [001] .....    12.000950: kick: td 3 cycles 5
";

    #[test]
    fn ftrace() {
        let report = Report::parse(FTRACE);
        assert_eq!(report.other_lines, 2);
        let td = &report.tds[&3];
        assert_eq!(
            (td.events, td.spte_changes, td.kicks, td.kick_cycles),
            (8, 1, 1, 777)
        );
        assert_eq!((td.tracks, td.zaps, td.zapped, td.giveups), (1, 1, 1, 0));
        let leaf = &td.seamcalls["MEM.PAGE.AUG"];
        assert_eq!((leaf.success, leaf.busy, leaf.failed), (1, 1, 0));
        assert_eq!(
            (
                leaf.cycles_median,
                leaf.cycles_max,
                leaf.cycles_sum,
                leaf.ns_sum
            ),
            (1100, 1100, 2000, 900)
        );
        assert_eq!(td.busy["MEM.PAGE.AUG sept_tree"], 1);
        assert_eq!(td.faults["fixed"], 1);
        assert!((td.last.unwrap() - td.first.unwrap() - 0.0007).abs() < 1e-9);
        assert!(!report.alarming());
        assert!(report.text().contains("TD 3: 8 events in 0.000700 s"));
    }

    #[test]
    fn perf_and_trace_cmd() {
        let perf = "life 87 [001] 12.000600:     tdx_mirror:tdx_mirror_kick: td 4 cycles 5\n";
        let trace_cmd =
            "          life-87    [001]    12.000700: tdx_mirror_kick:                 td 4 cycles 6\n";
        let report = Report::parse(&format!("{perf}{trace_cmd}"));
        assert_eq!((report.tds[&4].kicks, report.tds[&4].kick_cycles), (2, 11));
        assert_eq!(report.tds[&4].first, Some(12.0006));
        assert_eq!(report.tds[&4].last, Some(12.0007));
    }

    #[test]
    fn alarms_and_losses() {
        let report = Report::parse(
            "CPU:0 [LOST 12 EVENTS]\n\
             a-1 [000] 1.0: tdx_mirror_leak: td 5 gpa 0x0 level 1 pfn 0x77 status 0xc000030000000000\n\
             CPU:1 [3 EVENTS DROPPED]\n\
             a-1 [000] 1.0: tdx_mirror_seamcall: td 5 MEM.TRACK gpa 0x0 level 0 pa 0x0 status 0xc000010000000000 operand 0x0 cycles 1 ns 1\n",
        );
        assert_eq!(report.lost, 15);
        assert!(report.alarming());
        assert_eq!(report.tds[&5].seamcalls["MEM.TRACK"].failed, 1);
        assert!(report
            .text()
            .contains("alarm: a-1 [000] 1.0: tdx_mirror_leak: td 5"));
    }

    #[test]
    fn lines_that_are_cut() {
        let report = Report::parse(
            "x: tdx_mirror_kick: td 5 cycles\nx: tdx_mirror_seamcall: td 5\nx: tdx_mirror_fault: td 5\nx: tdx_mirror_zap: td\nplain text\n",
        );
        assert_eq!(report.other_lines, 5);
        assert!(report.tds.is_empty());
    }
}
