/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Coverage as a guide: sequences that ran code that none before them ran are kept,
 * and most later ones are made from them.  The code is the kernel's, as KCOV
 * records it for each thread, or what the target says with fuzz_covered().
 */
#ifndef TDX_MIRROR_FUZZ_GUIDE_H
#define TDX_MIRROR_FUZZ_GUIDE_H

#include "fuzz.h"

struct sequence {
	__u64 variant;
	unsigned int nr;
	struct fuzz_op op[FUZZ_MAX_OPS];
};

/* Whether there is coverage for @threads threads: KCOV's, or @own of the target. */
bool guide_open(unsigned int threads, bool own);

/* In the thread with number @thread, around its calls. */
void guide_enter(unsigned int thread);
void guide_leave(void);

/*
 * Makes @s from the kept sequences, or answers false now and then, and as long as
 * none is kept: then a fresh one is due.  @make and @threads as for a fresh one.
 */
bool guide_make(struct sequence *s, struct fuzz_rng *rng, unsigned int threads,
		void (*make)(struct fuzz_rng *rng, unsigned int index, struct fuzz_op *op));

/* After all threads of @s have left: keeps it if it ran new code. */
void guide_learn(const struct sequence *s, struct fuzz_rng *rng);

/* Places in the code that were seen, as steps from one to the next, and kept sequences. */
unsigned int guide_seen(void);
unsigned int guide_kept(void);

#endif
