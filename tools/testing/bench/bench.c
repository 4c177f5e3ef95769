// SPDX-License-Identifier: GPL-2.0
/*
 * Benchmarks of TDs' private memory through KVM's ioctls, KVM's own mirror
 * against tdx_mirror: each workload in both modes by turns, on one kernel in one
 * boot.  For the emulated host, where the TSC counts instructions.
 *
 *	bench REPETITIONS 'MODE...' WORKLOAD[:ARGUMENT]...
 *
 * A line per sample goes to standard output, see sample.c.  Exit status 0 if all
 * workloads ran.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sample.h"

#define MODE_FILE	"/sys/module/kvm_intel/parameters/tdx_mirror"
#define MIB		0x100000ull
#define MIB_PAGES	(MIB / TD_PAGE)
/* A fault is too short to be measured alone. */
#define FAULTS		64
#define FAULT_SAMPLES	16
#define RANDOM_PAGES	(64 * MIB_PAGES)
#define SLOT_GPA	0x40000000ull

struct bench {
	const char *mode;
	unsigned int rep;
	bool trace_kicks;
	unsigned long arg;
	struct td td;
};

static struct bench_sample *sample_of(const struct bench *b, const char *format, ...)
{
	static struct bench_sample sample;
	static char name[64];
	va_list args;

	va_start(args, format);
	vsnprintf(name, sizeof(name), format, args);
	va_end(args);
	sample = (struct bench_sample) {
		.name = name, .mode = b->mode, .rep = b->rep, .cpu = -1,
		.trace_kicks = b->trace_kicks,
	};
	return &sample;
}

/* A TD with one vCPU and @pages of private memory. */
static int build(struct bench *b, __u64 pages)
{
	const struct td_config config = { .ram_size = pages * TD_PAGE };

	return td_build(&b->td, &config);
}

static int prefault(struct bench *b, __u64 pages)
{
	return td_prefault(&b->td.vcpu[0], TD_RAM_GPA, pages * TD_PAGE, NULL);
}

static __u64 next_random(__u64 *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* The guest accepts pages that are not mapped: each is a fault. */
static int faults(struct bench *b, const char *name, bool random)
{
	struct td_vcpu *vcpu = &b->td.vcpu[0];
	__u64 seed = 88172645463325252ull, *order;
	unsigned int n, i;
	int ret;

	order = calloc(RANDOM_PAGES, sizeof(*order));
	if (!order)
		return -ENOMEM;
	for (n = 0; n < RANDOM_PAGES; n++)
		order[n] = n;
	for (n = RANDOM_PAGES - 1; random && n; n--) {
		__u64 other = next_random(&seed) % (n + 1), page = order[n];

		order[n] = order[other];
		order[other] = page;
	}
	ret = build(b, RANDOM_PAGES);
	/* The first faults of a TD link all tables above their pages. */
	for (n = 0; !ret && n <= FAULT_SAMPLES; n++) {
		struct bench_sample *sample = sample_of(b, "%s", name);

		td_ops_clear(vcpu);
		for (i = 0; i < FAULTS; i++)
			td_op(vcpu, GUEST_ACCEPT,
			      TD_RAM_GPA + order[n * FAULTS + i] * TD_PAGE, 1, 0);
		ret = (n ? bench_begin(sample) : 0) ?: td_ops_run(vcpu);
		if (n && !ret)
			bench_end(sample, FAULTS);
	}
	free(order);
	return ret;
}

static int fault_seq(struct bench *b)
{
	return faults(b, "fault_seq", false);
}

static int fault_rand(struct bench *b)
{
	return faults(b, "fault_rand", true);
}

static int prefault_some(struct bench *b)
{
	struct bench_sample *sample = sample_of(b, "prefault");
	__u64 pages = b->arg * MIB_PAGES;
	int ret;

	ret = build(b, pages) ?: bench_begin(sample) ?: prefault(b, pages);
	if (!ret)
		bench_end(sample, pages);
	return ret;
}

static int init_region(struct bench *b, struct kvm_tdx_init_mem_region *region)
{
	int ret;

	do {
		ret = td_vcpu_op(&b->td.vcpu[0], KVM_TDX_INIT_MEM_REGION,
				 KVM_TDX_MEASURE_MEMORY_REGION, region);
	} while (ret == -EINTR || ret == -EAGAIN);
	return ret;
}

/* The firmware image, measured. */
static int init_mem(struct bench *b)
{
	const struct td_config config = { .no_image = true, .no_finalize = true };
	struct bench_sample *sample = sample_of(b, "init_mem");
	struct kvm_tdx_init_mem_region region = {};
	char path[256];
	void *data, *pages;
	size_t size;
	int ret;

	data = td_read_firmware(&size, path);
	if (!data)
		return -ENOENT;
	size &= ~(TD_PAGE - 1);
	pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages != MAP_FAILED)
		memcpy(pages, data, size);
	free(data);
	if (pages == MAP_FAILED)
		return -ENOMEM;
	region.source_addr = (unsigned long)pages;
	region.gpa = TD_IMAGE_GPA - size;
	region.nr_pages = size / TD_PAGE;
	ret = td_build(&b->td, &config) ?:
	      td_add_slot(&b->td, 4, region.gpa, size, true) ?:
	      bench_begin(sample) ?:
	      init_region(b, &region);
	if (!ret)
		bench_end(sample, size / TD_PAGE);
	munmap(pages, size);
	return ret;
}

static int pin(int cpu, pthread_t thread)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return -pthread_setaffinity_np(thread, sizeof(set), &set);
}

/* Both vCPUs count in a loop, each on a CPU of its own. */
static int run_guests(struct bench *b)
{
	struct td_vcpu *vcpu;
	int ret = 0;

	for (vcpu = b->td.vcpu; !ret && vcpu < b->td.vcpu + 2; vcpu++) {
		td_ops_clear(vcpu);
		td_op(vcpu, GUEST_LOOP, 0, 0, 0);
		ret = td_vcpu_start(vcpu) ?: pin(1 + vcpu->index, vcpu->thread);
		while (!ret && !__atomic_load_n(&vcpu->block->heartbeat, __ATOMIC_SEQ_CST))
			sched_yield();
	}
	return ret;
}

static int stop_guests(struct bench *b)
{
	struct td_vcpu *vcpu;
	int ret = 0;

	for (vcpu = b->td.vcpu; !ret && vcpu < b->td.vcpu + 2; vcpu++) {
		td_vcpu_stop(vcpu);
		ret = td_ops_join(vcpu);
	}
	return ret;
}

static int set_private(struct bench *b, __u64 pages, bool private)
{
	return td_set_private(&b->td, TD_RAM_GPA, pages * TD_PAGE, private);
}

/* Conversion of private memory to shared and, with @back, back again, from CPU 0. */
static int convert_once(struct bench *b, const char *name, __u64 pages, bool back)
{
	struct bench_sample *sample = sample_of(b, "%s", name);
	int ret;

	/* SEAMCALLs that vCPUs make meanwhile are no part of it. */
	sample->cpu = 0;
	ret = bench_begin(sample) ?: set_private(b, pages, false);
	if (!ret && back)
		ret = set_private(b, pages, true);
	if (!ret)
		bench_end(sample, pages);
	return ret;
}

/*
 * Takes pages away by conversion to shared, which leaves the memory file alone.
 * What KVM does for that beside the zap it does as well where nothing is mapped:
 * that is the base.  With @guests, two vCPUs run meanwhile.
 */
static int conversion(struct bench *b, const char *name, __u64 pages, bool guests, bool back)
{
	const struct td_config config = {
		.ram_size = pages * TD_PAGE, .nr_vcpus = guests ? 2 : 1,
	};
	char base[64];
	int ret;

	snprintf(base, sizeof(base), "%s_base", name);
	ret = pin(0, pthread_self()) ?: td_build(&b->td, &config);
	if (!ret && guests)
		ret = run_guests(b);
	if (!ret && !b->trace_kicks)
		ret = convert_once(b, base, pages, back);
	if (!ret && guests)
		ret = stop_guests(b);
	ret = ret ?: set_private(b, pages, true) ?: prefault(b, pages);
	if (!ret && guests)
		ret = run_guests(b);
	ret = ret ?: convert_once(b, name, pages, back);
	if (!ret && guests)
		ret = stop_guests(b);
	return ret;
}

static int zap(struct bench *b)
{
	char name[64];

	snprintf(name, sizeof(name), "zap_%lu", b->arg);
	return conversion(b, name, b->arg, true, false);
}

static int zap_idle(struct bench *b)
{
	char name[64];

	snprintf(name, sizeof(name), "zap_idle_%lu", b->arg);
	return conversion(b, name, b->arg, false, false);
}

static int convert(struct bench *b)
{
	char name[64];

	snprintf(name, sizeof(name), "convert_%lum", b->arg);
	return conversion(b, name, b->arg * MIB_PAGES, true, true);
}

/* Takes pages away by a hole in the memory file, which frees them too. */
static int hole(struct bench *b)
{
	struct bench_sample *sample = sample_of(b, "hole_%lu", b->arg);
	__u64 pages = b->arg;
	int ret;

	ret = build(b, pages) ?: prefault(b, pages) ?: bench_begin(sample) ?:
	      td_punch_hole(&b->td, 0, 0, pages * TD_PAGE);
	if (!ret)
		bench_end(sample, pages);
	return ret;
}

/* Slot 4 of @mib MiB at a border of 1 GiB, beside a TD of next to nothing. */
static int build_slot(struct bench *b, __u64 mib)
{
	return build(b, 1) ?: td_add_slot(&b->td, 4, SLOT_GPA, mib * MIB, true);
}

static int prefault_slot(struct bench *b, __u64 mib)
{
	return td_prefault(&b->td.vcpu[0], SLOT_GPA, mib * MIB, NULL);
}

/* A memory slot goes with all its pages mapped. */
static int memslot(struct bench *b)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = 4, .flags = KVM_MEM_GUEST_MEMFD, .guest_phys_addr = SLOT_GPA,
	};
	struct bench_sample *sample = sample_of(b, "memslot");
	int ret;

	ret = build_slot(b, b->arg) ?: prefault_slot(b, b->arg);
	if (ret)
		return ret;
	region.userspace_addr = (unsigned long)b->td.slot[4].shared;
	region.guest_memfd = b->td.slot[4].gmem;
	ret = bench_begin(sample);
	if (!ret && ioctl(b->td.vm_fd, KVM_SET_USER_MEMORY_REGION2, &region))
		ret = -errno;
	if (!ret)
		bench_end(sample, b->arg * MIB_PAGES);
	return ret;
}

/* The end of a TD with all its memory mapped. */
static int teardown(struct bench *b)
{
	struct bench_sample *sample = sample_of(b, "teardown");
	__u64 pages = b->arg * MIB_PAGES;
	int ret;

	ret = build(b, pages) ?: prefault(b, pages) ?: bench_begin(sample);
	if (ret)
		return ret;
	td_destroy(&b->td);
	bench_end(sample, pages);
	return 0;
}

/* Each b->arg-th call of @leaf finds the S-EPT tree busy. */
static int busy(struct bench *b, enum td_leaf leaf)
{
	char when[32];

	snprintf(when, sizeof(when), "every %lu", b->arg);
	return td_fail(leaf, when, TD_OPERAND_BUSY | TD_OP_SEPT_TREE);
}

static int busy_fault(struct bench *b)
{
	struct bench_sample *sample = sample_of(b, "busy_fault_%lu", b->arg);
	const __u64 pages = 4 * MIB_PAGES;
	int ret;

	ret = build(b, pages) ?: busy(b, TD_PAGE_AUG) ?: bench_begin(sample) ?:
	      prefault(b, pages);
	if (!ret)
		bench_end(sample, pages);
	return ret;
}

static int busy_zap(struct bench *b)
{
	struct bench_sample *sample = sample_of(b, "busy_zap_%lu", b->arg);
	const __u64 pages = 4 * MIB_PAGES;
	int ret;

	ret = build(b, pages) ?: prefault(b, pages) ?: busy(b, TD_RANGE_BLOCK) ?:
	      bench_begin(sample) ?:
	      td_set_private(&b->td, TD_RAM_GPA, pages * TD_PAGE, false);
	if (!ret)
		bench_end(sample, pages);
	return ret;
}

/* Pages of both tables now, on a line of its own. */
static void show_tables(const struct bench *b, __u64 mib)
{
	bool found;

	printf("@tables %s mib=%llu mirror=%llu external=%llu\n", b->mode, mib,
	       td_counter(TD_MIRROR_STATS, "tables", &found),
	       td_counter(TD_MIRROR_STATS, "external_tables", &found));
	fflush(stdout);
}

/* Prefault, zap and end of a TD of b->arg MiB. */
static int grow(struct bench *b)
{
	struct bench_sample *sample;
	int ret;

	ret = build_slot(b, b->arg);
	if (ret)
		return ret;
	show_tables(b, 0);
	sample = sample_of(b, "grow_prefault_%lu", b->arg);
	ret = bench_begin(sample) ?: prefault_slot(b, b->arg);
	if (ret)
		return ret;
	bench_end(sample, b->arg * MIB_PAGES);
	show_tables(b, b->arg);
	sample = sample_of(b, "grow_zap_%lu", b->arg);
	ret = bench_begin(sample) ?:
	      td_set_private(&b->td, SLOT_GPA, b->arg * MIB, false);
	if (ret)
		return ret;
	bench_end(sample, b->arg * MIB_PAGES);
	sample = sample_of(b, "grow_teardown_%lu", b->arg);
	ret = bench_begin(sample);
	td_destroy(&b->td);
	bench_end(sample, b->arg * MIB_PAGES);
	return ret;
}

static const struct workload {
	const char *name;
	int (*run)(struct bench *b);
	unsigned long arg;
	bool kicks;
} workloads[] = {
	{ "fault_seq", fault_seq },
	{ "fault_rand", fault_rand },
	{ "prefault", prefault_some, 64 },
	{ "init_mem", init_mem },
	{ "zap", zap, 512, true },
	{ "zap_idle", zap_idle, 512, true },
	{ "hole", hole, 512, true },
	{ "memslot", memslot, 64, true },
	{ "teardown", teardown, 256 },
	{ "busy_fault", busy_fault, 8 },
	{ "busy_zap", busy_zap, 8, true },
	{ "grow", grow, 1 },
	{ "convert", convert, 64, true },
	{}
};

static int set_mode(const char *mode)
{
	int fd = open(MODE_FILE, O_WRONLY), ret = 0;

	if (fd < 0 || write(fd, mode, strlen(mode)) < 0)
		ret = -errno;
	if (fd >= 0)
		close(fd);
	return ret;
}

static int run_once(const struct workload *w, unsigned long arg, const char *mode,
		    unsigned int rep, bool trace_kicks)
{
	static struct bench b;
	int ret;

	b = (struct bench) { .mode = mode, .rep = rep, .arg = arg, .trace_kicks = trace_kicks };
	td_reset(&b.td);
	ret = set_mode(mode);
	if (ret) {
		printf("bench: tdx_mirror=%s: %s\n", mode, strerror(-ret));
		return ret;
	}
	ret = w->run(&b);
	if (ret)
		printf("bench: %s, tdx_mirror=%s: %s; %s\n", w->name, mode, strerror(-ret),
		       td_error(&b.td));
	td_inject_clear();
	td_trace_stop();
	td_destroy(&b.td);
	return ret;
}

/* Repetitions by turns; the last one, where there are kicks, counts these. */
static int run(const char *spec, unsigned int reps, char * const *modes, unsigned int nr_modes)
{
	const struct workload *w;
	unsigned int n, rep;
	unsigned long arg;
	int ret = 0;

	for (w = workloads; w->name; w++) {
		size_t len = strlen(w->name);

		if (!strncmp(spec, w->name, len) && (!spec[len] || spec[len] == ':'))
			break;
	}
	if (!w->name) {
		printf("bench: no workload %s\n", spec);
		return -EINVAL;
	}
	arg = strchr(spec, ':') ? strtoul(strchr(spec, ':') + 1, NULL, 0) : w->arg;
	for (rep = 0; rep < reps + w->kicks; rep++)
		/* The first of a turn is not always the same. */
		for (n = 0; !ret && n < nr_modes; n++)
			ret = run_once(w, arg, modes[(n + rep) % nr_modes], rep, rep == reps);
	printf("@done %s %d\n", spec, ret);
	fflush(stdout);
	return ret;
}

int main(int argc, char **argv)
{
	char *modes[4], *rest, *mode;
	unsigned int nr_modes = 0;
	int i, failed = 0;

	if (argc < 4) {
		fprintf(stderr, "usage: bench REPETITIONS 'MODE...' WORKLOAD[:ARGUMENT]...\n");
		return 2;
	}
	if (td_unsupported() || !bench_prepare()) {
		fprintf(stderr, "bench: %s\n", td_unsupported() ?:
			"the software TDX module is not there or not loaded with cycles=1");
		return 2;
	}
	for (mode = strtok_r(argv[2], " ", &rest); mode && nr_modes < 4;
	     mode = strtok_r(NULL, " ", &rest))
		modes[nr_modes++] = mode;
	for (i = 3; i < argc; i++)
		if (run(argv[i], strtoul(argv[1], NULL, 0), modes, nr_modes))
			failed = 1;
	return failed;
}
