/* SPDX-License-Identifier: GPL-2.0 */
#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/frame.h>
#include <asm/unwind_hints.h>

#include "../kernel/emu.h"

/* VMCS fields; asm/vmx.h has them only for C. */
#define HOST_RSP	0x6c14
#define HOST_RIP	0x6c16

/*
 * int emu_vmenter(struct emu_gprs *regs, bool launch)
 *
 * Enters the guest of the current VMCS and comes back at the next VM exit with
 * its registers in @regs. Interrupts must be off. Returns an EMU_VMX_* code.
 */
SYM_FUNC_START(emu_vmenter)
	FRAME_BEGIN
	push	%rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	push	%rdi

	/* Host RSP and RIP of this entry. A failure shows at the entry itself. */
	mov	$HOST_RSP, %eax
.Lwrite_rsp:
	vmwrite	%rsp, %rax
	lea	emu_vmexit(%rip), %rdx
	mov	$HOST_RIP, %eax
.Lwrite_rip:
	vmwrite	%rdx, %rax

	mov	EMU_GPRS_CR2(%rdi), %rax
	mov	%rax, %cr2

	/* No instruction from here to the branch changes the flags. */
	test	%sil, %sil

	mov	0*8(%rdi), %rax
	mov	1*8(%rdi), %rcx
	mov	2*8(%rdi), %rdx
	mov	3*8(%rdi), %rbx
	mov	5*8(%rdi), %rbp
	mov	6*8(%rdi), %rsi
	mov	8*8(%rdi), %r8
	mov	9*8(%rdi), %r9
	mov	10*8(%rdi), %r10
	mov	11*8(%rdi), %r11
	mov	12*8(%rdi), %r12
	mov	13*8(%rdi), %r13
	mov	14*8(%rdi), %r14
	mov	15*8(%rdi), %r15
	mov	7*8(%rdi), %rdi

	jnz	.Llaunch

	/*
	 * A VM exit continues at emu_vmexit with RSP as it is here, which
	 * objtool cannot see by itself.
	 */
	UNWIND_HINT_SAVE

.Lresume:
	vmresume
	jmp	.Lfail

.Llaunch:
	vmlaunch
	jmp	.Lfail

SYM_INNER_LABEL_ALIGN(emu_vmexit, SYM_L_LOCAL)
	UNWIND_HINT_RESTORE
	ENDBR

	push	%rdi
	mov	8(%rsp), %rdi
	mov	%rax, 0*8(%rdi)
	mov	%rcx, 1*8(%rdi)
	mov	%rdx, 2*8(%rdi)
	mov	%rbx, 3*8(%rdi)
	mov	%rbp, 5*8(%rdi)
	mov	%rsi, 6*8(%rdi)
	pop	7*8(%rdi)
	mov	%r8, 8*8(%rdi)
	mov	%r9, 9*8(%rdi)
	mov	%r10, 10*8(%rdi)
	mov	%r11, 11*8(%rdi)
	mov	%r12, 12*8(%rdi)
	mov	%r13, 13*8(%rdi)
	mov	%r14, 14*8(%rdi)
	mov	%r15, 15*8(%rdi)
	mov	%cr2, %rax
	mov	%rax, EMU_GPRS_CR2(%rdi)
	mov	$EMU_VMX_OK, %eax

.Lout:
	/* Nothing of the guest stays in a register. */
	xor	%ecx, %ecx
	xor	%edx, %edx
	xor	%esi, %esi
	xor	%r8d, %r8d
	xor	%r9d, %r9d
	xor	%r10d, %r10d
	xor	%r11d, %r11d

	pop	%rdi
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx
	pop	%rbp
	FRAME_END
	RET

.Lfail:
	mov	$EMU_VMX_FAIL, %eax
	jmp	.Lout

.Lfault:
	mov	$EMU_VMX_FAULT, %eax
	jmp	.Lout

	_ASM_EXTABLE(.Lwrite_rsp, .Lfault)
	_ASM_EXTABLE(.Lwrite_rip, .Lfault)
	_ASM_EXTABLE(.Lresume, .Lfault)
	_ASM_EXTABLE(.Llaunch, .Lfault)
SYM_FUNC_END(emu_vmenter)
