// SPDX-License-Identifier: GPL-2.0
/*
 * Fuzzes KVM's ioctls for TDs, and with them the mirror that keeps their private
 * memory.  One TD an episode, from barely created to running a hostile guest that
 * accepts, touches and converts pages at random.  Threads call in and out of
 * order, with good and bad arguments, on the same vCPUs and the same pages.  At
 * the end of each TD the counters of mirror and TDX module must agree and no page
 * be left; a warning of the kernel is a failure.
 */
#include <errno.h>
#include <linux/kvm_para.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "fuzz.h"
#include "probe.h"
#include "td.h"

#define RAM_PAGES 64
#define MOST_ATTRIBUTES 0x4000000ull
#define GUEST_OPS 96
#define TOO_MANY_PAGES 0x10000000000000ull

enum {
	ENTER,
	PREFAULT,
	PUNCH,
	ALLOCATE,
	ATTRIBUTES,
	ADD_MEMORY,
	FINALIZE,
	INIT_VM,
	ADD_VCPU,
	INIT_VCPU,
	ADD_SLOT,
	DELETE_SLOT,
	OTHER,
	MEMFD,
	NR_KINDS
};

static const char *const kinds[NR_KINDS] = {
	"enter",   "prefault", "punch",	    "allocate", "attributes",  "add_memory", "finalize",
	"init_vm", "add_vcpu", "init_vcpu", "add_slot", "delete_slot", "other",
	"memfd",
};

static struct td td;
static struct td_counters before;
static bool guest_runs;
/* What changes struct td. */
static pthread_mutex_t setup = PTHREAD_MUTEX_INITIALIZER;
/* One page more than is used: the source of memory begins at a page. */
static __u8 content[(RAM_PAGES + 1) * TD_PAGE];

/* arg[0]: vCPU or slot; arg[1], arg[2]: GPA and size; arg[3]: a variant. */
static void make(struct fuzz_rng *rng, unsigned int index, struct fuzz_op *op)
{
	static const __u8 weights[NR_KINDS] = { 22, 20, 12, 3, 12, 5, 1, 1, 1, 1, 2, 2, 3, 1 };
	static const __u64 odd[] = {
		0,	     1,		 4095,	       TD_SHARED_BIT, TD_SHARED_BIT | TD_RAM_GPA,
		~0ull << 12, 1ull << 51, TD_IMAGE_GPA, TD_BLOCKS_GPA, 0xfee00000
	};
	__u64 pick = fuzz_below(rng, 86), gfn = fuzz_below(rng, RAM_PAGES);

	for (op->kind = 0; pick >= weights[op->kind]; op->kind++)
		pick -= weights[op->kind];
	op->arg[0] = fuzz_below(rng, op->kind == ADD_SLOT || op->kind == DELETE_SLOT ?
					     TD_MAX_SLOTS :
					     TD_MAX_VCPUS);
	op->arg[1] = TD_RAM_GPA + gfn * TD_PAGE;
	op->arg[2] = (1 + fuzz_below(rng, fuzz_below(rng, 3) ? 4 : RAM_PAGES - gfn)) * TD_PAGE;
	op->arg[3] = fuzz_below(rng, 16);
	/* Few slots are added, and where is what KVM has to judge. */
	if (!fuzz_below(rng, op->kind == ADD_SLOT ? 4 : 16))
		op->arg[1] = odd[fuzz_below(rng, ARRAY_SIZE(odd))];
	if (!fuzz_below(rng, 16))
		op->arg[2] = odd[fuzz_below(rng, ARRAY_SIZE(odd))];
	if (op->kind == OTHER)
		op->arg[1] = fuzz_below(rng, 12);
	/* KVM goes through such a range page by page, and no signal ends that: see testing.rst. */
	if (op->kind == ATTRIBUTES && op->arg[2] > MOST_ATTRIBUTES &&
	    op->arg[1] + op->arg[2] > op->arg[1])
		op->arg[2] = MOST_ATTRIBUTES;
}

/* What the guest does: pages at random, private, shared, or neither. */
static void hostile_guest(struct td_vcpu *vcpu, struct fuzz_rng *rng)
{
	unsigned int i;

	for (i = 0; i < GUEST_OPS; i++) {
		__u64 gpa = TD_RAM_GPA + fuzz_below(rng, RAM_PAGES) * TD_PAGE;
		__u64 nr = 1 + fuzz_below(rng, 3);

		switch (fuzz_below(rng, 8)) {
		case 0:
		case 1:
			td_op(vcpu, GUEST_RAW_ACCEPT, gpa, 0, 0);
			break;
		case 2:
			td_op(vcpu, GUEST_ACCEPT, gpa, nr, 0);
			break;
		case 3:
			td_op(vcpu, GUEST_TOUCH, gpa, nr, 0);
			break;
		case 4:
			td_op(vcpu, GUEST_STORE, gpa, nr, i);
			break;
		case 5:
			td_op(vcpu, GUEST_MAP_GPA, gpa | TD_SHARED_BIT, nr, 0);
			break;
		case 6:
			td_op(vcpu, GUEST_MAP_GPA, gpa, nr, 0);
			break;
		default:
			td_op(vcpu, GUEST_TOUCH, gpa | TD_SHARED_BIT, nr, 0);
		}
	}
}

static const char *begin(__u64 variant)
{
	const struct td_config config = {
		.nr_vcpus = 1 + (variant >> 4 & 1),
		.no_finalize = (variant & 15) == 2,
	};
	struct fuzz_rng rng = { variant };
	unsigned int i;
	int ret;

	td_counters_read(&before);
	guest_runs = (variant & 15) > 2;
	if ((variant & 15) > 1) {
		ret = td_build(&td, &config);
		for (i = 0; !ret && i < td.nr_vcpus; i++)
			hostile_guest(&td.vcpu[i], &rng);
	} else {
		ret = td_create(&td);
		if (!ret && (variant & 15))
			ret = td_init_vm(&td, 0);
	}
	return ret ? fuzz_say("a TD cannot be built: %s", td_error(&td)) : NULL;
}

/* One KVM_RUN, and what the guest then wants of a VMM. */
static void enter(struct td_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	if (!run)
		return;
	td_vcpu_enter(vcpu);
	if (run->exit_reason == KVM_EXIT_HYPERCALL && run->hypercall.nr == KVM_HC_MAP_GPA_RANGE) {
		td_set_private(&td, run->hypercall.args[0], run->hypercall.args[1] * TD_PAGE,
			       run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED);
		run->hypercall.ret = 0;
	} else if (run->exit_reason == KVM_EXIT_MEMORY_FAULT) {
		td_set_private(&td, run->memory_fault.gpa, TD_PAGE,
			       run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_PRIVATE);
	}
}

static const char *add_memory(struct td_vcpu *vcpu, const struct fuzz_op *op)
{
	const unsigned long source = ((unsigned long)content + TD_PAGE - 1) & ~(TD_PAGE - 1ul);
	struct kvm_tdx_init_mem_region region = {
		.source_addr = op->arg[3] == 0 ? 4096 : source + (op->arg[3] == 1),
		.gpa = op->arg[1],
		.nr_pages = op->arg[2] / TD_PAGE,
	};

	/* Too many by far, though their bytes wrap to as many as before. */
	if (op->arg[3] == 6)
		region.nr_pages |= TOO_MANY_PAGES;
	if (region.nr_pages > RAM_PAGES && op->arg[3] & 1)
		region.source_addr = ~0ull << 20;
	td_vcpu_op(vcpu, KVM_TDX_INIT_MEM_REGION,
		   op->arg[3] & 4  ? KVM_TDX_MEASURE_MEMORY_REGION :
		   op->arg[3] == 2 ? 6 :
				     0,
		   op->arg[3] == 3 ? NULL : &region);
	if (op->arg[3] == 6 && region.gpa != op->arg[1])
		return fuzz_say("of 2^52 pages and more %llx are left", region.nr_pages);
	return NULL;
}

/* Calls that change what the library knows of the TD. */
static void run_setup(const struct fuzz_op *op, struct td_vcpu *vcpu)
{
	unsigned int slot = op->arg[0] % TD_MAX_SLOTS;

	pthread_mutex_lock(&setup);
	switch (op->kind) {
	case INIT_VM:
		if (op->arg[3] & 1)
			td_init_vm(&td, op->arg[3] & 2 ? ~0ull : 0);
		else
			td_vm_op(&td, KVM_TDX_INIT_VM, op->arg[3] & 2,
				 (void *)(op->arg[3] & 4 ? 4096ul : 0));
		break;
	case ADD_VCPU:
		if (td.nr_vcpus < TD_MAX_VCPUS && td.caps)
			td_add_vcpu(&td);
		break;
	case INIT_VCPU:
		if (vcpu->fd >= 0)
			td_init_vcpu(vcpu);
		break;
	case ADD_SLOT:
		/* Those below are the guest's own. */
		if (slot >= 4 && td.slot[slot].gmem < 0 && !td.slot[slot].shared)
			td_add_slot(&td, slot,
				    op->arg[3] & 8 ? op->arg[1] : TD_RAM_GPA + slot * 0x1000000,
				    RAM_PAGES * TD_PAGE, op->arg[3] & 1);
		break;
	case DELETE_SLOT:
		if (slot == 0 || slot >= 4)
			td_delete_slot(&td, slot);
		break;
	}
	pthread_mutex_unlock(&setup);
}

/* A memory file with the flags that are there, and one that is not. */
static const char *create_memfd(const struct fuzz_op *op)
{
	struct kvm_create_guest_memfd create = { .size = op->arg[2], .flags = op->arg[3] & 7 };
	int fd = ioctl(td.vm_fd, KVM_CREATE_GUEST_MEMFD, &create);

	if (fd < 0)
		return NULL;
	close(fd);
	return create.flags ? fuzz_say("a TD has guest_memfd with flags %llx", create.flags) :
			      NULL;
}

static const char *run(const struct fuzz_op *op)
{
	struct td_vcpu *vcpu = &td.vcpu[op->arg[0] % TD_MAX_VCPUS];
	bool has_vcpu = vcpu->fd >= 0 && vcpu->td;
	__u64 offset = op->arg[1] - TD_RAM_GPA;

	switch (op->kind) {
	case ENTER:
		if (has_vcpu && guest_runs)
			enter(vcpu);
		break;
	case PREFAULT:
		if (has_vcpu)
			td_prefault_once(vcpu, op->arg[1], op->arg[2]);
		break;
	case PUNCH:
		if (td.slot[0].gmem >= 0)
			td_punch_hole(&td, 0, offset, op->arg[2]);
		break;
	case ALLOCATE:
		if (td.slot[0].gmem >= 0 && op->arg[2] <= RAM_PAGES * TD_PAGE)
			td_allocate(&td, 0, offset, op->arg[2]);
		break;
	case ATTRIBUTES:
		td_set_attributes(&td, op->arg[1], op->arg[2],
				  op->arg[3] == 1 ? ~0ull :
				  op->arg[3] & 2  ? KVM_MEMORY_ATTRIBUTE_PRIVATE :
						    0,
				  op->arg[3] == 5);
		break;
	case ADD_MEMORY:
		if (has_vcpu)
			return add_memory(vcpu, op);
		break;
	case FINALIZE:
		td_vm_op(&td, KVM_TDX_FINALIZE_VM, op->arg[3] == 1,
			 (void *)(op->arg[3] == 2 ? 1ul : 0));
		break;
	case OTHER:
		if (op->arg[1] != KVM_TDX_INIT_VM && op->arg[3] & 1)
			td_vm_op(&td, op->arg[1], op->arg[3] & 2,
				 (void *)(op->arg[3] & 4 ? 4096ul : 0));
		else if (op->arg[1] != KVM_TDX_INIT_VCPU && has_vcpu)
			td_vcpu_op(vcpu, op->arg[1], op->arg[3] & 2,
				   (void *)(op->arg[3] & 4 ? 4096ul : 0));
		break;
	case MEMFD:
		return create_memfd(op);
	default:
		run_setup(op, vcpu);
	}
	return NULL;
}

static const char *end(void)
{
	char text[400];

	td_destroy(&td);
	if (td_counters_check(&before, text, sizeof(text)))
		return fuzz_say("after the TD: %s", text);
	return NULL;
}

int main(int argc, char **argv)
{
	static const struct fuzz_target target = {
		.name = "kvm",
		.kinds = kinds,
		.nr_kinds = ARRAY_SIZE(kinds),
		.make = make,
		.begin = begin,
		.run = run,
		.end = end,
		/* On an emulated host a guest gets round once in about one. */
		.interrupt_ms = 10,
	};
	const char *why = td_unsupported();

	if (why) {
		printf("1..0 # SKIP %s\n", why);
		return 4;
	}
	return fuzz_main(argc, argv, &target);
}
