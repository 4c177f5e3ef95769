// SPDX-License-Identifier: GPL-2.0
/* Private <-> shared, by the VMM and by the guest's MapGPA. */
#include <errno.h>

#include "test.h"

#define PAGES	32ull

TD_FIXTURE(convert);

static unsigned int wrong_words(const __u64 *memory, __u64 gpa, __u64 pages, __u64 seed)
{
	unsigned int wrong = 0;
	__u64 i;

	for (i = 0; i < pages * 512; i++)
		wrong += memory[i] != guest_pattern(gpa + 8 * i, seed);
	return wrong;
}

static void write_words(__u64 *memory, __u64 gpa, __u64 pages, __u64 seed)
{
	__u64 i;

	for (i = 0; i < pages * 512; i++)
		memory[i] = guest_pattern(gpa + 8 * i, seed);
}

/* Shows: R40. */
TEST_F(convert, by_the_vmm)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	struct td_counters private, shared;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 1);
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	td_counters_read(&private);

	/* To shared: the private pages go, the guest sees what the VMM wrote. */
	ASSERT_TD_OK(&self->td, td_set_private(&self->td, TD_RAM_GPA, PAGES * TD_PAGE, false));
	td_counters_read(&shared);
	if (shared.has_emu)
		EXPECT_EQ(PAGES, shared.emu_removed - private.emu_removed);
	write_words(self->td.slot[0].shared, TD_RAM_GPA, PAGES, 2);
	td_ops_clear(vcpu);
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA | TD_SHARED_BIT, PAGES, 2);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA | TD_SHARED_BIT, PAGES, 3);
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	EXPECT_EQ(0, wrong_words(self->td.slot[0].shared, TD_RAM_GPA, PAGES, 3));

	/* Back: zeros after ACCEPT, and the VMM's memory is out of reach. */
	ASSERT_TD_OK(&self->td, td_set_private(&self->td, TD_RAM_GPA, PAGES * TD_PAGE, true));
	td_ops_clear(vcpu);
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_VERIFY_ZERO, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 4);
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, PAGES, 4);
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	EXPECT_EQ(0, wrong_words(self->td.slot[0].shared, TD_RAM_GPA, PAGES, 3));
}

TEST_F(convert, by_the_guest)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	int turn;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	for (turn = 0; turn < 3; turn++) {
		td_op(vcpu, GUEST_MAP_GPA, TD_RAM_GPA | TD_SHARED_BIT, PAGES * TD_PAGE, 0);
		td_op(vcpu, GUEST_STORE, TD_RAM_GPA | TD_SHARED_BIT, PAGES, turn);
		td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA | TD_SHARED_BIT, PAGES, turn);
		td_op(vcpu, GUEST_MAP_GPA, TD_RAM_GPA, PAGES * TD_PAGE, 0);
		td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
		td_op(vcpu, GUEST_VERIFY_ZERO, TD_RAM_GPA, PAGES, 0);
		td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, turn + 16);
		td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, PAGES, turn + 16);
	}
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	EXPECT_EQ(6, vcpu->map_gpa_exits);
	EXPECT_EQ(0, wrong_words(self->td.slot[0].shared, TD_RAM_GPA, PAGES, 2));
}

TEST_F(convert, retried_and_refused)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	vcpu->map_gpa_retries = 2;
	td_op(vcpu, GUEST_MAP_GPA, TD_RAM_GPA | TD_SHARED_BIT, PAGES * TD_PAGE, 0);
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	EXPECT_EQ(2, vcpu->block->ops[0].res[1]);

	vcpu->map_gpa_refuse = true;
	td_ops_clear(vcpu);
	td_op(vcpu, GUEST_MAP_GPA, TD_RAM_GPA, PAGES * TD_PAGE, 0);
	EXPECT_EQ(TD_EXIT_DONE, td_vcpu_run(vcpu));
	EXPECT_EQ(0x8000000000000000ull, vcpu->block->ops[0].status);
}

/* Shows: R24. */
TEST_F(convert, range_and_attribute_disagree)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];

	/* A private access to shared memory goes to the VMM, which may convert. */
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_TD_OK(&self->td, td_set_private(&self->td, TD_RAM_GPA, TD_PAGE, false));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, 1, 0);
	td_op(vcpu, GUEST_VERIFY_ZERO, TD_RAM_GPA, 1, 0);
	ASSERT_EQ(TD_EXIT_MEMORY_FAULT, td_vcpu_run(vcpu));
	EXPECT_EQ(TD_RAM_GPA, vcpu->fault_gpa);
	EXPECT_TRUE(vcpu->fault_private);
	ASSERT_TD_OK(&self->td, td_set_private(&self->td, TD_RAM_GPA, TD_PAGE, true));
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));

	/* And the other way round: a shared access to private memory. */
	td_ops_clear(vcpu);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA | TD_SHARED_BIT, 1, 1);
	ASSERT_EQ(TD_EXIT_MEMORY_FAULT, td_vcpu_run(vcpu));
	EXPECT_EQ(TD_RAM_GPA, vcpu->fault_gpa);
	EXPECT_FALSE(vcpu->fault_private);
	ASSERT_TD_OK(&self->td, td_set_private(&self->td, TD_RAM_GPA, TD_PAGE, false));
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	EXPECT_EQ(0, wrong_words(self->td.slot[0].shared, TD_RAM_GPA, 1, 1));
}

TEST_F(convert, while_the_guest_runs)
{
	const struct td_config config = { .nr_vcpus = 2 };
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	int turn;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 9);
	td_op(vcpu, GUEST_LOOP, 0, 0, 0);
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, PAGES, 9);
	ASSERT_EQ(0, td_vcpu_start(vcpu));
	for (turn = 0; turn < 8; turn++) {
		__u64 gpa = TD_RAM_GPA + (64 + 4 * turn) * TD_PAGE;

		ASSERT_TD_OK(&self->td, td_prefault(&self->td.vcpu[1], gpa, 4 * TD_PAGE, NULL));
		ASSERT_TD_OK(&self->td, td_set_private(&self->td, gpa, 4 * TD_PAGE, false));
		ASSERT_TD_OK(&self->td, td_set_private(&self->td, gpa, 2 * TD_PAGE, true));
		ASSERT_TD_OK(&self->td, td_prefault(&self->td.vcpu[1], gpa, 2 * TD_PAGE, NULL));
	}
	td_vcpu_stop(vcpu);
	ASSERT_TD_OK(&self->td, td_ops_join(vcpu));
}

TEST_HARNESS_MAIN
