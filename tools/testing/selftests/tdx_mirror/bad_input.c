// SPDX-License-Identifier: GPL-2.0
/*
 * What a VMM can get wrong: each path answers with its documented errno, maps
 * nothing, leaks nothing, and the TD goes on.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/ioctl.h>

#include "test.h"

TD_FIXTURE(bad_input);

static int errno_of(int ret)
{
	return ret < 0 ? -errno : ret;
}

/* Whether nothing was mapped or zapped since @before. */
static bool unchanged(const struct td_counters *before)
{
	struct td_counters now;

	td_counters_read(&now);
	return before->emu_present == now.emu_present &&
	       before->emu_removed == now.emu_removed &&
	       before->leaf_transitions == now.leaf_transitions &&
	       before->zapped == now.zapped && before->leaked == now.leaked;
}

TEST_F(bad_input, before_init_vm)
{
	struct td *td = &self->td;

	ASSERT_TD_OK(td, td_create(td));
	EXPECT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_FINALIZE_VM, 0, NULL));
	EXPECT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_INIT_MEM_REGION, 0, NULL));
	EXPECT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_CMD_NR_MAX, 0, NULL));
	EXPECT_EQ(-EIO, errno_of(ioctl(td->vm_fd, KVM_CREATE_VCPU, 0ul)));
	/* None of that stands in the way of what is right. */
	EXPECT_TD_OK(td, td_init_vm(td, 0));
	EXPECT_TD_OK(td, td_add_vcpu(td));
}

TEST_F(bad_input, capabilities)
{
	struct td *td = &self->td;

	ASSERT_TD_OK(td, td_create(td));
	EXPECT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_CAPABILITIES, 1, td->caps));
	EXPECT_EQ(-EFAULT, td_vm_op(td, KVM_TDX_CAPABILITIES, 0, NULL));
	td->caps->cpuid.nent = 0;
	EXPECT_EQ(-E2BIG, td_vm_op(td, KVM_TDX_CAPABILITIES, 0, td->caps));
}

TEST_F(bad_input, init_vm)
{
	struct kvm_tdx_cmd cmd = { .id = KVM_TDX_INIT_VM, .hw_error = 1 };
	struct kvm_cpuid_entry2 *address_bits = NULL;
	struct td *td = &self->td;
	struct kvm_tdx_init_vm *init;
	__u32 i, nent;

	ASSERT_TD_OK(td, td_create(td));
	init = td_default_init(td, 0);
	ASSERT_NE(NULL, init);
	nent = init->cpuid.nent;
	for (i = 0; i < nent; i++)
		if (init->cpuid.entries[i].function == 0x80000008)
			address_bits = &init->cpuid.entries[i];
	ASSERT_NE(NULL, address_bits);

	EXPECT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_INIT_VM, 1, init));
	EXPECT_EQ(-EFAULT, td_vm_op(td, KVM_TDX_INIT_VM, 0, NULL));
	cmd.data = (unsigned long)init;
	EXPECT_EQ(-EINVAL, errno_of(ioctl(td->vm_fd, KVM_MEMORY_ENCRYPT_OP, &cmd)));
	EXPECT_EQ(-EFAULT, errno_of(ioctl(td->vm_fd, KVM_MEMORY_ENCRYPT_OP, NULL)));

	init->cpuid.nent = 257;
	EXPECT_EQ(-E2BIG, td_vm_op(td, KVM_TDX_INIT_VM, 0, init));
	init->cpuid.nent = 0;
	EXPECT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_INIT_VM, 0, init));
	init->cpuid.nent = nent + 1;
	init->cpuid.entries[nent].function = 0x12345678;
	EXPECT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_INIT_VM, 0, init));
	init->cpuid.nent = nent;
	init->cpuid.padding = 1;
	EXPECT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_INIT_VM, 0, init));
	init->cpuid.padding = 0;
	init->reserved[11] = 1;
	EXPECT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_INIT_VM, 0, init));
	init->reserved[11] = 0;
	init->attributes = ~td->caps->supported_attrs;
	EXPECT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_INIT_VM, 0, init));
	init->attributes = 0;
	init->xfam |= 1ull << 63;
	EXPECT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_INIT_VM, 0, init));
	init->xfam &= ~(1ull << 63);
	address_bits->eax ^= 1 << 16;
	EXPECT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_INIT_VM, 0, init));
	address_bits->eax ^= 1 << 16;

	/* After eleven refusals the TD can still be made, but only once. */
	EXPECT_EQ(0, td_vm_op(td, KVM_TDX_INIT_VM, 0, init));
	EXPECT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_INIT_VM, 0, init));
	free(init);
}

struct race {
	struct td *td;
	struct td_vcpu *vcpu;
	const void *data;
	__u32 id;
	__u32 *go;
	int ret;
};

static void *race_thread(void *arg)
{
	struct race *race = arg;

	__atomic_add_fetch(race->go, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(race->go, __ATOMIC_SEQ_CST) < 2)
		;
	/* Not td_vm_op(): both threads would write hw_error of one struct td. */
	struct kvm_tdx_cmd cmd = { .id = race->id, .data = (unsigned long)race->data };

	race->ret = errno_of(ioctl(race->vcpu ? race->vcpu->fd : race->td->vm_fd,
				   KVM_MEMORY_ENCRYPT_OP, &cmd));
	return NULL;
}

/* Two threads at once; returns how many had success, *@error: of the other. */
static int race_two(struct race *a, struct race *b, int *error)
{
	pthread_t first, second;
	__u32 go = 0;

	a->go = &go;
	b->go = &go;
	pthread_create(&first, NULL, race_thread, a);
	pthread_create(&second, NULL, race_thread, b);
	pthread_join(first, NULL);
	pthread_join(second, NULL);
	*error = a->ret ? a->ret : b->ret;
	return !a->ret + !b->ret;
}

TEST_F(bad_input, init_vm_from_two_threads)
{
	struct kvm_tdx_init_vm *init;
	struct race a, b;
	int error;

	ASSERT_TD_OK(&self->td, td_create(&self->td));
	init = td_default_init(&self->td, 0);
	ASSERT_NE(NULL, init);
	a = (struct race) { .td = &self->td, .id = KVM_TDX_INIT_VM, .data = init };
	b = a;
	EXPECT_EQ(1, race_two(&a, &b, &error));
	EXPECT_EQ(-EINVAL, error);
	free(init);
}

TEST_F(bad_input, init_vcpu)
{
	struct kvm_cpuid2 none = {};
	struct td *td = &self->td;
	struct td_vcpu *vcpu = &td->vcpu[0];
	unsigned long limit;

	ASSERT_TD_OK(td, td_create(td));
	ASSERT_TD_OK(td, td_init_vm(td, 0));
	ASSERT_TD_OK(td, td_add_vcpu(td));
	EXPECT_EQ(-EINVAL, td_vcpu_op(vcpu, KVM_TDX_INIT_VCPU, 1, NULL));
	EXPECT_EQ(-EINVAL, td_vcpu_op(vcpu, KVM_TDX_CAPABILITIES, 0, NULL));
	EXPECT_EQ(-EFAULT, td_vcpu_op(vcpu, KVM_TDX_GET_CPUID, 0, NULL));
	EXPECT_EQ(-E2BIG, td_vcpu_op(vcpu, KVM_TDX_GET_CPUID, 0, &none));
	EXPECT_TD_OK(td, td_init_vcpu(vcpu));
	EXPECT_EQ(-EINVAL, td_vcpu_op(vcpu, KVM_TDX_INIT_VCPU, 0, NULL));
	/* The same vCPU again, and an id beyond the limit. */
	EXPECT_EQ(-EEXIST, errno_of(ioctl(td->vm_fd, KVM_CREATE_VCPU, 0ul)));
	limit = ioctl(td->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPU_ID);
	EXPECT_EQ(-EINVAL, errno_of(ioctl(td->vm_fd, KVM_CREATE_VCPU, limit)));
}

TEST_F(bad_input, vcpu_without_x2apic)
{
	struct td *td = &self->td;
	struct kvm_cpuid2 *cpuid;
	__u32 i;

	ASSERT_TD_OK(td, td_create(td));
	ASSERT_TD_OK(td, td_init_vm(td, 0));
	ASSERT_TD_OK(td, td_add_vcpu(td));
	cpuid = td_default_cpuid(td);
	ASSERT_NE(NULL, cpuid);
	for (i = 0; i < cpuid->nent; i++)
		if (cpuid->entries[i].function == 1)
			cpuid->entries[i].ecx &= ~(1u << 21);
	ASSERT_EQ(0, ioctl(td->vcpu[0].fd, KVM_SET_CPUID2, cpuid));
	free(cpuid);
	EXPECT_EQ(-EINVAL, td_vcpu_op(&td->vcpu[0], KVM_TDX_INIT_VCPU, 0, NULL));
}

TEST_F(bad_input, run_too_early)
{
	const struct td_config config = { .no_finalize = true };
	struct td *td = &self->td;

	ASSERT_TD_OK(td, td_build(td, &config));
	EXPECT_EQ(-EINVAL, errno_of(ioctl(td->vcpu[0].fd, KVM_RUN, 0)));
	ASSERT_TD_OK(td, td_finalize(td));
	EXPECT_TD_OK(td, td_ops_run(&td->vcpu[0]));
}

/* Shows: R46, B18. */
TEST_F(bad_input, add_memory)
{
	struct td *td = &self->td;
	struct td_vcpu *vcpu = &td->vcpu[0];
	struct td_counters before;
	const struct td_config config = { .no_finalize = true };
	struct kvm_tdx_init_mem_region region;
	__u64 source;
	unsigned int i;

	ASSERT_TD_OK(td, td_build(td, &config));
	source = (unsigned long)td->slot[0].shared;

	const struct {
		const char *what;
		struct kvm_tdx_init_mem_region region;
		int ret;
	} bad[] = {
		{ "no source", { 0, TD_RAM_GPA, 1 }, -EINVAL },
		{ "source unaligned", { source + 8, TD_RAM_GPA, 1 }, -EINVAL },
		{ "GPA unaligned", { source, TD_RAM_GPA + 8, 1 }, -EINVAL },
		{ "no pages", { source, TD_RAM_GPA, 0 }, -EINVAL },
		{ "wraps", { source, TD_RAM_GPA, ~0ull >> 12 }, -EINVAL },
		{ "wraps in shift", { source, TD_RAM_GPA, 1ull << 52 }, -EINVAL },
		{ "wraps to a page", { source, TD_RAM_GPA, (1ull << 52) + 1 }, -EINVAL },
		{ "shared GPA", { source, TD_RAM_GPA | TD_SHARED_BIT, 1 }, -EINVAL },
		{ "ends in shared", { source, TD_SHARED_BIT - TD_PAGE, 2 }, -EINVAL },
		{ "beyond shared", { source, TD_SHARED_BIT << 1 | TD_RAM_GPA, 1 }, -EINVAL },
		{ "top of the range", { source, ~0ull << 12, 1 }, -EINVAL },
		{ "no slot", { source, TD_MMIO_GPA, 1 }, -EINVAL },
		{ "slot without guest_memfd", { source, TD_BLOCKS_GPA, 1 }, -EINVAL },
		{ "below the slot", { source, TD_RAM_GPA - TD_PAGE, 1 }, -EINVAL },
		{ "source unmapped", { 0x1000, TD_RAM_GPA, 1 }, -EFAULT },
	};

	td_counters_read(&before);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		region = bad[i].region;
		EXPECT_EQ(bad[i].ret, td_vcpu_op(vcpu, KVM_TDX_INIT_MEM_REGION, 0, &region))
			TH_LOG("%s", bad[i].what);
		EXPECT_EQ(0, memcmp(&region, &bad[i].region, sizeof(region)))
			TH_LOG("%s: the region was moved on", bad[i].what);
	}
	region = (struct kvm_tdx_init_mem_region) { source, TD_RAM_GPA, 1 };
	EXPECT_EQ(-EINVAL, td_vcpu_op(vcpu, KVM_TDX_INIT_MEM_REGION, 2, &region));
	EXPECT_EQ(-EFAULT, td_vcpu_op(vcpu, KVM_TDX_INIT_MEM_REGION, 0, NULL));
	ASSERT_TD_OK(td, td_set_private(td, TD_RAM_GPA, TD_PAGE, false));
	EXPECT_EQ(-EINVAL, td_vcpu_op(vcpu, KVM_TDX_INIT_MEM_REGION, 0, &region));
	ASSERT_TD_OK(td, td_set_private(td, TD_RAM_GPA, TD_PAGE, true));
	EXPECT_TRUE(unchanged(&before));

	/* A range that leaves the slot is done up to there, and says so. */
	region = (struct kvm_tdx_init_mem_region) {
		source, TD_RAM_GPA + (4 << 20) - 2 * TD_PAGE, 4
	};
	EXPECT_EQ(-EINVAL, td_vcpu_op(vcpu, KVM_TDX_INIT_MEM_REGION, 0, &region));
	EXPECT_EQ(2, region.nr_pages);
	EXPECT_EQ(TD_RAM_GPA + (4 << 20), region.gpa);

	/* And after the TD is final: no more. */
	ASSERT_TD_OK(td, td_finalize(td));
	region = (struct kvm_tdx_init_mem_region) { source, TD_RAM_GPA, 1 };
	EXPECT_EQ(-EINVAL, td_vcpu_op(vcpu, KVM_TDX_INIT_MEM_REGION, 0, &region));
	EXPECT_EQ(-EINVAL, td_vcpu_op(vcpu, KVM_TDX_INIT_VCPU, 0, NULL));
	EXPECT_EQ(-EINVAL, td_vcpu_op(vcpu, KVM_TDX_GET_CPUID, 0, NULL));
	EXPECT_TD_OK(td, td_ops_run(vcpu));
}

/* Once more, or as part of another region: refused, and as if it had not been asked. */
TEST_F(bad_input, add_memory_twice)
{
	const struct td_config config = { .no_finalize = true };
	struct td *td = &self->td;
	struct td_vcpu *vcpu = &td->vcpu[0];
	struct kvm_tdx_init_mem_region region;
	struct td_counters before;
	__u64 *data, i;

	ASSERT_TD_OK(td, td_build(td, &config));
	data = td->slot[0].shared;
	for (i = 0; i < 4 * 512; i++)
		data[i] = guest_pattern(TD_RAM_GPA + 8 * i, 1);
	ASSERT_TD_OK(td, td_add_memory(vcpu, TD_RAM_GPA, data, 4, true));
	td_counters_read(&before);
	memset(data, 0, 4 * TD_PAGE);
	for (i = 0; i < 4; i++) {
		const struct kvm_tdx_init_mem_region again = {
			(unsigned long)data, TD_RAM_GPA + i * TD_PAGE, 4
		};

		region = again;
		td->hw_error = 1;
		EXPECT_EQ(-EEXIST, td_vcpu_op(vcpu, KVM_TDX_INIT_MEM_REGION,
					      KVM_TDX_MEASURE_MEMORY_REGION, &region));
		EXPECT_EQ(0, td->hw_error);
		EXPECT_EQ(0, memcmp(&again, &region, sizeof(region)));
	}
	EXPECT_TRUE(unchanged(&before));
	/* The region that runs into one is done up to there. */
	ASSERT_TD_OK(td, td_add_memory(vcpu, TD_RAM_GPA + 8 * TD_PAGE, data, 2, false));
	region = (struct kvm_tdx_init_mem_region) {
		(unsigned long)data, TD_RAM_GPA + 4 * TD_PAGE, 6
	};
	EXPECT_EQ(-EEXIST, td_vcpu_op(vcpu, KVM_TDX_INIT_MEM_REGION, 0, &region));
	EXPECT_EQ(2, region.nr_pages);
	EXPECT_EQ(TD_RAM_GPA + 8 * TD_PAGE, region.gpa);
	for (i = 4; i < 8; i++)
		mrtd_add_page(&td->mrtd, TD_RAM_GPA + i * TD_PAGE, data, false);

	ASSERT_TD_OK(td, td_finalize(td));
	EXPECT_NE(0, td_mrtd_known(td->mrtd_digest));
	td_op(vcpu, GUEST_VERIFY, TD_RAM_GPA, 4, 1);
	EXPECT_TD_OK(td, td_ops_run(vcpu));
}

TEST_F(bad_input, add_memory_before_init_vcpu)
{
	struct kvm_tdx_init_mem_region region = { .gpa = TD_RAM_GPA, .nr_pages = 1 };
	struct td *td = &self->td;

	ASSERT_TD_OK(td, td_create(td));
	ASSERT_TD_OK(td, td_init_vm(td, 0));
	ASSERT_TD_OK(td, td_add_vcpu(td));
	ASSERT_TD_OK(td, td_add_slot(td, 0, TD_RAM_GPA, 1 << 20, true));
	region.source_addr = (unsigned long)td->slot[0].shared;
	EXPECT_EQ(-EINVAL, td_vcpu_op(&td->vcpu[0], KVM_TDX_INIT_MEM_REGION, 0, &region));
	EXPECT_TRUE(unchanged(&self->before));
}

/* Shows: B8. */
TEST_F(bad_input, add_memory_from_two_threads)
{
	const struct td_config config = { .no_finalize = true, .nr_vcpus = 2 };
	struct kvm_tdx_init_mem_region region[2];
	struct td *td = &self->td;
	struct race race[2];
	int i, error;

	/* Different pages: both succeed, one after the other. */
	ASSERT_TD_OK(td, td_build(td, &config));
	for (i = 0; i < 2; i++) {
		region[i] = (struct kvm_tdx_init_mem_region) {
			.source_addr = (unsigned long)td->slot[0].shared,
			.gpa = TD_RAM_GPA + i * 16 * TD_PAGE,
			.nr_pages = 16,
		};
		race[i] = (struct race) {
			.td = td, .vcpu = &td->vcpu[i], .data = &region[i],
			.id = KVM_TDX_INIT_MEM_REGION,
		};
	}
	EXPECT_EQ(2, race_two(&race[0], &race[1], &error)) TH_LOG("%s", strerror(-error));
	ASSERT_TD_OK(td, td_finalize(td));
	td_op(&td->vcpu[0], GUEST_ACCEPT, TD_RAM_GPA, 32, 0);
	EXPECT_TD_OK(td, td_ops_run(&td->vcpu[0]));
	EXPECT_EQ(32, td->vcpu[0].block->ops[0].res[1]);
}

/* What is not initialised before the TD is finalized never will be. */
TEST_F(bad_input, vcpu_is_not_initialised)
{
	struct td *td = &self->td;

	ASSERT_TD_OK(td, td_create(td));
	ASSERT_TD_OK(td, td_init_vm(td, 0));
	EXPECT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_FINALIZE_VM, 0, NULL));
	ASSERT_TD_OK(td, td_add_vcpu(td));
	ASSERT_TD_OK(td, td_add_vcpu(td));
	EXPECT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_FINALIZE_VM, 0, NULL));
	ASSERT_TD_OK(td, td_init_vcpu(&td->vcpu[0]));
	ASSERT_TD_OK(td, td_add_slot(td, 0, TD_RAM_GPA, 1 << 20, true));
	ASSERT_TD_OK(td, td_finalize(td));
	EXPECT_EQ(-EINVAL, td_vcpu_op(&td->vcpu[1], KVM_TDX_INIT_VCPU, 0, NULL));
	EXPECT_EQ(-EINVAL, td_prefault_once(&td->vcpu[1], TD_RAM_GPA, TD_PAGE));
	EXPECT_EQ(0, td_prefault_once(&td->vcpu[0], TD_RAM_GPA, TD_PAGE));
}

/* No memslots at GPAs beyond those that the TD has. */
TEST_F(bad_input, beyond_the_shared_bit)
{
	static const __u64 gpas[] = { TD_SHARED_BIT, TD_SHARED_BIT << 1, TD_SHARED_BIT << 3 };
	const struct td_config config = {};
	struct td *td = &self->td;
	unsigned int i;

	ASSERT_TD_OK(td, td_build(td, &config));
	for (i = 0; i < ARRAY_SIZE(gpas); i++)
		EXPECT_EQ(-EINVAL, td_add_plain_slot(td, 4, gpas[i], TD_PAGE, true));
	EXPECT_TD_OK(td, td_ops_run(&td->vcpu[0]));
}

/* The same for slots that are there before the width of the TD's GPAs is known. */
TEST_F(bad_input, slot_before_init_vm)
{
	static const struct {
		__u64 gpa, pages;
	} bad[] = {
		{ TD_SHARED_BIT, 1 }, { TD_SHARED_BIT - TD_PAGE, 2 },
		{ TD_SHARED_BIT << 1, 1 }, { TD_SHARED_BIT << 3 | TD_RAM_GPA, 1 },
	};
	struct kvm_tdx_init_vm *init;
	struct td *td = &self->td;
	unsigned int i;

	ASSERT_TD_OK(td, td_create(td));
	init = td_default_init(td, 0);
	ASSERT_NE(NULL, init);
	ASSERT_TD_OK(td, td_add_plain_slot(td, 4, TD_SHARED_BIT - TD_PAGE, TD_PAGE, true));
	ASSERT_TD_OK(td, td_delete_slot(td, 4));
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		ASSERT_TD_OK(td, td_add_plain_slot(td, 4, bad[i].gpa,
						   bad[i].pages * TD_PAGE, i & 1));
		ASSERT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_INIT_VM, 0, init));
		ASSERT_EQ(-EIO, errno_of(ioctl(td->vm_fd, KVM_CREATE_VCPU, 0ul)));
		ASSERT_TD_OK(td, td_delete_slot(td, 4));
	}
	ASSERT_TD_OK(td, td_add_plain_slot(td, 4, TD_SHARED_BIT - TD_PAGE, TD_PAGE, true));
	EXPECT_EQ(0, td_vm_op(td, KVM_TDX_INIT_VM, 0, init));
	free(init);
	EXPECT_EQ(-EINVAL, td_add_plain_slot(td, 5, TD_SHARED_BIT, TD_PAGE, true));
	EXPECT_TD_OK(td, td_add_vcpu(td));
	EXPECT_TD_OK(td, td_init_vcpu(&td->vcpu[0]));
}

static bool has_gmem(int vm_fd, __u64 flags)
{
	struct kvm_create_guest_memfd create = { .size = TD_PAGE, .flags = flags };
	int fd = ioctl(vm_fd, KVM_CREATE_GUEST_MEMFD, &create);

	if (fd < 0)
		return false;
	close(fd);
	return true;
}

/* A guest_memfd that serves shared and private pages: not for a TD, and KVM says so. */
TEST_F(bad_input, guest_memfd_for_mmap)
{
	const __u64 all = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	struct td *td = &self->td;
	int vm_fd;

	ASSERT_TD_OK(td, td_create(td));
	EXPECT_EQ(0, ioctl(td->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS));
	EXPECT_TRUE(has_gmem(td->vm_fd, 0));
	EXPECT_FALSE(has_gmem(td->vm_fd, GUEST_MEMFD_FLAG_MMAP));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_FALSE(has_gmem(td->vm_fd, all));
	EXPECT_EQ(EINVAL, errno);

	/* Other VMs have it as ever. */
	vm_fd = ioctl(td->kvm_fd, KVM_CREATE_VM, KVM_X86_DEFAULT_VM);
	ASSERT_LE(0, vm_fd);
	EXPECT_EQ(all, ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_MEMFD_FLAGS));
	EXPECT_TRUE(has_gmem(vm_fd, GUEST_MEMFD_FLAG_MMAP));
	EXPECT_TRUE(has_gmem(vm_fd, all));
	close(vm_fd);
}

TEST_F(bad_input, finalize)
{
	const struct td_config config = { .no_finalize = true };
	struct td *td = &self->td;
	struct race a = { .td = td, .id = KVM_TDX_FINALIZE_VM }, b = a;
	int error;

	ASSERT_TD_OK(td, td_build(td, &config));
	EXPECT_EQ(1, race_two(&a, &b, &error));
	EXPECT_EQ(-EINVAL, error);
	EXPECT_EQ(-EINVAL, td_vm_op(td, KVM_TDX_FINALIZE_VM, 0, NULL));
	EXPECT_TD_OK(td, td_ops_run(&td->vcpu[0]));
}

TEST_F(bad_input, prefault)
{
	const struct td_config config = {};
	struct td *td = &self->td;
	struct td_vcpu *vcpu = &td->vcpu[0];
	struct kvm_pre_fault_memory range = { .gpa = TD_RAM_GPA, .size = TD_PAGE, .flags = 1 };
	struct td_counters before;

	ASSERT_TD_OK(td, td_build(td, &config));
	td_counters_read(&before);
	EXPECT_EQ(-EINVAL, td_prefault(vcpu, TD_RAM_GPA + 1, TD_PAGE, NULL));
	EXPECT_EQ(-EINVAL, td_prefault(vcpu, TD_RAM_GPA, TD_PAGE + 1, NULL));
	EXPECT_EQ(-EINVAL, td_prefault(vcpu, TD_RAM_GPA, 0, NULL));
	EXPECT_EQ(-EINVAL, td_prefault(vcpu, ~0ull << 12, 2 * TD_PAGE, NULL));
	EXPECT_EQ(-EINVAL, td_prefault(vcpu, TD_RAM_GPA | TD_SHARED_BIT, TD_PAGE, NULL));
	EXPECT_EQ(-EINVAL, errno_of(ioctl(vcpu->fd, KVM_PRE_FAULT_MEMORY, &range)));
	EXPECT_EQ(-EFAULT, errno_of(ioctl(vcpu->fd, KVM_PRE_FAULT_MEMORY, NULL)));
	EXPECT_EQ(-ENOENT, td_prefault(vcpu, TD_MMIO_GPA, TD_PAGE, NULL));
	EXPECT_EQ(-ENOENT, td_prefault(vcpu, TD_SHARED_BIT - TD_PAGE, TD_PAGE, NULL));
	EXPECT_TRUE(unchanged(&before));
	EXPECT_TD_OK(td, td_prefault(vcpu, TD_RAM_GPA, TD_PAGE, NULL));
}

TEST_F(bad_input, attributes_and_slots)
{
	const struct td_config config = {};
	struct td *td = &self->td;
	struct td_counters before;

	ASSERT_TD_OK(td, td_build(td, &config));
	ASSERT_TD_OK(td, td_prefault(&td->vcpu[0], TD_RAM_GPA, 8 * TD_PAGE, NULL));
	td_counters_read(&before);
	EXPECT_EQ(-EINVAL, td_set_attributes(td, TD_RAM_GPA + 1, TD_PAGE, 0, 0));
	EXPECT_EQ(-EINVAL, td_set_attributes(td, TD_RAM_GPA, TD_PAGE + 1, 0, 0));
	EXPECT_EQ(-EINVAL, td_set_attributes(td, TD_RAM_GPA, 0, 0, 0));
	EXPECT_EQ(-EINVAL, td_set_attributes(td, ~0ull << 12, 2 * TD_PAGE, 0, 0));
	EXPECT_EQ(-EINVAL, td_set_attributes(td, TD_RAM_GPA, TD_PAGE, 0, 1));
	EXPECT_EQ(-EINVAL, td_set_attributes(td, TD_RAM_GPA, TD_PAGE, 1, 0));
	/* No slot may reach into the shared half, or overlap another. */
	EXPECT_EQ(-EINVAL, td_add_slot(td, 4, TD_SHARED_BIT, TD_PAGE, false));
	EXPECT_EQ(-EINVAL, td_add_slot(td, 4, TD_SHARED_BIT - TD_PAGE, 2 * TD_PAGE, false));
	EXPECT_EQ(-EEXIST, td_add_slot(td, 4, TD_RAM_GPA, TD_PAGE, false));
	EXPECT_TRUE(unchanged(&before));
}

TEST_F(bad_input, punch_hole)
{
	const struct td_config config = {};
	struct td *td = &self->td;
	struct td_counters before;
	int fd;

	ASSERT_TD_OK(td, td_build(td, &config));
	ASSERT_TD_OK(td, td_prefault(&td->vcpu[0], TD_RAM_GPA, 8 * TD_PAGE, NULL));
	td_counters_read(&before);
	fd = td->slot[0].gmem;
	EXPECT_EQ(-EINVAL, td_punch_hole(td, 0, 1, TD_PAGE));
	EXPECT_EQ(-EINVAL, td_punch_hole(td, 0, 0, TD_PAGE - 1));
	EXPECT_EQ(-EINVAL, td_punch_hole(td, 0, 0, 0));
	EXPECT_EQ(-EOPNOTSUPP, errno_of(fallocate(fd, 0, 0, TD_PAGE)));
	EXPECT_EQ(-EOPNOTSUPP, errno_of(fallocate(fd, FALLOC_FL_KEEP_SIZE |
						  FALLOC_FL_ZERO_RANGE, 0, TD_PAGE)));
	EXPECT_EQ(-EINVAL, td_allocate(td, 0, 4 << 20, TD_PAGE));
	/* Beyond the end there is nothing to take away. */
	EXPECT_TD_OK(td, td_punch_hole(td, 0, 4 << 20, TD_PAGE));
	EXPECT_TRUE(unchanged(&before));
}

TEST_F(bad_input, td_without_vcpus_or_memory)
{
	/* A TD that is given up at each step of its making. */
	ASSERT_TD_OK(&self->td, td_create(&self->td));
	td_destroy(&self->td);
	ASSERT_TD_OK(&self->td, td_create(&self->td));
	ASSERT_TD_OK(&self->td, td_init_vm(&self->td, 0));
	td_destroy(&self->td);
	ASSERT_TD_OK(&self->td, td_create(&self->td));
	ASSERT_TD_OK(&self->td, td_init_vm(&self->td, 0));
	ASSERT_TD_OK(&self->td, td_add_vcpu(&self->td));
	td_destroy(&self->td);
	ASSERT_TD_OK(&self->td, td_create(&self->td));
	ASSERT_TD_OK(&self->td, td_init_vm(&self->td, 0));
	ASSERT_TD_OK(&self->td, td_add_vcpu(&self->td));
	ASSERT_TD_OK(&self->td, td_init_vcpu(&self->td.vcpu[0]));
	ASSERT_TD_OK(&self->td, td_add_slot(&self->td, 0, TD_RAM_GPA, 1 << 20, true));
	ASSERT_TD_OK(&self->td, td_add_memory(&self->td.vcpu[0], TD_RAM_GPA,
					      self->td.slot[0].shared, 4, true));
	td_destroy(&self->td);
}

TEST_HARNESS_MAIN
