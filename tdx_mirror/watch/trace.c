// SPDX-License-Identifier: GPL-2.0
/* The tracepoints; tdx_mirror/watch/trace.rs calls them. */

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include "events.h"
