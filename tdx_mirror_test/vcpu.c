// SPDX-License-Identifier: GPL-2.0
/* vCPUs of the test device: kernel threads that do what KVM's vCPU loop does. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpumask.h>
#include <linux/kthread.h>
#include <linux/preempt.h>
#include <linux/printk.h>
#include <linux/ratelimit.h>
#include <linux/sched.h>
#include <linux/sched/task.h>
#include <linux/wait.h>

#include "test.h"

/* Exits as in RAX. */
#define EXIT_OTHER_SMI		6
#define EXIT_EPT_VIOLATION	48
#define EXIT_TDCALL		77
#define STATUS_HP_TIMEOUT	0x9000020500000000ULL
/* Type of the extended exit qualification, in RDX: TDG.MEM.PAGE.ACCEPT. */
#define EEQ_TYPE_MASK		0xf
#define EEQ_TYPE_ACCEPT		1
/* No status of the TDX module: the guest was not entered. */
#define STATUS_HELD		~0ULL

/**
 * struct tdt_run - one RUN
 * @rounds: a vCPU stops after so many
 * @stop: all stop
 * @left: threads that did not end yet
 */
struct tdt_run {
	u64 rounds;
	bool stop;
	atomic_t left;
	wait_queue_head_t wq;
};

static u64 tdt_enter(struct tdt_vcpu *v, struct tdx_module_args *args)
{
	struct tdt_td *td = v->td;
	u64 status = STATUS_HELD;

	preempt_disable();
	/* Pairs with the barriers in tdt_kick() and tdt_hold(). */
	smp_store_mb(v->in_guest, 1);
	if (!atomic_read(&tdt_kicks) && !atomic_read(&td->hold)) {
		v->entries++;
		status = tdt_call(TDH_VP_ENTER, args);
	}
	/* Pairs with tdt_kick(): all that the guest did comes before. */
	smp_store_release(&v->in_guest, 0);
	preempt_enable();

	return status;
}

/*
 * Serves a fault. What is still contended is met again by the next entry, or,
 * if the mirror holds the vCPU, before it.
 */
static int tdt_fault(struct tdt_vcpu *v, u64 gfn)
{
	u32 action;
	u64 retries = 0;
	int ret;

	if (!tdt_ram(v->td, gfn))
		return -EPROTO;
	ret = tdt_map(v->td, &v->notes, gfn, 0, &action, &retries);
	if (action == TDX_MIRROR_KILL)
		return -EIO;
	return ret < 0 ? ret : 0;
}

static int tdt_busy(struct tdt_vcpu *v, u64 status)
{
	struct tdx_mirror *mirror = v->td->mirror;

	return tdt_ops->vp_enter_busy(mirror, &v->notes, status) == TDX_MIRROR_KILL ?
		-EIO : 0;
}

/* What KVM counts, see struct tdx_mirror_vcpu; @eeq is the extended qualification. */
static void tdt_count_fault(struct tdt_vcpu *v, u64 gfn, u64 eeq)
{
	v->notes.accept = (eeq & EEQ_TYPE_MASK) == EEQ_TYPE_ACCEPT;
	if (!v->notes.accept)
		v->notes.faults++;
	if (gfn != v->fault_gfn)
		v->notes.repeats = 0;
	v->notes.repeats++;
	v->fault_gfn = gfn;
}

/* Why the guest was left; an error ends the run. */
static int tdt_exit(struct tdt_vcpu *v, u64 status, struct tdx_module_args *args)
{
	if (status != EXIT_EPT_VIOLATION && status != STATUS_HELD &&
	    status >> 32 != TDT_OPERAND_BUSY) {
		v->notes.faults = 0;
		v->notes.repeats = 0;
	}

	switch (status) {
	case STATUS_HELD:
	case STATUS_HP_TIMEOUT:
	case EXIT_OTHER_SMI:
		return 0;
	case EXIT_EPT_VIOLATION:
		v->faults++;
		tdt_count_fault(v, args->r8 >> PAGE_SHIFT, args->rdx);
		return tdt_fault(v, args->r8 >> PAGE_SHIFT);
	case EXIT_TDCALL:
		if (args->r11 == TDX_TEST_VMCALL_ROUND)
			v->done++;
		else if (args->r11 == TDX_TEST_VMCALL_BAD)
			v->bad++;
		else
			return -EPROTO;
		return 0;
	default:
		if (status >> 32 == TDT_OPERAND_BUSY)
			return tdt_busy(v, status);
		pr_info_ratelimited("a vCPU stopped: %#llx\n", status);
		return -EPROTO;
	}
}

static int tdt_thread(void *data)
{
	struct tdt_vcpu *v = data;
	struct tdt_run *run = v->run;

	while (!READ_ONCE(run->stop) && v->done < run->rounds) {
		struct tdx_module_args args = { .rcx = tdt_pa(v->pages[0]) };

		if (v->notes.held)
			v->error = tdt_fault(v, v->notes.gfn);
		else
			v->error = tdt_exit(v, tdt_enter(v, &args), &args);
		if (READ_ONCE(v->td->bugged))
			v->error = -EIO;
		if (v->error)
			WRITE_ONCE(run->stop, true);
		cond_resched();
	}
	/* No vCPU belongs to a CPU between two runs. */
	tdt_call4(TDH_VP_FLUSH, tdt_pa(v->pages[0]), 0, 0);

	if (atomic_dec_and_test(&run->left))
		wake_up(&run->wq);
	return 0;
}

/* Threads, one on each CPU in turn; those that were made are counted in @run. */
static int tdt_start(struct tdt_td *td, struct tdt_run *run)
{
	int i, cpu = -1;

	for (i = 0; i < td->nr_vcpus; i++) {
		struct tdt_vcpu *v = &td->vcpus[i];
		struct task_struct *task;

		task = kthread_create(tdt_thread, v, "tdx-test-vcpu/%d", i);
		if (IS_ERR(task))
			return PTR_ERR(task);
		cpu = cpumask_next_wrap(cpu, cpu_online_mask);
		kthread_bind(task, cpu);
		v->run = run;
		v->error = 0;
		v->faults = 0;
		v->done = 0;
		v->bad = 0;
		v->entries = 0;
		v->task = get_task_struct(task);
		atomic_inc(&run->left);
	}

	return 0;
}

int tdt_run(struct tdt_td *td, struct tdx_test_run *out)
{
	struct tdt_run run = { .rounds = out->rounds };
	int i, ret;

	if (atomic_cmpxchg(&td->running, 0, 1))
		return -EBUSY;

	init_waitqueue_head(&run.wq);
	ret = tdt_start(td, &run);
	if (ret)
		run.stop = true;
	for (i = 0; i < td->nr_vcpus; i++) {
		if (td->vcpus[i].task)
			wake_up_process(td->vcpus[i].task);
	}
	if (wait_event_interruptible(run.wq, !atomic_read(&run.left))) {
		ret = -EINTR;
		WRITE_ONCE(run.stop, true);
		wait_event(run.wq, !atomic_read(&run.left));
	}

	for (i = 0; i < td->nr_vcpus; i++) {
		struct tdt_vcpu *v = &td->vcpus[i];

		if (!v->task)
			continue;
		kthread_stop_put(v->task);
		v->task = NULL;
		out->faults += v->faults;
		out->done += v->done;
		out->bad += v->bad;
		out->entries += v->entries;
		ret = ret ?: v->error;
	}
	atomic_set(&td->running, 0);

	return ret;
}
