# SPDX-License-Identifier: GPL-2.0
"""What observes the mirror costs one instruction where nobody looks: in the
built object each site is one no-op, and nothing that only a tracepoint, the
recorder or the timing needs is reached as long as the branches are off."""

import os
import re

import lib
import objects

OBJECT = "tdx_mirror_main.o"
# Each name begins with tdx_mirror_, as its symbols are the kernel's as a whole.
EVENTS = ("spte_changed", "fault", "zap", "seamcall", "busy", "kick", "track", "quarantine", "leak", "bug")
# Where what is observed goes to, and the clock.
SINK = re.compile(r"rust_do_trace_\w+$|tdx_mirror_cycles$")
# Functions that exist for what is observed, behind the branches.
OURS = (
    r"watch::trace::\w+::emit", "watch::trace::changed", "watch::trace::contended", "watch::trace::kept",
    "kernel::tsc::cycles", "HookSeamcalls>?::traced", "HookSeamcalls>?::traced_kick", "KernelVm>?::timed",
)

FUNCTION = re.compile(r"^([0-9a-f]+) <([^>]+)>:$")
SECTION = re.compile(r"^Disassembly of section (\S+):$")
INSTRUCTION = re.compile(r"^\s+([0-9a-f]+):\t(?:(?:cs|ds|es|notrack|bnd|rep\w*|lock|data16) )*(\S+)\s*(.*)$")
RELOCATION = re.compile(r"^\s+[0-9a-f]+:\s+R_\w+\s+(\S+)")
ENTRY = re.compile(r"^([0-9a-f]+) +R_X86_64_PC(?:32|64) +(\S+?)([+-]0x[0-9a-f]+)?$")
NOTHING = re.compile(r"(data16 )*nop[lw]?\b|xchg +%ax,%ax")


def disassembled(text):
    """section -> (addresses of functions -> name, address -> (mnemonic, operands, symbol))."""
    sections, current, last = {}, None, None
    for line in text.split("\n"):
        if head := SECTION.match(line):
            current = sections.setdefault(head.group(1), ({}, {}))
        elif current is None:
            continue
        elif head := FUNCTION.match(line):
            current[0][int(head.group(1), 16)] = head.group(2)
        elif where := RELOCATION.match(line):
            if last in current[1]:
                mnemonic, operands, _ = current[1][last]
                current[1][last] = (mnemonic, operands, re.sub(r"[-+]0x[0-9a-f]+$", "", where.group(1)))
        elif code := INSTRUCTION.match(line):
            last = int(code.group(1), 16)
            current[1][last] = (code.group(2), code.group(3), None)
    return sections


def jump_table(text):
    """[(section, address of the site, key)] of `objdump -r -j __jump_table`."""
    rows = {}
    for line in text.split("\n"):
        if entry := ENTRY.match(line):
            rows[int(entry.group(1), 16)] = (entry.group(2), int(entry.group(3) or "0", 16))
    # A word for the site, one for the target, two for the key.
    return [(*rows[at], rows[at + 8][0]) for at in sorted(rows) if at % 16 == 0 and at + 8 in rows]


def references(functions, code):
    """function -> the symbols that it refers to while all branches are off."""
    starts = sorted(functions)
    order = sorted(code)
    following = dict(zip(order, order[1:]))
    found = {}
    for start, end in zip(starts, starts[1:] + [float("inf")]):
        seen, left, symbols = set(), [start], set()
        while left:
            at = left.pop()
            if at in seen or at not in code or not start <= at < end:
                continue
            seen.add(at)
            mnemonic, operands, symbol = code[at]
            target = re.match(r"([0-9a-f]+)(?: <|$)", operands)
            jump = mnemonic.startswith("j") or mnemonic.startswith("call")
            if symbol:
                symbols.add(symbol)
            elif jump and target:
                place = int(target.group(1), 16)
                symbols.update([functions[place]] if place in functions else [])
                if not mnemonic.startswith("call"):
                    left.append(place)
            if mnemonic not in ("jmp", "ret", "ud2") and at in following:
                left.append(following[at])
        found.setdefault(functions[start], set()).update(symbols)
    return found


def reaching(refers):
    """The functions from which a sink is reached while all branches are off."""
    found = set()
    while True:
        more = {f for f, symbols in refers.items()
                if f not in found and any(s in found or SINK.match(s) for s in symbols)}
        if not more:
            return found
        found |= more


def examine(disassembly, table, ours, names=objects.plain_names):
    """(sites by key, findings), with the functions that are there for what is observed."""
    sections, found, sites, refers = disassembled(disassembly), [], {}, {}
    for functions, code in sections.values():
        for function, symbols in references(functions, code).items():
            refers.setdefault(function, set()).update(symbols)
    for section, at, key in jump_table(table):
        mnemonic, operands, _ = sections.get(section, ({}, {}))[1].get(at, ("nothing", "", None))
        if not NOTHING.match(f"{mnemonic} {operands}"):
            found.append(f"{section}+{at:#x}: a site of {key} is `{mnemonic} {operands}`, not a no-op")
        sites[key] = sites.get(key, 0) + 1
    bad = reaching(refers)
    plain = names(bad)
    found += [f"{plain[f]} observes without a branch" for f in sorted(bad)
              if not ours.hold(lambda one, name=plain[f].split("::<")[0]: re.search(f"{one}$", name))]
    return sites, found


def branches(result):
    if not lib.need(result, "objdump", "binutils"):
        return
    built = objects.objects().get(OBJECT)
    if not built:
        result.bad(f"{OBJECT} is not built")
        result.todo = "make modules"
        return
    path = os.path.relpath(built, lib.TOP)
    _, code = lib.run(lib.in_root(["objdump", "-dr", "--no-show-raw-insn", path]))
    _, table = lib.run(lib.in_root(["objdump", "-r", "-j", "__jump_table", path]))
    ours = lib.Exceptions(OURS)
    sites, found = examine(code, table, ours)
    for finding in found + ours.unneeded():
        result.bad(finding)
    for key in [*(f"__tracepoint_tdx_mirror_{e}" for e in EVENTS), "tdx_mirror_switches"]:
        if not sites.get(key):
            result.bad(f"no site asks {key}")
    if result.findings:
        result.todo = "ask is_on() or a switch first, and do what it needs in a cold function"
    result.note = f"{sum(sites.values())} sites"
