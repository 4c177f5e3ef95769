// SPDX-License-Identifier: GPL-2.0

//! `/sys/kernel/debug/tdx_mirror/`.
//!
//! * `stats`: totals of all TDs since load or reset, one `name value` per line.
//! * `reset`: a write of anything zeroes the totals; -EBUSY while a TD lives.

use kernel::{
    debugfs::{Dir, File},
    fmt,
    prelude::*,
    uaccess::UserSliceReader, //
};

use super::registry;

/// The files. They go away when this is dropped, before the module's memory does.
#[pin_data]
pub(crate) struct Files {
    _dir: Dir,
    #[pin]
    _stats: File<()>,
    #[pin]
    _reset: File<()>,
}

fn show(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    registry::write_totals(f)
}

fn reset(_: &(), _: &mut UserSliceReader) -> Result {
    registry::reset()
}

impl Files {
    /// Makes the files. Without debugfs, or if it fails, there are none and nothing else differs.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        let dir = Dir::new(c"tdx_mirror");
        try_pin_init!(Self {
            _stats <- dir.read_callback_file(c"stats", (), &show),
            _reset <- dir.write_callback_file(c"reset", (), &reset),
            _dir: dir,
        })
    }
}
