#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Judge the serial log of a run of tdx-sanitize with a debug kernel.

usage: sanitize.py FLAVOUR LOG

The parts up to "leaks" must be clean: each test case passes, the kernel reports
nothing, kmemleak finds nothing.  Each bug of tdx_mirror_bad.ko that the flavour
looks for must have been reported.  The last line counts, the exit status is 1
if something failed.
"""

import re
import sys

sys.dont_write_bytecode = True

import report  # noqa: E402

# What a flavour must say of each bug of tdx_mirror_bad.ko.
LOCKDEP = {
    "sleep_atomic": r"BUG: sleeping function called from invalid context",
    "rcu_unprotected": r"WARNING: suspicious RCU usage",
    "list_twice": r"list_add (double add|corruption)",
    "lock_order": r"WARNING: possible circular locking dependency",
}
DETECTS = {
    "debug": LOCKDEP,
    "kasan": {
        "past_end_c": r"BUG: KASAN: slab-out-of-bounds in read_past_end",
        "past_end_rust": r"BUG: KASAN: slab-out-of-bounds in tdx_mirror_bad_rust_read",
        "after_free_rust": r"BUG: KASAN: slab-use-after-free in tdx_mirror_bad_rust_read",
        **LOCKDEP,
        "call_rust": r"CFI failure at call_rust\b.*target: tdx_mirror_bad_rust_answer",
        "call_c": r"CFI failure at tdx_mirror_bad_rust_call\b.*target: bad_c_answer",
        "leak": None,
    },
    "kcsan": {
        "race": r"BUG: KCSAN: data-race in .*(race_thread|bad_init|race\b)",
        "shift": r"UBSAN: shift-out-of-bounds",
    },
}
# In a report of KCSAN: code of this project, or of KVM.
OURS = re.compile(r"\[(tdx_\w+|kvm\w*)\]|\btdx_mirror_")
RULE = re.compile(r"^={20,}$")


def split(lines):
    """({part: the kernel's lines}, the lines of programs)."""
    parts, programs, current = {"boot": []}, [], "boot"
    for line in report.whole_lines("\n".join(lines)):
        if not report.KERNEL.match(line):
            programs.append(line)
            continue
        text = re.sub(r"^\[[ .\d]+\] ", "", line)
        begin = re.match(r"@part (.*)", text)
        if begin:
            current = begin.group(1)
            parts.setdefault(current, [])
        else:
            parts[current].append(text)
    return parts, programs


def without_foreign_races(lines):
    """(lines without the KCSAN reports that name no code of ours, titles of those)."""
    kept, foreign, block = [], [], None
    for line in lines:
        if block is None and RULE.match(line):
            block = [line]
        elif block is not None:
            block.append(line)
            if RULE.match(line) and len(block) > 2:
                text = "\n".join(block)
                if "BUG: KCSAN: " in text and not OURS.search(text):
                    foreign.append(next(row for row in block if "BUG: KCSAN: " in row))
                else:
                    kept += block
                block = None
        else:
            kept.append(line)
    return kept + (block or []), foreign


class Judge:
    """Counts, and prints each judgement as a line of TAP."""

    def __init__(self, flavour):
        self.flavour, self.number, self.passed, self.failed = flavour, 0, 0, 0

    def add(self, name, good, shown=()):
        self.number += 1
        self.passed, self.failed = self.passed + good, self.failed + (not good)
        for line in () if good else list(shown)[:80]:
            print(f"# {line}")
        print(f"{'ok' if good else 'not ok'} {self.number} {self.flavour}.{name}")

    def cases(self, name, result):
        """Test cases of a suite, counted by report.py; its problems are a judgement of their own."""
        passed, failed, problems = result
        self.passed, self.failed = self.passed + passed, self.failed + failed
        self.add(f"{name}.complete", not problems, problems)


def judge(flavour, path):
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        text = file.read().replace("\r", "")
    parts, programs = split(text.split("\n"))
    out = Judge(flavour)
    foreign = []
    for name in list(parts):
        parts[name], found = without_foreign_races(parts[name])
        foreign += found
    for title in sorted(set(foreign)):
        print(f"# a race of the kernel itself, {foreign.count(title)} times: {title}")

    out.cases("contract", report.contract_result(parts.get("contract", [])))
    out.cases("testdev", report.testdev_result(programs))
    out.cases("kunit", report.kunit_result(parts.get("kunit", [])))
    for line in programs:
        # Programs other than those above.
        case = re.match(r"(not )?ok \d+ ((?:modules|fuzz)\S*)", line)
        if case:
            out.add(case.group(2), not case.group(1))
    for name in ("boot", "testdev", "kunit", "modules", "files", "fuzz", "leaks"):
        if name in parts:
            alarms = [line for line in parts[name] if report.ALARM.search(line)]
            out.add(f"{name}.no_report", not alarms, parts[name] if alarms else ())
    leaks = [int(line.split()[1]) for line in programs if re.fullmatch(r"@leaks \d+", line)]
    detects = DETECTS[flavour]
    if "leak" in detects:
        out.add("no_leak", leaks[:1] == [0], [line for line in programs if line.startswith("@leak ")])
    for bug, pattern in detects.items():
        if pattern is None:
            good = len(leaks) == 2 and leaks[1] > leaks[0]
        else:
            good = any(re.search(pattern, line) for line in parts.get(f"bad {bug}", []))
        out.add(f"reports.{bug}", good, parts.get(f"bad {bug}", []))
    out.add("machine_came_to_its_end", "end" in parts and "vm: exit 0" in programs, programs[-20:])
    print(f"{flavour}: {out.passed} passed, {out.failed} failed")
    return 1 if out.failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in DETECTS:
        print(__doc__.strip(), file=sys.stderr)
        sys.exit(2)
    sys.exit(judge(sys.argv[1], sys.argv[2]))
