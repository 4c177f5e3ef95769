// SPDX-License-Identifier: GPL-2.0

//! The variant that was rejected, as a baseline: all management of the S-EPT off to the side of
//! the page table, with one lock and no freezing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use crate::base::addr::{Gfn, PagePtr, Pfn};
use crate::base::level::{Level, Position};
use crate::sept::SeptBackend;
use crate::tdx::call::Call;

/// What is known of the S-EPT, under the one lock.
#[derive(Debug, Default)]
struct Known {
    tables: BTreeSet<(u64, u64)>,
    leaves: BTreeMap<u64, u64>,
    next_page: usize,
}

/// The S-EPT that `backend` reaches, and what is known of it.
#[derive(Debug)]
pub struct Aside<B: SeptBackend> {
    /// The SEAMCALLs.
    pub backend: B,
    known: Mutex<Known>,
}

impl<B: SeptBackend> Aside<B> {
    /// An empty S-EPT.
    pub fn new(backend: B) -> Self {
        Self {
            backend,
            known: Mutex::default(),
        }
    }

    /// Whether `gfn` is mapped.
    pub fn maps(&self, gfn: u64) -> bool {
        self.known.lock().unwrap().leaves.contains_key(&gfn)
    }

    /// Maps `gfn`, if it is not mapped.
    pub fn map(&self, gfn: u64, pfn: u64) {
        let mut known = self.known.lock().unwrap();
        if known.leaves.contains_key(&gfn) {
            return;
        }
        let (frame, page) = (Gfn::new(gfn).unwrap(), Pfn::new(pfn).unwrap());
        let mut level = Level::L512G;
        while let Some(below) = level.child() {
            let at = Position::covering(frame, level);
            if known.tables.insert((level.as_sept(), at.gfn().as_u64())) {
                known.next_page += 1;
                let page = std::ptr::without_provenance_mut((1 << 60) + known.next_page * 4096);
                let out = self.backend.call(Call::SeptAdd {
                    at,
                    page: PagePtr::new(page).unwrap(),
                });
                assert!(out.status.is_success(), "{out:?}");
            }
            level = below;
        }
        let at = Position::covering(frame, level);
        let out = self.backend.call(Call::PageAug { at, pfn: page });
        assert!(out.status.is_success(), "{out:?}");
        known.leaves.insert(gfn, pfn);
    }

    /// Zaps `gfn`, if it is mapped.
    pub fn zap(&self, gfn: u64) {
        let mut known = self.known.lock().unwrap();
        let Some(pfn) = known.leaves.remove(&gfn) else {
            return;
        };
        let at = Position::covering(Gfn::new(gfn).unwrap(), Level::L4K);
        assert!(self
            .backend
            .call(Call::RangeBlock { at })
            .status
            .is_success());
        assert!(self.backend.call(Call::Track {}).status.is_success());
        self.backend.kick_vcpus();
        assert!(self
            .backend
            .call(Call::PageRemove { at })
            .status
            .is_success());
        let pfn = Pfn::new(pfn).unwrap();
        let out = self.backend.call(Call::PageWbinvd { at, pfn });
        assert!(out.status.is_success());
    }
}
