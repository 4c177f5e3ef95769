// SPDX-License-Identifier: GPL-2.0
/* Faults with little memory: a memory cgroup at its limit, allocations that fail. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

#define RAM		(32ull << 20)
#define LIMIT		(6ull << 20)
#define PAGES		64ull
#define MIB2		(2ull << 20)
#define SPARSE_GPA	(8ull << 30)
#define TABLES		128ull	/* more than KVM keeps pages for */
#define DEBUG		"/sys/kernel/debug/"
#define MAKE_IT_FAIL	"/proc/thread-self/make-it-fail"

TD_FIXTURE(pressure);

static int write_to(const char *folder, const char *name, const char *text)
{
	char path[160];
	int fd, ret = 0;

	snprintf(path, sizeof(path), "%s%s", folder, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		ret = -errno;
	close(fd);
	return ret;
}

/* The VMM in the cgroup; ends with a signal, or says how far it came. */
static void limited_child(const char *group, bool by_guest, __u64 *mapped)
{
	const struct td_config config = { .ram_size = RAM, .no_measure = true };
	static struct td td;
	__u64 n;

	if (write_to(group, "/cgroup.procs", "0") || td_build(&td, &config))
		_exit(2);
	for (n = 0; n < RAM / TD_PAGE; n++) {
		int ret;

		if (by_guest) {
			td_ops_clear(&td.vcpu[0]);
			td_op(&td.vcpu[0], GUEST_ACCEPT, TD_RAM_GPA + n * TD_PAGE, 1, 0);
			ret = td_ops_run(&td.vcpu[0]);
		} else {
			ret = td_prefault(&td.vcpu[0], TD_RAM_GPA + n * TD_PAGE, TD_PAGE, NULL);
		}
		if (ret)
			_exit(ret == -ENOMEM ? 0 : 3);
		__atomic_store_n(mapped, n + 1, __ATOMIC_SEQ_CST);
	}
	_exit(4);
}

static void at_the_limit(struct __test_metadata *_metadata, struct td *td, bool by_guest)
{
	char mnt[] = "/tmp/pressure.XXXXXX", group[64], limit[32];
	const struct td_config config = {};
	__u64 *mapped = mmap(NULL, TD_PAGE, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status = -1;
	pid_t pid;

	REQUIRE(NEEDS_KLOG);
	ASSERT_NE(MAP_FAILED, mapped);
	ASSERT_NE(NULL, mkdtemp(mnt));
	if (mount("none", mnt, "cgroup2", 0, NULL)) {
		rmdir(mnt);
		SKIP(return, "needs cgroup2, and the right to mount it");
	}
	snprintf(group, sizeof(group), "%s/pressure.test", mnt);
	snprintf(limit, sizeof(limit), "%llu", LIMIT);
	if (write_to(mnt, "/cgroup.subtree_control", "+memory") || mkdir(group, 0755)) {
		umount2(mnt, MNT_DETACH);
		rmdir(mnt);
		SKIP(return, "needs the memory controller of cgroup2");
	}
	/* The kernel shows the stack of whom it kills. */
	ASSERT_EQ(0, td_klog_begin("a cgroup is out of memory"));
	ASSERT_EQ(0, write_to(group, "/memory.max", limit));
	pid = fork();
	if (!pid)
		limited_child(group, by_guest, mapped);
	if (pid > 0)
		waitpid(pid, &status, 0);
	/* Memory that outlives the VMM would still be charged. */
	EXPECT_EQ(0, rmdir(group));
	umount2(mnt, MNT_DETACH);
	rmdir(mnt);
	EXPECT_EQ(0, td_klog_end());
	EXPECT_TRUE((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) ||
		    (WIFEXITED(status) && !WEXITSTATUS(status)))
		TH_LOG("status %x", status);
	TH_LOG("%llu of %llu pages within %llu KiB", *mapped, RAM / TD_PAGE, LIMIT >> 10);
	EXPECT_LT(0, *mapped);
	EXPECT_GT(LIMIT / TD_PAGE, *mapped);
	munmap(mapped, TD_PAGE);
	ASSERT_TD_OK(td, td_build(td, &config));
}

/* Shows: B16. */
TEST_F_TIMEOUT(pressure, limit_met_by_prefault, 120)
{
	at_the_limit(_metadata, &self->td, false);
}

/* Shows: B16. */
TEST_F_TIMEOUT(pressure, limit_met_by_faults, 120)
{
	at_the_limit(_metadata, &self->td, true);
}

/* How often, in percent, allocations fail in a thread that asks for it: slab and pages alike. */
static int set_failures(const char *probability)
{
	static const char * const attr[] = { "failslab", "fail_page_alloc" };
	char folder[64];
	unsigned int i;
	int ret = 0;

	for (i = 0; i < ARRAY_SIZE(attr); i++) {
		snprintf(folder, sizeof(folder), DEBUG "%s/", attr[i]);
		ret |= write_to(folder, "verbose", "0");
		ret |= write_to(folder, "task-filter", "Y");
		ret |= write_to(folder, "ignore-gfp-wait", "0");
		ret |= write_to(folder, "interval", "1");
		ret |= write_to(folder, "times", "-1");
		ret |= write_to(folder, "probability", probability);
	}
	ret |= write_to(DEBUG "fail_page_alloc/", "min-order", "0");
	return ret;
}

TEST_F_TIMEOUT(pressure, allocations_fail_now_and_then, 120)
{
	const struct td_config config = { .ram_size = RAM };
	struct td *td = &self->td;
	struct td_vcpu *vcpu = &td->vcpu[0];
	unsigned int refused = 0, refused_run = 0;
	__u64 n;
	int ret, make_it_fail;

	/* Open before: while allocations fail, open() does, too. */
	make_it_fail = open(MAKE_IT_FAIL, O_WRONLY | O_CLOEXEC);
	if (make_it_fail < 0)
		SKIP(return, "needs a kernel with FAULT_INJECTION: no " MAKE_IT_FAIL);
	if (set_failures("20")) {
		set_failures("0");
		SKIP(return, "needs FAILSLAB, FAIL_PAGE_ALLOC and FAULT_INJECTION_DEBUG_FS");
	}
	ASSERT_TD_OK(td, td_build(td, &config));
	ASSERT_TD_OK(td, td_add_plain_slot(td, 4, SPARSE_GPA, TABLES * MIB2, true));
	for (n = 0; n < TABLES; n++)
		ASSERT_TD_OK(td, td_set_private(td, SPARSE_GPA + n * MIB2, TD_PAGE, true));
	ASSERT_EQ(1, write(make_it_fail, "1", 1));
	/* One page every 2 MiB needs a table each time. */
	for (n = 0; n < TABLES; n++) {
		do {
			ret = td_prefault_once(vcpu, SPARSE_GPA + n * MIB2, TD_PAGE);
			refused += ret == -ENOMEM;
		} while (ret == -ENOMEM);
		if (ret)
			break;
	}
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 1);
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, PAGES, 1);
	while (!ret && td_vcpu_run(vcpu) == TD_EXIT_ERROR && vcpu->ret == -ENOMEM)
		refused_run++;
	/* What is checked from here on is to be read without failures. */
	ASSERT_EQ(1, write(make_it_fail, "0", 1));
	close(make_it_fail);
	EXPECT_EQ(0, set_failures("0"));
	ASSERT_EQ(0, ret);
	ASSERT_TD_OK(td, td_ops_join(vcpu));
	TH_LOG("ENOMEM %u times in %llu prefaults, %u times in KVM_RUN", refused,
	       TABLES, refused_run);
	EXPECT_LT(0, refused);
}

TEST_HARNESS_MAIN
