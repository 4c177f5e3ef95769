// SPDX-License-Identifier: GPL-2.0

//! `/sys/kernel/debug/tdx_mirror/`.
//!
//! * `stats`: totals of all TDs since load or reset, one `name value` per line.
//! * `reset`: a write of anything zeroes the totals; -EBUSY while a TD lives.
//! * `record`: see [`super::record`].
//! * `timing`: 1 while freezes are timed, else 0; may be written.
//! * `read_sept`: 1 while `map` and `audit` of a TD read the S-EPT, else 0; may be written.
//! * `<pid>-<td>/`: see [`super::td_files`].
//!
//! An open file keeps the module.

use core::fmt;
use kernel::{
    prelude::*,
    sync::Arc, //
};

use super::cursor::Node;
use super::folder::Folder;
use super::registry;
use crate::kernel::switches;
use crate::kernel::uaccess::number;

/// The files. They go away when this is dropped, before the module's memory does.
pub(crate) struct Files(());

static STATS: Node = Node::Module {
    show: registry::write_totals,
    store: refuse,
};
static RESET: Node = Node::Module {
    show: nothing,
    store: reset,
};
static TIMING: Node = Node::Module {
    show: timing,
    store: set_timing,
};
static READ_SEPT: Node = Node::Module {
    show: read_sept,
    store: set_read_sept,
};

fn nothing(_: &mut fmt::Formatter<'_>) -> fmt::Result {
    Ok(())
}

fn refuse(_: &[u8]) -> Result {
    Err(EINVAL)
}

fn reset(_: &[u8]) -> Result {
    registry::reset()
}

fn timing(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", u8::from(switches::timing()))
}

fn set_timing(text: &[u8]) -> Result {
    match number(text)? {
        on @ (0 | 1) => switches::set_timing(on == 1),
        _ => return Err(EINVAL),
    }
    Ok(())
}

fn read_sept(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "{}", u8::from(switches::reads_sept()))
}

fn set_read_sept(text: &[u8]) -> Result {
    match number(text)? {
        on @ (0 | 1) => switches::set_reads_sept(on == 1),
        _ => return Err(EINVAL),
    }
    Ok(())
}

impl Files {
    /// Makes the files. Without debugfs, or if it fails, there are none and nothing else differs.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        let folder = Folder::new(c"tdx_mirror", None);
        let files: [(&CStr, u16, &'static Node); 4] = [
            (c"stats", 0o400, &STATS),
            (c"reset", 0o200, &RESET),
            (c"timing", 0o600, &TIMING),
            (c"read_sept", 0o600, &READ_SEPT),
        ];
        for (name, mode, node) in files {
            // SAFETY: The nodes are static, and the folder goes with the module.
            unsafe { folder.text(name, mode, node) };
        }
        folder.record(c"record");
        // The TDs find it there.
        registry::set_folder(Some(Arc::new(folder, GFP_KERNEL_ACCOUNT)?));
        Ok(Self(()))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        registry::set_folder(None);
    }
}
