// SPDX-License-Identifier: GPL-2.0
#![allow(
    missing_docs,
    dead_code,
    unused_variables,
    unused_must_use,
    unexpected_cfgs
)]

#[path = "../../../../../tdx_mirror"]
mod product {
    pub mod base;
    pub mod mirror;
}
pub use product::{base, mirror};

use base::addr::Gfn;
use mirror::external::ExternalPt;
use mirror::lock::Exclusive;
use mirror::mmu::{Mirror, Vm};

pub fn keep<E: ExternalPt, V: Vm>(m: &Mirror<E, V>, x: &mut Exclusive<'_>, gfn: Gfn) {
    let entry = m.slot(&*x, gfn).map(|slot| slot.entry());
    #[cfg(control)]
    drop(entry);
    m.vm().yield_lock(x);
    #[cfg(not(control))]
    drop(entry);
}
