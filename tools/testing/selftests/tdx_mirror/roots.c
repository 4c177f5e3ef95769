// SPDX-License-Identifier: GPL-2.0
/*
 * A TD has two page tables: the mirror's with its private memory, KVM's own
 * with what it shares.  Each operation of the VMM reaches the right one.
 */
#include <errno.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "test.h"

#define PAGES		16ull
#define SHARED_GPA	(TD_RAM_GPA + PAGES * TD_PAGE)
#define OTHER_GPA	(TD_RAM_GPA + (4 << 20))

TD_FIXTURE(roots);

static int set_region(struct td *td, __u32 id, __u64 gpa, __u64 size, __u32 flags)
{
	struct td_slot *slot = &td->slot[id];
	struct kvm_userspace_memory_region2 region = {
		.slot = id,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (unsigned long)slot->shared,
		.flags = flags | (slot->gmem >= 0 ? KVM_MEM_GUEST_MEMFD : 0),
		.guest_memfd = slot->gmem >= 0 ? slot->gmem : 0,
	};

	return ioctl(td->vm_fd, KVM_SET_USER_MEMORY_REGION2, &region) ? -errno : 0;
}

static int new_roots(struct td *td)
{
	int ret = td_replace_roots();

	return ret ? ret : td_replace_roots();
}

static int drop_the_shared_pages(struct td *td)
{
	/* What the VMM unmaps leaves KVM's own table by its MMU notifier. */
	void *at = (char *)td->slot[0].shared + PAGES * TD_PAGE;

	return mmap(at, PAGES * TD_PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at ? 0 : -errno;
}

static int add_and_delete_a_slot(struct td *td)
{
	int ret = td_add_slot(td, 4, OTHER_GPA, 1 << 20, true);

	if (!ret)
		ret = td_prefault(&td->vcpu[0], OTHER_GPA, 4 * TD_PAGE, NULL);
	return ret ? ret : td_delete_slot(td, 4);
}

static int add_and_delete_a_shared_slot(struct td *td)
{
	int ret = td_add_slot(td, 4, OTHER_GPA, 1 << 20, false);

	return ret ? ret : td_delete_slot(td, 4);
}

static int log_dirty_pages_of_the_shared_slot(struct td *td)
{
	int ret = set_region(td, 3, TD_WORDS_GPA, TD_PAGE, KVM_MEM_LOG_DIRTY_PAGES);

	return ret ? ret : set_region(td, 3, TD_WORDS_GPA, TD_PAGE, 0);
}

static int log_dirty_pages_of_the_private_slot(struct td *td)
{
	int ret = set_region(td, 0, TD_RAM_GPA, 4 << 20, KVM_MEM_LOG_DIRTY_PAGES);

	/* Neither logged nor changed. */
	return ret == -EINVAL ? 0 : -EPROTO;
}

static int move_the_private_slot(struct td *td)
{
	int ret = set_region(td, 0, OTHER_GPA, 4 << 20, 0);

	return ret == -EINVAL ? 0 : -EPROTO;
}

static int private_again(struct td *td)
{
	return td_set_private(td, TD_RAM_GPA, PAGES * TD_PAGE, true);
}

static int shared_again(struct td *td)
{
	return td_set_private(td, SHARED_GPA, PAGES * TD_PAGE, false);
}

static int punch_where_it_is_shared(struct td *td)
{
	return td_punch_hole(td, 0, PAGES * TD_PAGE, PAGES * TD_PAGE);
}

static int prefault_what_is_there(struct td *td)
{
	return td_prefault(&td->vcpu[0], TD_RAM_GPA, PAGES * TD_PAGE, NULL);
}

static int punch_one_private_page(struct td *td)
{
	return td_punch_hole(td, 0, 0, TD_PAGE);
}

static int share_one_private_page(struct td *td)
{
	int ret = td_set_private(td, TD_RAM_GPA, TD_PAGE, false);

	return ret ? ret : td_set_private(td, TD_RAM_GPA, TD_PAGE, true);
}

static const struct operation {
	const char *name;
	int (*run)(struct td *td);
	__u64 removed;		/* leaves of the mirror, the first ones */
	bool zeroes_shared;	/* the shared pages' data go, by the VMM's wish */
	bool needs_roots;
	__u64 mapped_besides;	/* leaves that come and go meanwhile */
} operations[] = {
	{ "all roots replaced", new_roots, .needs_roots = true },
	{ "shared pages dropped", drop_the_shared_pages, .zeroes_shared = true },
	{ "another slot", add_and_delete_a_slot, .mapped_besides = 4 },
	{ "another shared slot", add_and_delete_a_shared_slot },
	{ "dirty log of a shared slot", log_dirty_pages_of_the_shared_slot },
	{ "dirty log of a private slot", log_dirty_pages_of_the_private_slot },
	{ "private slot moved", move_the_private_slot },
	{ "private made private", private_again },
	{ "shared made shared", shared_again },
	{ "hole where it is shared", punch_where_it_is_shared },
	{ "prefault of what is there", prefault_what_is_there },
	{ "hole of one page", punch_one_private_page, .removed = 1 },
	{ "one page shared", share_one_private_page, .removed = 1 },
};

/* Shows: R12, B19. */
TEST_F_TIMEOUT(roots, each_operation_and_both_roots, 60)
{
	const struct td_config config = {};
	struct td *td = &self->td;
	struct td_vcpu *vcpu = &td->vcpu[0];
	unsigned int i;

	ASSERT_TD_OK(td, td_build(td, &config));
	ASSERT_TD_OK(td, shared_again(td));
	for (i = 0; i < ARRAY_SIZE(operations); i++) {
		const struct operation *op = &operations[i];
		struct td_counters before, after;
		__u64 kept = PAGES - op->removed;

		if (op->needs_roots && td_needs(NEEDS_NEW_ROOTS)) {
			TH_LOG("left out: %s: %s", op->name, td_needs(NEEDS_NEW_ROOTS));
			continue;
		}
		td_ops_clear(vcpu);
		td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
		td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, i);
		td_op(vcpu, GUEST_STORE, SHARED_GPA | TD_SHARED_BIT, PAGES, i);
		ASSERT_TD_OK(td, td_ops_run(vcpu));
		td_counters_read(&before);
		EXPECT_EQ(0, op->run(td)) TH_LOG("%s: %s", op->name, td_error(td));
		td_counters_read(&after);
		if (after.has_emu)
			EXPECT_EQ(op->removed + op->mapped_besides,
				  after.emu_removed - before.emu_removed)
				TH_LOG("%s", op->name);
		/* Both halves are what they were, as the guest sees them. */
		td_ops_clear(vcpu);
		td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA + op->removed * TD_PAGE, kept, i);
		if (op->zeroes_shared)
			td_op(vcpu, GUEST_VERIFY_ZERO, SHARED_GPA | TD_SHARED_BIT, PAGES, 0);
		else
			td_op(vcpu, GUEST_VERIFY, SHARED_GPA | TD_SHARED_BIT, PAGES, i);
		EXPECT_EQ(0, td_ops_run(vcpu)) TH_LOG("%s: %s", op->name, td_error(td));
		td_counters_read(&before);
		if (after.has_emu)
			EXPECT_EQ(before.emu_present, after.emu_present)
				TH_LOG("%s", op->name);
	}
}

/* Shows: B19. */
TEST_F(roots, roots_replaced_while_the_guest_runs)
{
	const struct td_config config = { .nr_vcpus = 2 };
	struct td *td = &self->td;
	struct td_vcpu *vcpu = &td->vcpu[0];
	struct td_counters before, after;
	int turn;

	/* vCPUs load the new root of the shared half and keep the mirror's. */
	REQUIRE(NEEDS_NEW_ROOTS);
	ASSERT_TD_OK(td, td_build(td, &config));
	td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	td_op(vcpu, GUEST_STORE, TD_RAM_GPA, PAGES, 1);
	td_op(vcpu, GUEST_LOOP, 0, 0, 0);
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, PAGES, 1);
	ASSERT_EQ(0, td_vcpu_start(vcpu));
	while (!__atomic_load_n(&vcpu->block->heartbeat, __ATOMIC_SEQ_CST))
		sched_yield();
	td_counters_read(&before);
	for (turn = 0; turn < 8; turn++) {
		ASSERT_EQ(0, td_replace_roots());
		ASSERT_TD_OK(td, td_prefault(&td->vcpu[1], TD_RAM_GPA + 64 * TD_PAGE,
					     4 * TD_PAGE, NULL));
		ASSERT_TD_OK(td, td_punch_hole(td, 0, 64 * TD_PAGE, 4 * TD_PAGE));
	}
	td_counters_read(&after);
	if (after.has_emu)
		EXPECT_EQ(8 * 4, after.emu_removed - before.emu_removed);
	td_vcpu_stop(vcpu);
	ASSERT_TD_OK(td, td_ops_join(vcpu));
}

/* Shows: B20. */
TEST_F(roots, one_gfn_by_both_of_its_names)
{
	const struct td_config config = { .nr_vcpus = 2 };
	struct td *td = &self->td;
	struct td_vcpu *private = &td->vcpu[0], *shared = &td->vcpu[1];
	struct td_counters before, after;
	int turn;

	ASSERT_TD_OK(td, td_build(td, &config));
	td_op(private, GUEST_ACCEPT, TD_RAM_GPA, 1, 0);
	td_op(private, GUEST_STORE, TD_RAM_GPA, 1, 1);
	td_op(shared, GUEST_STORE, TD_RAM_GPA | TD_SHARED_BIT, 1, 2);
	td_counters_read(&before);
	ASSERT_TD_OK(td, td_ops_run(private));
	/* With the shared bit it is the same GFN, which is private: refused. */
	for (turn = 0; turn < 2; turn++) {
		ASSERT_EQ(TD_EXIT_MEMORY_FAULT, td_vcpu_run(shared));
		EXPECT_EQ(TD_RAM_GPA, shared->fault_gpa);
		EXPECT_FALSE(shared->fault_private);
	}
	EXPECT_EQ(-EINVAL, td_prefault_once(shared, TD_RAM_GPA | TD_SHARED_BIT, TD_PAGE));
	EXPECT_EQ(-EINVAL, td_add_slot(td, 4, TD_RAM_GPA | TD_SHARED_BIT, TD_PAGE, true));
	td_counters_read(&after);
	if (after.has_emu)
		EXPECT_EQ(1, after.emu_present - before.emu_present);
	/* The other way round; the one private leaf makes room. */
	ASSERT_TD_OK(td, td_set_private(td, TD_RAM_GPA, TD_PAGE, false));
	ASSERT_TD_OK(td, td_ops_run(shared));
	ASSERT_EQ(TD_EXIT_MEMORY_FAULT, td_vcpu_run(private));
	EXPECT_EQ(TD_RAM_GPA, private->fault_gpa);
	EXPECT_TRUE(private->fault_private);
	td_counters_read(&after);
	if (after.has_emu) {
		EXPECT_EQ(1, after.emu_present - before.emu_present);
		EXPECT_EQ(1, after.emu_removed - before.emu_removed);
	}
}

/* Shows: B20. */
TEST_F(roots, both_names_at_the_same_time)
{
	const struct td_config config = { .nr_vcpus = 2 };
	struct td *td = &self->td;
	struct td_counters before, after;
	enum td_exit exit;
	int turn;

	/* One vCPU each: exactly one of them gets the page. */
	ASSERT_TD_OK(td, td_build(td, &config));
	for (turn = 0; turn < 8; turn++) {
		const __u64 gpa = TD_RAM_GPA + turn * TD_PAGE;
		const __u64 word = td_word_gpa(turn);
		int i;

		*td_word(td, turn) = 0;
		for (i = 0; i < 2; i++) {
			td_ops_clear(&td->vcpu[i]);
			td_op(&td->vcpu[i], GUEST_BARRIER, word, 2, 0);
		}
		td_op(&td->vcpu[0], GUEST_ACCEPT, gpa, 1, 0);
		td_op(&td->vcpu[1], GUEST_STORE, gpa | TD_SHARED_BIT, 1, turn);
		ASSERT_TD_OK(td, td_set_private(td, gpa, TD_PAGE, turn & 1));
		td_counters_read(&before);
		for (i = 0; i < 2; i++)
			ASSERT_EQ(0, td_vcpu_start(&td->vcpu[i]));
		for (i = 0; i < 2; i++) {
			exit = td_vcpu_join(&td->vcpu[i]);
			EXPECT_EQ((turn & 1) == !i ? TD_EXIT_DONE : TD_EXIT_MEMORY_FAULT,
				  exit);
		}
		td_counters_read(&after);
		if (after.has_emu)
			EXPECT_EQ(turn & 1, after.emu_present - before.emu_present);
		/* Whoever was refused goes on before the next turn. */
		ASSERT_TD_OK(td, td_set_private(td, gpa, TD_PAGE, !(turn & 1)));
		ASSERT_TD_OK(td, td_ops_run(&td->vcpu[turn & 1]));
	}
}

TEST_HARNESS_MAIN
