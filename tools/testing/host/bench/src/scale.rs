// SPDX-License-Identifier: GPL-2.0

//! How much more two threads get done than one, on a machine that has other things to do.
//!
//! Rounds of some milliseconds; a round counts only if each thread had a CPU of its own for all of
//! it, so that the time on the wall is the time that the thread ran, and if all worked at the same
//! time. Rounds with one thread and with two alternate, so that a machine that changes its speed
//! does so for both.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Instant;

/// A round with more time on the wall than this part of what a thread ran is not counted.
const UNDISTURBED: f64 = 1.03;

/// The threads of a round worked at the same time for this part of it, or it is not counted.
const TOGETHER: f64 = 0.9;

/// How a measurement went.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Work done per time by two threads, against that of one.
    pub factor: f64,
    /// Rounds that counted, of each kind.
    pub rounds: usize,
}

/// What one thread did, in seconds since the round was made.
struct Span {
    start: f64,
    end: f64,
    ran: f64,
}

fn thread_seconds() -> f64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is valid for a write.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Seconds of the slower of `threads` threads, or `None` if one had to wait for a CPU.
fn round<S: Sync>(threads: u64, shared: &S, work: &(impl Fn(&S, u64) + Sync)) -> Option<f64> {
    let (ready, made) = (AtomicU64::new(0), Instant::now());
    let one = |n: u64| {
        // Nobody sleeps here, so that all begin at once.
        ready.fetch_add(1, SeqCst);
        while ready.load(SeqCst) < threads {
            std::hint::spin_loop();
        }
        let (start, ran) = (made.elapsed().as_secs_f64(), thread_seconds());
        work(shared, n);
        Span {
            start,
            ran: thread_seconds() - ran,
            end: made.elapsed().as_secs_f64(),
        }
    };
    let spans = thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|n| {
                let one = &one;
                scope.spawn(move || one(n))
            })
            .collect();
        let ends = all.into_iter().map(|t| t.join().expect("a round"));
        ends.collect::<Vec<_>>()
    });
    let longest = spans.iter().map(|s| s.end - s.start).fold(0.0, f64::max);
    let first_end = spans.iter().map(|s| s.end).fold(f64::INFINITY, f64::min);
    let last_start = spans.iter().map(|s| s.start).fold(0.0, f64::max);
    let quiet = spans.iter().all(|s| s.end - s.start <= s.ran * UNDISTURBED);
    (quiet && first_end - last_start >= longest * TOGETHER).then_some(longest)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Two threads against one: each does `work` on what `make` makes for a round.
///
/// `None` if fewer than `rounds` of either kind were left undisturbed in `tries` tries.
pub fn measure<S: Sync>(
    rounds: usize,
    tries: usize,
    make: impl Fn() -> S,
    work: impl Fn(&S, u64) + Sync,
) -> Option<Scale> {
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for _ in 0..tries {
        if one.len().min(two.len()) >= rounds {
            break;
        }
        one.extend(round(1, &make(), &work));
        two.extend(round(2, &make(), &work));
    }
    let enough = one.len().min(two.len());
    (enough >= rounds).then(|| Scale {
        factor: 2.0 * median(&mut one) / median(&mut two),
        rounds: enough,
    })
}
