# SPDX-License-Identifier: GPL-2.0
"""Which requirement is shown by which test, and the document that lists it."""

import os
import re

import lib

TABLE = "Documentation/requirements.rst"

# What is to be shown, in short.  The number never changes.
WANTED = {
    "R1": "no lock in the fault path but mmu_lock (read), RCU and the entry's freeze",
    "R2": "faults on different entries run in parallel",
    "R3": "nothing sleeps in the fault path",
    "R4": "contention: bounded tries, then the old value and a retry",
    "R5": "the bound of tries follows from the zero-step threshold",
    "R6": "S-EPT busy on VP.ENTER is classified as a bug and counted",
    "R7": "a VM may be ended at the zero-step threshold",
    "R8": "a vCPU whose fault is stuck is held instead of entered",
    "R9": "a failed reclaim leaks, without a second try",
    "R10": "bad parameters: an error and one warning",
    "R11": "a busy TDR at reclaim: no retry, leak",
    "R12": "private entries are never zapped without a cause",
    "R13": "a vCPU without progress can be killed",
    "R14": "busy operands are retried, other answers are not",
    "R15": "giving up leaves no host-priority mark that starves the guest",
    "R16": "progress is counted in VP.ENTERs at one RIP",
    "R17": "an entry is frozen until the S-EPT update is complete",
    "R18": "whoever meets a frozen entry ends in bounded steps",
    "R19": "nothing freezes under the write lock",
    "R20": "parent before child in the S-EPT",
    "R21": "memory of the mirror is reported",
    "R22": "complexity is reported",
    "R23": "comparison with management off to the side",
    "R24": "a fault during a conversion retries, then succeeds or exits",
    "R25": "room for huge pages and more states of an entry",
    "R26": "a zap survives contention at each SEAMCALL",
    "R27": "set_external_spte only for leaf non-present to present",
    "R28": "other changes of a present leaf never reach the S-EPT",
    "R29": "another PFN on a present leaf is a bug of the VM",
    "R30": "a table over a present entry is a bug",
    "R31": "mirror present equals S-EPT present after every operation",
    "R32": "no permission bits travel to the S-EPT",
    "R33": "the SPTE encoding stays inside and equals KVM's",
    "R34": "an incorrect entry state is reported with its words, not retried",
    "R35": "present to present never reaches BLOCK",
    "R36": "a benign race is no bug of the VM",
    "R37": "each guard's test fails without the guard",
    "R38": "no fix-up of private accesses in a fault handler",
    "R39": "guest private pages are never dereferenced",
    "R40": "a GFN has at most one live backing",
    "R41": "every fallible step must be used; no-fail ones quarantine",
    "R42": "no new interface for guests' owners",
    "R43": "a guest that converts at random cannot harm the host",
    "R44": "tests use PFNs that are no struct pages where they can",
    "R45": "texts argue from isolation",
    "R46": "errors: own bug EIO, caller's bug EINVAL, contention EBUSY or retry",
    "R47": "no panicking construct in the objects",
    "R48": "every warning has a test that fires it",
    "R49": "the general path is complete before the fast one",
    "R50": "rejected alternatives are written down",
    "R51": "non-present and frozen values suppress #VE",
    "B1": "two vCPUs map one GFN: one SEAMCALL",
    "B2": "a failed freeze hands back the fresh value",
    "B3": "prefault of a memslot that goes away ends",
    "B4": "a fault on a memslot that goes away ends",
    "B5": "prefault on an obsolete root ends",
    "B6": "busy k times: k up to the budget succeeds, more gives up",
    "B7": "vCPUs are let in again on every way out",
    "B8": "calls of the build phase race without a bug of the VM",
    "B9": "a failed ADD leaves nothing in the mirror",
    "B10": "a failed MR.EXTEND leaves nothing half built",
    "B12": "a zap without the write lock does not compile",
    "B14": "a page whose removal failed is quarantined",
    "B16": "tables are charged to the VM's memory cgroup",
    "B18": "ranges at the limits neither overflow nor reach one too far",
    "B19": "roots are zapped by the right path",
    "B20": "a GFN with and without the shared bit is one mirror GFN or refused",
    "B21": "a leaf is blocked in the mirror as long as it is in the S-EPT",
    "B22": "a reclaim that answers PAGE_METADATA_INCORRECT leaks and reports",
    "B24": "re-entry on busy does not starve who waits for the vCPU",
    "B30": "present to present is not taken for a removal",
    "B31": "busy of VP.ENTER is not swallowed",
    "B32": "no unbounded local retry",
    "B33": "children are reclaimed first, after the HKID is released",
    "B34": "a quarantined GFN refuses another page",
}

# What `make check` shows, by the check's name: properties of the source, of a text or of an object.
CHECKED = {
    "R22": ["complexity"],
    "R38": ["guest-pages"],
    "R39": ["guest-pages"],
    "R42": ["uapi"],
    "R45": ["isolation"],
    "R47": ["panics", "panic-symbols"],
    "R48": ["warnings"],
    "R50": ["alternatives"],
    "B16": ["accounting"],
}

# Requirements whose guard `make mutants` takes out, to see that a test which shows it fails then.
GUARDED = [f"R{n}" for n in range(27, 37)]

# How a comment line begins, and what a test is, by the end of the file's name.  Between the line
# and its test stand comments and attributes only.
RUST = (r"//", r"(?:\s*(?://[^\n]*|#\[[^\]]*\]))*?\s*#\[test\](?:\s*(?://[^\n]*|#\[[^\]]*\]))*\s*(?:pub\s+)?fn\s+(\w+)\s*\(")
KUNIT = (r"//", r"(?:\s*(?://[^\n]*|#\[[^\]]*\]))*\s*pub fn (\w+)\([^)]*\) -> Outcome\b")
IN_C = (r"/\*", r"(?:\s*/\*(?:[^*]|\*(?!/))*\*/)*\s*(?:TEST(?:_F|_F_TIMEOUT)?\(\s*(?:\w+\s*,\s*)?|static void (?=test_))(\w+)\s*"
        r"(?:[,)]|\(void\)$)")
PYTHON = (r"#", r"(?:\s*[#@][^\n]*)*\s*def (test_\w+)\(self")
SHELL = (r"#", r"(?:\s*#[^\n]*)*\s*(test_\w+)\(\)")
KINDS = {".rs": RUST, ".c": IN_C, ".h": IN_C, ".py": PYTHON, ".sh": SHELL}
NUMBERS = re.compile(r"([RB]\d+(?:, [RB]\d+)*)\.(?: \*/)?$")
WORTH_A_LOOK = re.compile(r"Shows|\b(?:test_)?[rb]\d+_", re.I)
NUMBERED = re.compile(r"(?:test_)?((?:[rb]\d+_)+)\w", re.I)
A_CHECK = re.compile(r'^    \("([\w-]+)", "', re.M)
MUTANTS = "tools/testing/host/mutants.toml"


def kind_of(name):
    """The comments and tests of a file, or None."""
    if name.startswith("tdx_mirror/kunit/"):
        return KUNIT
    return KINDS.get(os.path.splitext(name)[1])


def shown_in(name, source):
    """Returns (test -> its requirements, findings) of the Shows lines of one file."""
    mark, header = kind_of(name)
    test, found, findings = re.compile(header, re.M), {}, []
    for line in re.finditer(rf"^[ \t]*{mark}+[ \t]*Shows(:.*| [RB]\d.*)$", source, re.M):
        where = f"{name}:{source.count(chr(10), 0, line.start()) + 1}"
        numbers = NUMBERS.fullmatch(line.group(1)[2:].strip()) if line.group(1).startswith(": ") else None
        below = test.match(source, line.end())
        if not numbers:
            findings.append(f"{where}: not `Shows: R4, B6.` alone in its line")
        elif not below:
            findings.append(f"{where}: a Shows line above no test")
        else:
            of = found.setdefault(below.group(1), [])
            of += [n for n in numbers.group(1).split(", ") if n not in of]
            findings += [f"{where}: there is no requirement {n}" for n in of if n not in WANTED]
    for below in test.finditer(source):
        if NUMBERED.match(below.group(1)):
            findings.append(f"{name}: {below.group(1)}: a number in a name does not count; put it into a line above the test")
    return found, findings


def called(name, test):
    """A test as the list names it: file and case, with the folder where that says more."""
    stem = os.path.basename(name).rsplit(".", 1)[0]
    if name.endswith(".py"):
        return f"{os.path.basename(name)}: {test}"
    if not name.endswith(".rs"):
        return f"{stem}.{test}"
    if stem == "mod":
        stem = os.path.basename(os.path.dirname(name))
    for folder, short in (("tdx_mirror/kunit", "kunit"), ("tools/testing/host/emu", "emu"), ("tools/testing/host/joint", "joint"),
                          ("tools/testing/host/bench", "bench")):
        if name.startswith(folder + "/"):
            return f"{short}/{stem}::{test}"
    return f"{stem}::{test}"


def in_tests():
    """Returns (requirement -> names of tests, findings) of all files."""
    shown, findings = {}, []
    for name in lib.files("*.rs", "*.c", "*.h", "*.py", "*.sh"):
        source = lib.read(name)
        if not WORTH_A_LOOK.search(source):
            continue
        found, bad = shown_in(name, source)
        findings += bad
        for test, numbers in found.items():
            for number in numbers:
                shown.setdefault(number, set()).add(called(name, test))
    return shown, findings


def guards():
    """Requirements with a guard that `make mutants` takes out."""
    if not os.path.exists(os.path.join(lib.TOP, MUTANTS)):
        return set()
    return set(re.findall(r'^requirement = "(\w+)"$', lib.read(MUTANTS), re.M))


def shown_by():
    """Requirement -> sorted names of what shows it."""
    found = {number: set() for number in WANTED}

    def add(numbers, test):
        for number in numbers:
            found.setdefault(number, set()).add(test)

    for number, tests in in_tests()[0].items():
        found.setdefault(number, set()).update(tests)
    checks = set(A_CHECK.findall(lib.read("scripts/check")))
    for number, names in CHECKED.items():
        for check in names:
            if check in checks:
                add([number], f"make check: {check}")
    taken_out = guards()
    if all(number in taken_out for number in GUARDED):
        add(["R37"], "make mutants: guards of " + ", ".join(GUARDED))
    return {number: sorted(tests) for number, tests in found.items()}


def lacking(shown):
    return [number for number in WANTED if not shown[number]]


def document():
    shown = shown_by()
    without = lacking(shown)
    lines = []
    for number, what in WANTED.items():
        how = "; ".join(f"``{t}``" for t in shown[number])
        lines.append(f"{number}: {what}\n  " + (how or "*nothing yet*"))
    state = f"All {len(WANTED)} have one." if not without else \
        f"{len(WANTED) - len(without)} of {len(WANTED)} have one.  Without: {', '.join(without)}."
    return f""".. SPDX-License-Identifier: GPL-2.0

=====================================
Requirements and the tests of each
=====================================

Written by ``scripts/check --update requirements``; ``make check`` fails when it
is out of date, ``make requirements`` when one has no test.  R are requirements
from the discussions of TDX in KVM, B are bugs that happened there.  The line
``Shows: R4, B6.`` above a test names what it shows; a test in C is listed as
program.case.  ``make check`` looks at sources, texts and objects.

{state}

""" + "\n\n".join(lines) + "\n"


def update():
    with open(os.path.join(lib.TOP, TABLE), "w", encoding="utf-8") as f:
        f.write(document())
    return TABLE


def print_all():
    """`make requirements`: each requirement with its tests; 1 if one has none."""
    shown = shown_by()
    without = lacking(shown)
    for number, what in WANTED.items():
        print(f"{'FAIL' if number in without else 'ok  '} {number:4} {what}")
        for test in shown[number] or ["no test"]:
            print(f"            {test}")
    if without:
        print(f"do: write a test, with the line `// Shows: R6.` above it; without one: {' '.join(without)}")
    print(f"requirements: {len(WANTED) - len(without)} of {len(WANTED)} have a test, {len(without)} without")
    return 1 if without else 0


def requirements(result):
    for finding in in_tests()[1]:
        result.bad(finding)
    if not os.path.exists(os.path.join(lib.TOP, TABLE)):
        result.missing(TABLE, "scripts/check --update requirements, and commit it")
    elif lib.read(TABLE) != document():
        result.bad(f"{TABLE} is out of date")
    checks = set(A_CHECK.findall(lib.read("scripts/check")))
    for name in sorted({c for names in CHECKED.values() for c in names} - checks):
        result.bad(f"the check {name} is named in scripts/checks/coverage.py and is not there")
    result.note = f"{len(WANTED) - len(lacking(shown_by()))} of {len(WANTED)} shown"
    result.todo = "scripts/check --update requirements, and commit it"
