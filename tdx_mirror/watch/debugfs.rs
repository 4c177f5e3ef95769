// SPDX-License-Identifier: GPL-2.0

//! `/sys/kernel/debug/tdx_mirror/`.
//!
//! * `stats`: totals of all TDs since load or reset, one `name value` per line.
//! * `reset`: a write of anything zeroes the totals; -EBUSY while a TD lives.
//! * `record`: see [`super::record`].
//! * `timing`: 1 while freezes are timed, else 0; may be written.
//! * `read_sept`: 1 while `map` and `audit` of a TD read the S-EPT, else 0; may be written.
//! * `<pid>-<td>/`: see [`super::td_files`].

use kernel::{
    debugfs::{
        Dir,
        File, //
    },
    fmt,
    prelude::*,
    uaccess::UserSliceReader, //
};

use super::{
    record::Record,
    registry, //
};
use crate::kernel::switches;
use crate::kernel::uaccess::number;

/// The files. They go away when this is dropped, before the module's memory does.
#[pin_data]
pub(crate) struct Files {
    _dir: Dir,
    #[pin]
    _stats: File<()>,
    #[pin]
    _reset: File<()>,
    #[pin]
    _record: File<Record>,
    #[pin]
    _timing: File<()>,
    #[pin]
    _read_sept: File<()>,
    _parent: Parent,
}

fn show(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    registry::write_totals(f)
}

fn reset(_: &(), _: &mut UserSliceReader) -> Result {
    registry::reset()
}

fn timing(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", u8::from(switches::timing()))
}

fn set_timing(_: &(), reader: &mut UserSliceReader) -> Result {
    match number(reader)? {
        0 => switches::set_timing(false),
        1 => switches::set_timing(true),
        _ => return Err(EINVAL),
    }
    Ok(())
}

fn read_sept(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", u8::from(switches::reads_sept()))
}

fn set_read_sept(_: &(), reader: &mut UserSliceReader) -> Result {
    match number(reader)? {
        on @ (0 | 1) => switches::set_reads_sept(on == 1),
        _ => return Err(EINVAL),
    }
    Ok(())
}

/// The folder as the TDs find it, for as long as the module has files.
struct Parent(());

impl Parent {
    fn new(dir: &Dir) -> Self {
        registry::set_dir(Some(dir.clone()));
        Self(())
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        registry::set_dir(None);
    }
}

impl Files {
    /// Makes the files. Without debugfs, or if it fails, there are none and nothing else differs.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        let dir = Dir::new(c"tdx_mirror");
        try_pin_init!(Self {
            _stats <- dir.read_callback_file(c"stats", (), &show),
            _reset <- dir.write_callback_file(c"reset", (), &reset),
            _record <- dir.read_write_binary_file(c"record", Record),
            _timing <- dir.read_write_callback_file(c"timing", (), &timing, &set_timing),
            _read_sept <- dir.read_write_callback_file(
                c"read_sept",
                (),
                &read_sept,
                &set_read_sept
            ),
            _parent: Parent::new(&dir),
            _dir: dir,
        })
    }
}
