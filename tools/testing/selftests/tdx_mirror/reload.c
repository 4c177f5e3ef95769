// SPDX-License-Identifier: GPL-2.0
/*
 * The module goes and comes back, again and again: with no TD, and while TDs are
 * built, run and destroyed by another thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "test.h"

#define FLAT_FILE	"/lib/modules-flat/tdx_mirror.ko"
#define DEBUG		"/sys/kernel/debug/"
#define PAGES		4ull

static const char *module_file(void)
{
	return getenv("TDX_MIRROR_KO") ?: FLAT_FILE;
}

static int load(void)
{
	int fd = open(module_file(), O_RDONLY | O_CLOEXEC), ret = 0;

	if (fd < 0)
		return -errno;
	if (syscall(SYS_finit_module, fd, getenv("TDX_MIRROR_ARGS") ?: "", 0))
		ret = -errno;
	close(fd);
	return ret;
}

static int unload(void)
{
	return syscall(SYS_delete_module, "tdx_mirror", O_NONBLOCK) ? -errno : 0;
}

/* The figures of a module that was away are gone, so those of the other side go too. */
static void reset_figures(void)
{
	static const char * const file[] = { DEBUG "tdx_emu/reset", DEBUG "tdx_mirror/reset" };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(file); i++) {
		int fd = open(file[i], O_WRONLY | O_CLOEXEC);

		if (fd < 0)
			continue;
		if (write(fd, "1", 1) != 1)
			fprintf(stderr, "# %s: %s\n", file[i], strerror(errno));
		close(fd);
	}
}

FIXTURE(reload) {
	struct td td;
	__u64 owned;
};

static __u64 owned_pages(void)
{
	struct td_counters now;

	td_counters_read(&now);
	return now.emu_pages;
}

FIXTURE_SETUP(reload)
{
	struct td_counters now;

	td_reset(&self->td);
	if (td_unsupported())
		SKIP(return, "%s", td_unsupported());
	td_counters_read(&now);
	if (now.mode != TD_MODE_ON)
		SKIP(return, "KVM uses its own mirror, whatever becomes of tdx_mirror");
	if (access(module_file(), R_OK))
		SKIP(return, "needs the module's file, see TDX_MIRROR_KO: no %s",
		     module_file());
	self->owned = owned_pages();
}

FIXTURE_TEARDOWN(reload)
{
	td_destroy(&self->td);
	EXPECT_EQ(self->owned, owned_pages());
	reset_figures();
}

static int lead_life(struct td *td)
{
	const struct td_config config = { .no_measure = true, .ram_size = 16 * TD_PAGE };
	int ret = td_build(td, &config);

	if (!ret) {
		td_op(&td->vcpu[0], GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
		td_op(&td->vcpu[0], GUEST_STORE, TD_RAM_GPA, PAGES, 1);
		ret = td_ops_run(&td->vcpu[0]);
	}
	td_destroy(td);
	td_reset(td);
	return ret;
}

TEST_F_TIMEOUT(reload, without_a_td, 600)
{
	unsigned int i, times = td_times(8, 100);

	for (i = 0; i < times; i++) {
		ASSERT_EQ(0, unload());
		/* Nobody falls back to KVM's own mirror by accident. */
		if (i == 0)
			ASSERT_EQ(-ENOENT, lead_life(&self->td));
		ASSERT_EQ(0, load()) TH_LOG("%s, time %u", module_file(), i);
		if (i % 4 == 0)
			ASSERT_TD_OK(&self->td, lead_life(&self->td));
	}
	TH_LOG("unloaded and loaded %u times", times);
}

TEST_F_TIMEOUT(reload, with_a_td, 60)
{
	const struct td_config config = { .no_measure = true };

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_EQ(-EAGAIN, unload());
	td_destroy(&self->td);
	ASSERT_EQ(0, unload());
	ASSERT_EQ(0, load());
}

/* The TD is gone, nobody but who has its files open uses the module. */
TEST_F_TIMEOUT(reload, with_files_of_a_td, 60)
{
	static const char * const name[] = { "stats", "map", "audit", "frozen" };
	const struct td_config config = { .no_measure = true };
	int fd[ARRAY_SIZE(name)], i;
	char folder[300], byte;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_TRUE(td_folder(folder, sizeof(folder)));
	for (i = 0; i < ARRAY_SIZE(name); i++) {
		fd[i] = td_folder_open(folder, name[i]);
		ASSERT_LE(0, fd[i]) TH_LOG("%s", name[i]);
	}
	ASSERT_EQ(1, read(fd[0], &byte, 1));
	td_destroy(&self->td);
	td_reset(&self->td);
	ASSERT_FALSE(td_folder(folder, sizeof(folder)));
	for (i = 0; i < ARRAY_SIZE(name); i++) {
		ASSERT_EQ(-1, read(fd[i], &byte, 1)) TH_LOG("%s", name[i]);
		ASSERT_EQ(ENODEV, errno);
		ASSERT_EQ(-EAGAIN, unload()) TH_LOG("%s", name[i]);
		close(fd[i]);
	}
	ASSERT_EQ(0, unload());
	ASSERT_EQ(0, load());
}

struct load {
	struct td *td;
	bool stop;
	unsigned int lives, without;
	int failed;
};

static void *lead_lives(void *arg)
{
	struct load *work = arg;

	while (!__atomic_load_n(&work->stop, __ATOMIC_SEQ_CST) && !work->failed) {
		int ret = lead_life(work->td);

		if (!ret)
			__atomic_add_fetch(&work->lives, 1, __ATOMIC_SEQ_CST);
		else if (ret == -ENOENT)
			work->without++;
		else
			__atomic_store_n(&work->failed, ret, __ATOMIC_SEQ_CST);
	}
	return NULL;
}

TEST_F_TIMEOUT(reload, while_tds_come_and_go, 600)
{
	unsigned int refused = 0, times = td_times(5, 100), done = 0, lives;
	struct load work = { .td = &self->td };
	pthread_t thread;
	int ret = 0;

	ASSERT_EQ(0, pthread_create(&thread, NULL, lead_lives, &work));
	while (done < times && !ret && !__atomic_load_n(&work.failed, __ATOMIC_SEQ_CST)) {
		ret = unload();
		if (ret == -EAGAIN) {
			refused++;
			ret = 0;
			usleep(200);
			continue;
		}
		if (ret)
			break;
		ret = load();
		done++;
		/* Some TD has to get hold of it, then another instant of a life each time. */
		lives = __atomic_load_n(&work.lives, __ATOMIC_SEQ_CST);
		while (!ret && lives == __atomic_load_n(&work.lives, __ATOMIC_SEQ_CST) &&
		       !__atomic_load_n(&work.failed, __ATOMIC_SEQ_CST))
			usleep(500);
		usleep(done * 997 % 8000);
	}
	__atomic_store_n(&work.stop, true, __ATOMIC_SEQ_CST);
	pthread_join(thread, NULL);
	EXPECT_EQ(0, ret);
	ASSERT_EQ(0, work.failed) TH_LOG("%s", td_error(&self->td));
	TH_LOG("unloaded %u times, refused %u times; %u TDs lived, %u found no module", done,
	       refused, work.lives, work.without);
	EXPECT_EQ(times, done);
	EXPECT_LT(0, work.lives);
	EXPECT_LT(0, refused);
}

TEST_HARNESS_MAIN
