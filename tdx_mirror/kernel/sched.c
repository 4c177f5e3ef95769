// SPDX-License-Identifier: GPL-2.0

#include <linux/sched.h>

#include "ffi.h"

void tdx_mirror_cond_resched(void)
{
	cond_resched();
}
