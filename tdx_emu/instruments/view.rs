// SPDX-License-Identifier: GPL-2.0

//! A look at a TD from outside, for tests and debugging. No lock is taken, so that
//! looking never makes a SEAMCALL busy: while the TD changes, the parts of the
//! answer may be of different moments.

#![forbid(unsafe_code)]

use crate::module::machine::Machine;
use crate::module::mem::Page;
use crate::module::pamt::pt;
use crate::module::td::{tdcs_word, tdr_word, MIN_TDCX};
use crate::module::{Observer, Platform};

/// What is known about a TD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TdView {
    /// Its private HKID.
    pub hkid: u64,
    /// Its pages other than the TDR, in units of 4 KiB.
    pub children: u64,
    /// Its vCPUs.
    pub vcpus: u64,
    /// MRTD, zero before TDH.MR.FINALIZE.
    pub mrtd: [u8; 48],
}

/// Looks at the TD whose TDR is at `tdr` (no HKID). `None` if that is no TDR or
/// the TD has no TDCS yet.
pub(crate) fn td_view<P: Platform, O: Observer>(m: &Machine<P, O>, tdr: u64) -> Option<TdView> {
    let entry = m.pamt_entry(tdr, 0)?;
    if entry.kind() != pt::TDR {
        return None;
    }
    let page = Page::at(&m.p, tdr)?;
    if page.get(tdr_word::NUM_TDCX) < MIN_TDCX {
        return None;
    }
    let tdcs = Page::at(&m.p, page.get(tdr_word::TDCX))?;

    let mut mrtd = [0; 48];
    for (i, bytes) in mrtd.chunks_exact_mut(8).enumerate() {
        let word = tdcs.get(tdcs_word::MRTD.wrapping_add(i));
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    Some(TdView {
        hkid: page.get(tdr_word::HKID),
        children: page.get(tdr_word::CHLDCNT),
        vcpus: tdcs.get(tdcs_word::NUM_VCPUS),
        mrtd,
    })
}
