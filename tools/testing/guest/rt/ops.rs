// SPDX-License-Identifier: GPL-2.0
//! The interpreter of op lists: see `abi` for what each op does.

use core::arch::asm;
use core::ptr::{addr_of, addr_of_mut};

use crate::abi::{self, Header, Op};
use crate::{start, tdcall, trap, va, SHARED_BIT};

/// Busy answers that an op takes before it gives up.
pub const BUSY_LIMIT: u64 = 100_000;

/// Runs the lists of the parameter block at `param`, one after the other.
pub fn run(vcpu: u32, param: u64) -> ! {
    let block = va(param | SHARED_BIT);
    let header = block as *mut Header;
    loop {
        // SAFETY: the VMM shares the block with this vCPU alone and does not
        // touch it until it is told; all accesses are volatile.
        let (magic, nr_ops) = unsafe {
            (
                addr_of!((*header).magic).read_volatile(),
                addr_of!((*header).nr_ops).read_volatile(),
            )
        };
        if magic != abi::MAGIC || nr_ops > abi::MAX_OPS {
            tdcall::fatal(abi::FATAL_PARAM, param, u64::from(nr_ops));
        }
        // SAFETY: as above.
        unsafe { addr_of_mut!((*header).vcpu).write_volatile(vcpu) };
        for n in 0..nr_ops {
            let at = (block + 64 + u64::from(n) * 64) as *mut Op;
            // SAFETY: the op lies in the block.
            let mut op = unsafe { at.read_volatile() };
            execute(&mut op, header);
            // SAFETY: as above; the area is this vCPU's own.
            unsafe {
                at.write_volatile(op);
                addr_of_mut!((*header).done).write_volatile(n + 1);
                let count = (*start::this_vcpu()).ve_count;
                addr_of_mut!((*header).ve_count).write_volatile(count);
            }
        }
        tdcall::port_out(abi::PORT_DONE, 4, u64::from(nr_ops));
    }
}

fn execute(op: &mut Op, header: *mut Header) {
    let [a, b, c] = op.arg;
    let by_vmcall = op.flags & abi::FLAG_VMCALL != 0;
    // SAFETY: the area is this vCPU's own.
    unsafe { (*start::this_vcpu()).ve_error = 0 };
    op.status = match op.code {
        abi::OP_TOUCH => touch(a, b, op.flags & abi::FLAG_WRITE != 0),
        abi::OP_ACCEPT => accept(a, b, c, &mut op.res),
        abi::OP_STORE => store(a, b, c),
        abi::OP_VERIFY => verify(a, b, &mut op.res, |gpa| abi::pattern(gpa, c)),
        abi::OP_VERIFY_ZERO => verify(a, b, &mut op.res, |_| 0),
        abi::OP_MAP_GPA => map_gpa(a, b, &mut op.res),
        abi::OP_PORT_OUT if by_vmcall => tdcall::port_out(a as u16, b, c),
        abi::OP_PORT_OUT => port_out(a as u16, b, c),
        abi::OP_PORT_IN if by_vmcall => answer(
            tdcall::request(tdcall::IO, b, 0, a & 0xffff, 0),
            &mut op.res,
        ),
        abi::OP_PORT_IN => port_in(a as u16, b, &mut op.res),
        abi::OP_MMIO_READ if by_vmcall => answer(
            tdcall::request(tdcall::MMIO, b, 0, a | SHARED_BIT, 0),
            &mut op.res,
        ),
        abi::OP_MMIO_READ => {
            op.res[0] = trap::mmio_read(a, b);
            0
        }
        abi::OP_MMIO_WRITE if by_vmcall => tdcall::request(tdcall::MMIO, b, 1, a | SHARED_BIT, c).0,
        abi::OP_MMIO_WRITE => {
            trap::mmio_write(a, b, c);
            0
        }
        abi::OP_CPUID => cpuid(a, b, by_vmcall, &mut op.res),
        abi::OP_RDMSR if by_vmcall => {
            answer(tdcall::request(tdcall::RDMSR, a, 0, 0, 0), &mut op.res)
        }
        abi::OP_RDMSR => rdmsr(a, &mut op.res),
        abi::OP_WRMSR if by_vmcall => tdcall::request(tdcall::WRMSR, a, c, 0, 0).0,
        abi::OP_WRMSR => wrmsr(a, c),
        abi::OP_HALT => tdcall::request(tdcall::HLT, a, 0, 0, 0).0,
        abi::OP_LOOP => count(a, header),
        abi::OP_VP_INFO => match tdcall::vp_info() {
            Ok(info) => {
                op.res = info;
                0
            }
            Err(status) => status,
        },
        abi::OP_RAW_ACCEPT => tdcall::accept(a),
        abi::OP_RAW_VMCALL => answer(tdcall::request(a, b, c, op.res[1], op.res[2]), &mut op.res),
        abi::OP_BARRIER => barrier(a, b, header),
        abi::OP_FATAL => tdcall::fatal(abi::FATAL_OP, a, 0),
        abi::OP_TRIPLE_FAULT => start::triple_fault(),
        _ => abi::ERR_OP,
    };
    // SAFETY: the area is this vCPU's own.
    let ve_error = unsafe { (*start::this_vcpu()).ve_error };
    if op.status == 0 && ve_error != 0 {
        op.status = abi::ERR_VE;
        op.res[2] = ve_error;
    }
}

fn answer((status, value): (u64, u64), res: &mut [u64; 3]) -> u64 {
    res[0] = value;
    status
}

fn touch(gpa: u64, pages: u64, write: bool) -> u64 {
    for n in 0..pages {
        let at = va(gpa + n * 4096) as *mut u64;
        // SAFETY: memory of the TD that nothing else in the payload uses.
        unsafe {
            let word = at.read_volatile();
            if write {
                at.write_volatile(word);
            }
        }
    }
    0
}

fn accept(gpa: u64, pages: u64, level: u64, res: &mut [u64; 3]) -> u64 {
    *res = [0; 3];
    for n in 0..pages {
        let page = gpa + (n << (12 + 9 * level)) | level;
        loop {
            let status = tdcall::accept(page);
            match status & tdcall::CLASS {
                0 => res[0] += 1,
                tdcall::PAGE_ALREADY_ACCEPTED => res[1] += 1,
                tdcall::OPERAND_BUSY if res[2] < BUSY_LIMIT => {
                    res[2] += 1;
                    continue;
                }
                tdcall::OPERAND_BUSY => return abi::ERR_BUSY,
                _ => return status,
            }
            break;
        }
    }
    0
}

fn store(gpa: u64, pages: u64, seed: u64) -> u64 {
    for n in 0..pages * 512 {
        let at = gpa + n * 8;
        // SAFETY: memory of the TD that nothing else in the payload uses.
        unsafe { (va(at) as *mut u64).write_volatile(abi::pattern(at & !SHARED_BIT, seed)) };
    }
    0
}

fn verify(gpa: u64, pages: u64, res: &mut [u64; 3], want: impl Fn(u64) -> u64) -> u64 {
    *res = [0; 3];
    for n in 0..pages * 512 {
        let at = gpa + n * 8;
        // SAFETY: as in `store`.
        let word = unsafe { (va(at) as *const u64).read_volatile() };
        if word != want(at & !SHARED_BIT) {
            if res[0] == 0 {
                res[1] = at;
                res[2] = word;
            }
            res[0] += 1;
        }
    }
    match res[0] {
        0 => 0,
        _ => abi::ERR_MISMATCH,
    }
}

fn map_gpa(gpa: u64, size: u64, res: &mut [u64; 3]) -> u64 {
    let end = gpa + size;
    let mut at = gpa;
    res[1] = 0;
    while res[1] < BUSY_LIMIT {
        let (status, next) = tdcall::request(tdcall::MAP_GPA, at, end - at, 0, 0);
        res[0] = next;
        if status != tdcall::VMCALL_RETRY {
            return status;
        }
        if next < at || next >= end {
            return abi::ERR_OP;
        }
        at = next;
        res[1] += 1;
    }
    abi::ERR_RETRY
}

fn port_out(port: u16, size: u64, value: u64) -> u64 {
    // SAFETY: port I/O of a TD goes to the VMM only.
    unsafe {
        match size {
            1 => asm!("out dx, al", in("dx") port, in("al") value as u8),
            2 => asm!("out dx, ax", in("dx") port, in("ax") value as u16),
            4 => asm!("out dx, eax", in("dx") port, in("eax") value as u32),
            _ => return abi::ERR_OP,
        }
    }
    0
}

fn port_in(port: u16, size: u64, res: &mut [u64; 3]) -> u64 {
    let mut value: u64 = 0;
    // SAFETY: as in `port_out`.
    unsafe {
        match size {
            1 => asm!("in al, dx", in("dx") port, inout("rax") value),
            2 => asm!("in ax, dx", in("dx") port, inout("rax") value),
            4 => asm!("in eax, dx", in("dx") port, inout("rax") value),
            _ => return abi::ERR_OP,
        }
    }
    res[0] = value;
    0
}

fn cpuid(leaf: u64, subleaf: u64, by_vmcall: bool, res: &mut [u64; 3]) -> u64 {
    if by_vmcall {
        let mut regs = [0, tdcall::CPUID, leaf, subleaf, 0, 0];
        let status = tdcall::vmcall(&mut regs);
        res[0] = regs[3] << 32 | (regs[2] & 0xffff_ffff);
        res[1] = regs[5] << 32 | (regs[4] & 0xffff_ffff);
        return status | regs[0];
    }
    // SAFETY: every CPU in long mode has the instruction.
    let regs = unsafe { core::arch::x86_64::__cpuid_count(leaf as u32, subleaf as u32) };
    res[0] = u64::from(regs.ebx) << 32 | u64::from(regs.eax);
    res[1] = u64::from(regs.edx) << 32 | u64::from(regs.ecx);
    0
}

fn rdmsr(msr: u64, res: &mut [u64; 3]) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading an MSR of the TD has no side effect on the payload.
    unsafe { asm!("rdmsr", in("ecx") msr as u32, out("eax") low, out("edx") high) };
    res[0] = u64::from(high) << 32 | u64::from(low);
    0
}

fn wrmsr(msr: u64, value: u64) -> u64 {
    // SAFETY: the VMM's op list asks for it; the payload itself needs no MSR.
    unsafe {
        asm!("wrmsr", in("ecx") msr as u32, in("eax") value as u32, in("edx") (value >> 32) as u32)
    };
    0
}

fn count(turns: u64, header: *mut Header) -> u64 {
    let mut n: u64 = 0;
    loop {
        n += 1;
        // SAFETY: the header is shared with the VMM; accesses are volatile.
        let stop = unsafe {
            addr_of_mut!((*header).heartbeat).write_volatile(n);
            addr_of!((*header).stop).read_volatile()
        };
        if stop != 0 || n == turns {
            return 0;
        }
    }
}

fn barrier(gpa: u64, count: u64, header: *mut Header) -> u64 {
    let at = va(gpa | SHARED_BIT) as *const core::sync::atomic::AtomicU64;
    // SAFETY: a word that the vCPUs and the VMM share and use atomically.
    let word = unsafe { &*at };
    use core::sync::atomic::Ordering::SeqCst;
    word.fetch_add(1, SeqCst);
    while word.load(SeqCst) < count {
        core::hint::spin_loop();
        // SAFETY: as in `count`.
        if unsafe { addr_of!((*header).stop).read_volatile() } != 0 {
            return abi::ERR_RETRY;
        }
    }
    0
}
