// SPDX-License-Identifier: GPL-2.0
/*
 * VMX instructions and the switch of state that a VMCS does not hold.
 *
 * Everything here runs inside TDH.VP.ENTER with interrupts off, where KVM has
 * told lockdep and context tracking that a guest runs: no locks, no tracing
 * (hence the native accessors), no printing. Linux keeps every CPU in VMX
 * operation while TDX is up, but leaves it at power-off under a running vCPU,
 * which is why each instruction has an exception-table entry.
 */
#include <linux/irqflags.h>
#include <linux/string.h>
#include <asm/asm.h>
#include <asm/debugreg.h>
#include <asm/desc.h>
#include <asm/fpu/xcr.h>
#include <asm/msr.h>
#include <asm/processor.h>
#include <asm/segment.h>
#include <asm/special_insns.h>
#include <asm/virt.h>
#include <asm/vmx.h>

#include "../kernel/emu.h"

#define vmx_asm1(insn, op)						\
	do {								\
		asm goto("1: " #insn " %0\n\t"				\
			 "jbe %l[fail]\n\t"				\
			 _ASM_EXTABLE(1b, %l[fault])			\
			 : : op : "cc", "memory" : fail, fault);	\
		return EMU_VMX_OK;					\
fail:									\
		return EMU_VMX_FAIL;					\
fault:									\
		return EMU_VMX_FAULT;					\
	} while (0)

#define vmx_asm2(insn, op1, op2)					\
	do {								\
		asm goto("1: " #insn " %1, %0\n\t"			\
			 "jbe %l[fail]\n\t"				\
			 _ASM_EXTABLE(1b, %l[fault])			\
			 : : op1, op2 : "cc", "memory" : fail, fault);	\
		return EMU_VMX_OK;					\
fail:									\
		return EMU_VMX_FAIL;					\
fault:									\
		return EMU_VMX_FAULT;					\
	} while (0)

int emu_vmx_vmclear(u64 pa)
{
	vmx_asm1(vmclear, "m"(pa));
}

int emu_vmx_vmptrld(u64 pa)
{
	vmx_asm1(vmptrld, "m"(pa));
}

/* Never fails by itself; without a current VMCS the answer is all ones. */
int emu_vmx_vmptrst(u64 *pa)
{
	asm goto("1: vmptrst %0\n\t"
		 _ASM_EXTABLE(1b, %l[fault])
		 : : "m"(*pa) : "memory" : fault);
	return EMU_VMX_OK;
fault:
	return EMU_VMX_FAULT;
}

int emu_vmx_vmread(u64 field, u64 *value)
{
	vmx_asm2(vmread, "m"(*value), "r"(field));
}

int emu_vmx_vmwrite(u64 field, u64 value)
{
	vmx_asm2(vmwrite, "r"(field), "rm"(value));
}

int emu_vmx_invept_all(void)
{
	const struct { u64 eptp, zero; } desc = {};

	vmx_asm2(invept, "r"((u64)VMX_EPT_EXTENT_GLOBAL), "m"(desc));
}

bool emu_vmx_supported(void)
{
	return boot_cpu_has(X86_FEATURE_VMX) && boot_cpu_has(X86_FEATURE_XSAVE);
}

/* Only for the VMX capability MSRs, which exist wherever VMX does. */
u64 emu_vmx_msr(u32 msr)
{
	return native_rdmsrq(msr);
}

void emu_vmx_host_fields(struct emu_host_fields *f)
{
	struct desc_ptr gdt, idt;

	native_store_gdt(&gdt);
	store_idt(&idt);

	*f = (struct emu_host_fields) {
		.cr0 = read_cr0(),
		.cr3 = __read_cr3(),
		.cr4 = __read_cr4(),
		.cs = __KERNEL_CS,
		.ss = __KERNEL_DS,
		.tr = GDT_ENTRY_TSS * 8,
		.fs_base = native_rdmsrq(MSR_FS_BASE),
		.gs_base = native_rdmsrq(MSR_GS_BASE),
		.tr_base = (unsigned long)
			&get_cpu_entry_area(raw_smp_processor_id())->tss.x86_tss,
		.gdt_base = gdt.address,
		.idt_base = idt.address,
		.sysenter_cs = native_rdmsrq(MSR_IA32_SYSENTER_CS),
		.sysenter_esp = native_rdmsrq(MSR_IA32_SYSENTER_ESP),
		.sysenter_eip = native_rdmsrq(MSR_IA32_SYSENTER_EIP),
		.efer = native_rdmsrq(MSR_EFER),
		.pat = native_rdmsrq(MSR_IA32_CR_PAT),
	};
}

static const u32 emu_msrs[EMU_NR_MSRS] = {
	MSR_KERNEL_GS_BASE, MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_SYSCALL_MASK,
	MSR_TSC_AUX,
};

static void emu_load_msrs(const u64 *load, u64 *saved)
{
	int i;

	for (i = 0; i < EMU_NR_MSRS; i++) {
		saved[i] = native_rdmsrq(emu_msrs[i]);
		if (saved[i] != load[i])
			native_wrmsrq(emu_msrs[i], load[i]);
	}
}

/* @reg is a constant, as the register is part of the instruction. */
static __always_inline void emu_load_dr(int reg, u64 load, u64 *saved)
{
	*saved = native_get_debugreg(reg);
	if (*saved != load)
		native_set_debugreg(reg, load);
}

static void emu_load_drs(const u64 *load, u64 *saved)
{
	emu_load_dr(0, load[0], &saved[0]);
	emu_load_dr(1, load[1], &saved[1]);
	emu_load_dr(2, load[2], &saved[2]);
	emu_load_dr(3, load[3], &saved[3]);
	emu_load_dr(6, load[4], &saved[4]);
}

static void emu_xsave(void *area, u64 mask)
{
	asm volatile("xsave64 (%0)"
		     : : "r"(area), "a"((u32)mask), "d"((u32)(mask >> 32))
		     : "memory");
}

static void emu_xrstor(const void *area, u64 mask)
{
	asm volatile("xrstor64 (%0)"
		     : : "r"(area), "a"((u32)mask), "d"((u32)(mask >> 32))
		     : "memory");
}

/*
 * A VM exit leaves null user segments, a null LDT and a TSS limit without I/O
 * bitmap behind. Almost every task has nothing else; the rest is refused
 * instead of restored.
 */
static bool emu_task_is_plain(void)
{
	u16 ds, es, fs, gs, ldt;

	savesegment(ds, ds);
	savesegment(es, es);
	savesegment(fs, fs);
	savesegment(gs, gs);
	store_ldt(ldt);

	return !(ds | es | fs | gs | ldt) && !test_thread_flag(TIF_IO_BITMAP);
}

/*
 * One VM entry with the current VMCS, whose host fields hold for this CPU.
 * @xsave: the guest's extended state in standard format, XFAM wide. KVM has saved the
 * host's and expects the registers to be clobbered, except PKRU and XCR0.
 */
int emu_vmx_enter(struct emu_gprs *regs, struct emu_guest *guest, void *xsave,
		  bool launch)
{
	u64 xcr0 = xgetbv(XCR_XFEATURE_ENABLED_MASK);
	u64 host_msrs[EMU_NR_MSRS], host_drs[EMU_NR_DRS];
	struct desc_ptr gdt, idt;
	u32 pkru = 0;
	int ret;

	if (!irqs_disabled() || !emu_task_is_plain())
		return EMU_VMX_REFUSED;

	native_store_gdt(&gdt);
	store_idt(&idt);
	if (cpu_feature_enabled(X86_FEATURE_OSPKE))
		pkru = rdpkru();

	/*
	 * No breakpoint of the host may fire at an address of the guest's. An
	 * exit clears DR7 anyway, and KVM sets it again.
	 */
	native_set_debugreg(7, 0);
	emu_load_drs(guest->drs, host_drs);
	emu_load_msrs(guest->msrs, host_msrs);
	xsetbv(XCR_XFEATURE_ENABLED_MASK, guest->xfam);
	emu_xrstor(xsave, guest->xfam);
	xsetbv(XCR_XFEATURE_ENABLED_MASK, guest->xcr0);

	ret = emu_vmenter(regs, launch);

	/* The exit set both limits to FFFFh and the TSS limit to 67h. */
	native_load_gdt(&gdt);
	native_load_idt(&idt);
	this_cpu_write(__tss_limit_invalid, true);

	guest->xcr0 = xgetbv(XCR_XFEATURE_ENABLED_MASK);
	xsetbv(XCR_XFEATURE_ENABLED_MASK, guest->xfam);
	emu_xsave(xsave, guest->xfam);
	xsetbv(XCR_XFEATURE_ENABLED_MASK, xcr0);
	emu_load_msrs(host_msrs, guest->msrs);
	emu_load_drs(host_drs, guest->drs);

	if (cpu_feature_enabled(X86_FEATURE_OSPKE))
		wrpkru(pkru);

	return ret;
}
