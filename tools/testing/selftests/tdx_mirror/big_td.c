// SPDX-License-Identifier: GPL-2.0
/*
 * A TD of 1 GiB, all of it mapped by two threads, a part of it accepted, and torn
 * down at once.  Without TDX_TEST_LONG it is a smaller one.
 */
#include <stdio.h>
#include <x86intrin.h>

#include "test.h"

#define MIB		(256ull * TD_PAGE)
#define CHUNK		(2 * MIB)
#define SPARE		(64 * MIB)	/* for the S-EPT, the mirror and the rest */
#define EVERY		64ull		/* pages: the guest accepts one of them */

TD_FIXTURE(big_td);

static __u64 free_memory(void)
{
	unsigned long long kib = 0;
	char line[128];
	FILE *file = fopen("/proc/meminfo", "re");

	if (!file)
		return 0;
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
			break;
	fclose(file);
	return kib << 10;
}

struct half {
	struct td_vcpu *vcpu;
	__u64 gpa, size;
	int ret;
	pthread_t thread;
};

static void *populate(void *arg)
{
	struct half *half = arg;
	__u64 done;

	for (done = 0; done < half->size && !half->ret; done += CHUNK)
		half->ret = td_prefault(half->vcpu, half->gpa + done, CHUNK, NULL);
	return NULL;
}

TEST_F_TIMEOUT(big_td, populated_and_torn_down, 3600)
{
	__u64 size = td_times(8, 1024) * MIB, pages = size / TD_PAGE, i, n, start, cycles[3];
	const struct td_config config = {
		.nr_vcpus = 2, .no_measure = true, .ram_size = size,
	};
	struct td *td = &self->td;
	struct td_counters now;
	struct half half[2];

	if (free_memory() < size + SPARE)
		SKIP(return, "needs %llu MiB of free memory: there are %llu",
		     (size + SPARE) / MIB, free_memory() / MIB);
	ASSERT_TD_OK(td, td_build(td, &config));
	start = __rdtsc();
	for (i = 0; i < 2; i++) {
		half[i] = (struct half) {
			&td->vcpu[i], TD_RAM_GPA + i * size / 2, size / 2,
		};
		ASSERT_EQ(0, pthread_create(&half[i].thread, NULL, populate, &half[i]));
	}
	for (i = 0; i < 2; i++)
		pthread_join(half[i].thread, NULL);
	cycles[0] = __rdtsc() - start;
	for (i = 0; i < 2; i++)
		ASSERT_TD_OK(td, half[i].ret);
	td_counters_read(&now);
	if (now.has_emu)
		EXPECT_LE(pages, now.emu_present - self->before.emu_present);
	start = __rdtsc();
	for (i = 0; i < pages;) {
		td_ops_clear(&td->vcpu[0]);
		for (n = 0; n < 16 && i < pages; n++, i += EVERY) {
			td_op(&td->vcpu[0], GUEST_ACCEPT, TD_RAM_GPA + i * TD_PAGE, 1, 0);
			td_op(&td->vcpu[0], GUEST_STORE, TD_RAM_GPA + i * TD_PAGE, 1, 1);
		}
		ASSERT_TD_OK(td, td_ops_run(&td->vcpu[0]));
	}
	cycles[1] = __rdtsc() - start;
	start = __rdtsc();
	td_destroy(td);
	cycles[2] = __rdtsc() - start;
	TH_LOG("%llu pages: mapped in %llu, %llu accepted in %llu, destroyed in %llu cycles",
	       pages, cycles[0], pages / EVERY, cycles[1], cycles[2]);
}

TEST_HARNESS_MAIN
