/* SPDX-License-Identifier: GPL-2.0 */
/*
 * One measured stretch of a benchmark: ticks of the TSC, and what the software
 * TDX module and the kernel counted meanwhile.
 */
#ifndef TDX_MIRROR_BENCH_SAMPLE_H
#define TDX_MIRROR_BENCH_SAMPLE_H

#include "../selftests/tdx_mirror/probe.h"

#define BENCH_MAX_CPUS	16

/* Sums of the software TDX module; needs its parameter cycles=1. */
struct bench_sums {
	struct td_calls calls;
	__u64 cycles[TD_LEAVES];
	__u64 cpu[BENCH_MAX_CPUS];
	bool have_cycles;
};

struct bench_sample {
	const char *name;
	const char *mode;
	unsigned int rep;
	int cpu;		/* whose SEAMCALLs are taken out, -1: all */
	struct bench_sums before;
	__u64 kicks_before;
	bool trace_kicks;
	__u64 tsc;
	__u64 thread_ns;
};

/*
 * Prepares, and prints how fast the TSC runs.  False if the software TDX module
 * does not tell how long SEAMCALLs take.
 */
bool bench_prepare(void);
/*
 * Begins a stretch.  @sample->name, mode, rep, cpu and trace_kicks are set; with
 * trace_kicks the function tracer counts kicks, which makes the time useless.
 */
int bench_begin(struct bench_sample *sample);
/* Ends it: @ops operations were done.  Prints a line for bench.py. */
void bench_end(struct bench_sample *sample, __u64 ops);

#endif /* TDX_MIRROR_BENCH_SAMPLE_H */
