// SPDX-License-Identifier: GPL-2.0
//! From the state in which TDX starts a vCPU to `td_main` in long mode.
//!
//! TDX starts a vCPU at FFFFFFF0h in flat 32-bit protected mode without
//! paging, EFER.LME already set (a TD must not write EFER).  ESI holds the
//! vCPU's index, RCX and R8 what the VMM gave to TDH.VP.INIT.

use core::arch::{asm, global_asm};

/// vCPUs for which the image has a stack.
pub const MAX_VCPUS: u32 = 4;

/// Bytes of a vCPU's area, aligned to as much: [`Vcpu`], then its stack.
pub const AREA_SIZE: usize = 8192;

global_asm!(
    r#"
    .section .reset, "ax"
    .code32
    .globl _reset
_reset:
    jmp td_start32

    .section .text.start, "ax"
    .code32
td_start32:
    cmp esi, {max_vcpus}
    jae 3f
    mov ebp, ecx
    lgdt [td_gdt_desc]
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, offset td_pml4
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    .byte 0xea
    .long td_start64
    .word 0x08
3:
    jmp 3b

    .code64
td_start64:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov edi, esi
    mov esi, ebp
    mov eax, edi
    inc eax
    imul rax, rax, {area}
    lea rsp, [rip + td_areas]
    add rsp, rax
    push rdi
    push rsi
    lea rdi, [rip + td_vectors]
    call {init}
    pop rsi
    pop rdi
    call td_main
    ud2

    .balign 16
td_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
td_gdt_desc:
    .word . - td_gdt - 1
    .long td_gdt
    .long 0

    /* One stub of 16 bytes per exception: error code, vector, common path. */
    .balign 16
td_vectors:
    .set vector, 0
    .rept 32
    .balign 16
    .if (vector == 8) || (vector == 10) || (vector == 11) || (vector == 12) || (vector == 13) || (vector == 14) || (vector == 17) || (vector == 21)
    .else
    push 0
    .endif
    push vector
    jmp td_trap
    .set vector, vector + 1
    .endr

    .balign 16
td_trap:
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    mov rdi, rsp
    cld
    call {trap}
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq

    /* Virtual 0..512G: private GPAs, 512G..1T: shared; 1G pages up to 4G. */
    .section .tables, "aw"
    .balign 4096
td_pml4:
    .quad td_private + 0x3
    .quad td_shared + 0x3
    .fill 510, 8, 0
td_private:
    .quad 0x0000000000000083
    .quad 0x0000000040000083
    .quad 0x0000000080000083
    .quad 0x00000000c0000083
    .fill 508, 8, 0
td_shared:
    .quad 0x0000800000000083
    .quad 0x0000800040000083
    .quad 0x0000800080000083
    .quad 0x00008000c0000083
    .fill 508, 8, 0

    .section .stacks, "aw"
    .balign {area}
td_areas:
    .fill {area} * {max_vcpus} / 8, 8, 0

    .section .text
"#,
    max_vcpus = const MAX_VCPUS,
    area = const AREA_SIZE,
    init = sym init,
    trap = sym crate::trap::trap,
);

/// Start of a vCPU's area.
#[repr(C)]
pub struct Vcpu {
    idt: [[u64; 2]; 32],
    /// #VE exceptions taken
    pub ve_count: u64,
    /// R10 of the last TDG.VP.VMCALL of the #VE handler that failed
    pub ve_error: u64,
}

/// This vCPU's [`Vcpu`].
pub fn this_vcpu() -> *mut Vcpu {
    let sp: usize;
    // SAFETY: reads the stack pointer.
    unsafe { asm!("mov {}, rsp", out(reg) sp, options(nomem, nostack, preserves_flags)) };
    (sp & !(AREA_SIZE - 1)) as *mut Vcpu
}

/// Builds and loads this vCPU's IDT.  `vectors`: the 32 stubs.
extern "C" fn init(vectors: u64) {
    let vcpu = this_vcpu();
    for n in 0..32u64 {
        let at = vectors + n * 16;
        // Present, 64-bit interrupt gate, code segment 8.
        let low = (at & 0xffff) | 0x08 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48;
        // SAFETY: the area is this vCPU's own and lasts as long as the image.
        unsafe { (*vcpu).idt[n as usize] = [low, at >> 32] };
    }
    let desc: [u16; 5] = {
        let base = vcpu as u64;
        [
            32 * 16 - 1,
            base as u16,
            (base >> 16) as u16,
            (base >> 32) as u16,
            (base >> 48) as u16,
        ]
    };
    // SAFETY: the IDT was just filled with the stubs.
    unsafe { asm!("lidt [{}]", in(reg) desc.as_ptr(), options(readonly, nostack)) };
}

/// Ends in a triple fault.
pub fn triple_fault() -> ! {
    let desc = [0u16; 5];
    // SAFETY: nothing runs after this.
    unsafe { asm!("lidt [{}]", "int3", "2: jmp 2b", in(reg) desc.as_ptr(), options(noreturn)) }
}
