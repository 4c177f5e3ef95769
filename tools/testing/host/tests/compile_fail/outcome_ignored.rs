// SPDX-License-Identifier: GPL-2.0
#![allow(missing_docs, dead_code, unexpected_cfgs)]
#![deny(unused_must_use)]

#[path = "../../../../../tdx_mirror"]
mod product {
    pub mod base;
    pub mod mirror;
}
pub use product::{base, mirror};

use mirror::error::{MapError, MapOutcome};

pub fn ignored(result: Result<MapOutcome, MapError>) -> Result<(), MapError> {
    #[cfg(control)]
    let _outcome = result?;
    #[cfg(not(control))]
    result?;
    Ok(())
}
