// SPDX-License-Identifier: GPL-2.0
/* KVM's mmu_lock; tdx_mirror/kernel/rwlock.rs makes evidence of it. */

#include <linux/lockdep.h>
#include <linux/spinlock.h>

#include "ffi.h"

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
