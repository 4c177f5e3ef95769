// SPDX-License-Identifier: GPL-2.0

//! Recordings of `/sys/kernel/debug/tdx_mirror/record`: what KVM asked of a mirror in a kernel,
//! replayed on the mirror here, over the software TDX module.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use tdx_mirror_host::mirror::error::MapOutcome;
use zerocopy::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::compare;
use crate::td::{data_pfn, Machine, Td, DATA_PAGES, GFN_BITS};

pub const MAGIC: [u8; 8] = *b"TDXMREC1";
const SIZE: usize = 32;

/// What the file begins with.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Header {
    pub magic: [u8; 8],
    pub size: U32,
    pub reserved: U32,
    pub events: U64,
    pub lost: U64,
}

/// An event as it is in the file.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Record {
    pub kind: u8,
    pub level: u8,
    pub vcpu: U16,
    pub result: I32,
    pub gfn: U64,
    pub other: U64,
    pub td: U32,
    pub reserved: U32,
}

const _: () = assert!(size_of::<Header>() == SIZE && size_of::<Record>() == SIZE);

pub const MAP: u8 = 1;
pub const ZAP: u8 = 2;
pub const FINALIZE: u8 = 3;
pub const TEARDOWN: u8 = 4;
pub const CREATE: u8 = 5;
pub const DESTROY: u8 = 6;

/// Results of a map, `TDX_MIRROR_MAP_*`; why a retry was asked for is above these bits.
const OUTCOME: i32 = 0xff;
const RETRY: i32 = 0;
const FIXED: i32 = 1;
const SPURIOUS: i32 = 2;

/// The events of a recording.
///
/// # Errors
///
/// What is wrong with the file, or that it is not complete.
pub fn parse(bytes: &[u8]) -> Result<Vec<Record>, String> {
    let (header, rest) = Header::read_from_prefix(bytes).map_err(|_| "shorter than its header")?;
    if header.magic != MAGIC || header.size.get() != SIZE as u32 {
        return Err("no recording of this version".into());
    }
    if header.lost.get() != 0 {
        let lost = header.lost.get();
        return Err(format!("{lost} events lost: make more room for it"));
    }
    let events = <[Record]>::ref_from_bytes(rest).map_err(|_| "ends within an event")?;
    if events.len() as u64 != header.events.get() {
        let (here, want) = (events.len(), header.events.get());
        return Err(format!("{here} events, the header says {want}"));
    }
    Ok(events.to_vec())
}

/// Reads a recording, packed with gzip or not.
///
/// # Errors
///
/// As of [`parse()`], or that the file cannot be read.
pub fn load(path: &Path) -> Result<Vec<Record>, String> {
    let here = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let mut bytes = std::fs::read(path).map_err(|e| here(&e))?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut plain = Vec::new();
        flate2::read::MultiGzDecoder::new(bytes.as_slice())
            .read_to_end(&mut plain)
            .map_err(|e| here(&e))?;
        bytes = plain;
    }
    parse(&bytes).map_err(|e| here(&e))
}

/// What a replay did.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Report {
    pub tds: u64,
    pub maps: u64,
    /// Maps that were to be tried again or found contention, so that nothing was to be replayed.
    pub skipped: u64,
    pub zaps: u64,
    /// Leaves that were zapped.
    pub zapped: u64,
    /// Leaves that were mapped when the TDs ended.
    pub left: u64,
    /// Comparisons of all entries of mirror and S-EPT.
    pub audits: u64,
    /// vCPUs that asked for maps.
    pub vcpus: u64,
}

/// One TD of a recording under way.
struct Replay {
    td: Td,
    /// The data page here for each PFN of the recording.
    pages: BTreeMap<u64, u64>,
    /// What is mapped: GFN to page here.
    mapped: BTreeMap<u64, u64>,
    finalized: bool,
}

impl Replay {
    fn new(machine: &Arc<Machine>, create: &Record) -> Result<Self, String> {
        if create.gfn.get() > u64::from(GFN_BITS) || create.level != 4 {
            return Err("a TD of another shape".into());
        }
        Ok(Self {
            td: Td::new(machine, 1, |c| c, |b| b),
            pages: BTreeMap::new(),
            mapped: BTreeMap::new(),
            finalized: false,
        })
    }

    fn page(&mut self, pfn: u64) -> Result<u64, String> {
        let next = self.pages.len() as u64;
        let n = *self.pages.entry(pfn).or_insert(next);
        if n >= DATA_PAGES {
            return Err(format!("more than {DATA_PAGES} pages"));
        }
        Ok(data_pfn(n))
    }

    fn map(&mut self, event: &Record, report: &mut Report) -> Result<(), String> {
        let result = event.result.get();
        let outcome = if result < 0 { result } else { result & OUTCOME };
        match outcome {
            FIXED | SPURIOUS => (),
            RETRY => {
                report.skipped += 1;
                return Ok(());
            }
            error => return Err(format!("the map had failed with {error}")),
        }
        let (gfn, pfn) = (event.gfn.get(), self.page(event.other.get())?);
        // Two vCPUs at one GFN are written down in either order.
        match self.td.map(gfn, pfn) {
            Ok(MapOutcome::Fixed) if self.mapped.insert(gfn, pfn).is_none() => (),
            Ok(MapOutcome::Spurious) if self.mapped.get(&gfn) == Some(&pfn) => (),
            other => return Err(format!("map answered {other:?}")),
        }
        report.maps += 1;
        Ok(())
    }

    fn zap(&mut self, event: &Record, report: &mut Report) -> Result<(), String> {
        let (start, end) = (event.gfn.get(), event.other.get());
        if start >= end || end > 1 << 40 {
            return Err("no range".into());
        }
        let zapped = self.td.zap(start, end, true);
        let kept = self.mapped.split_off(&start);
        let mut gone = kept;
        let mut after = gone.split_off(&end);
        self.mapped.append(&mut after);
        if zapped != gone.len() as u64 || i64::from(event.result.get()) != zapped as i64 {
            let (here, want) = (gone.len(), event.result.get());
            return Err(format!(
                "zapped {zapped} leaves of {here}, the recording says {want}"
            ));
        }
        report.zaps += 1;
        report.zapped += zapped;
        Ok(())
    }

    /// Compares every entry of mirror and S-EPT, and the leaves with what is to be mapped.
    fn audit(&self, report: &mut Report) -> Result<(), String> {
        let census = compare::whole(&self.td)?;
        let want: Vec<_> = self.mapped.iter().map(|(g, p)| (*g, *p)).collect();
        if census.leaves != want {
            return Err("other leaves than the recording has".into());
        }
        report.audits += 1;
        Ok(())
    }

    /// The end of the TD: a last audit, and every page is given back.
    fn end(self, report: &mut Report) -> Result<(), String> {
        self.audit(report)?;
        report.left += self.mapped.len() as u64;
        // What KVM leaves to the end of the guest's memory.
        self.td.zap(0, 1 << GFN_BITS, true);
        self.td.teardown();
        let bugs = self.td.host().bugs.lock().unwrap().len();
        if bugs != 0 {
            return Err(format!("{bugs} bugs"));
        }
        match self.td.destroy() {
            0 => Ok(()),
            leaked => Err(format!("{leaked} pages leaked")),
        }
    }

    fn step(&mut self, event: &Record, report: &mut Report) -> Result<(), String> {
        match event.kind {
            MAP if event.level == 1 => self.map(event, report),
            ZAP => self.zap(event, report),
            FINALIZE if !self.finalized => {
                self.td.finalize();
                self.finalized = true;
                Ok(())
            }
            _ => Err("an event that has no place there".into()),
        }
    }
}

/// Replays all TDs of a recording, one after the other, on `machine`. All entries of mirror and
/// S-EPT are compared after every `each` events of a TD and at its end.
///
/// # Errors
///
/// Where the replay differs from the recording, or mirror from S-EPT.
pub fn replay(machine: &Arc<Machine>, events: &[Record], each: usize) -> Result<Report, String> {
    let mut report = Report::default();
    let mut tds: BTreeMap<u32, Vec<(usize, &Record)>> = BTreeMap::new();
    let mut vcpus = BTreeSet::new();
    for (n, event) in events.iter().enumerate() {
        tds.entry(event.td.get()).or_default().push((n, event));
        if event.kind == MAP {
            vcpus.insert(event.vcpu.get());
        }
    }
    report.vcpus = vcpus.len() as u64;
    for (number, events) in tds {
        let mut at = 0;
        one(machine, &events, each, &mut report, &mut at)
            .map_err(|why| format!("TD {number}, event {at}: {why}"))?;
        report.tds += 1;
    }
    Ok(report)
}

fn one(
    machine: &Arc<Machine>,
    events: &[(usize, &Record)],
    each: usize,
    report: &mut Report,
    at: &mut usize,
) -> Result<(), String> {
    let Some(((_, create), rest)) = events.split_first().filter(|f| f.0 .1.kind == CREATE) else {
        return Err("a TD without its beginning".into());
    };
    let mut td = Replay::new(machine, create)?;
    for (done, (n, event)) in rest.iter().enumerate() {
        *at = *n;
        if matches!(event.kind, TEARDOWN | DESTROY) {
            break;
        }
        td.step(event, report)?;
        if (done + 1) % each.max(1) == 0 {
            td.audit(report)?;
        }
    }
    td.end(report)
}

/// A recording of these events, as the kernel writes it.
pub fn compose(events: &[Record], lost: u64) -> Vec<u8> {
    let header = Header {
        magic: MAGIC,
        size: (SIZE as u32).into(),
        reserved: 0.into(),
        events: (events.len() as u64).into(),
        lost: lost.into(),
    };
    [header.as_bytes(), events.as_bytes()].concat()
}
