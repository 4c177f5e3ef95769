// SPDX-License-Identifier: GPL-2.0
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "guide.h"

/* Runs of a candidate while a sequence is made smaller: threads may mix well once in some. */
#define TRIES 4
#define MAX_MINIMISE 400
#define INTERRUPT_MS 200

struct options {
	__u64 seed, ops, seconds, first, progress;
	unsigned int threads, length;
	bool unguided;
	const char *replay;
};

static const struct fuzz_target *target;
static struct options options = {
	.seed = 1, .threads = 3, .length = 48, .progress = 10,
};

__u64 fuzz_below(struct fuzz_rng *rng, __u64 n)
{
	/* splitmix64 */
	__u64 z = rng->state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return (z ^ (z >> 31)) % n;
}

const char *fuzz_say(const char *format, ...)
{
	static __thread char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	return text;
}

static __u64 now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec;
}

static void make_sequence(struct sequence *s, struct fuzz_rng *rng)
{
	unsigned int i;

	if (guide_make(s, rng, options.threads, target->make))
		return;
	s->variant = fuzz_below(rng, 1u << 30);
	s->nr = options.length;
	for (i = 0; i < s->nr; i++) {
		s->op[i].thread = fuzz_below(rng, options.threads);
		target->make(rng, i, &s->op[i]);
	}
}

static void print_sequence(const struct sequence *s)
{
	unsigned int i;
	int j;

	printf("# --replay '@%llx", s->variant);
	for (i = 0; i < s->nr; i++) {
		const struct fuzz_op *op = &s->op[i];

		printf(" %u:%s", op->thread, target->kinds[op->kind]);
		for (j = 0; j < FUZZ_ARGS; j++)
			printf(":%llx", op->arg[j]);
	}
	printf("'\n");
	fflush(stdout);
}

static bool parse_op(char *word, struct fuzz_op *op)
{
	char *save, *part = strtok_r(word, ":", &save);
	int j;

	op->thread = part ? strtoul(part, NULL, 10) : FUZZ_MAX_THREADS;
	part = strtok_r(NULL, ":", &save);
	for (op->kind = 0; part && op->kind < target->nr_kinds; op->kind++)
		if (!strcmp(part, target->kinds[op->kind]))
			break;
	for (j = 0; j < FUZZ_ARGS; j++) {
		part = strtok_r(NULL, ":", &save);
		op->arg[j] = part ? strtoull(part, NULL, 16) : 0;
	}
	return op->thread < FUZZ_MAX_THREADS && op->kind < target->nr_kinds;
}

static bool parse_sequence(const char *text, struct sequence *s)
{
	char *copy = strdup(text), *save, *word;

	s->nr = 0;
	s->variant = 0;
	for (word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save))
		if (*word == '@')
			s->variant = strtoull(word + 1, NULL, 16);
		else if (s->nr == FUZZ_MAX_OPS || !parse_op(word, &s->op[s->nr++]))
			break;
	free(copy);
	return !word && s->nr;
}

struct worker {
	pthread_t thread;
	const struct sequence *sequence;
	unsigned int index;
	bool done;
	char failure[512];
};

static pthread_barrier_t start;

static void *work(void *data)
{
	struct worker *w = data;
	unsigned int i;

	guide_enter(w->index);
	pthread_barrier_wait(&start);
	for (i = 0; i < w->sequence->nr && !w->failure[0]; i++) {
		const struct fuzz_op *op = &w->sequence->op[i];
		const char *wrong;

		if (op->thread != w->index)
			continue;
		wrong = target->run(op);
		if (wrong)
			snprintf(w->failure, sizeof(w->failure), "%s: %s",
				 target->kinds[op->kind], wrong);
	}
	guide_leave();
	__atomic_store_n(&w->done, true, __ATOMIC_RELEASE);
	return NULL;
}

static void on_signal(int number)
{
}

/*
 * A call that lasts, because its vCPUs loop, is interrupted.  All threads are: one may
 * wait for a lock of a vCPU, which no signal ends, that another holds in such a call.
 */
static void join_all(struct worker *workers, unsigned int nr)
{
	struct timespec until;
	unsigned int i = 0, j;

	while (i < nr) {
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += 1000000ul * (target->interrupt_ms ?: INTERRUPT_MS);
		if (until.tv_nsec >= 1000000000) {
			until.tv_nsec -= 1000000000;
			until.tv_sec++;
		}
		if (!pthread_timedjoin_np(workers[i].thread, NULL, &until)) {
			i++;
			continue;
		}
		for (j = i; j < nr; j++)
			if (!__atomic_load_n(&workers[j].done, __ATOMIC_ACQUIRE))
				pthread_kill(workers[j].thread, SIGUSR1);
	}
}

/* What the kernel found wrong since it booted: bits of a WARN, of a BUG and of a bad page. */
#define TAINT_BAD ((1ul << 5) | (1ul << 7) | (1ul << 9))

static unsigned long taint(void)
{
	FILE *file = fopen("/proc/sys/kernel/tainted", "r");
	unsigned long value = 0;

	if (!file || fscanf(file, "%lu", &value) != 1)
		value = 0;
	if (file)
		fclose(file);
	return value & TAINT_BAD;
}

/* Runs one sequence; NULL or what went wrong. */
static const char *run_sequence(const struct sequence *s)
{
	static struct worker workers[FUZZ_MAX_THREADS];
	static char failure[600];
	unsigned long before = taint();
	unsigned int i, nr = 0;
	const char *wrong;

	wrong = target->begin(s->variant);
	if (wrong)
		return wrong;
	for (i = 0; i < s->nr; i++)
		if (s->op[i].thread >= nr)
			nr = s->op[i].thread + 1;
	pthread_barrier_init(&start, NULL, nr);
	for (i = 0; i < nr; i++) {
		workers[i] = (struct worker){ .sequence = s, .index = i };
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i])) {
			perror("pthread_create");
			exit(1);
		}
	}
	join_all(workers, nr);
	pthread_barrier_destroy(&start);
	failure[0] = 0;
	for (i = 0; i < nr && !failure[0]; i++)
		snprintf(failure, sizeof(failure), "%s", workers[i].failure);
	wrong = target->end();
	if (!failure[0] && wrong)
		snprintf(failure, sizeof(failure), "%s", wrong);
	if (!failure[0] && taint() != before)
		snprintf(failure, sizeof(failure), "the kernel warned, see its log");
	return failure[0] ? failure : NULL;
}

static bool fails(const struct sequence *s)
{
	int i;

	for (i = 0; i < TRIES; i++)
		if (run_sequence(s))
			return true;
	return false;
}

/* Takes out ever smaller pieces, as long as what is left still fails. */
static void minimise(struct sequence *s)
{
	static struct sequence smaller;
	unsigned int piece = s->nr / 2, at, left = MAX_MINIMISE;

	while (piece && left) {
		bool shrunk = false;

		for (at = 0; at < s->nr && s->nr > 1 && left;) {
			unsigned int end = at + piece < s->nr ? at + piece : s->nr;

			smaller.variant = s->variant;
			smaller.nr = s->nr - (end - at);
			if (!smaller.nr)
				break;
			memcpy(smaller.op, s->op, at * sizeof(*s->op));
			memcpy(smaller.op + at, s->op + end, (s->nr - end) * sizeof(*s->op));
			left--;
			if (fails(&smaller)) {
				*s = smaller;
				shrunk = true;
			} else {
				at = end;
			}
		}
		if (!shrunk || piece > s->nr)
			piece /= 2;
	}
}

static int replay(void)
{
	static struct sequence s;
	const char *wrong = NULL;
	int i;

	if (!parse_sequence(options.replay, &s)) {
		fprintf(stderr, "%s: not a sequence\n", target->name);
		return 2;
	}
	for (i = 0; i < 20 && !wrong; i++)
		wrong = run_sequence(&s);
	printf("1..1\n%s 1 fuzz.%s.replay%s%s\n", wrong ? "not ok" : "ok", target->name,
	       wrong ? " # " : "", wrong ?: "");
	return wrong ? 1 : 0;
}

/* The end of a line about progress. */
static void print_covered(bool guided)
{
	if (guided)
		printf("; %u steps of code seen, %u sequences kept", guide_seen(), guide_kept());
	printf("\n");
	fflush(stdout);
}

static int fuzz(void)
{
	static struct sequence s;
	static char wrong[600];
	__u64 episode = options.first, done = 0, begin = now(), shown = begin;
	const char *found = NULL;
	bool guided = !options.unguided && guide_open(options.threads, target->covers);

	printf("# %s: seed %llu, from episode %llu%s\n", target->name, options.seed, episode,
	       guided ? ", guided by coverage" : "");
	fflush(stdout);
	while (!found && (options.ops ? done < options.ops : true) &&
	       (options.seconds ? now() - begin < options.seconds : true)) {
		struct fuzz_rng rng = { options.seed * 0x100000001b3ULL + episode };

		make_sequence(&s, &rng);
		found = run_sequence(&s);
		if (guided)
			guide_learn(&s, &rng);
		done += s.nr;
		episode++;
		if (now() - shown >= options.progress) {
			shown = now();
			printf("# %s: episode %llu, %llu operations in %llu s", target->name,
			       episode, done, shown - begin);
			print_covered(guided);
		}
	}
	printf("1..1\n# %s: seed %llu, %u threads, %llu episodes, %llu operations in %llu s",
	       target->name, options.seed, options.threads, episode - options.first, done,
	       now() - begin);
	print_covered(guided);
	/* The kernel has KCOV, but no module that was built for it. */
	if (!found && guided && !guide_seen())
		found = "no coverage";
	if (!found) {
		printf("ok 1 fuzz.%s\n", target->name);
		return 0;
	}
	snprintf(wrong, sizeof(wrong), "%s", found);
	printf("# failed: %s\n# --seed %llu --threads %u --length %u, episode %llu%s, in full:\n",
	       wrong, options.seed, options.threads, options.length, episode - 1,
	       guided ? " (made from earlier ones)" : "");
	print_sequence(&s);
	if (fails(&s)) {
		minimise(&s);
		printf("# minimised to %u operations:\n", s.nr);
		print_sequence(&s);
	} else {
		printf("# it did not fail again in %d runs\n", TRIES);
	}
	printf("not ok 1 fuzz.%s # %s\n", target->name, wrong);
	return 1;
}

int fuzz_main(int argc, char **argv, const struct fuzz_target *fuzzed)
{
	static const struct option long_options[] = { { "seed", required_argument, NULL, 's' },
						      { "ops", required_argument, NULL, 'o' },
						      { "seconds", required_argument, NULL, 't' },
						      { "threads", required_argument, NULL, 'n' },
						      { "length", required_argument, NULL, 'l' },
						      { "replay", required_argument, NULL, 'r' },
						      { "first", required_argument, NULL, 'f' },
						      { "progress", required_argument, NULL, 'p' },
						      { "unguided", no_argument, NULL, 'u' },
						      {} };
	const struct sigaction action = { .sa_handler = on_signal };
	int c;

	target = fuzzed;
	while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
		switch (c) {
		case 's':
			options.seed = strtoull(optarg, NULL, 0);
			break;
		case 'o':
			options.ops = strtoull(optarg, NULL, 0);
			break;
		case 't':
			options.seconds = strtoull(optarg, NULL, 0);
			break;
		case 'n':
			options.threads = strtoul(optarg, NULL, 0);
			break;
		case 'l':
			options.length = strtoul(optarg, NULL, 0);
			break;
		case 'r':
			options.replay = optarg;
			break;
		case 'f':
			options.first = strtoull(optarg, NULL, 0);
			break;
		case 'p':
			options.progress = strtoull(optarg, NULL, 0);
			break;
		case 'u':
			options.unguided = true;
			break;
		default:
			return 2;
		}
	}
	if (!options.threads || options.threads > FUZZ_MAX_THREADS || !options.length ||
	    options.length > FUZZ_MAX_OPS ||
	    (!options.ops && !options.seconds && !options.replay)) {
		fprintf(stderr,
			"%s: --threads 1..%d, --length 1..%d, and --ops, --seconds or --replay\n",
			argv[0], FUZZ_MAX_THREADS, FUZZ_MAX_OPS);
		return 2;
	}
	sigaction(SIGUSR1, &action, NULL);
	return options.replay ? replay() : fuzz();
}
