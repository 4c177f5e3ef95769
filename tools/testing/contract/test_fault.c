// SPDX-License-Identifier: GPL-2.0
/* Faults under contention, the debts they leave, and busy VP.ENTERs. */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/string.h>
#include <asm/pgtable_types.h>

#include "fake.h"

/* More rounds than any policy may ask for. */
#define ROUNDS_MAX	100000

static bool policy_is(const char *name)
{
	return !strcmp(policy, name);
}

/*
 * A fault at @gfn that KVM repeats for as long as it is told to.  Counts the
 * answers TDX_MIRROR_AGAIN in *@rounds.
 */
static u32 fault(struct fake *f, struct tdx_mirror_vcpu *vcpu, u64 gfn,
		 u32 conditions, int *rounds)
{
	u32 action;

	for (*rounds = 0; *rounds < ROUNDS_MAX; (*rounds)++) {
		int ret = fake_map(f, gfn, FAKE_PFN(gfn), PG_LEVEL_4K);

		if (!is_retry(ret)) {
			RULE(f, ret == TDX_MIRROR_MAP_FIXED || ret == TDX_MIRROR_MAP_SPURIOUS);
			return ops->fault_done(f->mirror, vcpu, gfn, 0, ret);
		}
		action = ops->fault_retry(f->mirror, vcpu, gfn, conditions,
					  ret & TDX_MIRROR_MAP_REASON);
		if (action != TDX_MIRROR_AGAIN)
			return action;
	}
	return TDX_MIRROR_AGAIN;
}

/* Shows: R4, R14, B6. */
static void test_tries_of_a_fault_are_bounded(void)
{
	struct fake *f = fake_new();
	int k, level;

	if (!f)
		return check(false, __func__);

	fake_fail(f, CALL_LINK, INT_MAX, STATUS_BUSY);
	check(fake_map(f, 1, FAKE_PFN(1), PG_LEVEL_4K) == TDX_MIRROR_RETRY_SEPT_TREE,
	      "SEPT.ADD busy for ever");
	check(!atomic_read(&f->ext_spt) && fake_account_ok(f),
	      "the pages for the table went back");
	fake_no_fail(f);
	fake_fail(f, CALL_SET, INT_MAX, STATUS_BUSY);
	fake_mark(f);
	check(fake_map(f, 1, FAKE_PFN(1), PG_LEVEL_4K) == TDX_MIRROR_RETRY_SEPT_TREE,
	      "PAGE.AUG busy for ever");
	check(fake_calls(f, CALL_SET) == FAULT_TRIES, "exactly the budget of tries");
	check(test_ops->walk(f->mirror, 1, &level) == TDX_MIRROR_SPTE_NONPRESENT,
	      "nothing stays frozen");
	for (k = 0; k < FAULT_TRIES; k++) {
		fake_fail(f, CALL_SET, k, STATUS_BUSY);
		check(fake_map(f, 10 + k, FAKE_PFN(10 + k), PG_LEVEL_4K) == TDX_MIRROR_MAP_FIXED,
		      "fewer busy answers than tries");
	}
	/* Something else than is known to be locked there. */
	f->operand = OPERAND_TDR;
	fake_fail(f, CALL_SET, INT_MAX, STATUS_BUSY);
	fake_mark(f);
	check(fake_map(f, 1, FAKE_PFN(1), PG_LEVEL_4K) == TDX_MIRROR_RETRY_OTHER &&
	      fake_calls(f, CALL_SET) == FAULT_TRIES, "the same budget for any operand");
	fake_fail(f, CALL_SET, FAULT_TRIES - 1, STATUS_BUSY);
	check(fake_map(f, 1, FAKE_PFN(1), PG_LEVEL_4K) == TDX_MIRROR_MAP_FIXED &&
	      !atomic_read(&f->bugged), "which ends as any contention does");
	fake_end(f, "budget of a fault", 0);
}

/* Shows: R13, B3, B4, B5, B32. */
static void test_local_retry_is_bounded(void)
{
	static const u32 leave[] = { TDX_MIRROR_FAULT_SIGNAL, TDX_MIRROR_FAULT_EVENT,
				     TDX_MIRROR_FAULT_SLOT_GONE };
	struct tdx_mirror_vcpu vcpu = {};
	struct tdx_mirror_stats stats;
	struct fake *f = fake_new();
	bool all = true;
	int i, rounds;

	if (!f)
		return check(false, __func__);
	fake_map(f, 0, FAKE_PFN(0), PG_LEVEL_4K);
	fake_fail(f, CALL_SET, INT_MAX, STATUS_BUSY);
	fake_mark(f);
	check(fault(f, &vcpu, 1, 0, &rounds) == TDX_MIRROR_ENTER && rounds == LOCAL_ROUNDS,
	      "a fault that stays contended enters after its local rounds");
	check(fake_calls(f, CALL_SET) == (LOCAL_ROUNDS + 1) * FAULT_TRIES && !vcpu.held,
	      "and has had its budget in each");
	for (i = 0; i < ARRAY_SIZE(leave); i++)
		all &= fault(f, &vcpu, 1, leave[i], &rounds) == TDX_MIRROR_ENTER && !rounds;
	check(all, "a vCPU with something else to do enters at once");

	check(fault(f, &vcpu, 1, TDX_MIRROR_FAULT_PREFAULT, &rounds) == TDX_MIRROR_EXIT &&
	      rounds == LOCAL_ROUNDS, "a prefault exits after the same rounds");
	for (i = 0; i < ARRAY_SIZE(leave); i++) {
		u32 now = TDX_MIRROR_FAULT_PREFAULT | leave[i];

		if (leave[i] != TDX_MIRROR_FAULT_EVENT)
			all &= fault(f, &vcpu, 1, now, &rounds) == TDX_MIRROR_EXIT && !rounds;
	}
	check(all, "or at once if nobody can wait for it");
	check(fault(f, &vcpu, 1, TDX_MIRROR_FAULT_VM_DEAD, &rounds) == TDX_MIRROR_KILL && !rounds,
	      "a dead VM");

	fake_no_fail(f);
	fake_fail(f, CALL_SET, 3 * FAULT_TRIES, STATUS_BUSY);
	check(fault(f, &vcpu, 1, 0, &rounds) == TDX_MIRROR_ENTER && rounds == 3 && !vcpu.rounds,
	      "a fault whose contention ends is served");
	test_ops->stats(f->mirror, &stats);
	check(stats.local_retries == 2 * LOCAL_ROUNDS + 3 && stats.local_giveups == 8 &&
	      !stats.held, "rounds and giveups are counted");
	check(!atomic_read(&f->bugged), "VM alive");
	fake_end(f, "local retry", 0);
}

/* A retry says why, and what KVM hands back changes no answer. */
/* Shows: R4. */
static void test_retry_says_why(void)
{
	static const u32 reasons[] = {
		TDX_MIRROR_RETRY_INVALIDATION, TDX_MIRROR_RETRY_FROZEN,
		TDX_MIRROR_RETRY_NO_PAGE, TDX_MIRROR_RETRY_SEPT_TREE,
		TDX_MIRROR_RETRY_SEPT_ENTRY, TDX_MIRROR_RETRY_TD_EPOCH,
		TDX_MIRROR_RETRY_PREVIOUS_EPOCH, TDX_MIRROR_RETRY_TDR,
		TDX_MIRROR_RETRY_OTHER,
	};
	struct fake *f = fake_new();
	bool all = true;
	int i;

	if (!f)
		return check(false, __func__);
	f->no_page = true;
	check(fake_map(f, 1, FAKE_PFN(1), PG_LEVEL_4K) == TDX_MIRROR_RETRY_NO_PAGE,
	      "a map without a page for its tables");
	f->no_page = false;
	f->meet = true;
	check(fake_map(f, 1, FAKE_PFN(1), PG_LEVEL_4K) == TDX_MIRROR_MAP_FIXED &&
	      f->met == TDX_MIRROR_RETRY_FROZEN, "a map that meets another one");

	for (i = 0; i < ARRAY_SIZE(reasons); i++) {
		struct tdx_mirror_vcpu vcpu = {};

		all &= ops->fault_retry(f->mirror, &vcpu, 2, 0, reasons[i]) == TDX_MIRROR_AGAIN &&
		       vcpu.rounds + vcpu.waits == 1;
	}
	check(all, "each reason that there is");
	check(!atomic_read(&f->bugged), "VM alive");
	fake_end(f, "reasons", 0);
}

/* Near the zero-step threshold a vCPU does not enter before it is served. */
/* Shows: R7, R8, R16. */
static void test_a_vcpu_near_the_threshold_is_held(void)
{
	static const u32 leave[] = { TDX_MIRROR_FAULT_SIGNAL, TDX_MIRROR_FAULT_SLOT_GONE };
	struct tdx_mirror_vcpu vcpu = {}, other = {};
	struct tdx_mirror_stats stats;
	struct fake *f = fake_new();
	bool all = true;
	int i, rounds;

	if (!f)
		return check(false, __func__);
	fake_fail(f, CALL_SET, INT_MAX, STATUS_BUSY);
	vcpu.faults = MAX_ENTERS - 1;
	vcpu.repeats = vcpu.faults;
	check(fault(f, &vcpu, 1, TDX_MIRROR_FAULT_EVENT, &rounds) == TDX_MIRROR_ENTER,
	      "one fault before the limit a vCPU still enters");
	vcpu.faults = MAX_ENTERS;
	vcpu.repeats = vcpu.faults;
	check(fault(f, &vcpu, 1, TDX_MIRROR_FAULT_EVENT, &rounds) == TDX_MIRROR_ENTER &&
	      !rounds && !vcpu.held, "at the limit it enters once more for an event");
	for (i = 0; i < ARRAY_SIZE(leave); i++)
		all &= fault(f, &vcpu, 1, leave[i], &rounds) == TDX_MIRROR_EXIT && !rounds &&
		       vcpu.held && vcpu.gfn == 1;
	check(all, "at the limit it exits instead, and is held");
	ops->fault_done(f->mirror, &vcpu, 2, 0, TDX_MIRROR_MAP_FIXED);
	check(vcpu.held, "another GFN's end does not let it go");
	check(fault(f, &other, 1, 0, &rounds) == TDX_MIRROR_ENTER && !other.held,
	      "no other vCPU is held");

	if (policy_is("kill")) {
		log_mark();
		check(fault(f, &vcpu, 1, 0, &rounds) == TDX_MIRROR_KILL && rounds == HOLD_ROUNDS,
		      "the policy ends a VM whose vCPU makes no progress");
		check(atomic_read(&f->bugged), "VM bugged");
		check(log_lines("vp_enter_policy=kill", NULL, NULL) == 1, "the log says why");
	} else {
		check(fault(f, &vcpu, 1, 0, &rounds) == TDX_MIRROR_EXIT && rounds == HOLD_ROUNDS,
		      "a held vCPU leaves after a bounded number of rounds");
		check(vcpu.held && !atomic_read(&f->bugged), "still held, VM alive");
		fake_no_fail(f);
		check(fault(f, &vcpu, 1, 0, &rounds) == TDX_MIRROR_ENTER && !rounds && !vcpu.held,
		      "its fault is served, it may enter");
	}
	fake_no_fail(f);
	test_ops->stats(f->mirror, &stats);
	check(stats.held == 1 && stats.killed == policy_is("kill"), "one hold is counted");
	fake_end(f, "hold", 0);
}

/* As long as KVM answers that an invalidation is under way. */
static u32 wait_out(struct fake *f, struct tdx_mirror_vcpu *vcpu, u32 conditions, int *rounds)
{
	u32 action = TDX_MIRROR_AGAIN;

	for (*rounds = 0; *rounds < ROUNDS_MAX; (*rounds)++) {
		action = ops->fault_retry(f->mirror, vcpu, 1, conditions,
					  TDX_MIRROR_RETRY_INVALIDATION);
		if (action != TDX_MIRROR_AGAIN)
			break;
	}
	return action;
}

/* An invalidation, even one elsewhere, is no contention: no VM ends for it. */
/* Shows: R13, R16. */
static void test_an_invalidation_costs_no_entry(void)
{
	struct tdx_mirror_vcpu vcpu = {};
	struct tdx_mirror_stats stats;
	struct fake *f = fake_new();
	bool all = true;
	int i, rounds;

	if (!f)
		return check(false, __func__);
	for (i = 0; i < 2 * MAX_ENTERS; i++) {
		all &= wait_out(f, &vcpu, 0, &rounds) == TDX_MIRROR_EXIT && vcpu.held &&
		       rounds == WAIT_ROUNDS;
		all &= wait_out(f, &vcpu, TDX_MIRROR_FAULT_PREFAULT, &rounds) == TDX_MIRROR_EXIT &&
		       rounds == WAIT_ROUNDS;
		vcpu.faults++;
		vcpu.repeats++;
	}
	check(all, "a vCPU returns within bounds and is not entered in vain");
	vcpu.faults = MAX_ENTERS;
	vcpu.repeats = vcpu.faults;
	check(wait_out(f, &vcpu, TDX_MIRROR_FAULT_EVENT, &rounds) == TDX_MIRROR_ENTER &&
	      !rounds && !vcpu.held, "a new event is injected");
	vcpu.faults = ZERO_STEP_THRESHOLD;
	vcpu.repeats = vcpu.faults;
	check(wait_out(f, &vcpu, TDX_MIRROR_FAULT_EVENT, &rounds) == TDX_MIRROR_EXIT &&
	      vcpu.held, "unless the TDX module could list the page then");
	vcpu.accept = true;
	check(wait_out(f, &vcpu, TDX_MIRROR_FAULT_EVENT, &rounds) == TDX_MIRROR_ENTER &&
	      !rounds, "which an ACCEPT cannot bring about");
	test_ops->stats(f->mirror, &stats);
	check(!stats.killed && !atomic_read(&f->bugged), "VM alive, whatever the policy");
	fake_end(f, "invalidation", 0);
}

/* Userspace that runs a vCPU without adding its page, and the end of that. */
/* Shows: R16, R36. */
static void test_an_unresolved_fault_is_held(void)
{
	struct tdx_mirror_vcpu vcpu = { .faults = MAX_ENTERS - 1, .repeats = MAX_ENTERS - 1 };
	struct fake *f = fake_new();
	bool all = true;
	int i;

	if (!f)
		return check(false, __func__);
	log_mark();
	check(ops->fault_done(f->mirror, &vcpu, 9, 0, -EFAULT) == TDX_MIRROR_EXIT && !vcpu.held,
	      "a fault that ends in an error");
	vcpu.faults = MAX_ENTERS;
	vcpu.repeats = vcpu.faults;
	for (i = 0; i < 10; i++)
		all &= ops->fault_done(f->mirror, &vcpu, 9, 0, -EFAULT) == TDX_MIRROR_EXIT &&
		       vcpu.held && vcpu.gfn == 9;
	check(all, "near the threshold it is to be served before the vCPU enters");
	check(ops->fault_done(f->mirror, &vcpu, 9, TDX_MIRROR_FAULT_EVENT, -EFAULT) ==
	      TDX_MIRROR_ENTER && !vcpu.held, "unless there is an event");
	check(!log_lines("keeps a vCPU out", NULL, NULL), "nothing to say");
	vcpu.faults = ZERO_STEP_THRESHOLD + 1;
	vcpu.repeats = vcpu.faults;
	for (i = 0; i < 10; i++)
		ops->fault_done(f->mirror, &vcpu, 9, 0, TDX_MIRROR_MAP_SPURIOUS);
	check(log_lines("keeps a vCPU out", "gfn 0x9", "another vCPU accepts") == 1,
	      "one line on a vCPU that does not get in");
	check(!log_warnings("tdx_mirror"), "no warning");
	check(!atomic_read(&f->bugged), "VM alive");
	fake_end(f, "unresolved fault", 0);
}

/* Who gives up on an entry's lock leaves a mark that somebody has to clear. */
/* Shows: R15. */
static void test_a_mark_is_owed_until_it_is_cleared(void)
{
	struct tdx_mirror_vcpu vcpu = {};
	struct tdx_mirror_stats stats;
	struct fake *f = fake_new();
	int rounds;

	if (!f)
		return check(false, __func__);
	f->operand = OPERAND_RCX;
	fake_map(f, 0, FAKE_PFN(0), PG_LEVEL_4K);

	/* The mark can be cleared at once. */
	fake_fail(f, CALL_SET, FAULT_TRIES, STATUS_BUSY);
	check(fake_map(f, 1, FAKE_PFN(1), PG_LEVEL_4K) == TDX_MIRROR_RETRY_SEPT_ENTRY,
	      "an entry that stays locked");
	check(atomic_read(&f->calls[CALL_READ]) && !test_bit(1, f->mark), "its mark is cleared");

	/* Not at once, but by the next try. */
	fake_fail(f, CALL_SET, FAULT_TRIES, STATUS_BUSY);
	fake_fail(f, CALL_READ, INT_MAX, STATUS_BUSY);
	check(fake_map(f, 2, FAKE_PFN(2), PG_LEVEL_4K) == TDX_MIRROR_RETRY_SEPT_ENTRY &&
	      test_bit(2, f->mark), "a mark that cannot be cleared yet");
	test_ops->stats(f->mirror, &stats);
	check(stats.debts == stats.debts_paid + stats.debts_lost + 1, "is a debt");
	check(ops->fault_retry(f->mirror, &vcpu, 2, TDX_MIRROR_FAULT_SIGNAL,
			       TDX_MIRROR_RETRY_SEPT_ENTRY) == TDX_MIRROR_AGAIN,
	      "and a reason to try again even with a signal pending");
	fake_no_fail(f);
	check(fault(f, &vcpu, 2, TDX_MIRROR_FAULT_SIGNAL, &rounds) == TDX_MIRROR_ENTER &&
	      !test_bit(2, f->mark), "which clears it");

	/* By whoever maps or zaps next. */
	fake_fail(f, CALL_SET, FAULT_TRIES, STATUS_BUSY);
	fake_fail(f, CALL_READ, INT_MAX, STATUS_BUSY);
	fake_map(f, 3, FAKE_PFN(3), PG_LEVEL_4K);
	fake_no_fail(f);
	fake_zap(f, 0, 1, false);
	check(!test_bit(3, f->mark), "a zap pays what is owed");
	test_ops->stats(f->mirror, &stats);
	check(stats.debts == stats.debts_paid && !stats.debts_lost, "all debts are paid");

	/* Never: bounded all the same. */
	fake_fail(f, CALL_SET, INT_MAX, STATUS_BUSY);
	fake_fail(f, CALL_READ, INT_MAX, STATUS_BUSY);
	check(fault(f, &vcpu, 4, TDX_MIRROR_FAULT_SIGNAL, &rounds) == TDX_MIRROR_ENTER &&
	      rounds == LOCAL_ROUNDS, "a mark that stays does not keep the vCPU");
	fake_no_fail(f);
	check(!atomic_read(&f->bugged), "VM alive");
	fake_end(f, "debts", 0);
}

/* A VP.ENTER that finds the S-EPT busy is a bug, to be met as the policy says. */
/* Shows: R6, B31. */
static void test_busy_of_vp_enter_is_a_bug(void)
{
	struct tdx_mirror_vcpu vcpu = {};
	struct tdx_mirror_stats stats;
	struct fake *f = fake_new();
	u32 first, second;

	if (!f)
		return check(false, __func__);
	log_mark();
	check(ops->vp_enter_busy(f->mirror, &vcpu, STATUS_BUSY | OPERAND_TD_EPOCH) ==
	      TDX_MIRROR_ENTER, "the epoch may be busy for a VP.ENTER");
	test_ops->stats(f->mirror, &stats);
	check(!stats.vp_enter_busy && stats.vp_enter_busy_other == 1, "counted apart");
	check(!log_warnings("tdx_mirror_warn_vp_enter"), "no warning");

	first = ops->vp_enter_busy(f->mirror, &vcpu, STATUS_BUSY | OPERAND_SEPT_TREE);
	second = ops->vp_enter_busy(f->mirror, &vcpu, STATUS_BUSY | OPERAND_SEPT_TREE);
	test_ops->stats(f->mirror, &stats);
	check(stats.vp_enter_busy == 2, "a busy S-EPT is counted each time");
	if (policy_is("kill")) {
		check(first == TDX_MIRROR_KILL && second == TDX_MIRROR_KILL, "the VM ends");
		check(atomic_read(&f->bugged) && stats.killed == 1, "VM bugged");
		check(log_lines("vp_enter_policy=kill", NULL, NULL) == 1, "the log says why");
	} else {
		check(first == TDX_MIRROR_ENTER && second == TDX_MIRROR_ENTER, "the vCPU enters");
		check(!atomic_read(&f->bugged) && !stats.killed, "VM alive");
	}
	check(log_warnings("tdx_mirror_warn_vp_enter") == policy_is("warn") &&
	      log_lines("TDH.VP.ENTER found the S-EPT busy", NULL, NULL) == policy_is("warn"),
	      "one warning and one line for two busy answers, if the policy asks for them");
	fake_end(f, "busy VP.ENTER", 0);
}

/* Faults that the guest or its userspace causes by itself are no bug of the host. */
/* Shows: R36. */
static void test_busy_by_the_guest_is_no_bug(void)
{
	struct tdx_mirror_vcpu vcpu = { .faults = ZERO_STEP_THRESHOLD + 1 };
	struct tdx_mirror_stats stats;
	struct fake *f = fake_new();

	if (!f)
		return check(false, __func__);
	log_mark();
	ops->vp_enter_busy(f->mirror, &vcpu, STATUS_BUSY | OPERAND_SEPT_TREE);
	test_ops->stats(f->mirror, &stats);
	check(stats.vp_enter_busy == 1, "counted");
	check(log_lines("TDH.VP.ENTER found the S-EPT busy", NULL, NULL) == policy_is("warn"),
	      "a line, if the policy asks for it");
	check(!log_warnings("tdx_mirror_warn_vp_enter"), "but no warning");
	check(vcpu.faults == ZERO_STEP_THRESHOLD + 1, "KVM's count is KVM's");
	fake_end(f, "busy VP.ENTER of the guest", 0);
}

void test_fault(void)
{
	test_tries_of_a_fault_are_bounded();
	test_local_retry_is_bounded();
	test_retry_says_why();
	test_a_vcpu_near_the_threshold_is_held();
	test_an_invalidation_costs_no_entry();
	test_an_unresolved_fault_is_held();
	test_a_mark_is_owed_until_it_is_cleared();
	/* First, while the one warning since load is still to come. */
	test_busy_by_the_guest_is_no_bug();
	test_busy_of_vp_enter_is_a_bug();
}
