// SPDX-License-Identifier: GPL-2.0
/* Memory of the counters; tdx_mirror/kernel/percpu.rs counts. */

#include <linux/cpumask.h>
#include <linux/overflow.h>
#include <linux/percpu.h>

#include "ffi.h"

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
