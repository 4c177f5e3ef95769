/* SPDX-License-Identifier: GPL-2.0 */
/* C of this folder that the Rust beside it calls. */
#ifndef _TDX_MIRROR_KVM_FFI_H
#define _TDX_MIRROR_KVM_FFI_H

#include <linux/types.h>

/* params.c */
const char *tdx_mirror_vp_enter_policy(unsigned int *len);

#endif /* _TDX_MIRROR_KVM_FFI_H */
