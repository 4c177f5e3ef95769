// SPDX-License-Identifier: GPL-2.0
/*
 * SEAMCALLs that fail: what the VMM is told, what stays the TDX module's, and
 * that the host and the next TD are none the worse.
 */
#include <errno.h>

#include "test.h"

#define PAGES	8ull

TD_FIXTURE(failures);

/* Another TD, as large as what the first one could have given back wrongly. */
static int next_td_works(struct td *td)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &td->vcpu[0];
	int ret = td_build(td, &config);

	if (ret)
		return ret;
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, 256, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, 256, 1);
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, 256, 1);
	ret = td_ops_run(vcpu);
	if (!ret)
		ret = td_punch_hole(td, 0, 0, 256 * TD_PAGE);
	if (!ret)
		ret = td_ops_run(vcpu);
	td_destroy(td);
	td_reset(td);
	return ret;
}

/* Shows: B10. */
TEST_F_TIMEOUT(failures, measuring_fails_at_each_chunk, 60)
{
	const struct td_config config = { .no_image = true, .no_finalize = true };
	struct td *td = &self->td;
	char when[8];
	int chunk;

	/* KVM takes a failure here for a bug of its own, hence the warning. */
	REQUIRE(NEEDS_EMULATOR | NEEDS_KLOG);
	for (chunk = 1; chunk <= 16; chunk++) {
		struct kvm_tdx_init_mem_region region = {
			.gpa = TD_RAM_GPA, .nr_pages = 4,
		};
		struct td_calls before;

		ASSERT_TD_OK(td, td_build(td, &config));
		region.source_addr = (unsigned long)td->slot[0].shared;
		ASSERT_EQ(0, td_klog_begin("TDH.MR.EXTEND fails"));
		td_calls_read(&before);
		/* The second page's, so that a whole page is there already. */
		snprintf(when, sizeof(when), "%d", 16 + chunk);
		ASSERT_EQ(0, td_fail(TD_MR_EXTEND, when, TD_OPERAND_INVALID | TD_OP_RCX));
		EXPECT_EQ(-EIO, td_vcpu_op(&td->vcpu[0], KVM_TDX_INIT_MEM_REGION,
					   KVM_TDX_MEASURE_MEMORY_REGION, &region));
		EXPECT_EQ(16 + chunk, td_calls_since(&before, TD_MR_EXTEND));
		EXPECT_EQ(3, region.nr_pages);
		EXPECT_EQ(TD_RAM_GPA + TD_PAGE, region.gpa);
		/* Half a measurement is none: the TD cannot be finalized. */
		EXPECT_EQ(-EIO, td_vm_op(td, KVM_TDX_FINALIZE_VM, 0, NULL));
		td_destroy(td);
		td_reset(td);
		EXPECT_EQ(1, td_klog_end());
	}
	ASSERT_TD_OK(td, next_td_works(td));
}

/* KVM_TDX_INIT_MEM_REGION of @nr pages of RAM from the @first one on; 0 or its error. */
static int add_pages(struct td *td, __u64 first, __u64 nr)
{
	struct kvm_tdx_init_mem_region region = {
		.source_addr = (unsigned long)td->slot[0].shared + first * TD_PAGE,
		.gpa = TD_RAM_GPA + first * TD_PAGE, .nr_pages = nr,
	};
	int ret = td_vcpu_op(&td->vcpu[0], KVM_TDX_INIT_MEM_REGION, 0, &region);

	return ret ? ret : region.nr_pages;
}

/* Busy answers in a row: more than KVM has pages in store for the tables of a vCPU. */
#define BUSY_TIMES 50

/* Shows: B9. */
TEST_F(failures, adding_waits_for_contention_to_end)
{
	static const struct {
		const char *lock;
		enum td_leaf leaf;	/* the one that meets it */
	} busy[] = {
		{ "tree ex", TD_SEPT_ADD },
		{ "tdr sh", TD_PAGE_ADD },
	};
	const struct td_config config = { .no_image = true, .no_finalize = true };
	struct td_calls before, after;
	struct td *td = &self->td;
	struct td_vcpu *vcpu = &td->vcpu[0];
	unsigned int i;
	__u64 first;

	/* It is not the VMM's business, as long as no signal comes. */
	REQUIRE(NEEDS_EMULATOR);
	for (i = 0; i < ARRAY_SIZE(busy); i++) {
		ASSERT_TD_OK(td, td_build(td, &config));
		first = busy[i].leaf == TD_PAGE_ADD;
		if (first)
			ASSERT_EQ(0, add_pages(td, 0, 1));
		ASSERT_EQ(0, td_inject("hold %s busy=%d\n", busy[i].lock, BUSY_TIMES));
		td_calls_read(&before);
		EXPECT_EQ(0, add_pages(td, first, 4 - first));
		td_calls_read(&after);
		td_inject_clear();
		EXPECT_EQ(BUSY_TIMES, after.busy - before.busy);
		EXPECT_LT(3, td_calls_since(&before, busy[i].leaf));
		EXPECT_TD_OK(td, td_load_image(td, "ops"));
		EXPECT_TD_OK(td, td_finalize(td));
		td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, 8, 0);
		EXPECT_TD_OK(td, td_ops_run(vcpu));
		EXPECT_EQ(4, vcpu->block->ops[0].res[1]);
		td_destroy(td);
		td_reset(td);
	}
}

/* Shows: B9. */
TEST_F(failures, adding_fails_for_good)
{
	static const struct {
		enum td_leaf leaf;
		const char *when;
	} fatal[] = {
		{ TD_SEPT_ADD, "1" }, { TD_SEPT_ADD, "3" },
		{ TD_PAGE_ADD, "1" }, { TD_PAGE_ADD, "4" },
	};
	const struct td_config config = { .no_image = true, .no_finalize = true };
	struct td *td = &self->td;
	unsigned int i;

	REQUIRE(NEEDS_EMULATOR | NEEDS_KLOG);
	for (i = 0; i < ARRAY_SIZE(fatal); i++) {
		ASSERT_TD_OK(td, td_build(td, &config));
		ASSERT_EQ(0, td_klog_begin("an addition fails"));
		ASSERT_EQ(0, td_fail(fatal[i].leaf, fatal[i].when,
				     TD_OPERAND_INVALID | TD_OP_RCX));
		EXPECT_EQ(-EIO, add_pages(td, 0, 4));
		td_destroy(td);
		td_reset(td);
		EXPECT_EQ(1, td_klog_end());
	}
	ASSERT_TD_OK(td, next_td_works(td));
}

/* A VM may end under KVM_PRE_FAULT_MEMORY: one warning says why, and no other. */
TEST_F(failures, the_vm_dies_while_it_is_prefaulted)
{
	const struct td_config config = {};
	struct td *td = &self->td;
	struct td_vcpu *vcpu = &td->vcpu[0];

	REQUIRE(NEEDS_EMULATOR | NEEDS_KLOG);
	ASSERT_TD_OK(td, td_build(td, &config));
	ASSERT_EQ(0, td_klog_begin("TDH.MEM.PAGE.AUG fails"));
	ASSERT_EQ(0, td_fail(TD_PAGE_AUG, "1", TD_OPERAND_INVALID | TD_OP_RCX));
	EXPECT_EQ(-EIO, td_prefault_once(vcpu, TD_RAM_GPA, PAGES * TD_PAGE));
	EXPECT_EQ(-EIO, td_prefault_once(vcpu, TD_RAM_GPA, TD_PAGE));
	td_destroy(td);
	td_reset(td);
	EXPECT_EQ(1, td_klog_end());
	ASSERT_TD_OK(td, next_td_works(td));
}

/* One step of a zap that fails, and how many leaves it leaves in doubt. */
struct broken_zap {
	const char *what;
	enum td_leaf leaf;
	const char *when;
	__u64 status;
	__u64 quarantined;	/* of PAGES */
	__u64 not_removed;
	bool ended;		/* the TD has, and nobody made a mistake */
};

static void zap_that_breaks(struct __test_metadata *_metadata, struct td *td,
			    struct td *other, struct td_counters *before,
			    const struct broken_zap *zap)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &td->vcpu[0];
	struct td_counters full, now;
	bool found;

	ASSERT_TD_OK(td, td_build(td, &config));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 1);
	ASSERT_TD_OK(td, td_ops_run(vcpu));
	td_counters_read(&full);
	ASSERT_EQ(0, td_klog_begin(zap->what));
	ASSERT_EQ(0, td_fail(zap->leaf, zap->when, zap->status));
	/* A zap cannot fail; the VM can. */
	EXPECT_TD_OK(td, td_punch_hole(td, 0, 0, PAGES * TD_PAGE));
	td_inject_clear();
	td_counters_read(&now);
	EXPECT_EQ(zap->quarantined, now.quarantined - full.quarantined)
		TH_LOG("%s", zap->what);
	EXPECT_EQ(PAGES - zap->not_removed, now.emu_removed - full.emu_removed)
		TH_LOG("%s", zap->what);
	/* The GFN refuses another page, for the guest and for the VMM. */
	EXPECT_EQ(-EIO, td_prefault_once(vcpu, TD_RAM_GPA, TD_PAGE));
	EXPECT_EQ(-EIO, td_vcpu_enter(vcpu));
	td_counters_read(&full);
	EXPECT_EQ(full.emu_present, now.emu_present);
	/* None of the pages goes to whoever asks next. */
	EXPECT_TD_OK(other, next_td_works(other));
	td_on_purpose(before, (struct td_purpose) {
		.not_removed = zap->not_removed,
		.not_zapped = zap->quarantined,
		.quarantined = zap->quarantined,
	});
	td_destroy(td);
	td_reset(td);
	EXPECT_EQ(0, td_klog_count("page leaked"));
	EXPECT_EQ(zap->ended, td_klog_count("the TDX module has ended the TD"));
	EXPECT_EQ(zap->ended, !td_klog_count("report this line"));
	EXPECT_EQ(!zap->ended, td_klog_end())
		TH_LOG("%s", zap->what);
	/*
	 * The S-EPT is gone, so the quarantine can end, each page reclaimed or,
	 * after a failed WBINVD, known not to be the TDX module's.
	 */
	EXPECT_EQ(zap->quarantined,
		  td_counter(TD_MIRROR_STATS, "resolved", &found) - before->resolved)
		TH_LOG("%s", zap->what);
	before->resolved += zap->quarantined;
}

/* Shows: R41, B14, B34. */
TEST_F_TIMEOUT(failures, a_zap_breaks, 120)
{
	static const struct broken_zap zaps[] = {
		{ "TDH.MEM.RANGE.BLOCK fails", TD_RANGE_BLOCK, "3",
		  TD_OPERAND_INVALID | TD_OP_RCX, 1, 1 },
		{ "TDH.MEM.RANGE.BLOCK stays busy", TD_RANGE_BLOCK, "every 1",
		  TD_OPERAND_BUSY | TD_OP_SEPT_TREE, PAGES, PAGES },
		{ "TDH.MEM.TRACK fails", TD_TRACK, "1",
		  TD_OPERAND_INVALID | TD_OP_RCX, PAGES, PAGES },
		{ "TDH.MEM.TRACK stays busy", TD_TRACK, "every 1",
		  TD_OPERAND_BUSY | TD_OP_EPOCH, PAGES, PAGES },
		{ "TDH.MEM.PAGE.REMOVE fails", TD_PAGE_REMOVE, "2",
		  TD_ENTRY_STATE | TD_OP_RCX, 1, 1 },
		{ "TDH.MEM.PAGE.REMOVE stays busy", TD_PAGE_REMOVE, "every 1",
		  TD_OPERAND_BUSY | TD_OP_SEPT_TREE, PAGES, PAGES },
		/* Removed already: nothing is there that could be reclaimed. */
		{ "TDH.PHYMEM.PAGE.WBINVD fails", TD_PAGE_WBINVD, "8",
		  TD_OPERAND_INVALID | TD_OP_RCX, 1, 0 },
		/* As after a machine check in the memory of the TD. */
		{ "TDH.MEM.RANGE.BLOCK finds the TD ended", TD_RANGE_BLOCK, "every 1",
		  TD_FATAL, PAGES, PAGES, true },
		{ "TDH.MEM.PAGE.REMOVE finds the TD ended", TD_PAGE_REMOVE, "every 1",
		  TD_FATAL, PAGES, PAGES, true },
	};
	unsigned int i;

	REQUIRE(NEEDS_EMULATOR | NEEDS_MIRROR | NEEDS_KLOG);
	for (i = 0; i < ARRAY_SIZE(zaps); i++)
		zap_that_breaks(_metadata, &self->td, &self->other, &self->before,
				&zaps[i]);
}

/* Shows: R26. */
TEST_F(failures, a_zap_survives_busy_once)
{
	static const enum td_leaf leaf[] = { TD_RANGE_BLOCK, TD_TRACK, TD_PAGE_REMOVE };
	static const __u64 operand[] = { TD_OP_SEPT_TREE, TD_OP_EPOCH, TD_OP_RCX };
	const struct td_config config = {};
	struct td *td = &self->td;
	struct td_vcpu *vcpu = &td->vcpu[0];
	unsigned int i;

	REQUIRE(NEEDS_EMULATOR);
	ASSERT_TD_OK(td, td_build(td, &config));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_VERIFY_ZERO, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 1);
	for (i = 0; i < ARRAY_SIZE(leaf); i++) {
		ASSERT_TD_OK(td, td_ops_run(vcpu));
		ASSERT_EQ(0, td_fail(leaf[i], "1", TD_OPERAND_BUSY | operand[i]));
		ASSERT_TD_OK(td, td_punch_hole(td, 0, 0, PAGES * TD_PAGE));
	}
	ASSERT_TD_OK(td, td_ops_run(vcpu));
}

/* Shows: R9, R11, B22. */
TEST_F(failures, a_table_cannot_be_reclaimed)
{
	static const __u64 status[] = {
		TD_PAGE_METADATA | TD_OP_RCX, TD_OPERAND_BUSY | TD_OP_TDR,
	};
	const struct td_config config = {};
	struct td *td = &self->td;
	struct td_calls start, built, last;
	struct td_counters now;
	__u64 pages;
	unsigned int i;
	char when[8];

	REQUIRE(NEEDS_EMULATOR | NEEDS_MIRROR | NEEDS_KLOG);
	for (i = 0; i < ARRAY_SIZE(status); i++) {
		td_calls_read(&start);
		ASSERT_TD_OK(td, td_build(td, &config));
		ASSERT_TD_OK(td, td_prefault(&td->vcpu[0], TD_RAM_GPA,
					     PAGES * TD_PAGE, NULL));
		td_calls_read(&built);
		td_counters_read(&now);
		pages = now.emu_pages - self->before.emu_pages;

		/* The vCPU's pages come first, then the tables, children first. */
		snprintf(when, sizeof(when), "%llu",
			 built.leaf[TD_VP_CREATE] - start.leaf[TD_VP_CREATE] +
			 built.leaf[TD_VP_ADDCX] - start.leaf[TD_VP_ADDCX] + 1);
		ASSERT_EQ(0, td_klog_begin("a table of the S-EPT cannot be reclaimed"));
		ASSERT_EQ(0, td_fail(TD_PAGE_RECLAIM, when, status[i]));
		/* The TDR has a child for ever, so it is lost as well. */
		td_on_purpose(&self->before, (struct td_purpose) {
			.leaked = 1, .owned = 2,
		});
		td_destroy(td);
		td_reset(td);
		EXPECT_EQ(1, td_klog_count("page leaked"));
		EXPECT_LT(0, td_klog_end());
		td_calls_read(&last);
		/* One call for each page but the data, and none twice. */
		EXPECT_EQ(pages - PAGES - TD_IMAGE_SIZE / TD_PAGE,
			  last.leaf[TD_PAGE_RECLAIM] - built.leaf[TD_PAGE_RECLAIM]);
	}
	ASSERT_TD_OK(td, next_td_works(td));
}

/* Shows: R41, B22. */
TEST_F(failures, a_page_in_quarantine_cannot_be_reclaimed)
{
	const struct td_config config = {};
	struct td *td = &self->td;
	struct td_calls start, built;
	bool found;
	char when[8];

	REQUIRE(NEEDS_EMULATOR | NEEDS_MIRROR | NEEDS_KLOG);
	td_calls_read(&start);
	ASSERT_TD_OK(td, td_build(td, &config));
	ASSERT_TD_OK(td, td_prefault(&td->vcpu[0], TD_RAM_GPA, PAGES * TD_PAGE, NULL));
	td_calls_read(&built);
	ASSERT_EQ(0, td_klog_begin("a page cannot be removed, nor reclaimed later"));
	ASSERT_EQ(0, td_fail(TD_PAGE_REMOVE, "1", TD_ENTRY_STATE | TD_OP_RCX));
	ASSERT_TD_OK(td, td_punch_hole(td, 0, 0, PAGES * TD_PAGE));
	/* What its table holds is reclaimed before the table. */
	snprintf(when, sizeof(when), "%llu",
		 built.leaf[TD_VP_CREATE] - start.leaf[TD_VP_CREATE] +
		 built.leaf[TD_VP_ADDCX] - start.leaf[TD_VP_ADDCX] + 1);
	ASSERT_EQ(0, td_fail(TD_PAGE_RECLAIM, when, TD_OPERAND_INVALID | TD_OP_RCX));
	td_on_purpose(&self->before, (struct td_purpose) {
		.not_removed = 1, .not_zapped = 1, .quarantined = 1,
		.leaked = 1, .owned = 2,
	});
	td_destroy(td);
	td_reset(td);
	EXPECT_EQ(1, td_klog_count("page leaked"));
	EXPECT_LT(0, td_klog_end());
	EXPECT_EQ(self->before.resolved, td_counter(TD_MIRROR_STATS, "resolved", &found));
	ASSERT_TD_OK(td, next_td_works(td));
}

/* Shows: B33. */
TEST_F(failures, tables_go_after_the_key)
{
	const struct td_config config = {};
	struct td *td = &self->td;
	__u64 first, last, freeid, tables;
	struct td_calls before, after;

	/* The trace has the order, the TDX module refuses a parent before its child. */
	REQUIRE(NEEDS_EMULATOR | NEEDS_TRACER);
	ASSERT_TD_OK(td, td_build(td, &config));
	ASSERT_TD_OK(td, td_prefault(&td->vcpu[0], TD_RAM_GPA, 1024 * TD_PAGE, NULL));
	ASSERT_EQ(0, td_trace_start("tdh_phymem_page_reclaim tdh_mng_key_freeid"));
	td_calls_read(&before);
	td_destroy(td);
	td_calls_read(&after);
	EXPECT_EQ(1, td_trace_count("tdh_mng_key_freeid"));
	td_trace_order("tdh_mng_key_freeid", &freeid, &last);
	td_trace_order("tdh_phymem_page_reclaim", &first, &last);
	EXPECT_LT(freeid, first);
	tables = last - first + 1;
	EXPECT_EQ(tables, after.leaf[TD_PAGE_RECLAIM] - before.leaf[TD_PAGE_RECLAIM]);
	td_trace_stop();
	td_reset(td);
}

TEST_HARNESS_MAIN
