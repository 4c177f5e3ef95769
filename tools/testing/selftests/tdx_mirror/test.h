/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A fixture for tests that use TDs: nothing may be left when they end but what
 * td_on_purpose() announced.
 */
#ifndef TDX_MIRROR_TEST_H
#define TDX_MIRROR_TEST_H

#include "kselftest_harness.h"

#include "probe.h"
#include "td.h"

#define ASSERT_TD_OK(td, call) \
	ASSERT_EQ(0, call) TH_LOG("%s", td_error(td))

#define EXPECT_TD_OK(td, call) \
	EXPECT_EQ(0, call) TH_LOG("%s", td_error(td))

#define REQUIRE(needs) do {							\
	const char *lacking = td_needs(needs);					\
										\
	if (lacking)								\
		SKIP(return, "%s", lacking);					\
} while (0)

#define TD_FIXTURE(fixture)							\
FIXTURE(fixture) {								\
	struct td td, other;							\
	struct td_counters before;						\
};										\
										\
FIXTURE_SETUP(fixture)								\
{										\
	const char *why = td_unsupported();					\
										\
	td_reset(&self->td);							\
	td_reset(&self->other);							\
	if (why)								\
		SKIP(return, "%s", why);					\
	td_counters_read(&self->before);					\
}										\
										\
FIXTURE_TEARDOWN(fixture)							\
{										\
	char text[1024];							\
										\
	td_inject_clear();							\
	td_trace_stop();							\
	td_destroy(&self->td);							\
	td_destroy(&self->other);						\
	td_klog_end();								\
	EXPECT_EQ(0, td_counters_check(&self->before, text, sizeof(text)))	\
		TH_LOG("after the TD's end: %s", text);				\
	TH_LOG("%s", td_counters_note(&self->before));				\
}

#endif /* TDX_MIRROR_TEST_H */
