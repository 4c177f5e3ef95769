// SPDX-License-Identifier: GPL-2.0
/*
 * A CPU goes offline and comes back while a TD lives: either the kernel refuses, or
 * the TD runs on with what it has.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#include "test.h"

#define PAGES	8ull
#define TURNS	3

TD_FIXTURE(cpu_hotplug);

static int set_online(unsigned int cpu, bool online)
{
	char path[64];
	int fd, ret = 0;

	snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%u/online", cpu);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (write(fd, online ? "1" : "0", 1) != 1)
		ret = -errno;
	close(fd);
	return ret;
}

static int run_on(unsigned int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return sched_setaffinity(0, sizeof(set), &set) ? -errno : 0;
}

/*
 * Linux 7.3 asserts that preemption is off where it flushes the caches of a CPU that
 * goes offline, and the thread that does it is preemptible: one warning, if the kernel
 * checks that at all.
 */
static int begin(void)
{
	return td_klog_begin("a CPU goes offline");
}

static bool warned_of_nothing_else(void)
{
	unsigned int known = td_klog_count("WARNING: at tdx_offline_cpu+");

	return known <= 1 && td_klog_end() == known;
}

static const char *lacking(void)
{
	if (td_needs(NEEDS_KLOG))
		return td_needs(NEEDS_KLOG);
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		return "needs two CPUs";
	if (access("/sys/devices/system/cpu/cpu1/online", W_OK))
		return "needs a kernel and a machine on which CPU 1 can go offline";
	return NULL;
}

TEST_F_TIMEOUT(cpu_hotplug, while_a_td_lives, 120)
{
	const struct td_config config = {};
	struct td *td = &self->td;
	struct td_vcpu *vcpu = &td->vcpu[0];
	int turn, ret, refused = 0;

	if (lacking())
		SKIP(return, "%s", lacking());
	ASSERT_TD_OK(td, td_build(td, &config));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 1);
	ASSERT_EQ(0, run_on(1));
	ASSERT_TD_OK(td, td_ops_run(vcpu));
	ASSERT_EQ(0, begin());
	for (turn = 0; turn < TURNS; turn++) {
		/* The TDX module still counts the vCPU to CPU 1. */
		ASSERT_EQ(0, run_on(1));
		td_ops_clear(vcpu);
		td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, PAGES, 1);
		ASSERT_TD_OK(td, td_ops_run(vcpu));
		ASSERT_EQ(0, run_on(0));
		ret = set_online(1, false);
		if (ret == -EBUSY) {
			refused++;
		} else {
			ASSERT_EQ(0, ret);
			ASSERT_TD_OK(td, td_ops_run(vcpu));
			ASSERT_TD_OK(td, td_punch_hole(td, 0, 64 * TD_PAGE, TD_PAGE));
			ASSERT_EQ(0, set_online(1, true));
		}
		ASSERT_TD_OK(td, td_prefault(vcpu, TD_RAM_GPA + 64 * TD_PAGE, TD_PAGE,
					     NULL));
	}
	EXPECT_TRUE(warned_of_nothing_else());
	TH_LOG("CPU 1 went offline and came back %d times, refused %d times",
	       TURNS - refused, refused);
}

TEST_F_TIMEOUT(cpu_hotplug, a_td_ends_without_a_cpu, 120)
{
	const struct td_config config = {};
	struct td *td = &self->td;
	int ret;

	if (lacking())
		SKIP(return, "%s", lacking());
	ASSERT_TD_OK(td, td_build(td, &config));
	ASSERT_EQ(0, run_on(1));
	ASSERT_TD_OK(td, td_prefault(&td->vcpu[0], TD_RAM_GPA, PAGES * TD_PAGE, NULL));
	ASSERT_EQ(0, run_on(0));
	ASSERT_EQ(0, begin());
	ret = set_online(1, false);
	if (ret == -EBUSY)
		SKIP(return, "the kernel keeps CPU 1 online while a TD lives");
	ASSERT_EQ(0, ret);
	td_destroy(td);
	ASSERT_EQ(0, set_online(1, true));
	EXPECT_TRUE(warned_of_nothing_else());
	ASSERT_TD_OK(td, td_build(td, &config));
}

TEST_HARNESS_MAIN
