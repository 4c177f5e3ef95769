// SPDX-License-Identifier: GPL-2.0

//! The locks of the core on modelled atomics: all interleavings up to three preemptions
//! of threads that try them. What a lock guards is a loom cell, which fails the model
//! when two threads use it at once without an order between them.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::Arc;
use loom::thread;

#[allow(dead_code, unused_macros)]
mod emu {
    //! The shipped sources, and as much of their surroundings as they need.

    pub mod numbers {
        include!(concat!(env!("OUT_DIR"), "/numbers_on_loom.rs"));
    }

    pub mod lock {
        include!(concat!(env!("OUT_DIR"), "/lock_on_loom.rs"));
    }

    pub mod tree {
        include!(concat!(env!("OUT_DIR"), "/tree_on_loom.rs"));
    }

    pub mod epoch {
        include!(concat!(env!("OUT_DIR"), "/epoch_on_loom.rs"));
    }

    pub mod mem {
        use loom::sync::atomic::AtomicU64;

        use super::platform::Platform;

        pub const WORDS: usize = 512;

        /// A page of which only the first words exist.
        #[derive(Clone, Copy)]
        pub struct Page<'p>(pub &'p [AtomicU64]);

        impl<'p> Page<'p> {
            pub fn at<P: Platform>(_p: &'p P, _pa: u64) -> Option<Self> {
                None
            }

            pub fn word(&self, i: usize) -> &'p AtomicU64 {
                &self.0[i]
            }
        }
    }

    pub mod observer {
        pub trait Observer {}
        impl Observer for () {}
    }

    pub mod platform {
        pub trait Platform {}
        #[derive(Default)]
        pub struct Regs {
            pub rcx: u64,
            pub rdx: u64,
        }
    }

    pub mod td {
        use loom::sync::atomic::AtomicU64;

        use super::lock::{Mode, ShareX};
        use super::numbers::{op, st, Res};

        pub mod tdcs_word {
            pub const EPOCH_LOCK: usize = 0;
            pub const EPOCH: usize = 1;
            pub const REFCOUNT: usize = 2;
        }

        pub struct Tdcs<'m>(pub &'m [AtomicU64]);

        impl<'m> Tdcs<'m> {
            pub fn word(&self, w: usize) -> &'m AtomicU64 {
                &self.0[w]
            }

            pub fn lock_epoch(&self, mode: Mode) -> Res<ShareX<'m>> {
                ShareX::try_lock(self.word(tdcs_word::EPOCH_LOCK), mode)
                    .map_err(|_| st::OPERAND_BUSY | op::TD_EPOCH)
            }
        }

        pub struct Tdr {
            pub pa: u64,
        }

        pub struct Td<'m> {
            pub tdcs: Tdcs<'m>,
            pub tdr: Tdr,
        }
    }

    pub mod machine {
        use loom::sync::atomic::AtomicU64;

        use super::numbers::Res;
        use super::td::{Td, Tdcs, Tdr};

        /// A machine with one TD, of which there are the words of the TDCS.
        pub struct Machine<P, O> {
            pub p: P,
            pub observer: O,
            pub tdcs: Vec<AtomicU64>,
        }

        impl<P, O> Machine<P, O> {
            pub fn begin(&self, _tdr: u64, _op: u64, _allowed: u64) -> Res<Td<'_>> {
                let tdcs = Tdcs(&self.tdcs);
                Ok(Td {
                    tdcs,
                    tdr: Tdr { pa: 0 },
                })
            }

            pub fn before_commit(&self, _leaf: u16, _tdr: u64) {}
        }
    }
}

use emu::lock::{Mode, ShareX, ShareXHp};
use emu::tree::Format;

/// What is in the entries does not matter to who may change them.
const FORMAT: Format = Format::PLAIN;

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

/// Explores a model up to three preemptions. Returns which of its outcomes were seen.
fn outcomes(model: impl Fn() -> u32 + Sync + Send + 'static) -> u32 {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    let seen = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let s = seen.clone();
    builder.check(move || {
        let outcome = model();
        s.fetch_or(1 << outcome, std::sync::atomic::Ordering::Relaxed);
    });
    seen.load(std::sync::atomic::Ordering::Relaxed)
}

/// An S-EPT entry and what its lock guards.
struct Guarded2 {
    words: [AtomicU64; 1],
    data: UnsafeCell<u64>,
}

// SAFETY: `data` is only touched under the entry's lock, which is what the models check.
unsafe impl Sync for Guarded2 {}
// SAFETY: as above.
unsafe impl Send for Guarded2 {}

impl Guarded2 {
    fn entry(&self) -> emu::tree::EntryRef<'_> {
        emu::tree::EntryRef::new(emu::mem::Page(&self.words), 0, 0, FORMAT)
    }

    fn touch(&self) {
        // SAFETY: entry lock held; loom checks that nobody else is here.
        self.data.with_mut(|p| unsafe { *p += 1 });
    }
}

#[test]
fn entry_lock_of_host_and_guest() {
    use emu::tree::{pending_leaf, HOST_PRIORITY, LOCK};
    let seen = outcomes(|| {
        let g = Arc::new(Guarded2 {
            words: [AtomicU64::new(pending_leaf(0x5000))],
            data: UnsafeCell::new(0),
        });
        let guest = {
            let g = g.clone();
            thread::spawn(move || match g.entry().lock_guest() {
                Ok(_lock) => {
                    g.touch();
                    true
                }
                Err(_) => false,
            })
        };
        let host = match g.entry().lock_host() {
            Ok(_lock) => {
                g.touch();
                true
            }
            Err(_) => false,
        };
        let guest = guest.join().unwrap();
        let word = g.words[0].load(Ordering::SeqCst);
        assert_eq!(word & LOCK, 0, "left locked");
        // A host that fails leaves its priority, one that succeeds leaves none.
        assert_eq!(word & HOST_PRIORITY != 0, !host);
        assert_eq!(word & !HOST_PRIORITY, pending_leaf(0x5000));
        if !host {
            // The guest has to yield until a host was there.
            assert!(g.entry().lock_guest().is_err());
            drop(g.entry().lock_host().ok());
            assert!(g.entry().lock_guest().is_ok());
        }
        u32::from(host) | (u32::from(guest) << 1)
    });
    // Both, only the host, only the guest; never neither.
    assert_eq!(seen, 0b1110);
}

// What a holder stores is not part of this: loom orders a plain store and a read-modify-write
// that raced with it either way, which no memory model allows.
#[test]
fn entry_lock_of_two_hosts() {
    use emu::tree::{mapped_leaf, HOST_PRIORITY};
    let seen = outcomes(|| {
        let g = Arc::new(Guarded2 {
            words: [AtomicU64::new(mapped_leaf(0x5000))],
            data: UnsafeCell::new(0),
        });
        let attempt = |g: &Guarded2| {
            let lock = g.entry().lock_host();
            if lock.is_ok() {
                g.touch();
            }
            lock.is_ok()
        };
        let other = {
            let g = g.clone();
            thread::spawn(move || attempt(&g))
        };
        let (mine, other) = (attempt(&g), other.join().unwrap());
        let word = g.words[0].load(Ordering::SeqCst);
        assert_eq!(word & !HOST_PRIORITY, mapped_leaf(0x5000));
        assert!(mine || other);
        u32::from(mine && other)
    });
    assert_eq!(seen, 0b11);
}

/// A TD of one page, which a vCPU uses and the host takes away.
struct OnePage {
    machine: emu::machine::Machine<Nothing, ()>,
    entry: [AtomicU64; 1],
    page: UnsafeCell<u64>,
}

struct Nothing;
impl emu::platform::Platform for Nothing {}

// SAFETY: `page` is used by the guest while mapped and by the host after tracking, which is
// what the model checks.
unsafe impl Sync for OnePage {}
// SAFETY: as above.
unsafe impl Send for OnePage {}

impl OnePage {
    fn new() -> OnePage {
        OnePage {
            machine: emu::machine::Machine {
                observer: (),
                p: Nothing,
                // Lock, epoch 1, no vCPU in the even and in the odd epoch.
                tdcs: [0, 1, 0, 0].map(AtomicU64::new).into(),
            },
            entry: [AtomicU64::new(emu::tree::mapped_leaf(0x5000))],
            page: UnsafeCell::new(0),
        }
    }

    /// One VP.ENTER: the guest walks, and uses the translation until it leaves.
    fn guest(&self) -> bool {
        let tdcs = emu::td::Tdcs(&self.machine.tdcs);
        let Ok(epoch) = tdcs.enter_epoch() else {
            return false;
        };
        let page = emu::mem::Page(&self.entry);
        let raw = emu::tree::EntryRef::new(page, 0, 0, FORMAT).load();
        let mapped = raw & emu::tree::RWX != 0;
        if mapped {
            // SAFETY: mapped and entered; loom checks that the host does not have it yet.
            self.page.with(|p| assert!(unsafe { *p } < 10));
        }
        tdcs.leave_epoch(epoch);
        mapped
    }

    /// BLOCK, TRACK, and the page if the TLBs are clean. The steps are those of the leaves.
    fn host(&self, track: bool) -> bool {
        use emu::tree::{blocked, EntryRef, State};
        let tdcs = emu::td::Tdcs(&self.machine.tdcs);
        let Ok(lock) = EntryRef::new(emu::mem::Page(&self.entry), 0, 0, FORMAT).lock_host() else {
            return false;
        };
        lock.set(blocked(lock.raw(), 0, State::Mapped));
        let blocked_in = tdcs.epoch();
        drop(lock);
        let tracked = !track || self.machine.mem_track(&Default::default()).is_ok();
        if !tracked || track && !tdcs.is_tracked(blocked_in) {
            return false;
        }
        // SAFETY: no vCPU holds a translation; loom checks that none uses the page.
        self.page.with_mut(|p| unsafe { *p += 1 });
        true
    }
}

#[test]
fn a_tracked_page_is_used_by_nobody() {
    let seen = outcomes(|| {
        let td = Arc::new(OnePage::new());
        let guest = {
            let td = td.clone();
            thread::spawn(move || td.guest())
        };
        let taken = td.host(true);
        let used = guest.join().unwrap();
        for w in 2..4 {
            assert_eq!(
                td.machine.tdcs[w].load(Ordering::SeqCst),
                0,
                "still counted"
            );
        }
        assert_eq!(td.machine.tdcs[0].load(Ordering::SeqCst), 0, "epoch lock");
        u32::from(taken) | (u32::from(used) << 1)
    });
    // All four: the page is taken before, after, instead of its use, or neither happens.
    assert_eq!(seen, 0b1111);
}

#[test]
#[should_panic]
fn a_page_that_was_not_tracked_is_used() {
    outcomes(|| {
        let td = Arc::new(OnePage::new());
        let guest = {
            let td = td.clone();
            thread::spawn(move || td.guest())
        };
        td.host(false);
        guest.join().unwrap();
        0
    });
}

#[test]
fn the_tdr_is_held_while_a_guest_runs() {
    let seen = outcomes(|| {
        let g = Arc::new(Guarded {
            word: AtomicU64::new(NEIGHBOUR),
            data: UnsafeCell::new(0),
        });
        let guest = {
            let g = g.clone();
            thread::spawn(move || {
                let Ok(held) = ShareXHp::try_lock(&g.word, Mode::Shared) else {
                    return false;
                };
                g.touch(Mode::Shared);
                // Exits that the module answers itself do not let go.
                g.touch(Mode::Shared);
                drop(held);
                true
            })
        };
        let alone = with_priority(&g, Mode::Exclusive);
        let inside = guest.join().unwrap();
        // After the exit the host gets it, whatever it was refused before.
        assert!(with_priority(&g, Mode::Exclusive));
        assert_eq!(g.word.load(Ordering::SeqCst), NEIGHBOUR);
        u32::from(alone) | (u32::from(inside) << 1)
    });
    assert_eq!(seen, 0b1110);
}
