// SPDX-License-Identifier: GPL-2.0
/* The WARN sites of the module: each fires for what it is there for, and once. */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/lockdep.h>
#include <asm/pgtable_types.h>

#include "fake.h"

/* A caller's bug: an error each time, one warning. */
/* Shows: R10, R48. */
static void test_bad_parameter_warns_once(void)
{
	struct tdx_mirror_vcpu vcpu = {};
	struct fake *f = fake_new();

	if (!f)
		return check(false, __func__);
	log_mark();
	check(fake_map(f, 1ULL << FAKE_GFN_BITS, FAKE_PFN(0), PG_LEVEL_4K) == -EINVAL &&
	      !log_warnings("tdx_mirror"), "a GFN beyond the TD's is refused silently");
	check(fake_map(f, 7, 1ULL << 40, PG_LEVEL_4K) == -EINVAL, "a PFN that no page has");
	check(log_warnings("tdx_mirror_warn_parameter") == 1, "is warned about");
	check(fake_map(f, 7, FAKE_PFN(7), PG_LEVEL_2M) == -EINVAL, "a level that is not mapped");
	check(fake_map(f, 7, FAKE_PFN(7), 6) == -EINVAL, "a level that there is not");
	check(ops->map(NULL, f, 7, FAKE_PFN(7), PG_LEVEL_4K) == -EINVAL, "no mirror");
	check(ops->fault_retry(f->mirror, NULL, 7, 0, 0) == TDX_MIRROR_EXIT, "no notes");
	check(ops->fault_done(f->mirror, NULL, 7, 0, -EFAULT) == TDX_MIRROR_EXIT, "nor here");
	check(ops->fault_retry(NULL, &vcpu, 7, 0, 0) == TDX_MIRROR_EXIT, "no mirror to retry with");
	check(ops->fault_retry(f->mirror, &vcpu, 7, 0, TDX_MIRROR_MAP_REASON) == TDX_MIRROR_EXIT &&
	      !vcpu.rounds, "a reason that there is not");
	check(log_warnings("tdx_mirror_warn_parameter") == 1, "only the first time");
	check(!atomic_read(&f->bugged) && !fake_seamcalls(f), "nothing else happened");
	fake_end(f, "bad parameters", 0);
}

static void break_td(void)
{
	struct fake *f = fake_new();

	if (!f)
		return check(false, __func__);
	fake_map(f, 5, FAKE_PFN(5), PG_LEVEL_4K);
	log_mark();
	check(fake_map(f, 5, FAKE_PFN(6), PG_LEVEL_4K) == -EIO && atomic_read(&f->bugged),
	      "another PFN bugs the VM");
	check(log_lines("bug, the VM ends", NULL, NULL) == 1, "the log says so for each VM");
	fake_end(f, "bugged VM", 0);
}

/* Runs first: another test that bugs a VM would use the one warning up. */
/* Shows: R29, R48. */
static void test_bug_of_the_vm_warns_once(void)
{
	unsigned int warnings;

	log_mark();
	break_td();
	warnings = log_warnings("tdx_mirror_warn_bug");
	break_td();
	check(warnings == 1 && !log_warnings("tdx_mirror_warn_bug"),
	      "one warning for two bugged VMs");
}

/* @status ends the reclaim of one table: one call, one leak. */
static void leak_table(u64 status)
{
	struct fake *f = fake_new();
	struct tdx_mirror_stats stats;

	if (!f)
		return check(false, __func__);
	fake_map(f, 3, FAKE_PFN(3), PG_LEVEL_4K);
	fake_fail(f, CALL_RECLAIM, 1, status);
	f->operand = OPERAND_TDR;
	f->fail_err.ext1 = 6;
	f->fail_err.ext2 = 0x54321000;
	fake_teardown(f);
	test_ops->stats(f->mirror, &stats);
	check(stats.leaked == 1 && stats.reclaim_calls == 3,
	      "a failed reclaim leaks one page and is not repeated");
	check(log_lines("page leaked", "page type 0x6", "owner 0x54321000") == 1,
	      "the log names type and owner of a leaked table");
	fake_end(f, "leak", 1);
}

/* A busy TD at a reclaim: somebody uses it after its end. */
/* Shows: R9, R11, B22. */
static void test_failed_reclaim_leaks_and_warns(void)
{
	log_mark();
	leak_table(STATUS_METADATA);
	check(!log_warnings("tdx_mirror"), "a leak alone is no warning");
	log_mark();
	leak_table(STATUS_BUSY);
	check(log_warnings("tdx_mirror_warn_reclaim_busy") == 1, "a busy TD at a reclaim is one");
	log_mark();
	leak_table(STATUS_BUSY);
	check(!log_warnings("tdx_mirror_warn_reclaim_busy"), "only the first time");
}

/* As after a machine check in the TD's memory: each call on the TD is answered so. */
/* Shows: B33, B34. */
static void test_end_of_a_td_is_no_bug(void)
{
	struct fake *f = fake_new();
	struct tdx_mirror_stats stats;
	int i;

	if (!f)
		return check(false, __func__);
	for (i = 0; i < 100; i++)
		fake_map(f, i, FAKE_PFN(i), PG_LEVEL_4K);
	fake_fail(f, CALL_BLOCK, 100, STATUS_TD_FATAL);
	log_mark();
	check(!fake_zap(f, 0, 100, true) && fake_map(f, 7, FAKE_PFN(7), PG_LEVEL_4K) == -EIO,
	      "a TD that has ended gives no page up");
	check(atomic_read(&f->bugged) == 1, "one request to all vCPUs for 100 pages");
	f->resched = true;
	fake_teardown(f);
	check(atomic_read(&f->yields) == (100 + 3) / 16,
	      "the end of quarantined pages yields the lock every 16 calls");
	check(log_lines("the TDX module has ended the TD", "TD_FATAL", NULL) == 1 &&
	      !log_lines("report this line", NULL, NULL) && !log_warnings("tdx_mirror"),
	      "one line in the log, and no warning");
	test_ops->stats(f->mirror, &stats);
	check(stats.quarantined == 100 && stats.resolved == 100 && !stats.leaked,
	      "all is given back");
	fake_end(f, "TD that has ended", 0);
}

static void shut_down(void)
{
	struct fake *f = fake_new();
	struct tdx_mirror_stats stats;

	if (!f)
		return check(false, __func__);
	fake_map(f, 3, FAKE_PFN(3), PG_LEVEL_4K);
	fake_fail(f, CALL_BLOCK, 1, STATUS_SHUTDOWN);
	check(!fake_zap(f, 3, 4, true) && atomic_read(&f->bugged) == 1, "the VM ends");
	fake_fail(f, CALL_RECLAIM_PAGE, 1, STATUS_SHUTDOWN);
	fake_teardown(f);
	test_ops->stats(f->mirror, &stats);
	check(stats.quarantined == 1 && stats.leaked == 1, "what it had stays with the TDX module");
	fake_end(f, "shut down", 0);
}

/* Shows: B33, B34. */
static void test_shutdown_is_said_once(void)
{
	log_mark();
	shut_down();
	shut_down();
	check(log_lines("the TDX module was shut down", NULL, NULL) == 1 &&
	      !log_lines("report this line", NULL, NULL) && !log_warnings("tdx_mirror"),
	      "one line in the log for two TDs, and no warning");
}

#ifdef CONFIG_PROVE_LOCKING
/* A map of a mapped page and a zap of nothing reach no hook. */
/* Shows: R48. */
static void test_missing_lock_warns(void)
{
	struct fake *f = fake_new();

	if (!f)
		return check(false, __func__);
	fake_map(f, 1, FAKE_PFN(1), PG_LEVEL_4K);
	log_mark();
	check(ops->map(f->mirror, f, 1, FAKE_PFN(1), PG_LEVEL_4K) == TDX_MIRROR_MAP_SPURIOUS,
	      "a map without mmu_lock");
	check(log_warnings("tdx_mirror_assert_held_read") == 1, "is warned about");
	read_lock(&f->mmu_lock);
	check(!ops->zap_range(f->mirror, 2, 3, false), "a zap with mmu_lock held for read");
	read_unlock(&f->mmu_lock);
	check(log_warnings("tdx_mirror_assert_held_write") == 1, "is warned about");
	fake_end(f, "locks", 0);
}
#else
static void test_missing_lock_warns(void)
{
}
#endif

void test_warn(void)
{
	test_bad_parameter_warns_once();
	test_bug_of_the_vm_warns_once();
	test_failed_reclaim_leaks_and_warns();
	test_end_of_a_td_is_no_bug();
	test_shutdown_is_said_once();
	test_missing_lock_warns();
}
