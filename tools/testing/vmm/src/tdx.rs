// SPDX-License-Identifier: GPL-2.0
//! KVM_MEMORY_ENCRYPT_OP with the sub-commands of TDX, which kvm-ioctls has no names for.

use std::os::fd::AsRawFd;

use kvm_bindings::{kvm_cpuid_entry2, CpuId, KVMIO};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::{errno, ioctl_iowr_nr};

ioctl_iowr_nr!(KVM_MEMORY_ENCRYPT_OP, KVMIO, 0xba, std::ffi::c_ulong);

/// A TD's private memory that is pending causes no #VE; Linux insists on it.
pub const ATTRIBUTE_SEPT_VE_DISABLE: u64 = 1 << 28;

const MAX_CPUID: usize = 256;

/// Sub-commands.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub enum Op {
    Capabilities = 0,
    InitVm = 1,
    InitVcpu = 2,
    InitMemRegion = 3,
    FinalizeVm = 4,
}

#[repr(C)]
struct Cmd {
    id: u32,
    flags: u32,
    data: u64,
    hw_error: u64,
}

/// Why a sub-command failed.
#[derive(Debug, thiserror::Error)]
#[error("{op:?}: {errno} (SEAMCALL status {hw_error:#x})")]
pub struct OpError {
    pub op: Op,
    pub errno: errno::Error,
    pub hw_error: u64,
}

/// Runs a sub-command on a VM's or vCPU's descriptor.
///
/// # Safety
/// `data` is what the sub-command takes: a number, or the address of the structure
/// that it reads and writes.
pub unsafe fn op(fd: &impl AsRawFd, op: Op, flags: u32, data: u64) -> Result<(), OpError> {
    let mut cmd = Cmd {
        id: op as u32,
        flags,
        data,
        hw_error: 0,
    };
    // SAFETY: the command is a valid structure; the caller vouches for `data`.
    let ret = unsafe { ioctl_with_mut_ref(fd, KVM_MEMORY_ENCRYPT_OP(), &mut cmd) };
    match ret {
        0 => Ok(()),
        _ => Err(OpError {
            op,
            errno: errno::Error::last(),
            hw_error: cmd.hw_error,
        }),
    }
}

/// Number of entries and padding, then the entries.
#[repr(C)]
#[derive(Clone)]
struct CpuidTable {
    nent: u32,
    padding: u32,
    entries: [kvm_cpuid_entry2; MAX_CPUID],
}

impl CpuidTable {
    fn new() -> Self {
        Self {
            nent: 0,
            padding: 0,
            entries: [kvm_cpuid_entry2::default(); MAX_CPUID],
        }
    }
}

#[repr(C)]
struct RawCapabilities {
    attributes: u64,
    xfam: u64,
    tdvmcall_info: [u64; 4],
    reserved: [u64; 250],
    cpuid: CpuidTable,
}

#[repr(C)]
struct RawInitVm {
    attributes: u64,
    xfam: u64,
    digests: [u64; 18],
    reserved: [u64; 12],
    cpuid: CpuidTable,
}

#[repr(C)]
struct RawMemRegion {
    source: u64,
    gpa: u64,
    pages: u64,
}

const _: () = assert!(std::mem::offset_of!(RawCapabilities, cpuid) == 2048);
const _: () = assert!(std::mem::offset_of!(RawInitVm, cpuid) == 256);

/// What KVM and the TDX module offer.
pub struct Capabilities {
    pub attributes: u64,
    pub xfam: u64,
    /// CPUID bits that the VMM chooses
    pub cpuid: Vec<kvm_cpuid_entry2>,
}

pub fn capabilities(vm: &impl AsRawFd) -> Result<Capabilities, OpError> {
    let mut raw = Box::new(RawCapabilities {
        attributes: 0,
        xfam: 0,
        tdvmcall_info: [0; 4],
        reserved: [0; 250],
        cpuid: CpuidTable::new(),
    });
    raw.cpuid.nent = MAX_CPUID as u32;
    // SAFETY: the structure of this sub-command, with room for as many entries as it says.
    unsafe {
        op(
            vm,
            Op::Capabilities,
            0,
            &mut *raw as *mut RawCapabilities as u64,
        )?
    };
    let count = (raw.cpuid.nent as usize).min(MAX_CPUID);
    Ok(Capabilities {
        attributes: raw.attributes,
        xfam: raw.xfam,
        cpuid: raw.cpuid.entries[..count].to_vec(),
    })
}

/// `entries`: at most 256 go in.
pub fn init_vm(
    vm: &impl AsRawFd,
    attributes: u64,
    xfam: u64,
    entries: &[kvm_cpuid_entry2],
) -> Result<(), OpError> {
    let mut raw = Box::new(RawInitVm {
        attributes,
        xfam,
        digests: [0; 18],
        reserved: [0; 12],
        cpuid: CpuidTable::new(),
    });
    for (to, from) in raw.cpuid.entries.iter_mut().zip(entries) {
        *to = *from;
        raw.cpuid.nent += 1;
    }
    // SAFETY: as above.
    unsafe { op(vm, Op::InitVm, 0, &mut *raw as *mut RawInitVm as u64) }
}

/// `rcx`: what the vCPU finds in RCX.
pub fn init_vcpu(vcpu: &impl AsRawFd, rcx: u64) -> Result<(), OpError> {
    // SAFETY: the sub-command takes a number.
    unsafe { op(vcpu, Op::InitVcpu, 0, rcx) }
}

/// Copies `pages` pages at `source` into private memory.
///
/// # Safety
/// `source` is the address of as many readable pages.
pub unsafe fn init_mem_region(
    vcpu: &impl AsRawFd,
    source: u64,
    gpa: u64,
    pages: u64,
    measure: bool,
) -> Result<(), OpError> {
    let mut region = RawMemRegion { source, gpa, pages };
    loop {
        let data = &mut region as *mut RawMemRegion as u64;
        // SAFETY: as above. KVM moves the region on, so the call can be repeated.
        match unsafe { op(vcpu, Op::InitMemRegion, measure.into(), data) } {
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno.errno()) => (),
            other => return other,
        }
    }
}

pub fn finalize(vm: &impl AsRawFd) -> Result<(), OpError> {
    // SAFETY: the sub-command takes nothing.
    unsafe { op(vm, Op::FinalizeVm, 0, 0) }
}

/// CPUID as a TD's vCPU with `apic_id` has it, from what KVM supports: x2APIC, 48 bits
/// of GPA, and of KVM's own features only those that need no shared memory of the guest
/// (kvm-clock, steal time, asynchronous faults do).
pub fn vcpu_cpuid(supported: &CpuId, apic_id: u32) -> CpuId {
    const KVM_NOP_IO_DELAY: u32 = 1 << 1;
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ecx |= 1 << 21;
                entry.ebx = entry.ebx & 0x00ff_ffff | apic_id << 24;
            }
            0xb | 0x1f => entry.edx = apic_id,
            0x4000_0001 => {
                entry.eax &= KVM_NOP_IO_DELAY;
                entry.edx = 0;
            }
            0x8000_0008 => {
                let bits = (entry.eax & 0xff).max(48);
                entry.eax = entry.eax & !0xff_00ff | 48 << 16 | bits;
            }
            _ => (),
        }
    }
    cpuid
}

/// The bits of `cpuid` that the VMM may choose.
pub fn configurable(cpuid: &CpuId, masks: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    let find = |mask: &kvm_cpuid_entry2| {
        let entries = cpuid.as_slice().iter();
        let mut same = entries.filter(|e| e.function == mask.function && e.index == mask.index);
        same.next().copied()
    };
    masks
        .iter()
        .filter_map(|mask| {
            let mut entry = find(mask)?;
            entry.eax &= mask.eax;
            entry.ebx &= mask.ebx;
            entry.ecx &= mask.ecx;
            entry.edx &= mask.edx;
            Some(entry)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, value: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax: value,
            ebx: value,
            ecx: value,
            edx: value,
            ..Default::default()
        }
    }

    #[test]
    fn kvm_clock_is_hidden_and_gpa_width_set() {
        let all = [1, 0xb, 0x4000_0001, 0x8000_0008].map(|leaf| entry(leaf, !0));
        let cpuid = vcpu_cpuid(&CpuId::from_entries(&all).unwrap(), 3);
        let e = cpuid.as_slice();
        assert_eq!(e[0].ebx >> 24, 3);
        assert_eq!(e[1].edx, 3);
        assert_eq!((e[2].eax, e[2].edx), (2, 0));
        assert_eq!(e[3].eax, 0xff30_ffff);
        let few = [entry(1, 0), entry(0x8000_0008, 40)];
        let cpuid = vcpu_cpuid(&CpuId::from_entries(&few).unwrap(), 0);
        assert_eq!(cpuid.as_slice()[0].ecx, 1 << 21);
        assert_eq!(cpuid.as_slice()[1].eax, 48 << 16 | 48);
    }

    #[test]
    fn only_configurable_bits_are_handed_on() {
        let cpuid = CpuId::from_entries(&[entry(1, 0xff), entry(7, 0xff)]).unwrap();
        let out = configurable(&cpuid, &[entry(7, 0x0f), entry(9, !0)]);
        assert_eq!(out, [entry(7, 0x0f)]);
    }
}
