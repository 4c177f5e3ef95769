// SPDX-License-Identifier: GPL-2.0
/*
 * Exports of functions that are written in Rust: the export macros of the Rust
 * tree serve only what is built in tree.
 */
#include <linux/export.h>
#include <linux/tdx_mirror.h>

#include "test_ops.h"

EXPORT_SYMBOL_GPL(tdx_mirror_get_ops);
EXPORT_SYMBOL_GPL(tdx_mirror_get_test_ops);
