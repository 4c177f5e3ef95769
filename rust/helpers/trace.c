// SPDX-License-Identifier: GPL-2.0
/* The tracepoints, and the clock of what they time; rust/glue/trace.rs calls them. */

#include <asm/tsc.h>

#include "helpers.h"

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/tdx_mirror.h>

/* The TSC, after all that was done before. */
u64 tdx_mirror_cycles(void)
{
	return rdtsc_ordered();
}
