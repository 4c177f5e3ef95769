// SPDX-License-Identifier: GPL-2.0
/*
 * A guest that accepts, touches and converts at random, with nonsense among it, and
 * a VMM whose threads convert, punch holes and prefault in the same pages: the TD may
 * come to harm, the host may not.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <x86intrin.h>

#include "test.h"

#define PAGES		32ull
#define LIST		64	/* operations of a vCPU at a time */
#define PREFAULTS	16	/* after each such list */
#define MAX_THREADS	4
#define WINDOW_MS	300	/* in which the vCPUs do at least a list */
#define STUCK		10	/* windows, if no vCPU is shut out */
#define SIGNS		100	/* in a window: thousands, if a vCPU is shut out */
#define SHOWN		8192	/* steps: some seconds on an emulated machine */

TD_FIXTURE(hostile);

struct rng {
	__u64 state;
};

static __u64 below(struct rng *rng, __u64 n)
{
	rng->state = rng->state * 6364136223846793005ull + 1442695040888963407ull;
	return (rng->state >> 33) % n;
}

static __u64 some_page(struct rng *rng)
{
	return TD_RAM_GPA + below(rng, PAGES - 4) * TD_PAGE;
}

/* What no well-behaved guest asks for; the answer does not matter. */
static void nonsense(struct td_vcpu *vcpu, struct rng *rng)
{
	__u64 page = some_page(rng);

	switch (below(rng, 6)) {
	case 0:		/* levels, reserved bits */
		td_op(vcpu, GUEST_RAW_ACCEPT, page | below(rng, TD_PAGE), 0, 0);
		break;
	case 1:		/* the shared half */
		td_op(vcpu, GUEST_RAW_ACCEPT, page | TD_SHARED_BIT, 0, 0);
		break;
	case 2:		/* beyond the TD's address space */
		td_op(vcpu, GUEST_RAW_ACCEPT, page << 20, 0, 0);
		break;
	case 3:
		td_op(vcpu, GUEST_MAP_GPA, page + below(rng, TD_PAGE), below(rng, 1 << 20), 0);
		break;
	case 4:		/* wraps, or is not memory */
		td_op(vcpu, GUEST_MAP_GPA, ~0ull << below(rng, 52), TD_PAGE, 0);
		break;
	default:
		td_op(vcpu, GUEST_RAW_VMCALL, 0x20000 + below(rng, 1 << 16), page, ~page);
	}
}

static void some_op(struct td_vcpu *vcpu, struct rng *rng)
{
	__u64 page = some_page(rng), pages = 1 + below(rng, 4);

	switch (below(rng, 8)) {
	case 0:
	case 1:
		td_op(vcpu, GUEST_TOUCH, page, pages, 0)->flags = GUEST_FLAG_WRITE;
		break;
	case 2:
		td_op(vcpu, GUEST_ACCEPT, page, pages, 0);
		break;
	case 3:
		td_op(vcpu, GUEST_STORE, page, 1, 1);
		break;
	case 4:
		td_op(vcpu, GUEST_MAP_GPA, page | TD_SHARED_BIT, pages * TD_PAGE, 0);
		break;
	case 5:
		td_op(vcpu, GUEST_MAP_GPA, page, pages * TD_PAGE, 0);
		break;
	case 6:		/* of both names one is wrong, and the VMM finds out which */
		td_op(vcpu, GUEST_TOUCH, page | TD_SHARED_BIT, 1, 0);
		break;
	default:
		nonsense(vcpu, rng);
	}
}

/* What the threads share. */
struct storm {
	struct td *td;
	pthread_mutex_t turn;	/* of vCPUs that disagree about a page */
	bool stop;
	__u64 seed, steps;	/* of each vCPU */
	__u64 done, faults, changes;
	__u64 before, all;	/* in earlier TDs, and altogether */
	bool prefaults;		/* vCPUs do, between their lists */
	int failed;
};

struct worker {
	struct storm *storm;
	struct td_vcpu *vcpu;
	pthread_t thread;
	__u64 seed;
};

static void fail(struct storm *storm, int ret)
{
	__atomic_store_n(&storm->failed, ret ? ret : -EIO, __ATOMIC_SEQ_CST);
	__atomic_store_n(&storm->stop, true, __ATOMIC_SEQ_CST);
}

/* Runs lists until enough is done or the guest has brought itself down. */
static void *run_guest(void *arg)
{
	struct worker *worker = arg;
	struct storm *storm = worker->storm;
	struct td_vcpu *vcpu = worker->vcpu;
	struct rng rng = { worker->seed };
	__u64 done = 0, all;
	unsigned int i;

	while (done < storm->steps && !__atomic_load_n(&storm->stop, __ATOMIC_SEQ_CST)) {
		td_ops_clear(vcpu);
		for (i = 0; i < LIST; i++)
			some_op(vcpu, &rng);
		/*
		 * A private access to a shared page, or the other way round.  Until this
		 * vCPU has got further, no other one has the page its way.
		 */
		td_vcpu_run(vcpu);
		while (vcpu->exit == TD_EXIT_MEMORY_FAULT) {
			int ret;

			__atomic_add_fetch(&storm->faults, 1, __ATOMIC_SEQ_CST);
			if (__atomic_load_n(&storm->stop, __ATOMIC_SEQ_CST))
				return NULL;
			pthread_mutex_lock(&storm->turn);
			ret = td_set_private(storm->td, vcpu->fault_gpa & ~(TD_PAGE - 1),
					     TD_PAGE, vcpu->fault_private);
			if (!ret)
				td_vcpu_run(vcpu);
			pthread_mutex_unlock(&storm->turn);
			if (ret) {
				fail(storm, ret);
				return NULL;
			}
		}
		if (vcpu->exit == TD_EXIT_FATAL || vcpu->exit == TD_EXIT_SHUTDOWN ||
		    vcpu->exit == TD_EXIT_CANCELLED)
			break;
		if (vcpu->exit != TD_EXIT_DONE) {
			printf("# vCPU %d: exit %d, error %d, KVM's reason %u, suberror %u\n",
			       vcpu->index, vcpu->exit, vcpu->ret, vcpu->reason,
			       vcpu->run->internal.suberror);
			fail(storm, vcpu->ret);
			return NULL;
		}
		/*
		 * In this thread: refused for a shared page, it is an exit, which would
		 * overwrite the one that KVM_RUN returns with in another thread.
		 */
		for (i = 0; storm->prefaults && i < PREFAULTS; i++)
			td_prefault_once(vcpu, some_page(&rng), TD_PAGE);
		done += LIST;
		all = __atomic_add_fetch(&storm->done, LIST, __ATOMIC_SEQ_CST);
		if (all % SHOWN == 0) {
			printf("# hostile: %llu of %llu steps, vCPU %d %llu\n",
			       storm->before + all, storm->all, vcpu->index, done);
			fflush(stdout);
		}
	}
	return NULL;
}

static void *run_vmm(void *arg)
{
	struct worker *worker = arg;
	struct storm *storm = worker->storm;
	struct td *td = storm->td;
	struct rng rng = { worker->seed };

	while (!__atomic_load_n(&storm->stop, __ATOMIC_SEQ_CST)) {
		__u64 page = some_page(&rng), size = (1 + below(&rng, 4)) * TD_PAGE;
		int ret = 0;

		switch (below(&rng, 3)) {
		case 0:
			ret = td_set_private(td, page, size, false);
			break;
		case 1:
			ret = td_set_private(td, page, size, true);
			break;
		default:
			ret = td_punch_hole(td, 0, page - TD_RAM_GPA, size);
		}
		if (ret)
			fail(storm, ret);
		__atomic_add_fetch(&storm->changes, 1, __ATOMIC_SEQ_CST);
		sched_yield();
	}
	return NULL;
}

static void nothing(int signal)
{
}

/*
 * Grows when a vCPU is shut out.  The TDX module does so as well when the page is never
 * mapped; a mirror that cannot map it is told from one that has it by its own figure.
 */
static __s64 shut_out_signs(void)
{
	struct td_calls calls;
	bool found;

	if (!td_needs(NEEDS_MIRROR))
		return td_counter(TD_MIRROR_STATS, "faults_spurious", &found);
	td_calls_read(&calls);
	return calls.exits - calls.entries;
}

static __u64 progress(struct storm *storm, const struct worker guest[2])
{
	return __atomic_load_n(&storm->done, __ATOMIC_SEQ_CST) +
	       __atomic_load_n(&guest[0].vcpu->block->done, __ATOMIC_RELAXED) +
	       __atomic_load_n(&guest[1].vcpu->block->done, __ATOMIC_RELAXED);
}

/* Both: the one that could go on may have the turn. */
static void stop_guests(struct storm *storm, struct worker guest[2], unsigned int first)
{
	unsigned int i;

	__atomic_store_n(&storm->stop, true, __ATOMIC_SEQ_CST);
	for (i = first; i < 2; i++) {
		__atomic_store_n(&guest[i].vcpu->cancel, true, __ATOMIC_SEQ_CST);
		guest[i].vcpu->run->immediate_exit = 1;
		pthread_kill(guest[i].thread, SIGUSR1);
	}
}

/*
 * Waits for both vCPUs.  Returns whether they had to be stopped: seven EPT violations at
 * one instruction, as with a page that others make shared each time, and the TDX module
 * lets the vCPU in no more until another one accepts the page, which none may do.  vCPUs
 * that get no further for another reason are a failure.
 */
static bool join_guests(struct storm *storm, struct worker guest[2])
{
	const struct sigaction action = { .sa_handler = nothing };
	const bool told = !td_needs(NEEDS_MIRROR) || !td_needs(NEEDS_EMULATOR);
	unsigned int first = 0, ms = 0, stuck = 0;
	__s64 signs = shut_out_signs(), signs_now;
	bool stopped = false;
	__u64 done = 0, now;

	sigaction(SIGUSR1, &action, NULL);
	while (first < 2) {
		if (!pthread_tryjoin_np(guest[first].thread, NULL)) {
			first++;
			continue;
		}
		usleep(10000);
		ms += 10;
		if (ms % WINDOW_MS == 0 && !stopped) {
			now = progress(storm, guest);
			signs_now = shut_out_signs();
			stuck = now - done < LIST ? stuck + 1 : 0;
			stopped = stuck && (!told || signs_now - signs > SIGNS);
			if (stuck >= STUCK && !stopped) {
				printf("# hostile: vCPUs stuck, and not shut out\n");
				fail(storm, -ETIMEDOUT);
				stopped = true;
			}
			done = now;
			signs = signs_now;
		}
		if (stopped)
			stop_guests(storm, guest, first);
	}
	return stopped;
}

static void storm(struct __test_metadata *_metadata, struct td *td, unsigned int threads,
		  __u64 steps)
{
	const struct td_config config = {
		.nr_vcpus = 2, .no_measure = true, .ram_size = PAGES * TD_PAGE,
	};
	struct worker guest[2], vmm[MAX_THREADS];
	__u64 done = 0, tds = 0, shut_out = 0, faults = 0, changes = 0, seed = __rdtsc();
	const char *given = getenv("TDX_TEST_SEED");
	unsigned int i;

	if (given)
		seed = strtoull(given, NULL, 0);
	TH_LOG("seed 0x%llx (TDX_TEST_SEED)", seed);
	while (done < steps) {
		struct storm s = {
			.td = td, .turn = PTHREAD_MUTEX_INITIALIZER,
			.steps = (steps - done + 1) / 2,
			.before = done, .all = steps, .prefaults = threads,
		};

		ASSERT_TD_OK(td, td_build(td, &config));
		for (i = 0; i < 2; i++) {
			guest[i] = (struct worker) { &s, &td->vcpu[i], 0, seed + tds * 16 + i };
			ASSERT_EQ(0, pthread_create(&guest[i].thread, NULL, run_guest,
						    &guest[i]));
		}
		for (i = 0; i < threads; i++) {
			vmm[i] = (struct worker) { &s, NULL, 0, seed + tds * 16 + 8 + i };
			ASSERT_EQ(0, pthread_create(&vmm[i].thread, NULL, run_vmm, &vmm[i]));
		}
		shut_out += join_guests(&s, guest);
		__atomic_store_n(&s.stop, true, __ATOMIC_SEQ_CST);
		for (i = 0; i < threads; i++)
			pthread_join(vmm[i].thread, NULL);
		ASSERT_EQ(0, s.failed) TH_LOG("TD %llu: %s", tds, td_error(td));
		/* Whatever the guest did, the VM is not one that KVM has given up. */
		ASSERT_EQ(0, td_set_private(td, TD_RAM_GPA, PAGES * TD_PAGE, true));
		ASSERT_TD_OK(td, td_prefault(&td->vcpu[0], TD_RAM_GPA, TD_PAGE, NULL));
		td_destroy(td);
		td_reset(td);
		done += s.done ? s.done : 1;
		faults += s.faults;
		changes += s.changes;
		tds++;
	}
	TH_LOG("%llu steps of guests, %llu TDs, %llu accesses by the wrong name", done, tds,
	       faults);
	TH_LOG("%llu changes by the VMM, %llu TDs with a vCPU that got no further", changes,
	       shut_out);
}

/* Shows: R43. */
TEST_F_TIMEOUT(hostile, guest_alone, 1800)
{
	storm(_metadata, &self->td, 0, td_times(2000, 900000));
}

/* Shows: R36, R40, R43. */
TEST_F_TIMEOUT(hostile, conversion_storm, 1800)
{
	storm(_metadata, &self->td, MAX_THREADS, td_times(2000, 100000));
}

TEST_HARNESS_MAIN
