// SPDX-License-Identifier: GPL-2.0

//! A recording of what KVM asked of the mirrors of all TDs: `/sys/kernel/debug/tdx_mirror/record`.
//!
//! A write of a number makes room for as many events and begins anew, a write of 0 ends the
//! recording. What was recorded can be read at any time, until the next begin. The room is never
//! extended and no event overwritten, because a recording without its beginning cannot be replayed:
//! events without room are counted as lost. While it runs, each fault and zap of any TD takes one
//! spinlock under `mmu_lock`, so that faults wait for each other; else it costs one static branch.
//!
//! The file consists of records of [`SIZE`] bytes, little endian, the first of which is the header:
//! [`MAGIC`], `u32` [`SIZE`], `u32` 0, `u64` events in the file, `u64` lost ones. An event:
//!
//! | bytes | | |
//! |---|---|---|
//! | 0 | `u8` | what, see [`Kind`] |
//! | 1 | `u8` | level, as KVM counts them |
//! | 2-3 | `u16` | vCPU, numbered as they come, or [`NO_VCPU`] |
//! | 4-7 | `i32` | result |
//! | 8-15 | `u64` | GFN |
//! | 16-23 | `u64` | see [`Kind`] |
//! | 24-27 | `u32` | number of the TD |
//! | 28-31 | `u32` | 0 |

use core::mem;
use kernel::{
    fs::file,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    uaccess::UserSliceWriter, //
};

use crate::base::td::Phase;
use crate::kernel::uaccess::number;
use crate::kernel::{
    sched,
    switches, //
};

/// Bytes of a record.
const SIZE: usize = 32;
/// What the file begins with.
const MAGIC: [u8; 8] = *b"TDXMREC1";
/// Events that a recording has room for, at most: 128 MiB.
const MAX_EVENTS: usize = 1 << 22;
/// vCPUs of all TDs that are told apart.
const MAX_VCPUS: usize = 64;
/// For an event of no vCPU, or of one too many.
const NO_VCPU: u16 = u16::MAX;
/// Events that are copied with the lock held once.
const CHUNK: usize = 16;

type Bytes = [u8; SIZE];

/// What happened.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    /// A map: GFN, PFN, level, vCPU, result as of `map()`.
    Map = 1,
    /// A zap: first GFN, end of the range, leaves that were zapped as the result.
    Zap = 2,
    /// The TD was finalized before the next event.
    Finalize = 3,
    /// The end of the mirror's tables.
    Teardown = 4,
    /// A TD: its GFN bits where others have the GFN, the root's level.
    Create = 5,
    /// The end of a TD.
    Destroy = 6,
}

/// An event, without what the recorder itself adds.
struct Event {
    kind: Kind,
    level: u8,
    vcpu: usize,
    result: i32,
    gfn: u64,
    other: u64,
}

impl Event {
    const fn of(kind: Kind) -> Self {
        Self {
            kind,
            level: 0,
            vcpu: 0,
            result: 0,
            gfn: 0,
            other: 0,
        }
    }
}

/// The recording.
struct Recording {
    active: bool,
    events: KVVec<Bytes>,
    lost: u64,
    /// The vCPUs by the address that KVM gives for them, which nothing follows.
    vcpus: [usize; MAX_VCPUS],
}

kernel::sync::global_lock! {
    // SAFETY: `init()` initialises it once, when the module is loaded and before an entry point
    // or a debugfs file can be reached.
    unsafe(uninit) static RECORDING: SpinLock<Recording> = Recording {
        active: false,
        events: KVVec::new(),
        lost: 0,
        vcpus: [0; MAX_VCPUS],
    };
}

impl Recording {
    fn vcpu(&mut self, address: usize) -> u16 {
        if address == 0 {
            return NO_VCPU;
        }
        for (number, known) in self.vcpus.iter_mut().enumerate() {
            if *known == 0 {
                *known = address;
            }
            if *known == address {
                return number as u16;
            }
        }
        NO_VCPU
    }

    fn push(&mut self, td: u32, event: &Event) {
        if !self.active {
            return;
        }
        let vcpu = self.vcpu(event.vcpu);
        let bytes = record([
            &[event.kind as u8, event.level],
            &vcpu.to_le_bytes(),
            &event.result.to_le_bytes(),
            &event.gfn.to_le_bytes(),
            &event.other.to_le_bytes(),
            &td.to_le_bytes(),
        ]);
        if self.events.push_within_capacity(bytes).is_err() {
            self.lost = self.lost.wrapping_add(1);
        }
    }

    fn header(&self) -> Bytes {
        record([
            &MAGIC,
            &(SIZE as u32).to_le_bytes(),
            &0u32.to_le_bytes(),
            &(self.events.len() as u64).to_le_bytes(),
            &self.lost.to_le_bytes(),
            &[],
        ])
    }

    /// Copies records from `first` on, the header being the first of all; returns how many.
    fn copy(&self, first: usize, to: &mut [Bytes; CHUNK]) -> usize {
        let events = self.events.as_slice();
        let header = core::iter::once(self.header());
        let all = Iterator::chain(header, events.iter().copied());
        let mut count = 0usize;
        // `skip()` of a slice's iterator takes no time.
        for (from, to) in all.skip(first).zip(to) {
            *to = from;
            count = count.wrapping_add(1);
        }
        count
    }
}

/// A record of these fields, in this order; the rest is 0.
fn record(fields: [&[u8]; 6]) -> Bytes {
    let mut bytes = [0; SIZE];
    let from = fields.iter().flat_map(|field| field.iter());
    for (to, from) in bytes.iter_mut().zip(from) {
        *to = *from;
    }
    bytes
}

/// One TD's part in the recording.
pub(crate) struct Recorder {
    td: u32,
    /// The finalization was written down.
    finalized: Atomic<bool>,
}

impl Recorder {
    /// The recorder of the TD with the number `td`.
    pub(crate) fn new(td: u32) -> Self {
        Self {
            td,
            finalized: Atomic::new(false),
        }
    }

    /// The TD is created: nothing that may fail comes after this.
    #[cold]
    #[inline(never)]
    pub(crate) fn create(&self, gfn_bits: u32, root_level: i32) {
        let mut event = Event::of(Kind::Create);
        event.level = root_level as u8;
        event.gfn = u64::from(gfn_bits);
        self.push(&event, Phase::Build);
    }

    fn push(&self, event: &Event, phase: Phase) {
        let mut recording = RECORDING.lock();
        // Under the lock, so that no map of the finalized TD comes before it.
        if phase.is_run() && !self.finalized.xchg(true, Relaxed) {
            recording.push(self.td, &Event::of(Kind::Finalize));
        }
        recording.push(self.td, event);
    }

    /// A map ended. With `mmu_lock` still held, so that no zap of the entry comes in between.
    #[cold]
    #[inline(never)]
    pub(crate) fn map(
        &self,
        phase: Phase,
        vcpu: usize,
        gfn: u64,
        pfn: u64,
        level: i32,
        result: i32,
    ) {
        let mut event = Event::of(Kind::Map);
        event.vcpu = vcpu;
        event.gfn = gfn;
        event.other = pfn;
        event.level = level as u8;
        event.result = result;
        self.push(&event, phase);
    }

    /// A zap ended.
    #[cold]
    #[inline(never)]
    pub(crate) fn zap(&self, phase: Phase, start: u64, end: u64, zapped: u64) {
        let mut event = Event::of(Kind::Zap);
        event.gfn = start;
        event.other = end;
        event.result = i32::try_from(zapped).unwrap_or(i32::MAX);
        self.push(&event, phase);
    }

    /// The teardown ended.
    #[cold]
    #[inline(never)]
    pub(crate) fn teardown(&self) {
        self.push(&Event::of(Kind::Teardown), Phase::Build);
    }

    /// The TD ends.
    #[cold]
    #[inline(never)]
    pub(crate) fn destroy(&self) {
        self.push(&Event::of(Kind::Destroy), Phase::Build);
    }
}

/// The recording as the module has it. Frees it when it is dropped.
pub(crate) struct Guard(());

/// Initialises the recording.
///
/// # Safety
///
/// Called once, before every other function of this file.
pub(crate) unsafe fn init() -> Guard {
    // SAFETY: By the safety requirements.
    unsafe { RECORDING.init() };
    Guard(())
}

impl Drop for Guard {
    fn drop(&mut self) {
        switches::set_recording(false);
        drop(replace(KVVec::new(), false));
    }
}

/// Takes what was recorded and goes on, if `active`, with `events`. The caller frees, without the
/// lock.
fn replace(events: KVVec<Bytes>, active: bool) -> KVVec<Bytes> {
    let mut recording = RECORDING.lock();
    recording.active = active;
    recording.lost = 0;
    recording.vcpus = [0; MAX_VCPUS];
    mem::replace(&mut recording.events, events)
}

/// Begins with room for `events`, or ends with 0. Sleeps.
fn control(events: usize) -> Result {
    if events == 0 {
        switches::set_recording(false);
        RECORDING.lock().active = false;
        return Ok(());
    }
    if events > MAX_EVENTS {
        return Err(E2BIG);
    }
    drop(replace(
        KVVec::with_capacity(events, GFP_KERNEL_ACCOUNT)?,
        true,
    ));
    switches::set_recording(true);
    Ok(())
}

/// Reads the file from `offset` on, which moves on; returns how many bytes were read. Sleeps.
///
/// # Errors
///
/// `EFAULT`, `EINVAL` for an offset below 0, `ERESTARTSYS` for a signal before the first byte.
pub(crate) fn read(writer: &mut UserSliceWriter, offset: &mut file::Offset) -> Result<usize> {
    let mut at = usize::try_from(*offset).map_err(|_| EINVAL)?;
    let mut written = 0usize;
    while !writer.is_empty() {
        if kernel::current!().signal_pending() {
            if written == 0 {
                return Err(ERESTARTSYS);
            }
            break;
        }
        let mut chunk = [[0; SIZE]; CHUNK];
        let count = RECORDING.lock().copy(at / SIZE, &mut chunk);
        let from = at % SIZE;
        let end = count.wrapping_mul(SIZE);
        let end = end.min(from.saturating_add(writer.len()));
        let Some(bytes) = chunk.as_flattened().get(from..end) else {
            break;
        };
        if bytes.is_empty() {
            break;
        }
        writer.write_slice(bytes)?;
        at = at.saturating_add(bytes.len());
        written = written.saturating_add(bytes.len());
        sched::cond_resched();
    }
    *offset = file::Offset::try_from(at).map_err(|_| EINVAL)?;
    Ok(written)
}

/// Takes what is written to the file. Sleeps.
///
/// # Errors
///
/// `EINVAL` for what is no number, `E2BIG`, `ENOMEM`.
pub(crate) fn write(text: &[u8]) -> Result {
    control(number(text)?)
}
