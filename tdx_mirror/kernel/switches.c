// SPDX-License-Identifier: GPL-2.0

#include "ffi.h"
#include "switches.h"

struct tdx_mirror_switches tdx_mirror_switches = {
	.recording = STATIC_KEY_FALSE_INIT,
	.timing = STATIC_KEY_FALSE_INIT,
};

static void tdx_mirror_switch(struct static_key_false *key, bool on)
{
	if (on)
		static_branch_enable(key);
	else
		static_branch_disable(key);
}

void tdx_mirror_switch_recording(bool on)
{
	tdx_mirror_switch(&tdx_mirror_switches.recording, on);
}

void tdx_mirror_switch_timing(bool on)
{
	tdx_mirror_switch(&tdx_mirror_switches.timing, on);
}
