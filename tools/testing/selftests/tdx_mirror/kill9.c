// SPDX-License-Identifier: GPL-2.0
/* The VMM is killed at some instant of a TD's life: all must be given back. */
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#include <x86intrin.h>

#include "test.h"

TD_FIXTURE(kill9);

/* What the child has reached, in memory shared with the test. */
struct progress {
	__u64 steps;
	int failed;
	char text[256];
};

static void step(struct progress *progress, int ret, struct td *td)
{
	if (ret) {
		snprintf(progress->text, sizeof(progress->text), "%s", td_error(td));
		__atomic_store_n(&progress->failed, 1, __ATOMIC_SEQ_CST);
		_exit(1);
	}
	__atomic_add_fetch(&progress->steps, 1, __ATOMIC_SEQ_CST);
}

/* A VMM that never ends: builds TDs and makes use of all that moves pages. */
static void vmm(struct progress *progress)
{
	const struct td_config config = { .nr_vcpus = 2 };
	static struct td td;
	int i;

	for (;;) {
		struct td_vcpu *vcpu = &td.vcpu[0];

		step(progress, td_build(&td, &config), &td);
		step(progress, td_prefault(vcpu, TD_RAM_GPA, 64 * TD_PAGE, NULL), &td);
		td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, 128, 0);
		td_op(vcpu, GUEST_STORE, TD_RAM_GPA, 128, 1);
		td_op(vcpu, GUEST_MAP_GPA, TD_RAM_GPA | TD_SHARED_BIT, 16 * TD_PAGE, 0);
		td_op(vcpu, GUEST_LOOP, 0, 0, 0);
		step(progress, td_vcpu_start(vcpu), &td);
		for (i = 0; i < 8; i++) {
			step(progress, td_prefault(&td.vcpu[1], TD_RAM_GPA + 256 * TD_PAGE,
						   16 * TD_PAGE, NULL), &td);
			step(progress, td_punch_hole(&td, 0, 256 * TD_PAGE,
						     16 * TD_PAGE), &td);
		}
		td_destroy(&td);
		step(progress, 0, &td);
	}
}

/* Kills a VMM @ticks of the TSC after it has reached @steps. */
static void kill_after(struct __test_metadata *_metadata,
		       const struct td_counters *before, __u64 steps, __u64 ticks)
{
	struct progress *progress = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
					 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char text[1024];
	int status;
	__u64 start;
	pid_t pid;

	ASSERT_NE(MAP_FAILED, progress);
	pid = fork();
	ASSERT_NE(-1, pid);
	if (!pid)
		vmm(progress);
	while (__atomic_load_n(&progress->steps, __ATOMIC_SEQ_CST) < steps &&
	       !__atomic_load_n(&progress->failed, __ATOMIC_SEQ_CST))
		sched_yield();
	start = __rdtsc();
	while (__rdtsc() - start < ticks)
		;
	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_FALSE(progress->failed) TH_LOG("the VMM failed: %s", progress->text);
	EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	EXPECT_EQ(0, td_counters_check(before, text, sizeof(text)))
		TH_LOG("killed at step %llu + %llu: %s", steps, ticks, text);
	munmap(progress, 4096);
}

TEST_F(kill9, while_the_td_is_built)
{
	int i;

	for (i = 0; i < 4; i++)
		kill_after(_metadata, &self->before, 0, 3000000ull + 2500000ull * i);
}

TEST_F(kill9, after_each_step)
{
	int i;

	for (i = 1; i < 8; i++)
		kill_after(_metadata, &self->before, i, 0);
}

TEST_F_TIMEOUT(kill9, while_it_runs_and_zaps, 900)
{
	unsigned int i, times = td_times(6, 200);
	__u64 random = __rdtsc() | 1;

	TH_LOG("seed %llx", random);
	for (i = 0; i < times; i++) {
		random = random * 6364136223846793005ull + 1442695040888963407ull;
		kill_after(_metadata, &self->before, 3 + (random >> 33) % 16,
			   (random >> 20) % 4000000);
	}
}

TEST_HARNESS_MAIN
