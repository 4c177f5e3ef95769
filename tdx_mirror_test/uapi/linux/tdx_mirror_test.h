/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * /dev/tdx_mirror_test: TDs on the software TDX module whose private memory is
 * mapped by tdx_mirror.ko, without KVM and without VMX. For tests only.
 *
 * An open file has at most one TD, which ends with the file. A TD has
 * @nr_pages pages of RAM from GFN 0 on and one page at TDX_TEST_RESET_GFN, from
 * whose last 16 bytes the vCPUs start. The guest's code is that of the
 * interpreter (tdx_emu/module/interp.rs).
 *
 * All ioctls may be called from several threads at once. Errors of all:
 * -ENOENT without a TD, -EIO after a broken invariant, -EFAULT, -ENOTTY,
 * -EINTR, -ENOMEM. A range is GFNs [gfn, gfn + nr), not empty and inside the
 * RAM, or the page at the reset GFN; -EINVAL otherwise.
 */
#ifndef _UAPI_LINUX_TDX_MIRROR_TEST_H
#define _UAPI_LINUX_TDX_MIRROR_TEST_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define TDX_TEST_RESET_GFN	0xfffffULL
#define TDX_TEST_MAX_PAGES	512
#define TDX_TEST_MAX_VCPUS	4
#define TDX_TEST_MAX_SCRIPT	1024

/* R11 of a TDG.VP.VMCALL: a round is done, or memory had a wrong value. */
#define TDX_TEST_VMCALL_ROUND	1
#define TDX_TEST_VMCALL_BAD	0xbad

/**
 * struct tdx_test_create - a new TD
 * @nr_pages: pages of RAM, 1 to TDX_TEST_MAX_PAGES
 * @nr_vcpus: 1 to TDX_TEST_MAX_VCPUS
 *
 * -EEXIST: the file has one; -EINVAL: numbers; -ENOSPC: no KeyID or pages left.
 */
struct tdx_test_create {
	__u32 nr_pages;
	__u32 nr_vcpus;
};

/**
 * struct tdx_test_build - pages with content, before the TD is final
 * @gfn: first GFN
 * @nr: number of pages
 * @source: address of the content
 *
 * -EBUSY: the TD is final; -EEXIST: a page is there.
 */
struct tdx_test_build {
	__u64 gfn;
	__u64 nr;
	__u64 source;
};

/**
 * struct tdx_test_range - map or zap, once the TD is final
 * @gfn: first GFN
 * @nr: number of pages
 * @changed: out: leaves that this call mapped or zapped
 * @retries: out: maps that were tried again
 *
 * -EBUSY: the TD is not final; -EAGAIN: a map met contention to the end.
 */
struct tdx_test_range {
	__u64 gfn;
	__u64 nr;
	__u64 changed;
	__u64 retries;
};

/**
 * struct tdx_test_run - all vCPUs run, a kernel thread each
 * @rounds: every vCPU stops after so many round calls, at least 1
 * @faults: out: EPT violations
 * @done: out: round calls
 * @bad: out: calls that report wrong memory
 * @entries: out: TDH.VP.ENTER calls
 *
 * -EBUSY: the TD is not final, or runs; -EPROTO: a vCPU stopped for another
 * reason. The outputs are written with -EPROTO and -EINTR too.
 */
struct tdx_test_run {
	__u64 rounds;
	__u64 faults;
	__u64 done;
	__u64 bad;
	__u64 entries;
};

/**
 * struct tdx_test_stats - figures of the TD, and of the software TDX module
 * @leaf_transitions: mirror: leaves from non-present to present
 * @mapped: mirror: leaves mapped
 * @zapped: mirror: leaves zapped
 * @busy: mirror: answers that were contention
 * @retries: mirror: SEAMCALLs repeated for contention
 * @kicks: mirror: kicks of all vCPUs
 * @spurious: mirror: maps that found the leaf mapped
 * @quarantined: mirror: pages that the TDX module may still own
 * @leaked: mirror: pages never given back
 * @set_ok: successful calls of set_external_spte
 * @yields: how often a zap let go of the lock
 * @audit: GFNs of the TD at which mirror and S-EPT differ, and accounts of table
 *	pages that differ from the mirror's
 * @present: leaves that are mapped
 * @emu_present: TDX module, all TDs ever: leaves that became present
 * @emu_removed: the same: leaves removed
 * @emu_accepts: the same: pages that a guest accepted
 * @emu_owned: pages that it owns now
 * @emu_errors: invariants that it saw broken
 * @lost: pages of the device that no TDX module gave back, of all TDs ever
 *
 * Without a TD all that belongs to one is 0.
 */
struct tdx_test_stats {
	__u64 leaf_transitions;
	__u64 mapped;
	__u64 zapped;
	__u64 busy;
	__u64 retries;
	__u64 kicks;
	__u64 spurious;
	__u64 quarantined;
	__u64 leaked;
	__u64 set_ok;
	__u64 yields;
	__u64 audit;
	__u64 present;
	__u64 emu_present;
	__u64 emu_removed;
	__u64 emu_accepts;
	__u64 emu_owned;
	__u64 emu_errors;
	__u64 lost;
};

/**
 * struct tdx_test_inject - faults of the software TDX module, of all TDs of the device
 * @text: address of the script, see "Faults on demand" in Documentation/testing.rst
 * @len: its bytes, 0 to TDX_TEST_MAX_SCRIPT; an empty script ends all faults
 *
 * Replaces the script before it. -EINVAL: a mistake in it, and nothing changed; -E2BIG.
 * It outlives the file that loaded it, and needs no TD.
 */
struct tdx_test_inject {
	__u64 text;
	__u64 len;
};

#define TDX_TEST_CREATE		_IOW('T', 0xc0, struct tdx_test_create)
#define TDX_TEST_BUILD		_IOW('T', 0xc1, struct tdx_test_build)
#define TDX_TEST_FINALIZE	_IO('T', 0xc2)
#define TDX_TEST_MAP		_IOWR('T', 0xc3, struct tdx_test_range)
#define TDX_TEST_ZAP		_IOWR('T', 0xc4, struct tdx_test_range)
#define TDX_TEST_RUN		_IOWR('T', 0xc5, struct tdx_test_run)
#define TDX_TEST_STATS		_IOR('T', 0xc6, struct tdx_test_stats)
#define TDX_TEST_DESTROY	_IO('T', 0xc7)
#define TDX_TEST_INJECT		_IOW('T', 0xc8, struct tdx_test_inject)

#endif /* _UAPI_LINUX_TDX_MIRROR_TEST_H */
