// SPDX-License-Identifier: GPL-2.0
/* What a TD's own code makes of its exits: ports, MMIO, CPUID, MSRs, halt, errors. */
#include <errno.h>
#include <linux/kvm_para.h>
#include <sys/ioctl.h>

#include "test.h"

#define STATUS_INVALID	0x8000000000000000ull	/* R10 of TDG.VP.VMCALL */
#define STATUS_ALIGN	0x8000000000000002ull

TD_FIXTURE(guest_exits);

TEST_F(guest_exits, hello)
{
	const struct td_config config = { .image = "hello", .nr_vcpus = 2 };
	int i;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(TD_EXIT_DONE, td_vcpu_run(&self->td.vcpu[i]))
			TH_LOG("%s", td_error(&self->td));
		EXPECT_STREQ("TD runs\n", self->td.vcpu[i].text);
	}
}

TEST_F(guest_exits, ports)
{
	static const __u64 mask[] = { 0xff, 0xffff, 0xffffffff };
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	const __u64 value = 0x8899aabbccull;
	unsigned int i;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	for (i = 0; i < 6; i++) {
		__u64 size = 1 << (i % 3);

		td_op(vcpu, GUEST_PORT_OUT, TD_PORT_ECHO, size, value)->flags = i / 3;
		td_op(vcpu, GUEST_PORT_IN, TD_PORT_ECHO, size, 0)->flags = i / 3;
	}
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	for (i = 0; i < 6; i++)
		EXPECT_EQ(value & mask[i % 3], vcpu->block->ops[2 * i + 1].res[0] & mask[i % 3]);
	/* 6 reads, 6 writes and the end of the list. */
	EXPECT_EQ(13, vcpu->io_exits);
	EXPECT_EQ(6, vcpu->block->ve_count);
}

TEST_F(guest_exits, mmio)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	const __u64 value = 0x1122334455667788ull;
	unsigned int i;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	for (i = 0; i < 8; i++) {
		__u64 size = 1 << (i % 4), gpa = TD_MMIO_GPA + 64 * i;

		td_op(vcpu, GUEST_MMIO_WRITE, gpa, size, value)->flags = i / 4;
		td_op(vcpu, GUEST_MMIO_READ, gpa, size, 0)->flags = i / 4;
	}
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	for (i = 0; i < 8; i++) {
		__u64 shift = 64 - (8 << (i % 4));

		EXPECT_EQ(value << shift >> shift, vcpu->block->ops[2 * i + 1].res[0]);
		EXPECT_EQ(0, memcmp(vcpu->mmio + 64 * i, &value, 1 << (i % 4)));
		EXPECT_EQ(0, vcpu->mmio[64 * i + (1 << (i % 4))]);
	}
	EXPECT_EQ(16, vcpu->mmio_exits);
}

/* Memory comes where a device was, shared from the first or converted to it later. */
static void memory_after_mmio(struct __test_metadata *_metadata, struct td *td, bool convert)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &td->vcpu[0];
	const struct guest_op *op;
	__u64 *memory;

	ASSERT_TD_OK(td, td_build(td, &config));
	op = vcpu->block->ops;
	memset(vcpu->mmio, 0x11, sizeof(vcpu->mmio));
	td_op(vcpu, GUEST_MMIO_READ, TD_MMIO_GPA, 8, 0);
	td_op(vcpu, GUEST_MMIO_READ, TD_MMIO_GPA + TD_PAGE, 8, 0);
	ASSERT_TD_OK(td, td_ops_run(vcpu));
	ASSERT_EQ(0x1111111111111111ull, op[0].res[0]);
	ASSERT_EQ(2, vcpu->mmio_exits);

	/* One page, so that the other one stays a device. */
	ASSERT_TD_OK(td, td_add_slot(td, 4, TD_MMIO_GPA, TD_PAGE, convert));
	if (convert)
		ASSERT_TD_OK(td, td_set_private(td, TD_MMIO_GPA, TD_PAGE, false));
	memory = td->slot[4].shared;
	memory[0] = 0x2222222222222222ull;
	ASSERT_TD_OK(td, td_ops_run(vcpu));
	EXPECT_EQ(0x2222222222222222ull, op[0].res[0]);
	EXPECT_EQ(~0ull, op[1].res[0]);
	EXPECT_EQ(3, vcpu->mmio_exits);

	/* And the other way round. */
	ASSERT_TD_OK(td, td_delete_slot(td, 4));
	ASSERT_TD_OK(td, td_ops_run(vcpu));
	EXPECT_EQ(0x1111111111111111ull, op[0].res[0]);
	EXPECT_EQ(5, vcpu->mmio_exits);
}

TEST_F(guest_exits, memory_where_a_device_was)
{
	memory_after_mmio(_metadata, &self->td, false);
}

TEST_F(guest_exits, converted_memory_where_a_device_was)
{
	memory_after_mmio(_metadata, &self->td, true);
}

TEST_F(guest_exits, cpuid_and_msr)
{
	const struct td_config config = { .nr_vcpus = 2 };
	struct td_vcpu *vcpu = &self->td.vcpu[1];
	const struct guest_op *op;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	op = vcpu->block->ops;
	td_op(vcpu, GUEST_CPUID, 0x21, 0, 0);
	td_op(vcpu, GUEST_CPUID, 0x40000000, 0, 0);
	td_op(vcpu, GUEST_CPUID, 1, 0, 0)->flags = GUEST_FLAG_VMCALL;
	td_op(vcpu, GUEST_RDMSR, 0x1b, 0, 0)->flags = GUEST_FLAG_VMCALL;
	td_op(vcpu, GUEST_VP_INFO, 0, 0, 0);
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	/* "IntelTDX    " in EBX, EDX, ECX: answered by the TDX module itself. */
	EXPECT_EQ(0x65746e49, op[0].res[0] >> 32);
	EXPECT_EQ(0x5844546c20202020ull, op[0].res[1]);
	EXPECT_EQ(1u << 21, op[2].res[1] & 1u << 21);
	EXPECT_EQ(0xfee00000ull, op[3].res[0] & 0xfffff000);
	EXPECT_EQ(48, op[4].res[0]);
	EXPECT_EQ(2, op[4].res[2] & 0xffffffff);
	EXPECT_EQ(1, op[4].res[2] >> 32);
}

/* Lets the guest halt and interrupts it, @first before or else after that. */
static void halt_and_wake(struct __test_metadata *_metadata, struct td *td, bool first)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &td->vcpu[0];
	struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x40 };
	unsigned int turn;

	/* KVM delivers nothing before the guest has enabled its APIC (SVR). */
	ASSERT_TD_OK(td, td_build(td, &config));
	td_op(vcpu, GUEST_WRMSR, 0x80f, 0, 0x1ff)->flags = GUEST_FLAG_VMCALL;
	ASSERT_TD_OK(td, td_ops_run(vcpu));
	td_ops_clear(vcpu);
	td_op(vcpu, GUEST_VP_INFO, 0, 0, 0);
	td_op(vcpu, GUEST_HALT, 0, 0, 0);
	td_op(vcpu, GUEST_PORT_OUT, TD_PORT_ECHO, 4, 1);
	if (first)
		ASSERT_LT(0, ioctl(td->vm_fd, KVM_SIGNAL_MSI, &msi));
	ASSERT_EQ(0, td_vcpu_start(vcpu));
	if (!first) {
		while (!__atomic_load_n(&vcpu->block->done, __ATOMIC_SEQ_CST))
			sched_yield();
		for (turn = 0; turn < 1000; turn++)
			sched_yield();
		EXPECT_EQ(1, vcpu->block->done);
		ASSERT_LT(0, ioctl(td->vm_fd, KVM_SIGNAL_MSI, &msi));
	}
	ASSERT_TD_OK(td, td_ops_join(vcpu));
	EXPECT_EQ(1, vcpu->port_echo);
}

TEST_F(guest_exits, halt_then_interrupt)
{
	halt_and_wake(_metadata, &self->td, false);
}

TEST_F(guest_exits, interrupt_then_halt)
{
	halt_and_wake(_metadata, &self->td, true);
}

TEST_F(guest_exits, halt_for_ever)
{
	const struct td_config config = { .image = "halt" };

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_EQ(0, td_vcpu_start(&self->td.vcpu[0]));
	sched_yield();
	td_vcpu_cancel(&self->td.vcpu[0]);
	EXPECT_EQ(TD_EXIT_CANCELLED, td_vcpu_join(&self->td.vcpu[0]));
}

TEST_F(guest_exits, loop_is_interrupted)
{
	const struct td_config config = { .image = "loop", .nr_vcpus = 2 };
	int i;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, td_vcpu_start(&self->td.vcpu[i]));
	for (i = 0; i < 2; i++) {
		td_vcpu_cancel(&self->td.vcpu[i]);
		EXPECT_EQ(TD_EXIT_CANCELLED, td_vcpu_join(&self->td.vcpu[i]));
	}
}

TEST_F(guest_exits, touch_accepts_on_ve)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	struct td_counters after;

	/* Plain accesses: EPT violation, map, #VE because pending, accept. */
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_op(vcpu, GUEST_TOUCH, TD_RAM_GPA, 64, 0);
	td_op(vcpu, GUEST_VERIFY_ZERO, TD_RAM_GPA, 64, 0);
	td_op(vcpu, GUEST_TOUCH, TD_RAM_GPA, 64, 0)->flags = GUEST_FLAG_WRITE;
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
	EXPECT_EQ(64, vcpu->block->ve_count);
	td_counters_read(&after);
	if (after.has_emu)
		EXPECT_EQ(64 + TD_IMAGE_SIZE / TD_PAGE,
			  after.emu_present - self->before.emu_present);
}

TEST_F(guest_exits, bad_map_gpa)
{
	static const struct {
		__u64 gpa, size, status;
	} bad[] = {
		{ TD_RAM_GPA, 0, STATUS_INVALID },
		{ TD_RAM_GPA + 1, TD_PAGE, STATUS_ALIGN },
		{ TD_RAM_GPA, TD_PAGE + 1, STATUS_ALIGN },
		{ ~0ull << 12, 2 * TD_PAGE, STATUS_INVALID },
		{ 1ull << 52, TD_PAGE, STATUS_INVALID },
		{ TD_SHARED_BIT - TD_PAGE, 2 * TD_PAGE, STATUS_INVALID },
	};
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	size_t i;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	for (i = 0; i < ARRAY_SIZE(bad); i++)
		td_op(vcpu, GUEST_RAW_VMCALL, 0x10001, bad[i].gpa, bad[i].size);
	ASSERT_EQ(TD_EXIT_DONE, td_vcpu_run(vcpu));
	for (i = 0; i < ARRAY_SIZE(bad); i++)
		EXPECT_EQ(bad[i].status, vcpu->block->ops[i].status)
			TH_LOG("MapGPA %llx %llx", bad[i].gpa, bad[i].size);
	EXPECT_EQ(0, vcpu->map_gpa_exits);
}

TEST_F(guest_exits, bad_accept)
{
	/* Level 3 and up, reserved bits, unaligned, shared: never the VMM's work. */
	static const __u64 bad[] = {
		TD_RAM_GPA | 3, TD_RAM_GPA | 7, TD_RAM_GPA | 8, TD_RAM_GPA | 0x800,
		(TD_RAM_GPA + TD_PAGE) | 1, TD_RAM_GPA | TD_SHARED_BIT, 1ull << 52 | TD_RAM_GPA,
		1ull << 63 | TD_RAM_GPA,
	};
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];
	struct td_counters before, after;
	size_t i;

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	for (i = 0; i < ARRAY_SIZE(bad); i++)
		td_op(vcpu, GUEST_RAW_ACCEPT, bad[i], 0, 0);
	td_counters_read(&before);
	ASSERT_EQ(TD_EXIT_DONE, td_vcpu_run(vcpu)) TH_LOG("%s", td_error(&self->td));
	for (i = 0; i < ARRAY_SIZE(bad); i++)
		EXPECT_EQ(0xc000010000000001ull, vcpu->block->ops[i].status)
			TH_LOG("ACCEPT %llx", bad[i]);
	td_counters_read(&after);
	EXPECT_EQ(before.emu_present, after.emu_present);
}

TEST_F(guest_exits, accept_beyond_memory)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];

	/* Shared by attribute, no slot: the VMM is told, the TD can go on. */
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_op(vcpu, GUEST_ACCEPT, TD_MMIO_GPA, 1, 0);
	ASSERT_EQ(TD_EXIT_MEMORY_FAULT, td_vcpu_run(vcpu));
	EXPECT_EQ(TD_MMIO_GPA, vcpu->fault_gpa);
	EXPECT_TRUE(vcpu->fault_private);
	ASSERT_TD_OK(&self->td, td_add_slot(&self->td, 4, TD_MMIO_GPA, 1 << 20, true));
	ASSERT_TD_OK(&self->td, td_ops_run(vcpu));
}

TEST_F(guest_exits, fatal_error)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_op(vcpu, GUEST_FATAL, 4711, 0, 0);
	ASSERT_EQ(TD_EXIT_FATAL, td_vcpu_run(vcpu));
	EXPECT_EQ(GUEST_FATAL_OP, vcpu->fatal[0]);
	EXPECT_EQ(4711, vcpu->fatal[1]);
}

TEST_F(guest_exits, triple_fault)
{
	const struct td_config config = {};
	struct td_vcpu *vcpu = &self->td.vcpu[0];

	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	td_op(vcpu, GUEST_TRIPLE_FAULT, 0, 0, 0);
	EXPECT_EQ(TD_EXIT_SHUTDOWN, td_vcpu_run(vcpu));
	/* Nothing is left of the vCPU that could be entered; the kernel says so, and no more. */
	EXPECT_EQ(0, td_vcpu_enter(vcpu));
	EXPECT_EQ(KVM_EXIT_INTERNAL_ERROR, vcpu->run->exit_reason);
}

/*
 * Its memory taken away and given back, code, handlers and stack of the guest are pending:
 * the #VE of the first fetch cannot be delivered, nor the #DF of that.  The TD dies, and
 * the CPU comes back.
 */
TEST_F(guest_exits, image_taken_away)
{
	const struct td_config config = {};
	struct td *td = &self->td;
	struct td_vcpu *vcpu = &td->vcpu[0];

	ASSERT_TD_OK(td, td_build(td, &config));
	td_op(vcpu, GUEST_VP_INFO, 0, 0, 0);
	ASSERT_TD_OK(td, td_ops_run(vcpu));
	td_ops_clear(vcpu);
	ASSERT_TD_OK(td, td_set_private(td, TD_IMAGE_GPA, TD_IMAGE_SIZE, false));
	ASSERT_TD_OK(td, td_set_private(td, TD_IMAGE_GPA, TD_IMAGE_SIZE, true));
	td_op(vcpu, GUEST_VP_INFO, 0, 0, 0);
	EXPECT_EQ(TD_EXIT_SHUTDOWN, td_vcpu_run(vcpu));
}

TEST_HARNESS_MAIN
