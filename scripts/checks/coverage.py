# SPDX-License-Identifier: GPL-2.0
"""Which requirement is shown by which test, and the document that lists it."""

import os
import re

import lib
from unsafe_code import grid

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
    "R14": "only operands that may be contended are retried",
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

# What is shown by reading the program, the build or a document, not by a test.
OTHERWISE = {
    "R1": "design.rst; the mirror has no lock",
    "R3": "debug kernel of the emulated host (DEBUG_ATOMIC_SLEEP, PROVE_LOCKING)",
    "R5": "const assertion in rust/sept.rs",
    "R22": "unsafe.rst",
    "R33": "static_assert in rust/helpers/abi_check.c",
    "R38": "no such code",
    "R39": "the mirror handles PFNs only; the pages it follows are its own tables",
    "R41": "#[must_use], checked by clippy",
    "R42": "no new ioctl",
    "R45": "the texts of this folder",
    "R46": "tdx-mirror.rst",
    "R47": "scripts/check panics, panic-symbols",
    "R49": "there is no fast path yet",
    "R50": "design.rst",
    "B12": "evidence tokens: a zap takes Exclusive",
    "B16": "GFP_KERNEL_ACCOUNT in the hooks of kvm_intel; KVM's own caches",
}

# Tests in C, as program.case: their names do not hold requirements.
IN_C = {
    "contract_test.test_contention": ["R4", "R18", "R26", "B7", "B14", "B34"],
    "contract_test.test_build": ["R4"],
    "contract_test.test_leak": ["R9"],
    "contract_test.test_map": ["R27", "R29", "R46"],
    "contract_test.test_parallel": ["R17", "R31", "R36"],
    "parallel.disjoint_gfns": ["R2", "R31"],
    "parallel.same_gfns": ["R27", "R36", "B1"],
    "parallel.with_prefault": ["R27", "R36"],
    "parallel.zap_what_is_faulted": ["R36"],
    "convert.by_the_vmm": ["R40"],
    "convert.range_and_attribute_disagree": ["R24"],
    "memslot_delete.under_a_fault": ["B4"],
    "bad_input.add_memory_from_two_threads": ["B8"],
    "build_race.punch_hole_and_measure": ["B8"],
    "build_race.punch_hole_and_finalize": ["B8"],
    "bad_input.add_memory": ["B18", "R46"],
    "prefault.end_of_the_slot": ["B18"],
}

RUST_TEST = re.compile(r"\bfn\s+((?:[rb]\d+_)+\w+)\s*\(")
C_TEST = re.compile(r"^TEST(?:_F)?\(\s*(?:\w+\s*,\s*)?(\w+)\s*\)|^static void (test_\w+)\(void\)$", re.M)


def tests_in_c():
    """All cases of the programs in tools/testing as program.case."""
    found = set()
    for name in lib.files("tools/testing/selftests/*.c", "tools/testing/contract/*.c"):
        for program, kernel in C_TEST.findall(lib.read(name)):
            found.add(f"{os.path.basename(name)[:-2]}.{program or kernel}")
    return found


def shown_by():
    """Requirement -> sorted names of its tests."""
    found = {number: set() for number in WANTED}
    for name in lib.files("tools/testing/*.rs", "rust/*.rs"):
        for test in RUST_TEST.findall(lib.read(name)):
            for number in re.match(r"(?:[rb]\d+_)+", test).group(0).strip("_").upper().split("_"):
                found.setdefault(number, set()).add(f"{os.path.basename(name)[:-3]}::{test}")
    for test, numbers in IN_C.items():
        for number in numbers:
            found.setdefault(number, set()).add(test)
    return {number: sorted(tests) for number, tests in found.items()}


def document():
    shown = shown_by()
    open_ones = [n for n in WANTED if not shown[n] and n not in OTHERWISE]
    lines = []
    for number, what in WANTED.items():
        how = [f"``{t}``" for t in shown[number]]
        if number in OTHERWISE:
            how.append(OTHERWISE[number])
        lines.append(f"{number}: {what}\n  " + ("; ".join(how) if how else "*nothing yet*"))
    count = len(WANTED) - len(open_ones)
    return f""".. SPDX-License-Identifier: GPL-2.0

=================================
Requirements and what shows each
=================================

Written by ``scripts/check --update requirements``; ``make check`` fails when it
is out of date.  R are requirements from the discussions of TDX in KVM, B are
bugs that happened there.  A Rust test carries the numbers in its name; tests in
C are named as program.case.

{count} of {len(WANTED)} have something that shows them, at least in part.  Without:
{", ".join(open_ones)}.

""" + "\n\n".join(lines) + "\n"


def update():
    with open(os.path.join(lib.TOP, TABLE), "w", encoding="utf-8") as f:
        f.write(document())
    return TABLE


def requirements(result):
    shown = shown_by()
    for number in shown:
        if number not in WANTED:
            result.bad(f"{', '.join(shown[number])}: there is no requirement {number}")
    there = tests_in_c()
    for test in IN_C:
        if test not in there:
            result.bad(f"{test} is named in scripts/checks/coverage.py and is not there")
    if not os.path.exists(os.path.join(lib.TOP, TABLE)):
        result.missing(TABLE, "scripts/check --update requirements, and commit it")
    elif lib.read(TABLE) != document():
        result.bad(f"{TABLE} is out of date")
    result.note = f"{sum(1 for n in WANTED if shown[n] or n in OTHERWISE)} of {len(WANTED)} shown"
    result.todo = "scripts/check --update requirements, and commit it"
