// SPDX-License-Identifier: GPL-2.0
//! What a run did: exits, conversions, milestones.

use std::arch::x86_64::_rdtsc;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Mutex;
use std::time::Instant;

macro_rules! reasons {
    ($($name:ident = $text:literal,)*) => {
        /// Why KVM_RUN returned.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Reason { $($name,)* }
        const REASONS: &[&str] = &[$($text,)*];
    };
}

reasons! {
    IoIn = "io_in",
    IoOut = "io_out",
    Park = "park",
    MmioRead = "mmio_read",
    MmioWrite = "mmio_write",
    MapGpa = "map_gpa",
    Hypercall = "hypercall",
    MemoryFault = "memory_fault",
    Tdx = "tdx",
    SystemEvent = "system_event",
    Shutdown = "shutdown",
    Interrupted = "interrupted",
    Other = "other",
}

const REASON_COUNT: usize = Reason::Other as usize + 1;

/// A point of the boot.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Milestone {
    name: String,
    wall_us: u64,
    tsc: u64,
}

/// Counters, each written by any thread.
pub struct Stats {
    exits: Vec<[AtomicU64; REASON_COUNT]>,
    conversions: [AtomicU64; 2],
    bytes: [AtomicU64; 2],
    start: (Instant, u64),
    milestones: Mutex<Vec<Milestone>>,
}

fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has it.
    unsafe { _rdtsc() }
}

impl Stats {
    /// Time counts from here.
    pub fn new(cpus: u32) -> Self {
        let zeros = || std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            exits: (0..cpus).map(|_| zeros()).collect(),
            conversions: Default::default(),
            bytes: Default::default(),
            start: (Instant::now(), tsc()),
            milestones: Mutex::new(Vec::new()),
        }
    }

    pub fn exit(&self, vcpu: usize, reason: Reason) {
        if let Some(count) = self
            .exits
            .get(vcpu)
            .and_then(|all| all.get(reason as usize))
        {
            count.fetch_add(1, Relaxed);
        }
    }

    pub fn converted(&self, bytes: u64, private: bool) {
        let n = usize::from(private);
        self.conversions[n].fetch_add(1, Relaxed);
        self.bytes[n].fetch_add(bytes, Relaxed);
    }

    /// Notes a point of the boot; returns its time in ms and ticks of the TSC, which a
    /// TD's TSC has too.
    pub fn milestone(&self, name: &str) -> (u64, u64) {
        let wall_us = self.start.0.elapsed().as_micros() as u64;
        let tsc = tsc().wrapping_sub(self.start.1);
        let mut all = self.milestones.lock().unwrap_or_else(|e| e.into_inner());
        all.push(Milestone {
            name: name.to_string(),
            wall_us,
            tsc,
        });
        (wall_us / 1000, tsc)
    }

    /// All of it, and the exit status of the program.
    pub fn json(&self, status: i32, outcome: &str) -> String {
        let mut out = String::from("{\n");
        let sum =
            |reason: usize| -> u64 { self.exits.iter().map(|e| e[reason].load(Relaxed)).sum() };
        let _ = write!(
            out,
            "  \"status\": {status},\n  \"outcome\": {},\n",
            quote(outcome)
        );
        let _ = writeln!(out, "  \"exits\": {},", object((0..REASON_COUNT).map(sum)));
        let each = self
            .exits
            .iter()
            .map(|e| object(e.iter().map(|count| count.load(Relaxed))));
        let each: Vec<String> = each.collect();
        let _ = writeln!(out, "  \"exits_per_vcpu\": [{}],", each.join(", "));
        for (n, side) in ["shared", "private"].iter().enumerate() {
            let (count, bytes) = (
                self.conversions[n].load(Relaxed),
                self.bytes[n].load(Relaxed),
            );
            let _ = writeln!(
                out,
                "  \"to_{side}\": {{\"conversions\": {count}, \"bytes\": {bytes}}},"
            );
        }
        let all = self.milestones.lock().unwrap_or_else(|e| e.into_inner());
        let all: Vec<String> = all
            .iter()
            .map(|m| {
                let name = quote(&m.name);
                format!(
                    "    {{\"name\": {name}, \"wall_us\": {}, \"tsc\": {}}}",
                    m.wall_us, m.tsc
                )
            })
            .collect();
        let _ = writeln!(out, "  \"milestones\": [\n{}\n  ]\n}}", all.join(",\n"));
        out
    }
}

fn object(counts: impl Iterator<Item = u64>) -> String {
    let fields: Vec<String> = REASONS
        .iter()
        .zip(counts)
        .map(|(name, count)| format!("\"{name}\": {count}"))
        .collect();
    format!("{{{}}}", fields.join(", "))
}

fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if u32::from(c) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_sums_and_each_vcpu() {
        let stats = Stats::new(2);
        stats.exit(0, Reason::IoOut);
        stats.exit(1, Reason::IoOut);
        stats.exit(1, Reason::MapGpa);
        stats.exit(7, Reason::MapGpa);
        stats.converted(8192, false);
        stats.converted(4096, true);
        stats.converted(4096, true);
        stats.milestone("init");
        let json = stats.json(3, "a \"b\"\n");
        assert!(json.contains("\"status\": 3,"));
        assert!(json.contains("\"outcome\": \"a \\\"b\\\"\\u000a\""));
        let exits = json
            .lines()
            .find(|line| line.contains("\"exits\":"))
            .unwrap();
        assert!(exits.contains("\"io_out\": 2,") && exits.contains("\"map_gpa\": 1,"));
        let each = json.lines().find(|line| line.contains("per_vcpu")).unwrap();
        assert_eq!(each.matches("\"io_out\": 1,").count(), 2);
        assert!(json.contains("\"to_shared\": {\"conversions\": 1, \"bytes\": 8192}"));
        assert!(json.contains("\"to_private\": {\"conversions\": 2, \"bytes\": 8192}"));
        assert_eq!(json.matches("\"name\": \"init\"").count(), 1);
        assert_eq!(json.matches('{').count(), json.matches('}').count());
    }

    #[test]
    fn every_reason_has_its_name() {
        assert_eq!(REASONS.len(), REASON_COUNT);
        assert_eq!(REASONS[Reason::MapGpa as usize], "map_gpa");
        assert_eq!(REASONS[Reason::Other as usize], "other");
    }
}
