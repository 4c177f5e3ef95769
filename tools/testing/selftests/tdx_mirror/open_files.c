// SPDX-License-Identifier: GPL-2.0
/*
 * Files in debugfs that are open while the module is to go: it stays until they are closed, those
 * of a TD that has ended among them. Needs no KVM; the cases with TDs need the test device.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/tdx_mirror_test.h>

#include "kselftest_harness.h"

#define MODULES		"/lib/modules-flat/"
#define FIGURES		"/sys/kernel/debug/tdx_mirror"
#define DEVICE		"/dev/tdx_mirror_test"
#define THREADS		4

static const char * const of_module[] = { "stats", "reset", "timing", "read_sept", "record" };
static const char * const of_td[] = { "stats", "map", "audit", "frozen" };

static const char *module_file(void)
{
	return getenv("TDX_MIRROR_KO") ?: MODULES "tdx_mirror.ko";
}

static const char *device_file(void)
{
	return getenv("TDX_MIRROR_TEST_KO") ?: MODULES "tdx_mirror_test.ko";
}

static int load(const char *path, const char *args)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), ret = 0;

	if (fd < 0)
		return -errno;
	if (syscall(SYS_finit_module, fd, args, 0))
		ret = -errno;
	close(fd);
	return ret;
}

static int load_mirror(void)
{
	return load(module_file(), getenv("TDX_MIRROR_ARGS") ?: "");
}

/* -EAGAIN: the module is in use. */
static int unload(const char *name)
{
	return syscall(SYS_delete_module, name, O_NONBLOCK) ? -errno : 0;
}

static int open_file(const char *folder, const char *name)
{
	char path[320];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return open(path, (strcmp(name, "reset") ? O_RDONLY : O_WRONLY) | O_CLOEXEC);
}

FIXTURE(open_files) {
	bool had_device;
};

FIXTURE_SETUP(open_files)
{
	if (access("/sys/module/tdx_mirror", F_OK))
		SKIP(return, "tdx_mirror is not loaded");
	if (access(FIGURES, F_OK))
		SKIP(return, "debugfs is not mounted");
	if (access(module_file(), R_OK))
		SKIP(return, "needs the module's file, see TDX_MIRROR_KO: no %s", module_file());
	self->had_device = !access(DEVICE, F_OK);
	if (self->had_device)
		ASSERT_EQ(0, unload("tdx_mirror_test"));
}

FIXTURE_TEARDOWN(open_files)
{
	EXPECT_EQ(0, access(FIGURES "/stats", F_OK));
	if (self->had_device)
		EXPECT_EQ(0, load(device_file(), ""));
}

TEST_F(open_files, of_the_module)
{
	int fd[ARRAY_SIZE(of_module)], i;
	char byte;

	for (i = 0; i < ARRAY_SIZE(of_module); i++) {
		/* Each alone is enough. */
		fd[i] = open_file(FIGURES, of_module[i]);
		ASSERT_LE(0, fd[i]) TH_LOG("%s: %s", of_module[i], strerror(errno));
		ASSERT_EQ(-EAGAIN, unload("tdx_mirror")) TH_LOG("%s", of_module[i]);
		close(fd[i]);
		ASSERT_EQ(0, unload("tdx_mirror")) TH_LOG("%s", of_module[i]);
		ASSERT_NE(0, access(FIGURES, F_OK));
		ASSERT_EQ(0, load_mirror());
	}
	/* All, in the middle of a read. */
	for (i = 0; i < ARRAY_SIZE(of_module); i++) {
		fd[i] = open_file(FIGURES, of_module[i]);
		ASSERT_LE(0, fd[i]);
		if (strcmp(of_module[i], "reset"))
			ASSERT_EQ(1, read(fd[i], &byte, 1)) TH_LOG("%s", of_module[i]);
	}
	for (i = 0; i < ARRAY_SIZE(of_module); i++) {
		ASSERT_EQ(-EAGAIN, unload("tdx_mirror"));
		close(fd[i]);
	}
	ASSERT_EQ(0, unload("tdx_mirror"));
	ASSERT_EQ(0, load_mirror());
}

/* Opens the files of the only TD that there is. */
static int open_td(int fd[ARRAY_SIZE(of_td)])
{
	DIR *dir = opendir(FIGURES);
	struct dirent *entry;
	char folder[300] = "";
	int i, opened = 0;

	while (dir && (entry = readdir(dir))) {
		if (strchr(entry->d_name, '-'))
			snprintf(folder, sizeof(folder), FIGURES "/%s", entry->d_name);
	}
	if (dir)
		closedir(dir);
	for (i = 0; i < ARRAY_SIZE(of_td); i++) {
		fd[i] = open_file(folder, of_td[i]);
		opened += fd[i] >= 0;
	}
	return opened;
}

TEST_F(open_files, of_a_td)
{
	struct tdx_test_create create = { 4, 1 };
	int fd[ARRAY_SIZE(of_td)], i, ret, device;
	uint8_t page[4096] = {};
	struct tdx_test_build build = { 0, 1, (uintptr_t)page };
	char byte;

	ret = load(device_file(), "");
	if (ret)
		SKIP(return, "%s cannot be loaded: %s", device_file(), strerror(-ret));
	device = open(DEVICE, O_RDWR);
	ASSERT_LE(0, device);
	ASSERT_EQ(0, ioctl(device, TDX_TEST_CREATE, &create));
	ASSERT_EQ(0, ioctl(device, TDX_TEST_BUILD, &build));
	ASSERT_EQ(ARRAY_SIZE(of_td), open_td(fd));
	for (i = 0; i < ARRAY_SIZE(of_td); i++) {
		if (strcmp(of_td[i], "frozen"))
			ASSERT_EQ(1, read(fd[i], &byte, 1)) TH_LOG("%s", of_td[i]);
	}
	/* The TD is alive, then it is not, then nobody but the files uses the module. */
	ASSERT_EQ(-EAGAIN, unload("tdx_mirror"));
	ASSERT_EQ(0, ioctl(device, TDX_TEST_DESTROY));
	close(device);
	ASSERT_EQ(0, unload("tdx_mirror_test"));
	for (i = 0; i < ARRAY_SIZE(of_td); i++) {
		ASSERT_EQ(-1, read(fd[i], &byte, 1)) TH_LOG("%s", of_td[i]);
		ASSERT_EQ(ENODEV, errno);
		ASSERT_EQ(-1, pread(fd[i], &byte, 1, 0));
		ASSERT_EQ(ENODEV, errno);
		ASSERT_EQ(-EAGAIN, unload("tdx_mirror")) TH_LOG("%s", of_td[i]);
		close(fd[i]);
	}
	ASSERT_EQ(0, unload("tdx_mirror"));
	ASSERT_EQ(0, load_mirror());
}

static atomic_bool stop;
/* Reads of each file, and threads that are in one. */
static atomic_uint reads[ARRAY_SIZE(of_module)];

static void *look(void *unused)
{
	static __thread char text[16384];
	int i, fd;

	while (!stop) {
		for (i = 0; i < ARRAY_SIZE(of_module); i++) {
			fd = open_file(FIGURES, of_module[i]);
			/* It is not there, or it goes. */
			if (fd < 0)
				continue;
			if (!strcmp(of_module[i], "reset"))
				reads[i] += write(fd, "1", 1) == 1;
			else
				reads[i] += read(fd, text, sizeof(text)) > 0;
			close(fd);
		}
	}
	return NULL;
}

TEST_F_TIMEOUT(open_files, readers_while_the_module_comes_and_goes, 300)
{
	unsigned int times = getenv("TDX_TEST_LONG") ? 200 : 10, done, refused = 0, seen;
	pthread_t thread[THREADS];
	int i, ret = 0;

	stop = false;
	for (i = 0; i < THREADS; i++)
		ASSERT_EQ(0, pthread_create(&thread[i], NULL, look, NULL));
	for (done = 0; done < times && !ret; done++) {
		/* Every file was read at each of its loads. */
		for (i = 0; i < ARRAY_SIZE(of_module); i++) {
			for (seen = reads[i]; reads[i] == seen;)
				usleep(100);
		}
		while ((ret = unload("tdx_mirror")) == -EAGAIN) {
			refused++;
			usleep(refused % 7 * 50);
		}
		ret = ret ?: load_mirror();
	}
	stop = true;
	for (i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	EXPECT_EQ(0, ret);
	EXPECT_EQ(times, done);
	TH_LOG("unloaded %u times, refused %u times", done, refused);
}

TEST_HARNESS_MAIN
