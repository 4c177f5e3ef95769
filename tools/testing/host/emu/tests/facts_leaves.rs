// SPDX-License-Identifier: GPL-2.0

//! Answers of host leaves that the recordings in tools/testing/vectors do not contain:
//! each busy lock, refusals that need a special state, registers after errors.

use tdx_emu_host::host::layout;
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::module::Regs;
use tdx_emu_host::vmm::{regs, Td, Vmm, TDMR};

const BUSY: u64 = 0x8000_0200_0000_0000;
const INVALID: u64 = 0xC000_0100_0000_0000;
const WALK: u64 = 0xC000_0B00_0000_0001;
const STATE: u64 = 0xC000_0B0D_0000_0001;
const NOT_BLOCKED: u64 = 0xC000_0B06_0000_0001;
const METADATA: u64 = 0xC000_0300_0000_0000;
const RESTART: u64 = 0x8000_0004_0000_0000;
const NONE: u64 = u64::MAX;
/// View of a free entry.
const FREE: u64 = 1 << 63;

const GPA: u64 = 0x4000_0000;
/// A 2M page that is mapped as such.
const LARGE: u64 = (GPA + (2 << 20)) | 1;
/// Memory for 2M pages.
const CHUNK: u64 = TDMR + (128 << 20);

struct Bench {
    v: Vmm<Interpreter>,
    td: Td,
}

impl Bench {
    /// A TD with a vCPU on LP 1; finalized if `runnable`. A 4K page at [`GPA`], a 2M page at
    /// [`LARGE`], both pending.
    fn new(runnable: bool) -> Bench {
        let v = Vmm::new(Interpreter);
        let mut td = v.create(20, 1 << 28);
        v.add_vcpu(&mut td, 1, 0);
        v.build_tables(&td, GPA);
        if runnable {
            v.ok(17, regs(td.tdr, 0, 0, 0));
        }
        v.ok(6, regs(GPA, td.tdr, v.page(), 0));
        v.ok(6, regs(LARGE, td.tdr, CHUNK, 0));
        Bench { v, td }
    }

    fn load(&self, script: &str) {
        self.v.module.inject().load(script.as_bytes()).unwrap();
    }

    fn r(&self, rcx: u64, r8: u64) -> Regs {
        regs(rcx, self.td.tdr, r8, 0)
    }

    /// Status, RCX and RDX of a call.
    fn call(&self, leaf: u64, rcx: u64, r8: u64) -> (u64, u64, u64) {
        let (rax, out) = self.v.call(leaf, self.r(rcx, r8));
        (rax, out.rcx, out.rdx)
    }

    /// The same with a lock held.
    fn with(&self, hold: &str, leaf: u64, rcx: u64, r8: u64) -> (u64, u64, u64) {
        self.load(&format!("hold {hold}"));
        let got = self.call(leaf, rcx, r8);
        self.load("");
        got
    }

    fn ok(&self, leaf: u64, rcx: u64, r8: u64) -> Regs {
        self.v.ok(leaf, self.r(rcx, r8))
    }

    fn block(&self, rcx: u64) {
        self.ok(7, rcx, 0);
        self.v.ok(38, regs(self.td.tdr, 0, 0, 0));
    }

    /// The table that maps [`GPA`].
    fn table(&self) -> u64 {
        self.td.sept.lock().unwrap()[2]
    }

    /// Physical address of the page at [`GPA`].
    fn page(&self) -> u64 {
        self.ok(25, GPA, 0).rcx & 0x000F_FFFF_FFFF_F000
    }

    fn pamt(&self, pa: u64, size: u32) -> String {
        format!("pamt {:x} {size}", pa & !((4096 << (9 * size)) - 1))
    }
}

#[test]
fn every_lock_of_the_td_can_be_busy() {
    let b = Bench::new(true);
    let entry = format!("entry {GPA:x} 0");
    let large = format!("entry {:x} 1", LARGE & !1);
    let parent = format!("entry {GPA:x} 1");
    let d_large = (CHUNK | FREE | 0xF0, 1 | (2 << 8));
    let d_entry = (b.page() | FREE | 0xF0, 2 << 8);
    let d_parent = (7, 1 | (0x84 << 8));
    // Leaf, RCX, R8, lock of the entry, its details.
    let leaves: [(u64, u64, &str, (u64, u64)); 10] = [
        (3, GPA | 1, &parent, d_parent),
        (5, GPA, &entry, d_entry),
        (6, GPA, &entry, d_entry),
        (7, GPA, &entry, d_entry),
        (15, LARGE, &large, d_large),
        (23, GPA | 1, &parent, d_parent),
        (25, GPA, &entry, d_entry),
        (29, GPA, &entry, d_entry),
        (30, GPA | 1, &parent, d_parent),
        (39, GPA, &entry, d_entry),
    ];
    for (leaf, rcx, entry, (d_rcx, d_rdx)) in leaves {
        let r8 = b.v.page();
        let with = |hold: &str| b.with(hold, leaf, rcx, r8);
        assert_eq!(with("tdr ex"), (BUSY | 2, 0, 0), "leaf {leaf}");
        assert_eq!(with("op_state ex"), (BUSY | 0xAC, 0, 0), "leaf {leaf}");
        assert_eq!(with("tree ex"), (BUSY | 0x92, 0, 0), "leaf {leaf}");
        // A vCPU does not get the entry while a host's priority is left there.
        b.ok(25, rcx, 0);
        assert_eq!(with(entry), (BUSY | 1, d_rcx, d_rdx), "leaf {leaf}");
        // Readers of the tree disturb those that change how it is walked.
        let exclusive = matches!(leaf, 7 | 30 | 39);
        let busy = with("tree sh").0 == BUSY | 0x92;
        assert_eq!(busy, exclusive, "leaf {leaf}");
        b.v.free(r8);
    }
    // A vCPU in its guest keeps whoever needs the TD for itself away.
    let tdr = b.td.tdr;
    for (leaf, r, operand) in [
        (1, regs(b.v.page(), tdr, 0, 0), 2),
        (2, regs(GPA, tdr, 0, 0), 2),
        (8, regs(tdr, 0, 0, 0), 1),
        (16, regs(GPA, tdr, 0, 0), 2),
        (17, regs(tdr, 0, 0, 0), 1),
        (19, regs(tdr, 0, 0, 0), 1),
        (20, regs(tdr, 0, 0, 0), 1),
        (21, regs(tdr, layout::TD_PARAMS, 0, 0), 1),
    ] {
        b.load("hold tdr sh");
        assert_eq!(b.v.call(leaf, r).0, BUSY | operand, "leaf {leaf}");
    }
    b.load("hold tdr ex");
    assert_eq!(
        b.v.call(38, regs(tdr, 7, 8, 9)),
        (BUSY | 1, regs(tdr, 7, 8, 9))
    );
    b.load("hold epoch sh");
    assert_eq!(
        b.v.call(38, regs(tdr, 7, 8, 9)),
        (BUSY | 0xA9, regs(tdr, 7, 8, 9))
    );
    b.load("hold op_state ex");
    assert_eq!(b.v.call(38, regs(tdr, 0, 0, 0)).0, BUSY | 0xAC);
}

#[test]
fn pages_can_be_busy() {
    let b = Bench::new(true);
    let r8 = b.v.page();
    let new = b.pamt(r8, 0);
    // The page that is given.
    let free_parent = (GPA + (1 << 30)) | 2;
    assert_eq!(b.with(&new, 3, free_parent, r8), (BUSY | 8, 0, 0));
    assert_eq!(b.with(&new, 6, GPA + 0x1000, r8), (BUSY | 8, 0, 0));
    b.block(GPA);
    assert_eq!(b.with(&new, 5, GPA, r8), (BUSY | 8, 0, 0));
    b.block(LARGE);
    assert_eq!(b.with(&new, 15, LARGE, r8), (BUSY | 8, 0, 0));
    // The page that is there already.
    let old = b.pamt(b.page(), 0);
    assert_eq!(b.with(&old, 5, GPA, r8), (BUSY | 1, 0, 0));
    assert_eq!(b.with(&old, 29, GPA, 0), (BUSY | 1, 0, 0));
    let large = b.pamt(CHUNK, 1);
    assert_eq!(b.with(&large, 29, LARGE, 0), (BUSY | 1, 0, 0));
    // DEMOTE needs it only at the end.
    assert_eq!(b.with(&large, 15, LARGE, r8), (BUSY | 1, 0, 0));
    let table = b.pamt(b.table(), 0);
    b.block(GPA | 1);
    assert_eq!(b.with(&table, 30, GPA | 1, 0), (BUSY | 1, 0, 0));
    assert_eq!(b.with(&table, 23, GPA | 1, 0), (BUSY | 1, 0, 0));
    // BLOCK, UNBLOCK and SEPT.RD need no page.
    assert_eq!(b.with(&table, 25, GPA | 1, 0).0, 0);
    assert_eq!(b.with(&table, 39, GPA | 1, 0).0, 0);
    assert_eq!(b.with(&table, 7, GPA | 1, 0).0, 0);
    // A part that is held keeps the whole from being given.
    let other = CHUNK + (2 << 20);
    let at = LARGE + (2 << 20);
    assert_eq!(
        b.with(&(b.pamt(other, 1) + " sh"), 6, at, other),
        (BUSY | 8, 0, 0)
    );
    let page = b.v.page();
    assert_eq!(b.with(&b.pamt(page, 0), 24, page, 0).0, BUSY | 1);
    b.load(&format!("hold {}", b.pamt(page, 0)));
    assert_eq!(b.v.call(41, regs(page | (20 << 46), 0, 0, 0)).0, BUSY | 1);
    assert_eq!(
        b.v.call(28, regs(page, 1, 2, 3)),
        (BUSY | 1, regs(0, 0, 0, 0))
    );
}

/// A refused promotion of a PAMT lock leaves the host's priority in the entry.
#[test]
fn a_refused_promotion_leaves_priority() {
    let b = Bench::new(true);
    let other = CHUNK + (2 << 20);
    let word = layout::PAMT + (1 << 30) / 256 + ((other - TDMR) >> 21) * 16;
    assert_eq!(b.v.host().read(word) & 0xFFFF, 0);
    let hold = b.pamt(other, 1) + " sh";
    assert_eq!(b.with(&hold, 6, LARGE + (2 << 20), other).0, BUSY | 8);
    assert_eq!(b.v.host().read(word) & 0xFFFF, 2);
    assert_eq!(b.call(6, LARGE + (2 << 20), other).0, 0);
    assert_eq!(b.v.host().read(word) & 0xFFFF, 0);
}

#[test]
fn what_is_not_there_is_reported_with_where_the_walk_ended() {
    let b = Bench::new(true);
    let far = GPA + (4 << 30);
    // The root has a table; the entry of level 2 is free.
    for (leaf, rcx) in [
        (5, far),
        (6, far),
        (7, far),
        (25, far),
        (29, far),
        (39, far),
    ] {
        assert_eq!(
            b.call(leaf, rcx, b.v.page()),
            (WALK, FREE, 2),
            "leaf {leaf}"
        );
    }
    for leaf in [15, 23, 30] {
        assert_eq!(b.call(leaf, far | 1, NONE), (WALK, FREE, 2), "leaf {leaf}");
    }
    // In a large page the walk ends at its level.
    assert_eq!(
        b.call(29, LARGE & !1, 0),
        (WALK, CHUNK | FREE | 0xF0, 1 | (2 << 8))
    );
    // States that a leaf does not take.
    let mapped = (7, 1 | (0x84 << 8));
    let pending = (b.page() | FREE | 0xF0, 2 << 8);
    let free = (FREE, 0);
    for (leaf, rcx, (d_rcx, d_rdx)) in [
        (29, GPA | 1, mapped),
        (29, GPA + 0x1000, free),
        (15, GPA | 1, mapped),
        (5, GPA + 0x1000, free),
        (6, GPA, pending),
        (39, GPA, pending),
        (7, GPA + 0x1000, free),
        (39, GPA | 1, mapped),
        (23, LARGE, (CHUNK | FREE | 0xF0, 1 | (2 << 8))),
        (30, LARGE, (CHUNK | FREE | 0xF0, 1 | (2 << 8))),
    ] {
        let got = b.call(leaf, rcx, b.v.page());
        assert_eq!(got, (STATE, d_rcx, d_rdx), "leaf {leaf} {rcx:x}");
    }
    // Blocked tables show neither page nor access.
    b.block(GPA | 1);
    assert_eq!(
        b.call(7, GPA | 1, 0),
        (0x0000_0B07_0000_0001, 0, 1 | (0x81 << 8))
    );
    assert_eq!(b.call(25, GPA, 0), (WALK, 0, 1 | (0x81 << 8)));
}

#[test]
fn sept_add_returns_pages_in_version_1_only() {
    let b = Bench::new(true);
    let v1 = 3 | (1 << 16);
    let at = (GPA + (1 << 30)) | 2;
    let page = b.v.page();
    let call = |leaf, rcx, rdx, r8, r9| {
        let (rax, out) = b.v.call(
            leaf,
            Regs {
                rcx,
                rdx,
                r8,
                r9,
                r10: NONE,
                r11: NONE,
                ..Regs::default()
            },
        );
        (rax, out.rcx, out.rdx, out.r8, out.r9)
    };
    let tdr = b.td.tdr;
    // Bit 63 does not count, and is gone from what an error returns.
    let flagged = page | (1 << 63);
    assert_eq!(
        call(v1, at, tdr, flagged, 0x5000),
        (INVALID | 9, 0, 0, page, 0x5000)
    );
    assert_eq!(
        call(v1, at, tdr | 2, flagged, 0),
        (INVALID | 2, 0, 0, page, 0)
    );
    assert_eq!(
        call(v1, at | 5, tdr, flagged, NONE),
        (INVALID | 1, 0, 0, page, NONE)
    );
    assert_eq!(call(v1, at, tdr, NONE, NONE), (STATE, FREE, 2, NONE, NONE));
    assert_eq!(call(3, at, tdr, NONE, 7), (INVALID | 8, 0, 0, NONE, 7));
    assert_eq!(
        call(3 | (2 << 16), at, tdr, flagged, 7),
        (INVALID, 0, 0, flagged, 7)
    );
    // 0 is an address like any other.
    assert_eq!(call(v1, at, tdr, page, 0), (INVALID | 9, 0, 0, page, 0));
    assert_eq!(call(v1, at, tdr, flagged, NONE), (0, 0, 0, NONE, NONE));
    // What exists already: an error, or allowed and not needed.
    let again = b.v.page();
    let d = (7, 2 | (0x84 << 8));
    assert_eq!(call(3, at, tdr, again, 0), (STATE, d.0, d.1, again, 0));
    assert_eq!(
        call(v1, at, tdr, again, NONE),
        (STATE, d.0, d.1, again, NONE)
    );
    assert_eq!(call(3, at, tdr | 1, again, 0), (0, 0, 0, again, 0));
    assert_eq!(
        call(v1, at, tdr | 1, again, NONE),
        (0, 0, 0, again | (1 << 63), NONE)
    );
    // It is known that the page is not needed before the next one is refused.
    let refused = (INVALID | 9, 0, 0, again | (1 << 63), 5);
    assert_eq!(call(v1, at, tdr | 1, again, 5), refused);
    assert_eq!(call(v1, at, tdr, NONE, NONE), (0, 0, 0, NONE, NONE));
    assert_eq!(b.v.call(24, regs(again, 0, 0, 0)).1.rcx, 0);
}

#[test]
fn removal_returns_pages_and_keeps_metadata() {
    let b = Bench::new(false);
    let page = b.page();
    let word = layout::PAMT + ((page - TDMR) >> 12) * 16 + 8;
    b.ok(7, GPA, 0);
    let epoch = 1;
    let rdmd = |pa| {
        let out = b.v.ok(24, regs(pa, 1, 2, 3));
        (out.rcx, out.rdx, out.r8, out.r9)
    };
    assert_eq!(rdmd(page), (3, b.td.tdr, 0, epoch));
    let out = b.ok(29, GPA, 0x77);
    assert_eq!((out.rcx, out.rdx, out.r8), (page, 0, 0x77));
    // The owner stays; the epoch is shown of data and tables only.
    assert_eq!(rdmd(page), (0, b.td.tdr, 0, 0));
    // A control page keeps the stale epoch, which is not shown; a data page is new.
    b.v.ok(10, regs(page, b.td.tdr, 0, 0));
    assert_eq!(
        (rdmd(page), b.v.host().read(word)),
        ((6, b.td.tdr, 0, 0), epoch)
    );
    let other = b.v.page();
    b.ok(6, GPA, other);
    b.ok(7, GPA, 0);
    b.ok(39, GPA, 0);
    assert_eq!(rdmd(other), (3, b.td.tdr, 0, epoch));
    b.ok(29, GPA, 0);
    b.ok(6, GPA, other);
    assert_eq!(rdmd(other), (3, b.td.tdr, 0, 0));
}

#[test]
fn a_free_entry_with_priority_is_free() {
    let b = Bench::new(true);
    b.block(GPA);
    b.ok(29, GPA, 0);
    let table = b.table();
    // A host that meets a vCPU at the free entry leaves its priority there.
    let free = b.v.page();
    let busy = b.with(&format!("entry {GPA:x} 0"), 6, GPA, free);
    assert_eq!(busy, (BUSY | 1, FREE, 0));
    let word = table + 8 * ((GPA >> 12) & 511);
    assert_eq!(b.v.host().read(word), 0x80F0_0000_0000_0000);
    b.block(LARGE);
    b.ok(29, LARGE, 0);
    // Refused first for a page that was never blocked, then not for what is free.
    b.block(GPA | 1);
    assert_eq!(b.call(30, GPA | 1, 0), (0, table, 0));
    // Version 1 returns pages of L2 VMs, of which there are none.
    let parent = GPA | 2;
    b.block(parent);
    let (rax, out) = b.v.call(30 | (1 << 16), b.r(parent, 0));
    assert_eq!((rax, out.r9, out.r10, out.r11), (0, NONE, NONE, NONE));
}

#[test]
fn tracking_comes_before_emptiness() {
    let b = Bench::new(true);
    let at = GPA | 1;
    assert_eq!(b.call(30, at, 0), (NOT_BLOCKED, 7, 1 | (0x84 << 8)));
    b.ok(7, at, 0);
    assert_eq!(b.call(30, at, 0), (0xC000_0B08_0000_0001, 0, 0));
    assert_eq!(b.call(39, at, 0), (0xC000_0B08_0000_0092, 0, 0));
    b.v.ok(38, regs(b.td.tdr, 0, 0, 0));
    assert_eq!(
        b.call(30, at, 0),
        (0xC000_0B0E_0000_0001, 0, 1 | (0x81 << 8))
    );
    // Before the TD is final nothing needs a block.
    let b = Bench::new(false);
    assert_eq!(b.call(29, GPA, 0).0, 0);
    assert_eq!(b.call(15, LARGE, b.v.page()).0, 0);
    assert_eq!(b.call(23, LARGE, 0).0, 0);
    assert_eq!(b.call(29, LARGE, 0), (0, CHUNK, 0));
    assert_eq!(b.call(30, at, 0), (0, b.table(), 0));
}

#[test]
fn promotion_needs_512_equal_parts() {
    const CONDITIONS: u64 = 0xC000_0B09_0000_0001;
    let b = Bench::new(true);
    b.block(LARGE);
    let table = b.v.page();
    b.ok(15, LARGE, table);
    b.block(LARGE);
    let blocked = (0, 1 | (0x81 << 8));
    let promote = || b.call(23, LARGE, 0);
    // One child after the other: held, gone, in another state.
    let child = |i: u64| (LARGE & !1) + i * 4096;
    b.load("");
    b.ok(39, LARGE, 0);
    for i in [0u64, 1, 511] {
        b.load(&format!("hold entry {:x} 0 for=2", child(i)));
        b.ok(7, LARGE, 0);
        b.v.ok(38, regs(b.td.tdr, 0, 0, 0));
        b.load("");
        b.ok(39, LARGE, 0);
    }
    // The table must be mapped for the lock to be taken, blocked for the promotion.
    b.load(&format!("hold entry {:x} 0", child(511)));
    assert_eq!(b.ok(25, child(0), 0).rcx, CHUNK | FREE | 0xF0);
    b.block(LARGE);
    assert_eq!(promote(), (BUSY | 1, blocked.0, blocked.1));
    b.load("");
    // Nothing stays locked.
    assert_eq!(b.with(&b.pamt(CHUNK, 1), 23, LARGE, 0), (BUSY | 1, 0, 0));
    b.load("interrupt 23 1");
    let r = b.r(LARGE, 5);
    assert_eq!(b.v.call(23, r), (RESTART, r));
    b.load("");
    b.ok(39, LARGE, 0);
    b.block(child(5));
    b.block(LARGE);
    assert_eq!(promote(), (CONDITIONS, blocked.0, blocked.1));
    b.ok(39, LARGE, 0);
    b.ok(39, child(5), 0);
    b.block(LARGE);
    assert_eq!(promote(), (0, table, 0));
    // The parent was blocked, and is not any more.
    assert_eq!(b.call(25, LARGE, 0), (0, CHUNK | FREE | 0xF0, 1 | (2 << 8)));
    let (rax, out) = b.v.call(23 | (2 << 16), b.r(LARGE, 1));
    assert_eq!((rax, out.rcx, out.r9, out.r11), (INVALID, 0, NONE, NONE));
}

#[test]
fn demotion_can_be_refused_late() {
    let b = Bench::new(true);
    let page = b.v.page();
    let d = (CHUNK | FREE | 0xF0, 1 | (2 << 8));
    assert_eq!(b.call(15, LARGE, page), (NOT_BLOCKED, d.0, d.1));
    b.ok(7, LARGE, 0);
    assert_eq!(b.call(15, LARGE, page), (0xC000_0B08_0000_0001, 0, 0));
    b.v.ok(38, regs(b.td.tdr, 0, 0, 0));
    assert_eq!(b.call(15, LARGE, page + 8), (INVALID | 8, 0, 0));
    assert_eq!(b.call(15, LARGE, 0x1000), (0xC000_0101_0000_0008, 0, 0));
    assert_eq!(b.call(15, LARGE, b.td.vcpus[0][0]), (METADATA | 8, 0, 0));
    // The leaf itself has the TDR.
    assert_eq!(b.call(15, LARGE, b.td.tdr), (BUSY | 8, 0, 0));
    // A page inside an owned large one has no entry of its own.
    assert_eq!(b.call(15, LARGE, CHUNK + 0x1000), (METADATA | 8, 0, 0));
    let r = Regs {
        r9: 9,
        r10: 10,
        r11: 11,
        ..b.r(LARGE, page)
    };
    b.load("interrupt 15 1");
    assert_eq!(b.v.call(15, r), (RESTART, r));
    // Until it commits the page is the host's.
    assert_eq!(b.v.ok(24, regs(page, 0, 0, 0)).rcx, 0);
    let (rax, out) = b.v.call(15, r);
    assert_eq!(
        (rax, out),
        (
            0,
            Regs {
                rcx: 0,
                rdx: 0,
                ..r
            }
        )
    );
}

#[test]
fn large_pages_are_given_and_taken_whole() {
    let b = Bench::new(true);
    let at = LARGE + (2 << 20);
    let other = CHUNK + (2 << 20);
    assert_eq!(b.call(6, at, other + 4096), (INVALID | 8, 0, 0));
    assert_eq!(b.call(6, (at & !3) | 2, other).0, INVALID | 1);
    let small = other + 511 * 4096;
    b.ok(6, GPA + 0x5000, small);
    assert_eq!(b.call(6, at, other), (METADATA | 8, 0, 0));
    b.block(GPA + 0x5000);
    b.ok(29, GPA + 0x5000, 0);
    assert_eq!(b.call(6, at, other).0, 0);
    assert_eq!(b.call(6, GPA + 0x6000, other + 4096), (METADATA | 8, 0, 0));
    assert_eq!(b.v.call(41, regs(other, 0, 0, 0)).0, METADATA | 1);
}
