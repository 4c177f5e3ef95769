// SPDX-License-Identifier: GPL-2.0

#include <linux/delay.h>
#include <linux/sched.h>

#include "ffi.h"

void tdx_mirror_cond_resched(void)
{
	cond_resched();
}

void tdx_mirror_pause(void)
{
	usleep_range_state(1000, 2000, TASK_INTERRUPTIBLE);
}
