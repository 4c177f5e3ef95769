// SPDX-License-Identifier: GPL-2.0
#![allow(missing_docs, dead_code, unexpected_cfgs)]
#![deny(unused_must_use)]

#[path = "../../../../../rust/mirror/mod.rs"]
pub mod mirror;

use mirror::error::{MapError, MapOutcome};

pub fn ignored(result: Result<MapOutcome, MapError>) -> Result<(), MapError> {
    #[cfg(control)]
    let _outcome = result?;
    #[cfg(not(control))]
    result?;
    Ok(())
}
