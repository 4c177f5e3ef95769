# SPDX-License-Identifier: GPL-2.0
"""Type ids of kCFI: what C and Rust make of each function pointer that they share.

With CONFIG_CFI an indirect call is an oops unless the caller's type id equals the
function's. clang and rustc work the ids out apart, from names and not from the ABI: an
enum is another type than the integer that has its size, and a reference another one
than a pointer. A Rust function can only stand in a field of the bindings if it has
exactly the field's type, and a call through one has that type too, so to compare the
fields is to compare both directions.
"""

import os
import re

import lib

STRUCT = re.compile(r"^pub struct (\w+) \{\n(.*?)^\}", re.M | re.S)
FIELD = re.compile(r"pub (\w+): ::core::option::Option<\s*(unsafe extern \"C\" fn\(.*?)\s*,?\s*>,", re.S)
# As in rust/ffi.rs of the kernel; what is not named there is core's.
FFI = """pub mod ffi {
    pub use core::ffi::{c_int, c_longlong, c_short, c_uchar, c_uint, c_ulonglong, c_ushort, c_void};
    pub type c_char = u8;
    pub type c_schar = i8;
    pub type c_long = isize;
    pub type c_ulong = usize;
}
"""
CLANG = ["clang", "--target=x86_64-linux-gnu", "-D__KERNEL__", "-D__BINDGEN__", "-O1", "-funsigned-char", "-fsanitize=kcfi",
         "-fsanitize-cfi-icall-experimental-normalize-integers", "-S"]
# Sanitizers are unstable options, which the kernel allows itself in the same way.
RUSTC = ["env", "RUSTC_BOOTSTRAP=1", "rustc", "--edition=2021", "-O", "-Cpanic=abort", "-Zmerge-functions=disabled",
         "-Zsanitizer=kcfi", "-Zsanitizer-cfi-normalize-integers", "--emit=asm"]


def pointers(bindings):
    """(structure, field, type in Rust) of each function pointer."""
    return [(struct, field, " ".join(kind.split()))
            for struct, body in STRUCT.findall(bindings) for field, kind in FIELD.findall(body)]


def c_source(header, found):
    """Declares a function of each type and takes its address, which has clang emit the id."""
    # What is a keyword of Rust has an underline in the bindings.
    lines = [f'#include "{header}"'] + [
        f"__typeof__(*((struct {struct} *)0)->{field.rstrip('_')}) c_{struct}__{field};" for struct, field, _ in found]
    lines.append("void *const addresses[] = {" + ", ".join(f"(void *)c_{s}__{f}" for s, f, _ in found) + "};")
    return "\n".join(lines) + "\n"


def rust_source(contract, found):
    """Defines a function of each type, in front of which rustc puts the id."""
    lines = ["#![crate_type = \"lib\"]", "#![no_std]", "#![allow(warnings)]", FFI,
             f'#[path = "{contract}"] pub mod contract;', "use contract::*;"]
    for struct, field, kind in found:
        head, rest = kind.split("fn(", 1)
        lines.append(f"#[no_mangle] pub {head}fn r_{struct}__{field}({rest} {{ loop {{}} }}")
    return "\n".join(lines) + "\n"


def ids(c_asm, rust_asm):
    """Name to id, of C and of Rust."""
    of_c = {name: int(value, 0) & 0xffffffff
            for name, value in re.findall(r"^\s*\.set\s+__kcfi_typeid_c_(\w+), (-?\w+)", c_asm, re.M)}
    of_rust = {name: int(value, 0) & 0xffffffff
               for name, value in re.findall(r"^__cfi_r_(\w+):.*?movl\s+\$(-?\w+), %eax", rust_asm, re.M | re.S)}
    return of_c, of_rust


def compile_both(header, contract, found):
    """(C's assembly, Rust's assembly, what went wrong)."""
    with lib.temp() as folder:
        names = {leaf: os.path.join(folder, leaf) for leaf in ("p.c", "c.s", "p.rs", "rust.s")}
        for leaf, text in (("p.c", c_source(header, found)), ("p.rs", rust_source(contract, found))):
            with open(names[leaf], "w", encoding="utf-8") as f:
                f.write(text)
        for command in (CLANG + ["-o", names["c.s"], names["p.c"]], RUSTC + ["-o", names["rust.s"], names["p.rs"]]):
            status, out = lib.run(lib.in_root(command))
            if status:
                return "", "", f"{command[0] if command[0] != 'env' else 'rustc'}: {out.strip()[-400:]}"
        return lib.read(names["c.s"]), lib.read(names["rust.s"]), None


def wrong(header, contract):
    """Messages about pointers whose ids differ, and how many pointers there are."""
    found = pointers(lib.read(contract))
    if not found:
        return ["the bindings have no function pointer: has the form of contract.rs changed?"], 0
    c_asm, rust_asm, failed = compile_both(header, contract, found)
    if failed:
        return [failed], len(found)
    of_c, of_rust = ids(c_asm, rust_asm)
    messages = []
    for struct, field, kind in found:
        name = f"{struct}__{field}"
        c_id, rust_id = of_c.get(name), of_rust.get(name)
        if c_id is None or rust_id is None:
            messages.append(f"{struct}.{field}: no id of {'C' if c_id is None else 'Rust'}'s was found")
        elif c_id != rust_id:
            messages.append(f"{struct}.{field}: {c_id:#010x} in C, {rust_id:#010x} in Rust, {kind}")
    return messages, len(found)


def cfi(result):
    headers, sources = lib.of_product("bindings/bindings_helper.h"), lib.of_product("bindings/contract.rs")
    if not headers or not sources:
        result.missing("tdx_mirror/bindings/{bindings_helper.h,contract.rs}", "run this in a whole checkout")
        return
    if not lib.need(result, "clang", "clang") or not lib.need(result, "rustc", "rustc"):
        return
    count = 0
    for header, source in zip(headers, sources):
        messages, found = wrong(os.path.join(lib.TOP, header), os.path.join(lib.TOP, source))
        count += found
        for message in messages:
            result.bad(f"{source}: {message}")
    result.note = f"{count} function pointers"
    result.todo = "no enum, reference, or Option of one in a type that both sides call: integers and raw pointers"
