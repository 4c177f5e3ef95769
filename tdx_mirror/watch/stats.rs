// SPDX-License-Identifier: GPL-2.0

//! The figures that tests have as well, `struct tdx_mirror_stats`.

use core::fmt;

use crate::base::stats::Count;
use crate::bindings::tdx_mirror_stats;
use crate::kvm::td::Td;
use crate::tdx::call::Kind;

/// Names the fields of [`tdx_mirror_stats`] once. The patterns below have no `..`, so a field that
/// the structure gets and this list lacks does not compile.
macro_rules! stats_fields {
    ($($field:ident),* $(,)?) => {
        /// All zero.
        pub(crate) const ZERO: tdx_mirror_stats = tdx_mirror_stats { $($field: 0),* };

        /// Adds the figures of one TD to a sum. Wraps like every counter of the kernel.
        pub(crate) fn add(sum: &mut tdx_mirror_stats, one: &tdx_mirror_stats) {
            let tdx_mirror_stats { $($field),* } = *one;
            $(sum.$field = sum.$field.wrapping_add($field);)*
        }

        /// Writes one `name value` per line.
        pub(crate) fn write(stats: &tdx_mirror_stats, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let tdx_mirror_stats { $($field),* } = *stats;
            $(writeln!(f, concat!(stringify!($field), " {}"), $field)?;)*
            Ok(())
        }
    };
}

stats_fields!(
    mapped,
    zapped,
    leaf_transitions,
    set_external_spte_calls,
    link_calls,
    block_calls,
    track_calls,
    remove_calls,
    wbinvd_calls,
    reclaim_calls,
    busy,
    retries,
    giveups,
    kicks,
    frozen_seen,
    spurious,
    quarantined,
    leaked,
    tables,
    external_tables,
    resolved,
    zap_batches,
    debts,
    debts_paid,
    debts_lost,
    read_calls,
    local_retries,
    local_giveups,
    held,
    vp_enter_busy,
    vp_enter_busy_other,
    killed,
);

/// Those of a TD now.
pub(crate) fn of(td: &Td) -> tdx_mirror_stats {
    let mirror = td.mirror().stats();
    let (sept, calls) = (td.sept().stats(), td.sept().calls());
    let both = |a, b| calls.made(a).wrapping_add(calls.made(b));
    let vcpus = td.progress().stats();
    tdx_mirror_stats {
        mapped: mirror.mapped.get(),
        zapped: mirror.zapped.get(),
        leaf_transitions: mirror.leaf_transitions.get(),
        set_external_spte_calls: both(Kind::PageAdd, Kind::PageAug),
        link_calls: calls.made(Kind::SeptAdd),
        block_calls: calls.made(Kind::RangeBlock),
        track_calls: calls.made(Kind::Track),
        remove_calls: calls.made(Kind::PageRemove),
        wbinvd_calls: calls.made(Kind::PageWbinvd),
        reclaim_calls: both(Kind::ReclaimTable, Kind::ReclaimData),
        busy: sept.busy.get(),
        retries: sept.retries.get(),
        giveups: sept.giveups.get(),
        kicks: sept.kicks.get(),
        frozen_seen: mirror.frozen_seen.get(),
        spurious: mirror.spurious.get(),
        quarantined: mirror.quarantined.get(),
        leaked: mirror.leaked.get(),
        tables: mirror.tables.get(),
        external_tables: mirror.external_tables.get(),
        resolved: mirror.resolved.get(),
        zap_batches: mirror.zap_batches.get(),
        debts: sept.debts.get(),
        debts_paid: sept.debts_paid.get(),
        debts_lost: sept.debts_lost.get(),
        read_calls: calls.made(Kind::SeptRd),
        local_retries: vcpus.local_retries.get(),
        local_giveups: vcpus.local_giveups.get(),
        held: vcpus.held.get(),
        vp_enter_busy: vcpus.vp_enter_busy.get(),
        vp_enter_busy_other: vcpus.vp_enter_busy_other.get(),
        killed: vcpus.killed.get(),
    }
}
