// SPDX-License-Identifier: GPL-2.0
/*
 * Shows that coverage guides the fuzzer: a row of doors, each with a key of its
 * own, the wrong one of which leads back to the first.  No random sequence gets
 * through; one that is made from those that got furthest does.  Runs anywhere.
 */
#include "fuzz.h"

#define DOORS 6
#define KEYS 32

static const char *const kinds[] = { "open" };
static unsigned int door;

static void make(struct fuzz_rng *rng, unsigned int index, struct fuzz_op *op)
{
	op->kind = 0;
	op->arg[0] = fuzz_below(rng, KEYS);
}

static const char *begin(__u64 variant)
{
	door = 0;
	return NULL;
}

static const char *run(const struct fuzz_op *op)
{
	/* Any numbers; neighbours differ. */
	static const unsigned int key[DOORS] = { 11, 30, 4, 23, 17, 8 };

	door = op->arg[0] == key[door] ? door + 1 : 0;
	fuzz_covered(door);
	if (door < DOORS)
		return NULL;
	door = 0;
	return "the last door is open";
}

static const char *end(void)
{
	return NULL;
}

int main(int argc, char **argv)
{
	static const struct fuzz_target target = {
		.name = "maze",
		.kinds = kinds,
		.nr_kinds = ARRAY_SIZE(kinds),
		.make = make,
		.begin = begin,
		.run = run,
		.end = end,
		.covers = true,
	};

	return fuzz_main(argc, argv, &target);
}
