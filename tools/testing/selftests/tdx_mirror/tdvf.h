/* SPDX-License-Identifier: GPL-2.0 */
/* Firmware images for TDs (TDVF) and the measurement of a TD's build. */
#ifndef TDX_MIRROR_TDVF_H
#define TDX_MIRROR_TDVF_H

#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>

#include "sha384.h"

enum tdvf_type {
	TDVF_BFV,		/* code, measured */
	TDVF_CFV,		/* variables */
	TDVF_TD_HOB,		/* the VMM describes the TD's memory here */
	TDVF_TEMP_MEM,
	TDVF_PERM_MEM,
	TDVF_PAYLOAD,
	TDVF_PAYLOAD_PARAM,
};

#define TDVF_MR_EXTEND	1
#define TDVF_PAGE_AUG	2

/* One section: @data_size bytes at @data_offset of the image go to @address. */
struct tdvf_section {
	__u32 data_offset;
	__u32 data_size;
	__u64 address;
	__u64 size;
	__u32 type;
	__u32 attributes;
};

#define TDVF_MAX_SECTIONS	32

struct tdvf {
	const __u8 *image;
	size_t image_size;
	unsigned int nr_sections;
	struct tdvf_section section[TDVF_MAX_SECTIONS];
};

/*
 * Finds and checks the metadata of the image.  Returns NULL, or what is wrong
 * with the image.
 */
const char *tdvf_parse(struct tdvf *tdvf, const void *image, size_t size);

/*
 * The measurement (MRTD) as the TDX module documents it, independent of any
 * TDX module: feed it the same pages in the same order as the TD.
 */
struct mrtd {
	struct sha384 sha;
};

void mrtd_init(struct mrtd *mrtd);
void mrtd_add_page(struct mrtd *mrtd, __u64 gpa, const void *page, bool measure);
void mrtd_final(struct mrtd *mrtd, __u8 digest[SHA384_SIZE]);
void mrtd_to_hex(const __u8 digest[SHA384_SIZE], char hex[2 * SHA384_SIZE + 1]);

#endif /* TDX_MIRROR_TDVF_H */
