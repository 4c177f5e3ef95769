/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What tests ask of tdx_mirror.ko beyond its contract with KVM: the test of the
 * contract (tools/testing/contract) and the test device (tdx_mirror_test). KVM
 * knows nothing of this file.
 */
#ifndef _TDX_MIRROR_TEST_OPS_H
#define _TDX_MIRROR_TEST_OPS_H

#include <linux/types.h>

struct tdx_mirror;

/* Raised with every change of a structure in this file. */
#define TDX_MIRROR_TEST_OPS_VERSION	1

/**
 * struct tdx_mirror_stats - exact at a quiescent point of the TD
 * @mapped: leaves mapped since creation
 * @zapped: leaves zapped since creation
 * @leaf_transitions: leaf non-present to present transitions; equal to the
 *	successful calls of set_external_spte
 * @set_external_spte_calls: all calls of set_external_spte
 * @link_calls: calls of link_external_spt
 * @block_calls: calls of block_external_spte
 * @track_calls: calls of track_external
 * @remove_calls: calls of remove_external_spte
 * @wbinvd_calls: calls of wbinvd_external_page
 * @reclaim_calls: calls of free_external_spt and of reclaim_external_page
 * @busy: hook calls that answered with contention
 * @retries: hook calls that were repeated for contention
 * @giveups: operations that ended for contention
 * @kicks: calls of kick_vcpus
 * @frozen_seen: operations that bailed out at a frozen entry
 * @spurious: maps that found the leaf mapped
 * @quarantined: pages that the TDX module may still own, GFN blocked
 * @leaked: pages never given back to the allocator
 * @tables: mirror table pages in use, the root included
 * @external_tables: S-EPT pages in use, without the root, which is the TDX
 *	module's own
 * @resolved: quarantined pages that the teardown could reclaim after all
 * @zap_batches: batches of leaves that were zapped with one TRACK, or without
 *	one before the TD is finalized
 * @debts: host-priority marks that operations left when they gave up
 * @debts_paid: marks of these that are cleared again
 * @debts_lost: marks of these that nobody will clear, because there were too many
 *	or the TD ended
 * @read_calls: calls of read_external_spte
 * @local_retries: rounds of fault_retry() that answered TDX_MIRROR_AGAIN
 * @local_giveups: faults that fault_retry() ended without the page mapped
 * @held: vCPUs that were kept from VP.ENTER near the zero-step threshold
 * @vp_enter_busy: VP.ENTERs that found the S-EPT busy, which is a bug
 * @vp_enter_busy_other: VP.ENTERs that found something else busy
 * @killed: VMs that the policy ended (vp_enter_policy=kill), 0 or 1
 */
struct tdx_mirror_stats {
	u64 mapped, zapped, leaf_transitions, set_external_spte_calls;
	u64 link_calls, block_calls, track_calls, remove_calls;
	u64 wbinvd_calls, reclaim_calls, busy, retries, giveups, kicks;
	u64 frozen_seen, spurious, quarantined, leaked, tables;
	u64 external_tables, resolved, zap_batches, debts, debts_paid;
	u64 debts_lost, read_calls, local_retries, local_giveups, held;
	u64 vp_enter_busy, vp_enter_busy_other, killed;
};

/**
 * struct tdx_mirror_test_ops - what tests ask of a mirror
 * @size: sizeof(struct tdx_mirror_test_ops) of the module
 * @version: TDX_MIRROR_TEST_OPS_VERSION of the module
 *
 * @walk: the raw SPTE that maps @gfn and its *@level. Takes RCU itself.
 * @stats: figures of one TD, from any context.
 */
struct tdx_mirror_test_ops {
	u32 size;
	u32 version;

	u64 (*walk)(struct tdx_mirror *mirror, u64 gfn, int *level);
	void (*stats)(struct tdx_mirror *mirror, struct tdx_mirror_stats *stats);
};

/* Exported; the entry points, never NULL. */
const struct tdx_mirror_test_ops *tdx_mirror_get_test_ops(void);

#endif /* _TDX_MIRROR_TEST_OPS_H */
