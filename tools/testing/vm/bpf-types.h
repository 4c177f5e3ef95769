/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The types by which fields of tracepoints are declared, for bpftrace on a
 * machine without kernel headers: <linux/types.h> of the image `tools`.
 */
#ifndef BPF_TYPES_H
#define BPF_TYPES_H

typedef signed char s8, __s8;
typedef unsigned char u8, __u8;
typedef short s16, __s16;
typedef unsigned short u16, __u16;
typedef int s32, __s32;
typedef unsigned int u32, __u32;
typedef long long s64, __s64;
typedef unsigned long long u64, __u64;

typedef _Bool bool;
typedef unsigned long size_t;
typedef long ssize_t;
typedef int pid_t;
typedef unsigned int gfp_t;
typedef u64 gpa_t, gfn_t, hpa_t, hfn_t, kvm_pfn_t;

#endif
