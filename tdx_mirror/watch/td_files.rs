// SPDX-License-Identifier: GPL-2.0

//! `/sys/kernel/debug/tdx_mirror/<pid>-<td>/`: one TD, named by the process that made it and its
//! number.
//!
//! * `stats`: its figures, one `name value` per line.
//! * `map`: the GFNs that are not free, in ranges: `start end state`, hexadecimal, half-open.
//! * `audit`: each entry of mirror and S-EPT that differs, and how many were compared.
//! * `frozen`: entries that stay frozen, with the operation. A write sets for how long, in
//!   milliseconds.
//!
//! While `read_sept` of the folder above is 1 and once the TD is finalized, `map` and `audit` read the
//! S-EPT with TDH.MEM.SEPT.RD, [`CHUNK`](crate::mirror::survey::CHUNK) entries at a time with
//! `mmu_lock` held for write and all vCPUs held out of the guest. Else they have the mirror alone.

use kernel::{
    prelude::*,
    str::CString,
    sync::Arc, //
};

use super::access::Access;
use super::cursor::{
    Node,
    TdFile, //
};
use super::folder::Folder;
use crate::kvm::td::Td;

const FILES: [(&CStr, u16, TdFile); 4] = [
    (c"stats", 0o400, TdFile::Stats),
    (c"map", 0o400, TdFile::Map),
    (c"audit", 0o400, TdFile::Audit),
    (c"frozen", 0o600, TdFile::Frozen),
];

/// The files of a TD. To drop it waits for readers, which do not go on.
pub(crate) struct TdFiles {
    access: Arc<Access>,
    // Fields go in order: the folder before what its files are about.
    _folder: Folder,
    _nodes: KVec<Node>,
}

impl TdFiles {
    /// The files of `td` in a folder below `parent`. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(parent: &Folder, td: &Arc<Td>) -> Result<Self> {
        let name = CString::try_from_fmt(fmt!("{}-{}", td.pid(), td.number()))?;
        let access = Access::new(td.clone())?;
        let mut nodes = KVec::with_capacity(FILES.len(), GFP_KERNEL_ACCOUNT)?;
        for (_, _, file) in FILES {
            let node = Node::Td(file, access.clone());
            nodes.push_within_capacity(node).map_err(|_| ENOMEM)?;
        }
        let folder = Folder::new(&name, Some(parent));
        for ((name, mode, _), node) in FILES.iter().zip(nodes.as_slice()) {
            // SAFETY: The nodes are not touched any more and go after the folder.
            unsafe { folder.text(name, *mode, node) };
        }
        Ok(Self {
            access,
            _folder: folder,
            _nodes: nodes,
        })
    }
}

impl Drop for TdFiles {
    fn drop(&mut self) {
        self.access.end();
    }
}
