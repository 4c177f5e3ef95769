// SPDX-License-Identifier: GPL-2.0
/* KVM_PRE_FAULT_MEMORY: before and after the TD is final, ranges, repetition. */
#include <errno.h>

#include "test.h"

#define PAGES	128ull

TD_FIXTURE(prefault);

TEST_F(prefault, before_init_vcpu)
{
	ASSERT_TD_OK(&self->td, td_create(&self->td));
	ASSERT_TD_OK(&self->td, td_init_vm(&self->td, 0));
	ASSERT_TD_OK(&self->td, td_add_vcpu(&self->td));
	ASSERT_TD_OK(&self->td, td_add_slot(&self->td, 0, TD_RAM_GPA, 1 << 20, true));
	EXPECT_EQ(-EOPNOTSUPP, td_prefault(&self->td.vcpu[0], TD_RAM_GPA, TD_PAGE, NULL));
}

TEST_F(prefault, before_finalize)
{
	const struct td_config config = { .no_finalize = true };
	__u64 left;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	EXPECT_EQ(-EOPNOTSUPP,
		  td_prefault(&self->td.vcpu[0], TD_RAM_GPA, PAGES * TD_PAGE, &left));
	EXPECT_EQ(PAGES * TD_PAGE, left);

	/* The refusal has changed nothing: the same range works afterwards. */
	ASSERT_TD_OK(&self->td, td_finalize(&self->td));
	ASSERT_TD_OK(&self->td, td_prefault(&self->td.vcpu[0], TD_RAM_GPA,
					    PAGES * TD_PAGE, NULL));
}

TEST_F(prefault, twice_then_used)
{
	const struct td_config config = {};
	struct td_counters first, second;
	struct td_vcpu *vcpu = &self->td.vcpu[0];

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_TD_OK(&self->td, td_prefault(vcpu, TD_RAM_GPA, PAGES * TD_PAGE, NULL));
	td_counters_read(&first);
	if (first.has_emu)
		EXPECT_EQ(PAGES + TD_IMAGE_SIZE / TD_PAGE,
			  first.emu_present - self->before.emu_present);

	/* What is mapped is not mapped again. */
	ASSERT_TD_OK(&self->td, td_prefault(vcpu, TD_RAM_GPA, PAGES * TD_PAGE, NULL));
	td_counters_read(&second);
	EXPECT_EQ(first.emu_present, second.emu_present);
	EXPECT_EQ(first.set_calls, second.set_calls);

	/* An overlapping range maps the rest only. */
	ASSERT_TD_OK(&self->td, td_prefault(vcpu, TD_RAM_GPA + (PAGES - 8) * TD_PAGE,
					    16 * TD_PAGE, NULL));
	td_counters_read(&second);
	if (second.has_emu)
		EXPECT_EQ(8, second.emu_present - first.emu_present);

	/* A pre-faulted page costs the guest no fault: nothing more is mapped. */
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 1);
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, PAGES, 1);
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	EXPECT_EQ(PAGES, vcpu->block->ops[0].res[0]);
	td_counters_read(&first);
	EXPECT_EQ(second.emu_present, first.emu_present);
}

TEST_F(prefault, unaligned_start_and_end_of_tables)
{
	const struct td_config config = { .ram_size = 6 << 20 };
	struct td_vcpu *vcpu = &self->td.vcpu[0];

	/* Ranges across the border of two S-EPT pages, one page and many. */
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_TD_OK(&self->td, td_prefault(vcpu, TD_RAM_GPA + (2 << 20) - TD_PAGE,
					    2 * TD_PAGE, NULL));
	ASSERT_TD_OK(&self->td, td_prefault(vcpu, TD_RAM_GPA + (4 << 20) - 3 * TD_PAGE,
					    5 * TD_PAGE, NULL));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA + (2 << 20) - TD_PAGE, 2, 0);
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA + (4 << 20) - 3 * TD_PAGE, 5, 0);
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
}

/* Shows: B18. */
TEST_F(prefault, end_of_the_slot)
{
	const struct td_config config = { .ram_size = 1 << 20 };
	__u64 left;

	/* The part inside of the slot is done, the rest is handed back. */
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	EXPECT_EQ(-ENOENT, td_prefault(&self->td.vcpu[0],
				       TD_RAM_GPA + (1 << 20) - 4 * TD_PAGE,
				       8 * TD_PAGE, &left));
	EXPECT_EQ(4 * TD_PAGE, left);
}

TEST_HARNESS_MAIN
