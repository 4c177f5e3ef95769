// SPDX-License-Identifier: GPL-2.0
//! The locks of the core on modelled atomics: all interleavings up to three preemptions
//! of threads that try them. What a lock guards is a loom cell, which fails the model
//! when two threads use it at once without an order between them.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::Arc;
use loom::thread;

#[allow(dead_code)]
mod lock {
    include!(concat!(env!("OUT_DIR"), "/lock_on_loom.rs"));
}
use lock::{Mode, ShareX, ShareXHp};

/// Bits above the lock that must survive.
const NEIGHBOUR: u64 = 0xABCD_0000;

struct Guarded {
    word: AtomicU64,
    data: UnsafeCell<u64>,
}

// SAFETY: `data` is only touched under the lock, which is what the models check.
unsafe impl Sync for Guarded {}
// SAFETY: as above.
unsafe impl Send for Guarded {}

impl Guarded {
    fn touch(&self, mode: Mode) {
        match mode {
            // SAFETY: shared lock held; loom checks that nobody writes.
            Mode::Shared => self.data.with(|p| assert!(unsafe { *p } < 10)),
            // SAFETY: exclusive lock held; loom checks that nobody else is here.
            Mode::Exclusive => self.data.with_mut(|p| unsafe { *p += 1 }),
        }
    }
}

/// Runs one thread for each mode, which tries once, and checks the word afterwards.
/// Returns through `max` how many succeeded at most.
fn model(start: u64, modes: &'static [Mode], attempt: fn(&Guarded, Mode) -> bool, rest: u64) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    let best = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let worst = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(usize::MAX));
    let (b, w) = (best.clone(), worst.clone());
    builder.check(move || {
        let g = Arc::new(Guarded {
            word: AtomicU64::new(start),
            data: UnsafeCell::new(0),
        });
        let threads: Vec<_> = modes
            .iter()
            .map(|&mode| {
                let g = g.clone();
                thread::spawn(move || attempt(&g, mode))
            })
            .collect();
        let won = threads
            .into_iter()
            .map(|t| t.join().unwrap())
            .filter(|&ok| ok)
            .count();
        b.fetch_max(won, std::sync::atomic::Ordering::Relaxed);
        w.fetch_min(won, std::sync::atomic::Ordering::Relaxed);
        // Nothing stays held, whoever failed.
        assert_eq!(g.word.load(Ordering::SeqCst) & !rest, start & !rest);
    });
    // The model is not trivial: all can succeed one after the other, and not always.
    assert_eq!(best.load(std::sync::atomic::Ordering::Relaxed), modes.len());
    if modes.contains(&Mode::Exclusive) {
        assert!(worst.load(std::sync::atomic::Ordering::Relaxed) < modes.len());
    }
}

fn plain(g: &Guarded, mode: Mode) -> bool {
    let lock = ShareX::try_lock(&g.word, mode);
    if lock.is_ok() {
        g.touch(mode);
    }
    lock.is_ok()
}

fn with_priority(g: &Guarded, mode: Mode) -> bool {
    let lock = ShareXHp::try_lock(&g.word, mode);
    if lock.is_ok() {
        g.touch(mode);
    }
    lock.is_ok()
}

fn promoting(g: &Guarded, mode: Mode) -> bool {
    let Ok(mut lock) = ShareXHp::try_lock(&g.word, Mode::Shared) else {
        return false;
    };
    g.touch(Mode::Shared);
    if mode == Mode::Exclusive {
        if lock.promote().is_err() {
            return false;
        }
        g.touch(Mode::Exclusive);
    }
    true
}

#[test]
fn plain_writers() {
    model(0, &[Mode::Exclusive, Mode::Exclusive], plain, 0);
}

#[test]
fn plain_reader_and_writer() {
    model(0, &[Mode::Shared, Mode::Exclusive], plain, 0);
}

#[test]
fn plain_two_readers_and_a_writer() {
    model(0, &[Mode::Shared, Mode::Exclusive, Mode::Shared], plain, 0);
}

#[test]
fn priority_writers() {
    model(
        NEIGHBOUR,
        &[Mode::Exclusive, Mode::Exclusive],
        with_priority,
        2,
    );
}

#[test]
fn priority_two_readers_and_a_writer() {
    model(
        NEIGHBOUR,
        &[Mode::Shared, Mode::Exclusive, Mode::Shared],
        with_priority,
        2,
    );
}

#[test]
fn promotion_excludes() {
    model(NEIGHBOUR, &[Mode::Exclusive, Mode::Exclusive], promoting, 2);
    model(NEIGHBOUR, &[Mode::Shared, Mode::Exclusive], promoting, 2);
}
