// SPDX-License-Identifier: GPL-2.0
/*
 * TDs of /dev/tdx_mirror_test: the mirror of tdx_mirror.ko against the software
 * TDX module, without KVM and without VMX.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <linux/tdx_mirror_test.h>

#include "kselftest_harness.h"
#include "testdev_code.h"

#define DEVICE		"/dev/tdx_mirror_test"
#define FIGURES		"/sys/kernel/debug/tdx_mirror"
#define SEED		0x5eed2026UL
#define THREADS		4
#define LIVES		200	/* of TDs, for each thread */

FIXTURE(testdev) {
	int fd;
	struct tdx_test_stats before;
};

static struct tdx_test_stats stats_of(int fd)
{
	struct tdx_test_stats s = { .audit = ~0ULL };

	ioctl(fd, TDX_TEST_STATS, &s);
	return s;
}

FIXTURE_SETUP(testdev)
{
	self->fd = open(DEVICE, O_RDWR);
	if (self->fd < 0)
		SKIP(return, DEVICE ": %s (is tdx_mirror_test.ko loaded?)", strerror(errno));
	self->before = stats_of(self->fd);
	ASSERT_EQ(0, self->before.emu_owned);
}

FIXTURE_TEARDOWN(testdev)
{
	struct tdx_test_stats s;
	int fd;

	if (self->fd < 0)
		return;
	close(self->fd);

	fd = open(DEVICE, O_RDWR);
	ASSERT_LE(0, fd);
	s = stats_of(fd);
	EXPECT_EQ(0, s.emu_owned);
	EXPECT_EQ(0, s.emu_errors);
	EXPECT_EQ(0, s.lost);
	EXPECT_EQ(s.emu_present - self->before.emu_present,
		  s.emu_removed - self->before.emu_removed);
	close(fd);
}

/* ioctl() with 0 or a positive errno. */
#define DO(fd, ...) (ioctl(fd, __VA_ARGS__) ? errno : 0)

static int create(int fd, uint32_t pages, uint32_t vcpus)
{
	struct tdx_test_create c = { pages, vcpus };

	return DO(fd, TDX_TEST_CREATE, &c);
}

static int build(int fd, uint64_t gfn, uint64_t nr, const void *source)
{
	struct tdx_test_build b = { gfn, nr, (uintptr_t)source };

	return DO(fd, TDX_TEST_BUILD, &b);
}

static int range(int fd, unsigned long cmd, uint64_t gfn, uint64_t nr, struct tdx_test_range *out)
{
	struct tdx_test_range r = { .gfn = gfn, .nr = nr };
	int ret = DO(fd, cmd, &r);

	if (out)
		*out = r;
	return ret;
}

/* A TD with its program, final. */
static int create_final(int fd, uint64_t seed)
{
	static struct code code;
	uint8_t reset[PAGE] = {};
	const uint8_t jump = JMP;
	int ret;

	random_program(&code, seed);
	if (code.len > sizeof(code.bytes))
		return E2BIG;
	/* An immediate of zero: the program begins at GPA 0. */
	reset[RESET_OFFSET] = jump;
	ret = create(fd, RAM_PAGES, VCPUS);
	ret = ret ?: build(fd, 0, CODE_PAGES, code.bytes);
	ret = ret ?: build(fd, TDX_TEST_RESET_GFN, 1, reset);
	return ret ?: DO(fd, TDX_TEST_FINALIZE);
}

/* The figures of both sides, and the tables, agree while nothing runs. */
static bool agree(int fd, const struct tdx_test_stats *before)
{
	struct tdx_test_stats s = stats_of(fd);
	bool ok = s.audit == 0 && s.quarantined == 0 && s.leaked == 0 &&
		s.leaf_transitions == s.set_ok && s.leaf_transitions == s.mapped &&
		s.leaf_transitions == s.emu_present - before->emu_present &&
		s.zapped == s.emu_removed - before->emu_removed &&
		s.present == s.mapped - s.zapped;

	ksft_print_msg("%llu to present, set %llu, module %llu; %llu zapped, %llu; %llu there\n",
		       s.leaf_transitions, s.set_ok, s.emu_present - before->emu_present,
		       s.zapped, s.emu_removed - before->emu_removed, s.present);
	ksft_print_msg("audit %llu, busy %llu, retries %llu, kicks %llu, yields %llu\n",
		       s.audit, s.busy, s.retries, s.kicks, s.yields);
	return ok;
}

TEST_F(testdev, life_cycle)
{
	struct tdx_test_run run = { .rounds = 3 };
	struct tdx_test_range r;
	struct tdx_test_stats s;

	ASSERT_EQ(0, create_final(self->fd, SEED));
	ASSERT_TRUE(agree(self->fd, &self->before));

	ASSERT_EQ(0, range(self->fd, TDX_TEST_MAP, DATA_GFN, 4, &r));
	EXPECT_EQ(4, r.changed);
	ASSERT_EQ(0, range(self->fd, TDX_TEST_MAP, DATA_GFN, 4, &r));
	EXPECT_EQ(0, r.changed);
	ASSERT_TRUE(agree(self->fd, &self->before));

	ASSERT_EQ(0, DO(self->fd, TDX_TEST_RUN, &run));
	EXPECT_EQ(3 * VCPUS, run.done);
	EXPECT_EQ(0, run.bad);
	EXPECT_LT(0, run.faults);
	ASSERT_TRUE(agree(self->fd, &self->before));
	s = stats_of(self->fd);
	EXPECT_LT(self->before.emu_accepts, s.emu_accepts);
	EXPECT_EQ(CODE_PAGES + 1 + DATA_PAGES, s.present);

	ASSERT_EQ(0, range(self->fd, TDX_TEST_ZAP, DATA_GFN, DATA_PAGES, &r));
	EXPECT_EQ(DATA_PAGES, r.changed);
	ASSERT_TRUE(agree(self->fd, &self->before));

	/* The vCPUs go on where they were, with empty memory. */
	run.rounds = 1;
	ASSERT_EQ(0, DO(self->fd, TDX_TEST_RUN, &run));
	EXPECT_EQ(0, run.bad);
	ASSERT_TRUE(agree(self->fd, &self->before));

	ASSERT_EQ(0, DO(self->fd, TDX_TEST_DESTROY));
	EXPECT_EQ(0, stats_of(self->fd).emu_owned);
	/* The file is free for another TD, which its end destroys. */
	ASSERT_EQ(0, create_final(self->fd, SEED + 1));
}

static int inject(int fd, const char *text)
{
	struct tdx_test_inject i = { (uintptr_t)text, strlen(text) };

	return DO(fd, TDX_TEST_INJECT, &i);
}

struct worker {
	pthread_t thread;
	int fd, error;
	uint64_t seed;
	atomic_bool *stop;
	atomic_ullong mapped;
	uint64_t zapped, retries;
};

/* Maps and zaps at random, as faults of other vCPUs and the VMM would. */
static void *work(void *data)
{
	struct worker *w = data;
	struct rng rng = { w->seed };

	while (!*w->stop && !w->error) {
		uint64_t gfn = DATA_GFN + below(&rng, DATA_PAGES);
		uint64_t nr = 1 + below(&rng, RAM_PAGES - gfn);
		bool map = below(&rng, 2);
		struct tdx_test_range r;

		w->error = range(w->fd, map ? TDX_TEST_MAP : TDX_TEST_ZAP, gfn, nr, &r);
		if (map)
			w->mapped += r.changed;
		else
			w->zapped += r.changed;
		w->retries += r.retries;
		if (w->error == EAGAIN)
			w->error = 0;
	}
	return NULL;
}

TEST_F_TIMEOUT(testdev, parallel, 120)
{
	struct tdx_test_run run, sum = {};
	struct worker workers[THREADS] = {};
	atomic_bool stop = false;
	uint64_t mapped = 0;
	char script[64];
	int i;

	/* A guest that accepts the first page which the threads map, until one call met it. */
	snprintf(script, sizeof(script), "hold entry %x 0 guest busy=1", DATA_GFN << 12);

	ASSERT_EQ(0, create_final(self->fd, SEED));
	for (i = 0; i < THREADS; i++) {
		workers[i].fd = self->fd;
		workers[i].seed = SEED * (i + 1);
		workers[i].stop = &stop;
		ASSERT_EQ(0, pthread_create(&workers[i].thread, NULL, work, &workers[i]));
	}
	for (i = 0; i < 4; i++) {
		run = (struct tdx_test_run){ .rounds = 5 };
		ASSERT_EQ(0, inject(self->fd, script));
		ASSERT_EQ(0, DO(self->fd, TDX_TEST_RUN, &run));
		sum.done += run.done;
		sum.bad += run.bad;
		sum.faults += run.faults;
		sum.entries += run.entries;
	}
	/* One of both calls is made, and meets it if no thread did. */
	do
		i = range(self->fd, TDX_TEST_MAP, DATA_GFN, 1, NULL);
	while (i == EAGAIN);
	ASSERT_EQ(0, i);
	ASSERT_EQ(0, range(self->fd, TDX_TEST_ZAP, DATA_GFN, 1, NULL));
	stop = true;
	for (i = 0; i < THREADS; i++) {
		pthread_join(workers[i].thread, NULL);
		EXPECT_EQ(0, workers[i].error);
		mapped += workers[i].mapped;
	}
	ksft_print_msg("%llu rounds, %llu entries, %llu faults; %llu pages mapped by threads\n",
		       sum.done, sum.entries, sum.faults, (unsigned long long)mapped);

	EXPECT_EQ(0, sum.bad);
	EXPECT_LT(0, sum.faults);
	EXPECT_LT(0, mapped);
	EXPECT_LT(0, stats_of(self->fd).busy);
	EXPECT_LT(0, stats_of(self->fd).kicks);
	EXPECT_TRUE(agree(self->fd, &self->before));
	EXPECT_EQ(0, inject(self->fd, ""));
}

TEST_F(testdev, faults_on_demand)
{
	static const char mistake[] = "hold entry 0 0 guest busy=1\nhold nothing";
	struct tdx_test_inject i = { 1, 1 };
	struct tdx_test_stats s;

	ASSERT_EQ(0, create_final(self->fd, SEED));
	ASSERT_EQ(0, range(self->fd, TDX_TEST_MAP, DATA_GFN, 1, NULL));
	ASSERT_EQ(EINVAL, inject(self->fd, mistake));
	EXPECT_EQ(EFAULT, DO(self->fd, TDX_TEST_INJECT, &i));
	i.len = TDX_TEST_MAX_SCRIPT + 1;
	EXPECT_EQ(E2BIG, DO(self->fd, TDX_TEST_INJECT, &i));

	/* None of them changed anything. */
	ASSERT_EQ(0, range(self->fd, TDX_TEST_ZAP, DATA_GFN, 1, NULL));
	EXPECT_EQ(0, stats_of(self->fd).busy);

	/* AUG, twice busy, then BLOCK, once. */
	ASSERT_EQ(0, inject(self->fd, "fail 6 1 8000020000000001\nfail 6 2 8000020000000001\n"
				      "fail 7 1 8000020000000092\n"));
	ASSERT_EQ(0, range(self->fd, TDX_TEST_MAP, DATA_GFN, 1, NULL));
	ASSERT_EQ(0, range(self->fd, TDX_TEST_ZAP, DATA_GFN, 1, NULL));
	s = stats_of(self->fd);
	EXPECT_EQ(3, s.busy);
	EXPECT_EQ(3, s.retries);
	EXPECT_TRUE(agree(self->fd, &self->before));
	EXPECT_EQ(0, inject(self->fd, ""));
}

TEST_F(testdev, two_tds)
{
	struct tdx_test_run run = { .rounds = 1 };
	int other = open(DEVICE, O_RDWR);

	ASSERT_LE(0, other);
	ASSERT_EQ(0, create_final(self->fd, SEED));
	ASSERT_EQ(0, create_final(other, SEED + 7));
	EXPECT_EQ(0, DO(self->fd, TDX_TEST_RUN, &run));
	EXPECT_EQ(0, DO(other, TDX_TEST_RUN, &run));
	EXPECT_EQ(0, run.bad);
	EXPECT_EQ(0, stats_of(self->fd).audit);
	close(other);
	EXPECT_EQ(0, DO(self->fd, TDX_TEST_RUN, &run));
	EXPECT_EQ(0, stats_of(self->fd).audit);
}

struct builder {
	pthread_t thread;
	int fd, error, lives;
};

/* Builds and destroys, as a host does that starts many TDs. */
static void *lives(void *data)
{
	struct builder *b = data;

	for (b->lives = 0; b->lives < LIVES && !b->error; b->lives++)
		b->error = create(b->fd, RAM_PAGES, VCPUS) ?: DO(b->fd, TDX_TEST_DESTROY);
	return NULL;
}

/*
 * The TDX module's tables of keys are one for all TDs, and a call that finds one locked
 * is answered BUSY: who creates a TD must not be beside who destroys one.
 */
TEST_F_TIMEOUT(testdev, tds_come_and_go_at_once, 120)
{
	struct builder builders[THREADS] = {};
	int i;

	for (i = 0; i < THREADS; i++) {
		builders[i].fd = open(DEVICE, O_RDWR);
		ASSERT_LE(0, builders[i].fd);
		ASSERT_EQ(0, pthread_create(&builders[i].thread, NULL, lives, &builders[i]));
	}
	for (i = 0; i < THREADS; i++) {
		pthread_join(builders[i].thread, NULL);
		EXPECT_EQ(0, builders[i].error);
		EXPECT_EQ(LIVES, builders[i].lives);
		close(builders[i].fd);
	}
}

/* Without a TD, before and after it is final, and numbers that nothing has. */
TEST_F(testdev, bad_input)
{
	struct tdx_test_run run = { .rounds = 1 };
	uint8_t page[PAGE] = {};
	int fd = self->fd;

	EXPECT_EQ(ENOTTY, DO(fd, _IO('T', 0xff)));
	EXPECT_EQ(ENOENT, build(fd, 0, 1, page));
	EXPECT_EQ(ENOENT, range(fd, TDX_TEST_MAP, 0, 1, NULL));
	EXPECT_EQ(ENOENT, DO(fd, TDX_TEST_RUN, &run));
	EXPECT_EQ(ENOENT, DO(fd, TDX_TEST_FINALIZE));
	EXPECT_EQ(ENOENT, DO(fd, TDX_TEST_DESTROY));
	EXPECT_EQ(EFAULT, DO(fd, TDX_TEST_CREATE, NULL));
	EXPECT_EQ(EFAULT, DO(fd, TDX_TEST_STATS, NULL));
	EXPECT_EQ(EINVAL, create(fd, 0, 1));
	EXPECT_EQ(EINVAL, create(fd, 1, 0));
	EXPECT_EQ(EINVAL, create(fd, TDX_TEST_MAX_PAGES + 1, 1));
	EXPECT_EQ(EINVAL, create(fd, 1, TDX_TEST_MAX_VCPUS + 1));

	ASSERT_EQ(0, create(fd, 4, 1));
	EXPECT_EQ(EEXIST, create(fd, 4, 1));
	EXPECT_EQ(EBUSY, range(fd, TDX_TEST_MAP, 0, 1, NULL));
	EXPECT_EQ(EBUSY, range(fd, TDX_TEST_ZAP, 0, 1, NULL));
	EXPECT_EQ(EBUSY, DO(fd, TDX_TEST_RUN, &run));
	EXPECT_EQ(EINVAL, build(fd, 4, 1, page));
	EXPECT_EQ(EINVAL, build(fd, 0, 0, page));
	EXPECT_EQ(EFAULT, build(fd, 0, 1, NULL));
	EXPECT_EQ(0, build(fd, 0, 1, page));
	EXPECT_EQ(EEXIST, build(fd, 0, 1, page));

	ASSERT_EQ(0, DO(fd, TDX_TEST_FINALIZE));
	EXPECT_EQ(EBUSY, DO(fd, TDX_TEST_FINALIZE));
	EXPECT_EQ(EBUSY, build(fd, 1, 1, page));
	EXPECT_EQ(EINVAL, range(fd, TDX_TEST_MAP, 0, 5, NULL));
	EXPECT_EQ(EINVAL, range(fd, TDX_TEST_MAP, 3, ~0ULL, NULL));
	EXPECT_EQ(EINVAL, range(fd, TDX_TEST_ZAP, 1ULL << 40, 1, NULL));
	EXPECT_EQ(EINVAL, range(fd, TDX_TEST_ZAP, TDX_TEST_RESET_GFN, 2, NULL));
	run.rounds = 0;
	EXPECT_EQ(EINVAL, DO(fd, TDX_TEST_RUN, &run));
	EXPECT_EQ(0, range(fd, TDX_TEST_MAP, 0, 4, NULL));
	EXPECT_TRUE(agree(fd, &self->before));
}

/* A vCPU whose code is wrong ends the run, not the host. */
TEST_F(testdev, dead_vcpu)
{
	struct tdx_test_run run = { .rounds = 1 };
	uint8_t reset[PAGE] = {};

	ASSERT_EQ(0, create(self->fd, 1, 1));
	reset[RESET_OFFSET] = FAULT;
	ASSERT_EQ(0, build(self->fd, TDX_TEST_RESET_GFN, 1, reset));
	ASSERT_EQ(0, DO(self->fd, TDX_TEST_FINALIZE));
	EXPECT_EQ(EPROTO, DO(self->fd, TDX_TEST_RUN, &run));
	EXPECT_EQ(0, run.done);
	EXPECT_TRUE(agree(self->fd, &self->before));
}

static void interrupt(int signal)
{
}

/* A guest without end, in TDCALLs or without, is stopped by a signal. */
TEST_F(testdev, endless)
{
	struct tdx_test_run run = { .rounds = 1 };
	struct sigaction action = { .sa_handler = interrupt };
	struct code code = {};
	uint8_t reset[PAGE] = {};

	endless_program(&code);
	reset[RESET_OFFSET] = JMP;
	ASSERT_EQ(0, create(self->fd, 1, 1));
	ASSERT_EQ(0, build(self->fd, 0, 1, code.bytes));
	ASSERT_EQ(0, build(self->fd, TDX_TEST_RESET_GFN, 1, reset));
	ASSERT_EQ(0, DO(self->fd, TDX_TEST_FINALIZE));

	ASSERT_EQ(0, sigaction(SIGUSR1, &action, NULL));
	for (int i = 0; i < 2; i++) {
		timer_t timer;
		struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
		struct itimerspec soon = { .it_value.tv_nsec = 200000000 };

		ASSERT_EQ(0, timer_create(CLOCK_MONOTONIC, &event, &timer));
		ASSERT_EQ(0, timer_settime(timer, 0, &soon, NULL));
		run.rounds = 1;
		EXPECT_EQ(EINTR, DO(self->fd, TDX_TEST_RUN, &run));
		EXPECT_LT(0, run.entries);
		timer_delete(timer);
	}
	EXPECT_EQ(0, range(self->fd, TDX_TEST_ZAP, 0, 1, NULL));
	EXPECT_TRUE(agree(self->fd, &self->before));
}

/* The folder in debugfs of the TD that this process made, or false. */
static bool folder_of(pid_t pid, char *folder, size_t size)
{
	DIR *dir = opendir(FIGURES);
	struct dirent *entry;
	bool found = false;
	char name[16];

	if (!dir)
		return false;
	snprintf(name, sizeof(name), "%d-", pid);
	while (!found && (entry = readdir(dir))) {
		found = !strncmp(entry->d_name, name, strlen(name));
		if (found)
			snprintf(folder, size, FIGURES "/%s", entry->d_name);
	}
	closedir(dir);
	return found;
}

/* What a file has, or "?" if it cannot be read to its end. */
static const char *text_of(const char *folder, const char *name)
{
	static __thread char text[65536];
	size_t len = 0;
	ssize_t n;
	int fd;

	snprintf(text, sizeof(text), "%s/%s", folder, name);
	fd = open(text, O_RDONLY);
	if (fd < 0)
		return "?";
	while ((n = read(fd, text + len, sizeof(text) - 1 - len)) > 0)
		len += n;
	close(fd);
	text[len] = 0;
	return n ? "?" : text;
}

/* 0 or a positive errno. */
static int write_to(const char *folder, const char *name, const char *text)
{
	char path[320];
	int fd, ret = 0;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return errno;
	if (write(fd, text, strlen(text)) < 0)
		ret = errno;
	close(fd);
	return ret;
}

TEST_F(testdev, debugfs_files)
{
	struct tdx_test_run run = { .rounds = 1 };
	char folder[300], path[320], line[32], byte;
	int fd;

	ASSERT_FALSE(folder_of(getpid(), folder, sizeof(folder)));
	ASSERT_EQ(0, create_final(self->fd, SEED));
	ASSERT_TRUE(folder_of(getpid(), folder, sizeof(folder)));

	EXPECT_STREQ("0x0 0x10 mapped\n0xfffff 0x100000 mapped\n", text_of(folder, "map"));
	ASSERT_EQ(0, range(self->fd, TDX_TEST_MAP, DATA_GFN + 2, 3, NULL));
	/* The mirror alone, then the S-EPT as well. */
	EXPECT_STREQ("0\n", text_of(FIGURES, "read_sept"));
	EXPECT_STREQ("0x0 0x10 mapped\n0x12 0x15 mapped\n0xfffff 0x100000 mapped\n",
		     text_of(folder, "map"));
	EXPECT_NE(NULL, strstr(text_of(folder, "audit"), "leaves 20\npending 0\ndifferences 0\n"));
	EXPECT_EQ(NULL, strstr(text_of(folder, "audit"), "unread 0\n"));
	EXPECT_EQ(0, strncmp(text_of(folder, "audit"), "nothing compared: ", 18));
	EXPECT_EQ(EINVAL, write_to(FIGURES, "read_sept", "2"));
	EXPECT_EQ(0, write_to(FIGURES, "read_sept", "1\n"));
	EXPECT_STREQ("1\n", text_of(FIGURES, "read_sept"));
	EXPECT_STREQ("0x0 0x10 mapped\n0x12 0x15 pending\n0xfffff 0x100000 mapped\n",
		     text_of(folder, "map"));
	EXPECT_NE(NULL, strstr(text_of(folder, "audit"),
			       "leaves 20\npending 3\ndifferences 0\nunread 0\n"));
	EXPECT_EQ(NULL, strstr(text_of(folder, "audit"), "nothing compared"));
	EXPECT_STREQ("", text_of(folder, "frozen"));
	snprintf(line, sizeof(line), "\npid %d\ntid %d\n", getpid(), gettid());
	EXPECT_NE(NULL, strstr(text_of(folder, "stats"), line));
	EXPECT_NE(NULL, strstr(text_of(folder, "stats"), "\nfinalized 1\nmapped 20\n"));
	EXPECT_NE(NULL, strstr(text_of(folder, "stats"), "\npages_mapped 20\n"));
	EXPECT_NE(NULL, strstr(text_of(folder, "stats"), "\nfaults_fixed 20\n"));
	EXPECT_NE(NULL, strstr(text_of(folder, "stats"), "\nseamcall_page_map_success 20\n"));
	EXPECT_NE(NULL, strstr(text_of(folder, "stats"), "\nseamcall_page_add 17\n"));
	EXPECT_EQ(NULL, strstr(text_of(folder, "stats"), "freeze_cycles"));

	/* The guest accepts what it touches. */
	EXPECT_EQ(0, write_to(FIGURES, "timing", "1\n"));
	EXPECT_STREQ("1\n", text_of(FIGURES, "timing"));
	ASSERT_EQ(0, DO(self->fd, TDX_TEST_RUN, &run));
	EXPECT_EQ(0, write_to(FIGURES, "timing", "0\n"));
	EXPECT_STREQ("0x0 0x20 mapped\n0xfffff 0x100000 mapped\n", text_of(folder, "map"));
	EXPECT_NE(NULL, strstr(text_of(folder, "stats"), "freeze_cycles"));
	ASSERT_EQ(0, range(self->fd, TDX_TEST_ZAP, DATA_GFN, DATA_PAGES, NULL));
	EXPECT_STREQ("0x0 0x10 mapped\n0xfffff 0x100000 mapped\n", text_of(folder, "map"));
	EXPECT_NE(NULL, strstr(text_of(folder, "stats"), "\nbatch_16 1\n"));

	EXPECT_EQ(EINVAL, write_to(FIGURES, "timing", "2"));
	EXPECT_EQ(EINVAL, write_to(folder, "frozen", "0"));
	EXPECT_EQ(EINVAL, write_to(folder, "frozen", "10001"));
	EXPECT_EQ(EINVAL, write_to(folder, "frozen", "soon"));
	EXPECT_EQ(0, write_to(folder, "frozen", "10000"));
	EXPECT_EQ(EBUSY, write_to(FIGURES, "reset", "1"));

	/* A file that is open does not keep the TD, and has nothing left of it. */
	EXPECT_EQ(0, write_to(FIGURES, "read_sept", "0"));
	snprintf(path, sizeof(path), "%s/map", folder);
	fd = open(path, O_RDONLY);
	ASSERT_LE(0, fd);
	EXPECT_EQ(1, read(fd, &byte, 1));
	ASSERT_EQ(0, DO(self->fd, TDX_TEST_DESTROY));
	EXPECT_EQ(-1, read(fd, &byte, 1));
	EXPECT_EQ(ENODEV, errno);
	EXPECT_EQ(-1, pread(fd, &byte, 1, 0));
	EXPECT_EQ(ENODEV, errno);
	close(fd);
	EXPECT_FALSE(folder_of(getpid(), folder, sizeof(folder)));
}

static void *create_one(void *fd)
{
	return (void *)(intptr_t)create_final(*(int *)fd, SEED);
}

/* A folder is named by the process, whichever of its threads made the TD. */
TEST_F(testdev, debugfs_folder_of_a_thread)
{
	char folder[300], line[32], *tid;
	pthread_t thread;
	void *ret;

	ASSERT_EQ(0, pthread_create(&thread, NULL, create_one, &self->fd));
	pthread_join(thread, &ret);
	ASSERT_EQ(NULL, ret);
	ASSERT_TRUE(folder_of(getpid(), folder, sizeof(folder)));
	snprintf(line, sizeof(line), "\npid %d\ntid ", getpid());
	tid = strstr(text_of(folder, "stats"), line);
	ASSERT_NE(NULL, tid);
	EXPECT_NE(getpid(), atoi(tid + strlen(line)));
}

/* Every second page: a range for each, whatever a reader takes at a time. */
TEST_F(testdev, debugfs_piece_by_piece)
{
	static char want[65536], got[65536];
	static const int pieces[] = { 1, 7, 100, 4096, sizeof(got) };
	char folder[300], path[320];
	int i, fd, at;

	ASSERT_EQ(0, create_final(self->fd, SEED));
	ASSERT_TRUE(folder_of(getpid(), folder, sizeof(folder)));
	for (i = 0; i < DATA_PAGES; i += 2)
		ASSERT_EQ(0, range(self->fd, TDX_TEST_MAP, DATA_GFN + i, 1, NULL));
	EXPECT_EQ(0, write_to(FIGURES, "read_sept", "1"));
	snprintf(want, sizeof(want), "%s", text_of(folder, "map"));
	for (i = 0, at = 0; want[at]; at++)
		i += want[at] == '\n';
	EXPECT_EQ(2 + DATA_PAGES / 2, i);
	snprintf(path, sizeof(path), "%s/map", folder);
	for (i = 0; i < 5; i++) {
		ssize_t n;

		fd = open(path, O_RDONLY);
		ASSERT_LE(0, fd);
		for (at = 0; (n = read(fd, got + at, pieces[i])) > 0; at += n)
			;
		got[at] = 0;
		EXPECT_EQ(0, n);
		EXPECT_STREQ(want, got);
		/* From an offset, and from the start again. */
		ASSERT_EQ(20, lseek(fd, 20, SEEK_SET));
		ASSERT_EQ(10, read(fd, got, 10));
		EXPECT_EQ(0, memcmp(got, want + 20, 10));
		ASSERT_EQ(10, pread(fd, got, 10, 0));
		EXPECT_EQ(0, memcmp(got, want, 10));
		close(fd);
	}
	EXPECT_EQ(0, write_to(FIGURES, "read_sept", "0"));
}

struct reader {
	pthread_t thread;
	atomic_bool stop;
	atomic_ullong reads;
	uint64_t differences;
};

/* Reads all that there is of the TDs, whatever happens to them. */
static void *look(void *data)
{
	static const char * const names[] = { "stats", "map", "audit", "frozen" };
	struct reader *r = data;
	char folder[300];

	while (!r->stop) {
		if (!folder_of(getpid(), folder, sizeof(folder)))
			continue;
		for (int i = 0; i < 4; i++) {
			const char *text = text_of(folder, names[i]);

			r->reads += strcmp(text, "?") != 0;
			if (strstr(text, "\ndifferences ") && !strstr(text, "\ndifferences 0\n") &&
			    !r->differences++)
				ksft_print_msg("%s", text);
		}
	}
	return NULL;
}

TEST_F_TIMEOUT(testdev, debugfs_race, 120)
{
	struct reader reader = {};
	unsigned long long reads = 0;
	int td;

	/* Also while a TD is built and while it ends, for which the TDX module needs it alone. */
	ASSERT_EQ(0, write_to(FIGURES, "read_sept", "1"));
	ASSERT_EQ(0, pthread_create(&reader.thread, NULL, look, &reader));
	for (td = 0; td < 4; td++) {
		struct worker worker = { .fd = self->fd, .seed = SEED + td };
		atomic_bool stop = false;

		ASSERT_EQ(0, create_final(self->fd, SEED + td));
		worker.stop = &stop;
		ASSERT_EQ(0, pthread_create(&worker.thread, NULL, work, &worker));
		for (int n = 0; n < 200 && (reader.reads < reads + 20 || !worker.mapped); n++) {
			struct tdx_test_run run = { .rounds = 1 };

			ASSERT_EQ(0, DO(self->fd, TDX_TEST_RUN, &run));
			EXPECT_EQ(0, run.bad);
		}
		reads = reader.reads;
		stop = true;
		pthread_join(worker.thread, NULL);
		EXPECT_EQ(0, worker.error);
		EXPECT_LT(0, worker.mapped);
		/* While it is read. */
		ASSERT_EQ(0, DO(self->fd, TDX_TEST_DESTROY));
	}
	reader.stop = true;
	pthread_join(reader.thread, NULL);
	EXPECT_EQ(0, write_to(FIGURES, "read_sept", "0"));
	ksft_print_msg("%llu reads\n", reader.reads);
	EXPECT_LE(40, reader.reads);
	EXPECT_EQ(0, reader.differences);
}

TEST_HARNESS_MAIN
