# SPDX-License-Identifier: GPL-2.0
"""Planted violations: each check must find them, and nothing in good code."""

import os

import cfi
import constants
import coverage
import layers
import lib
import branches
import frames
import objects
import rules
import rust_text as rt
import series
import text
import unsafe_code

GOOD = {
    "tdx_mirror": {
        "tdx_mirror_main.rs": "mod kernel;\nmod kvm;\nmod watch;\npub mod base;\nuse ::kernel::prelude::*;\nuse kvm::entry;\n"
                              "fn f() { watch::figures::h(); }\n",
        "tdx_mirror_kunit_main.rs": "pub mod kunit;\nuse kernel::prelude::*;\nuse kunit::td::Td;\n",
        "base.rs": "pub mod addr;\npub mod level;\npub mod sys;\n",
        "base/addr.rs": "use core::fmt;\nuse super::level::Level;\n",
        "base/level.rs": "// crate::base::addr is only named in a comment\n",
        "base/sys.rs": "mod kernel;\npub use self::kernel::AtomicU64;\n",
        "base/sys/kernel.rs": "use kernel::sync::atomic::Atomic;\n",
        "mirror.rs": "mod cell;\npub mod external;\npub mod map;\npub use map::Mirror;\npub use cell::Cell;\n",
        "mirror/cell.rs": "use crate::base::{addr::Pfn, sys::AtomicU64};\n",
        "mirror/map.rs": "use super::cell::SpteCell;\nuse super::cell;\nfn f() { cell::g(); }\n"
                         "#[cfg(test)]\nmod tests { use std::vec::Vec; }\n",
        "mirror/zap.rs": "use super::map::A;\n",
        "mirror/external.rs": "use crate::base::addr::Pfn;\n",
        "mirror/lock.rs": "mod sealed {\n    pub trait S {}\n    impl S for super::T {}\n}\n",
        "tdx.rs": "pub mod sept;\nuse crate::base::addr::Gfn;\n",
        "tdx/sept.rs": "use crate::base::level::Level;\n",
        "sept.rs": "mod debt;\nuse crate::{mirror::external::E, tdx};\nfn f() { tdx::call(); debt::g(); }\n",
        "sept/debt.rs": "use crate::base::sys::AtomicU64;\n",
        "bindings.rs": "use kernel::ffi;\nmod contract;\npub(crate) use contract::*;\n",
        "bindings/contract.rs": "use super::ffi;\n",
        "kernel.rs": "pub(crate) mod rcu;\n",
        "kernel/rcu.rs": "use crate::mirror::lock::T;\nuse kernel::prelude::*;\n",
        "kvm.rs": "pub(crate) mod entry;\npub(crate) mod td;\n",
        "kvm/td.rs": "use crate::kernel::rcu::R;\nuse kernel::prelude::*;\nuse crate::mirror::Mirror;\n",
        "kvm/entry.rs": "use super::td::Td;\nuse crate::watch::figures;\nuse crate::mirror::M;\n",
        "watch.rs": "pub(crate) mod figures;\n",
        "watch/figures.rs": "use crate::kvm::td::Td;\nuse pin_init::pin_data;\n",
        "kunit/td.rs": "use crate::mirror::Mirror;\n",
        "kunit.rs": "pub mod td;\n",
    },
    "tdx_emu": {
        "tdx_emu_main.rs": "mod kernel;\nmod module;\nuse ::kernel::prelude::*;\nfn f() { crate::kernel::start(); }\n",
        "module.rs": "pub mod machine;\nmod sys;\npub use machine::Machine;\n",
        "module/machine.rs": "use core::fmt;\n",
        "module/sys.rs": "use super::Machine;\n",
        "instruments.rs": "mod hold;\n",
        "instruments/hold.rs": "use crate::module::Machine;\n",
        "kernel.rs": "use crate::module::Machine;\nuse kernel::prelude::*;\n",
    },
    "tdx_mirror_test": {
        "tdx_mirror_test_main.rs": "use kernel::prelude::*;\nmod device;\n#[path = \"../tdx_emu\"]\nmod tdx_emu {\n"
                                   "    pub mod module;\n}\npub use tdx_emu::module;\n",
        "device.rs": "use crate::module::Machine;\nuse kernel::prelude::*;\n",
    },
}

# What is planted into which file, and a part of the finding that must come.
PLANTED = [
    ("tdx_mirror/tdx.rs", "use crate::mirror::map::Mirror;\n", "tdx uses mirror::map"),
    ("tdx_mirror/tdx.rs", "use crate::mirror::Mirror;\n", "tdx uses mirror::map"),
    ("tdx_mirror/tdx/sept.rs", "fn f() { let _ = crate::mirror::map::new(); }\n", "tdx::sept uses mirror::map"),
    ("tdx_mirror/tdx.rs", "use crate::mirror as m;\nfn f() { m::map::new(); }\n", "tdx uses mirror::map"),
    ("tdx_mirror/tdx.rs", "use crate::{base::{self, addr}, sept::Sept};\n", "tdx uses sept"),
    ("tdx_mirror/mirror/map.rs", "use kernel::prelude::*;\n", "mirror::map uses the crate kernel"),
    ("tdx_mirror/mirror/map.rs", "fn f() { kernel::pr_info(); }\n", "mirror::map uses the crate kernel"),
    ("tdx_mirror/mirror/map.rs", "fn f() { ::kernel::pr_info(); }\n", "mirror::map uses the crate kernel"),
    ("tdx_mirror/mirror/map.rs", "use crate::kernel::rcu::R;\n", "mirror::map uses kernel::rcu"),
    ("tdx_mirror/mirror/map.rs", "use alloc::vec::Vec;\n", "mirror::map uses the crate alloc"),
    ("tdx_mirror/mirror/map.rs", "use std::sync::Arc;\n", "mirror::map uses the crate std"),
    ("tdx_mirror/mirror/map.rs", "extern \"C\" { fn x(); }\n", "in a pure layer"),
    ("tdx_mirror/mirror/map.rs", "use crate::tdx::Leaf;\n", "mirror::map uses tdx"),
    ("tdx_mirror/base/addr.rs", "use crate::mirror::cell::Spte;\n", "base::addr uses mirror::cell"),
    ("tdx_mirror/base/addr.rs", "use super::super::kvm::entry;\n", "base::addr uses kvm::entry"),
    ("tdx_mirror/base/sys.rs", "use ::std::vec::Vec;\n", "uses the crate std"),
    ("tdx_mirror/base/sys.rs", "use ::kernel::prelude::*;\n", "base::sys uses the crate kernel"),
    ("tdx_mirror/sept.rs", "use crate::mirror::map::Mirror;\n", "sept uses mirror::map"),
    ("tdx_mirror/sept/debt.rs", "use crate::mirror::Mirror;\n", "sept::debt uses mirror::map"),
    ("tdx_mirror/kernel/rcu.rs", "use crate::kvm::td::Td;\n", "kernel::rcu uses kvm::td"),
    ("tdx_mirror/kernel/rcu.rs", "use crate::mirror::Mirror;\n", "kernel::rcu uses mirror::map"),
    ("tdx_mirror/mirror/lock.rs", "mod inner { use super::super::super::tdx::Leaf; }\n", "mirror::lock uses tdx"),
    ("tdx_mirror/mirror/map.rs", "use super::zap::A;\n", "circle of modules: mirror::map -> mirror::zap"),
    ("tdx_mirror/base/level.rs", "use super::addr::Gfn;\n", "circle of modules: base::addr -> base::level"),
    ("tdx_mirror/kvm/td.rs", "use crate::watch::figures;\n", "kvm::td uses watch::figures"),
    ("tdx_mirror/kvm/td.rs", "use super::entry::E;\n", "circle of modules: kvm::entry -> kvm::td"),
    ("tdx_mirror/sept/debt.rs", "fn f() { super::g(); }\n", "circle of modules: sept -> sept::debt"),
    ("tdx_mirror/other.rs", "use crate::tdx::Leaf;\n", "other has no layer"),
    ("tdx_mirror/tdx_mirror_main.rs", "fn g() { kernel::rcu::g(); }\n", "main uses kernel::rcu"),
    ("tdx_mirror/other.rs", "", "other has no layer"),
    ("tdx_mirror/mirror/map.rs", "fn f<'a>(c: char) { if c == '\"' {} }\nuse std::a;\nfn g() { let _ = \"\"; }\n", "the crate std"),
    ("tdx_emu/module/machine.rs", "use crate::instruments::hold::Hold;\n", "module::machine uses instruments::hold"),
    ("tdx_emu/module/machine.rs", "use super::sys::A;\n", "circle of modules: module::machine -> module::sys"),
    ("tdx_emu/module/sys.rs", "use kernel::prelude::*;\n", "module::sys uses the crate kernel"),
    ("tdx_emu/module.rs", "#[path = \"../tdx_mirror/base.rs\"]\nmod base;\n", "each folder stands alone"),
    ("tdx_emu/tdx_emu_main.rs", "#[path = \"../tdx_mirror\"]\nmod tdx_mirror { pub mod base; }\n", "each folder stands alone"),
    ("tdx_mirror/mirror.rs", "#[path = \"../tdx_emu/module.rs\"]\nmod module;\n", "each folder stands alone"),
    ("tdx_mirror_test/device.rs", "use std::vec::Vec;\n", "device uses the crate std"),
]

UNSAFE = [
    # (file, text, part of the finding or None for no finding)
    ("tdx_mirror/mirror/table.rs", "// SAFETY: it is ours.\nlet x = unsafe { y() };\n", None),
    ("tdx_mirror/mirror/table.rs", "// SAFETY: it is ours.\nlet x = f(\n    unsafe { y() },\n);\n", None),
    ("tdx_mirror/mirror/table.rs", "let x = unsafe { y() };\n", "without a SAFETY"),
    ("tdx_mirror/mirror/table.rs", "// SAFETY: for a.\nlet a = unsafe { y() };\nlet b = unsafe { y() };\n", "tdx_mirror/mirror/table.rs:3"),
    ("tdx_mirror/mirror/table.rs", "/// Reads.\n///\n/// # Safety\n/// Valid.\n#[inline]\npub unsafe fn f() {}\n", None),
    ("tdx_mirror/mirror/table.rs", "/// Reads.\npub unsafe fn f() {}\n", "without a `# Safety`"),
    ("tdx_mirror/mirror/table.rs", "unsafe impl Sync for X {}\n", "unsafe impl without"),
    ("tdx_mirror/mirror/table.rs", "type F = unsafe extern \"C\" fn(u64);\n", None),
    ("tdx_mirror/mirror/map.rs", "// SAFETY: no.\nunsafe { y() };\n", "outside the allowed"),
    ("tdx_mirror/mirror/map.rs", "// unsafe\nlet s = \"unsafe\"; let r = r#\"unsafe \" \"#;\n/* unsafe */\n", None),
    ("tdx_emu/module/tree.rs", "unsafe { y() };\n", "outside the allowed"),
]

DISASSEMBLY = """
0000000000000000 <_RNvNtCs1234_4main6mirror3map>:
   0:	push   %rbx
			10: R_X86_64_PLT32	_RNvNtCsabc_4core9panicking5panic-0x4
0000000000000040 <good>:
			45: R_X86_64_PLT32	rust_helper_udelay-0x4
0000000000000080 <index>:
			81: R_X86_64_PLT32	_RNvNtNtCsabc_4core5slice5index26slice_end_index_len_fail-0x4
			91: R_X86_64_PC32	_RNvNtNtCsabc_4core9panicking11panic_const24panic_const_add_overflow-0x4
"""


PANICKING = """#![no_std]
#[no_mangle] pub fn index(a: &[u8], i: usize) -> u8 { a[i] }
#[no_mangle] pub fn unwrapped(a: Option<u8>) -> u8 { a.unwrap() }
#[no_mangle] pub fn added(a: u8, b: u8) -> u8 { a + b }
#[no_mangle] pub fn sliced(a: &[u8], n: usize) -> &[u8] { &a[n..] }
#[no_mangle] pub fn deep(f: fn(&mut [u8; 1500])) { f(&mut [1; 1500]) }
#[no_mangle] pub fn fine(a: &[u8], i: usize) -> u8 { a.get(i).copied().unwrap_or(0).wrapping_add(1) }
"""


PATCH = """--- a/arch/x86/kvm/vmx/tdx.c
+++ b/arch/x86/kvm/vmx/tdx.c
@@ -1,2 +1,3 @@
 	get_user_pages_fast(old);
-	kmap_local_page(old);
+	{added}
 	clear_page(old);
"""

# A line that a patch adds, the function that looks at it, and whether it finds something.
BREACHES = [
    ("r = get_user_pages_fast(hva, 1, 0, &page);", lambda name, code: rules.touches(code), True),
    ("void *va = kmap_local_page(page);", lambda name, code: rules.touches(code), True),
    ("memcpy(page_to_virt(page), from, PAGE_SIZE);", lambda name, code: rules.touches(code), True),
    ("/* memcpy() would fault */", lambda name, code: rules.touches(code), False),
    ("tdx_mirror_set_page_private(page, next);", lambda name, code: rules.touches(code), False),
    ("_ASM_EXTABLE(1b, 2b);", rules.fixes_up, True),
    ("return fixup_user_fault(mm, hva, 0, NULL);", rules.fixes_up, True),
    ("return RET_PF_RETRY;", rules.fixes_up, False),
    ("#define KVM_TDX_MIRROR_STATS 9", rules.new_uapi, True),
    ("case KVM_TDX_MIRROR_STATS:", rules.new_uapi, True),
    ("static const struct file_operations f = { .unlocked_ioctl = g };", rules.new_uapi, True),
    ("int r = kvm_tdx_mirror_map(vcpu);", rules.new_uapi, False),
    ("p = kzalloc(sizeof(*p), GFP_KERNEL);", lambda name, code: rules.uncharged(code), True),
    ("p = kzalloc(sizeof(*p), GFP_KERNEL_ACCOUNT);", lambda name, code: rules.uncharged(code), False),
    ("p = (void *)get_zeroed_page(GFP_ATOMIC);", lambda name, code: rules.uncharged(code), True),
]

SECRETS = [
    ("The host cannot read the page since it is encrypted.", True),
    ("Ciphertext is all that a read would give.", True),
    ("KVM_MEMORY_ENCRYPT_OP takes the sub-command.", False),
    ("The TDX module keeps the page from the host.", False),
]

DESIGN = """Alternatives that were rejected
===============================

1. *One lock*: simple, but then faults on different entries would wait for each other.
2. *Two locks*: no.
3. Not an alternative.

Next
====

4. *Somewhere else*: in another section, so it does not count at all here.
"""

WARNING = "void tdx_mirror_{name}(void)\n{{\n\t{body}\n}}\n"


def breaches(result):
    """Planted breaches of what rules.py looks for."""
    for line, look, wanted in BREACHES:
        for name, code in rules.added_code(PATCH.replace("{added}", line)).items():
            if bool(look(name, code)) != wanted:
                result.bad(f"rules: {line!r} gave {look(name, code)}")
    if not rules.fixes_up("p: arch/x86/mm/fault.c", "int x;") or not rules.new_uapi("p: include/uapi/linux/kvm.h", ""):
        result.bad("rules: a changed fault handler or header of userspace is not found")
    for line, wanted in SECRETS:
        if bool(rules.argues_from_secrecy("x.rst", line)) != wanted:
            result.bad(f"rules: {line!r}")
    if [len(item.split()) > 12 for item in rules.alternatives_in(DESIGN)] != [True, False]:
        result.bad(f"rules: alternatives: {rules.alternatives_in(DESIGN)}")
    sources = {"tdx_mirror/kernel/a.c": WARNING.format(name="a", body="WARN_ON_ONCE(1);")
               + WARNING.format(name="b", body="WARN_ON_ONCE(1);\n\tWARN_ONCE(1, x);") + "#define C WARN_ON(1)\n"
               + WARNING.format(name="d", body="return;")}
    sites, found = rules.warn_sites(sources)
    if set(sites) != {"tdx_mirror_a", "tdx_mirror_b"} or len(found) != 2:
        result.bad(f"rules: warnings: {sites} {found}")
    fired = rules.fired_in(['n = log_warnings("tdx_mirror_a"); check(n == 1);', 'check(!log_warnings("tdx_mirror_b"));',
                            'check(log_warnings("tdx_mirror_c") == 1);'])
    if fired != {"tdx_mirror_a", "tdx_mirror_c"}:
        result.bad(f"rules: fired: {fired}")
    return len(BREACHES) + len(SECRETS) + 4


# A file, its text, what its tests show, and a part of each finding.
COVERED = (
    ("a.rs", "// Shows: R1, B2.\n#[test]\nfn both() {}\n#[test]\nfn neither() {}\n", {"both": ["R1", "B2"]}, ()),
    ("a.rs", "/// Says.\n// Shows: R5.\n// Why.\n#[test]\n#[ignore]\nfn ignored() {}\n", {"ignored": ["R5"]}, ()),
    ("a.rs", "// Shows: R1.\n// Shows: R2.\n#[test]\nfn two_lines() {}\n", {"two_lines": ["R1", "R2"]}, ()),
    ("a.rs", "// Shows: R1.\nfn helper() {}\n#[test]\nfn test() {}\n", {}, ("a.rs:1: a Shows line above no test",)),
    ("a.rs", "// Shows: R1.\n\nconst A: u8 = 1;\n#[test]\nfn test() {}\n", {}, ("above no test",)),
    ("a.rs", "// Shows: R999.\n#[test]\nfn far() {}\n", {"far": ["R999"]}, ("no requirement R999",)),
    ("a.rs", "// Shows: R1 R2.\n#[test]\nfn spaces() {}\n", {}, ("not `Shows: R4, B6.`",)),
    ("a.rs", "// Shows R1.\n#[test]\nfn no_colon() {}\n", {}, ("not `Shows: R4, B6.`",)),
    ("a.rs", "// A test. Shows: R1.\n#[test]\nfn in_a_sentence() {}\n", {}, ()),
    ("a.rs", "#[test]\nfn r1_b2_in_the_name() {}\nfn r3_is_a_helper() {}\n", {}, ("r1_b2_in_the_name: a number",)),
    ("a.rs", "#[test]\nfn r_7() {}\n#[test]\nfn random_b7_x() {}\n", {}, ()),
    ("tdx_mirror/kunit/a.rs", "// Shows: R4.\npub fn case(td: &Td) -> Outcome {\n", {"case": ["R4"]}, ()),
    ("tdx_mirror/kunit/a.rs", "// Shows: R4.\npub fn helper(td: &Td) {\n", {}, ("above no test",)),
    ("a.c", "/* Shows: R6. */\nTEST_F(x, a)\n/* Shows: B3. */\nTEST(b)\n/* Shows: R7. */\nTEST_F_TIMEOUT(x, c, 9)\n",
     {"a": ["R6"], "b": ["B3"], "c": ["R7"]}, ()),
    ("a.c", "/* Shows: R8. */\n/* Why. */\nstatic void test_d(void)\n{\n", {"test_d": ["R8"]}, ()),
    ("a.c", "/* Shows: R8. */\nstatic void help(void)\n{\n", {}, ("above no test",)),
    ("a.c", "TEST_F(x, r6_a)\n", {}, ("r6_a: a number",)),
    ("a.py", "    # Shows: R7.\n    def test_x(self):\n", {"test_x": ["R7"]}, ()),
    ("a.py", "    # Shows: R7.\n    def help(self):\n", {}, ("above no test",)),
    ("a.sh", "# Shows: R7.\ntest_x()\n", {"test_x": ["R7"]}, ()),
)


def covered(result):
    """Which lines count as what a test shows."""
    for name, source, shown, wanted in COVERED:
        found, findings = coverage.shown_in(name, source)
        if found != shown:
            result.bad(f"requirements: {source!r} in {name} shows {found}")
        if len(findings) != len(wanted) or any(w not in f for w, f in zip(wanted, findings)):
            result.bad(f"requirements: {source!r} in {name} gave {findings or 'nothing'}, not {wanted or 'nothing'}")
    return len(COVERED)


def compiled(result):
    """Functions that a real compiler made panic are found in a real object."""
    if not lib.need(result, "rustc", "rustc") or not lib.need(result, "objdump", "binutils"):
        return
    with lib.temp() as folder:
        source = os.path.join(folder, "plant.rs")
        with open(source, "w", encoding="utf-8") as f:
            f.write(PANICKING)
        status, out = lib.run(lib.in_root(
            ["rustc", "--edition", "2021", "--crate-type", "lib", "--emit", "obj", "-O", "-Coverflow-checks=y",
             "-Csymbol-mangling-version=v0", "-o", source[:-3] + ".o", source]))
        if status:
            result.bad(f"panic-symbols: rustc: {out.strip()[-300:]}")
            return
        _, out = lib.run(lib.in_root(["objdump", "-dr", "--no-show-raw-insn", source[:-3] + ".o"]))
    sizes = frames.frames_of(out)
    if not 1500 <= sizes.get("deep", 0) < 1700 or not sizes.get("fine", 999) < 100:
        result.bad(f"frames: {sizes} in a planted object")
    found = {function for function, _ in objects.panicking_calls(out)}
    if found != {"index", "unwrapped", "added", "sliced"}:
        result.bad(f"panic-symbols: found {sorted(found)} in a planted object")

# Functions and their stack: a way out before the frame is made, one that aligns it, one that touches each
# page on the way, one behind a computed jump, and one with a frame pointer.
STACK = """
Disassembly of section .text:

0000000000000000 <early>:
   0:\tpush   %rbp
   1:\tpush   %rbx
   2:\tje     10 <early+0x10>
   4:\tsub    $0x400,%rsp
   8:\tcall   30 <other>
   c:\tadd    $0x400,%rsp
  10:\tpop    %rbx
  11:\tpop    %rbp
  12:\tjmp    13 <early+0x13>
\t\t\t13: R_X86_64_PLT32\t__x86_return_thunk-0x4

0000000000000020 <aligned>:
  20:\tpush   %rbp
  21:\tmov    %rsp,%rbp
  24:\tand    $0xffffffffffffffc0,%rsp
  28:\tsub    $0x80,%rsp
  2c:\tleave
  2d:\tpush   %rax
  2e:\tret

0000000000000030 <pages>:
  30:\tlea    -0x3000(%rsp),%r11
  38:\tsub    $0x1000,%rsp
  3c:\tmovq   $0x0,(%rsp)
  40:\tcmp    %r11,%rsp
  43:\tjne    38 <pages+0x8>
  45:\tsub    $0x20,%rsp
  49:\tret

0000000000000050 <computed>:
  50:\tsub    $0x10,%rsp
  54:\tjmp    *%rax
  56:\tsub    $0x500,%rsp
  5a:\tret
"""
STACKS = {"early": 16 + 1024, "aligned": 8 + 64 + 128, "pages": 0x3000, "computed": 16 + 0x500}

# A function with one site: off it is a no-op, behind it is what nobody else reaches.
SITE = """
Disassembly of section .text:

0000000000000010 <map>:
  10:\tpush   %rbp
  11:\tnopl   0x0(%rax,%rax,1)
  16:\tcall   30 <other>
  1b:\tpop    %rbp
  1c:\tjmp    1d <map+0xd>
\t\t\t1d: R_X86_64_PLT32\t__x86_return_thunk-0x4
  21:\tcall   40 <watch::trace::busy::emit>
  26:\tjmp    16 <map+0x6>

0000000000000030 <other>:
  30:\tret

0000000000000040 <watch::trace::busy::emit>:
  40:\tcall   45 <watch::trace::busy::emit+0x5>
\t\t\t41: R_X86_64_PLT32\trust_do_trace_tdx_mirror_busy-0x4
  45:\tret
"""
SITE_TABLE = """
0000000000000000 R_X86_64_PC32     .text+0x0000000000000011
0000000000000004 R_X86_64_PC32     .text+0x0000000000000021
0000000000000008 R_X86_64_PC64     __tracepoint_tdx_mirror_busy+0x000000000000000a
"""
SITES = (
    ("", "", ""),
    ("nopl   0x0(%rax,%rax,1)", "jmp    21 <map+0x11>", "not a no-op"),
    ("call   30 <other>", "call   40 <watch::trace::busy::emit>", "map observes without a branch"),
    ("30:\tret", "30:\tjmp    40 <watch::trace::busy::emit>", "observes without a branch"),
    ("pop    %rbp", "jne    21 <map+0x11>", "map observes without a branch"),
)


def selftest(result):
    count = 1 + breaches(result) + covered(result)
    compiled(result)
    for folder in GOOD:
        for finding in layers.examine(folder, lambda f: GOOD[f], False):
            result.bad(f"layers: a finding in good code: {finding}")
    for name, planted, wanted in PLANTED:
        folder, name = name.split("/", 1)
        sources = dict(GOOD[folder])
        sources[name] = sources.get(name, "") + planted
        found = layers.examine(folder, lambda f: sources if f == folder else GOOD[f], False)
        count += 1
        if not any(wanted in f for f in found):
            result.bad(f"layers: {planted.strip()!r} in {folder}/{name} gave {found or 'nothing'}, not `{wanted}`")
    for name, source, wanted in UNSAFE:
        _, found = unsafe_code.examine(name, source)
        count += 1
        if (wanted is None and found) or (wanted is not None and not any(wanted in f for f in found)):
            result.bad(f"unsafe: {source!r} in {name} gave {found or 'nothing'}, not `{wanted}`")
    count += 1
    if len(unsafe_code.unused({})) != len(unsafe_code.ALLOWED) or unsafe_code.unused(dict.fromkeys(unsafe_code.ALLOWED, 1)):
        result.bad("unsafe: an allowance that nothing needs is not found")
    for name, source, wanted in (("tdx_mirror/mirror/map.rs", "//! Maps.\n", 1), ("tdx_mirror/mirror/table.rs", "", 0),
                                 ("tdx_mirror/mirror/map.rs", "//! Maps.\n\n#![forbid(unsafe_code)]\n", 0),
                                 ("tdx_mirror/mirror/map.rs", "// #![forbid(unsafe_code)]\n", 1),
                                 ("tdx_mirror/mirror.rs", "", 0), ("tdx_mirror/sept.rs", "", 1), ("tdx_mirror/kvm/td.rs", "", 0)):
        count += 1
        if len(unsafe_code.unguarded(name, source)) != wanted:
            result.bad(f"unsafe: {source!r} in {name} has {wanted}, and another number was found")
    exceptions = lib.Exceptions(["a", "b"])
    count += 2
    if not exceptions.hold(lambda e: e == "a") or exceptions.hold(lambda e: e == "c") or len(exceptions.unneeded()) != 1:
        result.bad(f"exceptions: {exceptions.unneeded()}")
    found = layers.examine("tdx_mirror_test", lambda f: {**GOOD[f], "device.rs": ""})
    if not any("no file of device uses module" in f for f in found):
        result.bad(f"layers: an arrow that nothing uses gave {found}")
    calls = objects.panicking_calls(DISASSEMBLY)
    count += 1
    if [c[0] for c in calls] != ["_RNvNtCs1234_4main6mirror3map", "index", "index"]:
        result.bad(f"panic-symbols: {calls}")
    for old, new, wanted in SITES:
        code = SITE.replace(old, new)
        _, found = branches.examine(code, SITE_TABLE, lib.Exceptions(branches.OURS), lambda names: {n: n for n in names})
        count += 1
        if bool(wanted) != bool(found) or (wanted and not any(wanted in f for f in found)):
            result.bad(f"branches: {new!r} gave {found or 'nothing'}, not `{wanted}`")
    for subject, wanted in (("tdx_mirror: kvm: cut it", 0), ("tdx_mirror: kunit, host tests: cut it", 0), ("x", 1),
                            ("tdx_mirror: docs/kvm: cut it", 1), ("tdx_mirror: check: cut it.", 1), ("kvm: cut it", 1),
                            ("tdx_mirror: sept: " + "x" * 60, 1)):
        count += 1
        if len(series.subject_findings(subject, {"kvm", "kunit", "host tests", "check", "sept"})) != wanted:
            result.bad(f"subjects: {subject!r}")
    count += 1
    if frames.frames_of(STACK) != STACKS:
        result.bad(f"frames: {frames.frames_of(STACK)}, not {STACKS}")
    for line, wanted in (("see deb.debian" ".org now", True), ("cp a /wo" "rk/x", True), ("a plain line", False)):
        count += 1
        if bool(text.PLACES.search(line)) != wanted:
            result.bad(f"text: {line!r}")
    for line, wanted in (("``create()`` and map() are", [(1, None, "create"), (1, None, "map")]), ("a\n``Mirror::change()``", [(2, "Mirror", "change")]),
                         ("``Transition::classify(old, new)``", [(1, "Transition", "classify")]), ("make(1), ``x``, f(a)", []),
                         ("so::\n\n  a()\n\nb()", [(5, None, "b")])):
        count += 1
        if list(text.calls_of(line)) != wanted:
            result.bad(f"functions: {line!r} names {list(text.calls_of(line))}")
    for source, wanted in (("use a::{b, c};\n", [1]), ("fn f() {}\nuse a::{\n    b, c,\n    d,\n};\n", [3]), ("use a::b;\n", []),
                           ("use a::{\n    b,\n    c::{\n        d,\n        e, //\n    }, //\n};\nf(a, b);\n", [])):
        count += 1
        if text.horizontal(source) != wanted:
            result.bad(f"imports: {source!r} gave {text.horizontal(source)}")
    for line, wanted in (("// TO" "DO later", True), ("TO" "DOS", False)):
        count += 1
        if bool(text.OPEN.search(line)) != wanted:
            result.bad(f"text: {line!r}")
    for source, wanted in (
            ("fn f() { a.unwrap(); }\n#[cfg(test)]\nmod t { fn g() { b.unwrap(); } }\n", 1),
            ("const _: () = assert!(A < B);\nconst _: () = {\n    assert!(C);\n    assert!(D);\n};\n", 0),
            ("const N: u32 = 3;\nfn f() { assert!(x); }\n", 1),
            ("const fn f() { panic!(); }\n", 1)):
        count += 1
        plain = text.without_const(rt.without_tests(rt.blank(source)))
        if len(text.PANICS.findall(plain)) != wanted:
            result.bad(f"panics: {source!r} has {wanted}, and another number was found")
    for macro, value, wanted in (("0x10u", 16, 0), ("(1u << 31)", 1 << 31, 0), ("(~0u >> 28)", -1, 1), ("(0xffffffffu + 1u)", 1 << 32, 1)):
        count += 1
        with lib.temp() as folder:
            header = os.path.join(folder, "macro.h")
            with open(header, "w", encoding="utf-8") as f:
                f.write(f"#define M {macro}\n")
            if len(constants.wrong(header, f"pub const M: i64 = {value};\n")[0]) != wanted:
                result.bad(f"constants: {macro} as {value}")
    for c_type, rust_type, wanted in (("enum e", "u32", 1), ("struct s *", "*mut s", 0), ("struct s *", "&mut s", 1), ("long", "ffi::c_long", 0)):
        count += 1
        with lib.temp() as folder:
            header, contract = os.path.join(folder, "ops.h"), os.path.join(folder, "contract.rs")
            with open(header, "w", encoding="utf-8") as f:
                f.write(f"enum e {{ A }}; struct s {{ int x; }}; struct ops {{ void (*call)({c_type} a); }};\n")
            with open(contract, "w", encoding="utf-8") as f:
                f.write("use super::ffi;\n#[repr(C)]\npub struct s { pub x: ffi::c_int }\npub struct ops {\n"
                        f'    pub call: ::core::option::Option<unsafe extern "C" fn(a: {rust_type})>,\n}}\n')
            messages, found = cfi.wrong(header, contract)
            if (len(messages), found) != (wanted, 1):
                result.bad(f"cfi: {c_type} and {rust_type} gave {messages}")
    result.note = f"{count} cases"
