/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A TD without KVM and without TDX: a backend that keeps the external table in
 * an array and checks every hook call against the rules of the contract.
 */
#ifndef _FAKE_H
#define _FAKE_H

#include <linux/atomic.h>
#include <linux/bitmap.h>
#include <linux/bits.h>
#include <linux/printk.h>
#include <linux/spinlock.h>
#include <linux/tdx_mirror.h>

#include "../../../tdx_mirror/kvm/test_ops.h"

#define FAKE_GFNS	4096UL
#define FAKE_GFN_BITS	36
/* No struct page stands behind these, so that a dereference would be seen. */
#define FAKE_PFN(gfn)	(BIT_ULL(39) + (gfn))

#define STATUS_SUCCESS		0ULL
/* OPERAND_BUSY; the operand, in the low bits, is what each leaf may find busy. */
#define STATUS_BUSY		0x8000020000000000ULL
#define OPERAND_RCX		0x1ULL
#define OPERAND_TDR		0x80ULL
#define OPERAND_SEPT_TREE	0x92ULL
#define OPERAND_TD_EPOCH	0xa9ULL
/* OPERAND_INVALID on the first operand: nothing that a retry could cure. */
#define STATUS_INVALID		0xc000010000000001ULL

/* The TD, or the TDX module, has ended. */
#define STATUS_TD_FATAL		0xe000060400000000ULL
#define STATUS_SHUTDOWN		0xc000050600000000ULL

/* PAGE_METADATA_INCORRECT on the first operand: not the page of a TD. */
#define STATUS_METADATA		0xc000030000000001ULL

/* The budgets that contention has, see design.rst. */
#define FAULT_TRIES		5
#define MAX_ENTERS		5
#define ZERO_STEP_THRESHOLD	(MAX_ENTERS + 1)
#define LOCAL_ROUNDS		103
#define HOLD_ROUNDS		(MAX_ENTERS * LOCAL_ROUNDS)
#define WAIT_ROUNDS		HOLD_ROUNDS

/* States of a leaf of the fake external table, in the low bits of its word. */
#define LEAF_PRESENT	BIT_ULL(0)
#define LEAF_BLOCKED	BIT_ULL(1)
#define LEAF_TRACKED	BIT_ULL(2)

enum fake_call {
	CALL_LINK,
	CALL_SET,
	CALL_BLOCK,
	CALL_TRACK,
	CALL_REMOVE,
	CALL_WBINVD,
	CALL_RECLAIM,
	CALL_READ,
	CALL_RECLAIM_PAGE,
	NR_CALLS,
};

/**
 * struct fake - a TD without KVM and TDX
 * @leaf: word of each GFN's leaf: PFN << 12 | LEAF_*
 * @mark: host-priority mark of each GFN's leaf: a call found its lock held, and
 *	no call has locked it since
 * @calls: calls of each hook
 * @calls_before: @calls at the last fake_mark()
 * @kicks_before: kicks at the last fake_mark()
 * @skip: how many of the next calls of each hook go on before @fail counts
 * @fail: how many of the next calls of each hook answer @fail_err
 * @fail_err: what they answer; a busy status without its operand
 * @operand: operand that a busy call reports, that of TRACK excepted
 * @kicked: vCPUs were kicked since they are held, so that none is inside
 * @fail_if_held: also with all vCPUs held and kicked out, when nobody is left to contend
 * @spt: mirror tables taken and not put back
 * @ext_spt: S-EPT pages taken and not put back
 * @accounted: mirror tables by the mirror's own account
 * @ext_accounted: S-EPT tables by the mirror's own account
 * @no_page: the vCPU's cache has no page
 * @files: the S-EPT is read for nothing but the TD's files
 * @files_ended: they were taken away
 * @stuck: an entry stays frozen until this is false
 * @meet: map an entry a second time while the first map has it
 * @met: what that returned
 * @errors: calls that break a rule of the contract
 * @yields: how often mmu_lock was yielded; after the teardown, by that alone
 */
struct fake {
	rwlock_t mmu_lock;
	bool finalized, hkid_released, torn_down, held, kicked, resched, fail_if_held;
	bool no_page, meet, files, files_ended, stuck;
	int met;
	atomic_t bugged, kicks, yields, errors;
	atomic_t spt, ext_spt, linked, accounted, ext_accounted;
	atomic_long_t mapped_pages;
	atomic64_t leaf[FAKE_GFNS];
	DECLARE_BITMAP(mark, FAKE_GFNS);
	atomic_t calls[NR_CALLS];
	int calls_before[NR_CALLS], kicks_before;
	atomic_t skip[NR_CALLS];
	atomic_t fail[NR_CALLS];
	struct tdx_mirror_err fail_err;
	u64 operand;
	struct tdx_mirror_backend backend;
	struct tdx_mirror *mirror;
};

/* Entry points of the module under test. */
extern const struct tdx_mirror_ops *ops;
extern const struct tdx_mirror_test_ops *test_ops;

/* Whether a map asks for a retry, for whatever reason. */
static inline bool is_retry(int ret)
{
	return ret >= 0 && (ret & TDX_MIRROR_MAP_OUTCOME) == TDX_MIRROR_MAP_RETRY;
}

/* Counts a violation and says which rule it was, once per place. */
#define RULE(fake, cond) do {						\
	if (!(cond)) {							\
		pr_err_once("rule broken: %s (%s)\n", #cond, __func__);	\
		atomic_inc(&(fake)->errors);				\
	}								\
} while (0)

struct fake *fake_alloc(void);
struct fake *fake_new(void);
int fake_map(struct fake *f, u64 gfn, u64 pfn, int level);
u64 fake_zap(struct fake *f, u64 start, u64 end, bool can_yield);
void fake_fail(struct fake *f, enum fake_call call, int times, u64 status);
void fake_fail_at(struct fake *f, enum fake_call call, int skip, int times,
		  u64 status);
void fake_no_fail(struct fake *f);
void fake_mark(struct fake *f);
int fake_calls(struct fake *f, enum fake_call call);
int fake_seamcalls(struct fake *f);
int fake_kicks(struct fake *f);
void fake_end_files(struct fake *f);
void fake_teardown(struct fake *f);
bool fake_account_ok(struct fake *f);
void fake_end(struct fake *f, const char *what, int leaked_tables);

void log_mark(void);
unsigned int log_lines(const char *a, const char *b, const char *c);
unsigned int log_warnings(const char *site);

void check(bool ok, const char *what);

/* How tdx_mirror.ko was loaded. */
extern char *policy;
extern unsigned int zap_batch;

void test_zap(void);
void test_fault(void);
void test_files(void);
void test_warn(void);

#endif /* _FAKE_H */
