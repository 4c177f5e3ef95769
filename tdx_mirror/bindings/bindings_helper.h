/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Input of bindgen for contract.rs: the C side of the FFI edge and nothing of
 * the kernel, so that the result does not depend on a configuration.
 */
#define _LINUX_TYPES_H

typedef unsigned int u32;
typedef unsigned long long u64;
#define bool _Bool

#include "../../include/linux/tdx_mirror.h"
#include "../kvm/ffi.h"
#include "../kvm/test_ops.h"
#include "../kernel/ffi.h"
#include "../watch/ffi.h"
