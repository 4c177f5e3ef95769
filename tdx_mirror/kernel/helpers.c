// SPDX-License-Identifier: GPL-2.0

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kvm_host.h>
#include <linux/lockdep.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/overflow.h>
#include <linux/percpu.h>
#include <linux/spinlock.h>
#include <linux/tdx_mirror.h>
#include <asm/tsc.h>

#include "helpers.h"

void tdx_mirror_assert_held_read(void *mmu_lock)
{
	lockdep_assert_held_read((rwlock_t *)mmu_lock);
}

void tdx_mirror_assert_held_write(void *mmu_lock)
{
	lockdep_assert_held_write((rwlock_t *)mmu_lock);
}

/* For the files in debugfs alone; KVM holds the lock for everything else. */
void tdx_mirror_write_lock(void *mmu_lock)
{
	write_lock((rwlock_t *)mmu_lock);
}

void tdx_mirror_write_unlock(void *mmu_lock)
{
	write_unlock((rwlock_t *)mmu_lock);
}

/* Counters of one word on each CPU, all 0, or NULL. */
void *tdx_mirror_alloc_counters(u32 count)
{
	void __percpu *words = __alloc_percpu_gfp(array_size(count, sizeof(u64)),
						  sizeof(u64), GFP_KERNEL_ACCOUNT);

	return (void *)(__force unsigned long)words;
}

void tdx_mirror_free_counters(void *counters)
{
	free_percpu((void __percpu *)(__force unsigned long)counters);
}

/* May run while the counter changes: the sum is exact once nobody does. */
u64 tdx_mirror_sum_counter(const void *counter)
{
	const u64 __percpu *words = (const u64 __percpu *)(__force unsigned long)counter;
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(*per_cpu_ptr(words, cpu));
	return sum;
}

void tdx_mirror_cond_resched(void)
{
	cond_resched();
}

/* Ticks of the TSC in a millisecond. */
u32 tdx_mirror_tsc_khz(void)
{
	return tsc_khz;
}

u64 tdx_mirror_virt_to_pfn(void *virt)
{
	return page_to_pfn(virt_to_page(virt));
}

/*
 * The word that a page from the allocator leaves to its owner: a mirror table
 * keeps its S-EPT page there.
 */
void *tdx_mirror_page_private(void *virt)
{
	return (void *)page_private(virt_to_page(virt));
}

void tdx_mirror_set_page_private(void *virt, void *value)
{
	set_page_private(virt_to_page(virt), (unsigned long)value);
}

/* Keeps a page from the allocator until tdx_mirror_release_page(). */
void tdx_mirror_hold_page(u64 pfn)
{
	if (pfn_valid(pfn))
		get_page(pfn_to_page(pfn));
}

void tdx_mirror_release_page(u64 pfn)
{
	if (pfn_valid(pfn))
		put_page(pfn_to_page(pfn));
}

/*
 * The module's WARN sites, one function each, so that the trace names it.  None
 * can be reached by a guest or by userspace unless KVM, the TDX module or this
 * module is broken.
 */

/* Shows once who called when a TD broke; the log line before says how. */
void tdx_mirror_warn_bug(void)
{
	WARN_ON_ONCE(1);
}

/* An entry point got what no caller that keeps to the contract gives. */
void tdx_mirror_warn_parameter(void)
{
	WARN_ONCE(1, "tdx_mirror: KVM gave a NULL pointer or a GFN, PFN or level out of range; report this\n");
}

/* The TDX module lists a GPA of a vCPU that cannot have had as many faults. */
void tdx_mirror_warn_vp_enter(void)
{
	WARN_ON_ONCE(1);
}

/* Somebody still uses a TD whose HKID is released. */
void tdx_mirror_warn_reclaim_busy(void)
{
	WARN_ON_ONCE(1);
}

/*
 * Says whether the running KVM will ever ask for a mirror.  kvm.ko carries the
 * marker and kvm_put_kvm() tells a KVM without it from one not loaded yet.
 */
static bool tdx_mirror_check_kvm(void)
{
	const u32 *abi = symbol_get(kvm_mirror_provider_abi);

	if (abi) {
		u32 version = *abi;

		symbol_put(kvm_mirror_provider_abi);
		if (version == TDX_MIRROR_ABI_VERSION)
			pr_info("kvm_intel has the mirror hooks, ABI %u\n",
				version);
		else
			pr_warn("kvm_intel has the mirror hooks of ABI %u, this module those of ABI %u: TDs cannot use it, build both from the same sources\n",
				version, TDX_MIRROR_ABI_VERSION);
		return true;
	}

	if (symbol_get(kvm_put_kvm)) {
		symbol_put(kvm_put_kvm);
		pr_notice("kvm_intel lacks the mirror hooks: TDs use KVM's own mirror, nothing will call this module; its use needs a kernel with patches/kvm\n");
		return true;
	}

	return false;
}

static int tdx_mirror_module_event(struct notifier_block *nb,
				   unsigned long event, void *data)
{
	const struct module *mod = data;

	if (event == MODULE_STATE_LIVE && !strcmp(mod->name, "kvm"))
		tdx_mirror_check_kvm();
	return NOTIFY_OK;
}

static struct notifier_block tdx_mirror_module_nb = {
	.notifier_call = tdx_mirror_module_event,
};

/* Reports on KVM now, and again whenever it is loaded. */
int tdx_mirror_watch_kvm(void)
{
	if (!tdx_mirror_check_kvm())
		pr_info("KVM is not loaded yet: its mirror hooks are looked for when it is\n");
	return register_module_notifier(&tdx_mirror_module_nb);
}

void tdx_mirror_unwatch_kvm(void)
{
	unregister_module_notifier(&tdx_mirror_module_nb);
}
