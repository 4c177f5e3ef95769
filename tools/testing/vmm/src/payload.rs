// SPDX-License-Identifier: GPL-2.0
//! The boot payload: the TD's first code, the only measured part besides its tables.
//!
//! TDX starts every vCPU at FFFFFFF0h in flat 32-bit mode with ESI = vCPU index. The
//! payload goes to long mode with an identity map of 4 GiB. vCPU 0 accepts the ranges
//! that the configuration page lists and enters the kernel; the others wait at the
//! ACPI mailbox. While they wait they read the parking port, whose answer the VMM
//! delays: a wait of the TD must not cost a CPU. The VMM cannot wake a vCPU that way,
//! the mailbox is private memory.

use std::arch::global_asm;

use crate::layout::{Range, PAGE};

/// GPA of the slot that the payload lies in; it ends at 4 GiB.
pub const SLOT_GPA: u64 = 0xffff_0000;
/// Bytes of that slot.
pub const SLOT_SIZE: u64 = 0x1_0000;
/// Page tables: one PML4, one PDPT, four page directories of 2 MiB pages.
pub const TABLES_GPA: u64 = 0xffff_8000;
const CONFIG_GPA: u64 = 0xffff_e000;
/// Code, with the reset vector in its last 16 bytes. A vCPU that Linux takes offline
/// comes back to its first byte.
pub const CODE_GPA: u64 = 0xffff_f000;

/// Port that a parked vCPU reads, one byte; the answer means nothing.
pub const PORT_PARK: u16 = 0xf6;
/// R12 of the fatal error when a page could not be accepted; R13: status, R14: GPA.
pub const FATAL_ACCEPT: u64 = 0x201;

/// Ranges that fit into the configuration page.
pub const MAX_RANGES: usize = 253;

global_asm!(
    r#"
    .pushsection .rodata.tdx_payload, "a"
    .balign 4096
    .globl tdx_payload_start
tdx_payload_start:
    .code64
    /* Offlined by Linux: its own identity map, 64-bit mode. */
    mov eax, {tables}
    mov cr3, rax
    lgdt [rip + 80f]
    jmp 30f

    .code32
10: /* From reset: flat 32-bit mode, no paging, EFER.LME set. */
    .byte 0x0f, 0x01, 0x15  /* lgdt [...] */
    .long {code} + 80f - tdx_payload_start
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, {tables}
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    .byte 0xea
    .long {code} + 20f - tdx_payload_start
    .word 0x10

    .code64
20:
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    cld
    mov ebx, {config}
    test esi, esi
    jnz 30f

    /* vCPU 0: TDG.MEM.PAGE.ACCEPT of [r14, r15) for each range. */
    lea r12, [rbx + 32]
    mov r13, [rbx + 24]
21: test r13, r13
    jz 25f
    mov r14, [r12]
    mov r15, [r12 + 8]
22: cmp r14, r15
    jae 24f
    mov rcx, r14
    mov eax, 6
    .byte 0x66, 0x0f, 0x01, 0xcc
    mov rdx, rax
    shr rdx, 32
    jz 23f
    cmp edx, 0x00000b0a     /* accepted already */
    je 23f
    cmp edx, 0x80000200     /* busy: again */
    jne 90f
    pause
    jmp 22b
23: add r14, 4096
    jmp 22b
24: add r12, 16
    dec r13
    jmp 21b
25: mov rsi, [rbx + 8]
    mov rax, [rbx]
    xor ebx, ebx
    xor ecx, ecx
    xor edx, edx
    xor edi, edi
    xor ebp, ebp
    jmp rax

    /* The others: TDG.VP.INFO tells the index, which is the APIC ID. */
30: mov eax, 1
    .byte 0x66, 0x0f, 0x01, 0xcc
    mov ebp, r9d
    mov eax, {config}
    mov rbx, [rax + 16]
31: /* TDG.VP.VMCALL <port input> from the parking port. */
    xor eax, eax
    mov ecx, 0xfc00
    xor r10d, r10d
    mov r11d, 30
    mov r12d, 1
    xor r13d, r13d
    mov r14d, {park}
    xor r15d, r15d
    .byte 0x66, 0x0f, 0x01, 0xcc
    movzx eax, word ptr [rbx]
    test eax, eax
    jz 31b
    cmp ebp, [rbx + 4]
    jne 31b
    cmp eax, 1
    mov rax, [rbx + 8]
    mov word ptr [rbx], 0
    jne 31b                 /* only a test */
    xor ebx, ebx
    jmp rax

90: /* TDG.VP.VMCALL <report fatal error> */
    mov r13, rax
    xor eax, eax
    mov ecx, 0xfc00
    xor r10d, r10d
    mov r11d, 0x10003
    mov r12d, {fatal}
    .byte 0x66, 0x0f, 0x01, 0xcc
91: jmp 91b

    .balign 16
70: .quad 0
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
80: .word 31
    .quad {code} + 70b - tdx_payload_start

    .org tdx_payload_start + 0xff0
    .code32
    jmp 10b
    .org tdx_payload_start + 0x1000
    .code64
    .popsection
"#,
    tables = const TABLES_GPA,
    config = const CONFIG_GPA,
    code = const CODE_GPA,
    park = const PORT_PARK,
    fatal = const FATAL_ACCEPT,
);

extern "C" {
    static tdx_payload_start: [u8; PAGE as usize];
}

/// What the payload does on vCPU 0, and where the others wait.
pub struct Config<'a> {
    /// GPA of the kernel's 64-bit entry point
    pub entry: u64,
    /// GPA of the boot parameters, handed over in RSI
    pub boot_params: u64,
    /// GPA of the ACPI mailbox
    pub mailbox: u64,
    /// private memory to accept before the kernel runs
    pub accept: &'a [Range],
}

/// The pages of the payload with their GPAs. `None`: too many ranges.
pub fn pages(config: &Config) -> Option<Vec<(u64, Vec<u8>)>> {
    Some(vec![
        (TABLES_GPA, identity_map(TABLES_GPA)),
        (CONFIG_GPA, config_page(config)?),
        // SAFETY: the symbol is the start of one page of constant bytes.
        (CODE_GPA, unsafe { tdx_payload_start }.to_vec()),
    ])
}

fn config_page(config: &Config) -> Option<Vec<u8>> {
    if config.accept.len() > MAX_RANGES {
        return None;
    }
    let mut words = vec![
        config.entry,
        config.boot_params,
        config.mailbox,
        config.accept.len() as u64,
    ];
    for range in config.accept {
        words.extend([range.start, range.end]);
    }
    words.resize(PAGE as usize / 8, 0);
    Some(words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

/// Page tables at `gpa` that map the first 4 GiB to themselves.
fn identity_map(gpa: u64) -> Vec<u8> {
    const PRESENT_WRITE: u64 = 3;
    const LARGE: u64 = 0x80;
    let mut words = vec![0u64; 6 * 512];
    words[0] = (gpa + PAGE) | PRESENT_WRITE;
    for n in 0..4 {
        words[512 + n as usize] = (gpa + (2 + n) * PAGE) | PRESENT_WRITE;
    }
    for n in 0..4 * 512 {
        words[1024 + n as usize] = (n << 21) | LARGE | PRESENT_WRITE;
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(accept: &[Range]) -> Config<'_> {
        Config {
            entry: 0x100_0000,
            boot_params: 0x1ff_0000,
            mailbox: 0x1ff_8000,
            accept,
        }
    }

    fn word(page: &[u8], n: usize) -> u64 {
        u64::from_le_bytes(page[n * 8..n * 8 + 8].try_into().unwrap())
    }

    #[test]
    fn code_fills_its_page_and_starts_at_the_reset_vector() {
        let pages = pages(&config(&[])).unwrap();
        let (gpa, code) = &pages[2];
        assert_eq!((*gpa, code.len()), (CODE_GPA, 4096));
        // A near jump backwards, within the page.
        assert_eq!(code[0xff0], 0xe9);
        let offset = i32::from_le_bytes(code[0xff1..0xff5].try_into().unwrap());
        let target = 0xff5 + offset;
        assert!((0..0xff0).contains(&target), "{target:x}");
        // ... to the LGDT of the 32-bit code, whose operand lies in the page.
        let at = target as usize;
        assert_eq!(code[at..at + 2], [0x0f, 0x01]);
        let operand = u32::from_le_bytes(code[at + 3..at + 7].try_into().unwrap());
        assert_eq!(u64::from(operand) & !0xfff, CODE_GPA);
        let desc = (operand & 0xfff) as usize;
        assert_eq!(code[desc..desc + 2], [31, 0]);
        let gdt = u64::from_le_bytes(code[desc + 2..desc + 10].try_into().unwrap());
        assert_eq!(gdt & !0xfff, CODE_GPA);
        let gdt = (gdt & 0xfff) as usize;
        assert_eq!(word(&code[gdt..], 2), 0x00af_9b00_0000_ffff);
    }

    #[test]
    fn config_page_lists_the_ranges_and_has_a_limit() {
        let ranges = vec![Range::new(0, 0x1000), Range::new(0x3000, 0x9000)];
        let page = config_page(&config(&ranges)).unwrap();
        assert_eq!(page.len(), 4096);
        let words: Vec<u64> = (0..9).map(|n| word(&page, n)).collect();
        assert_eq!(
            words,
            [0x100_0000, 0x1ff_0000, 0x1ff_8000, 2, 0, 0x1000, 0x3000, 0x9000, 0]
        );
        let many = vec![Range::new(0, 0x1000); MAX_RANGES];
        assert!(config_page(&config(&many)).is_some());
        let more = vec![Range::new(0, 0x1000); MAX_RANGES + 1];
        assert!(config_page(&config(&more)).is_none());
    }

    #[test]
    fn page_tables_map_four_gigabytes_to_themselves() {
        let map = identity_map(TABLES_GPA);
        assert_eq!(map.len(), 6 * 4096);
        for gpa in [0u64, 0x20_0000, 0x1234_5678, 0xffff_fff0] {
            let pdpt = word(&map, 0) & !0xfff;
            assert_eq!(pdpt, TABLES_GPA + 0x1000);
            let n = 512 + (gpa >> 30) as usize;
            let pd = (word(&map, n) & !0xfff) - TABLES_GPA;
            let entry = word(&map, pd as usize / 8 + (gpa >> 21 & 511) as usize);
            assert_eq!(entry & 0xfff, 0x83);
            assert_eq!((entry & !0x1f_ffff) | (gpa & 0x1f_ffff), gpa);
        }
    }
}
