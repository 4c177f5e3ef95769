/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The whole life of a small TD, as a list of steps each of which may fail: for
 * programs that let something fail in one of them.  Everything that moves a
 * private page is in it.
 */
#ifndef TDX_MIRROR_LIFE_H
#define TDX_MIRROR_LIFE_H

#include "td.h"

enum life_step {
	LIFE_CREATE,		/* KVM_CREATE_VM, capabilities */
	LIFE_INIT_VM,		/* KVM_TDX_INIT_VM */
	LIFE_VCPUS,		/* KVM_CREATE_VCPU, KVM_SET_CPUID2 */
	LIFE_INIT_VCPUS,	/* KVM_TDX_INIT_VCPU */
	LIFE_SLOTS,		/* guest_memfd, memory slots, attributes */
	LIFE_ADD,		/* KVM_TDX_INIT_MEM_REGION, one page of it measured */
	LIFE_FINALIZE,		/* KVM_TDX_FINALIZE_VM */
	LIFE_PREFAULT,		/* KVM_PRE_FAULT_MEMORY */
	LIFE_RUN,		/* the guest accepts pages and writes */
	LIFE_CONVERT,		/* private to shared */
	LIFE_HOLE,		/* FALLOC_FL_PUNCH_HOLE */
	LIFE_RUN_AGAIN,		/* and back, with zeroes */
	LIFE_DELETE,		/* the memory slot goes */
	LIFE_DESTROY,		/* all files are closed */
	LIFE_STEPS,
};

/* Pages of RAM that the steps use, the first ones of the slot. */
#define LIFE_PREFAULTED	4
#define LIFE_PAGES	6	/* the rest by EPT violations */
#define LIFE_CONVERTED	2	/* pages 0 and 1 */
#define LIFE_HOLES	2	/* pages 2 and 3 */

/* Attempts of a step that is told to try again. */
#define LIFE_TRIES	3

struct life {
	struct td td;
	enum life_step step;	/* the one under way */
	enum life_step end;	/* where it ended: LIFE_DESTROY is a whole life */
	int first[LIFE_STEPS];	/* error of the first attempt, 0 if none */
	int ret[LIFE_STEPS];	/* and of the last one */
	/* Called before and after each attempt of a step, may be NULL. */
	void (*before)(struct life *life);
	void (*after)(struct life *life);
	void *data;

	/* private to life.c: how far a step has come */
	unsigned int vcpus_done;
	struct kvm_tdx_init_mem_region region[2];
	struct kvm_pre_fault_memory range;
	void *image;
};

const char *life_step_name(enum life_step step);

/*
 * Leads the life of a TD.  A step that answers EBUSY, EAGAIN or EINTR is tried
 * again, LIFE_TRIES times in all; with any other error, or after that, the TD is
 * destroyed.  Returns the error that ended it, or 0.
 */
int life_lead(struct life *life);

#endif /* TDX_MIRROR_LIFE_H */
