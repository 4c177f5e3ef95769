// SPDX-License-Identifier: GPL-2.0
/*
 * Exports of functions that are written in Rust: the export macros of the Rust
 * tree serve only what is built in tree.
 */
#include <linux/export.h>
#include <linux/tdx_mirror.h>

#include "test_ops.h"

/*
 * KVM, whose folders take no export to everyone, and the test device. The test
 * of the contract looks both up with symbol_get(), which asks for no namespace.
 */
EXPORT_SYMBOL_FOR_MODULES(tdx_mirror_get_ops, "kvm-intel,tdx_mirror_test");
EXPORT_SYMBOL_FOR_MODULES(tdx_mirror_get_test_ops, "tdx_mirror_test");
