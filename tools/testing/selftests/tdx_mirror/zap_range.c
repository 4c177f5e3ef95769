// SPDX-License-Identifier: GPL-2.0
/*
 * What it costs to take a range of private pages away: SEAMCALLs as the TDX
 * module counts them, kicks of all vCPUs as the kernel makes them.
 */
#include "test.h"

/* Leaves that one TDH.MEM.TRACK serves, see zap_batch of tdx_mirror. */
#define BATCH	512

TD_FIXTURE(zap_range);

enum zap_by {
	PUNCH_HOLE,
	TO_SHARED,
};

struct cost {
	__u64 seamcalls, blocks, tracks, removes, wbinvds, kicks, counted_kicks;
};

static const char *plural(__u64 n)
{
	return n == 1 ? "" : "s";
}

/* Takes the first @pages of slot 0 away and says what it cost; 0 or an error. */
static int zap(struct td *td, enum zap_by by, __u64 pages, struct cost *cost)
{
	struct td_calls before, after;
	bool found;
	__u64 kicks;
	int ret;

	ret = td_kicks_start();
	if (ret)
		return ret;
	kicks = td_counter(TD_MIRROR_STATS, "kicks", &found);
	td_calls_read(&before);
	if (by == PUNCH_HOLE)
		ret = td_punch_hole(td, 0, 0, pages * TD_PAGE);
	else
		ret = td_set_private(td, TD_RAM_GPA, pages * TD_PAGE, false);
	td_calls_read(&after);
	cost->kicks = td_kicks_stop();
	cost->counted_kicks = td_counter(TD_MIRROR_STATS, "kicks", &found) - kicks;
	cost->blocks = after.leaf[TD_RANGE_BLOCK] - before.leaf[TD_RANGE_BLOCK];
	cost->tracks = after.leaf[TD_TRACK] - before.leaf[TD_TRACK];
	cost->removes = after.leaf[TD_PAGE_REMOVE] - before.leaf[TD_PAGE_REMOVE];
	cost->wbinvds = after.leaf[TD_PAGE_WBINVD] - before.leaf[TD_PAGE_WBINVD];
	/* A running vCPU enters the TD meanwhile, for reasons of its own. */
	cost->seamcalls = after.total - before.total -
			  (after.leaf[TD_VP_ENTER] - before.leaf[TD_VP_ENTER]);
	return ret;
}

static void say(const char *how, __u64 pages, const struct cost *cost)
{
	const char *batch = td_param("zap_batch", NULL);

	printf("zap %llu page%s%s%s%s: %llu seamcalls, %llu track%s, %llu kick%s\n",
	       pages, plural(pages), how, batch ? " in batches of " : "",
	       batch ? batch : "", cost->seamcalls, cost->tracks,
	       plural(cost->tracks), cost->kicks, plural(cost->kicks));
	fflush(stdout);
}

/* With the mirror: one TRACK and one kick for a batch, and nothing more. */
static void check(struct __test_metadata *_metadata, __u64 pages,
		  const struct cost *cost)
{
	__u64 batch = atoi(td_param("zap_batch", "0"));
	__u64 batches;

	EXPECT_EQ(pages, cost->removes);
	EXPECT_EQ(pages, cost->wbinvds);
	if (td_needs(NEEDS_MIRROR))
		return;
	if (!batch)
		batch = BATCH;
	batches = (pages + batch - 1) / batch;
	EXPECT_EQ(pages, cost->blocks);
	EXPECT_EQ(batches, cost->tracks);
	EXPECT_EQ(batches, cost->kicks);
	EXPECT_EQ(cost->kicks, cost->counted_kicks);
	EXPECT_EQ(3 * pages + batches, cost->seamcalls);
}

static void map_and_zap(struct __test_metadata *_metadata, struct td *td,
			enum zap_by by, __u64 pages)
{
	struct td_config config = { .ram_size = pages * TD_PAGE };
	struct cost cost;

	REQUIRE(NEEDS_EMULATOR | NEEDS_TRACER);
	ASSERT_TD_OK(td, td_build(td, &config));
	ASSERT_TD_OK(td, td_prefault(&td->vcpu[0], TD_RAM_GPA, pages * TD_PAGE, NULL));
	ASSERT_TD_OK(td, zap(td, by, pages, &cost));
	say(by == TO_SHARED ? " to shared" : "", pages, &cost);
	check(_metadata, pages, &cost);
}

/* Shows: R25, R49. */
TEST_F(zap_range, zap_of_1_page)
{
	map_and_zap(_metadata, &self->td, PUNCH_HOLE, 1);
}

/* Shows: R25, R49. */
TEST_F(zap_range, zap_of_8_pages)
{
	map_and_zap(_metadata, &self->td, PUNCH_HOLE, 8);
}

/* Shows: R25, R49. */
TEST_F(zap_range, zap_of_512_pages)
{
	map_and_zap(_metadata, &self->td, PUNCH_HOLE, 512);
}

/* Shows: R25, R49. */
TEST_F(zap_range, zap_of_512_pages_to_shared)
{
	map_and_zap(_metadata, &self->td, TO_SHARED, 512);
}

/* Shows: R25, R49. */
TEST_F(zap_range, zap_of_513_pages)
{
	map_and_zap(_metadata, &self->td, PUNCH_HOLE, 513);
}

/* Shows: R25, R49. */
TEST_F_TIMEOUT(zap_range, zap_of_16384_pages, 120)
{
	/* KVM's own mirror takes three times as long for these as all else here. */
	REQUIRE(NEEDS_MIRROR);
	map_and_zap(_metadata, &self->td, PUNCH_HOLE, 16384);
}

/* Shows: R25. */
TEST_F(zap_range, zap_while_the_guest_runs)
{
	const struct td_config config = { .nr_vcpus = 2 };
	struct td_vcpu *guest = &self->td.vcpu[0];
	const __u64 pages = 512;
	struct cost cost;

	/* The last pages of the slot stay, and the guest's data in them. */
	REQUIRE(NEEDS_EMULATOR | NEEDS_TRACER);
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_op(guest, GUEST_ACCEPT, TD_RAM_GPA, pages + 8, 0);
	td_op(guest, GUEST_STORE, TD_RAM_GPA + pages * TD_PAGE, 8, 1);
	ASSERT_TD_OK(&self->td, td_ops_run(guest));
	td_ops_clear(guest);
	td_op(guest, GUEST_LOOP, 0, 0, 0);
	td_op(guest, GUEST_VERIFY, TD_RAM_GPA + pages * TD_PAGE, 8, 1);
	td_op(guest, GUEST_ACCEPT, TD_RAM_GPA, pages, 0);
	td_op(guest, GUEST_VERIFY_ZERO, TD_RAM_GPA, pages, 0);
	ASSERT_EQ(0, td_vcpu_start(guest));
	while (!__atomic_load_n(&guest->block->heartbeat, __ATOMIC_SEQ_CST))
		sched_yield();
	ASSERT_TD_OK(&self->td, zap(&self->td, PUNCH_HOLE, pages, &cost));
	say(" of a running TD", pages, &cost);
	check(_metadata, pages, &cost);
	td_vcpu_stop(guest);
	ASSERT_TD_OK(&self->td, td_ops_join(guest));
}

/* Shows: R25. */
TEST_F(zap_range, zap_before_finalize)
{
	const struct td_config config = { .no_image = true, .no_finalize = true };
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	const __u64 pages = 64;
	struct cost cost;

	/* No vCPU has run: nothing to block, nothing to track, nobody to kick. */
	REQUIRE(NEEDS_EMULATOR | NEEDS_TRACER);
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_TD_OK(&self->td, td_add_memory(vcpu, TD_RAM_GPA, self->td.slot[0].shared,
					      pages, false));
	ASSERT_TD_OK(&self->td, zap(&self->td, PUNCH_HOLE, pages, &cost));
	say(" before finalize", pages, &cost);
	EXPECT_EQ(pages, cost.removes);
	if (!td_needs(NEEDS_MIRROR)) {
		EXPECT_EQ(0, cost.blocks);
		EXPECT_EQ(0, cost.tracks);
		EXPECT_EQ(0, cost.kicks);
		EXPECT_EQ(2 * pages, cost.seamcalls);
	}
}

TEST_HARNESS_MAIN
