# SPDX-License-Identifier: GPL-2.0
"""Constants of the bindings: what C makes of the macros that they come from.

bindgen works macros out in signed 64-bit integers, so that one with `~` or with
unsigned arithmetic silently becomes another value than C gives it.
"""

import os
import re

import lib

CONSTANT = re.compile(r"^pub const (\w+): ([iu]\w+) = (-?\d+);$", re.M)


def program(header, rust):
    """(C source that compiles if each constant of the bindings is the macro's, how many there are)."""
    lines, found = [f'#include "{header}"'], CONSTANT.findall(rust)
    for name, _, value in found:
        literal = f"{value}ULL" if not value.startswith("-") else f"({value}LL)"
        # Of 64 bits the sign is a matter of the cast, and no bit is lost.
        same = (f"(sizeof({name}) == 8 ? (unsigned long long)({name}) == (unsigned long long){literal} :"
                f" (__int128)({name}) == (__int128){literal})")
        lines.append(f'_Static_assert({same}, "{name} is not {value}");')
    return "\n".join(lines) + "\n", len(found)


def wrong(header, rust):
    """Messages about constants that differ, and how many constants there are."""
    source, count = program(header, rust)
    flags = ["-D__KERNEL__", "-D__BINDGEN__", "-fno-builtin", "-fsyntax-only", "-x", "c", "-"]
    status, out = lib.run(lib.in_root(["gcc", *flags]), text=source)
    messages = re.findall(r'static assertion failed: "([^"]+)"', out)
    if status and not messages:
        messages = [out.strip()[-300:] or f"gcc ended with status {status}"]
    return messages, count


def constants(result):
    headers, sources = lib.of_product("bindings/bindings_helper.h"), lib.of_product("bindings/contract.rs")
    if not headers or not sources:
        result.missing("tdx_mirror/bindings/{bindings_helper.h,contract.rs}", "run this in a whole checkout")
        return
    if not lib.need(result, "gcc", "gcc"):
        return
    count = 0
    for header, source in zip(headers, sources):
        messages, found = wrong(os.path.join(lib.TOP, header), lib.read(source))
        count += found
        for message in messages:
            result.bad(f"{source}: {message}, says the C compiler")
    if not count:
        result.bad("the bindings have no constant: has the form of contract.rs changed?")
    result.note = f"{count} constants"
    result.todo = "write the macro without ~ and without unsigned arithmetic, as the number that it is"
