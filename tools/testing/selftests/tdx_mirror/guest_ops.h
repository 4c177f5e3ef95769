/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The parameter block of the payload `ops`: memory shared by the VMM and one
 * vCPU.  The Rust twin, which says what each op does, is abi.rs of the
 * payloads.
 */
#ifndef TDX_MIRROR_GUEST_OPS_H
#define TDX_MIRROR_GUEST_OPS_H

#include <assert.h>
#include <linux/types.h>

#define GUEST_MAGIC		0x50444f54u
#define GUEST_BLOCK_SIZE	16384ul
#define GUEST_MAX_OPS		((GUEST_BLOCK_SIZE - 64) / 64)
#define GUEST_PORT_DONE		0x7d0
#define GUEST_PORT_TEXT		0x7d8

enum guest_op_code {
	GUEST_TOUCH = 1,
	GUEST_ACCEPT,
	GUEST_STORE,
	GUEST_VERIFY,
	GUEST_VERIFY_ZERO,
	GUEST_MAP_GPA,
	GUEST_PORT_OUT,
	GUEST_PORT_IN,
	GUEST_MMIO_READ,
	GUEST_MMIO_WRITE,
	GUEST_CPUID,
	GUEST_RDMSR,
	GUEST_WRMSR,
	GUEST_HALT,
	GUEST_LOOP,
	GUEST_VP_INFO,
	GUEST_RAW_ACCEPT,
	GUEST_RAW_VMCALL,
	GUEST_BARRIER,
	GUEST_FATAL,
	GUEST_TRIPLE_FAULT,
};

#define GUEST_FLAG_VMCALL	1
#define GUEST_FLAG_WRITE	2

#define GUEST_ERR_OP		0x10001
#define GUEST_ERR_MISMATCH	0x10002
#define GUEST_ERR_BUSY		0x10003
#define GUEST_ERR_RETRY		0x10004
#define GUEST_ERR_VE		0x10005

#define GUEST_FATAL_PANIC	0x101
#define GUEST_FATAL_EXCEPTION	0x102
#define GUEST_FATAL_VE		0x103
#define GUEST_FATAL_PARAM	0x104
#define GUEST_FATAL_OP		0x105

struct guest_op {
	__u32 code;
	__u32 flags;
	__u64 arg[3];
	__u64 status;
	__u64 res[3];
};

struct guest_block {
	__u32 magic;
	__u32 nr_ops;
	__u32 done;
	__u32 vcpu;
	__u64 ve_count;
	__u64 heartbeat;
	__u64 stop;
	__u64 reserved[3];
	struct guest_op ops[];
};

static_assert(sizeof(struct guest_op) == 64, "twin of abi.rs");
static_assert(sizeof(struct guest_block) == 64, "twin of abi.rs");

/* The word that GUEST_STORE puts at @gpa, which has no shared bit. */
static inline __u64 guest_pattern(__u64 gpa, __u64 seed)
{
	__u64 turned = seed << 32 | seed >> 32;

	return (gpa ^ turned ^ 0x5bd1e995u) * 0x9e3779b97f4a7c15ull;
}

#endif /* TDX_MIRROR_GUEST_OPS_H */
