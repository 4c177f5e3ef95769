// SPDX-License-Identifier: GPL-2.0
/* What the page tables of a TD cost, and that its owner is charged for it. */
#include <errno.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

#define MIB2		(2ull << 20)
#define GIB		(1ull << 30)
#define SPARSE_GPA	(8 * GIB)
#define TABLES		1024ull		/* of 512 leaves, one leaf in each */
#define CGROUP		"memory_cost.test"

TD_FIXTURE(memory_cost);

/*
 * One page every 2 MiB from a 1 GiB border on: each takes a table of its own,
 * and 512 of these a table above them.
 */
static int map_sparsely(struct td *td)
{
	__u64 n;
	int ret = 0;

	for (n = 0; !ret && n < TABLES; n++)
		ret = td_prefault(&td->vcpu[0], SPARSE_GPA + n * MIB2, TD_PAGE, NULL);
	return ret;
}

/* The slot for it; the attributes of these pages alone are few. */
static int add_sparse_slot(struct td *td)
{
	int ret = td_add_plain_slot(td, 4, SPARSE_GPA, TABLES * MIB2, true);
	__u64 n;

	for (n = 0; !ret && n < TABLES; n++)
		ret = td_set_private(td, SPARSE_GPA + n * MIB2, TD_PAGE, true);
	return ret;
}

static __u64 formula(void)
{
	return TABLES + TABLES / 512;
}

/* Shows: R21. */
TEST_F_TIMEOUT(memory_cost, tables_are_counted, 60)
{
	const struct td_config config = {};
	struct td *td = &self->td;
	__u64 tables, external, vmstat, want;
	struct td_calls before;
	bool found;

	REQUIRE(NEEDS_EMULATOR | NEEDS_VMSTAT);
	ASSERT_TD_OK(td, td_build(td, &config));
	ASSERT_TD_OK(td, add_sparse_slot(td));
	tables = td_counter(TD_MIRROR_STATS, "tables", &found);
	external = td_counter(TD_MIRROR_STATS, "external_tables", &found);
	vmstat = td_vmstat("nr_sec_page_table_pages");
	td_calls_read(&before);
	ASSERT_TD_OK(td, map_sparsely(td));
	/* The TDX module was given as many as the formula says, to the page. */
	EXPECT_EQ(formula(), td_calls_since(&before, TD_SEPT_ADD));
	vmstat = td_vmstat("nr_sec_page_table_pages") - vmstat;
	want = formula();
	if (!td_needs(NEEDS_MIRROR)) {
		tables = td_counter(TD_MIRROR_STATS, "tables", &found) - tables;
		external = td_counter(TD_MIRROR_STATS, "external_tables", &found) - external;
		EXPECT_EQ(formula(), tables);
		EXPECT_EQ(formula(), external);
		/* KVM's own mirror leaves the S-EPT's pages out. */
		want *= 2;
	}
	printf("memory of %llu pages 2 MiB apart: %llu mirror tables, %llu S-EPT tables; ",
	       TABLES, formula(), td_calls_since(&before, TD_SEPT_ADD));
	printf("%llu pages counted as secondary page tables\n", vmstat);
	fflush(stdout);
	/* Something else may use the tables of a TD, or of a VM, meanwhile. */
	EXPECT_LE(want - want / 100, vmstat);
	EXPECT_GE(want + want / 100, vmstat);
}

static int write_to(const char *folder, const char *file, const char *text)
{
	char path[256];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", folder, file);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = write(fd, text, strlen(text));
	close(fd);
	return n < 0 ? -errno : 0;
}

static __u64 memory_stat(const char *folder, const char *name)
{
	char path[256];
	bool found;

	snprintf(path, sizeof(path), "%s/memory.stat", folder);
	return td_counter(path, name, &found);
}

/* In the group: maps, and says in @done what the group was charged. */
static void charged_child(const char *group, __u64 done[2])
{
	const struct td_config config = {};
	static struct td td;
	__u64 kernel;

	if (write_to(group, "cgroup.procs", "0") || td_build(&td, &config) ||
	    add_sparse_slot(&td))
		_exit(1);
	kernel = memory_stat(group, "kernel");
	if (map_sparsely(&td))
		_exit(1);
	done[0] = memory_stat(group, "kernel") - kernel;
	done[1] = memory_stat(group, "sec_pagetables");
	td_destroy(&td);
	_exit(0);
}

/* Shows: R21, B16. */
TEST_F_TIMEOUT(memory_cost, the_owner_is_charged, 60)
{
	char mnt[] = "/tmp/memory_cost.XXXXXX", group[64];
	__u64 *done = mmap(NULL, TD_PAGE, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	const __u64 want = 2 * formula() * TD_PAGE;
	int status = -1;
	pid_t pid;

	ASSERT_NE(MAP_FAILED, done);
	ASSERT_NE(NULL, mkdtemp(mnt));
	if (mount("none", mnt, "cgroup2", 0, NULL)) {
		rmdir(mnt);
		SKIP(return, "needs cgroup2, and the right to mount it");
	}
	snprintf(group, sizeof(group), "%s/" CGROUP, mnt);
	if (write_to(mnt, "cgroup.subtree_control", "+memory") || mkdir(group, 0755)) {
		umount2(mnt, MNT_DETACH);
		rmdir(mnt);
		SKIP(return, "needs the memory controller of cgroup2");
	}
	pid = fork();
	if (!pid)
		charged_child(group, done);
	if (pid > 0)
		waitpid(pid, &status, 0);
	rmdir(group);
	umount2(mnt, MNT_DETACH);
	rmdir(mnt);
	ASSERT_TRUE(WIFEXITED(status) && !WEXITSTATUS(status));
	TH_LOG("%llu KiB of kernel memory, %llu KiB of it secondary page tables; tables: %llu KiB",
	       done[0] / 1024, done[1] / 1024, want / 1024);
	/*
	 * Both tables are charged, also where only one is counted as such, and
	 * not much more: the index of the guest_memfd comes on top.
	 */
	EXPECT_LE(want - want / 20, done[0]);
	EXPECT_GE(want + want / 5, done[0]);
	if (!td_needs(NEEDS_MIRROR))
		EXPECT_LE(want - want / 20, done[1]);
	munmap(done, TD_PAGE);
}

TEST_HARNESS_MAIN
