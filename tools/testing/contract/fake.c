// SPDX-License-Identifier: GPL-2.0

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/gfp.h>
#include <linux/lockdep.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <asm/pgtable_types.h>

#include "fake.h"

/* Answers an error if the test asked for one; true if the call shall go on. */
static bool fake_begin(struct fake *f, enum fake_call call,
		       struct tdx_mirror_err *err)
{
	atomic_inc(&f->calls[call]);
	*err = (struct tdx_mirror_err){};
	if ((!f->held || f->fail_if_held) && atomic_read(&f->fail[call]) &&
	    atomic_dec_if_positive(&f->fail[call]) >= 0) {
		err->status = f->fail_status;
		if (err->status == STATUS_BUSY)
			err->status |= call == CALL_TRACK ? OPERAND_TD_EPOCH :
							    OPERAND_SEPT_TREE;
		return false;
	}
	return true;
}

static atomic64_t *fake_leaf(struct fake *f, u64 gfn, int level)
{
	RULE(f, level == PG_LEVEL_4K);
	RULE(f, gfn < FAKE_GFNS);
	return &f->leaf[gfn % FAKE_GFNS];
}

static void fake_link(void *ctx, u64 gfn, int level, void *external_spt,
		      struct tdx_mirror_err *err)
{
	struct fake *f = ctx;

	lockdep_assert_held_read(&f->mmu_lock);
	RULE(f, level >= PG_LEVEL_2M && level <= PG_LEVEL_512G);
	RULE(f, !(gfn & ((1ULL << (9 * (level - 1))) - 1)));
	RULE(f, external_spt && PAGE_ALIGNED(external_spt));
	if (fake_begin(f, CALL_LINK, err))
		atomic_inc(&f->linked);
}

static void fake_set(void *ctx, u64 gfn, int level, u64 pfn,
		     struct tdx_mirror_err *err)
{
	struct fake *f = ctx;
	u64 old;

	lockdep_assert_held_read(&f->mmu_lock);
	if (!fake_begin(f, CALL_SET, err))
		return;
	/* Only leaf, non-present to present. */
	old = atomic64_cmpxchg(fake_leaf(f, gfn, level), 0,
			       pfn << PAGE_SHIFT | LEAF_PRESENT);
	RULE(f, !old);
}

static void fake_block(void *ctx, u64 gfn, int level,
		       struct tdx_mirror_err *err)
{
	struct fake *f = ctx;

	lockdep_assert_held_write(&f->mmu_lock);
	if (!fake_begin(f, CALL_BLOCK, err))
		return;
	RULE(f, f->finalized);
	RULE(f, (atomic64_read(fake_leaf(f, gfn, level)) & 7) == LEAF_PRESENT);
	atomic64_or(LEAF_BLOCKED, fake_leaf(f, gfn, level));
}

static void fake_track(void *ctx, struct tdx_mirror_err *err)
{
	struct fake *f = ctx;
	int i;

	lockdep_assert_held_write(&f->mmu_lock);
	if (!fake_begin(f, CALL_TRACK, err))
		return;
	for (i = 0; i < FAKE_GFNS; i++) {
		if (atomic64_read(&f->leaf[i]) & LEAF_BLOCKED)
			atomic64_or(LEAF_TRACKED, &f->leaf[i]);
	}
}

static void fake_remove(void *ctx, u64 gfn, int level,
			struct tdx_mirror_err *err)
{
	struct fake *f = ctx;
	u64 want = LEAF_PRESENT;

	lockdep_assert_held_write(&f->mmu_lock);
	if (!fake_begin(f, CALL_REMOVE, err))
		return;
	if (f->finalized)
		want |= LEAF_BLOCKED | LEAF_TRACKED;
	RULE(f, (atomic64_read(fake_leaf(f, gfn, level)) & 7) == want);
	atomic64_set(fake_leaf(f, gfn, level), 0);
}

static void fake_wbinvd(void *ctx, u64 pfn, int level,
			struct tdx_mirror_err *err)
{
	struct fake *f = ctx;

	lockdep_assert_held_write(&f->mmu_lock);
	if (fake_begin(f, CALL_WBINVD, err))
		RULE(f, pfn >= FAKE_PFN(0) && pfn < FAKE_PFN(FAKE_GFNS));
}

static void fake_reclaim(void *ctx, void *external_spt,
			 struct tdx_mirror_err *err)
{
	struct fake *f = ctx;

	RULE(f, f->hkid_released);
	if (fake_begin(f, CALL_RECLAIM, err))
		atomic_dec(&f->linked);
}

static void fake_read(void *ctx, u64 gfn, int level, struct tdx_mirror_err *err)
{
	struct fake *f = ctx;

	lockdep_assert_held(&f->mmu_lock);
	RULE(f, gfn < 1ULL << FAKE_GFN_BITS);
	fake_begin(f, CALL_READ, err);
}

static void fake_reclaim_page(void *ctx, u64 pfn, int level,
			      struct tdx_mirror_err *err)
{
	struct fake *f = ctx;
	u64 gfn = pfn - FAKE_PFN(0);

	RULE(f, f->hkid_released);
	if (!fake_begin(f, CALL_RECLAIM_PAGE, err))
		return;
	RULE(f, atomic64_read(fake_leaf(f, gfn, level)));
	atomic64_set(fake_leaf(f, gfn, level), 0);
}

static void fake_kick(void *ctx)
{
	struct fake *f = ctx;

	lockdep_assert_held_write(&f->mmu_lock);
	atomic_inc(&f->kicks);
}

static void fake_hold(void *ctx, bool hold)
{
	struct fake *f = ctx;

	lockdep_assert_held_write(&f->mmu_lock);
	RULE(f, f->held != hold);
	f->held = hold;
}

static void fake_bug(void *ctx)
{
	atomic_inc(&((struct fake *)ctx)->bugged);
}

static bool fake_is_finalized(void *ctx)
{
	return ((struct fake *)ctx)->finalized;
}

static bool fake_is_hkid_assigned(void *ctx)
{
	return !((struct fake *)ctx)->hkid_released;
}

static void *fake_alloc_root(void *ctx)
{
	struct fake *f = ctx;
	void *page = (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);

	if (page)
		atomic_inc(&f->spt);
	return page;
}

/* The caches of KVM are filled before; here an atomic allocation must do. */
static void *fake_take_spt(void *ctx, void *vcpu)
{
	struct fake *f = ctx;
	u64 *page = (u64 *)__get_free_page(GFP_ATOMIC);

	RULE(f, vcpu == f);
	if (!page)
		return NULL;
	memset64(page, TDX_MIRROR_SPTE_NONPRESENT, PAGE_SIZE / sizeof(*page));
	atomic_inc(&f->spt);
	return page;
}

static void *fake_take_external_spt(void *ctx, void *vcpu)
{
	struct fake *f = ctx;
	void *page = (void *)get_zeroed_page(GFP_ATOMIC);

	RULE(f, vcpu == f);
	if (page)
		atomic_inc(&f->ext_spt);
	return page;
}

static void fake_put_spt(void *ctx, void *spt)
{
	atomic_dec(&((struct fake *)ctx)->spt);
	free_page((unsigned long)spt);
}

static void fake_put_external_spt(void *ctx, void *spt)
{
	atomic_dec(&((struct fake *)ctx)->ext_spt);
	free_page((unsigned long)spt);
}

static void fake_account(void *ctx, void *spt, int nr)
{
	atomic_add(nr, &((struct fake *)ctx)->accounted);
}

static void fake_account_external(void *ctx, void *spt, int nr)
{
	atomic_add(nr, &((struct fake *)ctx)->ext_accounted);
}

static void fake_page_stats(void *ctx, int level, long nr)
{
	struct fake *f = ctx;

	RULE(f, level == PG_LEVEL_4K);
	atomic_long_add(nr, &f->mapped_pages);
}

static bool fake_need_resched(void *ctx)
{
	return ((struct fake *)ctx)->resched;
}

static void fake_yield(void *ctx)
{
	struct fake *f = ctx;

	atomic_inc(&f->yields);
	write_unlock(&f->mmu_lock);
	cond_resched();
	write_lock(&f->mmu_lock);
}

/* A fake TD without a mirror, finalized. */
struct fake *fake_alloc(void)
{
	struct fake *f = kvzalloc(sizeof(*f), GFP_KERNEL);

	if (!f)
		return NULL;
	rwlock_init(&f->mmu_lock);
	f->finalized = true;
	f->fail_status = STATUS_BUSY;
	f->backend = (struct tdx_mirror_backend){
		.size = sizeof(f->backend),
		.abi_version = TDX_MIRROR_ABI_VERSION,
		.ctx = f,
		.mmu_lock = &f->mmu_lock,
		.gfn_bits = FAKE_GFN_BITS,
		.root_level = PG_LEVEL_512G,
		.spte_present_mask = TDX_MIRROR_SPTE_PRESENT,
		.spte_frozen = TDX_MIRROR_SPTE_FROZEN,
		.spte_nonpresent = TDX_MIRROR_SPTE_NONPRESENT,
		.link_external_spt = fake_link,
		.set_external_spte = fake_set,
		.block_external_spte = fake_block,
		.track_external = fake_track,
		.remove_external_spte = fake_remove,
		.wbinvd_external_page = fake_wbinvd,
		.free_external_spt = fake_reclaim,
		.read_external_spte = fake_read,
		.reclaim_external_page = fake_reclaim_page,
		.kick_vcpus = fake_kick,
		.hold_vcpus = fake_hold,
		.bug_vm = fake_bug,
		.is_finalized = fake_is_finalized,
		.is_hkid_assigned = fake_is_hkid_assigned,
		.alloc_root_spt = fake_alloc_root,
		.take_spt = fake_take_spt,
		.take_external_spt = fake_take_external_spt,
		.put_spt = fake_put_spt,
		.put_external_spt = fake_put_external_spt,
		.account = fake_account,
		.account_external = fake_account_external,
		.page_stats = fake_page_stats,
		.need_resched = fake_need_resched,
		.yield = fake_yield,
	};
	return f;
}

/* A fake TD with its mirror. */
struct fake *fake_new(void)
{
	struct fake *f = fake_alloc();
	int err = 0;

	if (!f)
		return NULL;
	f->mirror = ops->create(&f->backend, &err);
	if (f->mirror)
		return f;
	pr_err("create() answered %d\n", err);
	kvfree(f);
	return NULL;
}

int fake_map(struct fake *f, u64 gfn, u64 pfn, int level)
{
	int ret;

	read_lock(&f->mmu_lock);
	ret = ops->map(f->mirror, f, gfn, pfn, level);
	read_unlock(&f->mmu_lock);
	return ret;
}

u64 fake_zap(struct fake *f, u64 start, u64 end, bool can_yield)
{
	u64 zapped;

	write_lock(&f->mmu_lock);
	zapped = ops->zap_range(f->mirror, start, end, can_yield);
	write_unlock(&f->mmu_lock);
	return zapped;
}

void fake_fail(struct fake *f, enum fake_call call, int times, u64 status)
{
	f->fail_status = status;
	atomic_set(&f->fail[call], times);
}

/*
 * Ends a TD in KVM's order: everything zapped, HKID released, tables given
 * back, mirror freed.  @leaked_tables S-EPT pages are lost, with their mirror
 * pages or without.
 */
void fake_end(struct fake *f, const char *what, int leaked_tables)
{
	struct tdx_mirror_stats stats;

	fake_zap(f, 0, 1ULL << FAKE_GFN_BITS, true);
	f->hkid_released = true;
	write_lock(&f->mmu_lock);
	ops->teardown(f->mirror);
	write_unlock(&f->mmu_lock);
	ops->stats(f->mirror, &stats);
	ops->destroy(f->mirror);

	check(!atomic_read(&f->errors), what);
	check(!f->held, "vCPUs may run again");
	check(stats.leaf_transitions == stats.mapped, "every map is one transition");
	check(stats.set_external_spte_calls == atomic_read(&f->calls[CALL_SET]),
	      "all calls of set_external_spte are counted");
	check(stats.kicks == atomic_read(&f->kicks), "all kicks are counted");
	check(!atomic_long_read(&f->mapped_pages) || stats.quarantined,
	      "page statistics end at zero");
	check(atomic_read(&f->ext_spt) == leaked_tables,
	      "all S-EPT pages but the lost ones came back");
	check(atomic_read(&f->spt) == 0 && atomic_read(&f->accounted) == 0,
	      "all mirror tables came back");
	kvfree(f);
}
