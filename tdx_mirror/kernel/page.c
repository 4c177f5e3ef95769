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

/*
 * Keeps a page from the allocator until tdx_mirror_release_page(). Returns false,
 * and keeps nothing, if it is free already, or is being freed: then what it is a
 * part of may change until the reference is there.
 */
bool tdx_mirror_hold_page(u64 pfn)
{
	struct folio *folio;
	struct page *page;

	if (!pfn_valid(pfn))
		return true;
	page = pfn_to_page(pfn);
	folio = page_folio(page);
	if (!folio_try_get(folio))
		return false;
	if (folio == page_folio(page))
		return true;
	folio_put(folio);
	return false;
}

void tdx_mirror_release_page(u64 pfn)
{
	if (pfn_valid(pfn))
		put_page(pfn_to_page(pfn));
}
