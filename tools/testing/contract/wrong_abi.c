// SPDX-License-Identifier: GPL-2.0
/*
 * A provider of another version of the contract, to be loaded instead of
 * tdx_mirror.ko: KVM has to refuse it when a TD is created, with -EINVAL.  None
 * of its entry points exists, so that a KVM that calls one is seen at once.
 */
#include <linux/module.h>
#include <linux/tdx_mirror.h>

static unsigned int version = TDX_MIRROR_ABI_VERSION + 1;
module_param(version, uint, 0444);
MODULE_PARM_DESC(version, "version to claim");

static unsigned int size = sizeof(struct tdx_mirror_ops);
module_param(size, uint, 0444);
MODULE_PARM_DESC(size, "size to claim");

static struct tdx_mirror_ops wrong_ops;

const struct tdx_mirror_ops *tdx_mirror_get_ops(void)
{
	return &wrong_ops;
}
EXPORT_SYMBOL_GPL(tdx_mirror_get_ops);

static int __init wrong_abi_init(void)
{
	wrong_ops.size = size;
	wrong_ops.abi_version = version;
	return 0;
}
module_init(wrong_abi_init);

static void __exit wrong_abi_exit(void)
{
}
module_exit(wrong_abi_exit);

MODULE_DESCRIPTION("Provider of another version of tdx_mirror's contract");
MODULE_LICENSE("GPL");
