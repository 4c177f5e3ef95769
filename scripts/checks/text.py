# SPDX-License-Identifier: GPL-2.0
"""What no file of the project may hold, and how large a file may grow."""

import os
import re

import lib
import rust_text as rt

# Written in pieces, so that this file does not find itself.
HOSTS = [
    "deb.debian" ".org", "security.debian" ".org", "snapshot.debian" ".org", "ftp.debian" ".org",
    "static.crates" ".io", "index.crates" ".io", "pypi" ".org", "registry.npm" "js", "proxy.golang" ".org",
]
PATHS = ["/wo" "rk/", "/ro" "ot/", "/fa" "rm/", "/var/tmp/td" "xw", "/home/" "[a-z]"]
MARKERS = ["TO" "DO", "FIX" "ME", "X" "XX", "HA" "CK"]

PLACES = re.compile("|".join(h.replace(".", r"\.") for h in HOSTS) + "|" + "|".join(PATHS))
OPEN = re.compile(r"\b(?:" + "|".join(MARKERS) + r")\b")
PANICS = re.compile(
    r"\.unwrap\(\)|\.expect\(|\b(?:panic|unreachable|todo|unimplemented|assert|assert_eq|assert_ne)!")


LINES = 700
KIB = 2048
SOURCES = ("*.rs", "*.c", "*.h", "*.S", "*.py", "*.sh")


def text(result):
    """Registry hosts, paths of a machine, open ends."""
    names = lib.files()
    for name in names:
        if name.endswith((".lock", ".gz", ".bin", ".xz", ".zst", ".png")):
            continue
        body = lib.read(name)
        if "\0" in body:
            continue
        for number, line in enumerate(body.split("\n"), 1):
            if PLACES.search(line):
                result.bad(f"{name}:{number}: registry host or path of one machine: {line.strip()[:80]}")
            # Only added lines of a patch are ours.
            ours = line.startswith("+") if name.endswith(".patch") else True
            if ours and name.startswith((*lib.MODULES, "include/", "patches/", "tools/", "scripts/")) and OPEN.search(line):
                result.bad(f"{name}:{number}: open end: {line.strip()[:80]}")
    result.note = f"{len(names)} files"
    result.todo = "derive the host or the path at run time; finish what is open"


USE = re.compile(r"^ *(?:pub(?:\([a-z ]+\))? )?use [^;']*;", re.M)


def horizontal(source):
    """Numbers of the lines of a Rust text on which a list of imports has more than one name."""
    found = []
    for use in USE.finditer(source):
        first = source.count("\n", 0, use.start()) + 1
        for number, line in enumerate(use.group(0).split("\n"), first):
            if line.count(",") > 1 or re.search(r",\s*[^\s/]", line):
                found.append(number)
    return found


def imports(result):
    """Lists of imports in the product have one name a line, as in the kernel's own Rust."""
    names = [n for n in lib.of_product(".rs") if not n.endswith("bindings/contract.rs")]
    for name in names:
        for number in horizontal(lib.read(name)):
            result.bad(f"{name}:{number}: more than one name on a line of an import")
    result.note = f"{len(names)} files"
    result.todo = "one name a line, and ` //` behind the last, which keeps rustfmt from joining them"


CONST = re.compile(r"\bconst\s+\w+\s*:[^=;]*=\s*(?=\{|assert!|match\b)|\bconst\s*(?=\{)")


def without_const(plain):
    """Blanks `const _: () = assert!(..);` and const blocks: the compiler works them out."""
    for found in reversed(list(CONST.finditer(plain))):
        if plain[found.end()] == "{":
            end = rt.matching(plain, found.end())
        else:
            end = plain.find(";", found.end())
        plain = plain[:found.start()] + re.sub(r"[^\n]", " ", plain[found.start():end]) + plain[end:]
    return plain


def panics(result):
    """Panicking constructs in the text of kernel Rust, outside tests."""
    names = [n for n in lib.of_modules(".rs") if "kunit" not in n]
    for name in names:
        plain = without_const(rt.without_tests(rt.blank(lib.read(name))))
        for found in PANICS.finditer(plain):
            result.bad(f"{name}:{rt.line_of(plain, found.start())}: {found.group(0)}")
    result.note = f"{len(names)} files"
    result.todo = "return an error; in kernel Rust only tests may panic"


def sizes(result):
    """Long source files and large files."""
    for name in lib.files():
        path = os.path.join(lib.TOP, name)
        if os.path.getsize(path) > KIB * 1024:
            result.bad(f"{name}: {os.path.getsize(path) // 1024} KiB, at most {KIB}")
    sources = lib.files(*SOURCES, "scripts/check")
    longest = 0
    for name in sources:
        lines = lib.read(name).count("\n")
        longest = max(longest, lines)
        if lines > LINES:
            result.bad(f"{name}: {lines} lines, at most {LINES}")
    result.note = f"{len(sources)} sources, the longest of {longest} lines"
    result.todo = "split the file by what it knows"


def spdx(result):
    """A licence line in the first three lines of each source."""
    names = lib.files("*.rs", "*.c", "*.h", "*.S", "*.py", "*.sh", "*.rst", "*.toml", "*.lds", "*Kbuild", "*Makefile",
                      "*Kconfig", "scripts/check", ".ci/run")
    names = [n for n in names if os.path.basename(n) not in (".rustfmt.toml",)]
    for name in names:
        head = lib.read(name).split("\n")[:3]
        if not any("SPDX-License-Identifier: GPL-2.0" in line for line in head):
            result.bad(f"{name}: no SPDX line in its first three lines")
    result.note = f"{len(names)} files"
    result.todo = "add `SPDX-License-Identifier: GPL-2.0` as a comment"


MENTION = re.compile(r"(?<![\w/.-])((?:tdx_mirror|tdx_emu|tdx_mirror_test|tools|scripts|patches|include|Documentation)/[\w./-]*\w)(?![\w{*<])")


def paths(result):
    """Files and folders that a text names are there."""
    count = 0
    for name in lib.files("*.rst", "*.md"):
        if name.startswith("patches/"):
            continue
        for number, line in enumerate(lib.read(name).split("\n"), 1):
            for mention in MENTION.findall(line):
                count += 1
                if not os.path.exists(os.path.join(lib.TOP, mention)) \
                        and not os.path.exists(os.path.join(lib.TOP, os.path.splitext(mention)[0] + ".c")) \
                        and not os.path.exists(os.path.join(lib.TOP, os.path.splitext(mention)[0] + ".rs")):
                    result.bad(f"{name}:{number}: {mention} is not there")
    result.note = f"{count} mentions"
    result.todo = "name what is there"


# Calls in a text: `create()`, `Transition::classify`.
CALL = re.compile(r"(?<![\w:.$])(?:([A-Z]\w*)::)?([a-z_]\w*)\(\)|(?<![\w:])([A-Z]\w*)::([a-z_]\w*)")
MADE = {
    ".rs": re.compile(r"\b(?:fn|macro_rules!)\s+(\w+)"),
    ".c": re.compile(r"\b([a-z_]\w*)\("), ".h": re.compile(r"\b([a-z_]\w*)\("),
    ".py": re.compile(r"\bdef (\w+)"), ".sh": re.compile(r"^(\w+)\(\)", re.M),
    ".patch": re.compile(r"^[+ ].*?\b([a-z_]\w*)\(", re.M),
}
IMPL = re.compile(r"^(?:unsafe )?(?:impl|trait|pub(?:\([^)]*\))? trait)\b([^{;]*)\{", re.M)
# Where the kernel defines what texts name.
IN_KERNEL = ("arch/x86", "virt", "include", "mm", "kernel", "drivers/virt")


def without_examples(body):
    """Blanks the blocks behind a `::`, whose names are those of an example."""
    lines, inside = body.split("\n"), None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if inside is not None and line.strip() and indent <= inside:
            inside = None
        if inside is not None:
            lines[number] = ""
        elif line.endswith("::"):
            inside = indent
    return "\n".join(lines)


def calls_of(body):
    """Yields (line, type or None, function) for each call that a text names."""
    body = without_examples(body)
    for found in CALL.finditer(body):
        kind, name = (found[1], found[2]) if found[2] else (found[3], found[4])
        yield body.count("\n", 0, found.start()) + 1, kind, name


def functions(result):
    """Functions and types that a text names are there, in the project or in the kernel."""
    made, methods = set(), set()
    for name in lib.files(*(f"*{end}" for end in MADE)):
        body = lib.read(name)
        here = set(MADE[os.path.splitext(name)[1]].findall(body))
        made |= here
        if name.startswith(lib.MODULES):
            methods.update((kind, function) for head in IMPL.findall(body) for kind in re.findall(r"[A-Z]\w*", head)
                           for function in here)
    count, elsewhere = 0, {}
    for name in lib.files("*.rst", "*.md"):
        for line, kind, function in calls_of(lib.read(name)):
            count += 1
            where = f"{name}:{line}"
            if kind and (kind, function) not in methods:
                result.bad(f"{where}: {kind}::{function} is not there")
            elif not kind and function not in made:
                elsewhere.setdefault(function, []).append(where)
    if elsewhere:
        source = lib.kernel_source()
        if not source:
            result.missing("the source of the kernel, where " + ", ".join(sorted(elsewhere)) + " should be", lib.NO_KERNEL)
            return
        _, out = lib.run(["grep", "-rhowE", "--include=*.[ch]", "|".join(sorted(elsewhere)),
                          *(os.path.join(source, folder) for folder in IN_KERNEL)])
        for function in sorted(set(elsewhere) - set(out.split())):
            result.bad(f"{', '.join(elsewhere[function])}: no function {function}()")
    result.note = f"{count} mentions"
    result.todo = "name what is there"
