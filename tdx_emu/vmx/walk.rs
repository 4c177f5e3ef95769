// SPDX-License-Identifier: GPL-2.0

//! Reads the guest's instruction at RIP, to tell TDCALL from a real #UD: the CPU
//! does not know TDCALL, so it raises #UD, which exits.
//!
//! The guest's page tables are read like by the CPU, through the EPT. A mapping
//! cannot go away meanwhile: the vCPU counts as running, and nobody frees what
//! it can reach before it has left (TLB tracking for the private half, KVM's
//! kick for the shared half).

use core::sync::atomic::Ordering;

use super::ept;
use super::ffi::VmxError;
use super::vmcs::{field, Current};
use crate::module::{Platform, Vcpu};

const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const CS_LONG: u32 = 1 << 13;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const TDCALL: [u8; 4] = [0x66, 0x0f, 0x01, 0xcc];

/// Address translation state of the guest.
struct Paging {
    on: bool,
    long: bool,
    levels: u32,
    cr3: u64,
}

/// Guest physical address of a linear one. `None` if not mapped, and for the
/// 32-bit paging modes, in which no TD calls the module.
fn translate<P: Platform>(p: &P, vcpu: &Vcpu, paging: &Paging, linear: u64) -> Option<u64> {
    if !paging.on {
        return Some(linear & 0xffff_ffff);
    }
    if !paging.long {
        return None;
    }

    let mut gpa = paging.cr3 & ADDRESS;
    for level in (1..=paging.levels).rev() {
        let (index, offset) = ept::geometry(linear, level);
        let table = ept::translate(p, vcpu, gpa)?;
        let entry = ept::table(p, table)?.get(index)?.load(Ordering::Relaxed);
        if entry & PRESENT == 0 {
            return None;
        }
        if level == 1 || (level <= 3 && entry & LARGE != 0) {
            return Some((entry & ADDRESS & !offset) | (linear & offset));
        }
        gpa = entry & ADDRESS;
    }
    None
}

/// Whether the bytes at a linear address are `code`. They are read page by page: a
/// translation of an address takes some thirty accesses to memory.
fn holds<P: Platform>(
    p: &P,
    vcpu: &Vcpu,
    paging: &Paging,
    linear: u64,
    code: &[u8],
) -> Option<bool> {
    let mut at = linear;
    let mut rest = code;
    while !rest.is_empty() {
        let gpa = translate(p, vcpu, paging, at)?;
        let pa = ept::translate(p, vcpu, gpa)?;
        let page = ept::table(p, pa)?;
        let mut offset = pa as usize & 0xfff;
        while let [first, tail @ ..] = rest {
            let Some(word) = page.get(offset / 8) else {
                break;
            };
            let bytes = word.load(Ordering::Relaxed).to_le_bytes();
            if bytes.get(offset & 7) != Some(first) {
                return Some(false);
            }
            rest = tail;
            offset = offset.wrapping_add(1);
            at = at.wrapping_add(1);
        }
    }
    Some(true)
}

/// Whether the instruction at RIP is TDCALL.
pub(super) fn at_tdcall<P: Platform>(p: &P, vcpu: &Vcpu, vm: &Current) -> Result<bool, VmxError> {
    let efer = vm.read(field::GUEST_EFER)?;
    let cr4 = vm.read(field::GUEST_CR4)?;
    let paging = Paging {
        on: vm.read(field::GUEST_CR0)? & CR0_PG != 0,
        long: efer & EFER_LMA != 0,
        levels: if cr4 & CR4_LA57 != 0 { 5 } else { 4 },
        cr3: vm.read(field::GUEST_CR3)?,
    };
    let rip = vm.read(field::GUEST_RIP)?;
    let code_long = paging.long && vm.read32(field::GUEST_ES_ACCESS + 2)? & CS_LONG != 0;
    let start = if code_long {
        rip
    } else {
        rip.wrapping_add(vm.read(field::GUEST_CS_BASE)?) & 0xffff_ffff
    };

    Ok(holds(p, vcpu, &paging, start, &TDCALL) == Some(true))
}
