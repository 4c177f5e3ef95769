// SPDX-License-Identifier: GPL-2.0

//! Which TD a call is about. No lock is taken, so that looking never makes a SEAMCALL busy.

#![forbid(unsafe_code)]

use crate::module::machine::Machine;
use crate::module::mem::Page;
use crate::module::numbers::leaf;
use crate::module::observer::Observer;
use crate::module::pamt::pt;
use crate::module::td::tdr_word;
use crate::module::vcpu::ENTER_FLAGS;
use crate::module::{Platform, Regs, PAGE_SIZE};

/// HKID of the TD whose TDR is at `tdr`; 0: there is none.
pub(crate) fn hkid_of<P: Platform>(p: &P, tdr: u64) -> Option<u64> {
    if tdr == 0 {
        return None;
    }
    Some(Page::at(p, tdr)?.get(tdr_word::HKID))
}

/// TDR of the TD that a call is about.
pub(crate) fn td_of_call<P: Platform, O: Observer>(
    m: &Machine<P, O>,
    number: u16,
    r: &Regs,
) -> Option<u64> {
    let page = |pa: u64| m.strip_hkid(pa) & !(PAGE_SIZE - 1);
    let is_tdr = |pa: u64| m.pamt_entry(pa, 0).is_some_and(|e| e.kind() == pt::TDR);
    let owner = |pa: u64| {
        let mut entries = (0..3u8).filter_map(|size| m.pamt_entry(pa, size));
        let owned = entries.find(|e| !matches!(e.kind(), pt::NDA | pt::RSVD | pt::PAMT));
        owned.map(|e| e.owner())
    };
    let tdr = match number {
        leaf::VP_ENTER | leaf::VP_INIT | leaf::VP_FLUSH | leaf::VP_RD | leaf::VP_WR => {
            // VP.ENTER has flags above the address.
            owner(page(r.rcx & !ENTER_FLAGS))?
        }
        leaf::VP_ADDCX => owner(page(r.rdx))?,
        leaf::MEM_TRACK
        | leaf::MR_FINALIZE
        | leaf::MNG_INIT
        | leaf::MNG_KEY_CONFIG
        | leaf::MNG_KEY_FREEID
        | leaf::MNG_KEY_RECLAIMID
        | leaf::MNG_RD
        | leaf::MNG_VPFLUSHDONE => page(r.rcx),
        leaf::PHYMEM_PAGE_RECLAIM | leaf::PHYMEM_PAGE_RDMD => match page(r.rcx) {
            pa if is_tdr(pa) => pa,
            pa => owner(pa)?,
        },
        _ => page(r.rdx),
    };
    is_tdr(tdr).then_some(tdr)
}
