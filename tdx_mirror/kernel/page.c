// SPDX-License-Identifier: GPL-2.0
/* Pages of the direct map, for tdx_mirror/kernel/page.rs. */

#include <linux/mm.h>

#include "ffi.h"

u64 tdx_mirror_virt_to_pfn(void *virt)
{
	return page_to_pfn(virt_to_page(virt));
}

/*
 * The word that a page from the allocator leaves to its owner: a mirror table
 * keeps its S-EPT page there.
 */
void *tdx_mirror_page_private(void *virt)
{
	return (void *)page_private(virt_to_page(virt));
}

void tdx_mirror_set_page_private(void *virt, void *value)
{
	set_page_private(virt_to_page(virt), (unsigned long)value);
}

/* Keeps a page from the allocator until tdx_mirror_release_page(). */
void tdx_mirror_hold_page(u64 pfn)
{
	if (pfn_valid(pfn))
		get_page(pfn_to_page(pfn));
}

void tdx_mirror_release_page(u64 pfn)
{
	if (pfn_valid(pfn))
		put_page(pfn_to_page(pfn));
}
