// SPDX-License-Identifier: GPL-2.0
/* Running vCPUs: the exits that a TD causes, and the lists of its payload. */
#include <asm/kvm_para.h>
#include <errno.h>
#include <linux/kvm_para.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "td.h"

#define KICK_SIGNAL	SIGUSR1

/* Seconds after which a vCPU that does not come back is made to. */
#define PATIENCE	5

/* Returns whether the vCPU is to be run on. */
static bool port_exit(struct td_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	void *data = (char *)run + run->io.data_offset;
	bool in = run->io.direction == KVM_EXIT_IO_IN;

	vcpu->io_exits++;
	if (run->io.port == GUEST_PORT_DONE && !in) {
		vcpu->exit = TD_EXIT_DONE;
		return false;
	}
	if (run->io.port == GUEST_PORT_TEXT && !in) {
		if (vcpu->text_len < sizeof(vcpu->text) - 1)
			vcpu->text[vcpu->text_len++] = *(char *)data;
		return true;
	}
	if (run->io.port != TD_PORT_ECHO) {
		if (in)
			memset(data, 0xff, run->io.size);
		return true;
	}
	if (in) {
		memcpy(data, &vcpu->port_echo, run->io.size);
	} else {
		vcpu->port_echo = 0;
		memcpy(&vcpu->port_echo, data, run->io.size);
	}
	return true;
}

static void mmio_exit(struct td_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	__u64 at = run->mmio.phys_addr - TD_MMIO_GPA;

	vcpu->mmio_exits++;
	if (at > TD_PAGE - run->mmio.len) {
		if (!run->mmio.is_write)
			memset(run->mmio.data, 0xff, run->mmio.len);
		return;
	}
	if (run->mmio.is_write)
		memcpy(vcpu->mmio + at, run->mmio.data, run->mmio.len);
	else
		memcpy(run->mmio.data, vcpu->mmio + at, run->mmio.len);
}

static void map_gpa_exit(struct td_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	__u64 gpa = run->hypercall.args[0];
	__u64 size = run->hypercall.args[1] * TD_PAGE;
	bool private = run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED;

	vcpu->map_gpa_exits++;
	run->hypercall.ret = 0;
	if (vcpu->map_gpa_refuse)
		run->hypercall.ret = EINVAL;
	else if (vcpu->map_gpa_retries && vcpu->map_gpa_retries--)
		run->hypercall.ret = EAGAIN;
	else if (td_set_private(vcpu->td, gpa, size, private))
		run->hypercall.ret = EINVAL;
}

static bool handle_exit(struct td_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		return port_exit(vcpu);
	case KVM_EXIT_MMIO:
		mmio_exit(vcpu);
		return true;
	case KVM_EXIT_HYPERCALL:
		if (run->hypercall.nr != KVM_HC_MAP_GPA_RANGE)
			break;
		map_gpa_exit(vcpu);
		return true;
	case KVM_EXIT_SHUTDOWN:
		vcpu->exit = TD_EXIT_SHUTDOWN;
		return false;
	case KVM_EXIT_SYSTEM_EVENT:
		if (run->system_event.type != KVM_SYSTEM_EVENT_TDX_FATAL)
			break;
		vcpu->exit = TD_EXIT_FATAL;
		/* Registers in the order of their numbers: R12, R13, R14. */
		memcpy(vcpu->fatal, &run->system_event.data[12], sizeof(vcpu->fatal));
		return false;
	default:
		break;
	}
	vcpu->exit = TD_EXIT_OTHER;
	return false;
}

enum td_exit td_vcpu_run(struct td_vcpu *vcpu)
{
	struct td *td = vcpu->td;
	unsigned int again = 0;

	for (;;) {
		int ret = ioctl(vcpu->fd, KVM_RUN, 0) ? -errno : 0;

		vcpu->ret = ret;
		vcpu->reason = vcpu->run->exit_reason;
		if (ret == -EINTR || ret == -EAGAIN) {
			vcpu->run->immediate_exit = 0;
			if (__atomic_load_n(&vcpu->cancel, __ATOMIC_ACQUIRE))
				return vcpu->exit = TD_EXIT_CANCELLED;
			if (!vcpu->give_up || ++again < vcpu->give_up)
				continue;
			return vcpu->exit = TD_EXIT_ERROR;
		}
		again = 0;
		if (ret && vcpu->reason == KVM_EXIT_MEMORY_FAULT &&
		    (ret == -EFAULT || ret == -EHWPOISON)) {
			vcpu->fault_gpa = vcpu->run->memory_fault.gpa;
			vcpu->fault_private = vcpu->run->memory_fault.flags &
					      KVM_MEMORY_EXIT_FLAG_PRIVATE;
			return vcpu->exit = TD_EXIT_MEMORY_FAULT;
		}
		if (ret) {
			snprintf(td->error, sizeof(td->error), "KVM_RUN of vCPU %d: %s",
				 vcpu->index, strerror(-ret));
			return vcpu->exit = TD_EXIT_ERROR;
		}
		if (!handle_exit(vcpu))
			return vcpu->exit;
	}
}

static void kick_handler(int signal)
{
}

static void *run_thread(void *arg)
{
	td_vcpu_run(arg);
	return NULL;
}

int td_vcpu_start(struct td_vcpu *vcpu)
{
	struct sigaction action = { .sa_handler = kick_handler };
	int ret;

	sigaction(KICK_SIGNAL, &action, NULL);
	vcpu->cancel = false;
	ret = pthread_create(&vcpu->thread, NULL, run_thread, vcpu);
	vcpu->has_thread = !ret;
	return -ret;
}

enum td_exit td_vcpu_join(struct td_vcpu *vcpu)
{
	struct timespec limit;

	if (!vcpu->has_thread)
		return vcpu->exit;
	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += PATIENCE;
	if (pthread_timedjoin_np(vcpu->thread, NULL, &limit)) {
		td_vcpu_cancel(vcpu);
		pthread_join(vcpu->thread, NULL);
	}
	vcpu->has_thread = false;
	return vcpu->exit;
}

void td_vcpu_cancel(struct td_vcpu *vcpu)
{
	__atomic_store_n(&vcpu->cancel, true, __ATOMIC_RELEASE);
	if (vcpu->block)
		td_vcpu_stop(vcpu);
	/* The flag covers a signal that comes before KVM_RUN. */
	vcpu->run->immediate_exit = 1;
	if (vcpu->has_thread)
		pthread_kill(vcpu->thread, KICK_SIGNAL);
}

void td_vcpu_stop(struct td_vcpu *vcpu)
{
	__atomic_store_n(&vcpu->block->stop, 1, __ATOMIC_SEQ_CST);
}

void td_ops_clear(struct td_vcpu *vcpu)
{
	struct guest_block *block = vcpu->block;

	block->magic = GUEST_MAGIC;
	block->nr_ops = 0;
	block->done = 0;
	block->heartbeat = 0;
	block->stop = 0;
}

struct guest_op *td_op(struct td_vcpu *vcpu, enum guest_op_code code,
		       __u64 a, __u64 b, __u64 c)
{
	struct guest_block *block = vcpu->block;
	struct guest_op *op = &block->ops[block->nr_ops];

	if (block->nr_ops < GUEST_MAX_OPS)
		block->nr_ops++;
	*op = (struct guest_op) { .code = code, .arg = { a, b, c }, .status = ~0ull };
	return op;
}

static const char *exit_name(enum td_exit exit)
{
	static const char * const name[] = {
		"an error", "done", "a memory fault", "a fatal error of the TD",
		"a triple fault", "cancelled", "an unexpected exit",
	};

	return name[exit];
}

static int ops_result(struct td_vcpu *vcpu)
{
	const struct guest_block *block = vcpu->block;
	struct td *td = vcpu->td;
	unsigned int i;

	if (vcpu->exit != TD_EXIT_DONE) {
		if (vcpu->exit != TD_EXIT_ERROR)
			snprintf(td->error, sizeof(td->error),
				 "vCPU %d ended by %s in op %u of %u (exit reason %u, fatal %llx %llx %llx, fault at %llx)",
				 vcpu->index, exit_name(vcpu->exit), block->done,
				 block->nr_ops, vcpu->reason, vcpu->fatal[0],
				 vcpu->fatal[1], vcpu->fatal[2], vcpu->fault_gpa);
		return vcpu->ret ? vcpu->ret : -EIO;
	}
	if (block->done != block->nr_ops) {
		snprintf(td->error, sizeof(td->error), "vCPU %d did %u of %u ops",
			 vcpu->index, block->done, block->nr_ops);
		return -EIO;
	}
	for (i = 0; i < block->nr_ops; i++) {
		const struct guest_op *op = &block->ops[i];

		if (!op->status)
			continue;
		snprintf(td->error, sizeof(td->error),
			 "vCPU %d: op %u (code %u, %llx %llx %llx) gave %llx, results %llx %llx %llx",
			 vcpu->index, i, op->code, op->arg[0], op->arg[1], op->arg[2],
			 op->status, op->res[0], op->res[1], op->res[2]);
		return -EIO;
	}
	return 0;
}

int td_ops_run(struct td_vcpu *vcpu)
{
	vcpu->block->done = 0;
	td_vcpu_run(vcpu);
	return ops_result(vcpu);
}

int td_ops_join(struct td_vcpu *vcpu)
{
	td_vcpu_join(vcpu);
	return ops_result(vcpu);
}

__u64 *td_word(struct td *td, unsigned int n)
{
	return (__u64 *)td->slot[3].shared + n;
}

__u64 td_word_gpa(unsigned int n)
{
	return TD_WORDS_GPA + 8 * n;
}
