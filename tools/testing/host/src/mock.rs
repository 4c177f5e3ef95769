// SPDX-License-Identifier: GPL-2.0

//! A mock S-EPT: states, page ownership and TLB epochs of one TD, written against the interface
//! and without a line of the mirror.  It refuses what the TDX module refuses, so a wrong order of
//! SEAMCALLs shows as a failed one.

use crate::base::addr::{Gfn, PagePtr, Pfn};
use crate::base::level::{Level, Position};
use crate::base::stats::Counter;
use crate::sept::SeptBackend;
use crate::tdx::call::{Call, Kind};
use crate::tdx::seamcall::{SeamOut, Seamcall};
use crate::tdx::sept::SeptState;
use crate::tdx::status::{OperandId, TdxStatus};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Mutex;

/// What the backend was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// A SEAMCALL.
    Call(Kind),
    Kick,
    Hold,
    Release,
}

impl Event {
    /// What a map makes in place of TDH.MEM.PAGE.AUG while the TD is not `finalized`.
    pub fn of_phase(self, finalized: bool) -> Self {
        match self {
            Self::Call(Kind::PageAug) if !finalized => Self::Call(Kind::PageAdd),
            other => other,
        }
    }

    /// Whether `status` is contention for it, whatever the operand: one that nobody is known to
    /// lock there is retried too.
    pub fn contends(self, status: TdxStatus) -> bool {
        let on_entry = [
            Kind::SeptAdd,
            Kind::PageAdd,
            Kind::PageAug,
            Kind::RangeBlock,
            Kind::PageRemove,
            Kind::SeptRd,
        ];
        match (self, status) {
            (Self::Call(Kind::Track), TdxStatus::PREVIOUS_TLB_EPOCH_BUSY) => true,
            (Self::Call(Kind::Track), busy) => busy.is_operand_busy(),
            (Self::Call(kind), busy) => busy.is_operand_busy() && on_entry.contains(&kind),
            _ => false,
        }
    }
}

/// An entry of the mock S-EPT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// A table and its page.
    Table(usize),
    /// A leaf, and the epoch in which it was blocked.
    Leaf { pfn: u64, blocked: Option<u64> },
}

/// Answers to give instead of doing the call.
#[derive(Clone, Copy, Debug)]
pub struct Fail {
    pub call: Event,
    /// Calls of that kind to let through first.
    pub skip: u32,
    /// How many calls to fail then.
    pub times: u32,
    pub status: TdxStatus,
}

type Observer = Box<dyn Fn(Event, Option<Position>) + Send + Sync>;

#[derive(Default)]
struct State {
    entries: BTreeMap<(i32, u64), Entry>,
    /// Data pages by PFN.
    data: HashSet<u64>,
    /// S-EPT pages with the entry that points to each.
    sept: HashMap<usize, (i32, u64)>,
    /// S-EPT pages that were reclaimed before one of their children.
    early: u32,
    epoch: u64,
    /// A vCPU is inside since the current epoch began, or since before that.
    inside: Option<u64>,
    fails: VecDeque<Fail>,
    log: Vec<(Event, Option<Position>)>,
    unlisted: Vec<(Kind, TdxStatus)>,
    hold: bool,
    /// Entries whose lock a vCPU holds, inside TDG.MEM.PAGE.ACCEPT.
    guest_locks: HashSet<(i32, u64)>,
    /// Entries with the host-priority mark.
    marks: HashSet<(i32, u64)>,
}

impl State {
    /// The host's try for an entry's lock: it leaves a mark if it fails, and clears it if not.
    fn lock_entry(&mut self, at: Position) -> Result<(), SeamOut> {
        if self.guest_locks.contains(&key(at)) {
            self.marks.insert(key(at));
            return Err(SeamOut::of(status::ENTRY_BUSY));
        }
        self.marks.remove(&key(at));
        Ok(())
    }
}

/// The S-EPT of one TD.
pub struct Mock {
    state: Mutex<State>,
    finalized: std::sync::atomic::AtomicBool,
    /// How often somebody asked for `finalized`.
    asked: std::sync::atomic::AtomicU32,
    hkid: std::sync::atomic::AtomicBool,
    observer: Option<Observer>,
    after_map: Option<Observer>,
    root: Level,
}

impl std::fmt::Debug for Mock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mock")
    }
}

/// Statuses that tests feed.
pub mod status {
    use super::{OperandId, TdxStatus};

    pub const TREE_BUSY: TdxStatus = TdxStatus::OPERAND_BUSY.with_operand(OperandId::SEPT_TREE);
    pub const ENTRY_BUSY: TdxStatus = TdxStatus::OPERAND_BUSY.with_operand(OperandId::RCX);
    pub const EPOCH_BUSY: TdxStatus = TdxStatus::OPERAND_BUSY.with_operand(OperandId::TD_EPOCH);
    pub const TDR_BUSY: TdxStatus = TdxStatus::OPERAND_BUSY.with_operand(OperandId::RDX);
    /// The new page's metadata, or those of the page that an entry maps.
    pub const PAMT_BUSY: TdxStatus = TdxStatus::OPERAND_BUSY.with_operand(OperandId::R8);
    pub const STATE_INCORRECT: TdxStatus =
        TdxStatus::EPT_ENTRY_STATE_INCORRECT.with_operand(OperandId::RCX);
    pub const METADATA: TdxStatus = TdxStatus::PAGE_METADATA_INCORRECT.with_operand(OperandId::R8);
}

fn key(at: Position) -> (i32, u64) {
    (at.level().as_kvm(), at.gfn().as_u64())
}

impl Mock {
    pub fn new(root: Level) -> Self {
        Self {
            state: Mutex::new(State {
                epoch: 1,
                ..State::default()
            }),
            finalized: true.into(),
            asked: 0.into(),
            hkid: true.into(),
            observer: None,
            after_map: None,
            root,
        }
    }

    /// Called before each SEAMCALL, outside the mock's lock.
    pub fn observe(mut self, f: impl Fn(Event, Option<Position>) + Send + Sync + 'static) -> Self {
        self.observer = Some(Box::new(f));
        self
    }

    /// Called when a page was to be mapped, before the caller has the answer.
    pub fn observe_mapped(
        mut self,
        f: impl Fn(Event, Option<Position>) + Send + Sync + 'static,
    ) -> Self {
        self.after_map = Some(Box::new(f));
        self
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn set_finalized(&self, v: bool) {
        self.finalized.store(v, std::sync::atomic::Ordering::SeqCst);
    }

    /// How often it was asked since the last time whether the TD is finalized.
    pub fn asked(&self) -> u32 {
        self.asked.swap(0, std::sync::atomic::Ordering::SeqCst)
    }

    fn finalized(&self) -> bool {
        self.finalized.load(std::sync::atomic::Ordering::SeqCst)
    }

    pub fn release_hkid(&self) {
        self.hkid.store(false, std::sync::atomic::Ordering::SeqCst);
    }

    pub fn fail(&self, call: Event, skip: u32, times: u32, status: TdxStatus) {
        self.lock().fails.push_back(Fail {
            call,
            skip,
            times,
            status,
        });
    }

    pub fn clear_fails(&self) {
        self.lock().fails.clear();
    }

    /// A vCPU takes the lock of the entry that covers `gfn` at `level`, as ACCEPT does, and keeps
    /// it until [`accept_end()`](Self::accept_end) or a kick.
    ///
    /// # Errors
    ///
    /// What the guest is told: the host has priority.
    pub fn accept_begin(&self, level: Level, gfn: u64) -> Result<(), TdxStatus> {
        let at = Position::covering(Gfn::new(gfn).expect("a GFN"), level);
        let mut s = self.lock();
        if s.marks.contains(&key(at)) {
            return Err(status::ENTRY_BUSY);
        }
        s.guest_locks.insert(key(at));
        Ok(())
    }

    /// The vCPU lets go of the entry's lock.
    pub fn accept_end(&self, level: Level, gfn: u64) {
        let at = Position::covering(Gfn::new(gfn).expect("a GFN"), level);
        self.lock().guest_locks.remove(&key(at));
    }

    /// Entries that carry a host-priority mark.
    pub fn marks(&self) -> usize {
        self.lock().marks.len()
    }

    /// A vCPU enters the guest and stays until kicked.
    pub fn enter_guest(&self) {
        let mut s = self.lock();
        if !s.hold {
            let epoch = s.epoch;
            s.inside.get_or_insert(epoch);
        }
    }

    pub fn holding(&self) -> bool {
        self.lock().hold
    }

    pub fn log(&self) -> Vec<(Event, Option<Position>)> {
        self.lock().log.clone()
    }

    pub fn clear_log(&self) {
        self.lock().log.clear();
    }

    pub fn count(&self, call: Event) -> usize {
        self.lock().log.iter().filter(|(c, _)| *c == call).count()
    }

    /// What was reported to be busy without being in the table of calls.
    pub fn unlisted(&self) -> Vec<(Kind, TdxStatus)> {
        self.lock().unlisted.clone()
    }

    /// All leaves: GFN and PFN.
    pub fn leaves(&self) -> BTreeMap<u64, u64> {
        let s = self.lock();
        s.entries
            .iter()
            .filter_map(|((_, gfn), e)| match e {
                Entry::Leaf { pfn, .. } => Some((*gfn, *pfn)),
                Entry::Table(_) => None,
            })
            .collect()
    }

    /// The entry at `level` for `gfn`.
    pub fn entry(&self, level: Level, gfn: u64) -> Option<Entry> {
        let at = Position::covering(Gfn::new(gfn)?, level);
        self.lock().entries.get(&key(at)).copied()
    }

    pub fn tables(&self) -> usize {
        self.lock().sept.len()
    }

    /// Tables that were reclaimed before one of their children.
    pub fn early_reclaims(&self) -> u32 {
        self.lock().early
    }

    /// Whether the TDX module owns the data page.
    pub fn owns(&self, pfn: u64) -> bool {
        self.lock().data.contains(&pfn)
    }

    fn begin(&self, call: Event, at: Option<Position>) -> Result<(), SeamOut> {
        if let Some(f) = &self.observer {
            f(call, at);
        }
        let mut s = self.lock();
        s.log.push((call, at));
        let Some(i) = s.fails.iter().position(|f| f.call == call) else {
            return Ok(());
        };
        let f = &mut s.fails[i];
        if f.skip > 0 {
            f.skip -= 1;
            return Ok(());
        }
        let status = f.status;
        f.times -= 1;
        if f.times == 0 {
            s.fails.remove(i);
        }
        if let (status::ENTRY_BUSY, Some(at)) = (status, at) {
            s.marks.insert(key(at));
        }
        Err(SeamOut::of(status))
    }

    fn walk(&self, s: &State, at: Position) -> Result<(), SeamOut> {
        let mut level = self.root;
        while level > at.level() {
            let above = Position::covering(at.gfn(), level);
            if !matches!(s.entries.get(&key(above)), Some(Entry::Table(_))) {
                return Err(SeamOut::of(
                    TdxStatus::EPT_WALK_FAILED.with_operand(OperandId::RCX),
                ));
            }
            level = level.child().expect("above the target");
        }
        Ok(())
    }
}

fn done() -> SeamOut {
    SeamOut::of(TdxStatus::SUCCESS)
}

fn state_incorrect(e: Entry, at: Position) -> SeamOut {
    let state = match e {
        Entry::Table(_) => SeptState::NL_MAPPED,
        Entry::Leaf { blocked: None, .. } => SeptState::MAPPED,
        Entry::Leaf { .. } => SeptState::BLOCKED,
    };
    SeamOut {
        ext2: at.level().as_sept() | (u64::from(state.as_u8()) << 8),
        ..SeamOut::of(status::STATE_INCORRECT)
    }
}

impl Seamcall for Mock {
    fn call(&self, call: Call) -> SeamOut {
        if let Err(out) = self.begin(Event::Call(call.kind()), call.entry()) {
            return out;
        }
        match call {
            Call::SeptAdd { at, page } => self.sept_add(at, page),
            Call::PageAdd { at, pfn } | Call::PageAug { at, pfn } => {
                let adds = call.kind() == Kind::PageAdd;
                let out = if adds == self.finalized() {
                    SeamOut::of(TdxStatus::OP_STATE_INCORRECT)
                } else {
                    self.page_map(at, pfn)
                };
                if let Some(f) = &self.after_map {
                    f(Event::Call(call.kind()), Some(at));
                }
                out
            }
            Call::RangeBlock { at } => self.range_block(at),
            Call::Track {} => self.track(),
            Call::PageRemove { at } => self.page_remove(at),
            Call::PageWbinvd { pfn, .. } => self.page_wbinvd(pfn),
            Call::SeptRd { at } => self.sept_rd(at),
            Call::ReclaimTable { .. } | Call::ReclaimData { .. } if self.is_hkid_assigned() => {
                SeamOut::of(TdxStatus::LIFECYCLE_STATE_INCORRECT)
            }
            Call::ReclaimTable { page } => self.reclaim_table(page),
            Call::ReclaimData { pfn, .. } => self.reclaim_data(pfn),
        }
    }
}

// The SEAMCALLs.
impl Mock {
    fn sept_add(&self, at: Position, page: PagePtr) -> SeamOut {
        let mut s = self.lock();
        if let Err(out) = self.walk(&s, at).and_then(|()| s.lock_entry(at)) {
            return out;
        }
        if let Some(e) = s.entries.get(&key(at)) {
            return state_incorrect(*e, at);
        }
        let page = page.as_ptr() as usize;
        if s.sept.contains_key(&page) {
            return SeamOut::of(status::METADATA);
        }
        s.sept.insert(page, key(at));
        s.entries.insert(key(at), Entry::Table(page));
        done()
    }

    fn page_map(&self, at: Position, pfn: Pfn) -> SeamOut {
        let mut s = self.lock();
        if let Err(out) = self.walk(&s, at).and_then(|()| s.lock_entry(at)) {
            return out;
        }
        if let Some(e) = s.entries.get(&key(at)) {
            return state_incorrect(*e, at);
        }
        if !s.data.insert(pfn.as_u64()) {
            return SeamOut::of(status::METADATA);
        }
        let pfn = pfn.as_u64();
        s.entries
            .insert(key(at), Entry::Leaf { pfn, blocked: None });
        done()
    }

    fn range_block(&self, at: Position) -> SeamOut {
        let mut s = self.lock();
        if let Err(out) = s.lock_entry(at) {
            return out;
        }
        let epoch = s.epoch;
        match s.entries.get_mut(&key(at)) {
            Some(Entry::Leaf { blocked, .. }) if blocked.is_none() => {
                *blocked = Some(epoch);
                done()
            }
            Some(Entry::Leaf { .. }) => SeamOut::of(TdxStatus::GPA_RANGE_ALREADY_BLOCKED),
            _ => SeamOut::of(TdxStatus::EPT_WALK_FAILED.with_operand(OperandId::RCX)),
        }
    }

    fn track(&self) -> SeamOut {
        let mut s = self.lock();
        if s.inside.is_some_and(|since| since < s.epoch) {
            return SeamOut::of(TdxStatus::PREVIOUS_TLB_EPOCH_BUSY);
        }
        s.epoch += 1;
        done()
    }

    fn page_remove(&self, at: Position) -> SeamOut {
        let mut s = self.lock();
        if let Err(out) = s.lock_entry(at) {
            return out;
        }
        let Some(Entry::Leaf { pfn, blocked }) = s.entries.get(&key(at)).copied() else {
            return SeamOut::of(status::STATE_INCORRECT);
        };
        if self.finalized() {
            let Some(since) = blocked else {
                return SeamOut::of(TdxStatus::GPA_RANGE_NOT_BLOCKED.with_operand(OperandId::RCX));
            };
            if since >= s.epoch || s.inside.is_some_and(|entered| entered <= since) {
                return SeamOut::of(TdxStatus::TLB_TRACKING_NOT_DONE.with_operand(OperandId::RCX));
            }
        }
        s.entries.remove(&key(at));
        s.data.remove(&pfn);
        done()
    }

    fn page_wbinvd(&self, pfn: Pfn) -> SeamOut {
        if self.lock().data.contains(&pfn.as_u64()) {
            return SeamOut::of(TdxStatus::PAGE_METADATA_INCORRECT.with_operand(OperandId::RCX));
        }
        done()
    }

    fn sept_rd(&self, at: Position) -> SeamOut {
        let mut s = self.lock();
        if let Err(out) = self.walk(&s, at).and_then(|()| s.lock_entry(at)) {
            return out;
        }
        // No guest accepts here, so that each leaf is one that was accepted.
        let (entry, state) = match s.entries.get(&key(at)) {
            None => (0, SeptState::FREE),
            Some(Entry::Table(_)) => (0, SeptState::NL_MAPPED),
            Some(Entry::Leaf { pfn, blocked }) if blocked.is_none() => {
                (pfn << 12, SeptState::MAPPED)
            }
            Some(Entry::Leaf { pfn, .. }) => (pfn << 12, SeptState::BLOCKED),
        };
        SeamOut {
            ext1: entry,
            ext2: u64::from(state.as_u8()) << 8 | (at.level().as_kvm() as u64 - 1),
            ..done()
        }
    }

    /// Takes a leaf away, or puts one there, behind the back of the mirror.
    pub fn tamper(&self, gfn: u64, entry: Option<Entry>) {
        let mut s = self.lock();
        match entry {
            Some(entry) => s.entries.insert((1, gfn), entry),
            None => s.entries.remove(&(1, gfn)),
        };
    }

    fn reclaim_data(&self, pfn: Pfn) -> SeamOut {
        // As of the TDX module: the S-EPT is not looked at.
        if self.lock().data.remove(&pfn.as_u64()) {
            done()
        } else {
            SeamOut::of(TdxStatus::PAGE_METADATA_INCORRECT.with_operand(OperandId::RCX))
        }
    }

    fn reclaim_table(&self, page: PagePtr) -> SeamOut {
        let mut s = self.lock();
        let Some((level, gfn)) = s.sept.remove(&(page.as_ptr() as usize)) else {
            return SeamOut::of(TdxStatus::PAGE_METADATA_INCORRECT.with_operand(OperandId::RCX));
        };
        let span = Level::from_kvm(level).expect("own key").pages();
        if s.sept
            .values()
            .any(|&(l, g)| l < level && g >= gfn && g - gfn < span)
        {
            s.early += 1;
        }
        done()
    }
}

impl SeptBackend for Mock {
    type Count = Counter;

    fn counter(&self) -> Counter {
        Counter::new()
    }

    fn counter_row<const N: usize>(&self) -> [Counter; N] {
        Counter::row()
    }

    fn kick_vcpus(&self) {
        if let Some(f) = &self.observer {
            f(Event::Kick, None);
        }
        let mut s = self.lock();
        s.log.push((Event::Kick, None));
        s.inside = None;
        s.guest_locks.clear();
    }

    fn hold_vcpus(&self, hold: bool) {
        let mut s = self.lock();
        s.hold = hold;
        s.log
            .push((if hold { Event::Hold } else { Event::Release }, None));
    }

    fn is_finalized(&self) -> bool {
        self.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.finalized()
    }

    fn is_hkid_assigned(&self) -> bool {
        self.hkid.load(std::sync::atomic::Ordering::SeqCst)
    }

    fn unlisted(&self, kind: Kind, status: TdxStatus) {
        self.lock().unlisted.push((kind, status));
    }
}
