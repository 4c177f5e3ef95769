// SPDX-License-Identifier: GPL-2.0
/* Removal of a memory slot with private pages, also under a running guest. */
#include <errno.h>

#include "test.h"

#define PAGES	64ull

TD_FIXTURE(memslot_delete);

TEST_F(memslot_delete, and_again)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	struct td_counters full, empty;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 1);
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	td_counters_read(&full);
	ASSERT_TD_OK(&self->td, td_delete_slot(&self->td, 0));
	td_counters_read(&empty);
	if (empty.has_emu)
		EXPECT_EQ(PAGES, empty.emu_removed - full.emu_removed);

	/* Without a slot there is nothing to map; the VMM is told. */
	EXPECT_EQ(-EFAULT, td_prefault(vcpu, TD_RAM_GPA, TD_PAGE, NULL));

	/* A new slot at the same place has new memory. */
	ASSERT_TD_OK(&self->td, td_add_slot(&self->td, 0, TD_RAM_GPA, 4 << 20, true));
	td_ops_clear(vcpu);
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_VERIFY_ZERO, TD_RAM_GPA, PAGES, 0);
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
}

TEST_F(memslot_delete, neighbours_stay)
{
	const struct td_config config = {};
	const __u64 gpa = TD_RAM_GPA + (4 << 20);
	struct td_vcpu *vcpu = &self->td.vcpu[0];

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_TD_OK(&self->td, td_add_slot(&self->td, 4, gpa, 1 << 20, true));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 1);
	td_op(vcpu, GUEST_ACCEPT, gpa, PAGES, 0);
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	ASSERT_TD_OK(&self->td, td_delete_slot(&self->td, 4));
	td_ops_clear(vcpu);
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, PAGES, 1);
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
}

TEST_F(memslot_delete, while_the_guest_runs)
{
	const struct td_config config = { .nr_vcpus = 2 };
	const __u64 gpa = TD_RAM_GPA + (4 << 20);
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	int turn;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 1);
	td_op(vcpu, GUEST_LOOP, 0, 0, 0);
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, PAGES, 1);
	ASSERT_EQ(0, td_vcpu_start(vcpu));
	for (turn = 0; turn < 4; turn++) {
		ASSERT_TD_OK(&self->td, td_add_slot(&self->td, 4, gpa, 1 << 20, true));
		ASSERT_TD_OK(&self->td, td_prefault(&self->td.vcpu[1], gpa, 8 * TD_PAGE, NULL));
		ASSERT_TD_OK(&self->td, td_delete_slot(&self->td, 4));
	}
	td_vcpu_stop(vcpu);
	ASSERT_TD_OK(&self->td, td_ops_join(vcpu));
}

/* Shows: B4. */
TEST_F(memslot_delete, under_a_fault)
{
	const struct td_config config = {};
	const __u64 gpa = TD_RAM_GPA + (4 << 20);
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	enum td_exit exit;

	/*
	 * The guest accepts pages of a slot that goes away meanwhile: it gets
	 * through, or the VMM is told about the first page that is gone.
	 */
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_TD_OK(&self->td, td_add_slot(&self->td, 4, gpa, 1 << 20, true));
	td_op(vcpu, GUEST_ACCEPT, gpa, 256, 0);
	ASSERT_EQ(0, td_vcpu_start(vcpu));
	ASSERT_TD_OK(&self->td, td_delete_slot(&self->td, 4));
	exit = td_vcpu_join(vcpu);
	EXPECT_TRUE(exit == TD_EXIT_DONE || exit == TD_EXIT_MEMORY_FAULT)
		TH_LOG("exit %d, reason %u, %s", exit, vcpu->reason, td_error(&self->td));
}

TEST_HARNESS_MAIN
