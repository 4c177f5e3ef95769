/* SPDX-License-Identifier: GPL-2.0 */
/*
 * tdx_emu.ko: what its Rust side needs of the kernel and of VMX, as plain
 * functions with plain types.
 */
#ifndef _TDX_EMU_H
#define _TDX_EMU_H

/* struct emu_gprs, for the assembler. */
#define EMU_GPRS_CR2	(16 * 8)

/* Results of the VMX instructions. */
#define EMU_VMX_OK	0
#define EMU_VMX_FAIL	1	/* VMfail: bad operand or VMCS content */
#define EMU_VMX_FAULT	2	/* #UD or #GP: VMX is off, as at power-off */
#define EMU_VMX_REFUSED	3	/* the task has state that an exit would lose */

#ifndef __ASSEMBLER__

#include <linux/types.h>

struct seq_file;
struct tdx_module_args;

/**
 * struct emu_gprs - general registers around a VM entry
 * @gpr: by architectural number; 4 (RSP) is in the VMCS and not used here
 * @cr2: CR2
 */
struct emu_gprs {
	u64 gpr[16];
	u64 cr2;
};

#define EMU_NR_MSRS	6
#define EMU_NR_DRS	5

/**
 * struct emu_guest - guest state that the VMCS does not switch
 * @xcr0: XCR0 of the guest
 * @xfam: state components that the guest may have
 * @msrs: KERNEL_GS_BASE, STAR, LSTAR, CSTAR, FMASK, TSC_AUX
 * @drs: DR0 to DR3, DR6
 */
struct emu_guest {
	u64 xcr0;
	u64 xfam;
	u64 msrs[EMU_NR_MSRS];
	u64 drs[EMU_NR_DRS];
};

/* Host state fields of a VMCS, as they are on this CPU now. */
struct emu_host_fields {
	u64 cr0;
	u64 cr3;
	u64 cr4;
	u64 cs;
	u64 ss;
	u64 tr;
	u64 fs_base;
	u64 gs_base;
	u64 tr_base;
	u64 gdt_base;
	u64 idt_base;
	u64 sysenter_cs;
	u64 sysenter_esp;
	u64 sysenter_eip;
	u64 efer;
	u64 pat;
};

/* vmx/vmenter.S */
int emu_vmenter(struct emu_gprs *regs, bool launch);

/* vmx/vmx.c */
bool emu_vmx_supported(void);
u64 emu_vmx_msr(u32 msr);
int emu_vmx_vmclear(u64 pa);
int emu_vmx_vmptrld(u64 pa);
int emu_vmx_vmptrst(u64 *pa);
int emu_vmx_vmread(u64 field, u64 *value);
int emu_vmx_vmwrite(u64 field, u64 value);
int emu_vmx_invept_all(void);
void emu_vmx_host_fields(struct emu_host_fields *f);
int emu_vmx_enter(struct emu_gprs *regs, struct emu_guest *guest, void *xsave,
		  bool launch);

/* host.c */
bool emu_version_is(const u8 *name, size_t len);
u32 emu_this_cpu(void);
u32 emu_nr_cpus(void);
u32 emu_package_of(u32 cpu);
u32 emu_nr_packages(void);
u32 emu_phys_bits(void);
u64 emu_keyid_partitioning(void);
u64 emu_tsc(void);
u64 emu_tsc_hz(void);
bool emu_interrupt_pending(void);
bool emu_interrupts_on(void);
void emu_pause(u64 us);
void emu_cpuid(u32 leaf, u32 subleaf, u32 out[4]);
bool emu_random(u64 *value);
void *emu_page(u64 pa);
bool emu_clear_page(u64 pa);
int emu_register(void);
bool emu_rebooting(void);
u32 emu_check_level(void);
void emu_seq_value(struct seq_file *m, const u8 *name, size_t len, u64 value);
void emu_seq_text(struct seq_file *m, const u8 *text, size_t len);
void emu_seq_td(struct seq_file *m, u64 tdr, u64 hkid, u64 vcpus, u64 children,
		const u8 *mrtd);
int emu_debugfs_init(void);
void emu_debugfs_exit(void);

/* Called from C, defined in tdx_emu/kernel/. */
u64 tdx_emu_seamcall(u64 fn, struct tdx_module_args *args);
void tdx_emu_stats_show(struct seq_file *m);
void tdx_emu_tds_show(struct seq_file *m);
void tdx_emu_stats_reset(void);
int tdx_emu_inject_load(const u8 *script, size_t len, u8 *reason, size_t size);
void tdx_emu_inject_show(struct seq_file *m);
void tdx_emu_invariants_show(struct seq_file *m);
void tdx_emu_exits_show(struct seq_file *m);

#endif /* !__ASSEMBLER__ */
#endif /* _TDX_EMU_H */
