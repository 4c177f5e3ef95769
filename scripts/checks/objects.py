# SPDX-License-Identifier: GPL-2.0
"""No way to panic in the built objects."""

import os
import re

import lib

# Names that only a panicking construct refers to.  The mangled names hold the
# path in the clear, so this also finds what was inlined from core.
PANIC = re.compile(
    r"panic|unwrap_failed|expect_failed|slice_\w*_fail|index_len_fail|index_order_fail|len_mismatch_fail|"
    r"str\w*slice_error_fail|handle_alloc_error|rust_build_error|assert_failed|rust_helper_BUG\b|const_\w*_overflow"
)

FUNCTION = re.compile(r"^[0-9a-f]+ <([^>]+)>:$")
RELOCATION = re.compile(r"^\s+[0-9a-f]+:\s+R_\w+\s+(\S+)")


def plain_names(symbols):
    """Readable forms of mangled names."""
    symbols = sorted(set(symbols))
    if not symbols:
        return {}
    status, out = lib.run(lib.in_root(["c++filt", *symbols]))
    lines = out.rstrip("\n").split("\n")
    if status or len(lines) != len(symbols):
        return {s: s for s in symbols}
    # The hashes of crates tell a reader nothing.
    return {s: re.sub(r"\[[0-9a-f]+\]", "", line) for s, line in zip(symbols, lines)}


def panicking_calls(disassembly):
    """(function, panicking symbol) of each reference in `objdump -dr` output."""
    found, current = [], "?"
    for line in disassembly.split("\n"):
        head = FUNCTION.match(line)
        if head:
            current = head.group(1)
            continue
        where = RELOCATION.match(line)
        if not where:
            continue
        symbol = re.sub(r"[-+]0x[0-9a-f]+$", "", where.group(1))
        if PANIC.search(symbol):
            found.append((current, symbol))
    return found


def objects():
    """Built objects of the modules: in the checkout or in the build folder."""
    place = os.environ.get("MODULE_OUT", "")
    roots = [place] if place else [os.path.join(lib.TOP, f) for f in (*lib.MODULES, "build")]
    found = []
    for root in roots:
        for folder, _, leaves in os.walk(root):
            # Names below the root only: the checkout itself may lie in a folder of such a name.
            below = os.path.relpath(folder, root).split(os.sep)
            if "check" in below or any(b.startswith(("target", "rootfs")) for b in below):
                continue
            for leaf in leaves:
                if re.fullmatch(r"tdx_\w+_main\.o", leaf):
                    found.append(os.path.join(folder, leaf))
    # Several builds may lie around: the newest of each name counts.
    newest = {}
    for path in sorted(found, key=os.path.getmtime):
        newest[os.path.basename(path)] = path
    return newest


def sources_of(path):
    """The files of the modules that an object was made of, as kbuild wrote them down."""
    command = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.cmd")
    try:
        with open(command, encoding="utf-8", errors="replace") as f:
            words = f.read().split()
    except OSError:
        words = []
    ours = tuple(os.path.join(lib.TOP, f) for f in lib.MODULES)
    found = [w for w in words if w.startswith(ours) and w.endswith(".rs") and os.path.exists(w)]
    return found or [os.path.join(lib.TOP, n) for n in lib.of_modules(".rs")]


def panic_symbols(result):
    if not lib.need(result, "objdump", "binutils"):
        return
    built = objects()
    roots = [os.path.basename(n)[:-3] + ".o" for n in lib.of_modules("_main.rs")]
    if not roots:
        result.missing("tdx_*_main.rs", "run this in a whole checkout")
        return
    count = 0
    for leaf in roots:
        if leaf not in built:
            result.bad(f"{leaf} is not built")
            result.todo = "make modules"
            continue
        path = built[leaf]
        if os.path.getmtime(path) < max(os.path.getmtime(s) for s in sources_of(path)):
            result.bad(f"{os.path.relpath(path, lib.TOP)} is older than the sources")
            result.todo = "make modules"
            continue
        status, out = lib.run(lib.in_root(["objdump", "-dr", "--no-show-raw-insn", os.path.relpath(path, lib.TOP)]))
        if status:
            result.bad(f"objdump {leaf}: {out.strip()[-200:]}")
            continue
        calls = panicking_calls(out)
        found = {}
        for function, symbol in calls:
            found.setdefault(function, set()).add(symbol)
        names = plain_names([*found, *(s for _, s in calls)])
        for function in sorted(found):
            panics = ", ".join(sorted(names[s].rpartition("::")[2] for s in found[function]))
            result.bad(f"{leaf}: {names[function]}: {panics}")
        # A table (of functions, say) could refer to one as well.
        status, out = lib.run(lib.in_root(["nm", "-u", os.path.relpath(path, lib.TOP)]))
        known = {s for _, s in calls}
        for line in out.split("\n"):
            symbol = line.split()[-1] if line.split() else ""
            if PANIC.search(symbol) and symbol not in known:
                result.bad(f"{leaf}: data: {symbol}")
        count += 1
    if result.findings and not result.todo:
        result.todo = "checked arithmetic, get() instead of an index, an error instead of unwrap"
    result.note = f"{count} objects"
