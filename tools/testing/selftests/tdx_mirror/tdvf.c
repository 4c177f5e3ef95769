// SPDX-License-Identifier: GPL-2.0
#include <stdio.h>
#include <string.h>

#include "tdvf.h"

/*
 * The image ends with 32 bytes of reset code; before them lies a table that is
 * read backwards: data, length (16 bit, all of the entry), GUID.  Its last
 * entry, the footer, tells the length of the whole.
 */
#define TABLE_END	32
#define ENTRY_TAIL	18

static const __u8 footer_guid[16] = {
	0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45,
	0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d,
};

static const __u8 tdx_metadata_guid[16] = {
	0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47,
	0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2,
};

struct tdvf_header {
	char signature[4];
	__u32 length;
	__u32 version;
	__u32 nr_sections;
};

static __u32 get_u16(const __u8 *at)
{
	return at[0] | at[1] << 8;
}

/* The data of the entry with @guid and @size bytes, or NULL. */
static const __u8 *find_entry(const __u8 *image, size_t image_size,
			      const __u8 *guid, size_t size)
{
	const __u8 *end = image + image_size - TABLE_END;
	const __u8 *at = end - ENTRY_TAIL;
	size_t left;

	if (image_size < TABLE_END + ENTRY_TAIL ||
	    memcmp(at + 2, footer_guid, 16))
		return NULL;
	left = get_u16(at);
	if (left < ENTRY_TAIL || left > image_size - TABLE_END)
		return NULL;
	left -= ENTRY_TAIL;
	while (left >= ENTRY_TAIL) {
		size_t length = get_u16(at - ENTRY_TAIL);

		if (length < ENTRY_TAIL || length > left)
			return NULL;
		if (!memcmp(at - 16, guid, 16))
			return length == size + ENTRY_TAIL ? at - length : NULL;
		at -= length;
		left -= length;
	}
	return NULL;
}

static const char *check_section(const struct tdvf *tdvf,
				 const struct tdvf_section *s)
{
	if (s->address % 4096 || s->size % 4096 || !s->size)
		return "a section is not made of whole pages";
	if (s->address + s->size < s->address)
		return "a section wraps around";
	if (s->type > TDVF_PAYLOAD_PARAM)
		return "a section has an unknown type";
	if (s->attributes & ~(TDVF_MR_EXTEND | TDVF_PAGE_AUG))
		return "a section has unknown attributes";
	/* The code follows the variables and reaches to the image's end. */
	if (s->type == TDVF_BFV && s->data_offset && s->data_size == tdvf->image_size)
		return "only the code of a split image, with the whole's offsets: take OVMF.fd";
	if ((__u64)s->data_offset + s->data_size > tdvf->image_size)
		return "a section's data lies outside of the image";
	if (s->data_size > s->size)
		return "a section's data is larger than its memory";
	return NULL;
}

const char *tdvf_parse(struct tdvf *tdvf, const void *image, size_t size)
{
	const __u8 *entry = find_entry(image, size, tdx_metadata_guid, 4);
	struct tdvf_header header;
	unsigned int i;
	__u32 from_end;
	size_t at;

	if (!entry)
		return "no TDX metadata in the table at the image's end";
	memcpy(&from_end, entry, 4);
	if (from_end > size || from_end < sizeof(header))
		return "the TDX metadata lies outside of the image";
	at = size - from_end;
	memcpy(&header, (const __u8 *)image + at, sizeof(header));
	if (memcmp(header.signature, "TDVF", 4) || header.version != 1)
		return "no TDX metadata of version 1";
	if (header.nr_sections > TDVF_MAX_SECTIONS || !header.nr_sections ||
	    sizeof(header) + header.nr_sections * sizeof(*tdvf->section) > from_end)
		return "the TDX metadata has a wrong number of sections";

	tdvf->image = image;
	tdvf->image_size = size;
	tdvf->nr_sections = header.nr_sections;
	memcpy(tdvf->section, (const __u8 *)image + at + sizeof(header),
	       header.nr_sections * sizeof(*tdvf->section));
	for (i = 0; i < tdvf->nr_sections; i++) {
		const char *wrong = check_section(tdvf, &tdvf->section[i]);

		if (wrong)
			return wrong;
	}
	return NULL;
}

/* A block of the measurement's stream: what was done, and to which GPA. */
static void mrtd_block(struct mrtd *mrtd, const char *what, __u64 gpa)
{
	__u8 block[128] = {};

	memcpy(block, what, strlen(what));
	memcpy(block + 16, &gpa, sizeof(gpa));
	sha384_update(&mrtd->sha, block, sizeof(block));
}

void mrtd_init(struct mrtd *mrtd)
{
	sha384_init(&mrtd->sha);
}

void mrtd_add_page(struct mrtd *mrtd, __u64 gpa, const void *page, bool measure)
{
	unsigned int at;

	mrtd_block(mrtd, "MEM.PAGE.ADD", gpa);
	for (at = 0; measure && at < 4096; at += 256) {
		mrtd_block(mrtd, "MR.EXTEND", gpa + at);
		sha384_update(&mrtd->sha, (const __u8 *)page + at, 256);
	}
}

void mrtd_final(struct mrtd *mrtd, __u8 digest[SHA384_SIZE])
{
	sha384_final(&mrtd->sha, digest);
}

void mrtd_to_hex(const __u8 digest[SHA384_SIZE], char hex[2 * SHA384_SIZE + 1])
{
	int i;

	for (i = 0; i < SHA384_SIZE; i++)
		sprintf(hex + 2 * i, "%02x", digest[i]);
}
