// SPDX-License-Identifier: GPL-2.0
/*
 * What the Rust side takes for granted about C, checked when the module is
 * built: layout of the contract (the checked-in bindings assert the same
 * numbers), page geometry and, where the kernel tree has KVM's headers, KVM's
 * SPTE encoding.
 */
#include <linux/build_bug.h>
#include <linux/mm.h>
#include <linux/stddef.h>
#include <linux/tdx_mirror.h>
#include <asm/pgtable_types.h>

#include "../kvm/test_ops.h"

#define CHECK_SIZE(type, size)	static_assert(sizeof(type) == (size))
#define CHECK_OFFSET(type, member, off) \
	static_assert(offsetof(type, member) == (off))

CHECK_SIZE(bool, 1);
CHECK_SIZE(int, 4);
CHECK_SIZE(long, 8);
CHECK_SIZE(void *, 8);

CHECK_SIZE(struct tdx_mirror_err, 32);
CHECK_OFFSET(struct tdx_mirror_err, status, 0);
CHECK_OFFSET(struct tdx_mirror_err, ext1, 8);
CHECK_OFFSET(struct tdx_mirror_err, ext2, 16);
CHECK_OFFSET(struct tdx_mirror_err, ext3, 24);

CHECK_SIZE(struct tdx_mirror_backend, 248);
CHECK_OFFSET(struct tdx_mirror_backend, size, 0);
CHECK_OFFSET(struct tdx_mirror_backend, abi_version, 4);
CHECK_OFFSET(struct tdx_mirror_backend, ctx, 8);
CHECK_OFFSET(struct tdx_mirror_backend, mmu_lock, 16);
CHECK_OFFSET(struct tdx_mirror_backend, gfn_bits, 24);
CHECK_OFFSET(struct tdx_mirror_backend, root_level, 28);
CHECK_OFFSET(struct tdx_mirror_backend, spte_present_mask, 32);
CHECK_OFFSET(struct tdx_mirror_backend, spte_frozen, 40);
CHECK_OFFSET(struct tdx_mirror_backend, spte_nonpresent, 48);
CHECK_OFFSET(struct tdx_mirror_backend, link_external_spt, 56);
CHECK_OFFSET(struct tdx_mirror_backend, set_external_spte, 64);
CHECK_OFFSET(struct tdx_mirror_backend, block_external_spte, 72);
CHECK_OFFSET(struct tdx_mirror_backend, track_external, 80);
CHECK_OFFSET(struct tdx_mirror_backend, remove_external_spte, 88);
CHECK_OFFSET(struct tdx_mirror_backend, wbinvd_external_page, 96);
CHECK_OFFSET(struct tdx_mirror_backend, free_external_spt, 104);
CHECK_OFFSET(struct tdx_mirror_backend, read_external_spte, 112);
CHECK_OFFSET(struct tdx_mirror_backend, reclaim_external_page, 120);
CHECK_OFFSET(struct tdx_mirror_backend, kick_vcpus, 128);
CHECK_OFFSET(struct tdx_mirror_backend, hold_vcpus, 136);
CHECK_OFFSET(struct tdx_mirror_backend, bug_vm, 144);
CHECK_OFFSET(struct tdx_mirror_backend, is_finalized, 152);
CHECK_OFFSET(struct tdx_mirror_backend, is_hkid_assigned, 160);
CHECK_OFFSET(struct tdx_mirror_backend, alloc_root_spt, 168);
CHECK_OFFSET(struct tdx_mirror_backend, take_spt, 176);
CHECK_OFFSET(struct tdx_mirror_backend, take_external_spt, 184);
CHECK_OFFSET(struct tdx_mirror_backend, put_spt, 192);
CHECK_OFFSET(struct tdx_mirror_backend, put_external_spt, 200);
CHECK_OFFSET(struct tdx_mirror_backend, account, 208);
CHECK_OFFSET(struct tdx_mirror_backend, account_external, 216);
CHECK_OFFSET(struct tdx_mirror_backend, page_stats, 224);
CHECK_OFFSET(struct tdx_mirror_backend, need_resched, 232);
CHECK_OFFSET(struct tdx_mirror_backend, yield, 240);

CHECK_SIZE(struct tdx_mirror_vcpu, 32);
CHECK_OFFSET(struct tdx_mirror_vcpu, faults, 0);
CHECK_OFFSET(struct tdx_mirror_vcpu, repeats, 4);
CHECK_OFFSET(struct tdx_mirror_vcpu, rounds, 8);
CHECK_OFFSET(struct tdx_mirror_vcpu, waits, 12);
CHECK_OFFSET(struct tdx_mirror_vcpu, gfn, 16);
CHECK_OFFSET(struct tdx_mirror_vcpu, spurious, 24);
CHECK_OFFSET(struct tdx_mirror_vcpu, accept, 28);
CHECK_OFFSET(struct tdx_mirror_vcpu, held, 29);

CHECK_SIZE(struct tdx_mirror_ops, 80);
CHECK_OFFSET(struct tdx_mirror_ops, size, 0);
CHECK_OFFSET(struct tdx_mirror_ops, abi_version, 4);
CHECK_OFFSET(struct tdx_mirror_ops, create, 8);
CHECK_OFFSET(struct tdx_mirror_ops, map, 16);
CHECK_OFFSET(struct tdx_mirror_ops, zap_range, 24);
CHECK_OFFSET(struct tdx_mirror_ops, teardown, 32);
CHECK_OFFSET(struct tdx_mirror_ops, destroy, 40);
CHECK_OFFSET(struct tdx_mirror_ops, fault_retry, 48);
CHECK_OFFSET(struct tdx_mirror_ops, fault_done, 56);
CHECK_OFFSET(struct tdx_mirror_ops, vp_enter_busy, 64);
CHECK_OFFSET(struct tdx_mirror_ops, end_files, 72);

CHECK_SIZE(struct tdx_mirror_stats, 32 * 8);

CHECK_SIZE(struct tdx_mirror_test_ops, 24);
CHECK_OFFSET(struct tdx_mirror_test_ops, size, 0);
CHECK_OFFSET(struct tdx_mirror_test_ops, version, 4);
CHECK_OFFSET(struct tdx_mirror_test_ops, walk, 8);
CHECK_OFFSET(struct tdx_mirror_test_ops, stats, 16);

/* Levels are KVM's, which are the kernel's: 1 is a 4K entry. */
static_assert(PG_LEVEL_4K == 1);
static_assert(PG_LEVEL_2M == 2);
static_assert(PG_LEVEL_1G == 3);
static_assert(PG_LEVEL_512G == 4);
static_assert(PG_LEVEL_256T == 5);

static_assert(PAGE_SHIFT == 12);
static_assert(PAGE_SIZE / sizeof(u64) == 512);

/* Without KVM's headers create() compares the same values at run time. */
#if __has_include("mmu/spte.h")
#include "mmu/spte.h"

static_assert(TDX_MIRROR_SPTE_PRESENT == SPTE_MMU_PRESENT_MASK);
static_assert(TDX_MIRROR_SPTE_NONPRESENT == SHADOW_NONPRESENT_VALUE);
static_assert(TDX_MIRROR_SPTE_FROZEN == FROZEN_SPTE);
static_assert(SPTE_ENT_PER_PAGE == 512);
#endif
