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

use base::level::Level;
use mirror::cursor::Cursor;
use mirror::lock::Exclusive;
use mirror::mmu::Vm;
use mirror::table::Root;

pub fn keep<V: Vm>(vm: &V, x: &mut Exclusive<'_>, root: &Root, cursor: &mut Cursor) {
    let slot = cursor.entries(&*x, root.table(&*x), Level::L512G).next(vm);
    #[cfg(control)]
    drop(slot);
    vm.yield_lock(x);
    #[cfg(not(control))]
    drop(slot);
}
