/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A small VMM for TDs.  It uses KVM's public ioctls only, so it works the same
 * way on an emulated and on a real TDX host.
 *
 * Functions return 0 or a negative errno, unless they say otherwise, and leave
 * a sentence in td_error().
 */
#ifndef TDX_MIRROR_TD_H
#define TDX_MIRROR_TD_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include "guest_ops.h"
#include "tdvf.h"

#define TD_MAX_VCPUS	2
#define TD_MAX_SLOTS	8
#define TD_PAGE		4096ul
#define TD_SHARED_BIT	0x800000000000ull

/* Where td_build() puts things; all but the parameter blocks is private. */
#define TD_BLOCKS_GPA	0x08000000ull	/* one parameter block per vCPU */
#define TD_WORDS_GPA	0x08100000ull	/* one page of words shared by vCPUs */
#define TD_RAM_GPA	0x10000000ull
#define TD_MMIO_GPA	0xe0000000ull	/* no memory slot: one page of device */
#define TD_IMAGE_GPA	0xffff0000ull
#define TD_IMAGE_SIZE	0x10000ul

/* A port that gives back what was written to it. */
#define TD_PORT_ECHO	0x510

enum td_exit {
	TD_EXIT_ERROR,		/* KVM_RUN failed: td_vcpu.ret */
	TD_EXIT_DONE,		/* the payload finished its list */
	TD_EXIT_MEMORY_FAULT,	/* td_vcpu.fault_gpa, .fault_private */
	TD_EXIT_FATAL,		/* the TD reported an error: td_vcpu.fatal */
	TD_EXIT_SHUTDOWN,	/* triple fault */
	TD_EXIT_CANCELLED,	/* td_vcpu_cancel() */
	TD_EXIT_OTHER,		/* td_vcpu.reason */
};

struct td_slot {
	__u32 id;
	__u64 gpa;
	__u64 size;
	int gmem;		/* guest_memfd, or -1 */
	void *shared;		/* what backs the slot's shared pages */
};

struct td;

struct td_vcpu {
	struct td *td;
	int index;
	int fd;
	struct kvm_run *run;
	size_t run_size;
	struct guest_block *block;

	/* of the last td_vcpu_run() */
	enum td_exit exit;
	__u32 reason;
	int ret;
	__u64 fault_gpa;
	bool fault_private;
	__u64 fatal[3];		/* code and two details */
	char text[128];		/* what `hello` printed */
	unsigned int text_len;
	unsigned int map_gpa_exits, io_exits, mmio_exits;

	/* the devices */
	__u32 port_echo;
	__u8 mmio[TD_PAGE];

	/* times in a row that KVM_RUN may say "try again", 0: any number */
	unsigned int give_up;

	/* what the VMM answers to the next MapGPA requests */
	unsigned int map_gpa_retries;
	bool map_gpa_refuse;

	pthread_t thread;
	bool has_thread;
	bool cancel;
};

struct td {
	int kvm_fd;
	int vm_fd;
	struct kvm_tdx_capabilities *caps;
	unsigned int nr_vcpus;
	struct td_vcpu vcpu[TD_MAX_VCPUS];
	struct td_slot slot[TD_MAX_SLOTS];
	struct mrtd mrtd;
	__u8 mrtd_digest[SHA384_SIZE];
	__u64 hw_error;		/* of the last KVM_MEMORY_ENCRYPT_OP */
	char error[512];
};

struct td_config {
	unsigned int nr_vcpus;	/* default 1 */
	__u64 attributes;
	__u64 ram_size;		/* default 4 MiB */
	const char *image;	/* default "ops" */
	bool no_image;
	bool no_measure;	/* of the image, which takes 16 SEAMCALLs a page */
	bool no_finalize;
};

/* NULL, or why this host cannot run a TD; needs no privilege but /dev/kvm. */
const char *td_unsupported(void);
/* The error of the last call that failed. */
const char *td_error(const struct td *td);

/*
 * Steps of a TD's life, in order.  td_build() does all of them: after it, slot
 * 0 is private RAM at TD_RAM_GPA, nothing of it mapped.
 */
void td_reset(struct td *td);	/* nothing is open: td_destroy() does nothing */
int td_create(struct td *td);
int td_init_vm(struct td *td, __u64 attributes);
int td_add_vcpu(struct td *td);
int td_init_vcpu(struct td_vcpu *vcpu);
int td_add_slot(struct td *td, __u32 id, __u64 gpa, __u64 size, bool private);
/* The same, but all of it is shared still; private pages can be had if @gmem. */
int td_add_plain_slot(struct td *td, __u32 id, __u64 gpa, __u64 size, bool gmem);
int td_delete_slot(struct td *td, __u32 id);
int td_add_memory(struct td_vcpu *vcpu, __u64 gpa, const void *data,
		  __u64 pages, bool measure);
int td_load_image(struct td *td, const char *name);
int td_finalize(struct td *td);
int td_build(struct td *td, const struct td_config *config);
/* Joins all threads, closes everything; the TD is gone when it returns. */
void td_destroy(struct td *td);

/* Single ioctls, for good and bad arguments alike. */
int td_vm_op(struct td *td, __u32 id, __u32 flags, const void *data);
int td_vcpu_op(struct td_vcpu *vcpu, __u32 id, __u32 flags, const void *data);
int td_set_private(struct td *td, __u64 gpa, __u64 size, bool private);
int td_set_attributes(struct td *td, __u64 gpa, __u64 size, __u64 attributes,
		      __u64 flags);
/* @left: bytes that were not done, may be NULL. */
int td_prefault(struct td_vcpu *vcpu, __u64 gpa, __u64 size, __u64 *left);
int td_punch_hole(struct td *td, __u32 slot, __u64 offset, __u64 size);
int td_allocate(struct td *td, __u32 slot, __u64 offset, __u64 size);
struct kvm_tdx_init_vm *td_default_init(struct td *td, __u64 attributes);
struct kvm_cpuid2 *td_default_cpuid(struct td *td);

/* Runs the vCPU until the payload or the TD has something to say. */
enum td_exit td_vcpu_run(struct td_vcpu *vcpu);
/*
 * The same in a thread; td_vcpu_join() gives what td_vcpu_run() gave, and
 * TD_EXIT_CANCELLED if that takes more than some seconds.
 */
int td_vcpu_start(struct td_vcpu *vcpu);
enum td_exit td_vcpu_join(struct td_vcpu *vcpu);
/* Makes td_vcpu_run() in another thread return as soon as it can. */
void td_vcpu_cancel(struct td_vcpu *vcpu);

/* Ends GUEST_LOOP. */
void td_vcpu_stop(struct td_vcpu *vcpu);

/* Op lists of the payload `ops`. */
void td_ops_clear(struct td_vcpu *vcpu);
struct guest_op *td_op(struct td_vcpu *vcpu, enum guest_op_code code,
		       __u64 a, __u64 b, __u64 c);
/* td_vcpu_run(); 0 if the list was finished and each op succeeded. */
int td_ops_run(struct td_vcpu *vcpu);
int td_ops_join(struct td_vcpu *vcpu);

/* A shared word for GUEST_BARRIER, 0 <= @n < 512, and its GPA. */
__u64 *td_word(struct td *td, unsigned int n);
__u64 td_word_gpa(unsigned int n);

/*
 * A file beside the program, or in the folder that the environment variable
 * TDX_GUEST_DIR names; malloc()ed, NULL if there is none.
 */
void *td_read_file(const char *name, size_t *size);
void *td_read_firmware(size_t *size, char path[256]);

/* Counters that the mirror and the emulator export in debugfs, if any. */
#define TD_MIRROR_STATS	"/sys/kernel/debug/tdx_mirror/stats"

enum td_mode {
	TD_MODE_UNPATCHED,	/* kvm_intel has no parameter tdx_mirror */
	TD_MODE_OFF,
	TD_MODE_ON,
};

struct td_counters {
	enum td_mode mode;
	bool has_mirror, has_emu;
	__u64 leaf_transitions, set_calls, mapped, zapped, leaked, quarantined;
	__u64 tables, tds_live, resolved;
	__u64 emu_present, emu_removed, emu_pages, emu_errors;
};

void td_counters_read(struct td_counters *counters);
__u64 td_counter(const char *file, const char *name, bool *found);
/*
 * Compares the counters of now, with no TD alive that was not alive at
 * @before.  Returns 0, or 1 with the differences in @text.
 */
int td_counters_check(const struct td_counters *before, char *text, size_t size);
/* Whether the counters say anything at all, for the test's log. */
const char *td_counters_note(const struct td_counters *counters);
/* The MRTDs of the emulator's TDs; 1 found, 0 not found, -ENOENT no such file. */
int td_mrtd_known(const __u8 digest[SHA384_SIZE]);

#endif /* TDX_MIRROR_TD_H */
