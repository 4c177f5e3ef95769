// SPDX-License-Identifier: GPL-2.0
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "probe.h"

#define EMU_STATS	"/sys/kernel/debug/tdx_emu/stats"
#define EMU_INJECT	"/sys/kernel/debug/tdx_emu/inject"
#define WARN_AGAIN	"/sys/kernel/debug/clear_warn_once"
#define TRACING		"/sys/kernel/tracing/"
#define EXITS		TRACING "events/kvm/kvm_exit/enable"
#define KICK		"kvm_make_all_cpus_request"
#define KLOG		"/dev/kmsg"
/* What report.py looks for in the console's log. */
#define KLOG_BEGIN	"tdx-mirror-test: warnings expected: "
#define KLOG_END	"tdx-mirror-test: no more warnings expected"

/* Turns, each of which yields the CPU, after which a wait gives up. */
#define WAIT_TURNS	2000000

static bool tracing;
static int klog_fd = -1;
static unsigned int klog_warns;
static char klog_text[32768];
static size_t klog_len;

const char *td_needs(unsigned int needs)
{
	struct td_counters now;

	td_counters_read(&now);
	if ((needs & NEEDS_EMULATOR) && access(EMU_INJECT, W_OK))
		return "needs the software TDX module: " EMU_INJECT " is not there";
	if ((needs & NEEDS_MIRROR) && now.mode != TD_MODE_ON)
		return "needs kvm_intel.tdx_mirror=on: KVM's own mirror is in use";
	if ((needs & NEEDS_MIRROR) && !now.has_mirror)
		return "needs the counters of tdx_mirror in debugfs";
	if ((needs & NEEDS_KLOG) && access(KLOG, R_OK | W_OK))
		return "needs " KLOG;
	if ((needs & NEEDS_KLOG) && access(WARN_AGAIN, W_OK))
		return "needs " WARN_AGAIN;
	if ((needs & NEEDS_TRACER) && access(TRACING "set_ftrace_filter", W_OK))
		return "needs the function tracer";
	if ((needs & NEEDS_EXITS) && access(EXITS, W_OK))
		return "needs KVM's tracepoint kvm_exit";
	if ((needs & NEEDS_VMSTAT) && access("/proc/vmstat", R_OK))
		return "needs /proc/vmstat";
	if ((needs & NEEDS_NEW_ROOTS) && access(TD_NX_HUGE_PAGES, W_OK))
		return "needs to write " TD_NX_HUGE_PAGES;
	return NULL;
}

void td_calls_read(struct td_calls *calls)
{
	FILE *file = fopen(EMU_STATS, "r");
	unsigned long long value;
	char line[256], word[128], tail[64];
	unsigned int leaf;

	memset(calls, 0, sizeof(*calls));
	if (!file)
		return;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%127s %llu", word, &value) != 2)
			continue;
		if (!strcmp(word, "busy"))
			calls->busy = value;
		if (!strcmp(word, "injected"))
			calls->injected = value;
		if (!strcmp(word, "guest_entries"))
			calls->entries = value;
		if (!strcmp(word, "leaf_0_tdh_vp_enter_ok"))
			calls->exits = value;
		if (sscanf(word, "leaf_%u_%63s", &leaf, tail) != 2 || leaf >= TD_LEAVES)
			continue;
		if (strlen(tail) > 6 && !strcmp(tail + strlen(tail) - 6, "_calls")) {
			calls->leaf[leaf] = value;
			calls->total += value;
		}
	}
	fclose(file);
}

__u64 td_calls_since(const struct td_calls *before, enum td_leaf leaf)
{
	struct td_calls now;

	td_calls_read(&now);
	return now.leaf[leaf] - before->leaf[leaf];
}

bool td_wait_busy(const struct td_calls *before, __u64 n)
{
	struct td_calls now;
	int turns;

	for (turns = 0; turns < WAIT_TURNS / 100; turns++) {
		td_calls_read(&now);
		if (now.busy - before->busy >= n)
			return true;
		sched_yield();
	}
	return false;
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	size_t left = strlen(text);
	ssize_t n = 1;

	if (fd < 0)
		return -errno;
	/* ftrace takes a word at a time. */
	while (left && n > 0) {
		n = write(fd, text, left);
		if (n > 0) {
			text += n;
			left -= n;
		}
	}
	n = n < 0 ? -errno : 0;
	close(fd);
	return n;
}

int td_inject(const char *format, ...)
{
	char script[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(script, sizeof(script), format, args);
	va_end(args);
	return write_file(EMU_INJECT, script);
}

int td_fail(enum td_leaf leaf, const char *when, __u64 status)
{
	return td_inject("fail %d %s %llx\n", leaf, when, (unsigned long long)status);
}

int td_fail_times(enum td_leaf leaf, unsigned int times, __u64 status)
{
	char script[TD_FAIL_TIMES * 64];
	unsigned int n;
	int at = 0;

	if (times > TD_FAIL_TIMES)
		return -EINVAL;
	for (n = 1; n <= times; n++)
		at += snprintf(script + at, sizeof(script) - at, "fail %d %u %llx\n",
			       leaf, n, (unsigned long long)status);
	return td_inject("%s", script);
}

void td_inject_clear(void)
{
	if (!access(EMU_INJECT, W_OK))
		td_inject("clear\n");
}

void td_on_purpose(struct td_counters *before, struct td_purpose what)
{
	before->emu_removed -= what.not_removed;
	before->zapped -= what.not_zapped;
	before->quarantined += what.quarantined;
	before->leaked += what.leaked;
	before->emu_pages += what.owned;
	printf("# on purpose: not_removed %llu not_zapped %llu quarantined %llu ",
	       what.not_removed, what.not_zapped, what.quarantined);
	printf("leaked %llu owned %llu\n", what.leaked, what.owned);
	fflush(stdout);
}

int td_trace_start(const char *functions)
{
	int ret;

	td_trace_stop();
	tracing = true;
	ret = write_file(TRACING "set_ftrace_filter", functions);
	if (!ret)
		ret = write_file(TRACING "current_tracer", "function");
	return ret;
}

void td_trace_stop(void)
{
	if (!tracing)
		return;
	tracing = false;
	if (!access(EXITS, W_OK))
		write_file(EXITS, "0");
	write_file(TRACING "current_tracer", "nop");
	write_file(TRACING "set_ftrace_filter", "\n");
	write_file(TRACING "trace", "");
	write_file(TRACING "tracing_on", "1");
}

/* Counts the lines of the trace that hold @what. */
static __u64 trace_lines(const char *what, __u64 *first, __u64 *last)
{
	FILE *file = fopen(TRACING "trace", "r");
	__u64 number = 0, found = 0;
	char line[512];

	*first = 0;
	*last = 0;
	if (!file)
		return 0;
	while (fgets(line, sizeof(line), file)) {
		if (line[0] == '#')
			continue;
		number++;
		if (!strstr(line, what))
			continue;
		found++;
		*last = number;
		if (!*first)
			*first = number;
	}
	fclose(file);
	return found;
}

__u64 td_trace_count(const char *what)
{
	__u64 first, last;

	/* Not on again before the end: that would empty the trace. */
	write_file(TRACING "tracing_on", "0");
	return trace_lines(what, &first, &last);
}

void td_trace_order(const char *what, __u64 *first, __u64 *last)
{
	trace_lines(what, first, last);
}

int td_kicks_start(void)
{
	return td_trace_start(KICK);
}

__u64 td_kicks_stop(void)
{
	/* TLB flushes are requests too; some of their callers are inlined. */
	__u64 kicks = td_trace_count(KICK) -
		      td_trace_count(KICK " <-kvm_flush_remote_tlbs") -
		      td_trace_count(KICK " <-kvm_vm_ioctl");

	td_trace_stop();
	return kicks;
}

int td_exits_start(void)
{
	td_trace_stop();
	tracing = true;
	write_file(TRACING "trace", "");
	return write_file(EXITS, "1");
}

__u64 td_ept_violations(void)
{
	__u64 first, last;

	return trace_lines("reason EPT_VIOLATION", &first, &last);
}

/* Takes what the kernel said since the last call. */
static void klog_read(void)
{
	char record[2048], *text;
	ssize_t n;

	for (;;) {
		n = read(klog_fd, record, sizeof(record) - 1);
		if (n < 0 && errno == EPIPE)
			continue;
		if (n <= 0)
			return;
		record[n] = 0;
		text = strchr(record, ';');
		if (!text)
			continue;
		text[strcspn(text, "\n")] = 0;
		if (strstr(text, "WARNING: "))
			klog_warns++;
		klog_len += snprintf(klog_text + klog_len, sizeof(klog_text) - klog_len,
				     "%s\n", text + 1);
		if (klog_len >= sizeof(klog_text))
			klog_len = sizeof(klog_text) - 1;
	}
}

static void klog_mark(const char *format, const char *why)
{
	char line[256];

	/* Whatever was printed before comes before it on the console too. */
	fflush(stdout);
	tcdrain(STDOUT_FILENO);
	snprintf(line, sizeof(line), "<4>%s%s", format, why);
	write_file(KLOG, line);
}

int td_klog_begin(const char *why)
{
	td_klog_end();
	klog_fd = open(KLOG, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (klog_fd < 0)
		return -errno;
	lseek(klog_fd, 0, SEEK_END);
	klog_mark(KLOG_BEGIN, why);
	klog_warns = 0;
	klog_len = 0;
	return write_file(WARN_AGAIN, "1");
}

unsigned int td_klog_count(const char *pattern)
{
	unsigned int found = 0;
	const char *at;

	if (klog_fd < 0)
		return 0;
	klog_read();
	for (at = klog_text; (at = strstr(at, pattern)); at++)
		found++;
	return found;
}

const char *td_klog_text(void)
{
	td_klog_count("");
	return klog_text;
}

unsigned int td_klog_end(void)
{
	if (klog_fd < 0)
		return 0;
	klog_read();
	close(klog_fd);
	klog_fd = -1;
	klog_mark(KLOG_END, "");
	return klog_warns;
}

const char *td_param(const char *name, const char *otherwise)
{
	static char value[32];
	const char *at = getenv("TDX_MIRROR_ARGS");
	size_t length = strlen(name);

	while (at && *at) {
		if (!strncmp(at, name, length) && at[length] == '=') {
			snprintf(value, sizeof(value), "%s", at + length + 1);
			value[strcspn(value, " ")] = 0;
			return value;
		}
		at = strchr(at, ' ');
		at = at ? at + 1 : NULL;
	}
	return otherwise;
}

unsigned int td_times(unsigned int usual, unsigned int often)
{
	return getenv("TDX_TEST_LONG") ? often : usual;
}

__u64 td_vmstat(const char *name)
{
	int fd = open("/proc/sys/vm/stat_refresh", O_WRONLY | O_CLOEXEC);
	unsigned int turns;
	bool found;

	/* Each CPU keeps some pages back from a figure until it is asked. */
	if (fd >= 0) {
		if (write(fd, "1", 1) < 0)
			perror("vm.stat_refresh");
		close(fd);
	}
	/* In a kernel without sysctl: until a second is over, and the work is done. */
	for (turns = 0; fd < 0 && turns < 25; turns++)
		usleep(100000);
	return td_counter("/proc/vmstat", name, &found);
}

int td_replace_roots(void)
{
	/* Whoever changes this mitigation has all of KVM's own mappings zapped. */
	char now[8] = "";
	FILE *file = fopen(TD_NX_HUGE_PAGES, "r");

	if (!file)
		return -errno;
	if (!fgets(now, sizeof(now), file))
		now[0] = 0;
	fclose(file);
	return write_file(TD_NX_HUGE_PAGES, now[0] == 'Y' ? "off" : "force");
}

int td_vcpu_enter(struct td_vcpu *vcpu)
{
	int ret = ioctl(vcpu->fd, KVM_RUN, 0) ? -errno : 0;

	vcpu->ret = ret;
	vcpu->reason = vcpu->run->exit_reason;
	return ret;
}

int td_prefault_once(struct td_vcpu *vcpu, __u64 gpa, __u64 size)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa, .size = size };

	return ioctl(vcpu->fd, KVM_PRE_FAULT_MEMORY, &range) ? -errno : 0;
}

#define MIRROR_FOLDER	"/sys/kernel/debug/tdx_mirror"

bool td_folder(char *folder, size_t size)
{
	DIR *dir = opendir(MIRROR_FOLDER);
	struct dirent *entry;
	bool found = false;
	char name[16];

	if (!dir)
		return false;
	snprintf(name, sizeof(name), "%d-", getpid());
	while (!found && (entry = readdir(dir))) {
		found = !strncmp(entry->d_name, name, strlen(name));
		if (found)
			snprintf(folder, size, MIRROR_FOLDER "/%s", entry->d_name);
	}
	closedir(dir);
	return found;
}

int td_folder_open(const char *folder, const char *name)
{
	char path[320];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int td_mirror_write(const char *name, const char *text)
{
	char path[320];

	snprintf(path, sizeof(path), MIRROR_FOLDER "/%s", name);
	return write_file(path, text);
}
