// SPDX-License-Identifier: GPL-2.0
/*
 * Layouts that the Rust side of tdx_emu.ko takes for granted; it asserts the same
 * numbers.
 */
#include <linux/build_bug.h>
#include <linux/stddef.h>
#include <asm/shared/tdx.h>

#include "emu.h"

static_assert(sizeof(struct emu_gprs) == 136);
static_assert(offsetof(struct emu_gprs, cr2) == EMU_GPRS_CR2);
static_assert(sizeof(struct emu_guest) == 104);
static_assert(offsetof(struct emu_guest, msrs) == 16);
static_assert(offsetof(struct emu_guest, drs) == 64);
static_assert(sizeof(struct emu_host_fields) == 128);
static_assert(offsetof(struct emu_host_fields, fs_base) == 48);
static_assert(offsetof(struct emu_host_fields, pat) == 120);

static_assert(sizeof(struct tdx_module_args) == 104);
static_assert(offsetof(struct tdx_module_args, r8) == 16);
static_assert(offsetof(struct tdx_module_args, r12) == 48);
static_assert(offsetof(struct tdx_module_args, rbx) == 80);
static_assert(offsetof(struct tdx_module_args, rsi) == 96);
