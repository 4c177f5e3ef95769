# SPDX-License-Identifier: GPL-2.0
"""Where `unsafe` may stand, that each one says why, and the table of all."""

import os
import re

import layers
import lib
import rust_text as rt

TABLE = "Documentation/unsafe.rst"

# Files and folders that may hold `unsafe`, and what it is for there.  In a pure folder each file
# that may is named; one that nothing needs is an error.
ALLOWED = {
    "tdx_mirror/mirror/table.rs": "from an SPTE to the table that it points to, and owning one",
    "tdx_mirror/mirror/lock.rs": "making an evidence token says that mmu_lock is held",
    "tdx_mirror/kunit/td.rs": "a TD of one thread for tests: its pages, and evidence for its locks",
    "tdx_mirror/kvm/": "the edge to KVM: C pointers and function tables",
    "tdx_mirror/watch/": "set-up of what is global, calls of tracepoints, the C side of the files",
    "tdx_mirror/kernel/": "what the kernel has no Rust for yet: the C beside it, behind safe types",
    "tdx_mirror/bindings/": "generated declarations, no code",
    "tdx_mirror/tdx_mirror_main.rs": "set-up of what is global, once",
    "tdx_mirror/tdx_mirror_kunit_main.rs": "that zeroed memory is such a TD",
    "tdx_emu/module/platform.rs": "the promise that a platform makes about its memory: an unsafe trait",
    "tdx_emu/module/mem.rs": "guest and S-EPT pages by physical address",
    "tdx_emu/vmx.rs": "VMX instructions, the VMCS and the entry trampoline",
    "tdx_emu/vmx/": "VMX instructions, the VMCS and the entry trampoline",
    "tdx_emu/kernel.rs": "the edge to the C side of the emulator",
    "tdx_emu/kernel/": "the edge to the C side of the emulator",
    "tdx_mirror_test/device.rs": "the edge to the C side of the test device",
    "tdx_mirror_test/device/": "the edge to the C side of the test device",
}
# Generated, so that nothing in it says why.
BINDINGS = "tdx_mirror/bindings/"

UNSAFE = re.compile(r"\bunsafe\b")


def rule_of(name):
    """The entry of ALLOWED that covers a file of a module, or None."""
    return next((rule for rule in ALLOWED if name == rule or rule.endswith("/") and name.startswith(rule)), None)


def kind(text, place):
    """What the keyword at this place begins: block, fn, impl, trait, extern, type."""
    rest = text[place + len("unsafe"):]
    word = re.match(r"\s*(\{|fn\b|impl\b|trait\b|extern\b|auto\b|no_mangle\b|\()", rest)
    word = word.group(1) if word else ""
    if word == "{":
        return "block"
    if word in ("impl", "trait", "auto"):
        return "impl" if word == "impl" else "trait"
    fn = re.match(rf"\s*(?:extern\s+)?fn\s+{rt.IDENT}", rest)
    if fn:
        return "fn"
    if re.match(r"\s*extern\s*\{", rest):
        return "extern"
    if re.match(r"\s*(?:extern\s+)?fn\s*\(", rest):
        return "type"
    return "attribute"


def explained(lines, line, wanted):
    """Whether the comment above (or on) a line has one of the words in it.

    Looks up through the comment, attributes and the start of the same
    statement, and stops at a blank line or at the end of another statement.
    """
    if any(w in lines[line] for w in wanted):
        return True
    for above in range(line - 1, max(line - 60, -1), -1):
        text = lines[above].strip()
        if any(w in text for w in wanted):
            return True
        if text.startswith(("//", "#[", "*", "/*")):
            continue
        if not text or text.endswith((";", "}", "},")):
            return False
        # A line that opens a body ends the search, one that opens a call or a
        # binding of the same statement does not.
        if text.endswith("{") and not re.search(r"=>|=\s*[\w:]*\s*\{$|\bmatch\b", text):
            return False
    return False


def examine(name, text):
    """(number of `unsafe`, findings) of a file of a module."""
    findings = []
    plain = rt.blank(text)
    lines = rt.blank(text, keep_comments=True).split("\n")
    rule = rule_of(name)
    count = 0
    for found in UNSAFE.finditer(plain):
        count += 1
        line = rt.line_of(plain, found.start())
        where = f"{name}:{line}"
        if rule is None:
            findings.append(f"{where}: `unsafe` outside the allowed files")
            continue
        if rule == BINDINGS:
            continue
        what = kind(plain, found.start())
        if what in ("block", "impl", "extern") and not explained(lines, line - 1, ("SAFETY:",)):
            findings.append(f"{where}: unsafe {what} without a SAFETY comment above it")
        if what in ("fn", "trait") and not explained(lines, line - 1, ("# Safety", "SAFETY:")):
            findings.append(f"{where}: unsafe {what} without a `# Safety` section")
    return count, findings


def folder_of(name):
    """Row of the table that a file of the project belongs to."""
    parts = name.split("/")
    if name.startswith(lib.MODULES):
        # A folder's parent file stands beside it.
        return parts[0] if len(parts) == 2 and parts[1].endswith("_main.rs") else "/".join(parts[:2]).removesuffix(".rs")
    if parts[0] == "tools" and len(parts) > 3:
        return "/".join(parts[:3])
    return parts[0]


def survey():
    """Counts by folder and by file of a module, and the findings in modules."""
    folders, by_file, findings = {}, {}, []
    for name in lib.files("*.rs"):
        text = lib.read(name)
        if name.startswith(lib.MODULES):
            count, bad = examine(name, text)
            findings += bad + unguarded(name, text)
        else:
            count = len(UNSAFE.findall(rt.blank(text)))
        folders[folder_of(name)] = folders.get(folder_of(name), 0) + count
        if count and name.startswith(lib.MODULES):
            by_file[name] = count
    return folders, by_file, findings


def unused(by_file):
    """Findings: allowances that no file needs."""
    needed = {rule_of(name) for name in by_file}
    return [f"{rule} may hold `unsafe` and has none: take it out of scripts/checks/unsafe_code.py"
            for rule in ALLOWED if rule not in needed]


FORBIDDEN = re.compile(r"^#!\[forbid\((?:\w+, )*unsafe_code(?:, \w+)*\)\]$", re.M)


def unguarded(name, text):
    """Findings: a file of a pure folder in which the compiler would take `unsafe`."""
    folder, _, below = name.partition("/")
    if layers.module_of(below).split("::")[0] not in layers.PURE.get(folder, ()) or name in ALLOWED:
        return []
    # What a file forbids, those below it may not allow.
    below = name.removesuffix(".rs") + "/"
    if FORBIDDEN.search(rt.blank(text)) or any(rule.startswith(below) for rule in ALLOWED):
        return []
    return [f"{name}: does not begin with #![forbid(unsafe_code)]"]


def grid(rows):
    """An RST simple table; the first row is the heading."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    bar = "  ".join("=" * w for w in widths)
    lines = [bar]
    for i, row in enumerate(rows):
        lines.append("  ".join(str(c).ljust(w) for c, w in zip(row, widths)).rstrip())
        if not i:
            lines.append(bar)
    return "\n".join(lines + [bar])


def table():
    """The text of the table as it should be committed."""
    folders, by_file, _ = survey()
    rows = [("folder", "unsafe"), *sorted(folders.items()), ("all", sum(folders.values()))]
    files = [("file", "unsafe", "what for")]
    for name in sorted(by_file):
        rule = rule_of(name)
        files.append((name, by_file[name], ALLOWED.get(rule, "not allowed")))
    return f""".. SPDX-License-Identifier: GPL-2.0

====================================
Unsafe Rust, by folder and by reason
====================================

Written by ``scripts/check --update unsafe``; ``make check`` fails when it is
out of date.  The numbers are occurrences of the keyword outside comments and
literals: blocks, functions, traits and implementations.  Each block of
a module says in a SAFETY comment why it is sound, each function in a Safety section
what its caller must see to.  Only the files listed below may have any; each other
file of a folder that has no C side begins with ``#![forbid(unsafe_code)]``.

By folder
=========

{grid(rows)}

The files of the modules that have some
=======================================

{grid(files) if len(files) > 1 else "None."}
"""


def update():
    with open(os.path.join(lib.TOP, TABLE), "w", encoding="utf-8") as f:
        f.write(table())
    return TABLE


def unsafe(result):
    folders, by_file, findings = survey()
    findings += unused(by_file)
    for finding in findings:
        result.bad(finding)
    path = os.path.join(lib.TOP, TABLE)
    if not os.path.exists(path):
        result.missing(TABLE, "scripts/check --update unsafe, and commit it")
    elif lib.read(TABLE) != table():
        result.bad(f"{TABLE} is out of date")
        result.todo = "scripts/check --update unsafe, and commit it"
    if findings:
        result.todo = "move the code to an allowed file, or write why the block is sound"
    result.note = f"{sum(by_file.values())} in {len(by_file)} files of the modules"
