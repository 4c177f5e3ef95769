// SPDX-License-Identifier: GPL-2.0
/* Zaps of ranges: their SEAMCALLs, and what is left if one of these fails. */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/gfp.h>
#include <linux/math.h>
#include <linux/mm.h>
#include <asm/pgtable_types.h>

#include "fake.h"

#define NR_PAGES	512

static void map_pages(struct fake *f, u64 start, u64 end)
{
	u64 gfn;

	for (gfn = start; gfn < end; gfn++)
		RULE(f, fake_map(f, gfn, FAKE_PFN(gfn), PG_LEVEL_4K) == TDX_MIRROR_MAP_FIXED);
}

/* Leaves that only one of mirror and external table has. */
static u64 differing_leaves(struct fake *f)
{
	int gfn, level;
	u64 differ = 0;

	for (gfn = 0; gfn < FAKE_GFNS; gfn++) {
		u64 spte = test_ops->walk(f->mirror, gfn, &level);
		u64 leaf = atomic64_read(&f->leaf[gfn]);

		RULE(f, spte != TDX_MIRROR_SPTE_FROZEN);
		differ += !!(spte & TDX_MIRROR_SPTE_PRESENT && level == PG_LEVEL_4K) != !!leaf;
	}
	return differ;
}

/* One TRACK and one kick for each batch, three SEAMCALLs for each page. */
/* Shows: R21, R49. */
static void test_zap_goes_in_batches(void)
{
	int batches = DIV_ROUND_UP(NR_PAGES, (int)zap_batch);
	struct tdx_mirror_stats stats;
	struct fake *f = fake_new();

	if (!f)
		return check(false, __func__);
	map_pages(f, 0, NR_PAGES);
	check(fake_account_ok(f), "the accounts agree with pages mapped");
	fake_mark(f);
	check(fake_zap(f, 0, NR_PAGES, false) == NR_PAGES, "zap of 512 pages");
	check(fake_calls(f, CALL_TRACK) == batches && fake_kicks(f) == batches,
	      "one TRACK and one kick in each batch");
	check(fake_seamcalls(f) == 3 * NR_PAGES + batches,
	      "BLOCK, REMOVE and WBINVD once for each page");
	test_ops->stats(f->mirror, &stats);
	check(stats.zap_batches == batches && stats.zapped == NR_PAGES,
	      "batches and leaves are counted");
	check(fake_account_ok(f), "the accounts agree after the zap");
	fake_end(f, "zap of 512 pages", 0);
}

static void test_zap_yield(void)
{
	struct fake *f = fake_new();

	if (!f)
		return check(false, __func__);
	f->resched = true;
	map_pages(f, 0, 3 * NR_PAGES + 1);
	check(fake_zap(f, 0, 3 * NR_PAGES + 1, false) == 3 * NR_PAGES + 1 &&
	      !atomic_read(&f->yields), "no yield of the lock if it is not allowed");
	map_pages(f, 0, 3 * NR_PAGES + 1);
	fake_mark(f);
	check(fake_zap(f, 0, 3 * NR_PAGES + 1, true) == 3 * NR_PAGES + 1 &&
	      atomic_read(&f->yields) >= 3 * NR_PAGES / 16 &&
	      fake_calls(f, CALL_TRACK) == atomic_read(&f->yields) + 1,
	      "a zap ends its batch and yields the lock every 16 pages while somebody waits");
	fake_teardown(f);
	/* Four tables of 4K entries and two above them: less than 16 calls. */
	check(!atomic_read(&f->yields), "a short teardown doesn't");
	fake_end(f, "yield", 0);
}

/* Before the TD is finalized: neither BLOCK, TRACK nor kick. */
static void test_zap_build(void)
{
	struct fake *f = fake_new();

	if (!f)
		return check(false, __func__);
	f->finalized = false;
	map_pages(f, 0, NR_PAGES);
	fake_mark(f);
	check(fake_zap(f, 0, NR_PAGES, false) == NR_PAGES, "zap of 512 pages while building");
	check(fake_seamcalls(f) == 2 * NR_PAGES && !fake_kicks(f),
	      "only REMOVE and WBINVD while building");
	fake_end(f, "zap while building", 0);
}

/* Busy at each step and at each place in a batch: the zap succeeds. */
/* Shows: R26, B7. */
static void test_zap_survives_busy(void)
{
	static const enum fake_call steps[] = { CALL_BLOCK, CALL_TRACK, CALL_REMOVE };
	static const int places[] = { 0, 1, NR_PAGES / 2, NR_PAGES - 1 };
	struct fake *f = fake_new();
	bool all = true;
	int i, j;

	if (!f)
		return check(false, __func__);
	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		for (j = 0; j < ARRAY_SIZE(places); j++) {
			map_pages(f, 0, NR_PAGES);
			fake_fail_at(f, steps[i], places[j], 1, STATUS_BUSY);
			all &= fake_zap(f, 0, NR_PAGES, false) == NR_PAGES && !f->held;
			fake_no_fail(f);
		}
	}
	check(all, "a step that is busy once");
	/* Every call, as long as a vCPU runs. */
	map_pages(f, 0, NR_PAGES);
	for (i = 0; i < ARRAY_SIZE(steps); i++)
		fake_fail(f, steps[i], INT_MAX, STATUS_BUSY);
	check(fake_zap(f, 0, NR_PAGES, false) == NR_PAGES && !f->held,
	      "every step busy until the vCPUs are out");
	fake_no_fail(f);
	check(!atomic_read(&f->bugged), "VM alive");
	fake_end(f, "busy zaps", 0);
}

/*
 * Step @call fails at page @place of a batch: what was not removed is
 * quarantined, and all of that is resolved at the teardown.
 */
static bool zap_error(enum fake_call call, int place, u64 status)
{
	struct fake *f = fake_new();
	struct tdx_mirror_stats stats;
	u64 zapped;
	bool ok;

	if (!f)
		return false;
	map_pages(f, 0, NR_PAGES);
	f->fail_if_held = true;
	fake_fail_at(f, call, place, 2, status);
	zapped = fake_zap(f, 0, NR_PAGES, false);
	fake_no_fail(f);
	test_ops->stats(f->mirror, &stats);
	ok = zapped < NR_PAGES && zapped + stats.quarantined == NR_PAGES &&
	     zapped == stats.zapped;
	ok &= atomic_read(&f->bugged) == 1 && !f->held;
	ok &= fake_map(f, NR_PAGES, FAKE_PFN(NR_PAGES), PG_LEVEL_4K) == -EIO;
	/* The S-EPT has what is quarantined, unless it was WBINVD that failed. */
	ok &= differing_leaves(f) == (call == CALL_WBINVD ? 0 : stats.quarantined);

	fake_mark(f);
	fake_teardown(f);
	test_ops->stats(f->mirror, &stats);
	ok &= stats.resolved == stats.quarantined && !stats.leaked;
	ok &= !differing_leaves(f);
	ok &= fake_calls(f, CALL_RECLAIM_PAGE) == (int)stats.quarantined;
	if (!ok)
		pr_err("call %d at %d: %llu zapped, %llu quarantined, %llu resolved, %llu leaked\n",
		       call, place, zapped, stats.quarantined, stats.resolved, stats.leaked);
	fake_end(f, "TD with a failed zap", 0);
	return ok;
}

/* Shows: R31, B7, B14. */
static void test_zap_error_quarantines(void)
{
	static const enum fake_call steps[] = { CALL_BLOCK, CALL_REMOVE, CALL_WBINVD };
	static const int places[] = { 0, 1, NR_PAGES / 2, NR_PAGES - 1 };
	bool busy = true, invalid = true;
	int i, j;

	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		for (j = 0; j < ARRAY_SIZE(places); j++) {
			busy &= zap_error(steps[i], places[j], STATUS_BUSY);
			invalid &= zap_error(steps[i], places[j], STATUS_INVALID);
		}
	}
	check(invalid, "each step of a batch refused");
	check(busy, "each step of a batch busy with all vCPUs out");
	check(zap_error(CALL_TRACK, 0, STATUS_INVALID), "TRACK refused");
	check(zap_error(CALL_TRACK, 0, STATUS_BUSY), "TRACK busy with all vCPUs out");
}

/* A quarantined page has a reference more until the teardown has it back. */
static void quarantine(bool resolvable)
{
	struct page *page = alloc_page(GFP_KERNEL);
	struct fake *f = fake_new();
	struct tdx_mirror_stats stats;

	if (!page || !f)
		return check(false, __func__);
	check(fake_map(f, 7, page_to_pfn(page), PG_LEVEL_4K) == TDX_MIRROR_MAP_FIXED,
	      "map of a page that has a struct page");
	fake_fail(f, CALL_REMOVE, 1, STATUS_INVALID);
	log_mark();
	check(fake_zap(f, 7, 8, false) == 0 && page_ref_count(page) == 2,
	      "a page whose removal failed is kept from the allocator");
	check(log_lines("bug, the VM ends", "TDH.MEM.PAGE.REMOVE", "0xc000010000000001") == 1,
	      "the log names operation and status");

	if (!resolvable) {
		fake_fail(f, CALL_RECLAIM_PAGE, 1, STATUS_METADATA);
		f->fail_err.ext1 = 5;
		f->fail_err.ext2 = 0x12345000;
		f->fail_err.ext3 = 1;
	}
	log_mark();
	fake_teardown(f);
	test_ops->stats(f->mirror, &stats);
	check(atomic_read(&f->calls[CALL_RECLAIM_PAGE]) == 1, "one RECLAIM of the page");
	check(stats.quarantined == 1 && stats.resolved == resolvable &&
	      stats.leaked == !resolvable, "quarantined pages are resolved or leaked");
	check(page_ref_count(page) == (resolvable ? 1 : 2),
	      resolvable ? "a resolved page is given back" : "a leaked page is not");
	check(!!log_lines("page leaked", "page type 0x5", "owner 0x12345000") == !resolvable,
	      "the log names type and owner of a leaked page");
	fake_end(f, "quarantine", 0);
	/* The reference of the quarantine of a page that no TDX module owns. */
	if (!resolvable)
		put_page(page);
	__free_page(page);
}

/* Shows: B14, B34. */
static void test_quarantine_is_resolved(void)
{
	quarantine(true);
}

/* Shows: R9, B22. */
static void test_quarantine_that_cannot_be_resolved_leaks(void)
{
	quarantine(false);
}

void test_zap(void)
{
	test_zap_goes_in_batches();
	test_zap_yield();
	test_zap_build();
	test_zap_survives_busy();
	test_zap_error_quarantines();
	test_quarantine_is_resolved();
	test_quarantine_that_cannot_be_resolved_leaks();
}
