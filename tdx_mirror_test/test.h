/* SPDX-License-Identifier: GPL-2.0 */
/*
 * tdx_mirror_test.ko: TDs on the software TDX module, their private memory
 * mapped by tdx_mirror.ko through the C contract, kernel threads as vCPUs.
 */
#ifndef _TDX_MIRROR_TEST_H
#define _TDX_MIRROR_TEST_H

#include <linux/atomic.h>
#include <linux/bits.h>
#include <linux/spinlock.h>
#include <linux/tdx_mirror.h>
#include <linux/tdx_mirror_test.h>
#include <linux/types.h>
#include <asm/shared/tdx.h>

#include "../tdx_mirror/kvm/test_ops.h"

/* Leaves of the TDX interface. */
enum {
	TDH_VP_ENTER = 0,
	TDH_MNG_ADDCX = 1,
	TDH_MEM_PAGE_ADD = 2,
	TDH_MEM_SEPT_ADD = 3,
	TDH_VP_ADDCX = 4,
	TDH_MEM_PAGE_AUG = 6,
	TDH_MEM_RANGE_BLOCK = 7,
	TDH_MNG_KEY_CONFIG = 8,
	TDH_MNG_CREATE = 9,
	TDH_VP_CREATE = 10,
	TDH_MR_FINALIZE = 17,
	TDH_VP_FLUSH = 18,
	TDH_MNG_VPFLUSHDONE = 19,
	TDH_MNG_KEY_FREEID = 20,
	TDH_MNG_INIT = 21,
	TDH_VP_INIT_V1 = 22 | BIT(16),
	TDH_MEM_SEPT_RD = 25,
	TDH_PHYMEM_PAGE_RECLAIM = 28,
	TDH_MEM_PAGE_REMOVE = 29,
	TDH_SYS_KEY_CONFIG = 31,
	TDH_SYS_INIT = 33,
	TDH_SYS_LP_INIT = 35,
	TDH_SYS_TDMR_INIT = 36,
	TDH_MEM_TRACK = 38,
	TDH_PHYMEM_CACHE_WB = 40,
	TDH_PHYMEM_PAGE_WBINVD = 41,
	TDH_SYS_CONFIG = 45,
};

#define TDT_OPERAND_BUSY	0x80000200	/* upper half of a status */

#define TDT_HKID_SHIFT		46
#define TDT_GLOBAL_HKID		16
#define TDT_LAST_HKID		63
#define TDT_GFN_BITS		35
#define TDT_NR_TDCX		6
#define TDT_NR_TDVPS		6

/**
 * struct tdt_cache - pages for the tables of one walk, as KVM's vCPU caches
 * @nr_spt: mirror pages left
 * @nr_ext: S-EPT pages left
 * @spt: pages of the page allocator
 * @ext: pages of the pool
 */
struct tdt_cache {
	int nr_spt, nr_ext;
	void *spt[3], *ext[3];
};

struct tdt_run;

/**
 * struct tdt_vcpu - a vCPU
 * @in_guest: inside TDH.VP.ENTER, with preemption off; no bool, since GCC does not tell
 *	KCSAN that the read of one is marked
 * @notes: what the mirror keeps about it
 * @pages: TDVPR and the other pages of the TDVPS
 * @run: what its thread works for
 * @task: that thread
 * @error: why the thread ended, 0 or a negative errno
 */
struct tdt_vcpu {
	struct tdt_td *td;
	int in_guest;
	struct tdx_mirror_vcpu notes;
	/* The GFN of the guest's last fault. */
	u64 fault_gfn;
	void *pages[TDT_NR_TDVPS];
	struct tdt_run *run;
	struct task_struct *task;
	int error;
	u64 faults, done, bad, entries;
};

/**
 * struct tdt_td - a TD
 * @mmu_lock: what KVM's mmu_lock is to the mirror
 * @hold: vCPUs must not enter the guest while it is not 0
 * @running: a RUN is under way
 * @source: content for the page that is built now
 * @spts: pages of the mirror in use, by its own account
 * @ext_spts: the same of the S-EPT, without the root
 * @ram: backing of the GFNs, the page of the reset GFN last
 */
struct tdt_td {
	rwlock_t mmu_lock;
	struct tdx_mirror *mirror;
	struct tdx_mirror_backend backend;
	u32 nr_pages, nr_vcpus;
	int hkid;
	bool finalized, hkid_released, bugged;
	atomic_t hold, running, spts, ext_spts;
	atomic64_t set_ok, yields;
	void *tdr, *source, *tdcx[TDT_NR_TDCX];
	struct tdt_vcpu vcpus[TDX_TEST_MAX_VCPUS];
	void *ram[];
};

/* struct Counters of device.rs. */
struct tdx_test_counters {
	u64 present, removed, accepts, owned, errors;
};

/* pool.c */
extern atomic_t tdt_lost;
int tdt_pool_init(void);
void tdt_pool_exit(void);
void *tdt_page_alloc(void);
void tdt_page_free(void *page);
u64 tdt_pa(const void *page);
void *tdx_test_page(u64 pa);
u64 tdt_call(u64 leaf, struct tdx_module_args *args);
u64 tdt_call4(u64 leaf, u64 rcx, u64 rdx, u64 r8);

/* hooks.c */
extern const struct tdx_mirror_ops *tdt_ops;
extern const struct tdx_mirror_test_ops *tdt_test_ops;

/* Whether a map asks for a retry, for whatever reason. */
static inline bool tdt_is_retry(int ret)
{
	return ret >= 0 && (ret & TDX_MIRROR_MAP_OUTCOME) == TDX_MIRROR_MAP_RETRY;
}

extern atomic_t tdt_kicks;
void tdt_backend_init(struct tdt_td *td);
int tdt_map(struct tdt_td *td, struct tdx_mirror_vcpu *notes, u64 gfn,
	    u32 conditions, u32 *action, u64 *retries);
u64 tdt_zap(struct tdt_td *td, u64 start, u64 end);
void *tdt_ram(struct tdt_td *td, u64 gfn);

/* td.c */
struct tdt_td *tdt_create(u32 nr_pages, u32 nr_vcpus);
void tdt_destroy(struct tdt_td *td);
int tdt_prefault(struct tdt_td *td, u64 gfn, u64 *retries);
int tdt_build(struct tdt_td *td, u64 gfn, const void __user *source);
int tdt_finalize(struct tdt_td *td);
void tdt_stats(struct tdt_td *td, struct tdx_test_stats *stats);

/* vcpu.c */
int tdt_run(struct tdt_td *td, struct tdx_test_run *run);

/* dev.c */
int tdx_test_init(void);
void tdx_test_exit(void);

/* What the Rust side needs of the machine, pool.c. */
u32 tdx_test_nr_lps(void);
u64 tdx_test_tsc(void);
u64 tdx_test_tsc_hz(void);
bool tdx_test_interrupt_pending(void);
void tdx_test_cpuid(u32 leaf, u32 subleaf, u32 out[4]);
u64 tdx_test_random(void);

/* Called from C, defined in device.rs. */
u64 tdx_test_seamcall(u32 lp, u64 leaf, struct tdx_module_args *args);
void tdx_test_counters(struct tdx_test_counters *out);
int tdx_test_inject(const char *script, size_t len);

#endif /* _TDX_MIRROR_TEST_H */
