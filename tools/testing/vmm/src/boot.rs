// SPDX-License-Identifier: GPL-2.0
//! What is in the TD's memory when it starts: kernel, initramfs, tables, payload.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout::{at, Layout, MemoryType, Range, PAGE};
use crate::{acpi, efi, payload};

/// Bytes of a command line with its terminator; Linux' own limit is 2048.
const CMDLINE_SIZE: usize = 2048;
/// A run of as many zero pages in the kernel is accepted instead of loaded.
const ZERO_RUN: usize = 16;

const HDR_MAGIC: u32 = 0x5372_6448;
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";

/// The files and settings of a boot.
pub struct Boot<'a> {
    pub kernel: &'a Path,
    pub initrd: Option<&'a Path>,
    pub cmdline: &'a str,
    pub memory: u64,
    pub cpus: u32,
    pub lazy: bool,
}

/// Private memory with contents, to be added in this order.
pub struct Image {
    /// ranges whose contents are staged in the guest memory, and whether they are
    /// part of the measurement
    pub ranges: Vec<(Range, bool)>,
}

/// A kernel in the staging memory.
struct Kernel {
    entry: u64,
    loaded: Range,
    /// what it uses before it can accept memory
    needed: Range,
    header: setup_header,
}

impl Boot<'_> {
    /// Stages everything in `memory`.
    pub fn stage(&self, memory: &GuestMemoryMmap) -> Result<Image> {
        let mut layout = Layout::new(self.memory, self.lazy)?;
        let kernel = self.load_kernel(memory, &layout)?;
        let content = runs(memory, kernel.loaded)?;
        content.iter().for_each(|range| layout.load(*range));
        layout.need(kernel.needed);
        let initrd = self.load_initrd(memory, &layout, kernel.needed.end)?;
        if let Some((range, _)) = initrd {
            layout.load(range);
        }

        let top = layout.tables();
        self.write_tables(memory, &layout, &kernel, initrd)?;
        let accept = layout.accept();
        let config = payload::Config {
            entry: kernel.entry,
            boot_params: top + at::BOOT_PARAMS,
            mailbox: top + at::MAILBOX,
            accept: &accept,
        };
        let pages = payload::pages(&config).context("the kernel image has too many holes")?;
        let mut ranges: Vec<(Range, bool)> = layout
            .loaded()
            .into_iter()
            .map(|range| (range, false))
            .collect();
        for (gpa, bytes) in pages {
            memory.write_slice(&bytes, GuestAddress(gpa))?;
            ranges.push((Range::new(gpa, gpa + bytes.len() as u64), true));
        }
        Ok(Image { ranges })
    }

    fn load_kernel(&self, memory: &GuestMemoryMmap, layout: &Layout) -> Result<Kernel> {
        let name = self.kernel.display();
        let mut file = File::open(self.kernel).with_context(|| format!("kernel {name}"))?;
        let mut magic = [0; 4];
        file.read_exact(&mut magic)
            .with_context(|| format!("kernel {name} is too short"))?;
        let kernel = if magic == ELF_MAGIC {
            load_elf(memory, &mut file)
        } else {
            load_bzimage(memory, &mut file)
        };
        let kernel = kernel.with_context(|| {
            format!("{name} is not a bzImage or vmlinux that fits into the TD's memory")
        })?;
        layout.check("the kernel", kernel.needed.start, kernel.needed.end)?;
        Ok(kernel)
    }

    fn load_initrd(
        &self,
        memory: &GuestMemoryMmap,
        layout: &Layout,
        floor: u64,
    ) -> Result<Option<(Range, u64)>> {
        let Some(path) = self.initrd else {
            return Ok(None);
        };
        let bytes = std::fs::read(path).with_context(|| format!("initramfs {}", path.display()))?;
        let range = layout.initrd(bytes.len() as u64, floor)?;
        memory.write_slice(&bytes, GuestAddress(range.start))?;
        Ok(Some((range, bytes.len() as u64)))
    }

    fn write_tables(
        &self,
        memory: &GuestMemoryMmap,
        layout: &Layout,
        kernel: &Kernel,
        initrd: Option<(Range, u64)>,
    ) -> Result<()> {
        let top = layout.tables();
        let write = |offset: u64, limit: u64, bytes: &[u8]| {
            ensure!(bytes.len() as u64 <= limit - offset, "a table is too large");
            memory.write_slice(bytes, GuestAddress(top + offset))?;
            Ok(())
        };
        let acpi = acpi::tables(
            top + at::ACPI,
            self.cpus,
            top + at::MAILBOX,
            payload::CODE_GPA,
        );
        write(at::ACPI, at::EFI, &acpi)?;
        let efi = efi::build(top + at::EFI, layout, top + at::ACPI, top + at::UNACCEPTED);
        write(at::EFI, at::UNACCEPTED, &efi.bytes)?;
        let table = efi::unaccepted_table(&layout.unaccepted());
        write(at::UNACCEPTED, at::BOOT_PARAMS, &table)?;
        let cmdline = command_line(self.cmdline)?;
        write(at::CMDLINE, at::MAILBOX, &cmdline)?;
        let params = self.boot_params(layout, kernel, initrd, &efi);
        write(at::BOOT_PARAMS, at::CMDLINE, params.as_slice())
    }

    fn boot_params(
        &self,
        layout: &Layout,
        kernel: &Kernel,
        initrd: Option<(Range, u64)>,
        efi: &efi::Efi,
    ) -> boot_params {
        let top = layout.tables();
        let mut params = boot_params {
            hdr: kernel.header,
            acpi_rsdp_addr: top + at::ACPI,
            ..Default::default()
        };
        params.hdr.type_of_loader = 0xff;
        params.hdr.cmd_line_ptr = (top + at::CMDLINE) as u32;
        params.hdr.cmdline_size = CMDLINE_SIZE as u32 - 1;
        if let Some((range, size)) = initrd {
            params.hdr.ramdisk_image = range.start as u32;
            params.hdr.ramdisk_size = size as u32;
        }
        params.efi_info.efi_loader_signature = u32::from_le_bytes(*b"EL64");
        params.efi_info.efi_systab = (top + at::EFI) as u32;
        params.efi_info.efi_memdesc_size = efi::DESCRIPTOR_SIZE;
        params.efi_info.efi_memdesc_version = efi::DESCRIPTOR_VERSION;
        params.efi_info.efi_memmap = efi.map as u32;
        params.efi_info.efi_memmap_size = efi.map_size;
        let map = layout.map();
        params.e820_entries = map.len() as u8;
        for (entry, region) in params.e820_table.iter_mut().zip(&map) {
            *entry = boot_e820_entry {
                addr: region.range.start,
                size: region.range.len(),
                type_: match region.kind {
                    MemoryType::Ram => 1,
                    MemoryType::Reserved => 2,
                    MemoryType::Acpi => 3,
                    MemoryType::Nvs => 4,
                },
            };
        }
        params
    }
}

fn load_elf(memory: &GuestMemoryMmap, file: &mut File) -> Result<Kernel> {
    let start = elf_start(file)?;
    let result = Elf::load(memory, None, file, None)?;
    let loaded = Range::new(start, result.kernel_end);
    // Fields that the kernel looks at even without a loader of the old protocol.
    let header = setup_header {
        boot_flag: 0xaa55,
        header: HDR_MAGIC,
        version: 0x20f,
        kernel_alignment: 0x20_0000,
        ..Default::default()
    };
    Ok(Kernel {
        entry: result.kernel_load.0,
        loaded,
        needed: loaded,
        header,
    })
}

/// Lowest physical address of a vmlinux; its entry point may lie anywhere in it.
fn elf_start(file: &File) -> Result<u64> {
    const PHOFF: u64 = 32;
    const PHNUM: u64 = 56;
    const PHDR_SIZE: u64 = 56;
    const PT_LOAD: u32 = 1;

    let mut phoff = [0; 8];
    let mut phnum = [0; 2];
    file.read_exact_at(&mut phoff, PHOFF)?;
    file.read_exact_at(&mut phnum, PHNUM)?;
    let mut start = None;
    for n in 0..u64::from(u16::from_le_bytes(phnum)) {
        let mut phdr = [0; PHDR_SIZE as usize];
        let at = u64::from_le_bytes(phoff).wrapping_add(n * PHDR_SIZE);
        file.read_exact_at(&mut phdr, at)?;
        let kind = u32::from_le_bytes(phdr[..4].try_into()?);
        let paddr = u64::from_le_bytes(phdr[24..32].try_into()?);
        if kind == PT_LOAD {
            start = Some(start.map_or(paddr, |start: u64| start.min(paddr)));
        }
    }
    start.context("no loadable part")
}

fn load_bzimage(memory: &GuestMemoryMmap, file: &mut File) -> Result<Kernel> {
    const XLF_KERNEL_64: u16 = 1;
    /// Of the 64-bit entry point in the image.
    const ENTRY_64: u64 = 0x200;

    let start = preferred_address(file)?;
    let result = BzImage::load(memory, Some(GuestAddress(start)), file, None)?;
    let header = result.setup_header.context("no setup header")?;
    let (xloadflags, init_size) = (header.xloadflags, header.init_size);
    if xloadflags & XLF_KERNEL_64 == 0 {
        bail!("the kernel has no 64-bit entry point");
    }
    Ok(Kernel {
        entry: start + ENTRY_64,
        loaded: Range::new(start, result.kernel_end),
        needed: Range::new(start, (start + u64::from(init_size)).max(result.kernel_end)),
        header,
    })
}

/// Where a bzImage decompresses itself to, if it can: it need not move then.
fn preferred_address(file: &File) -> Result<u64> {
    const PREF_ADDRESS: u64 = 0x258;
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, PREF_ADDRESS)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The command line with its terminator. The TD has no EFI runtime services, which
/// Linux is told unless the caller says something about EFI.
fn command_line(given: &str) -> Result<Vec<u8>> {
    let mut line = given.to_string();
    if !line.split_whitespace().any(|word| word.starts_with("efi=")) {
        line = format!("{line} efi=noruntime").trim_start().to_string();
    }
    ensure!(
        line.len() < CMDLINE_SIZE && !line.contains('\0'),
        "--cmdline: at most {} bytes, without NUL",
        CMDLINE_SIZE - 1
    );
    let mut line = line.into_bytes();
    line.push(0);
    Ok(line)
}

/// The parts of `range` in the staging memory that are not long runs of zero pages.
fn runs(memory: &GuestMemoryMmap, range: Range) -> Result<Vec<Range>> {
    let mut bytes = vec![0u8; range.len() as usize];
    memory.read_slice(&mut bytes, GuestAddress(range.start))?;
    let full: Vec<bool> = bytes
        .chunks(PAGE as usize)
        .map(|page| page.iter().any(|byte| *byte != 0))
        .collect();
    Ok(full_runs(&full)
        .into_iter()
        .map(|(first, last)| Range {
            start: range.start + first as u64 * PAGE,
            end: range.start + last as u64 * PAGE,
        })
        .collect())
}

fn full_runs(full: &[bool]) -> Vec<(usize, usize)> {
    let mut out: Vec<(usize, usize)> = Vec::new();
    for (n, _) in full.iter().enumerate().filter(|(_, full)| **full) {
        match out.last_mut() {
            Some((_, end)) if n - *end < ZERO_RUN => *end = n + 1,
            _ => out.push((n, n + 1)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn command_line_says_that_efi_has_no_runtime() {
        assert_eq!(command_line("a b").unwrap(), b"a b efi=noruntime\0");
        assert_eq!(command_line("").unwrap(), b"efi=noruntime\0");
        assert_eq!(command_line("efi=debug x").unwrap(), b"efi=debug x\0");
        assert!(command_line(&"x".repeat(2000)).is_ok());
        assert!(command_line(&"x".repeat(2048)).is_err());
    }

    #[test]
    fn only_long_zero_runs_are_left_out() {
        let mut full = vec![false; 100];
        for n in [3, 4, 20, 37, 99] {
            full[n] = true;
        }
        assert_eq!(full_runs(&full), [(3, 21), (37, 38), (99, 100)]);
        assert_eq!(full_runs(&[]), []);
    }

    #[test]
    fn boot_params_tell_memory_initrd_and_tables() {
        let layout = Layout::new(256 * MIB, true).unwrap();
        let kernel = Kernel {
            entry: 16 * MIB,
            loaded: Range::new(16 * MIB, 17 * MIB),
            needed: Range::new(16 * MIB, 18 * MIB),
            header: setup_header::default(),
        };
        let boot = Boot {
            kernel: Path::new(""),
            initrd: None,
            cmdline: "",
            memory: 256 * MIB,
            cpus: 2,
            lazy: true,
        };
        let efi = efi::build(layout.tables() + at::EFI, &layout, 0, 0);
        let initrd = (Range::new(100 * MIB, 101 * MIB), MIB - 7);
        let params = boot.boot_params(&layout, &kernel, Some(initrd), &efi);
        let bytes = params.as_slice();
        assert_eq!(bytes.len(), 4096);
        // Offsets of Documentation/arch/x86/zero-page.rst and boot.rst.
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let top = 256 * MIB as u32 - 0x1_0000;
        assert_eq!(u32_at(0x70), top);
        assert_eq!(&bytes[0x1c0..0x1c4], b"EL64");
        assert_eq!(u32_at(0x1c4), top + 0x4000);
        assert_eq!((u32_at(0x1c8), u32_at(0x1cc)), (40, 1));
        assert_eq!(
            (u32_at(0x1d0), u32_at(0x1d4)),
            (efi.map as u32, efi.map_size)
        );
        assert_eq!(bytes[0x1e8], 7);
        assert_eq!(bytes[0x210], 0xff);
        assert_eq!((u32_at(0x218), u32_at(0x21c)), (100 << 20, (1 << 20) - 7));
        assert_eq!(u32_at(0x228), top + 0xc000);
        // First entry of the E820 table: 640 KiB of RAM.
        assert_eq!(
            (u32_at(0x2d0), u32_at(0x2d8), u32_at(0x2e0)),
            (0, 0xa_0000, 1)
        );
        assert_eq!(u32_at(0x2d0 + 3 * 20 + 16), 3);
    }
}
