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
static bool fake_begin(struct fake *f, enum fake_call call, u64 gfn,
		       struct tdx_mirror_err *err)
{
	atomic_inc(&f->calls[call]);
	*err = (struct tdx_mirror_err){};
	if ((f->held && f->kicked && !f->fail_if_held) || !atomic_read(&f->fail[call]) ||
	    atomic_dec_if_positive(&f->skip[call]) >= 0 ||
	    atomic_dec_if_positive(&f->fail[call]) < 0) {
		if (gfn < FAKE_GFNS)
			clear_bit(gfn, f->mark);
		return true;
	}

	*err = f->fail_err;
	if (err->status == STATUS_BUSY) {
		err->status |= call == CALL_TRACK ? OPERAND_TD_EPOCH : f->operand;
		if (gfn < FAKE_GFNS && f->operand == OPERAND_RCX)
			set_bit(gfn, f->mark);
	}
	return false;
}

/* The GFN of an entry that has a lock and a mark here, NO_GFN for a table's. */
#define NO_GFN	U64_MAX

static u64 fake_gfn(u64 gfn, int level)
{
	return level == PG_LEVEL_4K ? gfn : NO_GFN;
}

static atomic64_t *fake_leaf(struct fake *f, u64 gfn, int level)
{
	RULE(f, level == PG_LEVEL_4K);
	RULE(f, gfn < FAKE_GFNS);
	return &f->leaf[gfn % FAKE_GFNS];
}

/* The leaf that maps @pfn. */
static atomic64_t *fake_leaf_of(struct fake *f, u64 pfn)
{
	int i;

	for (i = 0; i < FAKE_GFNS; i++) {
		if (atomic64_read(&f->leaf[i]) >> PAGE_SHIFT == pfn)
			return &f->leaf[i];
	}
	return NULL;
}

static void fake_link(void *ctx, u64 gfn, int level, void *external_spt,
		      struct tdx_mirror_err *err)
{
	struct fake *f = ctx;

	lockdep_assert_held_read(&f->mmu_lock);
	RULE(f, level >= PG_LEVEL_2M && level <= PG_LEVEL_512G);
	RULE(f, !(gfn & ((1ULL << (9 * (level - 1))) - 1)));
	RULE(f, external_spt && PAGE_ALIGNED(external_spt));
	if (fake_begin(f, CALL_LINK, NO_GFN, err))
		atomic_inc(&f->linked);
}

static void fake_set(void *ctx, u64 gfn, int level, u64 pfn,
		     struct tdx_mirror_err *err)
{
	struct fake *f = ctx;
	u64 old;
	int at;

	lockdep_assert_held_read(&f->mmu_lock);
	/* Nobody but this thread changes the entry now. */
	RULE(f, test_ops->walk(f->mirror, gfn, &at) == TDX_MIRROR_SPTE_FROZEN);
	while (READ_ONCE(f->stuck))
		cpu_relax();
	if (f->meet)
		f->met = ops->map(f->mirror, f, gfn, pfn, level);
	if (!fake_begin(f, CALL_SET, gfn, err))
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
	if (!fake_begin(f, CALL_BLOCK, gfn, err))
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
	if (!fake_begin(f, CALL_TRACK, NO_GFN, err))
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
	if (!fake_begin(f, CALL_REMOVE, gfn, err))
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
	if (fake_begin(f, CALL_WBINVD, NO_GFN, err))
		RULE(f, !fake_leaf_of(f, pfn));
}

static void fake_reclaim(void *ctx, void *external_spt,
			 struct tdx_mirror_err *err)
{
	struct fake *f = ctx;

	RULE(f, f->hkid_released);
	if (fake_begin(f, CALL_RECLAIM, NO_GFN, err))
		atomic_dec(&f->linked);
}

static void fake_read(void *ctx, u64 gfn, int level, struct tdx_mirror_err *err)
{
	struct fake *f = ctx;

	lockdep_assert_held(&f->mmu_lock);
	RULE(f, gfn < 1ULL << FAKE_GFN_BITS);
	/* A guest that accepts the page would find the entry locked. */
	RULE(f, !f->files || (f->held && f->kicked));
	RULE(f, !f->files_ended);
	fake_begin(f, CALL_READ, fake_gfn(gfn, level), err);
}

static void fake_reclaim_page(void *ctx, u64 pfn, int level,
			      struct tdx_mirror_err *err)
{
	struct fake *f = ctx;
	atomic64_t *leaf;

	RULE(f, f->hkid_released);
	RULE(f, level == PG_LEVEL_4K);
	if (!fake_begin(f, CALL_RECLAIM_PAGE, NO_GFN, err))
		return;
	leaf = fake_leaf_of(f, pfn);
	if (leaf)
		atomic64_set(leaf, 0);
	else
		err->status = STATUS_METADATA;
}

static void fake_kick(void *ctx)
{
	struct fake *f = ctx;

	lockdep_assert_held_write(&f->mmu_lock);
	atomic_inc(&f->kicks);
	/* Whoever was inside is out, and stays out if held. */
	f->kicked = f->held;
}

static void fake_hold(void *ctx, bool hold)
{
	struct fake *f = ctx;

	lockdep_assert_held_write(&f->mmu_lock);
	RULE(f, f->held != hold);
	f->held = hold;
	f->kicked = false;
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
	u64 *page;

	RULE(f, vcpu == f);
	page = f->no_page ? NULL : (u64 *)__get_free_page(GFP_ATOMIC);
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
	f->operand = OPERAND_SEPT_TREE;
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

/* The next @times calls of @call answer @status, after @skip that go on. */
void fake_fail_at(struct fake *f, enum fake_call call, int skip, int times,
		  u64 status)
{
	f->fail_err = (struct tdx_mirror_err){ .status = status };
	atomic_set(&f->skip[call], skip);
	atomic_set(&f->fail[call], times);
}

void fake_fail(struct fake *f, enum fake_call call, int times, u64 status)
{
	fake_fail_at(f, call, 0, times, status);
}

void fake_no_fail(struct fake *f)
{
	int i;

	for (i = 0; i < NR_CALLS; i++) {
		atomic_set(&f->fail[i], 0);
		atomic_set(&f->skip[i], 0);
	}
}

/* fake_calls(), fake_seamcalls() and fake_kicks() count from here on. */
void fake_mark(struct fake *f)
{
	int i;

	for (i = 0; i < NR_CALLS; i++)
		f->calls_before[i] = atomic_read(&f->calls[i]);
	f->kicks_before = atomic_read(&f->kicks);
}

int fake_calls(struct fake *f, enum fake_call call)
{
	return atomic_read(&f->calls[call]) - f->calls_before[call];
}

int fake_seamcalls(struct fake *f)
{
	int i, calls = 0;

	for (i = 0; i < NR_CALLS; i++)
		calls += fake_calls(f, i);
	return calls;
}

int fake_kicks(struct fake *f)
{
	return atomic_read(&f->kicks) - f->kicks_before;
}

/* Whether the accounts of KVM, of the mirror and of the allocator agree. */
bool fake_account_ok(struct fake *f)
{
	struct tdx_mirror_stats stats;

	test_ops->stats(f->mirror, &stats);
	return stats.tables == atomic_read(&f->spt) &&
	       atomic_read(&f->accounted) == atomic_read(&f->spt) &&
	       stats.external_tables == atomic_read(&f->ext_spt) &&
	       atomic_read(&f->ext_accounted) == atomic_read(&f->ext_spt);
}

void fake_end_files(struct fake *f)
{
	if (!f->files_ended)
		ops->end_files(f->mirror);
	f->files_ended = true;
}

/* Everything zapped, HKID released, tables given back. */
void fake_teardown(struct fake *f)
{
	if (f->torn_down)
		return;
	fake_zap(f, 0, 1ULL << FAKE_GFN_BITS, true);
	fake_end_files(f);
	f->hkid_released = true;
	write_lock(&f->mmu_lock);
	atomic_set(&f->yields, 0);
	ops->teardown(f->mirror);
	write_unlock(&f->mmu_lock);
	f->torn_down = true;
}

/*
 * Ends a TD in KVM's order.  @leaked_tables S-EPT pages are lost, with their
 * mirror pages or without.
 */
void fake_end(struct fake *f, const char *what, int leaked_tables)
{
	struct tdx_mirror_stats stats;

	fake_teardown(f);
	test_ops->stats(f->mirror, &stats);
	ops->destroy(f->mirror);

	check(!atomic_read(&f->errors), what);
	check(!f->held, "vCPUs may run again");
	check(stats.leaf_transitions == stats.mapped, "every map is one transition");
	check(stats.link_calls == atomic_read(&f->calls[CALL_LINK]) &&
	      stats.set_external_spte_calls == atomic_read(&f->calls[CALL_SET]) &&
	      stats.block_calls == atomic_read(&f->calls[CALL_BLOCK]) &&
	      stats.track_calls == atomic_read(&f->calls[CALL_TRACK]) &&
	      stats.remove_calls == atomic_read(&f->calls[CALL_REMOVE]) &&
	      stats.wbinvd_calls == atomic_read(&f->calls[CALL_WBINVD]) &&
	      stats.read_calls == atomic_read(&f->calls[CALL_READ]) &&
	      stats.reclaim_calls == atomic_read(&f->calls[CALL_RECLAIM]) +
				     atomic_read(&f->calls[CALL_RECLAIM_PAGE]) &&
	      stats.kicks == atomic_read(&f->kicks), "all calls of hooks are counted");
	check(!atomic_long_read(&f->mapped_pages) || stats.quarantined,
	      "page statistics end at zero");
	check(atomic_read(&f->ext_spt) == leaked_tables,
	      "all S-EPT pages but the lost ones came back");
	check(atomic_read(&f->spt) == 0, "all mirror tables came back");
	check(!atomic_read(&f->accounted) && !atomic_read(&f->ext_accounted),
	      "both accounts end at zero");
	check(bitmap_empty(f->mark, FAKE_GFNS), "no host-priority mark is left");
	check(stats.debts == stats.debts_paid + stats.debts_lost,
	      "every debt is paid or counted as lost");
	kvfree(f);
}
