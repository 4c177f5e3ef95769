// SPDX-License-Identifier: GPL-2.0
/* Many TDs, one after the other and at once: as many as there are KeyIDs. */
#include <errno.h>

#include "life.h"
#include "test.h"

#define IN_TURN		64
#define AT_ONCE		64
#define PAGES		4ull

TD_FIXTURE(many_tds);

TEST_F_TIMEOUT(many_tds, in_turn, 300)
{
	unsigned int i, times = td_times(IN_TURN / 4, IN_TURN);
	static struct life life;
	char text[1024];

	for (i = 0; i < times; i++) {
		ASSERT_EQ(0, life_lead(&life))
			TH_LOG("TD %u: %s: %s", i, life_step_name(life.end),
			       td_error(&life.td));
		ASSERT_EQ(0, td_counters_check(&self->before, text, sizeof(text)))
			TH_LOG("after TD %u: %s", i, text);
	}
	TH_LOG("%u TDs in turn", times);
}

static int write_own(struct td *td, unsigned int seed)
{
	struct td_vcpu *vcpu = &td->vcpu[0];

	td_ops_clear(vcpu);
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_VERIFY_ZERO, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, seed);
	return td_ops_run(vcpu);
}

static int verify_own(struct td *td, unsigned int seed)
{
	struct td_vcpu *vcpu = &td->vcpu[0];

	td_ops_clear(vcpu);
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, PAGES, seed);
	return td_ops_run(vcpu);
}

TEST_F_TIMEOUT(many_tds, at_once, 300)
{
	const struct td_config config = { .no_measure = true, .ram_size = 16 * TD_PAGE };
	static struct td tds[AT_ONCE + 1];
	unsigned int i, n, step;
	int ret = 0;

	for (n = 0; n < AT_ONCE; n++) {
		ret = td_build(&tds[n], &config);
		if (ret)
			break;
		ASSERT_TD_OK(&tds[n], write_own(&tds[n], n));
	}
	TH_LOG("%u TDs at once%s", n, n < AT_ONCE ? ", then no KeyID is left" : "");
	if (ret) {
		/* The VMM can try again when another TD has ended. */
		EXPECT_EQ(-ENOSPC, ret) TH_LOG("%s", td_error(&tds[n]));
		td_destroy(&tds[n]);
		ASSERT_LE(2, n);
		td_destroy(&tds[--n]);
		ASSERT_TD_OK(&tds[n], td_build(&tds[n], &config));
		ASSERT_TD_OK(&tds[n], write_own(&tds[n], n));
		n++;
	}
	for (i = 0; i < n; i++)
		ASSERT_TD_OK(&tds[i], verify_own(&tds[i], i));
	/* Every third one ends, then the others: none takes another's pages along. */
	for (step = 0; step < 3; step++) {
		for (i = step; i < n; i += 3)
			td_destroy(&tds[i]);
		for (i = step + 1; i < n; i++)
			if (i % 3 > step)
				ASSERT_TD_OK(&tds[i], verify_own(&tds[i], i));
	}
}

TEST_HARNESS_MAIN
