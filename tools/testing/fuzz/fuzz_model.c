// SPDX-License-Identifier: GPL-2.0
/*
 * Shows that the fuzzer finds a bug, makes the sequence small and replays it:
 * pages that are mapped and zapped in memory of this program only, with a bug
 * that needs three calls on one page.  Runs anywhere.  "stay" stands for a vCPU that
 * runs for ever: only a signal ends it, and who waits for its lock hears none.
 */
#include <pthread.h>
#include <unistd.h>

#include "fuzz.h"

#define PAGES 16

/* STAY is only ever replayed. */
enum { MAP, ZAP, LOOK, NR_RANDOM, STAY = NR_RANDOM, NR_KINDS };

static const char *const kinds[NR_KINDS] = { "map", "zap", "look", "stay" };
static int step[PAGES];
static pthread_mutex_t running = PTHREAD_MUTEX_INITIALIZER;

static void make(struct fuzz_rng *rng, unsigned int index, struct fuzz_op *op)
{
	op->kind = fuzz_below(rng, NR_RANDOM);
	op->arg[0] = fuzz_below(rng, PAGES);
}

static const char *begin(__u64 variant)
{
	for (int i = 0; i < PAGES; i++)
		step[i] = 0;
	return NULL;
}

/* Zapped and mapped again, the page is gone for who looks. */
static const char *run(const struct fuzz_op *op)
{
	int *at = &step[op->arg[0] % PAGES];

	if (op->kind == STAY) {
		pthread_mutex_lock(&running);
		pause();
		pthread_mutex_unlock(&running);
		return NULL;
	}
	if (op->kind == MAP)
		__atomic_store_n(at, *at == 2 ? 3 : 1, __ATOMIC_RELAXED);
	else if (op->kind == ZAP)
		__atomic_store_n(at, *at == 1 ? 2 : 0, __ATOMIC_RELAXED);
	else if (__atomic_load_n(at, __ATOMIC_RELAXED) == 3)
		return fuzz_say("page %d is gone", (int)(op->arg[0] % PAGES));
	return NULL;
}

static const char *end(void)
{
	return NULL;
}

int main(int argc, char **argv)
{
	static const struct fuzz_target target = {
		.name = "model",
		.kinds = kinds,
		.nr_kinds = ARRAY_SIZE(kinds),
		.make = make,
		.begin = begin,
		.run = run,
		.end = end,
		.interrupt_ms = 5,
	};

	return fuzz_main(argc, argv, &target);
}
