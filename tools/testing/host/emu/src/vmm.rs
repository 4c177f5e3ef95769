// SPDX-License-Identifier: GPL-2.0

//! A host that does with the module what Linux does, in the same order.

use std::sync::Mutex;

use crate::host::{bring_up_with, layout, td_params, Host, TdmrSpec};
use crate::instruments::{CheckLevel, Instrumented};
use crate::module::{GuestRun, Regs};

pub const TDMR: u64 = 0x4000_0000;
pub const TDMR_SIZE: u64 = 1 << 30;
/// Where [`Vmm::page`] gives pages of.
const FREE_SIZE: u64 = 64 << 20;
/// Pairs of a dynamic PAMT for that.
const PAIRS: u64 = TDMR + (192 << 20);
pub const GLOBAL_HKID: u64 = 16;
const TDCX_PAGES: usize = 6;
const TDVPX_PAGES: usize = 5;

/// The module and the memory that it may be given.
pub struct Vmm<G> {
    pub module: Instrumented<Host, G>,
    free: Mutex<Vec<u64>>,
}

/// A TD.
pub struct Td {
    pub tdr: u64,
    pub hkid: u64,
    pub tdcx: Vec<u64>,
    /// Each vCPU's TDVPR and further pages.
    pub vcpus: Vec<Vec<u64>>,
    pub sept: Mutex<Vec<u64>>,
}

/// Registers with RCX, RDX, R8, R9.
pub fn regs(rcx: u64, rdx: u64, r8: u64, r9: u64) -> Regs {
    Regs {
        rcx,
        rdx,
        r8,
        r9,
        ..Regs::default()
    }
}

impl<G: GuestRun<Host>> Vmm<G> {
    /// A machine with the module ready. The first 64 MiB of the TDMR are for
    /// [`Vmm::page`].
    pub fn new(guest: G) -> Vmm<G> {
        Vmm::checked(guest, None)
    }

    /// The same with invariants checked as `level` says, `None`: as the module does by itself.
    pub fn checked(guest: G, level: Option<CheckLevel>) -> Vmm<G> {
        Vmm::of_version(guest, level, None, false)
    }

    /// The same with a module of some version, and with a dynamic PAMT if that is wanted. All
    /// ranges that [`Vmm::page`] gives pages of have their pairs then.
    pub fn of_version(
        guest: G,
        level: Option<CheckLevel>,
        version: Option<&str>,
        dynamic: bool,
    ) -> Vmm<G> {
        let module = Instrumented::new(Host::new(Host::default_config()), guest);
        if let Some(version) = version {
            assert!(module.set_version(version), "{version}");
        }
        if let Some(level) = level {
            module.set_checks(level);
        }
        let tdmr = TdmrSpec {
            base: TDMR,
            size: TDMR_SIZE,
            reserved: vec![],
        };
        bring_up_with(&module, &tdmr, GLOBAL_HKID, dynamic);
        let free = (TDMR..TDMR + FREE_SIZE)
            .rev()
            .step_by(4096)
            .map(|pa| pa & !0xFFF)
            .collect();
        let vmm = Vmm {
            module,
            free: Mutex::new(free),
        };
        if dynamic {
            for i in 0..FREE_SIZE >> 21 {
                let pages = PAIRS + 8192 * i;
                vmm.ok(58, regs((TDMR + (i << 21)) | 1, pages, pages + 4096, 0));
            }
        }
        vmm
    }

    /// Whether the module wants VP.INIT version 1, as Linux finds it out.
    fn topology_enum(&self) -> bool {
        self.ok(34, regs(0, 0x0A00_0003_0000_0008, 0, 0)).r8 & (1 << 20) != 0
    }

    pub fn host(&self) -> &Host {
        self.module.platform()
    }

    pub fn page(&self) -> u64 {
        self.free.lock().unwrap().pop().expect("a free page")
    }

    pub fn free(&self, pa: u64) {
        self.free.lock().unwrap().push(pa);
    }

    pub fn call_on(&self, lp: u32, leaf: u64, mut r: Regs) -> (u64, Regs) {
        let rax = self.module.seamcall(lp, leaf, &mut r);
        (rax, r)
    }

    pub fn call(&self, leaf: u64, r: Regs) -> (u64, Regs) {
        self.call_on(0, leaf, r)
    }

    /// A call that must succeed.
    #[track_caller]
    pub fn ok(&self, leaf: u64, r: Regs) -> Regs {
        let (rax, out) = self.call(leaf, r);
        assert_eq!(rax, 0, "leaf {leaf} returned {rax:#x} for {r:x?}");
        out
    }

    /// A TD up to TDH.MNG.INIT, with a 4-level S-EPT.
    pub fn create(&self, hkid: u64, attributes: u64) -> Td {
        self.create_with(hkid, attributes, 3, 4)
    }

    /// The same with a root of level 3 or 4 and other CONFIG_FLAGS.
    pub fn create_with(&self, hkid: u64, attributes: u64, root: u64, flags: u64) -> Td {
        let tdr = self.page();
        self.ok(9, regs(tdr, hkid, 0, 0));
        self.ok(8, regs(tdr, 0, 0, 0));
        let tdcx: Vec<_> = (0..TDCX_PAGES).map(|_| self.page()).collect();
        for &p in &tdcx {
            self.ok(1, regs(p, tdr, 0, 0));
        }
        td_params(self.host(), attributes, root, flags);
        self.ok(21, regs(tdr, layout::TD_PARAMS, 0, 0));
        Td {
            tdr,
            hkid,
            tdcx,
            vcpus: Vec::new(),
            sept: Mutex::new(Vec::new()),
        }
    }

    /// A vCPU, bound to `lp`, whose RCX is `rcx`.
    pub fn add_vcpu(&self, td: &mut Td, lp: u32, rcx: u64) {
        let pages: Vec<_> = (0..=TDVPX_PAGES).map(|_| self.page()).collect();
        self.ok(10, regs(pages[0], td.tdr, 0, 0));
        for &p in &pages[1..] {
            self.ok(4, regs(p, pages[0], 0, 0));
        }
        let id = td.vcpus.len() as u64;
        let version = u64::from(self.topology_enum());
        let (rax, _) = self.call_on(lp, 22 | (version << 16), regs(pages[0], rcx, id, 0));
        assert_eq!(rax, 0, "VP.INIT returned {rax:#x}");
        td.vcpus.push(pages);
    }

    /// Makes sure that there are tables down to the one that holds 4K entries.
    /// Retries where another thread holds a lock.
    pub fn build_tables(&self, td: &Td, gpa: u64) {
        for level in (1..=3).rev() {
            let at = gpa & !((1 << (12 + 9 * level)) - 1) | level;
            let page = self.page();
            loop {
                let (rax, _) = self.call(3, regs(at, td.tdr, page, 0));
                match rax {
                    0 => break td.sept.lock().unwrap().push(page),
                    0xC000_0B0D_0000_0001 => break self.free(page),
                    _ if rax >> 32 == 0x8000_0200 => std::hint::spin_loop(),
                    _ => panic!("SEPT.ADD of {at:#x} returned {rax:#x}"),
                }
            }
        }
    }

    /// PAGE.ADD of `content`, measured, to `gpa`.
    pub fn add_page(&self, td: &Td, gpa: u64, content: &[u8]) {
        self.build_tables(td, gpa);
        let mut page = content.to_vec();
        page.resize(4096, 0);
        self.host().write_bytes(layout::SOURCE, &page);
        self.ok(2, regs(gpa, td.tdr, self.page(), layout::SOURCE));
        for chunk in (0..4096).step_by(256) {
            self.ok(16, regs(gpa + chunk, td.tdr, 0, 0));
        }
    }

    /// BLOCK, TRACK, REMOVE and WBINVD of a 4K page that nobody uses.
    #[track_caller]
    pub fn zap(&self, td: &Td, gpa: u64) {
        self.ok(7, regs(gpa, td.tdr, 0, 0));
        self.ok(38, regs(td.tdr, 0, 0, 0));
        let pa = self.ok(29, regs(gpa, td.tdr, 0, 0)).rcx;
        self.ok(41, regs(pa | (td.hkid << 46), 0, 0, 0));
        self.free(pa);
    }

    /// Everything after the last page is zapped. `lps[i]` is where vCPU i is bound,
    /// if anywhere.
    pub fn destroy(&self, td: Td, lps: &[Option<u32>]) {
        for (v, lp) in td.vcpus.iter().zip(lps) {
            if let Some(lp) = lp {
                let (rax, _) = self.call_on(*lp, 18, regs(v[0], 0, 0, 0));
                assert_eq!(rax, 0, "VP.FLUSH returned {rax:#x}");
            }
        }
        self.ok(19, regs(td.tdr, 0, 0, 0));
        // An interrupt stops the write-back; it is gone on with, as often as it takes.
        let mut wb = 0;
        while self.call(40, regs(wb, 0, 0, 0)).0 == 0x8000_0003_0000_0000 {
            wb = 1;
        }
        self.ok(20, regs(td.tdr, 0, 0, 0));
        let sept = td.sept.into_inner().unwrap();
        let pages = td.vcpus.into_iter().flatten().chain(sept).chain(td.tdcx);
        for p in pages.chain([td.tdr]) {
            self.ok(28, regs(p, 0, 0, 0));
            self.free(p);
        }
        self.ok(41, regs(td.tdr | (GLOBAL_HKID << 46), 0, 0, 0));
    }
}
