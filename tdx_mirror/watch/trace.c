// SPDX-License-Identifier: GPL-2.0
/* The tracepoints, and the clock of what they time; tdx_mirror/watch/trace.rs calls them. */

#include <asm/tsc.h>

#include "../kernel/helpers.h"

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include "events.h"

/* The TSC, after all that was done before. */
u64 tdx_mirror_cycles(void)
{
	return rdtsc_ordered();
}
