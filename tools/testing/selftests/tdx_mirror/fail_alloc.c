// SPDX-License-Identifier: GPL-2.0
/*
 * One allocation of the kernel fails in a TD's life: each of them in turn, with the
 * kernel's own fault injection (slab and pages).  The step says ENOMEM or does
 * without, nothing is kept or leaked, and the next TD lives.
 *
 * usage: fail_alloc [-e N]
 *	-e N	each Nth allocation only
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kselftest.h"
#include "life.h"
#include "probe.h"

#define FAIL_NTH	"/proc/thread-self/fail-nth"
#define DEBUG		"/sys/kernel/debug/"

/* No step has as many allocations. */
#define MAX_ALLOCATIONS	4000

static const char *const settings[][2] = {
	{ DEBUG "failslab/ignore-gfp-wait", "0" },
	{ DEBUG "failslab/verbose", "0" },
	{ DEBUG "fail_page_alloc/ignore-gfp-wait", "0" },
	{ DEBUG "fail_page_alloc/ignore-gfp-highmem", "0" },
	{ DEBUG "fail_page_alloc/min-order", "0" },
	{ DEBUG "fail_page_alloc/verbose", "0" },
};

static struct life life;
static enum life_step target;
static unsigned int nth;
static bool injected, done;
static int fail_nth_fd;

static int write_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), ret = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		ret = -errno;
	close(fd);
	return ret;
}

/* NULL, or what this kernel lacks. */
static const char *prepare(void)
{
	unsigned int i;

	if (access(FAIL_NTH, W_OK))
		return "needs a kernel with FAULT_INJECTION: no " FAIL_NTH;
	for (i = 0; i < ARRAY_SIZE(settings); i++)
		if (write_to(settings[i][0], settings[i][1]))
			return "needs FAILSLAB, FAIL_PAGE_ALLOC and FAULT_INJECTION_DEBUG_FS";
	return NULL;
}

static void arm(struct life *life)
{
	char text[16];
	int n;

	if (life->step != target || done)
		return;
	n = snprintf(text, sizeof(text), "%u", nth);
	if (pwrite(fail_nth_fd, text, n, 0) != n)
		ksft_exit_fail_msg("%s refuses %s\n", FAIL_NTH, text);
}

static void disarm(struct life *life)
{
	char text[16] = "";

	if (life->step != target || done)
		return;
	done = true;
	if (pread(fail_nth_fd, text, sizeof(text) - 1, 0) <= 0)
		ksft_exit_fail_msg("%s cannot be read\n", FAIL_NTH);
	injected = !atoi(text);
	if (pwrite(fail_nth_fd, "0", 1, 0) != 1)
		ksft_exit_fail_msg("%s cannot be switched off\n", FAIL_NTH);
}

/*
 * Without memory for its map of APICs KVM inhibits APICv, which a TD cannot do
 * without, and ends the VM with a warning when it is run: a flaw of KVM, which has
 * nothing to do with memory of the guest.
 */
static bool flaw_of_kvm(int ret)
{
	return target == LIFE_INIT_VCPUS && life.end == LIFE_RUN && ret == -EIO &&
	       td_klog_count("WARNING: ") == 1 && !td_klog_count("BUG: ") &&
	       td_klog_count("at vt_refresh_apicv_exec_ctrl+") == 1;
}

/* What is wrong after a life, or NULL. */
static const char *judge(const struct td_counters *before, int ret)
{
	static char text[1024];

	if (td_counters_check(before, text, sizeof(text)))
		return text;
	if (injected && flaw_of_kvm(ret)) {
		printf("# init_vcpus, allocation %u: KVM ends the VM when it is run\n", nth);
		return NULL;
	}
	if (td_klog_count("WARNING: ") || td_klog_count("BUG: ") ||
	    td_klog_count("INFO: ") || td_klog_count("possible ") ||
	    td_klog_count("bug, the VM ends"))
		return "the kernel log";
	if (injected && ret && ret != -ENOMEM)
		return "the error is not ENOMEM";
	if (life.end != LIFE_DESTROY && life.end != target)
		return "a later step failed";
	return !injected && ret ? "it failed without a fault" : NULL;
}

/* A life with one failed allocation; whether all is well. */
static bool one(void)
{
	struct td_counters before;
	const char *what;
	int ret;

	td_counters_read(&before);
	if (td_klog_begin("none, an allocation fails"))
		ksft_exit_fail_msg("the kernel log cannot be marked\n");
	injected = false;
	done = false;
	life.before = arm;
	life.after = disarm;
	ret = life_lead(&life);
	life.before = NULL;
	life.after = NULL;
	what = judge(&before, ret);
	if (what) {
		printf("# %s, allocation %u: %s; ended in %s with %d: %s\n",
		       life_step_name(target), nth, what, life_step_name(life.end), ret,
		       td_error(&life.td));
		if (td_klog_count("WARNING: "))
			printf("%s\n", td_klog_text());
	}
	td_klog_end();
	return !what;
}

int main(int argc, char **argv)
{
	unsigned int every = 1, faults = 0, errors, bad, n;
	struct td_counters before, now;
	unsigned int differ = 0;
	const char *why;
	int option;

	while ((option = getopt(argc, argv, "e:")) != -1) {
		if (option != 'e' || atoi(optarg) <= 0)
			ksft_exit_fail_msg("usage: fail_alloc [-e N]\n");
		every = atoi(optarg);
	}
	ksft_print_header();
	why = td_unsupported() ?: td_needs(NEEDS_EMULATOR | NEEDS_KLOG) ?: prepare();
	if (why)
		ksft_exit_skip("%s\n", why);
	fail_nth_fd = open(FAIL_NTH, O_RDWR | O_CLOEXEC);
	if (fail_nth_fd < 0)
		ksft_exit_fail_msg("%s: %s\n", FAIL_NTH, strerror(errno));
	ksft_set_plan(LIFE_STEPS);
	td_counters_read(&before);
	for (target = LIFE_CREATE; target < LIFE_STEPS; target++) {
		errors = 0;
		bad = 0;
		n = 0;
		for (nth = 1; nth < MAX_ALLOCATIONS; nth += every) {
			bad += !one();
			if (!injected)
				break;
			n++;
			errors += !!life.first[target];
			if (bad > 5)
				break;
		}
		faults += n;
		differ += bad;
		ksft_test_result(!bad && !injected,
				 "%s: %u faults, %u of them an error of the step\n",
				 life_step_name(target), n, errors);
		fflush(stdout);
	}
	td_counters_read(&now);
	printf("fail_alloc: %u injections, %llu lost, %u lives not as documented\n", faults,
	       now.emu_pages - before.emu_pages, differ);
	ksft_finished();
}
