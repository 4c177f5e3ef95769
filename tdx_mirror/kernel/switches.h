/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What may be switched on while the module runs and costs one static branch at
 * each site while it is off; struct Switches of tdx_mirror/kernel/switches.rs.
 */
#ifndef _TDX_MIRROR_SWITCHES_H
#define _TDX_MIRROR_SWITCHES_H

#include <linux/jump_label.h>

/**
 * struct tdx_mirror_switches - keys of the static branches
 * @recording: maps and zaps are written down
 * @timing: freezes are timed
 */
struct tdx_mirror_switches {
	struct static_key_false recording;
	struct static_key_false timing;
};

extern struct tdx_mirror_switches tdx_mirror_switches;

#endif /* _TDX_MIRROR_SWITCHES_H */
