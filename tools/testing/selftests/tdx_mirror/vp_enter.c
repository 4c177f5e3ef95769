// SPDX-License-Identifier: GPL-2.0
/*
 * TDH.VP.ENTER that answers busy: whoever waits for the vCPU to leave the guest
 * is served, and a busy S-EPT is told from other contention and acted upon.  And one
 * that does not enter, because the TDX module suspects single steps.
 */
#include <errno.h>
#include <unistd.h>

#include "test.h"

#define PAGES	8ull

/* Answers of TDH.VP.ENTER that a test injects. */
#define TIMES	4

TD_FIXTURE(vp_enter);

static int build_running(struct td *td, unsigned int vcpus)
{
	const struct td_config config = { .nr_vcpus = vcpus };
	struct td_vcpu *vcpu = &td->vcpu[0];
	int ret = td_build(td, &config);

	if (ret)
		return ret;
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 1);
	ret = td_ops_run(vcpu);
	td_ops_clear(vcpu);
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, PAGES, 1);
	return ret;
}

static void requesters(struct __test_metadata *_metadata, struct td *td,
		       __u64 operand)
{
	struct td_vcpu *vcpu = &td->vcpu[0];
	struct td_calls before;
	int turn;

	/* The vCPU goes round in vain while others need all vCPUs out. */
	ASSERT_TD_OK(td, build_running(td, 2));
	td_calls_read(&before);
	ASSERT_EQ(0, td_fail(TD_VP_ENTER, "every 1", TD_OPERAND_BUSY | operand));
	ASSERT_EQ(0, td_vcpu_start(vcpu));
	EXPECT_TRUE(td_wait_busy(&before, 10));
	for (turn = 0; turn < 4; turn++) {
		__u64 gpa = TD_RAM_GPA + 64 * TD_PAGE;

		ASSERT_TD_OK(td, td_prefault(&td->vcpu[1], gpa, 4 * TD_PAGE, NULL));
		ASSERT_TD_OK(td, td_punch_hole(td, 0, 64 * TD_PAGE, 4 * TD_PAGE));
		ASSERT_TD_OK(td, td_set_private(td, gpa, 4 * TD_PAGE, false));
		ASSERT_TD_OK(td, td_set_private(td, gpa, 4 * TD_PAGE, true));
	}
	td_inject_clear();
	ASSERT_TD_OK(td, td_ops_join(vcpu));
}

/* Shows: B24. */
TEST_F(vp_enter, requester_is_served_while_the_epoch_is_busy)
{
	REQUIRE(NEEDS_EMULATOR);
	requesters(_metadata, &self->td, TD_OP_EPOCH);
}

/* Shows: B24. */
TEST_F(vp_enter, a_signal_ends_it)
{
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	struct td_calls before;

	REQUIRE(NEEDS_EMULATOR);
	ASSERT_TD_OK(&self->td, build_running(&self->td, 1));
	td_calls_read(&before);
	ASSERT_EQ(0, td_fail(TD_VP_ENTER, "every 1", TD_OPERAND_BUSY | TD_OP_EPOCH));
	ASSERT_EQ(0, td_vcpu_start(vcpu));
	EXPECT_TRUE(td_wait_busy(&before, 10));
	td_vcpu_cancel(vcpu);
	EXPECT_EQ(TD_EXIT_CANCELLED, td_vcpu_join(vcpu));
	td_inject_clear();
	vcpu->cancel = false;
	vcpu->block->stop = 0;
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
}

/* Shows: R6, B31. */
TEST_F(vp_enter, other_operands_are_counted_apart)
{
	static const __u64 operand[] = { TD_OP_EPOCH, TD_OP_RCX, TD_OP_TDR };
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	__u64 before, other;
	unsigned int i;
	bool found;

	REQUIRE(NEEDS_EMULATOR | NEEDS_MIRROR);
	ASSERT_TD_OK(&self->td, build_running(&self->td, 1));
	for (i = 0; i < ARRAY_SIZE(operand); i++) {
		before = td_counter(TD_MIRROR_STATS, "vp_enter_busy", &found);
		other = td_counter(TD_MIRROR_STATS, "vp_enter_busy_other", &found);
		ASSERT_EQ(0, td_fail_times(TD_VP_ENTER, TIMES,
					   TD_OPERAND_BUSY | operand[i]));
		ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
		EXPECT_EQ(before, td_counter(TD_MIRROR_STATS, "vp_enter_busy", &found));
		EXPECT_EQ(other + TIMES,
			  td_counter(TD_MIRROR_STATS, "vp_enter_busy_other", &found));
	}
}

/* Shows: R6, R7, B31. */
TEST_F(vp_enter, busy_s_ept_and_the_policy)
{
	const char *policy = td_param("vp_enter_policy", "warn");
	bool kill = !strcmp(policy, "kill"), warn = !strcmp(policy, "warn");
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	__u64 before, killed;
	bool found;

	REQUIRE(NEEDS_EMULATOR | NEEDS_MIRROR | NEEDS_KLOG);
	TH_LOG("vp_enter_policy=%s", policy);
	ASSERT_TD_OK(&self->td, build_running(&self->td, 1));
	before = td_counter(TD_MIRROR_STATS, "vp_enter_busy", &found);
	killed = td_counter(TD_MIRROR_STATS, "killed", &found);
	ASSERT_EQ(0, td_klog_begin("TDH.VP.ENTER finds the S-EPT busy"));
	ASSERT_EQ(0, td_fail_times(TD_VP_ENTER, TIMES, TD_OPERAND_BUSY | TD_OP_SEPT_TREE));
	if (kill) {
		/* The first one ends the VM, for good and for all of its vCPUs. */
		EXPECT_EQ(-EIO, td_vcpu_enter(vcpu));
		td_inject_clear();
		EXPECT_EQ(-EIO, td_vcpu_enter(vcpu));
		EXPECT_EQ(-EIO, td_prefault_once(vcpu, TD_RAM_GPA, TD_PAGE));
	} else {
		EXPECT_TD_OK(&self->td, td_ops_run(vcpu));
	}
	EXPECT_EQ(before + (kill ? 1 : TIMES),
		  td_counter(TD_MIRROR_STATS, "vp_enter_busy", &found));
	EXPECT_EQ(killed + kill, td_counter(TD_MIRROR_STATS, "killed", &found));
	td_destroy(&self->td);
	/* Reported once, however often it happens; a VM that ends says why. */
	EXPECT_EQ(kill, td_klog_count("as vp_enter_policy=kill says"));
	EXPECT_EQ(warn, td_klog_count("found the S-EPT busy, report this line"));
	EXPECT_EQ(warn, td_klog_end());
}

/* Shows: R7. */
TEST_F(vp_enter, strict_policy_at_the_threshold)
{
	const char *policy = td_param("vp_enter_policy", "warn");
	bool kill = !strcmp(policy, "kill");
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	__u64 killed;
	bool found;

	/* One GPA, five entries, no progress: the sixth is the TDX module's limit. */
	REQUIRE(NEEDS_EMULATOR | NEEDS_MIRROR | NEEDS_EXITS);
	TH_LOG("vp_enter_policy=%s", policy);
	ASSERT_TD_OK(&self->td, build_running(&self->td, 1));
	killed = td_counter(TD_MIRROR_STATS, "killed", &found);
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA + 64 * TD_PAGE, 1, 0);
	ASSERT_EQ(0, td_fail(TD_PAGE_AUG, "every 1", TD_OPERAND_BUSY | TD_OP_RCX));
	ASSERT_EQ(0, td_exits_start());
	EXPECT_EQ(kill ? -EIO : -EAGAIN, td_vcpu_enter(vcpu));
	EXPECT_EQ(5, td_ept_violations());
	EXPECT_EQ(killed + kill, td_counter(TD_MIRROR_STATS, "killed", &found));
	td_inject_clear();
	EXPECT_EQ(kill ? -EIO : 0, td_ops_run(vcpu));
}

/* EPT violations at one RIP until the TDX module lists the page. */
#define LISTED	7

/*
 * A VMM that runs the vCPU again and again before it adds the page: the TDX module
 * is not asked in vain as often as would have it list the page.
 */
/* Shows: R13, R16. */
TEST_F(vp_enter, a_vmm_answers_late)
{
	const __u64 gpa = TD_RAM_GPA + 64 * TD_PAGE;
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	struct td_calls before;
	unsigned int i;

	REQUIRE(NEEDS_EMULATOR | NEEDS_MIRROR | NEEDS_EXITS);
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	ASSERT_TD_OK(&self->td, td_set_private(&self->td, gpa, TD_PAGE, false));
	td_op(vcpu, GUEST_TOUCH, gpa, 1, 0)->flags = GUEST_FLAG_WRITE;
	ASSERT_EQ(0, td_exits_start());
	td_calls_read(&before);
	for (i = 0; i < 4 * LISTED; i++) {
		ASSERT_EQ(TD_EXIT_MEMORY_FAULT, td_vcpu_run(vcpu));
		ASSERT_EQ(gpa, vcpu->fault_gpa & ~(TD_PAGE - 1));
	}
	EXPECT_EQ(LISTED - 2, td_ept_violations());
	ASSERT_TD_OK(&self->td, td_set_private(&self->td, gpa, TD_PAGE, true));
	EXPECT_TD_OK(&self->td, td_ops_run(vcpu));
	EXPECT_EQ(1, td_calls_since(&before, TD_PAGE_AUG));
}

/*
 * The TDX module lets a vCPU in again when the listed page is accepted.  KVM can only
 * map it, which changes nothing: the exit comes back without an entry, for ever.
 */
/* Shows: R13. */
TEST_F(vp_enter, shut_out_until_another_vcpu_accepts)
{
	const struct td_config config = { .nr_vcpus = 2 };
	struct td_vcpu *vcpu = &self->td.vcpu[0], *other = &self->td.vcpu[1];
	const __u64 gpa = TD_RAM_GPA + 64 * TD_PAGE;
	struct td_calls before, now;
	unsigned int i;

	REQUIRE(NEEDS_EMULATOR);
	if (!td_needs(NEEDS_MIRROR))
		SKIP(return, "tdx_mirror does not let it come to that: a_vmm_answers_late");
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_TD_OK(&self->td, td_set_private(&self->td, gpa, TD_PAGE, false));
	td_op(vcpu, GUEST_TOUCH, gpa, 1, 0)->flags = GUEST_FLAG_WRITE;
	for (i = 0; i < LISTED; i++) {
		ASSERT_EQ(TD_EXIT_MEMORY_FAULT, td_vcpu_run(vcpu));
		ASSERT_EQ(gpa, vcpu->fault_gpa & ~(TD_PAGE - 1));
	}
	/* Too late. */
	ASSERT_TD_OK(&self->td, td_set_private(&self->td, gpa, TD_PAGE, true));
	td_calls_read(&before);
	ASSERT_EQ(0, td_vcpu_start(vcpu));
	for (i = 0; i < 2000; i++) {
		td_calls_read(&now);
		if (now.leaf[TD_VP_ENTER] - before.leaf[TD_VP_ENTER] > 100)
			break;
		usleep(1000);
	}
	EXPECT_GT(2000, i);
	EXPECT_EQ(1, now.leaf[TD_PAGE_AUG] - before.leaf[TD_PAGE_AUG]);
	EXPECT_EQ(0, vcpu->block->done);
	/* A signal ends it. */
	td_vcpu_cancel(vcpu);
	EXPECT_EQ(TD_EXIT_CANCELLED, td_vcpu_join(vcpu));
	vcpu->cancel = false;
	vcpu->block->stop = 0;
	td_op(other, GUEST_ACCEPT, gpa, 1, 0);
	ASSERT_TD_OK(&self->td, td_ops_run(other));
	EXPECT_EQ(1, other->block->ops[0].res[0]);
	EXPECT_TD_OK(&self->td, td_ops_run(vcpu));
}

TEST_HARNESS_MAIN
