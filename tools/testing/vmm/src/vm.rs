// SPDX-License-Identifier: GPL-2.0
//! The TD as KVM knows it: VM, vCPUs, memory slots, and conversions of memory.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use anyhow::{bail, Context, Result};
use kvm_bindings::{
    kvm_create_guest_memfd, kvm_enable_cap, kvm_memory_attributes, kvm_msi,
    kvm_userspace_memory_region2, CpuId, KVM_CAP_EXIT_HYPERCALL, KVM_CAP_SPLIT_IRQCHIP,
    KVM_CAP_VM_TYPES, KVM_MAX_CPUID_ENTRIES, KVM_MEMORY_ATTRIBUTE_PRIVATE, KVM_MEM_GUEST_MEMFD,
    KVM_X86_TDX_VM,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use crate::boot::Image;
use crate::convert::{chunks, Conversion};
use crate::layout::{Range, PAGE};
use crate::payload;
use crate::stats::Stats;
use crate::tdx;

/// The hypercall that MapGPA becomes.
pub const KVM_HC_MAP_GPA_RANGE: u64 = 12;
/// GSI routes of the split irqchip, one for each pin of the I/O APIC.
const GSI_ROUTES: u64 = 24;

/// A range of GPAs with private memory (guest_memfd) and shared memory (a mapping).
struct Slot {
    gpa: u64,
    size: u64,
    gmem: File,
}

/// Settings of a TD.
pub struct Settings {
    pub memory: u64,
    pub cpus: u32,
    pub xfam: u64,
}

/// A TD before and after its start.
pub struct Vm {
    pub fd: VmFd,
    pub memory: GuestMemoryMmap,
    slots: Vec<Slot>,
}

/// KVM with TDs, or what to do.
fn open_kvm() -> Result<Kvm> {
    let kvm = Kvm::new().context("/dev/kvm cannot be opened: are kvm and kvm_intel loaded?")?;
    let types = kvm.check_extension_raw(KVM_CAP_VM_TYPES.into());
    if types < 0 || types & (1 << KVM_X86_TDX_VM) == 0 {
        bail!("KVM has no TDX VMs here: load kvm_intel with tdx=1, after the TDX module is up");
    }
    Ok(kvm)
}

impl Vm {
    /// Creates the TD with its vCPUs; its memory is shared and empty.
    pub fn new(settings: &Settings) -> Result<(Self, Vec<VcpuFd>)> {
        let kvm = open_kvm()?;
        let fd = kvm
            .create_vm_with_type(KVM_X86_TDX_VM.into())
            .context("KVM_CREATE_VM of a TD: the host may be out of TDX KeyIDs, see dmesg")?;
        enable_cap(&fd, KVM_CAP_SPLIT_IRQCHIP, GSI_ROUTES)?;
        enable_cap(&fd, KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE)?;
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        init_td(&fd, &supported, settings)?;

        let mut vcpus = Vec::new();
        for id in 0..settings.cpus {
            let vcpu = fd.create_vcpu(id.into()).with_context(|| {
                format!("KVM_CREATE_VCPU {id}: a TD has at most as many vCPUs as the host has CPUs; see --cpus")
            })?;
            vcpu.set_cpuid2(&tdx::vcpu_cpuid(&supported, id))?;
            tdx::init_vcpu(&vcpu, 0)?;
            vcpus.push(vcpu);
        }

        let ranges = [
            (GuestAddress(0), settings.memory as usize),
            (GuestAddress(payload::SLOT_GPA), payload::SLOT_SIZE as usize),
        ];
        let memory = GuestMemoryMmap::from_ranges(&ranges).context("shared memory of the TD")?;
        let mut vm = Self {
            fd,
            memory,
            slots: Vec::new(),
        };
        vm.add_slots()?;
        Ok((vm, vcpus))
    }

    fn add_slots(&mut self) -> Result<()> {
        for (n, region) in self.memory.iter().enumerate() {
            let (gpa, size) = (region.start_addr().raw_value(), region.len());
            let gmem = self.fd.create_guest_memfd(kvm_create_guest_memfd {
                size,
                ..Default::default()
            });
            let gmem = gmem.context("KVM_CREATE_GUEST_MEMFD")?;
            // SAFETY: KVM has just returned the descriptor, nobody else owns it.
            let gmem = unsafe { File::from_raw_fd(gmem) };
            let slot = kvm_userspace_memory_region2 {
                slot: n as u32,
                flags: KVM_MEM_GUEST_MEMFD,
                guest_phys_addr: gpa,
                memory_size: size,
                userspace_addr: region.get_host_address(vm_memory::MemoryRegionAddress(0))? as u64,
                guest_memfd: gmem.as_raw_fd() as u32,
                ..Default::default()
            };
            // SAFETY: the mapping belongs to `memory`, which lives as long as the VM.
            unsafe { self.fd.set_user_memory_region2(slot) }
                .with_context(|| format!("memory slot at {gpa:#x}"))?;
            self.set_attributes(gpa, size, true)?;
            self.slots.push(Slot { gpa, size, gmem });
        }
        Ok(())
    }

    /// Adds the staged contents to private memory and ends the measurement.
    pub fn build(&self, vcpu: &VcpuFd, image: &Image) -> Result<()> {
        for (range, measure) in &image.ranges {
            let source = self.host_address(range.start)?;
            // SAFETY: the staging memory covers the range, which `stage` has written.
            unsafe {
                tdx::init_mem_region(vcpu, source, range.start, range.len() / PAGE, *measure)
            }
            .with_context(|| format!("contents of {:#x}..{:#x}", range.start, range.end))?;
        }
        tdx::finalize(&self.fd)?;
        // The shared side is empty again.
        for slot in &self.slots {
            self.discard_shared(Range::new(slot.gpa, slot.gpa + slot.size))?;
        }
        Ok(())
    }

    fn host_address(&self, gpa: u64) -> Result<u64> {
        Ok(self.memory.get_host_address(GuestAddress(gpa))? as u64)
    }

    fn set_attributes(&self, gpa: u64, size: u64, private: bool) -> Result<()> {
        let attributes = kvm_memory_attributes {
            address: gpa,
            size,
            attributes: if private {
                KVM_MEMORY_ATTRIBUTE_PRIVATE.into()
            } else {
                0
            },
            flags: 0,
        };
        self.fd
            .set_memory_attributes(attributes)
            .with_context(|| format!("KVM_SET_MEMORY_ATTRIBUTES of {size:#x} bytes at {gpa:#x}"))
    }

    /// Whether all of the conversion lies in memory slots.
    pub fn covers(&self, conversion: &Conversion) -> bool {
        chunks(conversion, &self.ranges()).is_some()
    }

    fn ranges(&self) -> Vec<Range> {
        let ranges = self.slots.iter();
        ranges
            .map(|slot| Range::new(slot.gpa, slot.gpa + slot.size))
            .collect()
    }

    /// Makes memory private or shared. The side that goes away is given back to the
    /// host: private pages before the TD sees shared ones, and the other way round.
    pub fn convert(&self, conversion: &Conversion, stats: &Stats) -> Result<()> {
        let chunks = chunks(conversion, &self.ranges())
            .with_context(|| format!("{conversion:x?} is not memory of the TD"))?;
        for (n, range) in chunks {
            self.set_attributes(range.start, range.len(), conversion.private)?;
            if conversion.private {
                self.discard_shared(range)?;
            } else if let Some(slot) = self.slots.get(n) {
                punch_hole(&slot.gmem, range.start - slot.gpa, range.len())?;
            }
            stats.converted(range.len(), conversion.private);
        }
        Ok(())
    }

    fn discard_shared(&self, range: Range) -> Result<()> {
        let start = self.host_address(range.start)?;
        // SAFETY: the pages belong to the TD's shared memory, of which nothing in this
        // process holds a reference.
        let ret = unsafe {
            libc::madvise(
                start as *mut libc::c_void,
                range.len() as usize,
                libc::MADV_DONTNEED,
            )
        };
        match ret {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()).context("MADV_DONTNEED of shared memory"),
        }
    }

    /// Delivers an interrupt message.
    pub fn signal_msi(&self, address: u32, data: u32) -> Result<()> {
        self.fd
            .signal_msi(kvm_msi {
                address_lo: address,
                data,
                ..Default::default()
            })
            .context("KVM_SIGNAL_MSI")?;
        Ok(())
    }
}

fn enable_cap(fd: &VmFd, cap: u32, arg: u64) -> Result<()> {
    let mut enable = kvm_enable_cap {
        cap,
        ..Default::default()
    };
    enable.args[0] = arg;
    fd.enable_cap(&enable)
        .with_context(|| format!("KVM_ENABLE_CAP of capability {cap}"))
}

fn init_td(fd: &VmFd, supported: &CpuId, settings: &Settings) -> Result<()> {
    let caps = tdx::capabilities(fd)?;
    let attributes = tdx::ATTRIBUTE_SEPT_VE_DISABLE;
    if caps.attributes & attributes == 0 {
        bail!("the TDX module has no SEPT_VE_DISABLE attribute, without which Linux does not run");
    }
    if settings.xfam & !caps.xfam != 0 {
        bail!(
            "--xfam {:#x}: this host supports {:#x}",
            settings.xfam,
            caps.xfam
        );
    }
    let cpuid = tdx::vcpu_cpuid(supported, 0);
    let entries = tdx::configurable(&cpuid, &caps.cpuid);
    tdx::init_vm(fd, attributes, settings.xfam, &entries)?;
    Ok(())
}

fn punch_hole(gmem: &File, offset: u64, size: u64) -> Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    loop {
        // SAFETY: changes nothing but the file.
        let ret = unsafe { libc::fallocate64(gmem.as_raw_fd(), mode, offset as i64, size as i64) };
        if ret == 0 {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error).with_context(|| format!("FALLOC_FL_PUNCH_HOLE at {offset:#x}"));
        }
    }
}
