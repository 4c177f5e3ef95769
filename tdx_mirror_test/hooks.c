// SPDX-License-Identifier: GPL-2.0
/* The hooks that the mirror calls for a TD of the test device, and its callers. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/gfp.h>
#include <linux/lockdep.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/string.h>
#include <asm/pgtable_types.h>

#include "test.h"

/* Entry points of tdx_mirror.ko. */
const struct tdx_mirror_ops *tdt_ops;
const struct tdx_mirror_test_ops *tdt_test_ops;

/* Kicks under way: vCPUs leave the guest, and stay out. */
atomic_t tdt_kicks;

static u64 tdt_at(u64 gfn, int level)
{
	return gfn << PAGE_SHIFT | (level - 1);
}

static void tdt_hook_call(u64 leaf, struct tdx_module_args *args,
			  struct tdx_mirror_err *err)
{
	err->status = tdt_call(leaf, args);
	err->ext1 = args->rcx;
	err->ext2 = args->rdx;
	err->ext3 = args->r8;
}

static void tdt_link(void *ctx, u64 gfn, int level, void *external_spt,
		     struct tdx_mirror_err *err)
{
	struct tdt_td *td = ctx;
	struct tdx_module_args args = {
		.rcx = tdt_at(gfn, level),
		.rdx = tdt_pa(td->tdr),
		.r8 = tdt_pa(external_spt),
	};

	lockdep_assert_held_read(&td->mmu_lock);
	tdt_hook_call(TDH_MEM_SEPT_ADD, &args, err);
}

static void tdt_set(void *ctx, u64 gfn, int level, u64 pfn,
		    struct tdx_mirror_err *err)
{
	struct tdt_td *td = ctx;
	struct tdx_module_args args = {
		.rcx = tdt_at(gfn, level),
		.rdx = tdt_pa(td->tdr),
		.r8 = pfn << PAGE_SHIFT,
	};
	u64 leaf = TDH_MEM_PAGE_AUG;

	lockdep_assert_held_read(&td->mmu_lock);
	if (!td->finalized) {
		leaf = TDH_MEM_PAGE_ADD;
		args.r9 = tdt_pa(td->source);
	}
	tdt_hook_call(leaf, &args, err);
	if (!err->status)
		atomic64_inc(&td->set_ok);
}

static void tdt_block(void *ctx, u64 gfn, int level, struct tdx_mirror_err *err)
{
	struct tdt_td *td = ctx;
	struct tdx_module_args args = {
		.rcx = tdt_at(gfn, level),
		.rdx = tdt_pa(td->tdr),
	};

	lockdep_assert_held_write(&td->mmu_lock);
	tdt_hook_call(TDH_MEM_RANGE_BLOCK, &args, err);
}

static void tdt_track(void *ctx, struct tdx_mirror_err *err)
{
	struct tdt_td *td = ctx;
	struct tdx_module_args args = { .rcx = tdt_pa(td->tdr) };

	lockdep_assert_held_write(&td->mmu_lock);
	tdt_hook_call(TDH_MEM_TRACK, &args, err);
}

static void tdt_remove(void *ctx, u64 gfn, int level, struct tdx_mirror_err *err)
{
	struct tdt_td *td = ctx;
	struct tdx_module_args args = {
		.rcx = tdt_at(gfn, level),
		.rdx = tdt_pa(td->tdr),
	};

	lockdep_assert_held_write(&td->mmu_lock);
	tdt_hook_call(TDH_MEM_PAGE_REMOVE, &args, err);
}

static void tdt_wbinvd(void *ctx, u64 pfn, int level, struct tdx_mirror_err *err)
{
	struct tdt_td *td = ctx;
	struct tdx_module_args args = {
		.rcx = pfn << PAGE_SHIFT | (u64)td->hkid << TDT_HKID_SHIFT,
	};

	lockdep_assert_held_write(&td->mmu_lock);
	tdt_hook_call(TDH_PHYMEM_PAGE_WBINVD, &args, err);
}

static void tdt_reclaim(void *ctx, void *external_spt, struct tdx_mirror_err *err)
{
	struct tdx_module_args args = { .rcx = tdt_pa(external_spt) };

	tdt_hook_call(TDH_PHYMEM_PAGE_RECLAIM, &args, err);
}

static void tdt_read(void *ctx, u64 gfn, int level, struct tdx_mirror_err *err)
{
	struct tdt_td *td = ctx;
	struct tdx_module_args args = {
		.rcx = tdt_at(gfn, level),
		.rdx = tdt_pa(td->tdr),
	};

	lockdep_assert_held(&td->mmu_lock);
	tdt_hook_call(TDH_MEM_SEPT_RD, &args, err);
}

static void tdt_reclaim_data(void *ctx, u64 pfn, int level,
			     struct tdx_mirror_err *err)
{
	struct tdx_module_args args = { .rcx = pfn << PAGE_SHIFT };

	tdt_hook_call(TDH_PHYMEM_PAGE_RECLAIM, &args, err);
}

/* A vCPU in the guest never waits for anybody, so that this ends. */
static void tdt_kick(void *ctx)
{
	struct tdt_td *td = ctx;
	int i;

	lockdep_assert_held_write(&td->mmu_lock);
	atomic_inc(&tdt_kicks);
	/* Pairs with the barrier in tdt_enter(): one sees the other. */
	smp_mb__after_atomic();
	for (i = 0; i < td->nr_vcpus; i++) {
		/* What the vCPU did in the guest is done. */
		while (smp_load_acquire(&td->vcpus[i].in_guest))
			cpu_relax();
	}
	atomic_dec(&tdt_kicks);
}

static void tdt_hold(void *ctx, bool hold)
{
	struct tdt_td *td = ctx;

	lockdep_assert_held_write(&td->mmu_lock);
	atomic_add(hold ? 1 : -1, &td->hold);
	/* As in tdt_kick(), which follows. */
	smp_mb__after_atomic();
}

static void tdt_bug(void *ctx)
{
	struct tdt_td *td = ctx;

	WRITE_ONCE(td->bugged, true);
}

static bool tdt_is_finalized(void *ctx)
{
	return ((struct tdt_td *)ctx)->finalized;
}

static bool tdt_is_hkid_assigned(void *ctx)
{
	return !((struct tdt_td *)ctx)->hkid_released;
}

static void *tdt_alloc_root(void *ctx)
{
	return (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
}

static void *tdt_take_spt(void *ctx, void *vcpu)
{
	struct tdt_cache *cache = vcpu;

	return cache->nr_spt ? cache->spt[--cache->nr_spt] : NULL;
}

static void *tdt_take_external_spt(void *ctx, void *vcpu)
{
	struct tdt_cache *cache = vcpu;

	return cache->nr_ext ? cache->ext[--cache->nr_ext] : NULL;
}

static void tdt_put_spt(void *ctx, void *spt)
{
	free_page((unsigned long)spt);
}

static void tdt_put_external_spt(void *ctx, void *spt)
{
	tdt_page_free(spt);
}

static void tdt_account(void *ctx, void *spt, int nr)
{
	atomic_add(nr, &((struct tdt_td *)ctx)->spts);
}

static void tdt_account_external(void *ctx, void *spt, int nr)
{
	atomic_add(nr, &((struct tdt_td *)ctx)->ext_spts);
}

static void tdt_page_stats(void *ctx, int level, long nr)
{
}

static bool tdt_need_resched(void *ctx)
{
	struct tdt_td *td = ctx;

	return need_resched() || rwlock_needbreak(&td->mmu_lock);
}

static void tdt_yield(void *ctx)
{
	struct tdt_td *td = ctx;

	atomic64_inc(&td->yields);
	write_unlock(&td->mmu_lock);
	cond_resched();
	write_lock(&td->mmu_lock);
}

void tdt_backend_init(struct tdt_td *td)
{
	td->backend = (struct tdx_mirror_backend){
		.size = sizeof(td->backend),
		.abi_version = TDX_MIRROR_ABI_VERSION,
		.ctx = td,
		.mmu_lock = &td->mmu_lock,
		.gfn_bits = TDT_GFN_BITS,
		.root_level = PG_LEVEL_512G,
		.spte_present_mask = TDX_MIRROR_SPTE_PRESENT,
		.spte_frozen = TDX_MIRROR_SPTE_FROZEN,
		.spte_nonpresent = TDX_MIRROR_SPTE_NONPRESENT,
		.link_external_spt = tdt_link,
		.set_external_spte = tdt_set,
		.block_external_spte = tdt_block,
		.track_external = tdt_track,
		.remove_external_spte = tdt_remove,
		.wbinvd_external_page = tdt_wbinvd,
		.free_external_spt = tdt_reclaim,
		.read_external_spte = tdt_read,
		.reclaim_external_page = tdt_reclaim_data,
		.kick_vcpus = tdt_kick,
		.hold_vcpus = tdt_hold,
		.bug_vm = tdt_bug,
		.is_finalized = tdt_is_finalized,
		.is_hkid_assigned = tdt_is_hkid_assigned,
		.alloc_root_spt = tdt_alloc_root,
		.take_spt = tdt_take_spt,
		.take_external_spt = tdt_take_external_spt,
		.put_spt = tdt_put_spt,
		.put_external_spt = tdt_put_external_spt,
		.account = tdt_account,
		.account_external = tdt_account_external,
		.page_stats = tdt_page_stats,
		.need_resched = tdt_need_resched,
		.yield = tdt_yield,
	};
}

static int tdt_cache_fill(struct tdt_cache *cache)
{
	while (cache->nr_spt < ARRAY_SIZE(cache->spt)) {
		u64 *page = (u64 *)__get_free_page(GFP_KERNEL_ACCOUNT);

		if (!page)
			return -ENOMEM;
		memset64(page, TDX_MIRROR_SPTE_NONPRESENT, PAGE_SIZE / sizeof(*page));
		cache->spt[cache->nr_spt++] = page;
	}
	while (cache->nr_ext < ARRAY_SIZE(cache->ext)) {
		void *page = tdt_page_alloc();

		if (!page)
			return -ENOSPC;
		cache->ext[cache->nr_ext++] = page;
	}

	return 0;
}

static void tdt_cache_free(struct tdt_cache *cache)
{
	while (cache->nr_spt)
		free_page((unsigned long)cache->spt[--cache->nr_spt]);
	while (cache->nr_ext)
		tdt_page_free(cache->ext[--cache->nr_ext]);
}

/* The backing of a GFN, NULL if it has none. */
void *tdt_ram(struct tdt_td *td, u64 gfn)
{
	if (gfn == TDX_TEST_RESET_GFN)
		return td->ram[td->nr_pages];
	return gfn < td->nr_pages ? td->ram[gfn] : NULL;
}

static int tdt_map_once(struct tdt_td *td, struct tdt_cache *cache, u64 gfn)
{
	u64 pfn = tdt_pa(tdt_ram(td, gfn)) >> PAGE_SHIFT;
	int ret = tdt_cache_fill(cache);

	if (ret)
		return ret;
	read_lock(&td->mmu_lock);
	ret = tdt_ops->map(td->mirror, cache, gfn, pfn, PG_LEVEL_4K);
	read_unlock(&td->mmu_lock);

	return ret;
}

/*
 * One fault at a GFN that has a backing, as KVM serves it: what is contended is
 * tried again as long as the mirror says so. Answers as tdx_mirror_ops.map(),
 * *@action is what the mirror said last, and *@retries grows by the tries after
 * the first.
 */
int tdt_map(struct tdt_td *td, struct tdx_mirror_vcpu *notes, u64 gfn,
	    u32 conditions, u32 *action, u64 *retries)
{
	struct tdt_cache cache = {};
	int ret;

	for (;;) {
		ret = tdt_map_once(td, &cache, gfn);
		if (!tdt_is_retry(ret)) {
			*action = TDX_MIRROR_ENTER;
			tdt_ops->fault_done(td->mirror, notes, gfn, 0, ret);
			break;
		}
		if (signal_pending(current))
			conditions |= TDX_MIRROR_FAULT_SIGNAL;
		if (READ_ONCE(td->bugged))
			conditions |= TDX_MIRROR_FAULT_VM_DEAD;
		*action = tdt_ops->fault_retry(td->mirror, notes, gfn, conditions,
					       ret & TDX_MIRROR_MAP_REASON);
		if (*action != TDX_MIRROR_AGAIN)
			break;
		(*retries)++;
		cond_resched();
	}
	tdt_cache_free(&cache);

	return ret;
}

u64 tdt_zap(struct tdt_td *td, u64 start, u64 end)
{
	u64 zapped;

	write_lock(&td->mmu_lock);
	zapped = tdt_ops->zap_range(td->mirror, start, end, true);
	write_unlock(&td->mmu_lock);

	return zapped;
}
