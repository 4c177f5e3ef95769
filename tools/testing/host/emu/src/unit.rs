// SPDX-License-Identifier: GPL-2.0

//! Unit tests of the core's parts.

use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha384};

use crate::module::lock::{Mode, ShareX, ShareXHp};
use crate::module::sha384;
use crate::module::td::GpaLevel;
use crate::module::tree::{self, State};

fn w(v: u64) -> AtomicU64 {
    AtomicU64::new(v)
}

#[test]
fn sharex_is_a_single_try() {
    let word = w(0);
    let a = ShareX::try_lock(&word, Mode::Shared).ok();
    let b = ShareX::try_lock(&word, Mode::Shared).ok();
    assert!(a.is_some() && b.is_some());
    assert_eq!(word.load(Ordering::SeqCst), 4);
    assert!(ShareX::try_lock(&word, Mode::Exclusive).is_err());
    drop((a, b));
    let x = ShareX::try_lock(&word, Mode::Exclusive).expect("a free lock");
    // The failed reader leaves its count until the writer goes.
    assert!(ShareX::try_lock(&word, Mode::Shared).is_err());
    assert_eq!(word.load(Ordering::SeqCst), 3);
    drop(x);
    assert_eq!(word.load(Ordering::SeqCst), 0);
}

#[test]
fn host_priority_follows_failure_and_success() {
    const OTHER_BITS: u64 = 0xABCD_0000;
    let word = w(OTHER_BITS);
    let x = ShareXHp::try_lock(&word, Mode::Exclusive).expect("a free lock");
    assert!(ShareXHp::try_lock(&word, Mode::Shared).is_err());
    assert_eq!(word.load(Ordering::SeqCst), OTHER_BITS | 7);
    drop(x);
    // The release keeps the priority, the next success clears it.
    assert_eq!(word.load(Ordering::SeqCst), OTHER_BITS | 2);
    let mut s = ShareXHp::try_lock(&word, Mode::Shared).expect("a free lock");
    assert_eq!(word.load(Ordering::SeqCst), OTHER_BITS | 4);
    assert!(ShareXHp::try_lock(&word, Mode::Exclusive).is_err());
    assert_eq!(word.load(Ordering::SeqCst), OTHER_BITS | 6);
    s.promote().expect("the only reader");
    assert_eq!(word.load(Ordering::SeqCst), OTHER_BITS | 1);
    drop(s);
    assert_eq!(word.load(Ordering::SeqCst), OTHER_BITS);
    // The failed reader's count went with the writer; a failed promotion leaves priority.
    let a = ShareXHp::try_lock(&word, Mode::Shared).expect("a free lock");
    let mut b = ShareXHp::try_lock(&word, Mode::Shared).expect("a shared lock");
    assert!(b.promote().is_err());
    drop((a, b));
    assert_eq!(word.load(Ordering::SeqCst), OTHER_BITS | 2);
}

#[test]
fn locks_exclude_each_other_between_threads() {
    static PLAIN: AtomicU64 = AtomicU64::new(0);
    static HP: AtomicU64 = AtomicU64::new(7 << 16);
    static INSIDE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    let busy: u64 = std::thread::scope(|s| {
        let threads: Vec<_> = (0..4u64)
            .map(|t| {
                s.spawn(move || {
                    let mut busy = 0;
                    for i in 0..20_000u64 {
                        let mode = if (i + t) % 3 == 0 {
                            Mode::Exclusive
                        } else {
                            Mode::Shared
                        };
                        let enter = |n: &AtomicU64| {
                            let me = if mode == Mode::Exclusive { 1 << 32 } else { 1 };
                            let seen = n.fetch_add(me, Ordering::SeqCst);
                            assert!(seen < 1 << 32 && (mode == Mode::Shared || seen == 0));
                            if i % 64 == 0 {
                                std::thread::yield_now();
                            }
                            n.fetch_sub(me, Ordering::SeqCst);
                        };
                        match ShareX::try_lock(&PLAIN, mode) {
                            Ok(_held) => enter(&INSIDE[0]),
                            Err(_) => busy += 1,
                        }
                        match ShareXHp::try_lock(&HP, mode) {
                            Ok(_held) => enter(&INSIDE[1]),
                            Err(_) => busy += 1,
                        }
                    }
                    busy
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert!(busy > 0);
    assert_eq!(HP.load(Ordering::SeqCst) & !2, 7 << 16);
    assert_eq!(PLAIN.load(Ordering::SeqCst), 0);
}

#[test]
fn sha384_agrees_with_the_crate() {
    for blocks in 0..40u64 {
        let data: Vec<u8> = (0..blocks * 128).map(|i| (i * 31 + blocks) as u8).collect();
        let mut state = sha384::INITIAL;
        for b in data.chunks_exact(128) {
            let words = std::array::from_fn(|i| {
                u64::from_be_bytes(b[8 * i..8 * i + 8].try_into().unwrap())
            });
            sha384::compress(&mut state, &words);
        }
        let got: Vec<u8> = sha384::finish(state, blocks * 128)
            .iter()
            .flat_map(|w| w.to_be_bytes())
            .collect();
        assert_eq!(got, Sha384::digest(&data).as_slice(), "{blocks} blocks");
    }
}

#[test]
fn states_have_the_documented_patterns() {
    let hpa = 0x1234_5000;
    let leaf = tree::mapped_leaf(hpa);
    let pending = tree::pending_leaf(hpa);
    let table = tree::table(hpa);
    assert_eq!(tree::FREE, 0x80E0_0000_0000_0000);
    assert_eq!(leaf, 0x8000_0000_1234_50F7);
    assert_eq!(pending, 0x8100_0000_1234_50F0);
    assert_eq!(table, 0x8000_0000_1234_5007);
    for (raw, state, code) in [
        (tree::FREE, State::Free, 0),
        (leaf, State::Mapped, 4),
        (pending, State::Pending, 2),
        (table, State::NlMapped, 0x84),
        (0x8080_0000_1234_50F0, State::Blocked, 1),
        (0x8180_0000_1234_50F0, State::PendingBlocked, 3),
        (0x8080_0000_1234_5000, State::NlBlocked, 0x81),
    ] {
        assert_eq!(State::of(raw), Some(state));
        assert_eq!(state.code(), code);
    }
    for raw in [leaf, pending, table] {
        let s = State::of(raw).unwrap();
        let b = tree::blocked(raw, 0, s);
        let bs = State::of(b).unwrap();
        assert!(bs.is_blocked() && b & tree::RWX == 0);
        assert_eq!(tree::unblocked(b, bs), raw);
    }
    // Every value either has one state or none; decoding never fails otherwise.
    let states: Vec<_> = (0..128u64)
        .map(|e| ((e & 1) << 9) | (((e >> 1) & 15) << 53) | ((e >> 5) << 6))
        .filter_map(State::of)
        .collect();
    assert_eq!(states.len(), 16);
}

#[test]
fn entry_lock_gives_the_host_priority() {
    use crate::module::mem::Page;
    use crate::module::tree::EntryRef;
    let host = crate::host::Host::new(crate::host::Host::default_config());
    let page = Page::at(&host, 0x5000).unwrap();
    page.set(3, tree::FREE);
    let e = EntryRef::new(page, 3, 0, tree::Format::PLAIN);
    let guest = e.lock_guest().expect("a free entry");
    assert!(e.lock_host().is_err());
    assert_eq!(page.get(3), tree::FREE | tree::LOCK | tree::HOST_PRIORITY);
    drop(guest);
    // The guest must yield until a host has had its turn.
    assert_eq!(e.lock_guest().err(), Some(0x8000_0204_0000_0000));
    assert_eq!(page.get(3), tree::FREE | tree::HOST_PRIORITY);
    drop(e.lock_host().expect("a free entry"));
    assert_eq!(page.get(3), tree::FREE);
    let host_lock = e.lock_host().expect("a free entry");
    assert_eq!(e.lock_guest().err(), Some(0x8000_0200_0000_0000));
    // A change writes the whole entry, with a priority that arrived meanwhile.
    assert!(e.lock_host().is_err());
    host_lock.set(tree::pending_leaf(0x7000));
    drop(host_lock);
    assert_eq!(page.get(3), tree::pending_leaf(0x7000));
}

#[test]
fn an_entry_keeps_the_priority_of_a_host_in_some_versions() {
    use crate::module::mem::Page;
    use crate::module::tree::{EntryRef, Format};
    let host = crate::host::Host::new(crate::host::Host::default_config());
    let page = Page::at(&host, 0x5000).unwrap();
    let pending = tree::pending_leaf(0x7000);
    for keeps_priority in [false, true] {
        let format = Format {
            hkid_mask: 0x3F << 46,
            hkid: 17 << 46,
            with_access: tree::XU,
            keeps_priority,
        };
        page.set(3, tree::FREE);
        let entry = EntryRef::new(page, 3, 0, format);
        let lock = entry.lock_host().expect("a free entry");
        assert!(entry.lock_host().is_err());
        lock.replace(pending);
        drop(lock);
        let kept = if keeps_priority {
            tree::HOST_PRIORITY
        } else {
            0
        };
        assert_eq!(page.get(3), pending | (17 << 46) | kept);
        assert_eq!(entry.load(), pending | kept);
        // A guest's change writes the whole entry in all of them.
        let lock = entry.lock_host().expect("a free entry");
        assert!(entry.lock_host().is_err());
        lock.set(tree::mapped_leaf(0x7000));
        drop(lock);
        let mapped = tree::mapped_leaf(0x7000) | tree::XU;
        assert_eq!(page.get(3), mapped | (17 << 46));
        assert_eq!(entry.load(), mapped);
    }
}

#[test]
fn gpa_and_level_are_checked() {
    let bad = Err(0xC000_0100_0000_0001);
    let parse = |raw, levels| GpaLevel::parse(raw, levels).map(|a| (a.gpa, a.level));
    assert_eq!(parse(0x1000, 0..=0), Ok((0x1000, 0)));
    assert_eq!(parse(0x20_0001, 0..=1), Ok((0x20_0000, 1)));
    assert_eq!(parse(0x20_0001, 0..=0), bad);
    assert_eq!(parse(0x1001, 0..=1), bad);
    assert_eq!(parse(0x1008, 0..=4), bad);
    assert_eq!(parse(0x1007, 0..=4), bad);
    assert_eq!(parse(1 << 52, 0..=4), bad);
    assert_eq!(parse(0x4000_0002, 0..=2), Ok((0x4000_0000, 2)));
}

#[test]
fn the_module_needs_no_instruments() {
    use crate::host::Host;
    use crate::module::interp::Interpreter;
    use crate::module::{Module, Regs};
    let module = Module::new(Host::new(Host::default_config()), Interpreter, ());
    let call = |leaf, rcx| {
        let mut r = Regs {
            rcx,
            ..Regs::default()
        };
        module.seamcall(0, leaf, &mut r)
    };
    assert_eq!(call(33, 1), 0xC000_0100_0000_0001);
    assert_eq!(call(33, 0), 0);
    assert_eq!(call(33, 0), 0xC000_0500_0000_0000);
    // A call that somebody outside refuses is not executed.
    let mut r = Regs::default();
    let refused = module.seamcall_unless(0, 35, &mut r, |_| Some(7));
    assert_eq!((refused, call(35, 0)), (7, 0));
    assert_eq!(call(35, 0), 0xC000_0503_0000_0000);
    // One that the module does not admit nobody is asked about.
    let status = module.seamcall_unless(0, 1 << 24 | 35, &mut r, |_| panic!("asked"));
    assert_eq!(status, 0xC000_0100_0000_0000);
}
