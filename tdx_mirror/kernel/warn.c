// SPDX-License-Identifier: GPL-2.0
/*
 * The module's WARN sites, one function each, so that the trace names it. None
 * can be reached by a guest, by userspace or by an error of the hardware unless
 * KVM, the TDX module or this module is broken.
 */

#include <linux/bug.h>

#include "ffi.h"

/* Shows once who called when a TD broke; the log line before says how. */
void tdx_mirror_warn_bug(void)
{
	WARN_ON_ONCE(1);
}

/* An entry point got what no caller that keeps to the contract gives. */
void tdx_mirror_warn_parameter(void)
{
	WARN_ONCE(1, "tdx_mirror: KVM gave a NULL pointer, or a GFN, PFN, level or reason out of range; report this\n");
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
