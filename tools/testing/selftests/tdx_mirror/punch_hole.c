// SPDX-License-Identifier: GPL-2.0
/* guest_memfd FALLOC_FL_PUNCH_HOLE takes private pages away for good. */
#include "test.h"

#define PAGES	64ull

TD_FIXTURE(punch_hole);

TEST_F(punch_hole, whole_then_refault)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	struct td_counters full, empty;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 1);
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	td_counters_read(&full);

	ASSERT_TD_OK(&self->td, td_punch_hole(&self->td, 0, 0, PAGES * TD_PAGE));
	td_counters_read(&empty);
	if (empty.has_emu)
		EXPECT_EQ(PAGES, empty.emu_removed - full.emu_removed);
	if (empty.has_mirror && empty.mode == TD_MODE_ON)
		EXPECT_EQ(PAGES, empty.zapped - full.zapped);

	td_ops_clear(vcpu);
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_VERIFY_ZERO, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 2);
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, PAGES, 2);
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	EXPECT_EQ(PAGES, vcpu->block->ops[0].res[0]);
}

TEST_F(punch_hole, every_other_page)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	__u64 n;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 1);
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));

	td_ops_clear(vcpu);
	for (n = 0; n < PAGES; n += 2) {
		ASSERT_TD_OK(&self->td, td_punch_hole(&self->td, 0, n * TD_PAGE, TD_PAGE));
		td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA + n * TD_PAGE, 1, 0);
		td_op(vcpu, GUEST_VERIFY_ZERO, TD_RAM_GPA + n * TD_PAGE, 1, 0);
		td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA + (n + 1) * TD_PAGE, 1, 1);
	}
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
}

TEST_F(punch_hole, nothing_there)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	struct td_counters before, after;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_counters_read(&before);
	/* Never mapped, then mapped but for the middle, twice the same hole. */
	ASSERT_TD_OK(&self->td, td_punch_hole(&self->td, 0, 0, PAGES * TD_PAGE));
	td_counters_read(&after);
	EXPECT_EQ(before.emu_removed, after.emu_removed);

	ASSERT_TD_OK(&self->td, td_prefault(vcpu, TD_RAM_GPA, 8 * TD_PAGE, NULL));
	ASSERT_TD_OK(&self->td, td_prefault(vcpu, TD_RAM_GPA + 16 * TD_PAGE,
					    8 * TD_PAGE, NULL));
	ASSERT_TD_OK(&self->td, td_punch_hole(&self->td, 0, 4 * TD_PAGE, 16 * TD_PAGE));
	ASSERT_TD_OK(&self->td, td_punch_hole(&self->td, 0, 4 * TD_PAGE, 16 * TD_PAGE));
	td_counters_read(&after);
	if (after.has_emu)
		EXPECT_EQ(8, after.emu_removed - before.emu_removed);
}

TEST_F(punch_hole, pending_page)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];

	/* Mapped but never accepted. */
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_TD_OK(&self->td, td_prefault(vcpu, TD_RAM_GPA, PAGES * TD_PAGE, NULL));
	ASSERT_TD_OK(&self->td, td_punch_hole(&self->td, 0, 0, PAGES * TD_PAGE));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
}

TEST_F(punch_hole, before_finalize)
{
	const struct td_config config = { .no_finalize = true };
	struct td_vcpu *vcpu = &self->td.vcpu[0];

	/* A page that was added for the build, then taken away and not missed. */
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_TD_OK(&self->td, td_add_memory(vcpu, TD_RAM_GPA, self->td.slot[0].shared,
					      4, false));
	ASSERT_TD_OK(&self->td, td_punch_hole(&self->td, 0, 0, 4 * TD_PAGE));
	ASSERT_TD_OK(&self->td, td_finalize(&self->td));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, 4, 0);
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
}

TEST_HARNESS_MAIN
