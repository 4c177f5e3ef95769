// SPDX-License-Identifier: GPL-2.0
/* Two TDs at once: same GPAs, separate memory, separate ends. */
#include "test.h"

#define PAGES	64ull

TD_FIXTURE(two_tds);

TEST_F(two_tds, one_after_the_other)
{
	const struct td_config config = {};
	struct td_vcpu *a = &self->td.vcpu[0], *b = &self->other.vcpu[0];

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_TD_OK(&self->other, td_build(&self->other, &config));
	EXPECT_EQ(0, memcmp(self->td.mrtd_digest, self->other.mrtd_digest, SHA384_SIZE));

	td_op(a, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(a, GUEST_STORE, TD_RAM_GPA, PAGES, 1);
	ASSERT_TD_OK(&self->td, td_ops_run(a));
	td_op(b, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(b, GUEST_VERIFY_ZERO, TD_RAM_GPA, PAGES, 0);
	td_op(b, GUEST_STORE, TD_RAM_GPA, PAGES, 2);
	ASSERT_TD_OK(&self->other, td_ops_run(b));

	/* What happens to one is nothing to the other, its end included. */
	ASSERT_TD_OK(&self->other, td_punch_hole(&self->other, 0, 0, 8 * TD_PAGE));
	td_ops_clear(a);
	td_op(a, GUEST_VERIFY, TD_RAM_GPA, PAGES, 1);
	ASSERT_TD_OK(&self->td, td_ops_run(a));
	td_destroy(&self->other);
	ASSERT_TD_OK(&self->td, td_ops_run(a));
}

TEST_F(two_tds, at_the_same_time)
{
	const struct td_config config = {};
	struct td *td;
	int i, turn;

	for (i = 0; i < 2; i++) {
		td = i ? &self->other : &self->td;
		ASSERT_TD_OK(td, td_build(td, &config));
	}
	for (turn = 0; turn < 4; turn++) {
		for (i = 0; i < 2; i++) {
			struct td_vcpu *vcpu = i ? &self->other.vcpu[0] : &self->td.vcpu[0];

			td_ops_clear(vcpu);
			td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
			td_op(vcpu, GUEST_VERIFY_ZERO, TD_RAM_GPA, PAGES, 0);
			td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, i);
			td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, PAGES, i);
			ASSERT_EQ(0, td_vcpu_start(vcpu));
		}
		for (i = 0; i < 2; i++) {
			td = i ? &self->other : &self->td;
			ASSERT_TD_OK(td, td_ops_join(&td->vcpu[0]));
		}
		for (i = 0; i < 2; i++) {
			td = i ? &self->other : &self->td;
			ASSERT_TD_OK(td, td_punch_hole(td, 0, 0, PAGES * TD_PAGE));
		}
	}
}

TEST_F(two_tds, built_while_the_other_runs)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	int turn;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 1);
	td_op(vcpu, GUEST_LOOP, 0, 0, 0);
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, PAGES, 1);
	ASSERT_EQ(0, td_vcpu_start(vcpu));
	for (turn = 0; turn < 3; turn++) {
		ASSERT_TD_OK(&self->other, td_build(&self->other, &config));
		ASSERT_TD_OK(&self->other, td_prefault(&self->other.vcpu[0], TD_RAM_GPA,
						       PAGES * TD_PAGE, NULL));
		td_destroy(&self->other);
	}
	td_vcpu_stop(vcpu);
	ASSERT_TD_OK(&self->td, td_ops_join(vcpu));
}

TEST_HARNESS_MAIN
