# SPDX-License-Identifier: GPL-2.0
"""Rules that the discussions of TDX in KVM set for code and text, as far as reading finds a breach."""

import os
import re

import lib
import rust_text as rt


def added(patch):
    """(file, line) of each line that a patch adds, and (file, None) for each file that it touches."""
    name = ""
    for line in patch.split("\n"):
        if found := re.match(r"\+\+\+ b/(\S+)", line):
            name = found.group(1)
            yield name, None
        elif line.startswith("+") and not line.startswith("+++") and name:
            yield name, line[1:]


def without_comments(name, text):
    """Code of a C or Rust file, line by line, without comments and literals."""
    if name.endswith(".rs"):
        return rt.blank(text)
    text = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m.group(0)), text, flags=re.S)
    return re.sub(r"//[^\n]*|\"(?:\\.|[^\"\\\n])*\"", "", text)


def added_code(patch):
    """(file, code) for each file of a patch: its added lines as one text without comments."""
    text = {}
    for name, line in added(patch):
        text.setdefault(name, [])
        if line is not None:
            text[name].append(line)
    return {name: without_comments(name, "\n".join(lines)) for name, lines in text.items()}


def product():
    """{file: code} of the product: the sources in its folder, and what the patches for KVM add."""
    found = {n: without_comments(n, lib.read(n)) for n in lib.of_product(".rs", ".c", ".h")}
    for patch in lib.files("patches/kvm/*.patch"):
        for name, code in added_code(lib.read(patch)).items():
            found[f"{patch}: {name}"] = code
    return found


# Ways to a page's content, and to a page by a userspace address.
TOUCH = re.compile(
    r"\b(?:(?:get|pin)_user_pages?\w*|kmap\w*|kunmap\w*|memremap\w*|ioremap\w*|page_address|page_to_virt|phys_to_virt|__va|"
    r"pfn_to_(?:virt|kaddr)|copy_(?:to|from)_user\w*|(?:get|put)_user|access_process_vm|kvm_(?:read|write)_guest\w*|"
    r"gfn_to_(?:hva|page|pfn)\w*|kvm_vcpu_map|mem(?:cpy|set|move)\w*|(?:clear|copy)_(?:page|highpage)\w*|"
    r"copy_nonoverlapping|write_bytes|read_volatile|write_volatile)\b")
# Ways to carry on after an access that faulted.
FIX_UP = re.compile(r"\b(?:_ASM_EXTABLE\w*|fixup_exception|fixup_user_fault|handle_mm_fault|ex_handler\w*|"
                    r"pagefault_(?:disable|enable)|do_user_addr_fault)\b")
FAULT_FILES = re.compile(r"arch/x86/mm/(?:fault|extable)\.c|arch/x86/kernel/traps\.c")


def touches(code):
    """Findings (number of the line, word) in code of the product."""
    return [(code.count("\n", 0, m.start()) + 1, m.group(0)) for m in TOUCH.finditer(code)]


def fixes_up(name, code):
    found = [(code.count("\n", 0, m.start()) + 1, m.group(0)) for m in FIX_UP.finditer(code)]
    if FAULT_FILES.search(name):
        found.append((1, "a fault handler of the kernel is changed"))
    return found


def guest_pages(result):
    """No code of the product reads, writes, maps or looks up a guest's private page."""
    sources = product()
    for name, code in sources.items():
        for number, word in touches(code):
            result.bad(f"{name}:{number}: {word}: a way to the content of a page")
        for number, word in fixes_up(name, code):
            result.bad(f"{name}:{number}: {word}: fixes up an access that faulted")
    result.note = f"{len(sources)} sources and patched files"
    result.todo = "private pages are known by PFN only; KVM gives it"


NEW_UAPI = re.compile(r"\b_IO[RW]*\(|\bKVM_CAP_\w+\s+\d|^\s*#\s*define\s+KVM_\w+|\bcase\s+KVM_\w+:|\bmiscdevice\b|"
                      r"\b(?:unlocked_ioctl|compat_ioctl)\b|\bproc_create\w*|\bcdev_\w+", re.M)
# The only headers of that kind.
TEST_DEVICE = "tdx_mirror_test/uapi/"


def new_uapi(name, code):
    """Findings of an interface for userspace in a file of the product."""
    found = []
    if re.search(r"(?:^|/)uapi/", name):
        found.append("a header of the interface to userspace")
    found += [m.group(0).strip() for m in NEW_UAPI.finditer(code)]
    return found


def uapi(result):
    """Neither the product nor its patches add an interface for userspace."""
    sources = product()
    for name, code in sources.items():
        for what in new_uapi(name, code):
            result.bad(f"{name}: {what}: an interface that KVM does not have")
    headers = [n for n in lib.files("*.h") if re.search(r"(?:^|/)uapi/", n)]
    for name in headers:
        if not name.startswith(TEST_DEVICE):
            result.bad(f"{name}: only the test device has ioctls of its own")
    result.note = f"{len(sources)} sources and patched files, {len(headers)} header of the test device"
    result.todo = "use the ioctls that KVM has"


SECRECY = re.compile(r"\b(?:en|de)crypt\w*|\bcipher\w*|\bunreadable\b|\bscrambl\w*", re.I)
# Where the words stand for something else: (file, part of the line) and why.
NO_ARGUMENT = {
    ("Documentation/testing.rst", "memory is encrypted, the"): "what the software TDX module lacks",
}


def argues_from_secrecy(name, text, exceptions=None):
    """Lines of a text that name encryption: what holds must hold because the TD is isolated."""
    exceptions = exceptions or lib.Exceptions(NO_ARGUMENT)
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if SECRECY.search(line) and not exceptions.hold(lambda e: name.startswith(e[0]) and e[1] in line):
            found.append((number, line.strip()))
    return found


def isolation(result):
    """Texts and comments argue from isolation, not from encryption."""
    names = [n for n in lib.files("*.rst", "README.md", "include/*.h", *(f"{m}*.{e}" for m in lib.MODULES for e in ("rs", "c", "h")),
                                  "tools/testing/selftests/*.c", "tools/testing/selftests/*.h")]
    exceptions = lib.Exceptions(NO_ARGUMENT)
    for name in names:
        for number, line in argues_from_secrecy(name, lib.read(name), exceptions):
            result.bad(f"{name}:{number}: argues from encryption: {line[:80]}")
    patches = lib.files("patches/kvm/*.patch", "patches/emu/*.patch")
    for name in patches:
        # The changelog, and what is added; not the context.
        text = "\n".join(line for line in lib.read(name).split("\n") if not re.match(r"[ -]", line))
        for _, line in argues_from_secrecy(name, text, exceptions):
            result.bad(f"{name}: argues from encryption: {line[:80]}")
    for finding in exceptions.unneeded():
        result.bad(finding)
    result.note = f"{len(names)} texts and sources, {len(patches)} patches"
    result.todo = "say what the TDX module keeps from whom, not that it is encrypted"


ALLOCATION = re.compile(r"\b(?:k[vzmc]?z?alloc\w*|alloc_pages?\w*|get_zeroed_page|__get_free_pages?|kmem_cache_\w*alloc\w*|"
                        r"vmalloc\w*)\s*\(|\bGFP_[A-Z_]+\b")


def uncharged(code):
    """Allocations that are not charged to the memory cgroup of who made the TD."""
    found = []
    for match in re.finditer(r"[^;{}]*[;{}]", code):
        statement = match.group(0)
        if ALLOCATION.search(statement) and "_ACCOUNT" not in statement:
            found.append(" ".join(statement.split())[-80:])
    return found


# Statements that allocate nothing, by a part of them, and why.
CHARGED_OTHERWISE = {
    "init_zeroed(), GFP_KERNEL": "the TD of a unit test",
}


def accounting(result):
    """Every allocation of the product is charged to the VM."""
    count, exceptions = 0, lib.Exceptions(CHARGED_OTHERWISE)
    for name, code in product().items():
        count += len(ALLOCATION.findall(code))
        for statement in uncharged(code):
            if not exceptions.hold(lambda part: part in statement):
                result.bad(f"{name}: not charged to the memory cgroup: {statement}")
    for finding in exceptions.unneeded():
        result.bad(finding)
    if not count:
        result.bad("no allocation was found at all: the check looks at the wrong files")
    result.note = f"{count} places"
    result.todo = "allocate with GFP_KERNEL_ACCOUNT"


def alternatives_in(text):
    """Items of a section about alternatives that were rejected."""
    found = re.search(r"^Alternatives[^\n]*\n=+\n(.*?)(?=^[^\n]+\n=+\n|\Z)", text, re.M | re.S)
    return re.findall(r"^\d+\. \*[^*]+\*:? [^\n]*(?:\n[ ]+[^\n]+)*", found.group(1), re.M) if found else []


def alternatives(result):
    """The design gives three alternatives and why each was rejected."""
    items = alternatives_in(lib.read("Documentation/design.rst"))
    for item in items:
        if len(item.split()) < 12:
            result.bad(f"Documentation/design.rst: no reason: {item}")
    if len(items) < 3:
        result.bad(f"Documentation/design.rst: {len(items)} rejected alternatives, at least 3 are wanted")
    result.note = f"{len(items)} alternatives"
    result.todo = "a numbered item under `Alternatives that were rejected`: *name*, what it is, why not"


def lines_of_code(name, text):
    return sum(1 for line in without_comments(name, text).split("\n") if line.strip())


# What is counted as one: title, files as a pattern, and how many `unsafe` it may have at most.
PARTS = [
    ("mirror", r"tdx_mirror/(base|mirror)(\.rs|/.*)", 28),
    ("policy of SEAMCALLs", r"tdx_mirror/sept(\.rs|/.*)", 0),
    ("interface of the TDX module", r"tdx_mirror/tdx(\.rs|/.*)", 0),
    ("edge to C, in Rust", r"tdx_mirror/((kvm|watch|kernel)(\.rs|/.*\.rs)|tdx_mirror_main\.rs)", None),
    ("edge to C, in C", r"tdx_mirror/.*\.[ch]", None),
    ("off to the side, the baseline", r"tools/testing/host/src/aside.*", 0),
]


def complexity(result):
    """Lines and `unsafe` of each part, beside those of the variant off to the side."""
    rows = []
    for title, which, most in PARTS:
        names = [n for n in lib.files("*.rs", "*.c", "*.h") if re.fullmatch(which, n)]
        lines = sum(lines_of_code(n, lib.read(n)) for n in names)
        unsafe = sum(len(re.findall(r"\bunsafe\b", without_comments(n, lib.read(n)))) for n in names
                     if n.endswith(".rs"))
        if not names:
            result.bad(f"{title}: no file")
        if most is not None and unsafe > most:
            result.bad(f"{title}: {unsafe} unsafe, at most {most}")
        rows.append((title, len(names), lines, unsafe))
    patched = sum(1 for p in lib.files("patches/kvm/*.patch") for _, code in added_code(lib.read(p)).items()
                  for line in code.split("\n") if line.strip())
    rows.append(("patches/kvm, lines added", len(lib.files("patches/kvm/*.patch")), patched, 0))
    text = "".join(f"{t:32} {f:4} files {n:6} lines {u:4} unsafe\n" for t, f, n, u in rows)
    with open(os.path.join(lib.build_dir(), "complexity.txt"), "w", encoding="utf-8") as f:
        f.write(text)
    core = sum(n for t, _, n, _ in rows[:3])
    result.note = f"{core} lines of code in the pure parts, {rows[5][2]} off to the side; build/check/complexity.txt"
    result.todo = "move `unsafe` to the files that may have it"


WARNS = re.compile(r"\b(?:WARN|WARN_ON|WARN_ONCE|WARN_ON_ONCE|lockdep_assert_held\w*)\s*\(|\bwarn_on(?:_once)?!")
C_FUNCTION = re.compile(r"^(?:static )?[\w *]+?\b(\w+)\([^;{]*\)\n\{\n(.*?)^\}", re.M | re.S)
FIRED = re.compile(r'log_warnings\("(\w+)"\)\s*==\s*(?:1\b|\w+\()|(\w+)\s*=\s*log_warnings\("(\w+)"\)')


def warn_sites(sources):
    """({function: file} that warns, findings) of the module's sources without comments."""
    sites, found = {}, []
    for name, code in sources.items():
        inside = 0
        for function, body in C_FUNCTION.findall(code) if name.endswith(".c") else []:
            if count := len(WARNS.findall(body)):
                inside += count
                sites[function] = name
                if count > 1:
                    found.append(f"{name}: {function}() warns at two places: the trace would not say which")
        if len(WARNS.findall(code)) != inside:
            found.append(f"{name}: a warning outside a function in C: give it one of its own")
    return sites, found


def fired_in(tests):
    """Functions whose warning a test counts and compares."""
    fired = set()
    for text in tests:
        for direct, variable, later in FIRED.findall(text):
            if direct:
                fired.add(direct)
            elif re.search(rf"\b{variable} == 1\b", text):
                fired.add(later)
    return fired


def warnings(result):
    """Each warning of the module is in the table of design.rst, and a test makes it come."""
    sources = {n: without_comments(n, lib.read(n)) for n in lib.of_product(".rs", ".c")}
    sites, findings = warn_sites(sources)
    for finding in findings:
        result.bad(finding)
    fired = fired_in(lib.read(n) for n in lib.files("tools/testing/contract/*.c"))
    table = lib.read("Documentation/design.rst")
    for site, name in sites.items():
        if site not in fired:
            result.bad(f"{name}: no test of tools/testing/contract makes {site}() warn and counts that")
        if f"``{site}``" not in table:
            result.bad(f"{name}: {site} is not in the table of warnings in Documentation/design.rst")
    if not sites:
        result.bad("no warning was found at all: the check looks at the wrong files")
    result.note = f"{len(sites)} warnings"
    result.todo = "a test with log_warnings(\"function\") == 1, and a line in the table"
