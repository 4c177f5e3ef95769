#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Judge a boot of Linux as a TD on the emulated host.

usage: boot_report.py LOG FOLDER MODE... [--command]
  LOG      serial log of the host, in which td-linux ran
  FOLDER   where its folder /out was saved: the guest's consoles, console-MODE, and
           what the VMM counted, vmm-MODE.json
  MODE     what must have been booted: on, off
  --command  the guest ran a command instead of its tests

Prints a table with a column per mode, then what is wrong; the last line is
`boot-linux: N passed, M failed`. The exit status is 1 if a test of the guest
failed, the host's or the guest's kernel warned, something leaked, the mirror
and the software TDX module differ, or the consoles of two modes differ in more
than times and addresses.
"""

import difflib
import json
import os
import re
import sys

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(HERE)), "vm"))

import report  # noqa: E402

GUEST = "guest| "
NAMES = {"on": "Rust mirror", "off": "KVM's own"}
# What a guest prints beside what any kernel prints when something is wrong.
GUEST_ALARM = re.compile(report.ALARM.pattern + r"|Kernel panic|Unexpected #VE|tdx: .*failed|failed to accept|"
                         r"unable to open an initial console|soft lockup|rcu: INFO")
# The kernel's stamp in front of a line, and the mark of ttyprintk.
STAMP = re.compile(r"^\[ *\d+\.\d{6}\](?: \[U\])? ")


class Boot:
    """One boot of the guest in one mode."""

    def __init__(self, mode):
        self.mode, self.status, self.tsc = mode, None, None
        self.stats = {"tdx_emu": {}, "tdx_mirror": {}}
        self.console, self.vmm = [], {}

    def take(self, line):
        """A line of the VMM's output: its own, or one of the guest's console."""
        tsc = re.fullmatch(r"@tsc (\d+)", line)
        if tsc:
            self.tsc = int(tsc.group(1))
        elif not line.startswith("tdx-vmm: "):
            self.console.append(line)

    def saved(self, folder):
        """What the host saved: better than the serial line, where its kernel's lines split others."""
        console = os.path.join(folder, "console-" + self.mode)
        if os.path.exists(console):
            self.console = []
            with open(console, encoding="utf-8", errors="replace", newline="\n") as file:
                for line in file.read().split("\n"):
                    self.take(line.rstrip("\r"))
        stats = os.path.join(folder, f"vmm-{self.mode}.json")
        if os.path.exists(stats):
            with open(stats, encoding="utf-8") as file:
                self.vmm = json.load(file)

    def get(self, part, name):
        return self.stats[part].get(name, 0)

    def said(self):
        """What the guest printed, without stamps."""
        return [STAMP.sub("", line) for line in self.console]

    def tests(self):
        """(passed, names of failed ones, number announced) of the guest's tests."""
        passed, failed, plan = 0, [], None
        for line in self.said():
            found = re.match(r"(not )?ok \d+ - (.*)", line)
            if found and found.group(1):
                failed.append(found.group(2))
            elif found:
                passed += 1
            elif re.fullmatch(r"1\.\.\d+", line):
                plan = int(line[3:])
        return passed, failed, plan


def parse(text, folder):
    """(boots, lines of the host that are alarms, whether the machine came to its end)."""
    boots, suspects, current, ended = [], [], None, False
    for raw in text.split("\n"):
        line = raw.rstrip("\r")
        words = line.split()
        if line.startswith(GUEST) and current:
            line = line[len(GUEST):]
            current.take(line)
        elif line.startswith("@boot ") and len(words) == 2:
            current = Boot(words[1])
            boots.append(current)
        elif line.startswith("@booted ") and current and len(words) == 3:
            current.status = int(words[2])
            current = None
        elif line.startswith("@stat ") and current and len(words) == 5 and words[4].isdigit():
            current.stats[words[2]][words[3]] = int(words[4])
        if line.startswith(("@reset-failed", "@record-failed")) or report.ALARM.search(line):
            suspects.append(line)
        ended = ended or line.startswith("vm: exit ")
    for boot in boots:
        boot.saved(folder)
    # A line of the host's kernel may be in the middle of one of the guest; what the
    # guest itself said is judged with the guest.
    said = {line for boot in boots for line in boot.console}
    return boots, [line for line in suspects if line not in said], ended


def guest_faults(boot, command):
    """What the guest's side says is wrong."""
    found = []
    if boot.status is None:
        found.append("the boot did not end")
    elif boot.status:
        found.append(f"the VMM ended with status {boot.status}")
    found += [f"guest log: {line}" for line in boot.console if GUEST_ALARM.search(line)]
    if not any(line.startswith("td: user space") for line in boot.said()):
        found.append("the guest did not reach user space")
    passed, failed, plan = boot.tests()
    if not command and (not passed or plan != passed + len(failed)):
        found.append(f"the guest announced {plan} tests and reported {passed + len(failed)}")
    return found


def host_faults(boot):
    """What the counters of the host say is wrong."""
    emu, mirror, found = boot.stats["tdx_emu"], boot.stats["tdx_mirror"], []
    if not emu.get("counters"):
        return ["no counters of the software TDX module"]
    if not emu.get("leaf_present_transitions"):
        found.append("no page was mapped")
    if emu.get("pamt_pages_owned"):
        found.append(f"{emu['pamt_pages_owned']} pages still belong to the TDX module")
    if emu.get("invariant_errors"):
        found.append(f"{emu['invariant_errors']} invariant errors in the TDX module")
    for name in ("leaked", "quarantined", "tds_live"):
        if mirror.get(name):
            found.append(f"the mirror counts {name} {mirror[name]}")
    if boot.mode == "on":
        if not mirror.get("tds_created"):
            found.append("the TD did not use the mirror")
        if emu.get("leaf_present_transitions") != mirror.get("leaf_transitions"):
            found.append(f"the TDX module saw {emu.get('leaf_present_transitions')} leaf transitions to present, "
                         f"the mirror {mirror.get('leaf_transitions')}")
        if mirror.get("mapped") != mirror.get("zapped"):
            found.append(f"{mirror.get('mapped')} leaves mapped, {mirror.get('zapped')} zapped")
    elif mirror.get("tds_created"):
        found.append("the TD used the mirror though it is off")
    return found


# What may differ between two boots: a name for it, and what it looks like. Nothing
# else is hidden; guest physical addresses are those of the VMM's layout and stay.
HIDDEN = [
    # Also where user space prints the kernel's log.
    ("stamp", re.compile(r"(?:^|(?<=\[U\] ))\[ *\d+\.\d{6}\]")),
    ("address", re.compile(r"\b(?:0x)?ffff[0-9a-f]{12}\b")),
    # sched_clock: Marking stable (12345, 678)->(123, 456)
    ("time", re.compile(r"(?<=Marking stable )\(-?\d+, -?\d+\)->\(-?\d+, -?\d+\)")),
    ("time", re.compile(r"\b\d+\.\d+ s\b|\b\d+ (?:ns|us|usecs|msecs)\b")),
    # What two vCPUs have left of it after their stress: which of them finds its lists empty,
    # and accepts the next 4 MiB, depends on how they take turns.
    ("left", re.compile(r"(?<=written and verified; unaccepted )\d+ KiB|(?<=memory at the end: unaccepted )\d+ kB")),
]


def normal(line):
    """A line of the console without what may differ between two boots."""
    for name, pattern in HIDDEN:
        line = pattern.sub(f"<{name}>", line)
    return line


def compare(one, two):
    """The differences of two consoles, as lines of a diff."""
    left, right = ([normal(line) for line in boot.console if line] for boot in (one, two))
    return [line for line in difflib.unified_diff(left, right, one.mode, two.mode, lineterm="", n=0)
            if not line.startswith("@@")]


def leaf_names(boots):
    names = {n for b in boots for n in b.stats["tdx_emu"] if re.fullmatch(r"leaf_\d+_.*_calls", n)}
    return sorted(names, key=lambda n: int(n.split("_")[1]))


def table(boots):
    """What the boots took and did, one column for each."""
    lines = []

    def add(name, value, always=False):
        values = [value(boot) for boot in boots]
        if not always and not any(values):
            return
        shown = "".join(f"{'-' if v is None else format(v, ','):>16}" for v in values)
        lines.append(f"{name:34}{shown}")

    def emu(name):
        return lambda boot: boot.get("tdx_emu", name)

    def mirror(name):
        return lambda boot: boot.get("tdx_mirror", name) if boot.mode == "on" else None

    lines.append(f"{'tdx_mirror=':34}" + "".join(f"{boot.mode:>16}" for boot in boots))
    lines.append(f"{'':34}" + "".join(f"{NAMES.get(boot.mode, ''):>16}" for boot in boots))
    add("instructions, VMM start to end", lambda boot: boot.tsc, True)
    times = [{m["name"]: m["tsc"] for m in boot.vmm.get("milestones", [])} for boot in boots]
    for name in dict.fromkeys(n for one in times for n in one):
        add(f"  until {name}", lambda boot, n=name: times[boots.index(boot)].get(n))
    add("guest entries", emu("guest_entries"), True)
    for name in sorted({n for b in boots for n in b.stats["tdx_emu"] if n.startswith("guest_")} - {"guest_entries"}):
        add(name.replace("_", " "), emu(name))
    add("exits to the VMM", lambda boot: sum(boot.vmm.get("exits", {}).values()))
    for name in dict.fromkeys(n for boot in boots for n in boot.vmm.get("exits", {})):
        add("  " + name.replace("_", " "), lambda boot, n=name: boot.vmm.get("exits", {}).get(n))
    for way in ("shared", "private"):
        side = [boot.vmm.get("to_" + way, {}) for boot in boots]
        add(f"conversions to {way}", lambda boot: side[boots.index(boot)].get("conversions"))
        add("  pages", lambda boot: side[boots.index(boot)].get("bytes", 0) // 4096)
    add("SEAMCALLs", lambda boot: sum(boot.get("tdx_emu", n) for n in leaf_names(boots)), True)
    for name in leaf_names(boots):
        add("  " + report.leaf_name(name), emu(name))
    add("answers BUSY", emu("busy"), True)
    add("retries", mirror("retries"), True)
    add("kicks", mirror("kicks"), True)
    add("pages mapped", emu("leaf_present_transitions"), True)
    add("pages zapped", emu("leaf_removed"), True)
    add("pages leaked", lambda boot: boot.get("tdx_emu", "pamt_pages_owned") + boot.get("tdx_mirror", "leaked"), True)
    lines.append("(instructions are the advance of the time stamp counter; KVM's own mirror counts no retries and kicks)")
    return lines


def judge(boots, alarms, ended, modes, command):
    """(passed, problems): what was checked and good, and what is wrong."""
    passed, problems = 0, []

    def group(found, what=""):
        nonlocal passed
        passed += not found
        problems.extend(what + one for one in found)

    booted = [boot.mode for boot in boots]
    group([] if booted == modes else [f"booted {' '.join(booted) or 'nothing'} instead of {' '.join(modes)}"])
    group([] if ended else ["the machine did not come to its end"])
    group([f"host log: {line}" for line in alarms])
    for boot in boots:
        what = f"tdx_mirror={boot.mode}: "
        ok, bad, _ = boot.tests()
        passed += ok
        problems += [f"{what}test failed: {name}" for name in bad]
        group(guest_faults(boot, command), what)
        group(host_faults(boot), what)
    if len(boots) == 2:
        differences = compare(*boots)
        group([f"the consoles differ: {line}" for line in differences[:40]])
        if len(differences) > 40:
            problems.append(f"the consoles differ: {len(differences) - 40} more lines")
    return passed, problems


def main(argv):
    command = "--command" in argv
    argv = [arg for arg in argv if arg != "--command"]
    if len(argv) < 3 or not set(argv[2:]) <= set(NAMES):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    with open(argv[0], encoding="utf-8", errors="replace", newline="\n") as file:
        boots, alarms, ended = parse(file.read(), argv[1])
    passed, problems = judge(boots, alarms, ended, argv[2:], command)
    if boots:
        print("\n".join(table(boots)))
    for what in problems:
        print(f"tdx-mirror: problem: {what}")
    print(f"boot-linux: {passed} passed, {len(problems)} failed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
