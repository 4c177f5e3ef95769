// SPDX-License-Identifier: GPL-2.0

//! The combined EPT root, and walks of it by software.
//!
//! The lower half of a TD's guest physical addresses is private and mapped by
//! the S-EPT, the upper half (shared bit set) by the EPT in field 203Ch. The CPU
//! of a TDX host knows both; VMX knows one pointer, so each vCPU gets a root page
//! whose halves are copies of the two roots' halves. Below the root it is the
//! real tables that the CPU walks.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::module::{Platform, Vcpu, TDVPS_EPT_ROOT};

const ENTRIES: usize = 512;
const READ: u64 = 1;
/// Any access makes an entry present.
const PRESENT: u64 = 7;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Nothing mapped, and no #VE but an exit.
const ABSENT: u64 = 1 << 63;

/// Index in a table of `level` and offset mask of what an entry there maps.
pub(super) fn geometry(address: u64, level: u32) -> (usize, u64) {
    let shift = 12u32.wrapping_add(level.wrapping_sub(1).wrapping_mul(9)) & 63;
    let index = (address >> shift) as usize % ENTRIES;
    (index, (1u64 << shift).wrapping_sub(1))
}

/// The page at `pa` as a table.
pub(super) fn table<P: Platform>(p: &P, pa: u64) -> Option<&[AtomicU64; ENTRIES]> {
    let page = p.page(pa & ADDRESS)?;
    // SAFETY: `Platform::page` gives 4096 bytes, aligned to that, which live as
    // long as `p` and which everybody accesses atomically.
    Some(unsafe { page.cast().as_ref() })
}

fn shared_root<'p, P: Platform>(p: &'p P, vcpu: &Vcpu) -> Option<&'p [AtomicU64; ENTRIES]> {
    match vcpu.shared_ept & ADDRESS {
        0 => None,
        pa => table(p, pa),
    }
}

/// Which entries of a combined root hold a copy; all others are absent. Few do, so
/// that comparing them with their sources is quick.
#[repr(transparent)]
pub(super) struct Copied([u64; ENTRIES / 64]);

impl Copied {
    fn words(&mut self, index: usize) -> Option<(&mut u64, u64)> {
        let word = self.0.get_mut(index / 64)?;
        Some((word, 1 << (index % 64)))
    }
}

/// Where entry `index` of the combined root comes from.
fn source<'p, P: Platform>(p: &'p P, vcpu: &Vcpu, index: usize) -> Option<&'p AtomicU64> {
    let root = if index < ENTRIES / 2 {
        table(p, vcpu.sept_root)?
    } else {
        shared_root(p, vcpu)?
    };
    root.get(index)
}

/// Makes all entries of the combined root of `vcpu` absent. `None` if it has none.
pub(super) fn clear_root<P: Platform>(p: &P, vcpu: &Vcpu, copied: &mut Copied) -> Option<()> {
    for entry in table(p, *vcpu.pages.get(TDVPS_EPT_ROOT)?)? {
        entry.store(ABSENT, Ordering::Relaxed);
    }
    copied.0.fill(0);
    Some(())
}

/// Brings the copies in the combined root of `vcpu` up to date. To be done at each
/// TDH.VP.ENTER: whoever takes an entry out of a root has the vCPU leave and the TLBs
/// flushed, and frees what was below only then. What has come is copied when the guest
/// asks for it. `None` if a page is missing.
pub(super) fn refresh_root<P: Platform>(p: &P, vcpu: &Vcpu, copied: &mut Copied) -> Option<()> {
    let root = table(p, *vcpu.pages.get(TDVPS_EPT_ROOT)?)?;
    let mut base = 0usize;
    for word in &copied.0 {
        let mut rest = *word;
        while rest != 0 {
            let index = base.wrapping_add(rest.trailing_zeros() as usize);
            rest &= rest.wrapping_sub(1);
            let from = source(p, vcpu, index);
            let value = from.map_or(ABSENT, |from| from.load(Ordering::Acquire));
            root.get(index)?.store(value, Ordering::Release);
        }
        base = base.wrapping_add(64);
    }
    Some(())
}

/// Copies the one entry that covers `gpa`, which may have come since the vCPU was
/// entered. True if it differed, so that the access is worth a new try.
pub(super) fn refresh_entry<P: Platform>(
    p: &P,
    vcpu: &Vcpu,
    copied: &mut Copied,
    gpa: u64,
) -> Option<bool> {
    let (index, _) = geometry(gpa, vcpu.sept_levels);
    let entry = table(p, *vcpu.pages.get(TDVPS_EPT_ROOT)?)?.get(index)?;
    let value = source(p, vcpu, index)?.load(Ordering::Acquire);
    let (word, bit) = copied.words(index)?;
    *word |= bit;
    Some(entry.swap(value, Ordering::AcqRel) != value)
}

/// EPT pointer of `vcpu`: write-back, no accessed and dirty flags, since the
/// S-EPT uses their bits otherwise.
pub(super) fn pointer(vcpu: &Vcpu) -> Option<u64> {
    let root = *vcpu.pages.get(TDVPS_EPT_ROOT)?;
    Some(root | u64::from(vcpu.sept_levels.saturating_sub(1)) << 3 | 6)
}

/// Where the guest finds `gpa`, if it may read there.
pub(super) fn translate<P: Platform>(p: &P, vcpu: &Vcpu, gpa: u64) -> Option<u64> {
    let mut pa = *vcpu.pages.get(TDVPS_EPT_ROOT)?;

    for level in (1..=vcpu.sept_levels.min(5)).rev() {
        let (index, offset) = geometry(gpa, level);
        let entry = table(p, pa)?.get(index)?.load(Ordering::Acquire);
        if entry & PRESENT == 0 || entry & READ == 0 {
            return None;
        }
        if level == 1 || (level <= 3 && entry & LARGE != 0) {
            return Some((entry & ADDRESS & !offset) | (gpa & offset));
        }
        pa = entry & ADDRESS;
    }
    None
}
