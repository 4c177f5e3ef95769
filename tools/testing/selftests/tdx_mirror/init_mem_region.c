// SPDX-License-Identifier: GPL-2.0
/*
 * KVM_TDX_INIT_MEM_REGION: the sections of a real firmware image, measured.
 *
 * KVM has no ioctl that tells a TD's MRTD; on real hosts only a quote does.
 * Where the emulator runs, its value is compared with the one computed here.
 */
#include <errno.h>
#include <fcntl.h>

#include "test.h"

/* Examples of FIPS 180: digests as big-endian words. */
TEST(sha384_known_answers)
{
	static const struct {
		const char *text[2];
		__u64 digest[6];
	} known[] = {
		{ { "", "" },
			{ 0x38b060a751ac9638ull, 0x4cd9327eb1b1e36aull, 0x21fdb71114be0743ull,
			  0x4c0cc7bf63f6e1daull, 0x274edebfe76f65fbull, 0xd51ad2f14898b95bull } },
		{ { "abc", "" },
			{ 0xcb00753f45a35e8bull, 0xb5a03d699ac65007ull, 0x272c32ab0eded163ull,
			  0x1a8b605a43ff5bedull, 0x8086072ba1e7cc23ull, 0x58baeca134c825a7ull } },
		{ { "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn",
		    "hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu" },
			{ 0x09330c33f71147e8ull, 0x3d192fc782cd1b47ull, 0x53111b173b3b05d2ull,
			  0x2fa08086e3b0f712ull, 0xfcc7c71a557e2db9ull, 0x66c3e9fa91746039ull } },
	};
	__u8 digest[SHA384_SIZE];
	struct sha384 sha;
	size_t i, k;

	for (i = 0; i < ARRAY_SIZE(known); i++) {
		sha384_init(&sha);
		for (k = 0; k < 2; k++)
			sha384_update(&sha, known[i].text[k], strlen(known[i].text[k]));
		sha384_final(&sha, digest);
		for (k = 0; k < 6; k++) {
			__u64 word;

			memcpy(&word, digest + 8 * k, 8);
			EXPECT_EQ(known[i].digest[k], __builtin_bswap64(word));
		}
	}
}

/* The same stream in pieces of any size gives the same digest. */
TEST(sha384_in_pieces)
{
	__u8 data[1000], whole[SHA384_SIZE], pieces[SHA384_SIZE];
	struct sha384 sha;
	size_t i, n;

	for (i = 0; i < sizeof(data); i++)
		data[i] = i * 7;
	sha384_init(&sha);
	sha384_update(&sha, data, sizeof(data));
	sha384_final(&sha, whole);
	for (n = 1; n < 300; n += 13) {
		sha384_init(&sha);
		for (i = 0; i < sizeof(data); i += n)
			sha384_update(&sha, data + i,
				      sizeof(data) - i < n ? sizeof(data) - i : n);
		sha384_final(&sha, pieces);
		EXPECT_EQ(0, memcmp(whole, pieces, SHA384_SIZE)) TH_LOG("pieces of %zu", n);
	}
}

/* A stream of any length, byte by byte: the padding's borders. */
TEST(sha384_lengths)
{
	__u8 data[300] = {}, last[SHA384_SIZE] = {}, digest[SHA384_SIZE];
	struct sha384 sha;
	size_t len, i;

	for (len = 0; len < sizeof(data); len++) {
		__u8 single[SHA384_SIZE];

		sha384_init(&sha);
		sha384_update(&sha, data, len);
		sha384_final(&sha, digest);
		sha384_init(&sha);
		for (i = 0; i < len; i++)
			sha384_update(&sha, data + i, 1);
		sha384_final(&sha, single);
		EXPECT_EQ(0, memcmp(digest, single, SHA384_SIZE));
		EXPECT_NE(0, memcmp(digest, last, SHA384_SIZE));
		memcpy(last, digest, SHA384_SIZE);
	}
}

TEST(tdvf_of_a_broken_image)
{
	struct tdvf tdvf;
	const char *wrong;
	char path[256];
	size_t size, i;
	__u8 *image = td_read_firmware(&size, path);

	if (!image)
		SKIP(return, "no firmware image for TDs (%s)", path);
	wrong = tdvf_parse(&tdvf, image, size);
	ASSERT_EQ(NULL, wrong) TH_LOG("%s: %s", path, wrong);
	/* Cut short, the table cannot be read, whatever is left. */
	for (i = 0; i < 128; i++)
		EXPECT_NE(NULL, tdvf_parse(&tdvf, image, i));
	EXPECT_NE(NULL, tdvf_parse(&tdvf, image, size - 1));
	/* A damaged byte is found, or harmless: never outside of the image. */
	for (i = 0; i < 256; i++) {
		unsigned int k;

		image[size - 1 - 32 - i] ^= 0xff;
		if (!tdvf_parse(&tdvf, image, size))
			for (k = 0; k < tdvf.nr_sections; k++)
				EXPECT_LE((size_t)tdvf.section[k].data_offset +
					  tdvf.section[k].data_size, size);
		image[size - 1 - 32 - i] ^= 0xff;
	}
	free(image);
}

/* Distributions split images into variables and code too; offsets are the whole's. */
TEST(tdvf_of_a_split_image)
{
	struct tdvf tdvf, part;
	const char *wrong;
	char path[256];
	size_t size;
	unsigned int i;
	__u8 *image = td_read_firmware(&size, path);

	if (!image)
		SKIP(return, "no firmware image for TDs (%s)", path);
	wrong = tdvf_parse(&tdvf, image, size);
	ASSERT_EQ(NULL, wrong) TH_LOG("%s: %s", path, wrong);
	for (i = 0; i < tdvf.nr_sections && tdvf.section[i].type != TDVF_BFV; i++)
		;
	ASSERT_LT(i, tdvf.nr_sections) TH_LOG("%s has no code", path);
	ASSERT_LT(0, tdvf.section[i].data_offset) TH_LOG("%s has no variables", path);
	wrong = tdvf_parse(&part, image + tdvf.section[i].data_offset,
			   size - tdvf.section[i].data_offset);
	ASSERT_NE(NULL, wrong);
	EXPECT_NE(NULL, strstr(wrong, "OVMF.fd")) TH_LOG("%s", wrong);
	/* One that is damaged otherwise is not taken for it. */
	wrong = tdvf_parse(&part, image + TD_PAGE, size - TD_PAGE);
	ASSERT_NE(NULL, wrong);
	EXPECT_EQ(NULL, strstr(wrong, "OVMF.fd")) TH_LOG("%s", wrong);
	free(image);
}

TD_FIXTURE(init_mem_region);

/* Adds a section as a VMM does: the image's data, zeros after them. */
static int add_section(struct td *td, __u32 slot, const struct tdvf *tdvf,
		       const struct tdvf_section *s)
{
	bool measure = s->attributes & TDVF_MR_EXTEND;
	void *pages;
	int ret;

	ret = td_add_slot(td, slot, s->address, s->size, true);
	if (ret || s->attributes & TDVF_PAGE_AUG)
		return ret;
	/* The slot's shared memory serves as source, page aligned and zeroed. */
	pages = td->slot[slot].shared;
	memcpy(pages, tdvf->image + s->data_offset, s->data_size);
	ret = td_add_memory(&td->vcpu[0], s->address, pages, s->size / TD_PAGE, measure);
	return ret;
}

TEST_F(init_mem_region, firmware_and_its_mrtd)
{
	struct td *td = &self->td;
	struct td_counters after;
	struct tdvf tdvf;
	const char *wrong;
	char path[256], hex[2 * SHA384_SIZE + 1];
	__u64 pages = 0, measured = 0;
	size_t size;
	unsigned int i;
	int known;
	void *image = td_read_firmware(&size, path);

	if (!image)
		SKIP(return, "no firmware image for TDs: set TDX_FIRMWARE or install ovmf");
	wrong = tdvf_parse(&tdvf, image, size);
	ASSERT_EQ(NULL, wrong) TH_LOG("%s: %s", path, wrong);

	ASSERT_TD_OK(td, td_create(td));
	ASSERT_TD_OK(td, td_init_vm(td, 0));
	ASSERT_TD_OK(td, td_add_vcpu(td));
	ASSERT_TD_OK(td, td_init_vcpu(&td->vcpu[0]));
	ASSERT_LE(tdvf.nr_sections, TD_MAX_SLOTS);
	for (i = 0; i < tdvf.nr_sections; i++) {
		const struct tdvf_section *s = &tdvf.section[i];

		TH_LOG("section at %llx, %llu pages, type %u%s", s->address,
		       s->size / TD_PAGE, s->type,
		       s->attributes & TDVF_MR_EXTEND ? ", measured" : "");
		ASSERT_TD_OK(td, add_section(td, i, &tdvf, s));
		if (!(s->attributes & TDVF_PAGE_AUG))
			pages += s->size / TD_PAGE;
		if (s->attributes & TDVF_MR_EXTEND)
			measured += s->size / TD_PAGE;
	}
	ASSERT_TD_OK(td, td_finalize(td));
	free(image);

	td_counters_read(&after);
	if (after.has_emu)
		EXPECT_EQ(pages, after.emu_present - self->before.emu_present);
	mrtd_to_hex(td->mrtd_digest, hex);
	TH_LOG("%s: %llu pages, %llu measured, MRTD %s", path, pages, measured, hex);
	known = td_mrtd_known(td->mrtd_digest);
	if (known == -ENOENT)
		SKIP(return, "no emulator to read the MRTD from: a quote would tell it");
	EXPECT_EQ(1, known) TH_LOG("the emulator has another MRTD");
}

TEST_F(init_mem_region, order_and_content_count)
{
	struct td *td = &self->td;
	const struct td_config config = { .no_finalize = true, .no_image = true };
	int known;
	__u8 *data;

	/* The second page first, one of two measured, a GPA far away. */
	ASSERT_TD_OK(td, td_build(td, &config));
	data = td->slot[0].shared;
	memset(data, 0x5a, TD_PAGE);
	ASSERT_TD_OK(td, td_add_memory(&td->vcpu[0], TD_RAM_GPA + TD_PAGE, data, 1, true));
	ASSERT_TD_OK(td, td_add_memory(&td->vcpu[0], TD_RAM_GPA, data, 1, false));
	ASSERT_TD_OK(td, td_add_memory(&td->vcpu[0], TD_IMAGE_GPA, data, 1, true));
	ASSERT_TD_OK(td, td_finalize(td));
	known = td_mrtd_known(td->mrtd_digest);
	if (known == -ENOENT)
		SKIP(return, "no emulator to read the MRTD from: a quote would tell it");
	EXPECT_EQ(1, known);
	/* The comparison is not blind. */
	td->mrtd_digest[47] ^= 1;
	EXPECT_EQ(0, td_mrtd_known(td->mrtd_digest));
}

TEST_F(init_mem_region, added_pages_are_the_guests)
{
	struct td *td = &self->td;
	const struct td_config config = { .no_finalize = true };
	struct td_vcpu *vcpu = &td->vcpu[0];
	__u64 *data, i;

	/* What was added is there without ACCEPT and is private afterwards. */
	ASSERT_TD_OK(td, td_build(td, &config));
	data = td->slot[0].shared;
	for (i = 0; i < 4 * 512; i++)
		data[i] = guest_pattern(TD_RAM_GPA + 8 * i, 77);
	ASSERT_TD_OK(td, td_add_memory(vcpu, TD_RAM_GPA, data, 4, false));
	memset(data, 0, 4 * TD_PAGE);
	ASSERT_TD_OK(td, td_finalize(td));
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, 4, 77);
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, 4, 0);
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, 4, 77);
	ASSERT_TD_OK(td, td_ops_run(vcpu));
	EXPECT_EQ(4, vcpu->block->ops[1].res[1]);
}

TEST_HARNESS_MAIN
