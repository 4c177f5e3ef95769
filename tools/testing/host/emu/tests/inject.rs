// SPDX-License-Identifier: GPL-2.0

//! Fault injection: what each rule does to the calls it names, and to no others.

use std::time::Instant;

use tdx_emu_host::asm::*;
use tdx_emu_host::check::check_unlocked;
use tdx_emu_host::module::interp::Interpreter;
use tdx_emu_host::vmm::{regs, Td, Vmm, TDMR};

const BUSY: u64 = 0x8000_0200_0000_0000;
const RESTART: u64 = 0x8000_0004_0000_0000;
const GPA: u64 = 0x80_0000;

fn load(v: &Vmm<Interpreter>, script: &str) {
    v.module.inject().load(script.as_bytes()).unwrap();
}

fn shown(v: &Vmm<Interpreter>) -> String {
    v.module.inject().to_string()
}

/// A TD with a vCPU on LP 1, finalized, with tables for [`GPA`].
fn td(v: &Vmm<Interpreter>, hkid: u64) -> Td {
    let mut td = v.create(hkid, 1 << 28);
    v.add_vcpu(&mut td, 1, 0);
    v.build_tables(&td, GPA);
    v.ok(17, regs(td.tdr, 0, 0, 0));
    td
}

fn rd(v: &Vmm<Interpreter>, td: &Td) -> u64 {
    v.call(25, regs(GPA, td.tdr, 0, 0)).0
}

#[test]
fn a_rule_may_be_limited_to_a_td() {
    let v = Vmm::new(Interpreter);
    let (one, two) = (td(&v, 20), td(&v, 21));
    load(&v, "fail tdh_mem_sept_rd every 1 123 hkid=21");
    assert_eq!((rd(&v, &one), rd(&v, &two)), (0, 0x123));
    // Leaves that name the vCPU, or a page, belong to its TD as well.
    load(&v, "fail 0 every 1 5 hkid=21\nfail 28 every 1 6 hkid=21");
    let enter = |td: &Td| v.call_on(1, 0, regs(td.vcpus[0][0], 0, 0, 0)).0;
    let reclaim = |td: &Td| v.call(28, regs(td.vcpus[0][1], 0, 0, 0)).0;
    assert_eq!((enter(&two), reclaim(&two)), (5, 6));
    assert_eq!(reclaim(&one), 0xC000_0607_0000_0000);
    assert_eq!(
        shown(&v),
        "fail tdh_vp_enter every 1 5 hkid=21 # calls=1 hits=1\n\
         fail tdh_phymem_page_reclaim every 1 6 hkid=21 # calls=1 hits=1\n"
    );
    load(&v, "fail tdh_mng_create 1 7 hkid=22");
    assert_eq!(v.call(9, regs(v.page(), 23, 0, 0)).0, 0);
    assert_eq!(v.call(9, regs(v.page(), 22, 0, 0)).0, 7);
}

#[test]
fn chance_follows_its_seed() {
    let v = Vmm::new(Interpreter);
    let td = td(&v, 20);
    let run = |script: &str| -> Vec<bool> {
        load(&v, script);
        (0..4000).map(|_| rd(&v, &td) != 0).collect()
    };
    let a = run("fail 25 prob 1/8 42 8000020000000001");
    let b = run("fail 25 prob 1/8 42 8000020000000001");
    let c = run("fail 25 prob 1/8 43 8000020000000001");
    assert_eq!(a, b);
    assert_ne!(a, c);
    let hits = a.iter().filter(|h| **h).count();
    assert!((400..600).contains(&hits), "{hits} of 4000");
    assert!(run("fail 25 prob 3/3 1 1").iter().all(|h| *h));
}

#[test]
fn a_failure_stays_with_its_operand() {
    let v = Vmm::new(Interpreter);
    let td = td(&v, 20);
    let rd = |gpa| v.call(25, regs(gpa, td.tdr, 0, 0)).0;
    load(&v, "fail tdh_mem_sept_rd stay 2 8000020000000001");
    let answers = [GPA, GPA, GPA + 0x1000, GPA, GPA + 0x1000].map(rd);
    assert_eq!(answers, [0, BUSY | 1, 0, BUSY | 1, 0]);
    assert!(shown(&v).contains("calls=5 hits=2"), "{}", shown(&v));
    // The next script knows nothing of it.
    load(&v, "fail tdh_mem_sept_rd stay 1 5");
    assert_eq!([GPA + 0x1000, GPA].map(rd), [5, 0]);
}

#[test]
fn rules_are_shown_as_a_script() {
    let v = Vmm::new(Interpreter);
    let script = "fail tdh_mem_page_aug 3 8000020000000092 hkid=17\n\
                  fail tdg_mem_page_accept every 2 8000020000000001\n\
                  fail tdh_mem_track stay 4 80000200000000a9\n\
                  delay tdh_mem_range_block prob 1/4 9 250us\n\
                  delay tdh_mem_track 1 5000insn\n\
                  interrupt tdh_mem_page_demote every 3 hkid=18\n\
                  hold tree ex for=4\n\
                  hold epoch sh hkid=3 busy=7\n\
                  hold op_state ex\n\
                  hold tdr sh for=1 busy=2\n\
                  hold entry 123456000 2 guest\n\
                  hold entry 0 4 host hkid=1\n\
                  hold pamt 40000000 1 sh for=5\n\
                  hold kot ex\n";
    load(&v, script);
    let first = shown(&v);
    let plain: String = first
        .lines()
        .map(|l| l.split(" # ").next().unwrap().to_string() + "\n")
        .collect();
    assert_eq!(plain, script);
    assert!(first.lines().all(|l| l.contains(" # ")), "{first}");
    // What is shown can be loaded again.
    load(&v, &first);
    assert_eq!(shown(&v), first);
    load(&v, "hold kot\nclear # all above\n");
    assert_eq!(shown(&v), "");
}

#[test]
fn each_mistake_has_its_reason() {
    let v = Vmm::new(Interpreter);
    for (script, reason) in [
        ("fail 6 prob", "probability is missing after prob"),
        ("fail 6 prob 2/1 1 1", "probability is above one"),
        ("fail 6 prob 1 1 1", "count is not a number"),
        ("fail 6 prob 1/2 x 1", "seed is not a number"),
        ("fail 6 prob 1/2", "seed is missing"),
        ("fail 6 1 1 hkid=256", "hkid is not a number below 256"),
        ("fail 6 1 1 for=3", "words after the end of the command"),
        ("fail 6 stay", "number of the call is missing after stay"),
        ("fail 6 stay 0 1", "calls are counted from 1"),
        ("delay 6 stay 1 1us", "count is not a number"),
        ("delay 6 1", "duration is missing"),
        ("delay 6 1 5", "duration is neither <n>us nor <n>insn"),
        ("delay 6 1 xus", "duration is not a number"),
        (
            "delay 6 1 1000001us",
            "duration is above one second or 2^32 instructions",
        ),
        ("interrupt", "leaf is missing"),
        ("interrupt 6 1 1", "words after the end of the command"),
        ("hold", "lock is missing"),
        ("hold nothing", "no such lock"),
        ("hold entry", "address is missing"),
        ("hold entry 1001 0", "address is not that of a page"),
        ("hold entry 1000", "level is missing"),
        ("hold entry 1000 5", "level is out of range"),
        ("hold pamt 1000 3", "level is out of range"),
        ("hold entry 1000 0 ex", "words after the end of the command"),
        ("hold tree for=0", "calls are counted from 1"),
        ("hold kot hkid=3", "words after the end of the command"),
    ] {
        let error = v.module.inject().load(script.as_bytes()).unwrap_err();
        assert_eq!((error.line, error.reason), (1, reason), "{script}");
    }
}

#[test]
fn held_locks_of_a_td_refuse_calls_until_they_are_let_go() {
    let v = Vmm::new(Interpreter);
    let td = td(&v, 20);
    let rd = || rd(&v, &td);
    for (script, status) in [
        ("hold tree ex", BUSY | 0x92),
        ("hold op_state ex", BUSY | 0xAC),
        ("hold tdr ex", BUSY | 2),
        ("hold entry 800000 0", BUSY | 1),
        ("hold entry 800000 0 host", BUSY | 1),
    ] {
        // For a number of calls, then until n were busy, then until the next script.
        load(&v, &format!("{script} for=3"));
        assert_eq!(
            [(); 5].map(|()| rd()),
            [status, status, status, 0, 0],
            "{script}"
        );
        load(&v, &format!("{script} busy=2 hkid=20"));
        assert_eq!([(); 3].map(|()| rd()), [status, status, 0], "{script}");
        assert!(
            shown(&v).ends_with("# released calls=2 busy=2\n"),
            "{}",
            shown(&v)
        );
        load(&v, script);
        assert!((0..9).all(|_| rd() == status));
        assert!(
            shown(&v).ends_with("# held calls=9 busy=9\n"),
            "{}",
            shown(&v)
        );
        load(&v, "");
        assert_eq!(rd(), 0, "{script}");
    }
    // A reader does not disturb readers, but a writer.
    load(&v, "hold tree sh");
    assert_eq!(rd(), 0);
    assert_eq!(v.call(7, regs(GPA, td.tdr, 0, 0)).0, BUSY | 0x92);
    load(&v, "hold tdr sh");
    assert_eq!(rd(), 0);
    assert_eq!(v.call(19, regs(td.tdr, 0, 0, 0)).0, BUSY | 1);
    load(&v, "hold epoch ex");
    assert_eq!(v.call(38, regs(td.tdr, 0, 0, 0)).0, BUSY | 0xA9);
    let enter = regs(td.vcpus[0][0], 0, 0, 0);
    assert_eq!(v.call_on(1, 0, enter).0, BUSY | 0xA9);
    load(&v, "");
    check_unlocked(&v.module, TDMR, TDMR + (64 << 20)).unwrap();
}

#[test]
fn held_locks_of_pages_and_keys() {
    let v = Vmm::new(Interpreter);
    let td = td(&v, 20);
    let page = v.page();
    load(&v, &format!("hold pamt {page:x} 0 for=2"));
    let aug = || v.call(6, regs(GPA, td.tdr, page, 0)).0;
    assert_eq!([(); 3].map(|()| aug()), [BUSY | 8, BUSY | 8, 0]);
    load(&v, &format!("hold pamt {:x} 1", page & !0x1F_FFFF));
    assert_eq!(v.call(24, regs(page, 0, 0, 0)).0, BUSY | 1);
    load(&v, "hold kot");
    assert_eq!(v.call(9, regs(v.page(), 30, 0, 0)).0, BUSY | 0xBA);
    load(&v, "");
    v.ok(9, regs(v.page(), 30, 0, 0));
    v.zap(&td, GPA);
    check_unlocked(&v.module, TDMR, TDMR + (64 << 20)).unwrap();
}

/// A host that fails while a vCPU holds the entry leaves its priority behind, and the
/// guest yields to it until a host call locks the entry.
#[test]
fn a_guest_yields_to_a_host_that_met_it() {
    const CODE: u64 = 0x1000;
    const RESET: u64 = 0xFFFF_F000;
    let v = Vmm::new(Interpreter);
    let mut td = v.create(20, 1 << 28);
    v.add_vcpu(&mut td, 1, 0);
    let mut reset = Asm::new(RESET + 0xFF0);
    reset.jmp(CODE);
    let mut page = vec![0; 0xFF0];
    page.extend(reset.bytes());
    v.add_page(&td, RESET, &page);
    let mut a = Asm::new(CODE);
    let again = a.here();
    a.movi(RCX, GPA)
        .tdcall(6)
        .mov(R12, RAX)
        .vmcall(1)
        .jmp(again);
    v.add_page(&td, CODE, a.bytes());
    v.ok(17, regs(td.tdr, 0, 0, 0));
    v.build_tables(&td, GPA);
    v.ok(6, regs(GPA, td.tdr, v.page(), 0));

    let accept = || {
        let (rax, out) = v.call_on(1, 0, regs(td.vcpus[0][0], 0, 0, 0));
        assert_eq!((rax, out.r11), (77, 1), "{out:x?}");
        out.r12
    };
    load(&v, &format!("hold entry {GPA:x} 0 for=1"));
    assert_eq!(rd(&v, &td), BUSY | 1);
    assert_eq!(accept(), BUSY | 1);
    assert_eq!(accept(), BUSY | 1);
    assert_eq!(rd(&v, &td), 0);
    assert_eq!(accept(), 0);
    // TDCALLs can be made to fail as well.
    load(&v, "fail tdg_mem_page_accept 2 c000010000000001");
    assert_eq!(accept(), 0x0000_0B0A_0000_0000);
    assert_eq!(accept(), 0xC000_0100_0000_0001);
}

#[test]
fn a_held_lock_does_not_outlive_its_page() {
    let v = Vmm::new(Interpreter);
    let td = td(&v, 20);
    let (tdr, sept) = (td.tdr, td.sept.lock().unwrap().clone());
    // Free entries may be locked while their table is removed.
    load(&v, &format!("hold entry {GPA:x} 0\nhold epoch ex"));
    assert_eq!(v.call(38, regs(tdr, 0, 0, 0)).0, BUSY | 0xA9);
    load(&v, &format!("hold entry {GPA:x} 0"));
    let at = GPA & !0x1F_FFFF | 1;
    assert_eq!(v.call(7, regs(at, tdr, 0, 0)).0, 0);
    v.ok(38, regs(tdr, 0, 0, 0));
    let page = v.ok(30, regs(at, tdr, 0, 0)).rcx;
    assert_eq!(page, sept[2]);
    assert!(shown(&v).contains("# released"), "{}", shown(&v));
    let index = (GPA >> 12) & 511;
    let word = page + 8 * index;
    let before = v.host().read(word);
    assert_eq!(before & (1 << 11), 0, "{before:x}");
    load(&v, "");
    assert_eq!(v.host().read(word), before);
    td.sept.lock().unwrap().retain(|p| *p != page);
    v.free(page);
    // The TDCS goes with its lock held.
    load(&v, "hold tree ex");
    assert_eq!(rd(&v, &td), BUSY | 0x92);
    v.destroy(td, &[Some(1)]);
    assert!(shown(&v).contains("# released"), "{}", shown(&v));
    check_unlocked(&v.module, TDMR, TDMR + (64 << 20)).unwrap();
}

#[test]
fn interrupts_arrive_where_they_are_ordered() {
    let v = Vmm::new(Interpreter);
    let mut td = v.create(20, 1 << 28);
    v.add_vcpu(&mut td, 1, 0);
    v.build_tables(&td, GPA);
    let (at, chunk) = (GPA | 1, TDMR + (128 << 20));
    v.call(30, regs(at, td.tdr, 0, 0));
    let sept = td.sept.lock().unwrap().pop().unwrap();
    v.free(sept);
    v.ok(6, regs(at, td.tdr, chunk, 0));
    load(&v, "interrupt tdh_mem_page_demote 1");
    let r = regs(at, td.tdr, v.page(), 9);
    assert_eq!(v.call(15, r), (RESTART, r));
    assert_eq!(v.call(15, r).0, 0);
    load(&v, "interrupt 23 every 2");
    let r = regs(at, td.tdr, 0, 0);
    let freed = v.ok(23, r).rcx;
    v.ok(15, regs(at, td.tdr, freed, 0));
    assert_eq!(v.call(23, r), (RESTART, r));
    assert_eq!(v.call(23, r).1.rcx, freed);
    // A status that says "restart" leaves the operands as they were.
    load(&v, &format!("fail 15 1 {RESTART:x}"));
    let r = regs(at, td.tdr, v.page(), 0);
    assert_eq!(v.call(15, r), (RESTART, r));
}

#[test]
fn a_delayed_call_keeps_its_locks() {
    let v = Vmm::new(Interpreter);
    let td = td(&v, 20);
    v.ok(6, regs(GPA, td.tdr, v.page(), 0));
    load(&v, "delay tdh_mem_range_block 1 500000us");
    std::thread::scope(|s| {
        let slow = s.spawn(|| {
            let start = Instant::now();
            // The other thread's calls may come first.
            loop {
                let rax = v.call(7, regs(GPA, td.tdr, 0, 0)).0;
                if rax & !0xFF != BUSY {
                    return (rax, start.elapsed());
                }
            }
        });
        let mut busy = 0u32;
        while !slow.is_finished() {
            busy += u32::from(rd(&v, &td) == BUSY | 0x92);
        }
        let (rax, time) = slow.join().unwrap();
        assert_eq!(rax, 0);
        assert!(busy > 0, "never busy in {time:?}");
    });
    load(&v, "delay 25 every 1 3000000insn");
    let start = Instant::now();
    assert_eq!(rd(&v, &td), 0);
    assert!(start.elapsed().as_micros() > 500);
}

/// Scripts that come while calls of other threads take and let go of the locks.
#[test]
fn scripts_are_replaced_under_load() {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
    use tdx_emu_host::check::check_td;
    let v = Vmm::new(Interpreter);
    let td = td(&v, 20);
    let stop = AtomicBool::new(false);
    let busy = AtomicU32::new(0);
    let start = Instant::now();
    std::thread::scope(|s| {
        let call = |leaf: u64, rcx: u64| {
            while !stop.load(SeqCst) {
                let rax = v.call(leaf, regs(rcx, td.tdr, 0, 0)).0;
                busy.fetch_add(u32::from(rax >> 32 == 0x8000_0200), SeqCst);
                assert!(rax == 0 || rax >> 32 == 0x8000_0200, "leaf {leaf}: {rax:x}");
            }
        };
        let readers = [
            s.spawn(move || call(25, GPA)),
            s.spawn(move || call(25, GPA + 0x1000)),
            s.spawn(move || call(38, td.tdr)),
        ];
        let scripts = [
            "hold tree ex\nhold epoch sh\nhold entry 800000 0 host",
            "hold op_state ex for=3\nhold tdr sh busy=2",
            "hold kot\nhold tree sh\nhold entry 801000 0 host for=1",
            "",
        ];
        // Slowly first, until the threads are at it.
        let is_met = || busy.load(SeqCst) > 0 || start.elapsed().as_secs() > 60;
        for i in (0..).take_while(|i| *i < 4000 || !is_met()) {
            load(&v, scripts[i % scripts.len()]);
            if !(40..4000).contains(&i) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        load(&v, "");
        stop.store(true, SeqCst);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    assert!(busy.into_inner() > 0, "no script hit anything");
    let control = (td.tdcx.len() + td.vcpus[0].len()) as u64;
    check_td(&v.module, td.tdr, control).unwrap();
    check_unlocked(&v.module, TDMR, TDMR + (64 << 20)).unwrap();
    v.destroy(td, &[Some(1)]);
}
