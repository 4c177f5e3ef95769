// SPDX-License-Identifier: GPL-2.0

//! CPUID as a TD sees it: the machine's, cut down to what the TD may use, with the
//! host's configuration of TD_PARAMS on top. Leaves outside the table cause #VE.

#![forbid(unsafe_code)]

use super::metadata::{CPUID_CONFIG, NO_SUBLEAF};
use super::platform::Platform;
use super::td::{tdcs_word, Tdcs};

/// Highest basic leaf: the one that identifies TDX.
const MAX_BASIC: u32 = 0x21;
const MAX_EXTENDED: u32 = 0x8000_0008;

/// What differs from vCPU to vCPU.
#[derive(Clone, Copy, Default)]
pub(crate) struct View {
    pub(crate) x2apic_id: u32,
    pub(crate) xcr0: u64,
    pub(crate) xss: u64,
    pub(crate) cr4: u64,
    /// The topology leaves cause #VE.
    pub(crate) topology_hidden: bool,
}

const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_PKE: u64 = 1 << 22;

/// Number of subleaves of a leaf, 0 if subleaves mean nothing to it; `None` if the
/// leaf is not virtualised.
fn subleaves(leaf: u32) -> Option<u32> {
    Some(match leaf {
        0x4 => 5,
        0x7 => 3,
        0xB | 0x1F => 3,
        0xD => 20,
        0x12 | 0x14 | 0x1D => 2,
        0x0F | 0x10 | 0x17 | 0x18 | 0x1E | 0x20 | 0x21 => 1,
        0..=MAX_BASIC | 0x8000_0000..=MAX_EXTENDED => 0,
        _ => return None,
    })
}

/// Field CPUID_VALUES of class 14h: bit 16 leaf bit 31, 15:9 leaf, 8 no subleaf, 7:1
/// subleaf, 0 half.
pub(crate) fn field<P: Platform>(p: &P, tdcs: &Tdcs<'_>, code: u64) -> Option<u64> {
    let leaf = ((code >> 9) & 0x7F) as u32 | ((((code >> 16) & 1) as u32) << 31);
    let sub = ((code >> 1) & 0x7F) as u32;
    let count = subleaves(leaf)?;
    let valid = match (code >> 8) & 1 {
        0 => sub < count,
        _ => count == 0 && sub == 0x7F,
    };
    if !valid {
        return None;
    }
    let sub = if count == 0 { 0 } else { sub };
    let [a, b, c, d] = virtualise(p, tdcs, leaf, sub, View::default())?;
    Some(match code & 1 {
        0 => (u64::from(b) << 32) | u64::from(a),
        _ => (u64::from(d) << 32) | u64::from(c),
    })
}

/// What the CPUID instruction returns. `None`: it causes #VE.
pub(crate) fn virtualise<P: Platform>(
    p: &P,
    tdcs: &Tdcs<'_>,
    leaf: u32,
    sub: u32,
    view: View,
) -> Option<[u32; 4]> {
    let count = subleaves(leaf)?;
    if count != 0 && sub >= count && leaf != 0xB && leaf != 0x1F {
        return Some([0; 4]);
    }
    if leaf == 0xB || leaf == 0x1F {
        if view.topology_hidden {
            return None;
        }
        // Both show what the host configured for the newer one.
        let v = topology(tdcs, sub, view);
        return Some(configured(tdcs, 0x1F, sub, v));
    }
    let native = p.cpuid(leaf, sub);
    let v = match leaf {
        0xD => extended_state(p, tdcs.get(tdcs_word::XFAM), sub, native, view),
        _ => base(tdcs, leaf, sub, native, view),
    };
    Some(configured(tdcs, leaf, sub, v))
}

/// Replaces configurable bits that the host did set.
fn configured(tdcs: &Tdcs<'_>, leaf: u32, sub: u32, mut v: [u32; 4]) -> [u32; 4] {
    let mut next = tdcs_word::CPUID;
    for (l, s, mask) in &CPUID_CONFIG {
        let word = next;
        next = next.wrapping_add(2);
        if *l != leaf || *s != NO_SUBLEAF && *s != sub {
            continue;
        }
        let (lo, hi) = (tdcs.get(word), tdcs.get(word.wrapping_add(1)));
        if lo | hi == 0 {
            continue;
        }
        let set = [lo as u32, (lo >> 32) as u32, hi as u32, (hi >> 32) as u32];
        for (v, (s, m)) in v.iter_mut().zip(set.into_iter().zip(mask)) {
            *v = *v & !m | s & m;
        }
    }
    v
}

/// State components that IA32_XSS can turn on.
pub(crate) const XSS_BITS: u64 = 0x1_D900;
/// State components that XCR0 can turn on.
pub(crate) const XCR0_BITS: u64 = 0x602E7;

fn base(tdcs: &Tdcs<'_>, leaf: u32, sub: u32, n: [u32; 4], view: View) -> [u32; 4] {
    let [a, b, c, d] = n;
    let xfam = tdcs.get(tdcs_word::XFAM);
    let wide = tdcs.shared_bit() == 51;
    match leaf {
        0 => [MAX_BASIC, b, c, d],
        1 => {
            // No VMX, SMX, debug store and performance monitoring; a hypervisor is there,
            // and x2APIC is the only APIC mode.
            let absent = (1 << 2) | (1 << 4) | (1 << 5) | (1 << 6) | (1 << 15) | (1 << 27);
            let osxsave = u32::from(view.cr4 & CR4_OSXSAVE != 0) << 27;
            let c = c & !absent | (1 << 31) | (1 << 21) | osxsave;
            [
                a,
                b & 0x00FF_FFFF | (view.x2apic_id << 24),
                c,
                d & !(1 << 21),
            ]
        }
        2 | 0x4 | 0x16 | 0x8000_0000..=0x8000_0004 | 0x8000_0006 => n,
        6 => [1 << 2, 0, 0, 0],
        0x7 => structured(xfam, sub, n, view),
        0x15 => [1, tdcs.get(tdcs_word::TSC_FREQUENCY) as u32, 25_000_000, 0],
        0x21 => [
            0,
            u32::from_le_bytes(*b"Inte"),
            u32::from_le_bytes(*b"    "),
            { u32::from_le_bytes(*b"lTDX") },
        ],
        0x8000_0007 => [0, 0, 0, d & (1 << 8)],
        0x8000_0008 => {
            let gpa_width = if wide { 52 } else { 48 };
            [a & 0xFF00 | 52 | (gpa_width << 16), b, 0, 0]
        }
        _ => [0; 4],
    }
}

/// Leaf 7: features that depend on XFAM are there with it; those that a TD cannot
/// use at all are not.
fn structured(xfam: u64, sub: u32, [a, b, c, d]: [u32; 4], view: View) -> [u32; 4] {
    let unless = |feature: u64, bits: u32| if (xfam >> feature) & 1 != 0 { 0 } else { bits };
    match sub {
        0 => {
            let avx512 = (1 << 16) | (1 << 17) | (1 << 21) | (1 << 28) | (1 << 30) | (1 << 31);
            let b_off = (1 << 1)
                | (1 << 2)
                | (1 << 4)
                | (1 << 11)
                | (1 << 12)
                | (1 << 15)
                | unless(8, 1 << 25);
            let b_off = b_off | unless(2, 1 << 5) | unless(5, avx512);
            let c_off = (1 << 5) | (1 << 13) | (1 << 23) | (1 << 24) | (1 << 30) | (1 << 31);
            let c_off = c_off | unless(12, 1 << 7) | unless(9, 1 << 3) | (1 << 4);
            let c_off = c_off | unless(10, 1 << 29);
            let ospke = u32::from(view.cr4 & CR4_PKE != 0) << 4;
            let d_off = (1 << 18) | unless(12, 1 << 20) | unless(14, 1 << 5) | unless(15, 1 << 19);
            let d_off = d_off | unless(18, (1 << 22) | (1 << 24) | (1 << 25));
            // IA32_ARCH_CAPABILITIES is there.
            [a, b & !b_off, c & !c_off | ospke, d & !d_off | (1 << 29)]
        }
        1 => [a, 0, 0, 0],
        _ => [0, 0, 0, d],
    }
}

/// Leaves Bh and 1Fh: one thread a core, one package.
fn topology(tdcs: &Tdcs<'_>, sub: u32, view: View) -> [u32; 4] {
    let vcpus = tdcs.get(tdcs_word::MAX_VCPUS) as u32;
    let shift = 32u32.wrapping_sub(vcpus.saturating_sub(1).leading_zeros());
    let [a, b, c] = match sub {
        0 => [0, 1, 0x100],
        1 => [shift, vcpus, 0x201],
        _ => [0, 0, sub & 0xFF],
    };
    [a, b, c, view.x2apic_id]
}

/// Leaf Dh: what XFAM lets in, and the sizes of the XSAVE area for it.
fn extended_state<P: Platform>(
    p: &P,
    xfam: u64,
    sub: u32,
    [a, b, c, d]: [u32; 4],
    view: View,
) -> [u32; 4] {
    let (user, supervisor) = (xfam & XCR0_BITS, xfam & XSS_BITS);
    match sub {
        0 => {
            let size = |components| area(p, components, false);
            [
                user as u32,
                size(view.xcr0 & user),
                size(user),
                (user >> 32) as u32,
            ]
        }
        1 => {
            let now = area(p, (view.xcr0 | view.xss) & xfam, true);
            // Not XFD, which is for AMX.
            [a & 0xF, now, supervisor as u32, (supervisor >> 32) as u32]
        }
        _ if (xfam >> (sub & 63)) & 1 != 0 => [a, b, c, d],
        _ => [0; 4],
    }
}

/// Bytes of an XSAVE area for state components, in the standard or compacted format.
fn area<P: Platform>(p: &P, components: u64, compacted: bool) -> u32 {
    /// x87 and SSE state, and the header.
    const LEGACY: u32 = 576;
    /// ECX: the component is aligned to 64 bytes in the compacted format.
    const ALIGNED: u32 = 1 << 1;

    let mut end = LEGACY;
    for i in (2..63u32).filter(|i| (components >> (i & 63)) & 1 != 0) {
        let [size, offset, flags, _] = p.cpuid(0xD, i);
        end = if !compacted {
            end.max(offset.wrapping_add(size))
        } else if flags & ALIGNED != 0 {
            (end.wrapping_add(63) & !63).wrapping_add(size)
        } else {
            end.wrapping_add(size)
        };
    }
    end
}
