// SPDX-License-Identifier: GPL-2.0
/* Two vCPUs fault and accept at the same time, also against the VMM. */
#include <errno.h>

#include "test.h"

#define PAGES	256ull

TD_FIXTURE(parallel);

static int start_both(struct td *td)
{
	int ret;

	*td_word(td, 0) = 0;
	ret = td_vcpu_start(&td->vcpu[0]);
	return ret ? ret : td_vcpu_start(&td->vcpu[1]);
}

static int join_both(struct td *td)
{
	int first = td_ops_join(&td->vcpu[0]);
	int second;

	if (first)
		td_vcpu_cancel(&td->vcpu[1]);
	second = td_ops_join(&td->vcpu[1]);
	return first ? first : second;
}

/* Shows: R2, R31. */
TEST_F(parallel, disjoint_gfns)
{
	const struct td_config config = { .nr_vcpus = 2 };
	struct td_counters after;
	int i;

	/* Neighbours in the same S-EPT page: even pages and odd pages. */
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	for (i = 0; i < 2; i++) {
		struct td_vcpu *vcpu = &self->td.vcpu[i];
		__u64 n;

		td_op(vcpu, GUEST_BARRIER, td_word_gpa(0), 2, 0);
		for (n = 0; n < 48; n++) {
			__u64 gpa = TD_RAM_GPA + (2 * n + i) * TD_PAGE;

			td_op(vcpu, GUEST_ACCEPT, gpa, 1, 0);
			td_op(vcpu, GUEST_STORE, gpa, 1, n);
			td_op(vcpu, GUEST_VERIFY, gpa, 1, n);
		}
	}
	ASSERT_EQ(0, start_both(&self->td));
	ASSERT_TD_OK(&self->td, join_both(&self->td));
	td_counters_read(&after);
	if (after.has_emu)
		EXPECT_EQ(96 + TD_IMAGE_SIZE / TD_PAGE,
			  after.emu_present - self->before.emu_present);
}

/* Shows: R27, R36, B1. */
TEST_F(parallel, same_gfns)
{
	const struct td_config config = { .nr_vcpus = 2 };
	const struct guest_op *op[2];
	struct td_counters after;
	int i;

	/* Each page is mapped once and accepted once, by one or the other. */
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	for (i = 0; i < 2; i++) {
		td_op(&self->td.vcpu[i], GUEST_BARRIER, td_word_gpa(0), 2, 0);
		op[i] = td_op(&self->td.vcpu[i], GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	}
	ASSERT_EQ(0, start_both(&self->td));
	ASSERT_TD_OK(&self->td, join_both(&self->td));
	EXPECT_EQ(PAGES, op[0]->res[0] + op[1]->res[0]);
	EXPECT_EQ(PAGES, op[0]->res[1] + op[1]->res[1]);
	td_counters_read(&after);
	if (after.has_emu)
		EXPECT_EQ(PAGES + TD_IMAGE_SIZE / TD_PAGE,
			  after.emu_present - self->before.emu_present);
}

/* Shows: R27, R36. */
TEST_F(parallel, with_prefault)
{
	const struct td_config config = { .nr_vcpus = 2 };
	struct td_vcpu *guest = &self->td.vcpu[1];
	struct td_counters after;

	/* One vCPU accepts while the other is used to pre-fault the same pages. */
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_op(guest, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(guest, GUEST_STORE, TD_RAM_GPA, PAGES, 5);
	td_op(guest, GUEST_VERIFY, TD_RAM_GPA, PAGES, 5);
	ASSERT_EQ(0, td_vcpu_start(guest));
	ASSERT_TD_OK(&self->td, td_prefault(&self->td.vcpu[0], TD_RAM_GPA,
					    PAGES * TD_PAGE, NULL));
	ASSERT_TD_OK(&self->td, td_ops_join(guest));
	EXPECT_EQ(PAGES, guest->block->ops[0].res[0]);
	td_counters_read(&after);
	if (after.has_emu)
		EXPECT_EQ(PAGES + TD_IMAGE_SIZE / TD_PAGE,
			  after.emu_present - self->before.emu_present);
}

TEST_F(parallel, zap_while_running)
{
	const struct td_config config = { .nr_vcpus = 2 };
	struct td_vcpu *guest = &self->td.vcpu[0];
	__u64 heartbeat;
	int turn;

	/*
	 * A vCPU runs without exits of its own while the VMM maps and zaps
	 * other pages: each zap forces it out, its data stay.
	 */
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_op(guest, GUEST_ACCEPT, TD_RAM_GPA, 16, 0);
	td_op(guest, GUEST_STORE, TD_RAM_GPA, 16, 7);
	td_op(guest, GUEST_LOOP, 0, 0, 0);
	td_op(guest, GUEST_VERIFY, TD_RAM_GPA, 16, 7);
	ASSERT_EQ(0, td_vcpu_start(guest));
	for (turn = 0; turn < 16; turn++) {
		heartbeat = guest->block->heartbeat;
		ASSERT_TD_OK(&self->td, td_prefault(&self->td.vcpu[1],
						    TD_RAM_GPA + 64 * TD_PAGE,
						    4 * TD_PAGE, NULL));
		ASSERT_TD_OK(&self->td, td_punch_hole(&self->td, 0, 64 * TD_PAGE,
						      4 * TD_PAGE));
	}
	while (__atomic_load_n(&guest->block->heartbeat, __ATOMIC_SEQ_CST) == heartbeat &&
	       guest->has_thread && guest->exit != TD_EXIT_ERROR)
		sched_yield();
	td_vcpu_stop(guest);
	ASSERT_TD_OK(&self->td, td_ops_join(guest));
}

/* Shows: R36. */
TEST_F(parallel, zap_what_is_faulted)
{
	const struct td_config config = { .nr_vcpus = 2 };
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	int turn, i;

	/*
	 * The guest touches and accepts pages that the VMM takes away again
	 * and again: it sees zeros or its own data, and ends.
	 */
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	for (i = 0; i < 64; i++)
		td_op(vcpu, GUEST_TOUCH, TD_RAM_GPA, 32, 0)->flags = GUEST_FLAG_WRITE;
	ASSERT_EQ(0, td_vcpu_start(vcpu));
	for (turn = 0; turn < 16; turn++)
		ASSERT_TD_OK(&self->td, td_punch_hole(&self->td, 0, 0, 32 * TD_PAGE));
	ASSERT_TD_OK(&self->td, td_ops_join(vcpu));
}

TEST_HARNESS_MAIN
