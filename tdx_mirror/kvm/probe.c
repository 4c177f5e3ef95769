// SPDX-License-Identifier: GPL-2.0
/* Whether KVM has the mirror hooks; tdx_mirror/kvm/probe.rs asks at load. */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kvm_host.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/tdx_mirror.h>

#include "ffi.h"

/*
 * Says whether the running KVM will ever ask for a mirror. kvm.ko carries the
 * marker and kvm_put_kvm() tells a KVM without it from one not loaded yet.
 */
static bool tdx_mirror_check_kvm(void)
{
	const u32 *abi = symbol_get(kvm_mirror_provider_abi);

	if (abi) {
		u32 version = *abi;

		symbol_put(kvm_mirror_provider_abi);
		if (version == TDX_MIRROR_ABI_VERSION)
			pr_info("kvm_intel has the mirror hooks, ABI %u\n",
				version);
		else
			pr_warn("kvm_intel has the mirror hooks of ABI %u, this module those of ABI %u: TDs cannot use it, build both from the same sources\n",
				version, TDX_MIRROR_ABI_VERSION);
		return true;
	}

	if (symbol_get(kvm_put_kvm)) {
		symbol_put(kvm_put_kvm);
		pr_notice("kvm_intel lacks the mirror hooks: TDs use KVM's own mirror, nothing will call this module; its use needs a kernel with patches/kvm\n");
		return true;
	}

	return false;
}

static int tdx_mirror_module_event(struct notifier_block *nb,
				   unsigned long event, void *data)
{
	const struct module *mod = data;

	if (event == MODULE_STATE_LIVE && !strcmp(mod->name, "kvm"))
		tdx_mirror_check_kvm();
	return NOTIFY_OK;
}

static struct notifier_block tdx_mirror_module_nb = {
	.notifier_call = tdx_mirror_module_event,
};

/* Reports on KVM now, and again whenever it is loaded. */
int tdx_mirror_watch_kvm(void)
{
	if (!tdx_mirror_check_kvm())
		pr_info("KVM is not loaded yet: its mirror hooks are looked for when it is\n");
	return register_module_notifier(&tdx_mirror_module_nb);
}

void tdx_mirror_unwatch_kvm(void)
{
	unregister_module_notifier(&tdx_mirror_module_nb);
}
