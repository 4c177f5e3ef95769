// SPDX-License-Identifier: GPL-2.0
/* Parameters of a type that the Rust macro does not have; tdx_mirror/kvm/params.rs checks them. */

#include <linux/moduleparam.h>
#include <linux/string.h>

#include "ffi.h"

static char *vp_enter_policy = "warn";
module_param(vp_enter_policy, charp, 0444);
MODULE_PARM_DESC(vp_enter_policy,
		 "What a vCPU without progress or a VP.ENTER with the S-EPT busy leads to: count, warn, kill (default warn)");

/* The value given at load and its length. */
const char *tdx_mirror_vp_enter_policy(unsigned int *len)
{
	*len = strlen(vp_enter_policy);
	return vp_enter_policy;
}
