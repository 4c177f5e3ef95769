// SPDX-License-Identifier: GPL-2.0

//! The hooks that KVM gives for one TD: checked once, then called through typed methods.
//!
//! The locks that a hook needs are those of `struct tdx_mirror_backend`. The callers in
//! [`super::seamcalls`] hold the evidence tokens for them, the methods here do not check again.

use core::ptr::NonNull;
use kernel::{
    ffi::{
        c_int,
        c_long,
        c_void, //
    },
    fmt, //
};

use crate::base::addr::PagePtr;
use crate::base::level::{
    Level,
    Position, //
};
use crate::bindings::{
    self,
    tdx_mirror_backend,
    tdx_mirror_err, //
};
use crate::mirror::error::ConfigError;
use crate::mirror::mmu::Config;
use crate::mirror::spte::KvmEncoding;
use crate::tdx::call::Call;

/// Why a backend is refused.
pub(crate) enum Refusal {
    /// The pointer is NULL.
    NoBackend,
    /// `size` is another one than this build's.
    Size(u32),
    /// `abi_version` is another one than this build's.
    Version(u32),
    /// A hook, the context or the lock is NULL.
    Missing(&'static str),
    /// The levels or GFN bits are none of a TD's, or KVM encodes SPTEs in another way.
    Shape(ConfigError),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Refusal::NoBackend => f.write_str("no backend given"),
            Refusal::Size(size) => write!(
                f,
                "backend of {size} bytes, this module needs {}",
                size_of::<tdx_mirror_backend>()
            ),
            Refusal::Version(version) => write!(
                f,
                "backend of ABI version {version}, this module has {}",
                bindings::TDX_MIRROR_ABI_VERSION
            ),
            Refusal::Missing(field) => {
                // `yield` is a keyword, bindgen appends an underscore.
                let field = field.strip_suffix('_').unwrap_or(field);
                write!(f, "backend without {field}")
            }
            Refusal::Shape(ConfigError::RootLevel) => f.write_str("root level is neither 4 nor 5"),
            Refusal::Shape(ConfigError::GfnBits) => f.write_str("GFN bits do not fit the root"),
            Refusal::Shape(ConfigError::Encoding) => {
                f.write_str("SPTE encoding differs from this module's")
            }
        }
    }
}

/// The answer of a hook that issues a SEAMCALL.
pub(crate) type Answer = tdx_mirror_err;

/// Defines [`Hooks`] with one field per function pointer of the contract and the check that none
/// of them is NULL, so that a hook cannot be forgotten in one of the two.
macro_rules! hooks {
    ($($name:ident: unsafe extern "C" fn($($arg:ty),*) $(-> $ret:ty)?,)*) => {
        /// The hooks of one TD.
        ///
        /// # Invariants
        ///
        /// Every function pointer may be called with `ctx` until KVM is told that the mirror is
        /// destroyed, `mmu_lock` points to the VM's `rwlock_t` as long.
        pub(crate) struct Hooks {
            ctx: *mut c_void,
            mmu_lock: NonNull<c_void>,
            config: Config,
            $($name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl Hooks {
            /// Takes the function pointers, refuses a backend that lacks one.
            ///
            /// # Safety
            ///
            /// What [`Hooks::new`] asks for.
            unsafe fn take(b: &tdx_mirror_backend, config: Config) -> Result<Self, Refusal> {
                // INVARIANT: By the safety requirements the hooks are valid as long as needed.
                Ok(Self {
                    ctx: b.ctx,
                    mmu_lock: NonNull::new(b.mmu_lock).ok_or(Refusal::Missing("mmu_lock"))?,
                    config,
                    $($name: b.$name.ok_or(Refusal::Missing(stringify!($name)))?,)*
                })
            }
        }
    };
}

hooks! {
    link_external_spt: unsafe extern "C" fn(*mut c_void, u64, c_int, *mut c_void, *mut Answer),
    set_external_spte: unsafe extern "C" fn(*mut c_void, u64, c_int, u64, *mut Answer),
    block_external_spte: unsafe extern "C" fn(*mut c_void, u64, c_int, *mut Answer),
    track_external: unsafe extern "C" fn(*mut c_void, *mut Answer),
    remove_external_spte: unsafe extern "C" fn(*mut c_void, u64, c_int, *mut Answer),
    wbinvd_external_page: unsafe extern "C" fn(*mut c_void, u64, c_int, *mut Answer),
    free_external_spt: unsafe extern "C" fn(*mut c_void, *mut c_void, *mut Answer),
    read_external_spte: unsafe extern "C" fn(*mut c_void, u64, c_int, *mut Answer),
    reclaim_external_page: unsafe extern "C" fn(*mut c_void, u64, c_int, *mut Answer),
    kick_vcpus: unsafe extern "C" fn(*mut c_void),
    hold_vcpus: unsafe extern "C" fn(*mut c_void, bool),
    bug_vm: unsafe extern "C" fn(*mut c_void),
    is_finalized: unsafe extern "C" fn(*mut c_void) -> bool,
    is_hkid_assigned: unsafe extern "C" fn(*mut c_void) -> bool,
    alloc_root_spt: unsafe extern "C" fn(*mut c_void) -> *mut c_void,
    take_spt: unsafe extern "C" fn(*mut c_void, *mut c_void) -> *mut c_void,
    take_external_spt: unsafe extern "C" fn(*mut c_void, *mut c_void) -> *mut c_void,
    put_spt: unsafe extern "C" fn(*mut c_void, *mut c_void),
    put_external_spt: unsafe extern "C" fn(*mut c_void, *mut c_void),
    account: unsafe extern "C" fn(*mut c_void, *mut c_void, c_int),
    account_external: unsafe extern "C" fn(*mut c_void, *mut c_void, c_int),
    page_stats: unsafe extern "C" fn(*mut c_void, c_int, c_long),
    need_resched: unsafe extern "C" fn(*mut c_void) -> bool,
    yield_: unsafe extern "C" fn(*mut c_void),
}

// SAFETY: The hooks may be called from any thread that holds the lock that each asks for, and the
// pointers are only handed back to KVM.
unsafe impl Send for Hooks {}
// SAFETY: As above.
unsafe impl Sync for Hooks {}

impl Hooks {
    /// Checks a backend and takes its hooks.
    ///
    /// # Errors
    ///
    /// [`Refusal`] says what is wrong, nothing was kept then.
    ///
    /// # Safety
    ///
    /// `backend` is NULL or points to a structure that begins with `size` and `abi_version` and is
    /// `size` bytes long. If these two are this build's, its hooks may be called with its `ctx`
    /// and `mmu_lock` points to an `rwlock_t`, both as long as the returned value lives.
    pub(crate) unsafe fn new(backend: *const tdx_mirror_backend) -> Result<Self, Refusal> {
        if backend.is_null() {
            return Err(Refusal::NoBackend);
        }
        // SAFETY: By the safety requirements both fields are there in every version. Nothing else
        // is read, and no reference made, before the size is known to be this build's.
        let (size, version) = unsafe { ((*backend).size, (*backend).abi_version) };
        if version != bindings::TDX_MIRROR_ABI_VERSION {
            return Err(Refusal::Version(version));
        }
        if usize::try_from(size) != Ok(size_of::<tdx_mirror_backend>()) {
            return Err(Refusal::Size(size));
        }
        // SAFETY: It has the size of this build's structure, whose fields allow all values that
        // C may leave in them.
        let b = unsafe { &*backend };

        if b.ctx.is_null() {
            return Err(Refusal::Missing("ctx"));
        }
        let encoding = KvmEncoding {
            present_mask: b.spte_present_mask,
            frozen: b.spte_frozen,
            nonpresent: b.spte_nonpresent,
        };
        let config = Config::for_td(b.gfn_bits, b.root_level, encoding).map_err(Refusal::Shape)?;
        // SAFETY: By the safety requirements.
        unsafe { Self::take(b, config) }
    }

    /// The VM's `mmu_lock`, for lockdep.
    pub(crate) fn mmu_lock(&self) -> NonNull<c_void> {
        self.mmu_lock
    }

    /// The shape of the mirror that KVM asks for.
    pub(crate) fn config(&self) -> Config {
        self.config
    }
}

fn gfn(at: Position) -> u64 {
    at.gfn().as_u64()
}

fn level(at: Position) -> c_int {
    at.level().as_kvm()
}

fn page(ptr: *mut c_void) -> Option<PagePtr> {
    PagePtr::new(ptr.cast())
}

impl Hooks {
    /// Issues a SEAMCALL. Locks as in `struct tdx_mirror_backend`.
    #[inline(always)]
    pub(crate) fn issue(&self, call: Call) -> Answer {
        let ctx = self.ctx;
        // A hook that writes nothing must not look like success.
        let mut out = Answer {
            status: u64::MAX,
            ext1: 0,
            ext2: 0,
            ext3: 0,
        };
        let e: *mut Answer = &mut out;
        // No closure around this: the compiler would not see through it which call it is.
        // SAFETY: By the type invariant, of all hooks.
        unsafe {
            match call {
                Call::SeptAdd { at, page } => {
                    (self.link_external_spt)(ctx, gfn(at), level(at), page.as_ptr().cast(), e)
                }
                // KVM chooses by the state of the TD that `is_finalized` was answered from.
                Call::PageAdd { at, pfn } | Call::PageAug { at, pfn } => {
                    (self.set_external_spte)(ctx, gfn(at), level(at), pfn.as_u64(), e)
                }
                Call::RangeBlock { at } => (self.block_external_spte)(ctx, gfn(at), level(at), e),
                Call::Track {} => (self.track_external)(ctx, e),
                Call::PageRemove { at } => (self.remove_external_spte)(ctx, gfn(at), level(at), e),
                Call::PageWbinvd { at, pfn } => {
                    (self.wbinvd_external_page)(ctx, pfn.as_u64(), level(at), e)
                }
                Call::SeptRd { at } => (self.read_external_spte)(ctx, gfn(at), level(at), e),
                Call::ReclaimTable { page } => {
                    (self.free_external_spt)(ctx, page.as_ptr().cast(), e)
                }
                Call::ReclaimData { at, pfn } => {
                    (self.reclaim_external_page)(ctx, pfn.as_u64(), level(at), e)
                }
            }
        }
        out
    }
}

// The VM and its vCPUs.
impl Hooks {
    /// Forces all vCPUs out of the guest, waits until they are out.
    pub(crate) fn kick_vcpus(&self) {
        // SAFETY: By the type invariant.
        unsafe { (self.kick_vcpus)(self.ctx) }
    }

    /// Keeps vCPUs from entering the guest, or lets them enter again.
    pub(crate) fn hold_vcpus(&self, hold: bool) {
        // SAFETY: By the type invariant.
        unsafe { (self.hold_vcpus)(self.ctx, hold) }
    }

    /// Makes the VM unusable from now on.
    pub(crate) fn bug_vm(&self) {
        // SAFETY: By the type invariant.
        unsafe { (self.bug_vm)(self.ctx) }
    }

    /// Whether TDH.MR.FINALIZE was done.
    pub(crate) fn is_finalized(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { (self.is_finalized)(self.ctx) }
    }

    /// Whether the TD still has its HKID.
    pub(crate) fn is_hkid_assigned(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { (self.is_hkid_assigned)(self.ctx) }
    }

    /// Whether `mmu_lock`, held for write, should be yielded.
    pub(crate) fn need_resched(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { (self.need_resched)(self.ctx) }
    }

    /// Drops `mmu_lock`, held for write, reschedules and takes it again. Sleeps.
    pub(crate) fn yield_lock(&self) {
        // SAFETY: By the type invariant.
        unsafe { (self.yield_)(self.ctx) }
    }

    /// `nr` more or fewer leaves are mapped at `level`.
    pub(crate) fn page_stats(&self, level: Level, nr: c_long) {
        // SAFETY: By the type invariant.
        unsafe { (self.page_stats)(self.ctx, level.as_kvm(), nr) }
    }
}

// Pages.
impl Hooks {
    /// A zeroed page for the root table. Sleeps.
    pub(crate) fn alloc_root_spt(&self) -> Option<PagePtr> {
        // SAFETY: By the type invariant.
        page(unsafe { (self.alloc_root_spt)(self.ctx) })
    }

    /// A page for a mirror table from the cache of `vcpu`, all entries non-present.
    ///
    /// # Safety
    ///
    /// `vcpu` is the one that KVM gave for the operation that is under way.
    pub(crate) unsafe fn take_spt(&self, vcpu: *mut c_void) -> Option<PagePtr> {
        // SAFETY: By the type invariant and the safety requirements.
        page(unsafe { (self.take_spt)(self.ctx, vcpu) })
    }

    /// A page for an S-EPT table from the cache of `vcpu`.
    ///
    /// # Safety
    ///
    /// `vcpu` is the one that KVM gave for the operation that is under way.
    pub(crate) unsafe fn take_external_spt(&self, vcpu: *mut c_void) -> Option<PagePtr> {
        // SAFETY: By the type invariant and the safety requirements.
        page(unsafe { (self.take_external_spt)(self.ctx, vcpu) })
    }

    /// Gives back a mirror table.
    ///
    /// # Safety
    ///
    /// `spt` came from [`Self::take_spt`] or [`Self::alloc_root_spt`] and nobody refers to it.
    pub(crate) unsafe fn put_spt(&self, spt: PagePtr) {
        // SAFETY: By the type invariant and the safety requirements.
        unsafe { (self.put_spt)(self.ctx, spt.as_ptr().cast()) }
    }

    /// Gives back an S-EPT page.
    ///
    /// # Safety
    ///
    /// `spt` came from [`Self::take_external_spt`] and the TDX module does not own it.
    pub(crate) unsafe fn put_external_spt(&self, spt: PagePtr) {
        // SAFETY: By the type invariant and the safety requirements.
        unsafe { (self.put_external_spt)(self.ctx, spt.as_ptr().cast()) }
    }

    /// `spt` is in use as a mirror table (`nr` is 1), or no longer (-1).
    pub(crate) fn account(&self, spt: PagePtr, nr: c_int) {
        // SAFETY: By the type invariant.
        unsafe { (self.account)(self.ctx, spt.as_ptr().cast(), nr) }
    }

    /// `spt` is in use as an S-EPT table (`nr` is 1), or no longer (-1).
    pub(crate) fn account_external(&self, spt: PagePtr, nr: c_int) {
        // SAFETY: By the type invariant.
        unsafe { (self.account_external)(self.ctx, spt.as_ptr().cast(), nr) }
    }
}
