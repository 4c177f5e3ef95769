/* SPDX-License-Identifier: GPL-2.0 */
#ifndef TDX_MIRROR_BAD_H
#define TDX_MIRROR_BAD_H

#include <linux/types.h>

/* bad_rust.rs */
u8 tdx_mirror_bad_rust_read(const u8 *start, size_t at);
u32 tdx_mirror_bad_rust_answer(void);
u32 tdx_mirror_bad_rust_call(u32 (*answer)(void));

#endif
