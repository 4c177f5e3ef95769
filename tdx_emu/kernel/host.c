// SPDX-License-Identifier: GPL-2.0
/* The machine as the software TDX module sees it, its hook and its debugfs. */
#include <linux/cleanup.h>
#include <linux/cpumask.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/irqflags.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/topology.h>
#include <linux/uaccess.h>
#include <asm/apic.h>
#include <asm/archrandom.h>
#include <asm/cpuid/api.h>
#include <asm/msr.h>
#include <asm/tdx.h>
#include <asm/tdx_emu.h>
#include <asm/tsc.h>
#include <asm/virt.h>

#include "emu.h"

static uint check;
module_param(check, uint, 0444);
MODULE_PARM_DESC(check, "Invariants checked after calls: 0 none, 1 what a call touched, 2 everything");

u32 emu_check_level(void)
{
	return check;
}

static char *version = "1.5.01-linux";
module_param(version, charp, 0444);
MODULE_PARM_DESC(version, "TDX module to be: 1.5.01, 1.5.05, 1.5.06, 1.5.08, 1.5.09, 1.5.13, 1.5.16, 1.5.20, 1.5.24, 1.5.25, or 1.5.01-linux, which is 1.5.01 with what Linux demands (default)");

/* Whether the parameter is the @len bytes at @name. */
bool emu_version_is(const u8 *name, size_t len)
{
	return strlen(version) == len && !memcmp(version, name, len);
}

u32 emu_this_cpu(void)
{
	return raw_smp_processor_id();
}

u32 emu_nr_cpus(void)
{
	return num_present_cpus();
}

u32 emu_package_of(u32 cpu)
{
	return cpu < nr_cpu_ids ? topology_physical_package_id(cpu) : 0;
}

u32 emu_nr_packages(void)
{
	return topology_max_packages();
}

u32 emu_phys_bits(void)
{
	return boot_cpu_data.x86_phys_bits;
}

/* Number of MKTME KeyIDs in the low, of TDX KeyIDs in the high half. */
u64 emu_keyid_partitioning(void)
{
	u64 value;

	return rdmsrq_safe(MSR_IA32_MKTME_KEYID_PARTITIONING, &value) ? 0 : value;
}

u64 emu_tsc(void)
{
	return rdtsc();
}

u64 emu_tsc_hz(void)
{
	return (u64)tsc_khz * 1000;
}

/*
 * Asks the local APIC: with interrupts off a request that it holds is still to
 * come. Without x2APIC the answer is no, which only delays interruption.
 */
bool emu_interrupt_pending(void)
{
	u64 irr = 0;
	int i;

	if (!x2apic_enabled())
		return false;
	for (i = 0; i < 8; i++)
		irr |= native_rdmsrq(APIC_BASE_MSR + (APIC_IRR >> 4) + i);

	return irr;
}

bool emu_interrupts_on(void)
{
	return !irqs_disabled();
}

void emu_pause(u64 us)
{
	mdelay(us / USEC_PER_MSEC);
	udelay(us % USEC_PER_MSEC);
}

void emu_cpuid(u32 leaf, u32 subleaf, u32 out[4])
{
	cpuid_count(leaf, subleaf, &out[0], &out[1], &out[2], &out[3]);
}

bool emu_random(u64 *value)
{
	unsigned long v;

	if (!rdrand_long(&v))
		return false;
	*value = v;
	return true;
}

/* NULL unless @pa lies in memory of the direct map. */
void *emu_page(u64 pa)
{
	u64 pfn = pa >> PAGE_SHIFT;

	return pfn_valid(pfn) ? pfn_to_kaddr(pfn) : NULL;
}

/* False unless @pa lies in memory of the direct map. */
bool emu_clear_page(u64 pa)
{
	void *page = emu_page(pa);

	if (page)
		memset(page, 0, PAGE_SIZE);
	return page;
}

static bool cycles;
module_param(cycles, bool, 0444);
MODULE_PARM_DESC(cycles, "Sum up how long SEAMCALLs take, by leaf and by CPU (default no)");

/* Leaf numbers are below this. */
#define EMU_NR_LEAVES	72

/* TSC ticks of the calls of each leaf on each CPU. */
static DEFINE_PER_CPU(u64 [EMU_NR_LEAVES], emu_cycles);

/*
 * All of the software TDX module is between both readings of the TSC, so that
 * what an operation takes beside its SEAMCALLs is the kernel's. Preemption is
 * off; on an emulated CPU the clock may be its instructions.
 */
static u64 emu_timed_call(u64 fn, struct tdx_module_args *args)
{
	u64 start = rdtsc(), ret = tdx_emu_seamcall(fn, args);

	if ((u16)fn < EMU_NR_LEAVES)
		this_cpu_add(emu_cycles[(u16)fn], rdtsc() - start);

	return ret;
}

static void emu_cycles_show(struct seq_file *m)
{
	unsigned int cpu, leaf;
	u64 sum;

	for (leaf = 0; leaf < EMU_NR_LEAVES; leaf++) {
		sum = 0;
		for_each_possible_cpu(cpu)
			sum += per_cpu(emu_cycles, cpu)[leaf];
		if (sum)
			seq_printf(m, "cycles_leaf_%u %llu\n", leaf, sum);
	}
	for_each_present_cpu(cpu) {
		sum = 0;
		for (leaf = 0; leaf < EMU_NR_LEAVES; leaf++)
			sum += per_cpu(emu_cycles, cpu)[leaf];
		seq_printf(m, "cycles_cpu_%u %llu\n", cpu, sum);
	}
}

/* Not exact for a CPU that is in a SEAMCALL. */
static void emu_cycles_reset(void)
{
	unsigned int cpu;

	for_each_possible_cpu(cpu)
		memset(per_cpu(emu_cycles, cpu), 0, sizeof(emu_cycles));
}

/* The kernel's pointer is to a function of C: Rust's has another type for kCFI. */
static u64 emu_call(u64 fn, struct tdx_module_args *args)
{
	return tdx_emu_seamcall(fn, args);
}

static const struct tdx_emu_ops emu_ops = {
	.owner = THIS_MODULE,
	.call = emu_call,
};

static const struct tdx_emu_ops emu_timed_ops = {
	.owner = THIS_MODULE,
	.call = emu_timed_call,
};

int emu_register(void)
{
	return tdx_emu_register(cycles ? &emu_timed_ops : &emu_ops);
}

bool emu_rebooting(void)
{
	return system_state > SYSTEM_RUNNING;
}

void emu_seq_value(struct seq_file *m, const u8 *name, size_t len, u64 value)
{
	seq_printf(m, "%.*s %llu\n", (int)len, name, value);
}

void emu_seq_text(struct seq_file *m, const u8 *text, size_t len)
{
	seq_printf(m, "%.*s", (int)len, text);
}

void emu_seq_td(struct seq_file *m, u64 tdr, u64 hkid, u64 vcpus, u64 children,
		const u8 *mrtd)
{
	seq_printf(m, "tdr=%#llx hkid=%llu vcpus=%llu children=%llu mrtd=%*phN\n",
		   tdr, hkid, vcpus, children, 48, mrtd);
}

static int tds_show(struct seq_file *m, void *unused)
{
	tdx_emu_tds_show(m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(tds);

static int stats_show(struct seq_file *m, void *unused)
{
	tdx_emu_stats_show(m);
	if (cycles)
		emu_cycles_show(m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(stats);

static int invariants_show(struct seq_file *m, void *unused)
{
	tdx_emu_invariants_show(m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(invariants);

static int exits_show(struct seq_file *m, void *unused)
{
	tdx_emu_exits_show(m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(exits);

static ssize_t reset_write(struct file *file, const char __user *buf, size_t len,
			   loff_t *pos)
{
	tdx_emu_stats_reset();
	emu_cycles_reset();
	return len;
}

static const struct file_operations reset_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = reset_write,
};

/* Serialises scripts; guards the reason why the last one was refused. */
static DEFINE_MUTEX(inject_lock);
static u8 inject_reason[128];

static int inject_show(struct seq_file *m, void *unused)
{
	guard(mutex)(&inject_lock);
	tdx_emu_inject_show(m);

	return 0;
}

static int inject_open(struct inode *inode, struct file *file)
{
	return single_open(file, inject_show, NULL);
}

static ssize_t inject_write(struct file *file, const char __user *buf, size_t len,
			    loff_t *pos)
{
	void *script __free(kfree) = NULL;
	int ret;

	if (len > PAGE_SIZE)
		return -E2BIG;

	script = kmalloc(len ?: 1, GFP_KERNEL);
	if (!script)
		return -ENOMEM;
	if (copy_from_user(script, buf, len))
		return -EFAULT;

	guard(mutex)(&inject_lock);
	ret = tdx_emu_inject_load(script, len, inject_reason,
				  sizeof(inject_reason));

	return ret ?: len;
}

static const struct file_operations inject_fops = {
	.owner = THIS_MODULE,
	.open = inject_open,
	.read = seq_read,
	.write = inject_write,
	.llseek = seq_lseek,
	.release = single_release,
};

static int inject_error_show(struct seq_file *m, void *unused)
{
	guard(mutex)(&inject_lock);
	seq_printf(m, "%s\n", inject_reason[0] ? (char *)inject_reason : "none");

	return 0;
}
DEFINE_SHOW_ATTRIBUTE(inject_error);

static struct dentry *emu_dir;

int emu_debugfs_init(void)
{
	emu_dir = debugfs_create_dir("tdx_emu", NULL);
	if (IS_ERR(emu_dir))
		return PTR_ERR(emu_dir);

	debugfs_create_file("stats", 0444, emu_dir, NULL, &stats_fops);
	debugfs_create_file("tds", 0444, emu_dir, NULL, &tds_fops);
	debugfs_create_file("invariants", 0400, emu_dir, NULL,
			    &invariants_fops);
	debugfs_create_file("exits", 0400, emu_dir, NULL, &exits_fops);
	debugfs_create_file("reset", 0200, emu_dir, NULL, &reset_fops);
	debugfs_create_file("inject", 0600, emu_dir, NULL, &inject_fops);
	debugfs_create_file("inject_error", 0400, emu_dir, NULL,
			    &inject_error_fops);

	return 0;
}

void emu_debugfs_exit(void)
{
	debugfs_remove_recursive(emu_dir);
}
