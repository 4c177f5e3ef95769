// SPDX-License-Identifier: GPL-2.0

//! Says in the log whether the running KVM has the hooks.

use kernel::{
    error::to_result,
    prelude::*, //
};

use crate::bindings;

/// Looks at KVM now and whenever `kvm.ko` is loaded, until it is dropped.
pub(crate) struct Watch(());

impl Watch {
    /// Reports on KVM for the first time and stays tuned. Sleeps.
    ///
    /// # Errors
    ///
    /// What `register_module_notifier()` returns.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: Called in task context. It is undone when the returned value is dropped, and
        // only one exists, in the module's own structure.
        to_result(unsafe { bindings::tdx_mirror_watch_kvm() })?;
        Ok(Self(()))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: Undoes what `new()` did.
        unsafe { bindings::tdx_mirror_unwatch_kvm() };
    }
}
