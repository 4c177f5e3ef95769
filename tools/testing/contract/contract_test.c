// SPDX-License-Identifier: GPL-2.0
/*
 * Test of the C contract of tdx_mirror.ko (include/linux/tdx_mirror.h) without
 * KVM and without TDX, see fake.h.
 *
 * Loading the module runs the tests and prints TAP into the kernel log; the
 * load fails with -EINVAL if a test failed.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kthread.h>
#include <linux/lockdep.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <asm/pgtable_types.h>

#include "fake.h"

#define NR_THREADS	4

char *policy = "warn";
module_param_named(vp_enter_policy, policy, charp, 0444);
MODULE_PARM_DESC(vp_enter_policy, "what tdx_mirror was loaded with");

unsigned int zap_batch = 512;
module_param(zap_batch, uint, 0444);
MODULE_PARM_DESC(zap_batch, "what tdx_mirror was loaded with");

const struct tdx_mirror_ops *ops;
const struct tdx_mirror_test_ops *test_ops;

static unsigned int test_nr, failures;

void check(bool ok, const char *what)
{
	test_nr++;
	if (!ok)
		failures++;
	pr_info("%sok %u - %s\n", ok ? "" : "not ", test_nr, what);
}

static void test_refused(struct fake *f, const char *what)
{
	int err = 0;
	struct tdx_mirror *mirror = ops->create(&f->backend, &err);

	check(!mirror && err == -EINVAL, what);
	if (mirror)
		ops->destroy(mirror);
}

/* The module tells of KVM when KVM comes, not what it guesses before. */
static void test_first_td_is_told(void)
{
	struct fake *f;
	int i;

	check(!log_lines("the mirror hooks", NULL, NULL) &&
	      !log_lines("its mirror hooks", NULL, NULL),
	      "the log says nothing of a KVM that is not there");
	log_mark();
	for (i = 0; i < 2; i++) {
		f = fake_new();
		if (!f)
			return check(false, __func__);
		fake_end(f, "handed over", 0);
	}
	check(log_lines("KVM handed over a TD", NULL, NULL) == 1, "the first TD is told");
}

/* Each way in which a backend can be unfit is -EINVAL and leaves nothing. */
/* Shows: R33, R46. */
static void test_create_refuses_what_is_unfit(void)
{
	struct fake *f = fake_alloc();
	struct tdx_mirror_backend good;
	void **hook, **end;
	bool all = true;
	int err;

	if (!f)
		return check(false, __func__);
	good = f->backend;

	check(ops->size == sizeof(*ops) &&
	      ops->abi_version == TDX_MIRROR_ABI_VERSION, "size and version of the ops");
	err = 0;
	check(!ops->create(NULL, &err) && err == -EINVAL, "no backend");
	check(!ops->create(NULL, NULL), "no backend and no place for the error");

	f->backend.size = sizeof(f->backend) - 8;
	test_refused(f, "backend of another size");
	f->backend = good;
	f->backend.abi_version = TDX_MIRROR_ABI_VERSION + 1;
	test_refused(f, "backend of another version");
	/* Version 1 had three hooks fewer. */
	f->backend.size = sizeof(f->backend) - 3 * sizeof(void *);
	f->backend.abi_version = 1;
	log_mark();
	test_refused(f, "backend of version 1");
	check(log_lines("ABI version 1, this module has 4", NULL, NULL) == 1,
	      "the log names both versions");
	f->backend = good;
	f->backend.root_level = PG_LEVEL_1G;
	test_refused(f, "root level 3");
	f->backend = good;
	f->backend.gfn_bits = 0;
	test_refused(f, "no GFN bits");
	f->backend.gfn_bits = 37;
	test_refused(f, "more GFN bits than the root resolves");
	f->backend = good;
	f->backend.spte_frozen ^= BIT_ULL(5);
	test_refused(f, "another FROZEN_SPTE");
	f->backend = good;
	f->backend.mmu_lock = NULL;
	test_refused(f, "no mmu_lock");

	hook = (void **)&f->backend.link_external_spt;
	end = (void **)(&f->backend + 1);
	for (; hook < end; hook++) {
		struct tdx_mirror *mirror;

		f->backend = good;
		*hook = NULL;
		err = 0;
		mirror = ops->create(&f->backend, &err);
		all &= !mirror && err == -EINVAL;
		if (mirror)
			ops->destroy(mirror);
	}
	check(all, "each missing hook");
	check(!atomic_read(&f->spt), "refused backends cost no page");

	/* A mirror that was never used. */
	f->backend = good;
	f->mirror = ops->create(&f->backend, &err);
	check(f->mirror, "the untouched backend is taken");
	if (f->mirror)
		fake_end(f, "unused mirror", 0);
	else
		kvfree(f);
}

/* Shows: R27, R29. */
static void test_map_sets_each_leaf_once(void)
{
	struct fake *f = fake_new();
	struct tdx_mirror_stats stats;
	int level = 0;
	u64 spte;

	if (!f)
		return check(false, __func__);

	check(fake_map(f, 5, FAKE_PFN(5), PG_LEVEL_4K) == TDX_MIRROR_MAP_FIXED, "map");
	check(atomic_read(&f->calls[CALL_LINK]) == 3, "three tables were linked");
	check(fake_map(f, 5, FAKE_PFN(5), PG_LEVEL_4K) == TDX_MIRROR_MAP_SPURIOUS,
	      "map again");
	check(atomic_read(&f->calls[CALL_SET]) == 1, "mapped once");
	spte = test_ops->walk(f->mirror, 5, &level);
	check(level == PG_LEVEL_4K && (spte & TDX_MIRROR_SPTE_PRESENT) &&
	      ((spte & GENMASK_ULL(51, 12)) >> 12) == FAKE_PFN(5), "walk finds the leaf");
	spte = test_ops->walk(f->mirror, 6, &level);
	check(level == PG_LEVEL_4K && spte == TDX_MIRROR_SPTE_NONPRESENT,
	      "walk finds nothing beside it");

	check(fake_zap(f, 5, 5, false) == 0 && fake_zap(f, 6, 5, false) == 0,
	      "empty and reversed ranges");
	test_ops->stats(f->mirror, &stats);
	check(stats.mapped == 1 && stats.zapped == 0 && stats.tables == 4,
	      "they change nothing");

	check(fake_zap(f, 0, U64_MAX, false) == 1, "zap of everything");
	check(fake_zap(f, 0, U64_MAX, false) == 0, "zap of nothing");
	check(atomic_read(&f->calls[CALL_BLOCK]) == 1 &&
	      atomic_read(&f->calls[CALL_REMOVE]) == 1 &&
	      atomic_read(&f->calls[CALL_WBINVD]) == 1, "one leaf was removed");
	check(fake_map(f, 5, FAKE_PFN(9), PG_LEVEL_4K) == TDX_MIRROR_MAP_FIXED,
	      "map after zap");
	check(!atomic_read(&f->bugged), "VM alive");

	check(fake_map(f, 5, FAKE_PFN(10), PG_LEVEL_4K) == -EIO, "another PFN is a bug");
	check(atomic_read(&f->bugged), "VM bugged");
	fake_end(f, "map and zap", 0);
}

/* Before the TD is finalized: one try for each map, no BLOCK, no TRACK. */
/* Shows: R4. */
static void test_a_map_of_the_build_has_one_try(void)
{
	struct fake *f = fake_new();

	if (!f)
		return check(false, __func__);
	f->finalized = false;
	fake_fail(f, CALL_SET, 1, STATUS_BUSY);
	check(fake_map(f, 0, FAKE_PFN(0), PG_LEVEL_4K) == TDX_MIRROR_RETRY_SEPT_TREE,
	      "contention while building");
	check(atomic_read(&f->calls[CALL_SET]) == 1, "one try while building");
	check(fake_map(f, 0, FAKE_PFN(0), PG_LEVEL_4K) == TDX_MIRROR_MAP_FIXED, "add");
	check(fake_zap(f, 0, 1, false) == 1, "zap while building");
	check(!atomic_read(&f->calls[CALL_BLOCK]) && !atomic_read(&f->calls[CALL_TRACK]),
	      "no BLOCK and no TRACK while building");
	fake_end(f, "build", 0);
}

/* A reader's walk while pages come and go. */
static int walk_thread(void *data)
{
	struct fake *f = data;
	int level;

	while (!kthread_should_stop()) {
		u64 gfn = get_random_u32_below(FAKE_GFNS);
		u64 spte = test_ops->walk(f->mirror, gfn, &level);

		if (spte & TDX_MIRROR_SPTE_PRESENT && level == PG_LEVEL_4K)
			RULE(f, ((spte & GENMASK_ULL(51, 12)) >> 12) == FAKE_PFN(gfn));
		cond_resched();
	}
	return 0;
}

/* Maps GFNs that other threads map as well, until each is done once. */
static int map_thread(void *data)
{
	struct fake *f = data;
	u64 i;

	for (i = 0; i < FAKE_GFNS && !kthread_should_stop(); i++) {
		/* Half of the GFNs twice, so that threads meet at an entry. */
		u64 gfn = i & 1 ? i : get_random_u32_below(FAKE_GFNS);
		int ret;

		do {
			ret = fake_map(f, gfn, FAKE_PFN(gfn), PG_LEVEL_4K);
			cond_resched();
		} while (is_retry(ret));
		RULE(f, ret == TDX_MIRROR_MAP_FIXED || ret == TDX_MIRROR_MAP_SPURIOUS);
	}
	while (!kthread_should_stop())
		schedule_timeout_interruptible(1);
	return 0;
}

static int zap_thread(void *data)
{
	struct fake *f = data;

	while (!kthread_should_stop()) {
		u64 gfn = get_random_u32_below(FAKE_GFNS);

		fake_zap(f, gfn, gfn + 1 + get_random_u32_below(64), true);
		schedule_timeout_interruptible(1);
	}
	return 0;
}

/* Shows: R17, R31, R36. */
static void test_maps_and_zaps_in_parallel(void)
{
	struct fake *f = fake_new();
	struct task_struct *threads[NR_THREADS + 2] = {};
	struct tdx_mirror_stats stats;
	int i, level;

	if (!f)
		return check(false, __func__);
	f->resched = true;
	f->fail_err.status = STATUS_BUSY;
	for (i = 0; i < ARRAY_SIZE(threads); i++) {
		int (*fn)(void *) = i < NR_THREADS ? map_thread :
				    i == NR_THREADS ? zap_thread : walk_thread;

		threads[i] = kthread_run(fn, f, "mirror/%d", i);
		if (IS_ERR(threads[i]))
			threads[i] = NULL;
		check(threads[i], "thread");
	}
	/* Busy answers now and then, on every kind of call. */
	for (i = 0; i < 300; i++) {
		atomic_set(&f->fail[i % (CALL_REMOVE + 1)], 1);
		schedule_timeout_uninterruptible(1);
	}
	for (i = 0; i < ARRAY_SIZE(threads); i++) {
		if (threads[i])
			kthread_stop(threads[i]);
	}
	fake_no_fail(f);

	for (i = 0; i < FAKE_GFNS; i++) {
		u64 spte = test_ops->walk(f->mirror, i, &level);
		u64 leaf = atomic64_read(&f->leaf[i]);

		RULE(f, spte != TDX_MIRROR_SPTE_FROZEN);
		RULE(f, !!(spte & TDX_MIRROR_SPTE_PRESENT && level == PG_LEVEL_4K) == !!leaf);
	}
	test_ops->stats(f->mirror, &stats);
	check(stats.mapped > FAKE_GFNS / 2, "pages were mapped");
	check(stats.mapped - stats.zapped == atomic_long_read(&f->mapped_pages),
	      "mapped minus zapped is what is mapped");
	check(fake_account_ok(f), "the accounts agree");
	check(!atomic_read(&f->bugged), "VM alive");
	fake_end(f, "parallel", 0);
}

static int __init contract_test_init(void)
{
	typeof(tdx_mirror_get_ops) *getter = symbol_get(tdx_mirror_get_ops);
	typeof(tdx_mirror_get_test_ops) *test_getter;

	if (!getter) {
		pr_err("tdx_mirror is not loaded\n");
		return -ENOENT;
	}
	test_getter = symbol_get(tdx_mirror_get_test_ops);
	if (!test_getter) {
		pr_err("tdx_mirror has no entry points for tests\n");
		symbol_put(tdx_mirror_get_ops);
		return -ENOENT;
	}
	ops = getter();
	test_ops = test_getter();

	pr_info("TAP version 13\n");
	check(test_ops->size == sizeof(*test_ops) &&
	      test_ops->version == TDX_MIRROR_TEST_OPS_VERSION,
	      "size and version of the entry points for tests");
	test_first_td_is_told();
	test_warn();
	test_create_refuses_what_is_unfit();
	test_map_sets_each_leaf_once();
	test_a_map_of_the_build_has_one_try();
	test_zap();
	test_fault();
	test_files();
	test_maps_and_zaps_in_parallel();
	pr_info("1..%u\n", test_nr);
	pr_info("%u passed, %u failed\n", test_nr - failures, failures);

	symbol_put(tdx_mirror_get_test_ops);
	symbol_put(tdx_mirror_get_ops);
	return failures ? -EINVAL : 0;
}
module_init(contract_test_init);

static void __exit contract_test_exit(void)
{
}
module_exit(contract_test_exit);

MODULE_DESCRIPTION("Test of the C contract of tdx_mirror");
MODULE_LICENSE("GPL");
