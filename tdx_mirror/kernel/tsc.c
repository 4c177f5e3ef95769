// SPDX-License-Identifier: GPL-2.0
/* The clock of what is timed, for tdx_mirror/kernel/tsc.rs. */

#include <asm/tsc.h>

#include "ffi.h"

/* The TSC, after all that was done before. */
u64 tdx_mirror_cycles(void)
{
	return rdtsc_ordered();
}

/* Ticks of the TSC in a millisecond. */
u32 tdx_mirror_tsc_khz(void)
{
	return tsc_khz;
}
