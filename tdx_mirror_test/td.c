// SPDX-License-Identifier: GPL-2.0
/* The life of a TD of the test device, in KVM's order. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bug.h>
#include <linux/idr.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/preempt.h>
#include <linux/printk.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "test.h"

/* States of an S-EPT leaf, RDX bits 15:8 of TDH.MEM.SEPT.RD. */
#define SEPT_PENDING	2
#define SEPT_MAPPED	4

/* Faults at one GFN before the caller gives up. */
#define TDT_MAP_TRIES	1000

/* Reads of a busy S-EPT entry: far more than an accept lasts. */
#define TDT_READ_TRIES	1000000

#define PFN_BITS	GENMASK_ULL(51, 12)

static DEFINE_IDA(tdt_hkids);

/*
 * SEAMCALLs that lock one of the TDX module's two tables of keys find it busy
 * beside each other, of whichever TDs they are. KVM has its tdx_lock for that.
 */
static DEFINE_MUTEX(tdt_keys_lock);

static void tdt_free_pages(void **pages, int nr)
{
	while (nr--)
		tdt_page_free(pages[nr]);
}

static bool tdt_alloc_pages(void **pages, int nr)
{
	int i;

	for (i = 0; i < nr; i++) {
		pages[i] = tdt_page_alloc();
		if (!pages[i])
			return false;
	}

	return true;
}

static void tdt_free(struct tdt_td *td)
{
	int i;

	for (i = 0; i < td->nr_vcpus; i++)
		tdt_free_pages(td->vcpus[i].pages, TDT_NR_TDVPS);
	tdt_free_pages(td->tdcx, TDT_NR_TDCX);
	tdt_free_pages(td->ram, td->nr_pages + 1);
	tdt_page_free(td->source);
	tdt_page_free(td->tdr);
	if (td->hkid > 0)
		ida_free(&tdt_hkids, td->hkid);
	kfree(td);
}

/* All memory and the mirror; no SEAMCALL yet. */
static struct tdt_td *tdt_alloc(u32 nr_pages, u32 nr_vcpus)
{
	struct tdt_td *td;
	int i, err = -ENOSPC;

	td = kzalloc(struct_size(td, ram, nr_pages + 1), GFP_KERNEL_ACCOUNT);
	if (!td)
		return ERR_PTR(-ENOMEM);

	rwlock_init(&td->mmu_lock);
	td->nr_pages = nr_pages;
	td->nr_vcpus = nr_vcpus;
	for (i = 0; i < nr_vcpus; i++) {
		td->vcpus[i].td = td;
		if (!tdt_alloc_pages(td->vcpus[i].pages, TDT_NR_TDVPS))
			goto fail;
	}
	td->source = tdt_page_alloc();
	td->tdr = tdt_page_alloc();
	td->hkid = ida_alloc_range(&tdt_hkids, TDT_GLOBAL_HKID + 1, TDT_LAST_HKID,
				   GFP_KERNEL);
	if (!td->source || !td->tdr || td->hkid < 0 ||
	    !tdt_alloc_pages(td->tdcx, TDT_NR_TDCX) ||
	    !tdt_alloc_pages(td->ram, nr_pages + 1))
		goto fail;

	tdt_backend_init(td);
	td->mirror = tdt_ops->create(&td->backend, &err);
	if (td->mirror)
		return td;
fail:
	tdt_free(td);
	return ERR_PTR(err);
}

static u64 tdt_init_vcpu(struct tdt_td *td, int id)
{
	void **pages = td->vcpus[id].pages;
	u64 status, tdvpr = tdt_pa(pages[0]);
	int i;

	status = tdt_call4(TDH_VP_CREATE, tdvpr, tdt_pa(td->tdr), 0);
	for (i = 1; i < TDT_NR_TDVPS && !status; i++)
		status = tdt_call4(TDH_VP_ADDCX, tdt_pa(pages[i]), tdvpr, 0);
	if (status)
		return status;

	/* The vCPU is this CPU's until it is flushed; its thread will run elsewhere. */
	preempt_disable();
	status = tdt_call4(TDH_VP_INIT_V1, tdvpr, id, id);
	if (!status)
		status = tdt_call4(TDH_VP_FLUSH, tdvpr, 0, 0);
	preempt_enable();

	return status;
}

static u64 tdt_init(struct tdt_td *td)
{
	u64 status, tdr = tdt_pa(td->tdr);
	u64 *params = td->source;
	int i;

	mutex_lock(&tdt_keys_lock);
	status = tdt_call4(TDH_MNG_CREATE, tdr, td->hkid, 0);
	if (!status)
		status = tdt_call4(TDH_MNG_KEY_CONFIG, tdr, 0, 0);
	mutex_unlock(&tdt_keys_lock);
	for (i = 0; i < TDT_NR_TDCX && !status; i++)
		status = tdt_call4(TDH_MNG_ADDCX, tdt_pa(td->tdcx[i]), tdr, 0);
	if (status)
		return status;

	/* TD_PARAMS: x87 and SSE, 4 levels of write-back S-EPT, RBP kept, 2 GHz. */
	memset(params, 0, PAGE_SIZE);
	params[1] = 3;
	params[2] = TDX_TEST_MAX_VCPUS;
	params[3] = 3 << 3 | 6;
	params[4] = 4;
	params[5] = 80;
	status = tdt_call4(TDH_MNG_INIT, tdr, tdt_pa(params), 0);
	for (i = 0; i < td->nr_vcpus && !status; i++)
		status = tdt_init_vcpu(td, i);

	return status;
}

struct tdt_td *tdt_create(u32 nr_pages, u32 nr_vcpus)
{
	struct tdt_td *td = tdt_alloc(nr_pages, nr_vcpus);
	u64 status;

	if (IS_ERR(td))
		return td;

	status = tdt_init(td);
	if (!status)
		return td;

	pr_err("a TD could not be initialised: %#llx\n", status);
	tdt_destroy(td);
	return ERR_PTR(-EIO);
}

/* Takes a control page back; what the TDX module keeps is lost. */
static void tdt_reclaim_page(void **page)
{
	if (tdt_call4(TDH_PHYMEM_PAGE_RECLAIM, tdt_pa(*page), 0, 0)) {
		atomic_inc(&tdt_lost);
		*page = NULL;
	}
}

/* No other call for the TD is under way. */
void tdt_destroy(struct tdt_td *td)
{
	u64 status, tdr = tdt_pa(td->tdr);
	struct tdx_mirror_stats stats;
	int i, j;

	tdt_zap(td, 0, BIT_ULL(TDT_GFN_BITS));
	tdt_ops->end_files(td->mirror);
	mutex_lock(&tdt_keys_lock);
	status = tdt_call4(TDH_MNG_VPFLUSHDONE, tdr, 0, 0);
	if (!status)
		status = tdt_call4(TDH_PHYMEM_CACHE_WB, 0, 0, 0);
	if (!status)
		status = tdt_call4(TDH_MNG_KEY_FREEID, tdr, 0, 0);
	mutex_unlock(&tdt_keys_lock);
	td->hkid_released = !status;

	write_lock(&td->mmu_lock);
	tdt_ops->teardown(td->mirror);
	write_unlock(&td->mmu_lock);
	tdt_test_ops->stats(td->mirror, &stats);
	tdt_ops->destroy(td->mirror);
	WARN_ON_ONCE(atomic_read(&td->spts) || atomic_read(&td->ext_spts));
	if (stats.quarantined != stats.resolved) {
		/* Some of them are the TDX module's, so none is used again. */
		atomic_add(td->nr_pages + 1, &tdt_lost);
		memset(td->ram, 0, (td->nr_pages + 1) * sizeof(td->ram[0]));
	}

	for (i = 0; i < td->nr_vcpus; i++) {
		for (j = 0; j < TDT_NR_TDVPS; j++)
			tdt_reclaim_page(&td->vcpus[i].pages[j]);
	}
	for (i = 0; i < TDT_NR_TDCX; i++)
		tdt_reclaim_page(&td->tdcx[i]);
	tdt_reclaim_page(&td->tdr);
	if (td->tdr)
		tdt_call4(TDH_PHYMEM_PAGE_WBINVD,
			  tdr | (u64)TDT_GLOBAL_HKID << TDT_HKID_SHIFT, 0, 0);
	else
		td->hkid = 0;
	tdt_free(td);
}

/*
 * Maps a GFN on behalf of no vCPU. Answers as tdx_mirror_ops.map(), and adds to
 * *@retries how often it was tried again.
 */
int tdt_prefault(struct tdt_td *td, u64 gfn, u64 *retries)
{
	u32 action = TDX_MIRROR_EXIT;
	struct tdx_mirror_vcpu notes = {};
	int i, ret = TDX_MIRROR_MAP_RETRY;

	for (i = 0; i < TDT_MAP_TRIES && tdt_is_retry(ret) &&
	     action == TDX_MIRROR_EXIT; i++) {
		if (i)
			(*retries)++;
		ret = tdt_map(td, &notes, gfn, TDX_MIRROR_FAULT_PREFAULT, &action, retries);
	}

	return ret;
}

/* One page before the TD is final; nobody else builds at the same time. */
int tdt_build(struct tdt_td *td, u64 gfn, const void __user *source)
{
	u64 retries = 0;
	int ret;

	if (copy_from_user(td->source, source, PAGE_SIZE))
		return -EFAULT;

	ret = tdt_prefault(td, gfn, &retries);
	if (ret == TDX_MIRROR_MAP_SPURIOUS)
		return -EEXIST;
	if (tdt_is_retry(ret))
		return -EAGAIN;
	return ret < 0 ? ret : 0;
}

int tdt_finalize(struct tdt_td *td)
{
	int ret = 0;

	/* The phase of a TD does not change while somebody maps or zaps. */
	write_lock(&td->mmu_lock);
	if (tdt_call4(TDH_MR_FINALIZE, tdt_pa(td->tdr), 0, 0))
		ret = -EIO;
	else
		td->finalized = true;
	write_unlock(&td->mmu_lock);
	return ret;
}

/* The PFN that the S-EPT has for a GFN, 0 for none, ~0 for a state in between. */
static u64 tdt_sept_pa(struct tdt_td *td, u64 gfn)
{
	struct tdx_module_args args;
	int tries = TDT_READ_TRIES;
	u64 status;

	do {
		args = (struct tdx_module_args){
			.rcx = gfn << PAGE_SHIFT,
			.rdx = tdt_pa(td->tdr),
		};
		status = tdt_call(TDH_MEM_SEPT_RD, &args);
		/* A guest's accept holds the entry, with preemption off. */
	} while (status >> 32 == TDT_OPERAND_BUSY && --tries);

	if (status)
		return tries ? 0 : ~0ULL;
	switch (args.rdx >> 8 & 0xff) {
	case 0:
		return 0;
	case SEPT_PENDING:
	case SEPT_MAPPED:
		return args.rcx & PFN_BITS;
	default:
		return ~0ULL;
	}
}

static void tdt_audit(struct tdt_td *td, u64 gfn, struct tdx_test_stats *stats)
{
	u64 spte, ours = 0, theirs = tdt_sept_pa(td, gfn);
	int level = 0;

	spte = tdt_test_ops->walk(td->mirror, gfn, &level);
	if (level == 1 && spte & TDX_MIRROR_SPTE_PRESENT)
		ours = spte & PFN_BITS;
	stats->present += !!theirs;
	stats->audit += ours != theirs || (ours && ours != tdt_pa(tdt_ram(td, gfn)));
}

void tdt_stats(struct tdt_td *td, struct tdx_test_stats *stats)
{
	struct tdx_test_counters emu;
	struct tdx_mirror_stats m = {};

	if (td) {
		u64 gfn;

		/* Keeps maps and zaps out, not the guest. */
		write_lock(&td->mmu_lock);
		for (gfn = 0; gfn < td->nr_pages; gfn++)
			tdt_audit(td, gfn, stats);
		tdt_audit(td, TDX_TEST_RESET_GFN, stats);
		tdt_test_ops->stats(td->mirror, &m);
		/* No table comes or goes without mmu_lock. */
		stats->audit += m.tables != atomic_read(&td->spts);
		stats->audit += m.external_tables != atomic_read(&td->ext_spts);
		stats->set_ok = atomic64_read(&td->set_ok);
		stats->yields = atomic64_read(&td->yields);
		write_unlock(&td->mmu_lock);
	}
	stats->leaf_transitions = m.leaf_transitions;
	stats->mapped = m.mapped;
	stats->zapped = m.zapped;
	stats->busy = m.busy;
	stats->retries = m.retries;
	stats->kicks = m.kicks;
	stats->spurious = m.spurious;
	stats->quarantined = m.quarantined;
	stats->leaked = m.leaked;

	tdx_test_counters(&emu);
	stats->emu_present = emu.present;
	stats->emu_removed = emu.removed;
	stats->emu_accepts = emu.accepts;
	stats->emu_owned = emu.owned;
	stats->emu_errors = emu.errors;
	stats->lost = atomic_read(&tdt_lost);
}
