// SPDX-License-Identifier: GPL-2.0
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <x86intrin.h>

#include "sample.h"

#define EMU_STATS	"/sys/kernel/debug/tdx_emu/stats"

/* Everything that is allocated or paged in here is so before the first sample. */
static char text[65536];

static void read_sums(struct bench_sums *sums)
{
	FILE *file = fopen(EMU_STATS, "r");
	unsigned long long value;
	unsigned int n;
	char *line, *rest, tail[64];
	size_t size;

	memset(sums, 0, sizeof(*sums));
	if (!file)
		return;
	size = fread(text, 1, sizeof(text) - 1, file);
	text[size] = 0;
	fclose(file);
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		if (sscanf(line, "busy %llu", &value) == 1)
			sums->calls.busy = value;
		if (sscanf(line, "cycles_cpu_%u %llu", &n, &value) == 2 && n < BENCH_MAX_CPUS) {
			sums->cpu[n] = value;
			sums->have_cycles = true;
		}
		if (sscanf(line, "cycles_leaf_%u %llu", &n, &value) == 2 && n < TD_LEAVES)
			sums->cycles[n] = value;
		if (sscanf(line, "leaf_%u_%63s %llu", &n, tail, &value) != 3 || n >= TD_LEAVES)
			continue;
		if (strstr(tail, "_calls")) {
			sums->calls.leaf[n] = value;
			sums->calls.total += value;
		}
	}
}

static __u64 thread_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

bool bench_prepare(void)
{
	__u64 tsc, ns, best = 0;
	struct bench_sums sums;
	int turn;

	/* What the thread's clock shows less is time of others. */
	for (turn = 0; turn < 5; turn++) {
		tsc = __rdtsc();
		ns = thread_ns();
		while (thread_ns() - ns < 1000000)
			;
		ns = thread_ns() - ns;
		tsc = (__rdtsc() - tsc) * 1000 / ns;
		if (!best || tsc < best)
			best = tsc;
	}
	printf("@clock ticks_per_us=%llu\n", best);
	read_sums(&sums);
	return sums.have_cycles;
}

static __u64 mirror_kicks(void)
{
	bool found;

	return td_counter(TD_MIRROR_STATS, "kicks", &found);
}

int bench_begin(struct bench_sample *sample)
{
	int ret = 0;

	if (sample->trace_kicks)
		ret = td_kicks_start();
	sample->kicks_before = mirror_kicks();
	read_sums(&sample->before);
	sample->thread_ns = thread_ns();
	sample->tsc = __rdtsc();
	return ret;
}

void bench_end(struct bench_sample *sample, __u64 ops)
{
	__u64 tsc = __rdtsc() - sample->tsc;
	__u64 ns = thread_ns() - sample->thread_ns;
	const struct bench_sums *before = &sample->before;
	static struct bench_sums after;
	__u64 emu = 0;
	int n;

	read_sums(&after);
	if (sample->cpu >= 0)
		emu = after.cpu[sample->cpu] - before->cpu[sample->cpu];
	else
		for (n = 0; n < BENCH_MAX_CPUS; n++)
			emu += after.cpu[n] - before->cpu[n];
	printf("@bench %s %s %u ops=%llu", sample->name, sample->mode, sample->rep, ops);
	if (sample->trace_kicks)
		printf(" traced_kicks=%llu", td_kicks_stop());
	else
		printf(" tsc=%llu seamcall=%llu thread_ns=%llu", tsc, emu, ns);
	printf(" kicks=%llu busy=%llu", mirror_kicks() - sample->kicks_before,
	       after.calls.busy - before->calls.busy);
	for (n = 0; n < TD_LEAVES; n++)
		if (after.calls.leaf[n] != before->calls.leaf[n])
			printf(" leaf%d=%llu:%llu", n,
			       after.calls.leaf[n] - before->calls.leaf[n],
			       after.cycles[n] - before->cycles[n]);
	printf("\n");
	fflush(stdout);
}
