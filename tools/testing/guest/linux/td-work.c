// SPDX-License-Identifier: GPL-2.0
/*
 * Work for a Linux that runs as a TD, on all of its vCPUs at once.
 *
 * usage: td-work memory LEAVE_MIB   write and verify all available memory but LEAVE_MIB
 *        td-work wake ROUNDS        threads on two vCPUs wake each other, with IPIs
 *        td-work sleep ROUNDS       sleeps of 2 ms on each vCPU, of the right length
 *        td-work load ROUNDS        the same computation on each vCPU, equal results
 *
 * Prints what it did. The exit status is 0 if all was as it must be, 1 if not,
 * 2 for wrong use or a missing resource.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <linux/types.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define CPUS_MAX 8
#define MIB (1024 * 1024UL)
#define UNIT_MIB 8UL
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

static unsigned int cpus;
static atomic_int failures;
static pthread_barrier_t all_there;

static void bad(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	printf("td-work: not as it must be: ");
	vprintf(format, args);
	printf("\n");
	va_end(args);
	atomic_fetch_add(&failures, 1);
}

static void give_up(const char *what)
{
	printf("td-work: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void pin(unsigned int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		give_up("sched_setaffinity");
}

/* A figure of the kernel's memory in KiB; -1 if the kernel has none of that name. */
static long meminfo(const char *name)
{
	char line[128];
	long value = -1;
	FILE *file = fopen("/proc/meminfo", "r");

	if (!file)
		give_up("/proc/meminfo");
	while (fgets(line, sizeof(line), file)) {
		if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ':')
			value = atol(line + strlen(name) + 1);
	}
	fclose(file);
	return value;
}

static __u64 now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

/* Runs one thread on each of the first `count` vCPUs, with its number. */
static void on_cpus(unsigned int count, void *(*thread)(void *))
{
	pthread_t threads[CPUS_MAX];
	unsigned int i;

	if (pthread_barrier_init(&all_there, NULL, count))
		give_up("pthread_barrier_init");
	for (i = 0; i < count; i++) {
		errno = pthread_create(&threads[i], NULL, thread, (void *)(uintptr_t)i);
		if (errno)
			give_up("pthread_create");
	}
	for (i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
}

/* memory */

static char *memory;
static size_t share;	/* bytes per vCPU, whole pages */

static __u64 page_word(size_t page, unsigned int word)
{
	return (page + 1) * 0x9e3779b97f4a7c15ULL ^ word;
}

/* The words of a page that are written and verified: one per 512 bytes. */
#define WORDS 8
#define STRIDE (PAGE / WORDS / sizeof(__u64))

static void *memory_thread(void *arg)
{
	unsigned int me = (uintptr_t)arg, other = (me + 1) % cpus, word, quarter = 1;
	size_t pages = share / PAGE, i, page, wrong = 0;

	pin(me);
	pthread_barrier_wait(&all_there);
	for (i = 0; i < pages; i++) {
		__u64 *words = (__u64 *)(memory + me * share + i * PAGE);

		page = me * pages + i;
		for (word = 0; word < WORDS; word++)
			__atomic_store_n(&words[word * STRIDE], page_word(page, word),
					 __ATOMIC_RELAXED);
		/* One vCPU tells, so that two boots print the same. */
		if (!me && i + 1 == pages * quarter / 4) {
			printf("td-work: memory: %u of 4 parts are written\n", quarter);
			quarter++;
		}
	}
	pthread_barrier_wait(&all_there);
	/* The part of another vCPU, which must see the same memory. */
	for (i = 0; i < pages; i++) {
		__u64 *words = (__u64 *)(memory + other * share + i * PAGE);

		page = other * pages + i;
		for (word = 0; word < WORDS; word++)
			wrong += __atomic_load_n(&words[word * STRIDE], __ATOMIC_RELAXED) !=
				 page_word(page, word);
	}
	if (wrong)
		bad("vCPU %u found %zu wrong words in the memory of vCPU %u", me, wrong, other);
	return NULL;
}

static void work_memory(unsigned long leave)
{
	long available = meminfo("MemAvailable"), before = meminfo("Unaccepted"), after;

	if (available < 0 || (unsigned long)available / 1024 < leave + cpus * UNIT_MIB) {
		printf("td-work: MemAvailable is %ld KiB, that is too little to leave %lu MiB\n",
		       available, leave);
		exit(2);
	}
	/* Whole units, so that a few pages more or less make no difference. */
	share = (available / 1024 - leave) / cpus / UNIT_MIB * UNIT_MIB * MIB;
	memory = mmap(NULL, cpus * share, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		give_up("mmap");
	printf("td-work: memory: %lu MiB of %ld MiB, on %u vCPUs; unaccepted %ld KiB\n",
	       cpus * share / MIB, meminfo("MemTotal") / 1024, cpus, before);
	on_cpus(cpus, memory_thread);
	after = meminfo("Unaccepted");
	printf("td-work: memory: %lu pages written and verified; unaccepted %ld KiB\n",
	       cpus * share / PAGE, after);
	if (munmap(memory, cpus * share))
		give_up("munmap");
	if (before > 0 && after >= before)
		bad("unaccepted memory was %ld KiB and is %ld KiB", before, after);
	if (after > (long)((leave + cpus * UNIT_MIB) * 1024))
		bad("%ld KiB are still not accepted, with %lu MiB left alone", after, leave);
}

/* wake */

static atomic_uint turn;
static unsigned long rounds;

static void futex(int op, unsigned int value)
{
	struct timespec minute = { .tv_sec = 60 };
	struct timespec *limit = op == FUTEX_WAIT_PRIVATE ? &minute : NULL;

	if (syscall(SYS_futex, &turn, op, value, limit, NULL, 0) < 0 && errno != EAGAIN &&
	    errno != EINTR)
		give_up("futex");
}

static void *wake_thread(void *arg)
{
	unsigned int me = (uintptr_t)arg, round, seen;

	pin(me);
	pthread_barrier_wait(&all_there);
	for (round = 0; round < rounds; round++) {
		for (;;) {
			seen = atomic_load(&turn);
			if (seen == 2 * round + me)
				break;
			futex(FUTEX_WAIT_PRIVATE, seen);
		}
		if (sched_getcpu() != (int)me)
			bad("a thread of vCPU %u runs on %d", me, sched_getcpu());
		/* An IPI to the other vCPU that must be answered before it returns. */
		if (round % 8 == 0 &&
		    syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0))
			give_up("membarrier");
		atomic_fetch_add(&turn, 1);
		futex(FUTEX_WAKE_PRIVATE, 1);
	}
	return NULL;
}

static void work_wake(unsigned long count)
{
	rounds = count;
	if (cpus < 2) {
		printf("td-work: wake: one vCPU, nothing to do\n");
		return;
	}
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0))
		give_up("membarrier");
	on_cpus(2, wake_thread);
	if (atomic_load(&turn) != 2 * count)
		bad("%u turns were taken", atomic_load(&turn));
	printf("td-work: wake: 2 vCPUs woke each other %lu times\n", 2 * count);
}

/* sleep */

static void *sleep_thread(void *arg)
{
	const struct timespec length = { .tv_nsec = 2000000 };
	unsigned int me = (uintptr_t)arg;
	unsigned long round;
	__u64 start, slept;

	pin(me);
	pthread_barrier_wait(&all_there);
	for (round = 0; round < rounds; round++) {
		start = now_ns();
		if (clock_nanosleep(CLOCK_MONOTONIC, 0, &length, NULL))
			give_up("clock_nanosleep");
		slept = now_ns() - start;
		if (slept < 2000000)
			bad("vCPU %u slept %llu ns instead of 2 ms", me, slept);
		/* Late is not wrong in an emulator, but it is not lost either. */
		if (slept > 10000000000ULL)
			bad("vCPU %u slept %llu ns instead of 2 ms", me, slept);
	}
	return NULL;
}

static void work_sleep(unsigned long count)
{
	rounds = count;
	on_cpus(cpus, sleep_thread);
	printf("td-work: sleep: %lu sleeps on each of %u vCPUs\n", count, cpus);
}

/* load */

static double results[CPUS_MAX];

/* One round: integers, doubles and memory, the same on every vCPU. */
static double compute(unsigned long round)
{
	__u64 state = round * 2862933555777941757ULL + 3037000493ULL;
	double sum = 0;
	int i;

	for (i = 0; i < 10000; i++) {
		state = state * 6364136223846793005ULL + 1442695040888963407ULL;
		sum += (double)(state >> 40) / (i + 1);
		if (i % 1000 == 0)
			sum /= 3;
	}
	return sum;
}

static void *load_thread(void *arg)
{
	unsigned int me = (uintptr_t)arg;
	unsigned long round;

	pin(me);
	pthread_barrier_wait(&all_there);
	for (round = 0; round < rounds; round++)
		results[me] += compute(round);
	return NULL;
}

static void work_load(unsigned long count)
{
	unsigned int i;

	rounds = count;
	on_cpus(cpus, load_thread);
	for (i = 1; i < cpus; i++) {
		if (results[i] != results[0])
			bad("vCPU %u computed %a and vCPU 0 %a", i, results[i], results[0]);
	}
	printf("td-work: load: %lu rounds on each of %u vCPUs\n", count, cpus);
}

static const struct {
	const char *name;
	void (*work)(unsigned long count);
} works[] = {
	{ "memory", work_memory },
	{ "wake", work_wake },
	{ "sleep", work_sleep },
	{ "load", work_load },
};

int main(int argc, char **argv)
{
	long online = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned long count;
	unsigned int i;
	char *end;

	setvbuf(stdout, NULL, _IOLBF, 0);
	cpus = online > CPUS_MAX ? CPUS_MAX : online;
	if (argc == 3) {
		count = strtoul(argv[2], &end, 10);
		for (i = 0; i < ARRAY_SIZE(works) && !*end; i++) {
			if (strcmp(argv[1], works[i].name))
				continue;
			works[i].work(count);
			return atomic_load(&failures) ? 1 : 0;
		}
	}
	fprintf(stderr, "usage: td-work memory|wake|sleep|load NUMBER\n");
	return 2;
}
