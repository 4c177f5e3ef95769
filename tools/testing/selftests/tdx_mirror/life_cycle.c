// SPDX-License-Identifier: GPL-2.0
/*
 * The whole life of a TD with 2 vCPUs, one TAP test per phase.
 *
 * life_cycle [--pages N]: N pages of private memory, 16..8192, default 256.
 * Prints a line `phase <name> <TSC ticks>` per phase and, where the counters
 * are exported, `stat <name> <value>` with the differences of the whole run.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <x86intrin.h>

#include "kselftest.h"
#include "td.h"

#define EXTRA	64ull		/* pages for conversions, after the N pages */
#define SEED	0x7d5eedull

static struct td td;
static __u64 pages = 256;

static __u64 half(void)
{
	return pages / 2;
}

static __u64 extra_gpa(void)
{
	return TD_RAM_GPA + pages * TD_PAGE;
}

static int create(void)
{
	return td_create(&td);
}

static int init_vm(void)
{
	return td_init_vm(&td, 0);
}

static int vcpus(void)
{
	int i, ret = 0;

	for (i = 0; !ret && i < 2; i++) {
		ret = td_add_vcpu(&td);
		if (!ret)
			ret = td_init_vcpu(&td.vcpu[i]);
	}
	return ret;
}

static int get_cpuid(void)
{
	struct kvm_cpuid2 *cpuid = td_default_cpuid(&td);
	int ret;

	if (!cpuid)
		return -1;
	cpuid->nent = 256;
	ret = td_vcpu_op(&td.vcpu[0], KVM_TDX_GET_CPUID, 0, cpuid);
	if (!ret && !cpuid->nent)
		ret = -1;
	if (ret)
		snprintf(td.error, sizeof(td.error), "KVM_TDX_GET_CPUID: %d", ret);
	free(cpuid);
	return ret;
}

static int add_memory(void)
{
	__u64 size = (pages + EXTRA) * TD_PAGE;
	int i, ret = td_add_slot(&td, 0, TD_RAM_GPA, size, true);

	if (!ret)
		ret = td_add_slot(&td, 1, TD_IMAGE_GPA, TD_IMAGE_SIZE, true);
	if (!ret)
		ret = td_add_slot(&td, 2, TD_BLOCKS_GPA, 2 * GUEST_BLOCK_SIZE, false);
	if (!ret)
		ret = td_add_slot(&td, 3, TD_WORDS_GPA, TD_PAGE, false);
	if (ret)
		return ret;
	for (i = 0; i < 2; i++) {
		td.vcpu[i].block = td.slot[2].shared + i * GUEST_BLOCK_SIZE;
		td_ops_clear(&td.vcpu[i]);
	}
	return td_load_image(&td, "ops");
}

static int finalize(void)
{
	return td_finalize(&td);
}

static int prefault(void)
{
	return td_prefault(&td.vcpu[0], TD_RAM_GPA, half() * TD_PAGE, NULL);
}

/* Accepts, fills and checks @nr pages from @gpa; then ports, MMIO, MapGPA. */
static void fill_list(struct td_vcpu *vcpu, __u64 gpa, __u64 nr)
{
	__u64 convert = extra_gpa() + vcpu->index * 16 * TD_PAGE;

	td_ops_clear(vcpu);
	td_op(vcpu, GUEST_VP_INFO, 0, 0, 0);
	td_op(vcpu, GUEST_BARRIER, td_word_gpa(0), 2, 0);
	td_op(vcpu, GUEST_ACCEPT, gpa, nr, 0);
	td_op(vcpu, GUEST_VERIFY_ZERO, gpa, nr, 0);
	td_op(vcpu, GUEST_STORE, gpa, nr, SEED);
	td_op(vcpu, GUEST_PORT_OUT, TD_PORT_ECHO, 4, 0x11223344);
	td_op(vcpu, GUEST_PORT_IN, TD_PORT_ECHO, 4, 0);
	td_op(vcpu, GUEST_MMIO_WRITE, TD_MMIO_GPA + 8, 8, SEED * 3);
	td_op(vcpu, GUEST_MMIO_READ, TD_MMIO_GPA + 8, 8, 0);
	td_op(vcpu, GUEST_MAP_GPA, convert | TD_SHARED_BIT, 16 * TD_PAGE, 0);
	td_op(vcpu, GUEST_STORE, convert | TD_SHARED_BIT, 16, SEED);
	td_op(vcpu, GUEST_VERIFY, gpa, nr, SEED);
}

static int check_list(struct td_vcpu *vcpu)
{
	const struct guest_op *op = vcpu->block->ops;
	const __u64 *shared = td.slot[0].shared + pages * TD_PAGE +
			      vcpu->index * 16 * TD_PAGE;
	__u64 gpa = extra_gpa() + vcpu->index * 16 * TD_PAGE;
	unsigned int i;

	if ((__u32)op[6].res[0] != 0x11223344 || op[8].res[0] != SEED * 3 ||
	    op[0].res[0] != 48 || op[0].res[2] >> 32 != vcpu->index) {
		snprintf(td.error, sizeof(td.error),
			 "vCPU %d: port %llx, MMIO %llx, GPAW %llu, index %llu",
			 vcpu->index, op[6].res[0], op[8].res[0], op[0].res[0],
			 op[0].res[2] >> 32);
		return -1;
	}
	for (i = 0; i < 16 * 512; i++)
		if (shared[i] != guest_pattern(gpa + 8 * i, SEED)) {
			snprintf(td.error, sizeof(td.error),
				 "shared memory at %llx is %llx", gpa + 8 * i, shared[i]);
			return -1;
		}
	return 0;
}

static int run(void)
{
	int i, ret;

	*td_word(&td, 0) = 0;
	fill_list(&td.vcpu[0], TD_RAM_GPA, half());
	fill_list(&td.vcpu[1], TD_RAM_GPA + half() * TD_PAGE, pages - half());
	for (i = 0; i < 2; i++) {
		ret = td_vcpu_start(&td.vcpu[i]);
		if (ret)
			return ret;
	}
	for (i = 1; i >= 0; i--) {
		ret = td_ops_join(&td.vcpu[i]);
		if (ret)
			return ret;
	}
	ret = check_list(&td.vcpu[0]);
	return ret ? ret : check_list(&td.vcpu[1]);
}

static int punch_hole(void)
{
	struct td_vcpu *vcpu = &td.vcpu[1];
	__u64 nr = half() / 2;
	int ret = td_punch_hole(&td, 0, 0, half() * TD_PAGE);

	if (ret)
		return ret;
	/* A hole is new, empty memory; what lies beside it is untouched. */
	td_ops_clear(vcpu);
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, nr, 0);
	td_op(vcpu, GUEST_VERIFY_ZERO, TD_RAM_GPA, nr, 0);
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA + half() * TD_PAGE, pages - half(), SEED);
	return td_ops_run(vcpu);
}

static int convert(void)
{
	struct td_vcpu *vcpu = &td.vcpu[0];
	__u64 gpa = TD_RAM_GPA + half() * TD_PAGE;
	__u64 *shared = td.slot[0].shared + half() * TD_PAGE;
	unsigned int i;
	int ret = td_set_private(&td, gpa, 8 * TD_PAGE, false);

	if (ret)
		return ret;
	for (i = 0; i < 8 * 512; i++)
		shared[i] = guest_pattern(gpa + 8 * i, SEED + 1);
	td_ops_clear(vcpu);
	td_op(vcpu, GUEST_VERIFY, gpa | TD_SHARED_BIT, 8, SEED + 1);
	td_op(vcpu, GUEST_MAP_GPA, gpa, 8 * TD_PAGE, 0);
	td_op(vcpu, GUEST_ACCEPT, gpa, 8, 0);
	td_op(vcpu, GUEST_VERIFY_ZERO, gpa, 8, 0);
	td_op(vcpu, GUEST_STORE, gpa, 8, SEED + 2);
	td_op(vcpu, GUEST_VERIFY, gpa, 8, SEED + 2);
	td_op(vcpu, GUEST_VERIFY, gpa + 8 * TD_PAGE, pages - half() - 8, SEED);
	return td_ops_run(vcpu);
}

static int teardown(void)
{
	td_destroy(&td);
	return 0;
}

static const struct phase {
	const char *name;
	int (*step)(void);
} phases[] = {
	{ "create", create },
	{ "init_vm", init_vm },
	{ "vcpus", vcpus },
	{ "get_cpuid", get_cpuid },
	{ "add_memory", add_memory },
	{ "finalize", finalize },
	{ "prefault", prefault },
	{ "run", run },
	{ "punch_hole", punch_hole },
	{ "convert", convert },
	{ "teardown", teardown },
};

static void print_stats(const struct td_counters *before)
{
	struct td_counters now;

	td_counters_read(&now);
	if (now.has_emu) {
		printf("stat pages_mapped %llu\n", now.emu_present - before->emu_present);
		printf("stat pages_zapped %llu\n", now.emu_removed - before->emu_removed);
		printf("stat pages_owned %llu\n", now.emu_pages);
	}
	if (now.has_mirror && now.mode == TD_MODE_ON) {
		printf("stat mirror_mapped %llu\n", now.mapped - before->mapped);
		printf("stat mirror_zapped %llu\n", now.zapped - before->zapped);
		printf("stat leaked %llu\n", now.leaked - before->leaked);
	}
}

int main(int argc, char **argv)
{
	const char *why = td_unsupported();
	struct td_counters before;
	char text[1024];
	bool failed = false;
	size_t i;

	if (argc == 3 && !strcmp(argv[1], "--pages"))
		pages = strtoull(argv[2], NULL, 0);
	else if (argc != 1)
		ksft_exit_fail_msg("usage: life_cycle [--pages N]\n");
	if (pages < 16 || pages > 8192)
		ksft_exit_fail_msg("--pages: 16..8192\n");

	ksft_print_header();
	if (why)
		ksft_exit_skip("%s\n", why);
	ksft_set_plan(sizeof(phases) / sizeof(*phases) + 1);
	td_reset(&td);
	td_counters_read(&before);
	ksft_print_msg("%s\n", td_counters_note(&before));

	for (i = 0; i < sizeof(phases) / sizeof(*phases); i++) {
		const struct phase *phase = &phases[i];
		__u64 start = __rdtsc(), end;

		if (failed && phase->step != teardown) {
			ksft_test_result_skip("%s\n", phase->name);
			continue;
		}
		if (phase->step()) {
			failed = true;
			ksft_print_msg("%s\n", td_error(&td));
			ksft_test_result_fail("%s\n", phase->name);
			continue;
		}
		end = __rdtsc();
		ksft_test_result_pass("%s\n", phase->name);
		printf("phase %s %llu\n", phase->name, end - start);
	}

	failed = td_counters_check(&before, text, sizeof(text));
	if (failed)
		ksft_print_msg("%s\n", text);
	ksft_test_result(!failed, "nothing left\n");
	print_stats(&before);
	ksft_finished();
}
