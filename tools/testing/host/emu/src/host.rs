// SPDX-License-Identifier: GPL-2.0

//! A machine for the module: sparse memory, a clock and interrupts that tests set.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::instruments::Instrumented;
use crate::module::{Config, GuestRun, Platform, Regs};

/// Physical memory of a [`Host`], from address 0.
pub const MEMORY: u64 = 4 << 30;

/// Host priority in the word of a lock.
const HOST_PRIORITY: u64 = 2;

/// Where [`Host`] keeps things that a kernel would allocate.
pub mod layout {
    pub const TDMR_INFO: u64 = 0x1000;
    pub const TDMR_ARRAY: u64 = 0x2000;
    pub const TD_PARAMS: u64 = 0x1_0000;
    pub const SOURCE: u64 = 0x2_0000;
    pub const PAMT: u64 = 0xD000_0000;
}

/// The machine.
pub struct Host {
    base: NonNull<u8>,
    pub config: Config,
    pub tsc: AtomicU64,
    /// Added to the TSC at every reading.
    pub tsc_step: AtomicU64,
    /// Polls until an interrupt is pending; negative: never.
    pub polls_left: AtomicI64,
    /// Polls until another host leaves its priority in the lock at `priority_at`; negative: never.
    pub polls_to_priority: AtomicI64,
    pub priority_at: AtomicU64,
}

// SAFETY: the mapping lives as long as the value and is only accessed through pointers that are
// used atomically.
unsafe impl Send for Host {}
// SAFETY: see above.
unsafe impl Sync for Host {}

impl Host {
    pub fn new(config: Config) -> Host {
        // SAFETY: an anonymous private mapping; nothing else is affected.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MEMORY as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert!(p != libc::MAP_FAILED, "cannot map {MEMORY} bytes");
        Host {
            base: NonNull::new(p.cast()).expect("mapping at address 0"),
            config,
            tsc: AtomicU64::new(1_000_000),
            tsc_step: AtomicU64::new(0),
            polls_left: AtomicI64::new(-1),
            polls_to_priority: AtomicI64::new(-1),
            priority_at: AtomicU64::new(0),
        }
    }

    pub fn default_config() -> Config {
        Config {
            hkid_start_bit: 46,
            hkid_bits: 6,
            hkid_in_entries: true,
            private_hkid_min: 16,
            private_hkid_max: 63,
            seamrr_base: 0,
            seamrr_size: 0,
            packages: 1,
            lps: 4,
            hp_lock_timeout: 1_000_000_000,
        }
    }

    fn word(&self, pa: u64) -> &AtomicU64 {
        assert!(pa % 8 == 0 && pa < MEMORY, "no memory at {pa:#x}");
        // SAFETY: inside the mapping and aligned; all accesses to it are atomic.
        unsafe { &*self.base.as_ptr().add(pa as usize).cast::<AtomicU64>() }
    }

    pub fn read(&self, pa: u64) -> u64 {
        self.word(pa).load(Ordering::SeqCst)
    }

    pub fn write(&self, pa: u64, v: u64) {
        self.word(pa).store(v, Ordering::SeqCst);
    }

    pub fn write_bytes(&self, pa: u64, bytes: &[u8]) {
        for (i, c) in bytes.chunks(8).enumerate() {
            let mut w = [0; 8];
            w[..c.len()].copy_from_slice(c);
            self.write(pa + 8 * i as u64, u64::from_le_bytes(w));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; nobody borrows it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), MEMORY as usize) };
    }
}

// SAFETY: pages lie in a mapping that lives as long as `self`; tests access it atomically only.
unsafe impl Platform for Host {
    fn page(&self, pa: u64) -> Option<NonNull<u8>> {
        if pa >= MEMORY {
            return None;
        }
        // SAFETY: inside the mapping.
        Some(unsafe { self.base.add(pa as usize) })
    }

    fn config(&self) -> Config {
        self.config
    }

    fn tsc(&self) -> u64 {
        self.tsc
            .fetch_add(self.tsc_step.load(Ordering::Relaxed), Ordering::Relaxed)
    }

    fn package_of(&self, lp: u32) -> u32 {
        lp % self.config.packages
    }

    fn interrupt_pending(&self) -> bool {
        match self.polls_to_priority.load(Ordering::Relaxed) {
            n if n < 0 => {}
            n => {
                if n == 0 {
                    let lock = self.word(self.priority_at.load(Ordering::Relaxed));
                    lock.fetch_or(HOST_PRIORITY, Ordering::Relaxed);
                }
                self.polls_to_priority.store(n - 1, Ordering::Relaxed);
            }
        }
        match self.polls_left.load(Ordering::Relaxed) {
            n if n < 0 => false,
            0 => true,
            n => {
                self.polls_left.store(n - 1, Ordering::Relaxed);
                false
            }
        }
    }

    fn host_interrupt_pending(&self) -> bool {
        self.interrupt_pending()
    }

    fn pause(&self, us: u64) {
        std::thread::sleep(std::time::Duration::from_micros(us));
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        // Everything there is, so that what a TD sees is the module's doing.
        let name = |s: &[u8; 4]| u32::from_le_bytes(*s);
        match (leaf, subleaf) {
            (0, _) => [0x21, name(b"Genu"), name(b"ntel"), name(b"ineI")],
            (1, _) => [0x806F8, 0x10_0800, !0, !0],
            // Sizes and offsets of AVX, AVX-512 and PKRU state.
            (0xD, 2) => [256, 576, 0, 0],
            (0xD, 5) => [64, 1088, 0, 0],
            (0xD, 6) => [512, 1152, 0, 0],
            (0xD, 7) => [1024, 1664, 0, 0],
            (0xD, 9) => [8, 2688, 0, 0],
            _ => [!0; 4],
        }
    }

    fn random(&self) -> Option<u64> {
        Some(
            self.tsc
                .load(Ordering::Relaxed)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15),
        )
    }
}

/// A TDMR to bring the module up with: base, size, reserved areas by offset and size.
pub struct TdmrSpec {
    pub base: u64,
    pub size: u64,
    pub reserved: Vec<(u64, u64)>,
}

/// TDH.SYS.INIT to TDH.SYS.TDMR.INIT as Linux does it. Panics if a leaf fails.
pub fn bring_up<G: GuestRun<Host>>(m: &Instrumented<Host, G>, tdmr: &TdmrSpec, hkid: u64) {
    bring_up_with(m, tdmr, hkid, false);
}

/// The same, with a dynamic PAMT if that is wanted.
pub fn bring_up_with<G: GuestRun<Host>>(
    m: &Instrumented<Host, G>,
    tdmr: &TdmrSpec,
    hkid: u64,
    dynamic: bool,
) {
    let mut config = before_sys_config(m, tdmr, dynamic);
    config.r8 = hkid | (u64::from(dynamic) << 16);
    must(m, 0, 45, config);
    for lp in 0..m.platform().config.packages {
        must(m, lp, 31, Regs::default());
    }
    let base = Regs {
        rcx: tdmr.base,
        ..Regs::default()
    };
    while must(m, 0, 36, base).rdx < tdmr.base + tdmr.size {}
}

/// A bring-up leaf that must succeed.
fn must<G: GuestRun<Host>>(m: &Instrumented<Host, G>, lp: u32, leaf: u64, mut r: Regs) -> Regs {
    let rax = m.seamcall(lp, leaf, &mut r);
    assert_eq!(rax, 0, "bring-up leaf {leaf}: {rax:#x}");
    r
}

/// The bring-up up to TDH.SYS.CONFIG. Returns its registers but for R8; `dynamic`: the memory for
/// the PAMT is enough for a dynamic one.
pub fn before_sys_config<G: GuestRun<Host>>(
    m: &Instrumented<Host, G>,
    tdmr: &TdmrSpec,
    dynamic: bool,
) -> Regs {
    let host = m.platform();
    must(m, 0, 33, Regs::default());
    for lp in 0..host.config.lps {
        must(m, lp, 35, Regs::default());
    }
    let pamt_4k = match dynamic {
        true => tdmr.size / 4096 / 8,
        false => tdmr.size / 256,
    };
    let pamt_2m = (tdmr.size >> 17).max(4096);
    let mut info = vec![tdmr.base, tdmr.size];
    let base_2m = layout::PAMT + pamt_4k;
    info.extend([
        base_2m + pamt_2m,
        4096,
        base_2m,
        pamt_2m,
        layout::PAMT,
        pamt_4k,
    ]);
    info.extend(tdmr.reserved.iter().flat_map(|r| [r.0, r.1]));
    for (i, v) in info.into_iter().enumerate() {
        host.write(layout::TDMR_INFO + 8 * i as u64, v);
    }
    host.write(layout::TDMR_ARRAY, layout::TDMR_INFO);
    Regs {
        rcx: layout::TDMR_ARRAY,
        rdx: 1,
        ..Regs::default()
    }
}

/// Writes TD_PARAMS of a TD with defaults.
pub fn td_params(host: &Host, attributes: u64, root_level: u64, config_flags: u64) {
    for i in 0..128 {
        host.write(layout::TD_PARAMS + 8 * i, 0);
    }
    let words = [attributes, 3, 4, (root_level << 3) | 6, config_flags, 80];
    for (i, v) in words.into_iter().enumerate() {
        host.write(layout::TD_PARAMS + 8 * i as u64, v);
    }
}
