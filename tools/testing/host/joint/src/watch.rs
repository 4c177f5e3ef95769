// SPDX-License-Identifier: GPL-2.0

//! For tests with threads: what each of them does, and whether any of them still gets further.

use std::fmt;
use std::io::{stderr, Write};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Steps of `N` threads, and what each began last.
pub struct Watch<const N: usize> {
    steps: [AtomicU64; N],
    doing: [Mutex<&'static str>; N],
    /// Time without a step of any thread after which they are stuck.
    limit: Duration,
    /// The sum of steps when it last changed, and when that was.
    last: Mutex<(u64, Instant)>,
}

impl<const N: usize> Watch<N> {
    pub fn new(limit: Duration) -> Self {
        Self {
            steps: [const { AtomicU64::new(0) }; N],
            doing: [const { Mutex::new("has not begun") }; N],
            limit,
            last: Mutex::new((0, Instant::now())),
        }
    }

    /// One more step of `thread`; answers how many it had made before.
    pub fn step(&self, thread: usize) -> u64 {
        self.steps[thread].fetch_add(1, SeqCst)
    }

    /// What `thread` begins now.
    pub fn doing(&self, thread: usize, what: &'static str) {
        *self.doing[thread].lock().unwrap() = what;
    }

    /// Steps of the thread that has made the fewest.
    pub fn fewest(&self) -> u64 {
        self.steps.iter().map(|s| s.load(SeqCst)).min().unwrap_or(0)
    }

    /// Steps of all threads.
    pub fn total(&self) -> u64 {
        self.steps.iter().map(|s| s.load(SeqCst)).sum()
    }

    /// Whether at `now` no thread has made a step for the limit.
    fn is_stuck(&self, now: Instant) -> bool {
        let mut last = self.last.lock().unwrap();
        let total = self.total();
        if total != last.0 {
            *last = (total, now);
        }
        now.duration_since(last.1) > self.limit
    }

    /// Ends the process with a report when the threads are stuck: they cannot be joined, and a
    /// panic would wait for them.  `more` is called for what else the reader should know.
    pub fn cut_if_stuck(&self, more: impl FnOnce() -> String) {
        if self.is_stuck(Instant::now()) {
            let report = format!("no step in {:?}:\n{self}{}\n", self.limit, more());
            // Not eprint!, whose output the test harness keeps, and then loses.
            _ = stderr().lock().write_all(report.as_bytes());
            std::process::exit(101);
        }
    }
}

impl<const N: usize> fmt::Display for Watch<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (steps, doing)) in self.steps.iter().zip(&self.doing).enumerate() {
            let (steps, doing) = (steps.load(SeqCst), doing.lock().unwrap());
            writeln!(f, "  thread {n}: {steps} steps, {doing}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_stuck_when_none_makes_a_step() {
        let limit = Duration::from_secs(1);
        let watch = Watch::<2>::new(limit);
        let mut now = Instant::now();
        for n in 0..4 {
            assert_eq!(watch.step(0), n);
            watch.doing(0, "waits for thread 1");
            assert!(!watch.is_stuck(now), "one of the two steps");
            now += limit;
            assert!(!watch.is_stuck(now), "not for longer than the limit");
        }
        now += Duration::from_millis(1);
        assert!(watch.is_stuck(now));
        assert_eq!((watch.fewest(), watch.total()), (0, 4));
        let text = watch.to_string();
        assert!(text.contains("thread 0: 4 steps, waits for thread 1"));
        assert!(text.contains("thread 1: 0 steps, has not begun"));
        watch.step(1);
        assert!(!watch.is_stuck(now), "the other goes on");
    }
}
