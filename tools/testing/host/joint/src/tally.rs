// SPDX-License-Identifier: GPL-2.0

//! What happened in a run of random operations, so that it shows when something never did.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tdx_mirror_host::mock::Event;

use crate::td::Td;

const NAMES: [&str; 14] = [
    "TDs",
    "mapped",
    "zapped",
    "accepted",
    "shared",
    "quarantined",
    "resolved",
    "leaked",
    "busy",
    "give-ups",
    "marks",
    "marks paid",
    "kicks",
    "yields",
];

/// Sums over all TDs that ended.
#[derive(Default)]
pub struct Tally([AtomicU64; NAMES.len()]);

impl Tally {
    /// Adds a TD that is torn down, in which the guest accepted `accepted` pages and `shared`
    /// GFNs were mapped shared.
    pub fn add(&self, td: &Td, accepted: u64, shared: u64) {
        let (m, s) = (td.mirror.stats(), td.mirror.external().stats());
        let values = [
            1,
            m.mapped.get(),
            m.zapped.get(),
            accepted,
            shared,
            m.quarantined.get(),
            m.resolved.get(),
            m.leaked.get(),
            s.busy.get(),
            s.giveups.get(),
            s.debts.get(),
            s.debts_paid.get(),
            td.backend().count(Event::Kick),
            td.host().yields.load(Relaxed),
        ];
        for (sum, value) in self.0.iter().zip(values) {
            sum.fetch_add(value, Relaxed);
        }
    }

    /// What never happened.
    pub fn missing(&self) -> Vec<&'static str> {
        let never = NAMES.iter().zip(&self.0);
        let never = never.filter(|(_, n)| n.load(Relaxed) == 0);
        never.map(|(name, _)| *name).collect()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, n)) in NAMES.iter().zip(&self.0).enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{} {name}", n.load(Relaxed))?;
        }
        Ok(())
    }
}
