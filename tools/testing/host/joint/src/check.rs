// SPDX-License-Identifier: GPL-2.0

//! What is compared after a step: mirror, S-EPT, oracle, accounts and counters.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;

use tdx_mirror_host::mirror::spte::SpteKind;
use tdx_mirror_host::mock::Event::{self, Call};
use tdx_mirror_host::tdx::call::KINDS;

use crate::compare::{self, Census, Sept};
use crate::model::Model;
use crate::ops::GFNS;

impl Model {
    /// Compares what the operation may have touched, or all.
    pub(crate) fn check(&self) {
        if self.step % self.every == 0 {
            self.check_whole();
        }
        for (i, gfn) in GFNS.into_iter().enumerate() {
            let (kind, sept) = compare::at_gfn(&self.td, gfn).unwrap_or_else(|e| panic!("{e}"));
            match (kind, self.mapped.get(&gfn), self.quarantined.get(&gfn)) {
                (SpteKind::Leaf(p), Some(q), None) => {
                    assert_eq!(p.as_u64(), *q, "gfn {gfn:#x}");
                    assert_eq!(sept, Sept::Leaf(*q, self.accepted[i]), "gfn {gfn:#x}");
                    assert!(!self.direct[i], "gfn {gfn:#x} has two backings");
                }
                (SpteKind::NonPresent, None, None) => (),
                (SpteKind::Quarantined(p), None, Some(q)) => assert_eq!(p.as_u64(), *q),
                other => panic!("gfn {gfn:#x}: {other:?}"),
            }
            // The mirror's own walk finds the same.
            assert_eq!(self.td.kind(gfn), kind);
        }
        assert_eq!(self.td.mirror.is_bugged(), self.bugged);
    }

    /// Compares all there is.
    pub fn check_whole(&self) -> Census {
        let census = compare::whole(&self.td).unwrap_or_else(|e| panic!("{e}"));
        let pairs = |m: &BTreeMap<u64, u64>| m.iter().map(|(g, p)| (*g, *p)).collect::<Vec<_>>();
        assert_eq!(census.leaves, pairs(&self.mapped), "the set of mappings");
        assert_eq!(census.quarantined, pairs(&self.quarantined));
        let mut pfns: Vec<u64> = self.mapped.values().copied().collect();
        pfns.extend(self.quarantined.values());
        pfns.sort_unstable();
        pfns.dedup();
        assert_eq!(pfns.len(), self.mapped.len() + self.quarantined.len());
        self.check_figures(&census);
        let sept = self.td.mirror.external();
        if sept.stats().debts_lost.get() == 0 {
            for at in &census.marks {
                assert!(sept.owes(at.gfn()), "a mark at {at:?} that nobody owes");
            }
        }
        census
    }

    fn check_figures(&self, census: &Census) {
        let (stats, host) = (self.td.mirror.stats(), self.td.host());
        assert_eq!(stats.tables.get(), census.tables + 1);
        assert_eq!(stats.external_tables.get(), census.tables);
        assert_eq!(host.accounted.load(SeqCst) as u64, census.tables + 1);
        assert_eq!(host.accounted_external.load(SeqCst) as u64, census.tables);
        assert_eq!(host.external.lock().unwrap().len() as u64, census.tables);
        let arena = &self.td.machine.arena;
        assert_eq!(arena.used() as u64, census.tables + 1);
        let leaves = census.leaves.len() as u64;
        assert_eq!(host.leaves.load(SeqCst) as u64, leaves);
        assert_eq!(stats.leaf_transitions.get(), stats.mapped.get());
        let gone = stats.zapped.get() + stats.quarantined.get();
        assert_eq!(stats.mapped.get(), gone + leaves);
        assert_eq!(stats.quarantined.get(), self.quarantined.len() as u64);
        assert_eq!(
            host.held.lock().unwrap().len() as u64,
            stats.quarantined.get()
        );
        let (calls, b) = (self.td.mirror.external().stats(), self.td.backend());
        for kind in KINDS {
            let made = self.td.mirror.external().calls().made(*kind);
            assert_eq!(made, b.count(Call(*kind)), "{kind:?}");
        }
        assert_eq!(calls.kicks.get(), b.count(Event::Kick));
        let owed = self.td.mirror.external().debts_owed();
        let done = calls.debts_paid.get() + calls.debts_lost.get();
        assert_eq!(calls.debts.get(), done + owed, "marks");
    }
}
