// SPDX-License-Identifier: GPL-2.0
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/kcov.h>

#include "guide.h"

#define KCOV "/sys/kernel/debug/kcov"
/* Of one thread in one episode; what comes after is not seen. */
#define TRACE_WORDS 262144ul
#define MAP_BITS 4194304ul
#define MAX_KEPT 256

/* The first word counts those after it. */
struct trace {
	int fd;
	unsigned long *words;
};

static struct trace traces[FUZZ_MAX_THREADS];
static unsigned int nr_traces;
static __thread struct trace *mine;
static unsigned char map[MAP_BITS / 8];
static unsigned int seen, nr_kept;
static struct sequence kept[MAX_KEPT];

static bool open_kcov(struct trace *t)
{
	t->fd = open(KCOV, O_RDWR | O_CLOEXEC);
	if (t->fd < 0 || ioctl(t->fd, KCOV_INIT_TRACE, TRACE_WORDS))
		return false;
	t->words = mmap(NULL, TRACE_WORDS * sizeof(*t->words), PROT_READ | PROT_WRITE, MAP_SHARED,
			t->fd, 0);
	return t->words != MAP_FAILED;
}

bool guide_open(unsigned int threads, bool own)
{
	unsigned int i;

	for (i = 0; i < threads; i++) {
		struct trace *t = &traces[i];

		t->fd = -1;
		if (own)
			t->words = calloc(TRACE_WORDS, sizeof(*t->words));
		else if (!open_kcov(t))
			return false;
		if (!t->words)
			return false;
	}
	nr_traces = threads;
	return true;
}

void guide_enter(unsigned int thread)
{
	if (thread >= nr_traces)
		return;
	mine = &traces[thread];
	__atomic_store_n(&mine->words[0], 0, __ATOMIC_RELAXED);
	if (mine->fd >= 0 && ioctl(mine->fd, KCOV_ENABLE, KCOV_TRACE_PC)) {
		perror(KCOV);
		exit(1);
	}
}

void guide_leave(void)
{
	if (mine && mine->fd >= 0)
		ioctl(mine->fd, KCOV_DISABLE, 0);
	mine = NULL;
}

void fuzz_covered(unsigned long place)
{
	unsigned long n;

	if (!mine || mine->fd >= 0)
		return;
	n = mine->words[0] + 1;
	if (n < TRACE_WORDS) {
		mine->words[n] = place;
		mine->words[0] = n;
	}
}

/* Which steps of a trace are new, counted; a step is a place and the one before it. */
static unsigned int merge(const struct trace *t)
{
	unsigned long n = __atomic_load_n(&t->words[0], __ATOMIC_RELAXED), i, before = 0;
	unsigned int found = 0;

	for (i = 1; i <= n && i < TRACE_WORDS; i++) {
		unsigned long place = t->words[i];
		unsigned long bit = (place ^ before * 0x9e3779b97f4a7c15ul) * 0xff51afd7ed558ccdul;

		before = place;
		bit = (bit >> 20) % MAP_BITS;
		if (map[bit / 8] & 1u << bit % 8)
			continue;
		map[bit / 8] |= 1u << bit % 8;
		found++;
	}
	return found;
}

void guide_learn(const struct sequence *s, struct fuzz_rng *rng)
{
	unsigned int i, found = 0;

	for (i = 0; i < nr_traces; i++) {
		found += merge(&traces[i]);
		/* A thread without a call in the next episode leaves it so. */
		traces[i].words[0] = 0;
	}
	seen += found;
	if (!found)
		return;
	/* The newest are at the end; an old one makes room. */
	if (nr_kept == MAX_KEPT) {
		unsigned int old = fuzz_below(rng, MAX_KEPT / 2);

		memmove(&kept[old], &kept[old + 1], (MAX_KEPT - old - 1) * sizeof(*kept));
		nr_kept--;
	}
	kept[nr_kept++] = *s;
}

/* Any, but rather one of those that found something last. */
static const struct sequence *choose(struct fuzz_rng *rng)
{
	unsigned int back = fuzz_below(rng, nr_kept);

	return &kept[nr_kept - 1 - fuzz_below(rng, back + 1)];
}

bool guide_make(struct sequence *s, struct fuzz_rng *rng, unsigned int threads,
		void (*make)(struct fuzz_rng *rng, unsigned int index, struct fuzz_op *op))
{
	unsigned int changes, at, i;

	if (!nr_kept || !fuzz_below(rng, 4))
		return false;
	*s = *choose(rng);
	for (changes = 1 + fuzz_below(rng, 3); changes; changes--) {
		const struct sequence *other = choose(rng);

		at = fuzz_below(rng, s->nr);
		switch (fuzz_below(rng, 6)) {
		case 0: /* the end of another one */
			for (i = at; i < s->nr && i < other->nr; i++)
				s->op[i] = other->op[i];
			break;
		case 1: /* a call once more */
			i = fuzz_below(rng, s->nr);
			s->op[at] = s->op[i];
			break;
		case 2: /* the same calls by another thread */
			for (i = at; i < s->nr && i < at + 8; i++)
				s->op[i].thread = fuzz_below(rng, threads);
			break;
		case 3:
			s->variant = fuzz_below(rng, 1u << 30);
			break;
		default: /* some fresh calls */
			for (i = at; i < s->nr && i <= at + fuzz_below(rng, 4); i++) {
				s->op[i].thread = fuzz_below(rng, threads);
				make(rng, i, &s->op[i]);
			}
		}
	}
	return true;
}

unsigned int guide_seen(void)
{
	return seen;
}

unsigned int guide_kept(void)
{
	return nr_kept;
}
