// SPDX-License-Identifier: GPL-2.0
/*
 * Faults that cannot be served for a long time, because an entry of the S-EPT
 * stays busy: whoever waits for the faulting thread gets its turn, the thread
 * itself can be stopped, and the guest is not entered too often in vain.
 */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

#define SLOT_GPA	(TD_RAM_GPA + (4 << 20))
#define ROUNDS		4
#define BUSY		400

/* VP.ENTERs at one RIP that the mirror allows: one fewer than the threshold. */
#define MAX_ENTERS	5

/* Each PAGE.AUG finds the entry busy from now on. */
#define AUG_STAYS_BUSY	\
	td_fail(TD_PAGE_AUG, "every 1", TD_OPERAND_BUSY | TD_OP_RCX)

TD_FIXTURE(fault_retry);

struct prefaulter {
	struct td_vcpu *vcpu;
	__u64 gpa;
	atomic_bool stop;
	atomic_uint calls;
	int unexpected;
};

/* Pre-faults one page again and again and notes what nobody documents. */
static void *prefault_thread(void *arg)
{
	struct prefaulter *p = arg;

	while (!atomic_load(&p->stop)) {
		int ret = td_prefault_once(p->vcpu, p->gpa, TD_PAGE);

		/* Busy or being deleted, no slot, no slot with guest_memfd. */
		if (ret && ret != -EAGAIN && ret != -EINTR && ret != -ENOENT &&
		    ret != -EFAULT)
			p->unexpected = ret;
		atomic_fetch_add(&p->calls, 1);
	}
	return NULL;
}

/* Shows: B3. */
TEST_F(fault_retry, prefault_ends_when_the_slot_goes)
{
	const struct td_config config = {};
	struct prefaulter p = { .vcpu = &self->td.vcpu[0], .gpa = SLOT_GPA };
	struct td_calls before;
	pthread_t thread;
	int round;

	REQUIRE(NEEDS_EMULATOR);
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	for (round = 0; round < ROUNDS; round++) {
		ASSERT_TD_OK(&self->td, td_add_slot(&self->td, 4, SLOT_GPA, 1 << 20, true));
		td_calls_read(&before);
		ASSERT_EQ(0, AUG_STAYS_BUSY);
		atomic_store(&p.stop, false);
		ASSERT_EQ(0, pthread_create(&thread, NULL, prefault_thread, &p));
		EXPECT_TRUE(td_wait_busy(&before, 3));
		/* The deletion waits for whoever uses the slot. */
		ASSERT_TD_OK(&self->td, td_delete_slot(&self->td, 4));
		/*
		 * A slot that is added waits as well, for a prefault that sees
		 * it at once, and KVM's own mirror has no bound for that one.
		 */
		td_inject_clear();
		atomic_store(&p.stop, true);
		pthread_join(thread, NULL);
	}
	EXPECT_EQ(0, p.unexpected);
	EXPECT_LE(ROUNDS, atomic_load(&p.calls));
	ASSERT_TD_OK(&self->td, td_add_slot(&self->td, 4, SLOT_GPA, 1 << 20, true));
	ASSERT_TD_OK(&self->td, td_prefault(p.vcpu, SLOT_GPA, TD_PAGE, NULL));
}

/* Shows: B4. */
TEST_F(fault_retry, fault_ends_when_the_slot_goes)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	struct td_calls before;
	int round;

	REQUIRE(NEEDS_EMULATOR);
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_op(vcpu, GUEST_ACCEPT, SLOT_GPA, 1, 0);
	for (round = 0; round < ROUNDS; round++) {
		ASSERT_TD_OK(&self->td, td_add_slot(&self->td, 4, SLOT_GPA, 1 << 20, true));
		td_calls_read(&before);
		ASSERT_EQ(0, AUG_STAYS_BUSY);
		ASSERT_EQ(0, td_vcpu_start(vcpu));
		EXPECT_TRUE(td_wait_busy(&before, 3));
		ASSERT_TD_OK(&self->td, td_delete_slot(&self->td, 4));
		/* The entry is still busy, but there is nothing to map any more. */
		EXPECT_EQ(TD_EXIT_MEMORY_FAULT, td_vcpu_join(vcpu));
		EXPECT_EQ(SLOT_GPA, vcpu->fault_gpa);
		td_inject_clear();
	}
	ASSERT_TD_OK(&self->td, td_add_slot(&self->td, 4, SLOT_GPA, 1 << 20, true));
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
}

/* Shows: B5. */
TEST_F(fault_retry, prefault_ends_while_roots_go)
{
	const struct td_config config = {};
	struct prefaulter p = { .vcpu = &self->td.vcpu[0], .gpa = TD_RAM_GPA };
	struct td_counters mapped, after;
	struct td_calls before;
	unsigned int calls;
	pthread_t thread;
	int round;

	REQUIRE(NEEDS_EMULATOR | NEEDS_MIRROR | NEEDS_NEW_ROOTS);
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_TD_OK(&self->td, td_prefault(p.vcpu, TD_RAM_GPA + (1 << 20),
					    8 * TD_PAGE, NULL));
	td_counters_read(&mapped);
	ASSERT_EQ(0, AUG_STAYS_BUSY);
	ASSERT_EQ(0, pthread_create(&thread, NULL, prefault_thread, &p));
	for (round = 0; round < 2 * ROUNDS; round++) {
		td_calls_read(&before);
		EXPECT_TRUE(td_wait_busy(&before, 3));
		calls = atomic_load(&p.calls);
		ASSERT_EQ(0, td_replace_roots());
		/* The call that began with the old root goes on, within its bound. */
		while (atomic_load(&p.calls) == calls)
			sched_yield();
	}
	td_inject_clear();
	/* The other roots go, the mirror's leaves stay: nobody asked for them. */
	for (round = 0; round < 2 * ROUNDS; round++)
		ASSERT_EQ(0, td_replace_roots());
	atomic_store(&p.stop, true);
	pthread_join(thread, NULL);
	EXPECT_EQ(0, p.unexpected);
	td_counters_read(&after);
	EXPECT_EQ(mapped.emu_removed, after.emu_removed);
	ASSERT_TD_OK(&self->td, td_prefault(p.vcpu, TD_RAM_GPA, TD_PAGE, NULL));
}

/* Pre-faults one page until that succeeds or has to be asked for again. */
static void *prefault_once_thread(void *arg)
{
	struct prefaulter *p = arg;

	p->unexpected = td_prefault_once(p->vcpu, p->gpa, TD_PAGE);
	return NULL;
}

/* Shows: B5. */
TEST_F(fault_retry, prefault_goes_on_with_the_new_root)
{
	const struct td_config config = {};
	struct td_calls before;
	pthread_t thread;
	int round;

	/* Whoever owns the mirror: one call sees the root go and succeeds. */
	REQUIRE(NEEDS_EMULATOR | NEEDS_NEW_ROOTS);
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_TD_OK(&self->td, td_prefault(&self->td.vcpu[0], TD_RAM_GPA + (1 << 20),
					    TD_PAGE, NULL));
	for (round = 0; round < ROUNDS; round++) {
		struct prefaulter p = {
			.vcpu = &self->td.vcpu[0],
			.gpa = TD_RAM_GPA + round * TD_PAGE,
		};

		td_calls_read(&before);
		/* Fewer busy answers than one call has tries: contention never ends it. */
		ASSERT_EQ(0, td_inject("hold entry %llx 0 guest busy=%d\n",
				       (unsigned long long)p.gpa, BUSY));
		ASSERT_EQ(0, pthread_create(&thread, NULL, prefault_once_thread, &p));
		EXPECT_TRUE(td_wait_busy(&before, 3));
		ASSERT_EQ(0, td_replace_roots());
		pthread_join(thread, NULL);
		td_inject_clear();
		EXPECT_EQ(0, p.unexpected);
	}
}

/* Shows: B5. */
TEST_F(fault_retry, fault_goes_on_with_the_new_root)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	struct td_calls before;
	int round;

	/* The same for a guest without any event that would end its fault. */
	REQUIRE(NEEDS_EMULATOR | NEEDS_NEW_ROOTS);
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	for (round = 0; round < ROUNDS; round++) {
		td_ops_clear(vcpu);
		td_op(vcpu, GUEST_ACCEPT, TD_RAM_GPA + round * TD_PAGE, 1, 0);
		td_calls_read(&before);
		ASSERT_EQ(0, AUG_STAYS_BUSY);
		ASSERT_EQ(0, td_vcpu_start(vcpu));
		EXPECT_TRUE(td_wait_busy(&before, 3));
		ASSERT_EQ(0, td_replace_roots());
		td_inject_clear();
		ASSERT_TD_OK(&self->td, td_ops_join(vcpu));
		EXPECT_EQ(1, vcpu->block->ops[0].res[0]);
	}
}

/*
 * A TD whose guest has run and is about to accept @gpa, or to touch it, if
 * @touch.  The entry of the S-EPT stays busy.
 */
static int build_stuck(struct td *td, __u64 gpa, bool touch)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &td->vcpu[0];
	int ret = td_build(td, &config);

	if (!ret)
		ret = td_ops_run(vcpu);
	/* The table is there: what fails is the leaf alone. */
	if (!ret)
		ret = td_prefault(vcpu, gpa + TD_PAGE, TD_PAGE, NULL);
	if (ret)
		return ret;
	if (touch)
		td_op(vcpu, GUEST_TOUCH, gpa, 1, 0)->flags = GUEST_FLAG_WRITE;
	else
		td_op(vcpu, GUEST_ACCEPT, gpa, 1, 0);
	td_op(vcpu, GUEST_STORE, gpa, 1, 3);
	td_op(vcpu, GUEST_VERIFY, gpa, 1, 3);
	return AUG_STAYS_BUSY;
}

static void enter_in_vain(struct __test_metadata *_metadata, struct td *td,
			  bool touch)
{
	struct td_vcpu *vcpu = &td->vcpu[0];
	struct td_calls before, first, last;
	struct td_counters full, empty;
	__u64 held;
	bool found;
	int run;

	ASSERT_TD_OK(td, build_stuck(td, TD_RAM_GPA, touch));
	held = td_counter(TD_MIRROR_STATS, "held", &found);
	td_calls_read(&before);
	td_counters_read(&full);
	ASSERT_EQ(0, td_exits_start());
	/* Each KVM_RUN returns, though nothing stops it from outside. */
	EXPECT_EQ(-EAGAIN, td_vcpu_enter(vcpu));
	td_calls_read(&first);
	/* An interrupt may come in between; that is no fault. */
	EXPECT_EQ(MAX_ENTERS, td_ept_violations());
	EXPECT_LE(MAX_ENTERS, first.leaf[TD_VP_ENTER] - before.leaf[TD_VP_ENTER]);
	EXPECT_LT(MAX_ENTERS, first.leaf[TD_PAGE_AUG] - before.leaf[TD_PAGE_AUG]);
	EXPECT_EQ(held + 1, td_counter(TD_MIRROR_STATS, "held", &found));
	for (run = 0; run < 3; run++)
		EXPECT_EQ(-EAGAIN, td_vcpu_enter(vcpu));
	td_calls_read(&last);
	/* Held: the fault is tried again, the guest is not entered. */
	EXPECT_EQ(0, last.leaf[TD_VP_ENTER] - first.leaf[TD_VP_ENTER]);
	EXPECT_EQ(MAX_ENTERS, td_ept_violations());
	EXPECT_LT(3, last.leaf[TD_PAGE_AUG] - first.leaf[TD_PAGE_AUG]);
	td_counters_read(&empty);
	EXPECT_EQ(full.emu_present, empty.emu_present);
	/* The TDX module never had reason to suspect single steps. */
	EXPECT_EQ(0, td_counter(TD_MIRROR_STATS, "vp_enter_busy", &found));
	td_inject_clear();
	EXPECT_TD_OK(td, td_ops_run(vcpu));
}

/* Shows: R8, R13, R16, B32. */
TEST_F(fault_retry, five_entries_at_one_accept)
{
	REQUIRE(NEEDS_EMULATOR | NEEDS_MIRROR | NEEDS_EXITS);
	enter_in_vain(_metadata, &self->td, false);
}

/* Shows: R8, R13, R16, B32. */
TEST_F(fault_retry, five_entries_at_one_store)
{
	REQUIRE(NEEDS_EMULATOR | NEEDS_MIRROR | NEEDS_EXITS);
	enter_in_vain(_metadata, &self->td, true);
}

/* Pages that are converted meanwhile, each of which takes its time, and events. */
#define CONVERTED	64ull
#define EVENTS		16

struct puncher {
	struct td *td;
	int ret;
};

static void *punch_thread(void *arg)
{
	struct puncher *p = arg;

	p->ret = td_punch_hole(p->td, 0, 0, CONVERTED * TD_PAGE);
	return NULL;
}

/* Until there were @n calls of @leaf since @before. */
static bool wait_calls(const struct td_calls *before, enum td_leaf leaf, __u64 n)
{
	int i;

	for (i = 0; i < 2000 && td_calls_since(before, leaf) < n; i++)
		usleep(1000);
	return td_calls_since(before, leaf) >= n;
}

/*
 * KVM merges the ranges of all invalidations that are under way.  A guest that
 * faults in between gets its interrupts all the same, one entry for each.
 */
/* Shows: R13, R16, B24. */
TEST_F(fault_retry, events_enter_while_memory_around_is_converted)
{
	const __u64 gpa = TD_RAM_GPA + (2 << 20), above = 3 << 20;
	const struct td_config config = {};
	struct puncher p = { .td = &self->td };
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	struct td_calls before, entered;
	pthread_t thread;
	int n;

	REQUIRE(NEEDS_EMULATOR);
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	/* KVM delivers nothing before the guest has enabled its APIC (SVR). */
	td_op(vcpu, GUEST_WRMSR, 0x80f, 0, 0x1ff)->flags = GUEST_FLAG_VMCALL;
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	td_ops_clear(vcpu);
	ASSERT_TD_OK(&self->td, td_prefault(vcpu, TD_RAM_GPA, CONVERTED * TD_PAGE, NULL));
	td_op(vcpu, GUEST_ACCEPT, gpa, 1, 0);
	td_op(vcpu, GUEST_VERIFY_ZERO, gpa, 1, 0);

	td_calls_read(&before);
	ASSERT_EQ(0, td_inject("delay %d every 1 50000us\n", TD_RANGE_BLOCK));
	ASSERT_EQ(0, pthread_create(&thread, NULL, punch_thread, &p));
	EXPECT_TRUE(wait_calls(&before, TD_RANGE_BLOCK, 1));
	/* Shared memory on the other side of the page is invalidated for a moment. */
	ASSERT_EQ(0, madvise(self->td.slot[0].shared + above, TD_PAGE, MADV_DONTNEED));
	td_calls_read(&entered);
	ASSERT_EQ(0, td_vcpu_start(vcpu));
	EXPECT_TRUE(wait_calls(&entered, TD_VP_ENTER, 1));
	for (n = 0; n < EVENTS; n++) {
		struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x40 + n };

		td_calls_read(&entered);
		ASSERT_LT(0, ioctl(self->td.vm_fd, KVM_SIGNAL_MSI, &msi));
		if (!wait_calls(&entered, TD_VP_ENTER, 1))
			break;
	}
	EXPECT_EQ(EVENTS, n);
	/* All of that while the conversion was under way. */
	EXPECT_GT(CONVERTED, td_calls_since(&before, TD_PAGE_REMOVE));
	EXPECT_EQ(0, td_calls_since(&before, TD_PAGE_AUG));
	td_inject_clear();
	pthread_join(thread, NULL);
	EXPECT_EQ(0, p.ret);
	ASSERT_TD_OK(&self->td, td_ops_join(vcpu));
	EXPECT_EQ(1, vcpu->block->ops[0].res[0]);
}

/* Shows: R13. */
TEST_F(fault_retry, a_signal_ends_it)
{
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	struct td_calls before;

	REQUIRE(NEEDS_EMULATOR);
	ASSERT_TD_OK(&self->td, build_stuck(&self->td, TD_RAM_GPA, false));
	td_calls_read(&before);
	ASSERT_EQ(0, td_vcpu_start(vcpu));
	EXPECT_TRUE(td_wait_busy(&before, 10));
	td_vcpu_cancel(vcpu);
	EXPECT_EQ(TD_EXIT_CANCELLED, td_vcpu_join(vcpu));
	td_inject_clear();
	/* The guest goes on where it was. */
	vcpu->cancel = false;
	vcpu->block->stop = 0;
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	EXPECT_EQ(1, vcpu->block->ops[0].res[0]);
}

/* Shows: R13. */
TEST_F(fault_retry, a_kill_ends_it)
{
	struct td_calls before;
	char text[1024];
	int status;
	pid_t pid;

	REQUIRE(NEEDS_EMULATOR);
	td_calls_read(&before);
	pid = fork();
	ASSERT_NE(-1, pid);
	if (!pid) {
		static struct td td;

		if (build_stuck(&td, TD_RAM_GPA, false))
			_exit(1);
		for (;;)
			td_vcpu_enter(&td.vcpu[0]);
	}
	EXPECT_TRUE(td_wait_busy(&before, 100));
	ASSERT_EQ(0, kill(pid, SIGKILL));
	/* The entry is busy until the process is gone. */
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	td_inject_clear();
	EXPECT_EQ(0, td_counters_check(&self->before, text, sizeof(text)))
		TH_LOG("%s", text);
}

/* Shows: R4, R15, B6. */
TEST_F(fault_retry, busy_for_a_while)
{
	static const unsigned int times[] = { 1, 4, 5, 6, 10, TD_FAIL_TIMES };
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	unsigned int i, k;

	/* Busy k times in a row: the guest does not notice. */
	REQUIRE(NEEDS_EMULATOR);
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	for (i = 0; i < ARRAY_SIZE(times); i++) {
		__u64 gpa = TD_RAM_GPA + i * TD_PAGE;
		struct td_calls before;

		td_ops_clear(vcpu);
		td_op(vcpu, GUEST_ACCEPT, gpa, 1, 0);
		td_op(vcpu, GUEST_VERIFY_ZERO, gpa, 1, 0);
		td_calls_read(&before);
		k = times[i];
		ASSERT_EQ(0, td_fail_times(TD_PAGE_AUG, k, TD_OPERAND_BUSY | TD_OP_RCX));
		ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
		EXPECT_EQ(k + 1, td_calls_since(&before, TD_PAGE_AUG));
		EXPECT_EQ(1, vcpu->block->ops[0].res[0]);
	}
}

/* Shows: R15, B6. */
TEST_F(fault_retry, no_mark_starves_the_guest)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	struct td_calls before, after;
	bool found;
	int turn;

	/*
	 * The entry's lock is really held, as by a guest in ACCEPT, so that each
	 * try leaves the mark that gives the host priority.  What is given up in
	 * vain must not keep the guest from its page once the lock is free.
	 */
	REQUIRE(NEEDS_EMULATOR | NEEDS_MIRROR);
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_TD_OK(&self->td, td_prefault(vcpu, TD_RAM_GPA + (1 << 20), TD_PAGE, NULL));
	for (turn = 0; turn < 4; turn++) {
		__u64 gpa = TD_RAM_GPA + turn * TD_PAGE;
		__u64 debts = td_counter(TD_MIRROR_STATS, "debts", &found);
		__u64 contended = td_counter(TD_MIRROR_STATS, "fault_retries_contended",
					     &found);

		td_calls_read(&before);
		ASSERT_EQ(0, td_inject("hold entry %llx 0 guest busy=%d\n", gpa,
				       8 << turn));
		EXPECT_EQ(0, td_prefault_once(vcpu, gpa, TD_PAGE));
		td_calls_read(&after);
		EXPECT_EQ(8 << turn, after.busy - before.busy);
		EXPECT_LT(debts, td_counter(TD_MIRROR_STATS, "debts", &found));
		/* KVM hands back why each of the maps asked for a retry. */
		EXPECT_LT(contended, td_counter(TD_MIRROR_STATS, "fault_retries_contended",
						&found));
		EXPECT_TRUE(found);
		EXPECT_EQ(td_counter(TD_MIRROR_STATS, "debts", &found),
			  td_counter(TD_MIRROR_STATS, "debts_paid", &found) +
			  td_counter(TD_MIRROR_STATS, "debts_lost", &found));
		td_inject_clear();
		td_ops_clear(vcpu);
		td_op(vcpu, GUEST_ACCEPT, gpa, 1, 0);
		td_op(vcpu, GUEST_VERIFY_ZERO, gpa, 1, 0);
		ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
		EXPECT_EQ(1, vcpu->block->ops[0].res[0]);
		EXPECT_EQ(0, vcpu->block->ops[0].res[2]);
	}
}

TEST_HARNESS_MAIN
