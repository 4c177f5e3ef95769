/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A seeded fuzzer of sequences of calls.  Time is cut into episodes: a number of
 * operations, spread over threads, on objects that are new in each episode.  The
 * seed and the number of an episode give its operations, unless coverage guides;
 * how the threads mix is up to the machine.  An episode that fails is repeated and
 * made smaller, and what is left is printed in a form that --replay takes.
 */
#ifndef TDX_MIRROR_FUZZ_H
#define TDX_MIRROR_FUZZ_H

#include <stdbool.h>
#include <stddef.h>

#include <linux/types.h>

#ifndef ARRAY_SIZE
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#endif

#define FUZZ_MAX_THREADS 8
#define FUZZ_MAX_OPS 512
#define FUZZ_ARGS 4

/**
 * struct fuzz_op - one call
 * @thread: which thread makes it
 * @kind: which call, below fuzz_target.nr_kinds
 * @arg: its arguments, as fuzz_target.make chose them
 */
struct fuzz_op {
	unsigned int thread;
	unsigned int kind;
	__u64 arg[FUZZ_ARGS];
};

struct fuzz_rng {
	__u64 state;
};

/* A number from 0 to @n - 1. */
__u64 fuzz_below(struct fuzz_rng *rng, __u64 n);

/**
 * struct fuzz_target - what is fuzzed
 * @name: for messages
 * @kinds: names of the calls
 * @nr_kinds: how many
 * @make: chooses kind and arguments of operation @index of an episode
 * @begin: before an episode, with a number below 2^30 that it may start from in
 *	its own way; NULL or why it cannot begin
 * @run: makes a call, in its thread; NULL or what is wrong with its result
 * @end: after all threads have ended; NULL or what is wrong now
 * @covers: the target says itself what code ran, with fuzz_covered()
 * @interrupt_ms: after so long (below 1000; 0: 200) a call gets a signal, and again
 *	after as long: it may last for ever
 */
struct fuzz_target {
	const char *name;
	const char *const *kinds;
	unsigned int nr_kinds;
	void (*make)(struct fuzz_rng *rng, unsigned int index, struct fuzz_op *op);
	const char *(*begin)(__u64 variant);
	const char *(*run)(const struct fuzz_op *op);
	const char *(*end)(void);
	bool covers;
	unsigned int interrupt_ms;
};

/* Text of a failure, kept until the thread's next call; for run and end. */
const char *fuzz_say(const char *format, ...);

/* From run: the thread has been at @place, any number but 0. */
void fuzz_covered(unsigned long place);

/*
 * The command line: --seed N --ops N --seconds N --threads N --length N --unguided
 * --progress SECONDS --first EPISODE --replay '@VARIANT THREAD:KIND:A:B:C:D ...'.
 * Prints TAP; the exit status is 0 or 1.  Where there is coverage it guides, see
 * guide.h, unless the episodes are to follow from the seed alone (--unguided).
 */
int fuzz_main(int argc, char **argv, const struct fuzz_target *target);

#endif
