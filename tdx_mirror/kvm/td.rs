// SPDX-License-Identifier: GPL-2.0

//! One TD: KVM's hooks, the mirror on top of them, the progress of its vCPUs and what all of them
//! count with.
//!
//! It knows neither the files that show it nor the list that it is in.

use core::convert::Infallible;
use kernel::{
    prelude::*,
    sync::{
        Arc,
        UniqueArc, //
    }, //
};

use super::hooks::Hooks;
use super::params;
use super::seamcalls::HookSeamcalls;
use super::vm::KernelVm;
use crate::base::addr::Gfn;
use crate::base::level::Position;
use crate::base::stats::Count;
use crate::kernel::percpu::{
    self,
    Block, //
};
use crate::kernel::rcu;
use crate::kernel::rwlock::MmuLock;
use crate::mirror::mmu::Mirror;
use crate::mirror::spte::Spte;
use crate::mirror::table::Root;
use crate::sept::progress::Progress;
use crate::sept::Sept;
use crate::watch::record::Recorder;

/// The mirror of a TD that KVM runs.
pub(crate) type TdMirror = Mirror<Sept<HookSeamcalls>, KernelVm>;

/// One TD: what `struct tdx_mirror *` points to.
pub(crate) struct Td {
    number: u32,
    pid: i32,
    tid: i32,
    recorder: Recorder,
    hooks: Arc<Hooks>,
    lock: MmuLock,
    mirror: TdMirror,
    progress: Progress<percpu::Counter>,
    /// What `mirror` and `progress` count with.
    counters: Arc<Block>,
}

impl Td {
    /// The TD with the number `number`, whose mirror is to stand on `hooks`. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(number: u32, hooks: Hooks) -> Result<Arc<Self>> {
        let config = hooks.config().with_zap_batch(params::zap_batch());
        let hooks = Arc::new(hooks, GFP_KERNEL_ACCOUNT)?;
        // SAFETY: By the type invariant of the hooks, which this keeps, the lock lives as long.
        let lock = unsafe { MmuLock::new(hooks.mmu_lock()) };

        // First all that may fail: the root's page has no owner that would put it back.
        let memory = UniqueArc::<Self>::new_uninit(GFP_KERNEL_ACCOUNT)?;
        let counters = Block::new()?;
        let page = hooks.alloc_root_spt().ok_or(ENOMEM)?;
        // SAFETY: The page is whole and the mirror's alone until it is put.
        let root = unsafe { Root::new(page) };
        let seamcalls = HookSeamcalls::new(hooks.clone(), counters.clone(), number);
        let vm = KernelVm::new(hooks.clone(), counters.clone(), number, page);
        // SAFETY: The TD has the progress and the block.
        let counter = || unsafe { counters.counter() };
        let progress = Progress::with_counters(params::vp_enter_policy(), counter);
        let recorder = Recorder::new(number);
        // In place: the mirror is too large for the stack.
        let td = memory.init_with::<Infallible>(pin_init::init!(Self {
            number,
            pid: kernel::current!().tgid(),
            tid: kernel::current!().pid(),
            recorder,
            hooks,
            lock,
            mirror: Mirror::new(
                config,
                Sept::with_fault_tries(seamcalls, params::fault_tries()),
                vm,
                root,
            ),
            progress,
            counters,
        }));
        let Ok(td) = td;
        if !td.counters.is_large_enough() {
            return Err(EOVERFLOW);
        }
        Ok(td.into())
    }

    /// The hooks of KVM.
    pub(crate) fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    /// The mirror.
    pub(crate) fn mirror(&self) -> &TdMirror {
        &self.mirror
    }

    /// The S-EPT.
    pub(crate) fn sept(&self) -> &Sept<HookSeamcalls> {
        self.mirror.external()
    }

    /// The progress of the TD's vCPUs.
    pub(crate) fn progress(&self) -> &Progress<percpu::Counter> {
        &self.progress
    }

    /// What writes down what KVM asks.
    pub(crate) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// KVM's `mmu_lock`.
    pub(crate) fn lock(&self) -> &MmuLock {
        &self.lock
    }

    /// The number of the TD.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// The process that made the TD.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// The thread that made the TD.
    pub(crate) fn tid(&self) -> i32 {
        self.tid
    }

    /// The entry that ends the walk for `gfn`, if the TD has such a GFN.
    pub(crate) fn walk(&self, gfn: Gfn) -> Option<(Position, Spte)> {
        rcu::read(|rcu| self.mirror.walk(rcu, gfn))
    }
}

impl Drop for Td {
    fn drop(&mut self) {
        let stats = self.mirror.stats();
        let (quarantined, resolved, leaked) = (
            stats.quarantined.get(),
            stats.resolved.get(),
            stats.leaked.get(),
        );
        if quarantined != 0 || leaked != 0 {
            pr_warn!(
                "a TD ended with {quarantined} pages quarantined, {resolved} of them given back, {leaked} leaked; the first lines on it say why\n"
            );
        }
    }
}
