/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Kernel facilities that the kernel crate does not offer, as plain functions
 * with plain types for the Rust beside them.
 */
#ifndef _TDX_MIRROR_KERNEL_FFI_H
#define _TDX_MIRROR_KERNEL_FFI_H

#include <linux/types.h>

/* rwlock.c */
void tdx_mirror_assert_held_read(void *mmu_lock);
void tdx_mirror_assert_held_write(void *mmu_lock);
void tdx_mirror_write_lock(void *mmu_lock);
void tdx_mirror_write_unlock(void *mmu_lock);

/* percpu.c */
void *tdx_mirror_alloc_counters(u32 count);
void tdx_mirror_free_counters(void *counters);
u64 tdx_mirror_sum_counter(const void *counter);

/* page.c */
u64 tdx_mirror_virt_to_pfn(void *virt);
void *tdx_mirror_page_private(void *virt);
void tdx_mirror_set_page_private(void *virt, void *value);
bool tdx_mirror_hold_page(u64 pfn);
void tdx_mirror_release_page(u64 pfn);

/* sched.c */
void tdx_mirror_cond_resched(void);
void tdx_mirror_pause(void);

/* tsc.c */
u64 tdx_mirror_cycles(void);
u32 tdx_mirror_tsc_khz(void);

/* warn.c */
void tdx_mirror_warn_bug(void);
void tdx_mirror_warn_parameter(void);
void tdx_mirror_warn_vp_enter(void);
void tdx_mirror_warn_reclaim_busy(void);

/* switches.c */
void tdx_mirror_switch_recording(bool on);
void tdx_mirror_switch_timing(bool on);

#endif /* _TDX_MIRROR_KERNEL_FFI_H */
