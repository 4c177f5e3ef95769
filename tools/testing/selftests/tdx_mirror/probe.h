/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What tests can see and provoke beside KVM's ioctls: the calls that the
 * software TDX module counts, failures injected into it, kicks of vCPUs, the
 * kernel log.  All of it is optional; td_needs() says what a host lacks.
 */
#ifndef TDX_MIRROR_PROBE_H
#define TDX_MIRROR_PROBE_H

#include "td.h"

/* What a test needs of the host, beside TDX. */
#define NEEDS_EMULATOR	0x1	/* counters and faults of the software TDX module */
#define NEEDS_MIRROR	0x2	/* TDs use tdx_mirror */
#define NEEDS_KLOG	0x4	/* the kernel log can be read and marked */
#define NEEDS_TRACER	0x8	/* the function tracer */
#define NEEDS_VMSTAT	0x10	/* page-table counters of the kernel */
#define NEEDS_NEW_ROOTS	0x20	/* td_replace_roots() */
#define NEEDS_EXITS	0x40	/* KVM's tracepoint for exits */

/* NULL, or which of @needs this host lacks, for SKIP(). */
const char *td_needs(unsigned int needs);

/* Leaf numbers of TDH functions, as in the TDX module's ABI. */
enum td_leaf {
	TD_VP_ENTER = 0,
	TD_PAGE_ADD = 2,
	TD_SEPT_ADD = 3,
	TD_VP_ADDCX = 4,
	TD_PAGE_AUG = 6,
	TD_RANGE_BLOCK = 7,
	TD_VP_CREATE = 10,
	TD_MR_EXTEND = 16,
	TD_KEY_FREEID = 20,
	TD_SEPT_RD = 25,
	TD_PAGE_RECLAIM = 28,
	TD_PAGE_REMOVE = 29,
	TD_TRACK = 38,
	TD_PAGE_WBINVD = 41,
	TD_LEAVES = 80,
};

/* Completion statuses; operand ids are in the low bits. */
#define TD_OPERAND_BUSY		0x8000020000000000ull
#define TD_OPERAND_INVALID	0xc000010000000000ull
#define TD_PAGE_METADATA	0xc000030000000000ull
#define TD_FATAL		0xe000060400000000ull
#define TD_ENTRY_STATE		0xc0000b0d00000000ull
#define TD_OP_RCX		0x01
#define TD_OP_TDR		0x80
#define TD_OP_SEPT_TREE		0x92
#define TD_OP_EPOCH		0xa9

/*
 * SEAMCALLs so far, by leaf and together.  @exits: VP.ENTERs that gave back an exit;
 * @entries: how often the guest was entered, for each such exit at least once, unless the
 * TDX module has shut the vCPU out.
 */
struct td_calls {
	__u64 leaf[TD_LEAVES];
	__u64 total, busy, injected, entries, exits;
};

void td_calls_read(struct td_calls *calls);
/* Calls of @leaf since @before. */
__u64 td_calls_since(const struct td_calls *before, enum td_leaf leaf);
/* Until the TDX module has answered busy @n times more than in @before. */
bool td_wait_busy(const struct td_calls *before, __u64 n);

/* Replaces the emulator's script of faults; 0 or a negative errno. */
int td_inject(const char *format, ...);
/* "fail <leaf> <when> <status>", @when: "3", "every 1", ... */
int td_fail(enum td_leaf leaf, const char *when, __u64 status);
/* The next @times calls of @leaf, at most TD_FAIL_TIMES, fail with @status. */
#define TD_FAIL_TIMES	16
int td_fail_times(enum td_leaf leaf, unsigned int times, __u64 status);
void td_inject_clear(void);

/* Differences that a test causes on purpose, see td_on_purpose(). */
struct td_purpose {
	__u64 not_removed;	/* leaves that end without TDH.MEM.PAGE.REMOVE */
	__u64 not_zapped;	/* leaves that the mirror does not count as zapped */
	__u64 quarantined;
	__u64 leaked;
	__u64 owned;		/* pages that stay the TDX module's for ever */
};

/*
 * Says that the test case leaves these traces: the check against @before and
 * the report of the whole run expect exactly them.
 */
void td_on_purpose(struct td_counters *before, struct td_purpose what);

/* Calls of a kernel function from now on, by the function tracer. */
int td_trace_start(const char *functions);
/* Ends the recording; the lines with @what. */
__u64 td_trace_count(const char *what);
/* The first and last line with @what, from 1; 0 if there is none. */
void td_trace_order(const char *what, __u64 *first, __u64 *last);
void td_trace_stop(void);

/* Kicks of all vCPUs by TDX code, that is without TLB flushes. */
int td_kicks_start(void);
__u64 td_kicks_stop(void);

/* Exits of all vCPUs from now on, by KVM's tracepoint. */
int td_exits_start(void);
/* How many of them were EPT violations, so that the guest made no progress. */
__u64 td_ept_violations(void);

/*
 * From here to td_klog_end() WARNs of the kernel are expected, each site of
 * which fires anew.  Nothing else is: the run's report looks for the rest.
 */
int td_klog_begin(const char *why);
/* How many records hold @pattern so far. */
unsigned int td_klog_count(const char *pattern);
/* All of them, a line each. */
const char *td_klog_text(void);
/* Ends what td_klog_begin() began, if anything; the number of WARNs. */
unsigned int td_klog_end(void);

/*
 * Value of a parameter of tdx_mirror, from the environment's TDX_MIRROR_ARGS,
 * which is what the module was loaded with; @otherwise if it is not there.
 */
const char *td_param(const char *name, const char *otherwise);

/* How often a test does something: @often if the environment has TDX_TEST_LONG. */
unsigned int td_times(unsigned int usual, unsigned int often);

/* The folder in debugfs of the only TD that this process has, if it uses tdx_mirror. */
bool td_folder(char *folder, size_t size);
/* Opens a file of it, or writes to a file of tdx_mirror; negative for an errno. */
int td_folder_open(const char *folder, const char *name);
int td_mirror_write(const char *name, const char *text);

/* A figure of /proc/vmstat, with what each CPU has of it. */
__u64 td_vmstat(const char *name);
/* Makes KVM zap and replace the roots of all VMs; 0 or a negative errno. */
int td_replace_roots(void);
#define TD_NX_HUGE_PAGES "/sys/module/kvm/parameters/nx_huge_pages"

/* One KVM_RUN: 0 or a negative errno, also for a signal or "try again". */
int td_vcpu_enter(struct td_vcpu *vcpu);
/* One KVM_PRE_FAULT_MEMORY, the same way. */
int td_prefault_once(struct td_vcpu *vcpu, __u64 gpa, __u64 size);

#endif /* TDX_MIRROR_PROBE_H */
