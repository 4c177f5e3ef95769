// SPDX-License-Identifier: GPL-2.0
/* Holes in one slot while another one is measured and the TD is finalized. */
#include <stdatomic.h>

#include "test.h"

#define PAGES	96ull
#define ROUNDS	6

TD_FIXTURE(build_race);

struct puncher {
	struct td *td;
	atomic_bool go;
	int ret;
};

/* One hole after the other: each is a removal that must not find the TDR busy. */
static void *punch_thread(void *arg)
{
	struct puncher *puncher = arg;
	__u64 page;

	while (!atomic_load(&puncher->go))
		;
	for (page = 0; page < PAGES && !puncher->ret; page++)
		puncher->ret = td_punch_hole(puncher->td, 0, page * TD_PAGE, TD_PAGE);
	return NULL;
}

/*
 * Builds a TD with pages in slot 0 that are taken away while the image goes to
 * slot 1, if @image, and the TD is finalized.  0 or the first error.
 */
static int build_and_punch(struct td *td, bool image)
{
	const struct td_config config = { .no_image = true, .no_finalize = true };
	struct puncher puncher = { .td = td };
	pthread_t thread;
	int ret;

	ret = td_build(td, &config);
	if (!ret)
		ret = td_add_memory(&td->vcpu[0], TD_RAM_GPA, td->slot[0].shared, PAGES, false);
	if (ret)
		return ret;
	ret = -pthread_create(&thread, NULL, punch_thread, &puncher);
	if (ret)
		return ret;
	atomic_store(&puncher.go, true);
	if (image)
		ret = td_load_image(td, "ops");
	if (!ret)
		ret = td_finalize(td);
	pthread_join(thread, NULL);
	return ret ? ret : puncher.ret;
}

/* Shows: B8. */
TEST_F(build_race, punch_hole_and_measure)
{
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	int round;

	for (round = 0; round < ROUNDS; round++) {
		ASSERT_TD_OK(&self->td, build_and_punch(&self->td, true));
		/* All of it is gone, and can be had again. */
		td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
		td_op(vcpu, GUEST_VERIFY_ZERO, TD_RAM_GPA, PAGES, 0);
		ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
		td_destroy(&self->td);
		td_reset(&self->td);
	}
}

/* Shows: B8. */
TEST_F(build_race, punch_hole_and_finalize)
{
	int round;

	for (round = 0; round < ROUNDS; round++) {
		ASSERT_TD_OK(&self->td, build_and_punch(&self->td, false));
		td_destroy(&self->td);
		td_reset(&self->td);
	}
}

TEST_HARNESS_MAIN
