// SPDX-License-Identifier: GPL-2.0
/* The machine of the test device: its memory, and the TDX module brought up on it. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpumask.h>
#include <linux/mm.h>
#include <linux/preempt.h>
#include <linux/printk.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <linux/smp.h>
#include <linux/vmalloc.h>
#include <asm/cpuid/api.h>
#include <asm/msr.h>
#include <asm/tsc.h>

#include "test.h"

/*
 * Physical addresses of the device's own, far above any memory: one TDMR, which
 * begins with the pool, and its PAMT behind it. A frame of it has no struct
 * page, so that the mirror could not follow one unseen.
 */
#define TDT_BASE	BIT_ULL(45)
#define TDT_TDMR_SIZE	SZ_1G
#define TDT_PAMT	(TDT_BASE + TDT_TDMR_SIZE)
#define TDT_PAMT_4K	(TDT_TDMR_SIZE / SZ_4K * 16)
#define TDT_PAMT_2M	(TDT_TDMR_SIZE / SZ_2M * 16)
#define TDT_PAMT_1G	SZ_4K
#define TDT_PAMT_SIZE	(TDT_PAMT_4K + TDT_PAMT_2M + TDT_PAMT_1G)

#define TDT_NR_PAGES	2048
#define TDT_MAX_LPS	256

/* Pages that could not be taken back from the TDX module, of all TDs. */
atomic_t tdt_lost;

static DEFINE_SPINLOCK(tdt_lock);
static void *tdt_mem, *tdt_pamt;
static u16 tdt_free[TDT_NR_PAGES];
static unsigned int tdt_nr_free;

/* NULL if all are in use. */
void *tdt_page_alloc(void)
{
	void *page = NULL;

	spin_lock(&tdt_lock);
	if (tdt_nr_free)
		page = tdt_mem + tdt_free[--tdt_nr_free] * PAGE_SIZE;
	spin_unlock(&tdt_lock);

	return page;
}

void tdt_page_free(void *page)
{
	if (!page)
		return;

	spin_lock(&tdt_lock);
	if (!WARN_ON_ONCE(tdt_nr_free >= TDT_NR_PAGES))
		tdt_free[tdt_nr_free++] = (page - tdt_mem) / PAGE_SIZE;
	spin_unlock(&tdt_lock);
}

u64 tdt_pa(const void *page)
{
	return TDT_BASE + (page - tdt_mem);
}

void *tdx_test_page(u64 pa)
{
	if (pa >= TDT_BASE && pa - TDT_BASE < TDT_NR_PAGES * PAGE_SIZE)
		return tdt_mem + (pa - TDT_BASE);
	if (pa >= TDT_PAMT && pa - TDT_PAMT < TDT_PAMT_SIZE)
		return tdt_pamt + (pa - TDT_PAMT);
	return NULL;
}

u32 tdx_test_nr_lps(void)
{
	return num_possible_cpus();
}

u64 tdx_test_tsc(void)
{
	return rdtsc();
}

u64 tdx_test_tsc_hz(void)
{
	return (u64)tsc_khz * 1000;
}

bool tdx_test_interrupt_pending(void)
{
	return atomic_read(&tdt_kicks) || need_resched();
}

void tdx_test_cpuid(u32 leaf, u32 subleaf, u32 out[4])
{
	cpuid_count(leaf, subleaf, &out[0], &out[1], &out[2], &out[3]);
}

/* Not get_random_u64(): a SEAMCALL may come with any lock held. */
u64 tdx_test_random(void)
{
	return rdtsc() * 0x9e3779b97f4a7c15ULL;
}

/* One SEAMCALL of this CPU; the output registers are in @args. */
u64 tdt_call(u64 leaf, struct tdx_module_args *args)
{
	u64 status;

	preempt_disable();
	status = tdx_test_seamcall(smp_processor_id(), leaf, args);
	preempt_enable();

	return status;
}

/* The same without outputs. */
u64 tdt_call4(u64 leaf, u64 rcx, u64 rdx, u64 r8)
{
	struct tdx_module_args args = { .rcx = rcx, .rdx = rdx, .r8 = r8 };

	return tdt_call(leaf, &args);
}

static u64 tdt_configure(u64 *array, u64 *info)
{
	memset(array, 0, PAGE_SIZE);
	memset(info, 0, PAGE_SIZE);
	array[0] = tdt_pa(info);
	info[0] = TDT_BASE;
	info[1] = TDT_TDMR_SIZE;
	info[2] = TDT_PAMT + TDT_PAMT_4K + TDT_PAMT_2M;
	info[3] = TDT_PAMT_1G;
	info[4] = TDT_PAMT + TDT_PAMT_4K;
	info[5] = TDT_PAMT_2M;
	info[6] = TDT_PAMT;
	info[7] = TDT_PAMT_4K;

	return tdt_call4(TDH_SYS_CONFIG, tdt_pa(array), 1, TDT_GLOBAL_HKID);
}

/* The bring-up, in the order of Linux. */
static int tdt_bring_up(void)
{
	void *array = tdt_page_alloc(), *info = tdt_page_alloc();
	unsigned int cpu;
	u64 status;

	status = tdt_call4(TDH_SYS_INIT, 0, 0, 0);
	for_each_possible_cpu(cpu) {
		struct tdx_module_args args = {};

		/* Software does not mind on whose behalf it is called. */
		if (!status)
			status = tdx_test_seamcall(cpu, TDH_SYS_LP_INIT, &args);
	}
	if (!status)
		status = tdt_configure(array, info);
	if (!status)
		status = tdt_call4(TDH_SYS_KEY_CONFIG, 0, 0, 0);
	if (!status)
		status = tdt_call4(TDH_SYS_TDMR_INIT, TDT_BASE, 0, 0);
	tdt_page_free(info);
	tdt_page_free(array);
	if (!status)
		return 0;

	pr_err("bring-up of the software TDX module: %#llx\n", status);
	return -EIO;
}

int tdt_pool_init(void)
{
	int ret = -ENOMEM;

	if (nr_cpu_ids > TDT_MAX_LPS)
		return -EOPNOTSUPP;

	tdt_mem = vzalloc(TDT_NR_PAGES * PAGE_SIZE);
	tdt_pamt = vzalloc(TDT_PAMT_SIZE);
	if (tdt_mem && tdt_pamt) {
		for (tdt_nr_free = 0; tdt_nr_free < TDT_NR_PAGES; tdt_nr_free++)
			tdt_free[tdt_nr_free] = TDT_NR_PAGES - 1 - tdt_nr_free;
		ret = tdt_bring_up();
	}
	if (ret)
		tdt_pool_exit();

	return ret;
}

void tdt_pool_exit(void)
{
	vfree(tdt_pamt);
	vfree(tdt_mem);
}
