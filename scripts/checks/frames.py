# SPDX-License-Identifier: GPL-2.0
"""No function of the product needs much of the kernel's stack."""

import os
import re

import branches
import lib
import objects

OBJECT = "tdx_mirror_main.o"
# Of 16 KiB that all of a system call shares.
MOST = 1024
ENDS = ("jmp", "ret", "ud2", "int3", "hlt")


def number(text):
    return int(text, 16)


def deeper(mnemonic, operands, depth, base):
    """(bytes on the stack after an instruction, at most during it, bytes below the frame pointer's value)."""
    if mnemonic.startswith("push"):
        return depth + 8, depth + 8, base
    if mnemonic.startswith("pop"):
        return depth - 8, depth, base
    if found := re.fullmatch(r"\$(-?0x[0-9a-f]+),%rsp", operands):
        by = number(found.group(1))
        if by >= 1 << 63:
            by -= 1 << 64
        if mnemonic.startswith("sub"):
            return depth + by, depth + by, base
        if mnemonic.startswith("add"):
            return depth - by, depth, base
        if mnemonic.startswith("and"):
            # At most one alignment.
            return depth - by, depth - by, base
    if found := re.fullmatch(r"(-?)(0x[0-9a-f]+)\(%rsp\),(%\w+)", operands):
        by = number(found.group(2)) * (1 if found.group(1) else -1)
        if mnemonic.startswith("lea") and found.group(3) == "%rsp":
            return depth + by, depth + by, base
        if mnemonic.startswith("lea") and by > 0:
            # The end of a loop that touches each page on the way.
            return depth, depth + by, base
    if mnemonic.startswith("mov") and operands == "%rsp,%rbp":
        return depth, depth, depth
    if mnemonic.startswith("mov") and operands == "%rbp,%rsp":
        return base, depth, base
    if found := re.fullmatch(r"-(0x[0-9a-f]+)\(%rbp\),%rsp", operands):
        return base + number(found.group(1)), depth, base
    if mnemonic.startswith("leave"):
        return base - 8, depth, base
    return depth, depth, base


def most_of(start, end, code):
    """The most bytes that the function between two addresses has on the stack."""
    order = [at for at in sorted(code) if start <= at < end]
    following = dict(zip(order, order[1:]))
    seen, most = {}, 0
    # What only a computed jump reaches comes after it, with the stack as there.
    left, unknown = [(start, 0, 0)], (0, 0)
    while True:
        while left:
            at, depth, base = left.pop()
            if at not in following and at != order[-1] or at in seen:
                continue
            seen[at] = depth
            mnemonic, operands, symbol = code[at]
            depth, during, base = deeper(mnemonic, operands, depth, base)
            most = max(most, depth, during)
            target = re.match(r"([0-9a-f]+)(?: <|$)", operands)
            if mnemonic.startswith("j") and target and not symbol:
                left.append((int(target.group(1), 16), depth, base))
            elif mnemonic == "jmp":
                unknown = max(unknown, (depth, base))
            if not mnemonic.startswith(ENDS) and at in following:
                left.append((following[at], depth, base))
        rest = [at for at in order if at not in seen]
        if not rest:
            return most
        left.append((rest[0], *unknown))


def frames_of(disassembly):
    """{function: bytes} of `objdump -dr`."""
    found = {}
    for functions, code in branches.disassembled(disassembly).values():
        starts = sorted(functions)
        for start, end in zip(starts, starts[1:] + [float("inf")]):
            if any(start <= at < end for at in code):
                found[functions[start]] = max(found.get(functions[start], 0), most_of(start, end, code))
    return found


def frames(result):
    """Each function of the product's Rust keeps below a bound, with the options of the debug kernel."""
    if not lib.need(result, "objdump", "binutils"):
        return
    built = objects.objects().get(OBJECT)
    if not built:
        result.bad(f"{OBJECT} is not built")
        result.todo = "make modules"
        return
    status, out = lib.run(lib.in_root(["objdump", "-dr", "--no-show-raw-insn", os.path.relpath(built, lib.TOP)]))
    found = frames_of(out)
    if status or not found:
        result.bad(f"objdump {OBJECT}: {out.strip()[-200:]}")
        return
    large = {function: size for function, size in found.items() if size > MOST}
    names = objects.plain_names([*large, max(found, key=found.get)])
    for function in sorted(large, key=large.get, reverse=True):
        result.bad(f"{names[function]}: {large[function]} bytes of stack, at most {MOST}")
    function = max(found, key=found.get)
    result.note = f"{len(found)} functions, the largest {found[function]} bytes in {names[function]}"
    result.todo = "initialise and drop in place; large values belong into the object, not on the stack"
