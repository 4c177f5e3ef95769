// SPDX-License-Identifier: GPL-2.0
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include "life.h"

/* Time after which a step that gets nowhere is stopped. */
#define PATIENCE_US	20000

const char *life_step_name(enum life_step step)
{
	static const char * const name[LIFE_STEPS] = {
		"create", "init_vm", "vcpus", "init_vcpus", "slots", "add", "finalize",
		"prefault", "run", "convert", "hole", "run_again", "delete", "destroy",
	};

	return name[step];
}

/* Reads the payload; its last page, with the reset vector, will be measured. */
static int load_image(struct life *life)
{
	__u64 pages = TD_IMAGE_SIZE / TD_PAGE;
	size_t size;
	void *image = td_read_file("ops.bin", &size);

	if (!image || size != TD_IMAGE_SIZE) {
		free(image);
		return -ENOENT;
	}
	life->image = mmap(NULL, size, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (life->image == MAP_FAILED) {
		life->image = NULL;
		free(image);
		return -ENOMEM;
	}
	memcpy(life->image, image, size);
	free(image);
	life->region[0] = (struct kvm_tdx_init_mem_region) {
		.source_addr = (unsigned long)life->image,
		.gpa = TD_IMAGE_GPA, .nr_pages = pages - 1,
	};
	life->region[1] = (struct kvm_tdx_init_mem_region) {
		.source_addr = (unsigned long)life->image + (pages - 1) * TD_PAGE,
		.gpa = TD_IMAGE_GPA + (pages - 1) * TD_PAGE, .nr_pages = 1,
	};
	return 0;
}

/* Two, of which one runs; a TD cannot have more vCPUs than the host has CPUs. */
static int add_vcpus(struct td *td)
{
	int ret = td_add_vcpu(td);

	if (ret || sysconf(_SC_NPROCESSORS_ONLN) < 2)
		return ret;
	return td_add_vcpu(td);
}

static int init_vcpus(struct life *life)
{
	struct td *td = &life->td;
	int ret = 0;

	while (!ret && life->vcpus_done < td->nr_vcpus) {
		ret = td_init_vcpu(&td->vcpu[life->vcpus_done]);
		if (!ret)
			life->vcpus_done++;
	}
	return ret;
}

static int add_slots(struct td *td)
{
	unsigned int i;
	int ret = td_add_slot(td, 0, TD_RAM_GPA, 16 * TD_PAGE, true);

	if (!ret)
		ret = td_add_slot(td, 1, TD_IMAGE_GPA, TD_IMAGE_SIZE, true);
	if (!ret)
		ret = td_add_slot(td, 2, TD_BLOCKS_GPA, TD_MAX_VCPUS * GUEST_BLOCK_SIZE,
				  false);
	for (i = 0; !ret && i < td->nr_vcpus; i++) {
		td->vcpu[i].block = td->slot[2].shared + i * GUEST_BLOCK_SIZE;
		/* KVM_RUN that has to be called again says so. */
		td->vcpu[i].give_up = 1;
		td_ops_clear(&td->vcpu[i]);
	}
	return ret;
}

/* The kernel moves the regions on, so that another attempt goes on with the rest. */
static int add_memory(struct life *life)
{
	struct td_vcpu *vcpu = &life->td.vcpu[0];
	int ret = 0;

	if (life->region[0].nr_pages)
		ret = td_vcpu_op(vcpu, KVM_TDX_INIT_MEM_REGION, 0, &life->region[0]);
	if (!ret)
		ret = td_vcpu_op(vcpu, KVM_TDX_INIT_MEM_REGION,
				 KVM_TDX_MEASURE_MEMORY_REGION, &life->region[1]);
	return ret;
}

static int prefault(struct life *life)
{
	struct kvm_pre_fault_memory *range = &life->range;
	int ret;

	/* Success may leave a rest. */
	do {
		ret = ioctl(life->td.vcpu[0].fd, KVM_PRE_FAULT_MEMORY, range) ? -errno : 0;
	} while (!ret && range->size);
	return ret;
}

/* The vCPU's list, or the rest of it. */
static int run(struct td_vcpu *vcpu)
{
	td_vcpu_run(vcpu);
	return td_ops_join(vcpu);
}

static int run_first(struct life *life, bool again)
{
	struct td_vcpu *vcpu = &life->td.vcpu[0];

	if (!again) {
		td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, LIFE_PAGES, 0);
		td_op(vcpu, GUEST_STORE, TD_RAM_GPA, LIFE_PAGES, 1);
		td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, LIFE_PAGES, 1);
	}
	return run(vcpu);
}

static int run_again(struct life *life, bool again)
{
	struct td_vcpu *vcpu = &life->td.vcpu[0];
	__u64 gone = LIFE_CONVERTED + LIFE_HOLES;
	int ret;

	if (!again) {
		ret = td_set_private(&life->td, TD_RAM_GPA, LIFE_CONVERTED * TD_PAGE, true);
		if (ret)
			return ret;
		td_ops_clear(vcpu);
		td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, gone, 0);
		td_op(vcpu, GUEST_VERIFY_ZERO, TD_RAM_GPA, gone, 0);
		td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA + gone * TD_PAGE,
		      LIFE_PAGES - gone, 1);
	}
	return run(vcpu);
}

static int attempt(struct life *life, bool again)
{
	struct td *td = &life->td;

	switch (life->step) {
	case LIFE_CREATE:
		return td_create(td);
	case LIFE_INIT_VM:
		return td_init_vm(td, 0);
	case LIFE_VCPUS:
		return add_vcpus(td);
	case LIFE_INIT_VCPUS:
		return init_vcpus(life);
	case LIFE_SLOTS:
		return add_slots(td);
	case LIFE_ADD:
		return add_memory(life);
	case LIFE_FINALIZE:
		return td_vm_op(td, KVM_TDX_FINALIZE_VM, 0, NULL);
	case LIFE_PREFAULT:
		return prefault(life);
	case LIFE_RUN:
		return run_first(life, again);
	case LIFE_CONVERT:
		return td_set_private(td, TD_RAM_GPA, LIFE_CONVERTED * TD_PAGE, false);
	case LIFE_HOLE:
		return td_punch_hole(td, 0, LIFE_CONVERTED * TD_PAGE, LIFE_HOLES * TD_PAGE);
	case LIFE_RUN_AGAIN:
		return run_again(life, again);
	case LIFE_DELETE:
		return td_delete_slot(td, 0);
	default:
		td_destroy(td);
		return 0;
	}
}

static void alarm_handler(int signal)
{
}

/*
 * A step that gets nowhere, as KVM may go round without end, is told by a signal; again
 * and again, since one that comes before the system call begins is lost.
 */
static void set_alarm(const struct life *life, bool on)
{
	const struct timeval patience = { .tv_usec = on ? PATIENCE_US : 0 };
	const struct itimerval timer = { .it_interval = patience, .it_value = patience };
	struct sigaction action = { .sa_handler = alarm_handler };

	if (life->step != LIFE_ADD && life->step != LIFE_PREFAULT &&
	    life->step != LIFE_RUN && life->step != LIFE_RUN_AGAIN)
		return;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
}

static int lead_step(struct life *life)
{
	int tries, ret;

	for (tries = 0; tries < LIFE_TRIES; tries++) {
		if (life->before)
			life->before(life);
		set_alarm(life, true);
		ret = attempt(life, tries);
		set_alarm(life, false);
		if (life->after)
			life->after(life);
		if (!tries)
			life->first[life->step] = ret;
		if (ret != -EBUSY && ret != -EAGAIN && ret != -EINTR)
			break;
	}
	life->ret[life->step] = ret;
	return ret;
}

int life_lead(struct life *life)
{
	int ret;

	memset(life->first, 0, sizeof(life->first));
	memset(life->ret, 0, sizeof(life->ret));
	life->vcpus_done = 0;
	life->range = (struct kvm_pre_fault_memory) {
		.gpa = TD_RAM_GPA, .size = LIFE_PREFAULTED * TD_PAGE,
	};
	td_reset(&life->td);
	ret = load_image(life);
	if (ret)
		return ret;
	for (life->step = LIFE_CREATE; life->step < LIFE_DESTROY; life->step++) {
		ret = lead_step(life);
		if (ret)
			break;
	}
	life->end = life->step;
	life->step = LIFE_DESTROY;
	lead_step(life);
	munmap(life->image, TD_IMAGE_SIZE);
	return ret;
}
