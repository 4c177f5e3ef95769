// SPDX-License-Identifier: GPL-2.0
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/kvm_para.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "td.h"

#define MAX_CPUID	256

static int fail(struct td *td, int ret, const char *format, ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(td->error, sizeof(td->error), format, args);
	va_end(args);
	if (ret < 0 && n >= 0 && (size_t)n < sizeof(td->error))
		snprintf(td->error + n, sizeof(td->error) - n, ": %s (SEAMCALL status %llx)",
			 strerror(-ret), (unsigned long long)td->hw_error);
	return ret;
}

const char *td_error(const struct td *td)
{
	return td->error[0] ? td->error : "no error";
}

const char *td_unsupported(void)
{
	const char *why = NULL;
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int types;

	if (fd < 0)
		return errno == ENOENT ? "no /dev/kvm: is kvm_intel loaded?" :
					 "/dev/kvm cannot be opened";
	types = ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES);
	if (types < 0 || !(types & 1 << KVM_X86_TDX_VM))
		why = "KVM has no TDX VMs here: no TDX host, or kvm_intel loaded without tdx=1";
	close(fd);
	return why;
}

static int td_ioctl(int fd, unsigned long cmd, void *arg)
{
	int ret = ioctl(fd, cmd, arg);

	return ret < 0 ? -errno : ret;
}

static int memory_encrypt_op(struct td *td, int fd, __u32 id, __u32 flags,
			     const void *data)
{
	struct kvm_tdx_cmd cmd = {
		.id = id,
		.flags = flags,
		.data = (unsigned long)data,
	};
	int ret = td_ioctl(fd, KVM_MEMORY_ENCRYPT_OP, &cmd);

	td->hw_error = cmd.hw_error;
	return ret;
}

int td_vm_op(struct td *td, __u32 id, __u32 flags, const void *data)
{
	return memory_encrypt_op(td, td->vm_fd, id, flags, data);
}

int td_vcpu_op(struct td_vcpu *vcpu, __u32 id, __u32 flags, const void *data)
{
	return memory_encrypt_op(vcpu->td, vcpu->fd, id, flags, data);
}

static int enable_cap(struct td *td, __u32 cap, __u64 arg)
{
	struct kvm_enable_cap enable = { .cap = cap, .args = { arg } };

	return td_ioctl(td->vm_fd, KVM_ENABLE_CAP, &enable);
}

static int get_capabilities(struct td *td)
{
	size_t size = sizeof(*td->caps) + MAX_CPUID * sizeof(struct kvm_cpuid_entry2);
	int ret;

	td->caps = calloc(1, size);
	if (!td->caps)
		return fail(td, -ENOMEM, "capabilities");
	td->caps->cpuid.nent = MAX_CPUID;
	ret = td_vm_op(td, KVM_TDX_CAPABILITIES, 0, td->caps);
	return ret ? fail(td, ret, "KVM_TDX_CAPABILITIES") : 0;
}

void td_reset(struct td *td)
{
	int i;

	memset(td, 0, sizeof(*td));
	td->kvm_fd = -1;
	td->vm_fd = -1;
	for (i = 0; i < TD_MAX_SLOTS; i++)
		td->slot[i].gmem = -1;
	for (i = 0; i < TD_MAX_VCPUS; i++)
		td->vcpu[i].fd = -1;
	mrtd_init(&td->mrtd);
}

int td_create(struct td *td)
{
	int ret;

	td_reset(td);
	td->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (td->kvm_fd < 0)
		return fail(td, -errno, "/dev/kvm");
	ret = ioctl(td->kvm_fd, KVM_CREATE_VM, KVM_X86_TDX_VM);
	if (ret < 0)
		return fail(td, -errno, "KVM_CREATE_VM of a TD");
	td->vm_fd = ret;
	ret = enable_cap(td, KVM_CAP_SPLIT_IRQCHIP, 24);
	if (ret)
		return fail(td, ret, "KVM_CAP_SPLIT_IRQCHIP");
	ret = enable_cap(td, KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE);
	if (ret)
		return fail(td, ret, "KVM_CAP_EXIT_HYPERCALL");
	return get_capabilities(td);
}

struct kvm_cpuid2 *td_default_cpuid(struct td *td)
{
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) +
					  MAX_CPUID * sizeof(cpuid->entries[0]));
	unsigned int i;

	if (!cpuid)
		return NULL;
	cpuid->nent = MAX_CPUID;
	if (ioctl(td->kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid)) {
		fail(td, -errno, "KVM_GET_SUPPORTED_CPUID");
		free(cpuid);
		return NULL;
	}
	for (i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];

		/* A TD's APIC is always an x2APIC; GPAs have 48 bits. */
		if (entry->function == 1)
			entry->ecx |= 1u << 21;
		if (entry->function == 0x80000008) {
			if ((entry->eax & 0xff) < 48)
				entry->eax = (entry->eax & ~0xffu) | 48;
			entry->eax = (entry->eax & ~0xff0000u) | 48 << 16;
		}
	}
	return cpuid;
}

/* What KVM supports of what the TDX module lets a VMM configure. */
struct kvm_tdx_init_vm *td_default_init(struct td *td, __u64 attributes)
{
	struct kvm_cpuid2 *supported = td_default_cpuid(td);
	struct kvm_tdx_init_vm *init;
	unsigned int i, k;

	init = calloc(1, sizeof(*init) + MAX_CPUID * sizeof(init->cpuid.entries[0]));
	if (!init || !supported) {
		free(init);
		free(supported);
		return NULL;
	}
	init->attributes = attributes;
	init->xfam = td->caps->supported_xfam & 3;
	for (i = 0; i < td->caps->cpuid.nent; i++) {
		const struct kvm_cpuid_entry2 *mask = &td->caps->cpuid.entries[i];
		struct kvm_cpuid_entry2 *entry;

		for (k = 0; k < supported->nent; k++)
			if (supported->entries[k].function == mask->function &&
			    supported->entries[k].index == mask->index)
				break;
		if (k == supported->nent)
			continue;
		entry = &init->cpuid.entries[init->cpuid.nent++];
		*entry = supported->entries[k];
		entry->eax &= mask->eax;
		entry->ebx &= mask->ebx;
		entry->ecx &= mask->ecx;
		entry->edx &= mask->edx;
	}
	free(supported);
	return init;
}

int td_init_vm(struct td *td, __u64 attributes)
{
	struct kvm_tdx_init_vm *init = td_default_init(td, attributes);
	int ret;

	if (!init)
		return -ENOMEM;
	ret = td_vm_op(td, KVM_TDX_INIT_VM, 0, init);
	free(init);
	return ret ? fail(td, ret, "KVM_TDX_INIT_VM") : 0;
}

int td_add_vcpu(struct td *td)
{
	struct td_vcpu *vcpu = &td->vcpu[td->nr_vcpus];
	struct kvm_cpuid2 *cpuid;
	int ret;

	if (td->nr_vcpus == TD_MAX_VCPUS)
		return fail(td, -ENOSPC, "more vCPUs than the library supports");
	vcpu->td = td;
	vcpu->index = td->nr_vcpus;
	ret = ioctl(td->vm_fd, KVM_CREATE_VCPU, (unsigned long)vcpu->index);
	if (ret < 0)
		return fail(td, -errno, "KVM_CREATE_VCPU %d", vcpu->index);
	vcpu->fd = ret;
	td->nr_vcpus++;

	vcpu->run_size = ioctl(td->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	vcpu->run = mmap(NULL, vcpu->run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
			 vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED) {
		vcpu->run = NULL;
		return fail(td, -errno, "mmap of struct kvm_run");
	}

	cpuid = td_default_cpuid(td);
	if (!cpuid)
		return -ENOMEM;
	ret = td_ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid);
	free(cpuid);
	return ret ? fail(td, ret, "KVM_SET_CPUID2") : 0;
}

int td_init_vcpu(struct td_vcpu *vcpu)
{
	unsigned long rcx = TD_BLOCKS_GPA + vcpu->index * GUEST_BLOCK_SIZE;
	int ret = td_vcpu_op(vcpu, KVM_TDX_INIT_VCPU, 0, (void *)rcx);

	return ret ? fail(vcpu->td, ret, "KVM_TDX_INIT_VCPU") : 0;
}

static int set_slot(struct td *td, const struct td_slot *slot, __u64 size)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = slot->id,
		.guest_phys_addr = slot->gpa,
		.memory_size = size,
		.userspace_addr = (unsigned long)slot->shared,
	};

	if (slot->gmem >= 0) {
		region.flags = KVM_MEM_GUEST_MEMFD;
		region.guest_memfd = slot->gmem;
	}
	return td_ioctl(td->vm_fd, KVM_SET_USER_MEMORY_REGION2, &region);
}

static void drop_slot(struct td_slot *slot)
{
	if (slot->gmem >= 0)
		close(slot->gmem);
	if (slot->shared)
		munmap(slot->shared, slot->size);
	*slot = (struct td_slot) { .gmem = -1 };
}

int td_add_slot(struct td *td, __u32 id, __u64 gpa, __u64 size, bool private)
{
	int ret = td_add_plain_slot(td, id, gpa, size, private);

	return ret || !private ? ret : td_set_private(td, gpa, size, true);
}

int td_add_plain_slot(struct td *td, __u32 id, __u64 gpa, __u64 size, bool gmem)
{
	struct td_slot *slot = &td->slot[id];
	int ret;

	*slot = (struct td_slot) { .id = id, .gpa = gpa, .size = size, .gmem = -1 };
	slot->shared = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (slot->shared == MAP_FAILED) {
		slot->shared = NULL;
		return fail(td, -errno, "memory of slot %u", id);
	}
	if (gmem) {
		struct kvm_create_guest_memfd create = { .size = size };

		slot->gmem = td_ioctl(td->vm_fd, KVM_CREATE_GUEST_MEMFD, &create);
		if (slot->gmem < 0)
			return fail(td, slot->gmem, "KVM_CREATE_GUEST_MEMFD");
	}
	ret = set_slot(td, slot, size);
	if (ret) {
		drop_slot(slot);
		return fail(td, ret, "KVM_SET_USER_MEMORY_REGION2 of slot %u", id);
	}
	return 0;
}

int td_delete_slot(struct td *td, __u32 id)
{
	int ret = set_slot(td, &td->slot[id], 0);

	if (ret)
		return fail(td, ret, "removal of slot %u", id);
	drop_slot(&td->slot[id]);
	return 0;
}

int td_set_attributes(struct td *td, __u64 gpa, __u64 size, __u64 attributes,
		      __u64 flags)
{
	struct kvm_memory_attributes attr = {
		.address = gpa,
		.size = size,
		.attributes = attributes,
		.flags = flags,
	};

	return td_ioctl(td->vm_fd, KVM_SET_MEMORY_ATTRIBUTES, &attr);
}

int td_set_private(struct td *td, __u64 gpa, __u64 size, bool private)
{
	int ret = td_set_attributes(td, gpa, size,
				    private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0, 0);

	return ret ? fail(td, ret, "KVM_SET_MEMORY_ATTRIBUTES") : 0;
}

int td_add_memory(struct td_vcpu *vcpu, __u64 gpa, const void *data,
		  __u64 pages, bool measure)
{
	struct kvm_tdx_init_mem_region region = {
		.source_addr = (unsigned long)data,
		.gpa = gpa,
		.nr_pages = pages,
	};
	struct td *td = vcpu->td;
	__u64 i;
	int ret;

	/* The kernel moves the region on, so an interrupted call can go on. */
	do {
		ret = td_vcpu_op(vcpu, KVM_TDX_INIT_MEM_REGION,
				 measure ? KVM_TDX_MEASURE_MEMORY_REGION : 0, &region);
	} while (ret == -EINTR || ret == -EAGAIN);
	if (ret)
		return fail(td, ret, "KVM_TDX_INIT_MEM_REGION at %llx, %llu pages left",
			    region.gpa, region.nr_pages);
	for (i = 0; i < pages; i++)
		mrtd_add_page(&td->mrtd, gpa + i * TD_PAGE,
			      (const char *)data + i * TD_PAGE, measure);
	return 0;
}

static int load_image(struct td *td, const char *name, bool measure)
{
	char file[64];
	void *image, *pages;
	size_t size;
	int ret;

	snprintf(file, sizeof(file), "%s.bin", name);
	image = td_read_file(file, &size);
	if (!image)
		return fail(td, -ENOENT, "payload %s", file);
	if (size != TD_IMAGE_SIZE) {
		free(image);
		return fail(td, -EINVAL, "payload %s has %zu bytes", file, size);
	}
	pages = mmap(NULL, size, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == MAP_FAILED) {
		free(image);
		return fail(td, -ENOMEM, "payload %s", file);
	}
	memcpy(pages, image, size);
	free(image);
	ret = td_add_memory(&td->vcpu[0], TD_IMAGE_GPA, pages, size / TD_PAGE, measure);
	munmap(pages, size);
	return ret;
}

int td_load_image(struct td *td, const char *name)
{
	return load_image(td, name, true);
}

int td_finalize(struct td *td)
{
	int ret = td_vm_op(td, KVM_TDX_FINALIZE_VM, 0, NULL);

	if (ret)
		return fail(td, ret, "KVM_TDX_FINALIZE_VM");
	mrtd_final(&td->mrtd, td->mrtd_digest);
	return 0;
}

int td_build(struct td *td, const struct td_config *config)
{
	unsigned int i, vcpus = config->nr_vcpus ? config->nr_vcpus : 1;
	__u64 ram = config->ram_size ? config->ram_size : 4ul << 20;
	int ret = td_create(td);

	if (!ret)
		ret = td_init_vm(td, config->attributes);
	for (i = 0; !ret && i < vcpus; i++) {
		ret = td_add_vcpu(td);
		if (!ret)
			ret = td_init_vcpu(&td->vcpu[i]);
	}
	if (!ret)
		ret = td_add_slot(td, 0, TD_RAM_GPA, ram, true);
	if (!ret)
		ret = td_add_slot(td, 1, TD_IMAGE_GPA, TD_IMAGE_SIZE, true);
	if (!ret)
		ret = td_add_slot(td, 2, TD_BLOCKS_GPA,
				  TD_MAX_VCPUS * GUEST_BLOCK_SIZE, false);
	if (!ret)
		ret = td_add_slot(td, 3, TD_WORDS_GPA, TD_PAGE, false);
	for (i = 0; !ret && i < vcpus; i++) {
		td->vcpu[i].block = td->slot[2].shared + i * GUEST_BLOCK_SIZE;
		td_ops_clear(&td->vcpu[i]);
	}
	if (!ret && !config->no_image)
		ret = load_image(td, config->image ? config->image : "ops",
				 !config->no_measure);
	if (!ret && !config->no_finalize)
		ret = td_finalize(td);
	return ret;
}

void td_destroy(struct td *td)
{
	unsigned int i;

	for (i = 0; i < TD_MAX_VCPUS; i++) {
		struct td_vcpu *vcpu = &td->vcpu[i];

		if (vcpu->has_thread) {
			td_vcpu_cancel(vcpu);
			td_vcpu_join(vcpu);
		}
	}
	for (i = 0; i < TD_MAX_SLOTS; i++)
		if (td->slot[i].gmem >= 0)
			close(td->slot[i].gmem);
	for (i = 0; i < TD_MAX_VCPUS; i++) {
		struct td_vcpu *vcpu = &td->vcpu[i];

		if (vcpu->run)
			munmap(vcpu->run, vcpu->run_size);
		if (vcpu->fd >= 0)
			close(vcpu->fd);
		vcpu->run = NULL;
		vcpu->fd = -1;
	}
	if (td->vm_fd >= 0)
		close(td->vm_fd);
	if (td->kvm_fd >= 0)
		close(td->kvm_fd);
	for (i = 0; i < TD_MAX_SLOTS; i++) {
		td->slot[i].gmem = -1;
		drop_slot(&td->slot[i]);
	}
	free(td->caps);
	td->caps = NULL;
	td->vm_fd = -1;
	td->kvm_fd = -1;
	td->nr_vcpus = 0;
}

int td_prefault(struct td_vcpu *vcpu, __u64 gpa, __u64 size, __u64 *left)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa, .size = size };
	int ret;

	/* Success may leave a rest, which is then done by another call. */
	do {
		ret = td_ioctl(vcpu->fd, KVM_PRE_FAULT_MEMORY, &range);
	} while ((!ret && range.size) || ret == -EINTR || ret == -EAGAIN);
	if (left)
		*left = range.size;
	return ret ? fail(vcpu->td, ret, "KVM_PRE_FAULT_MEMORY at %llx", range.gpa) : 0;
}

int td_punch_hole(struct td *td, __u32 slot, __u64 offset, __u64 size)
{
	int ret = fallocate(td->slot[slot].gmem,
			    FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size);

	return ret ? fail(td, -errno, "FALLOC_FL_PUNCH_HOLE in slot %u", slot) : 0;
}

int td_allocate(struct td *td, __u32 slot, __u64 offset, __u64 size)
{
	int ret = fallocate(td->slot[slot].gmem, FALLOC_FL_KEEP_SIZE, offset, size);

	return ret ? fail(td, -errno, "fallocate in slot %u", slot) : 0;
}
