#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Judge the serial log of a run of tdx-tests.

usage: report.py run LOG         table of both modes, last line `tdx-mirror: run ok: ...`
       report.py selftests LOG [MODE...]
                                 checks per program, counts for the closing line;
                                 the modes that had to run, on and off if none is named
       report.py contract LOG    the same for the test module of the C contract
       report.py testdev LOG     the same for the test device
       report.py kunit LOG       the same for the KUnit suites
       report.py alarms LOG      what the kernel found wrong

The exit status is 1 if a program failed, something leaked, the kernel warned,
or the two sides (mirror and software TDX module) or the two modes differ.
"""

import re
import statistics
import sys

# What the kernel prints when it found something wrong.
ALARM = re.compile(
    r"WARNING: |\bBUG: |kernel BUG|KVM_BUG|Oops|general protection|Call Trace|unchecked MSR|"
    r"possible (circular|recursive|irq lock)|INFO: (possible|task|rcu|trying)|suspicious RCU|"
    r"inconsistent lock|held lock freed|bad unlock balance|lock held when returning|"
    r"Invalid wait context|sleeping function called|scheduling while atomic|list_(add|del) corruption|"
    r"Bad page|CFI failure|invariant|UBSAN: |soft lockup|hard LOCKUP|blocked for more than")
# What a WARN consists of. A test that provokes one says so in the kernel log, see
# td_klog_begin() of the selftests; nothing else is tolerated meanwhile.
WARN = re.compile(r"WARNING: |Call Trace")
EXPECTED, UNEXPECTED = "tdx-mirror-test: warnings expected", "tdx-mirror-test: no more warnings expected"
# The kernel's lines are in order among themselves, but may come later than a program's.
PROGRAM_ENDED = "tdx-mirror-test: program ended"
# A line of the kernel may come in the middle of one of a program.
SPLIT = re.compile(r"^(?P<head>[^\[]+)(?P<kernel>\[ *\d+\.\d{6}\] .*)$")
KERNEL = re.compile(r"^\[ *\d+\.\d{6}\] |^\*\* replaying previous printk")
ON_PURPOSE = re.compile(r"# on purpose: ((?:\w+ \d+ ?)+)$")
# Calls of the software TDX module that both modes must make equally often:
# what is built, measured, mapped and taken apart, not how often it was retried.
SAME_CALLS = re.compile(r"leaf_\d+_tdh_(mem_page_add|mem_page_aug|mem_page_remove|mem_sept_add|mr_extend|"
                        r"mr_finalize|mng_create|mng_init|vp_create|vp_init|phymem_page_reclaim)_ok$")


class Run:
    """One execution of one program in one mode."""

    def __init__(self, number, mode, program):
        self.number, self.mode, self.program = number, mode, program
        self.lines, self.stats, self.tsc, self.status = [], {"tdx_emu": {}, "tdx_mirror": {}}, None, None
        self.phases, self.purpose = {}, {}

        # Pages that earlier programs left to the TDX module, on purpose.
        self.left = 0

    def wanted(self, name):
        """What a test of the run left on purpose, see td_on_purpose()."""
        return self.purpose.get(name, 0)

    def get(self, part, name):
        return self.stats[part].get(name, 0)

    def cases(self):
        """(passed, failed, skipped) of the TAP lines of the program."""
        passed = failed = skipped = 0
        for line in self.lines:
            if re.match(r"ok \d+", line):
                if re.search(r"# *SKIP", line):
                    skipped += 1
                else:
                    passed += 1
            elif re.match(r"not ok \d+", line):
                failed += 1
        return passed, failed, skipped

    def plan(self):
        """How many test cases the program announced."""
        for line in self.lines:
            found = re.fullmatch(r"1\.\.(\d+)", line)
            if found:
                return int(found.group(1))
        return None

    def skips(self):
        """(test case, reason) of the skipped ones."""
        found = [re.match(r"ok \d+ (.*?)\s*# *SKIP\s*(.*)", line) for line in self.lines]
        return [(match.group(1), match.group(2)) for match in found if match]

    def where(self):
        return f"{self.program} (tdx_mirror={self.mode}, round {self.number})"


def whole_lines(text):
    """The lines of a console, those of programs put together again."""
    head = ""
    for raw in text.split("\n"):
        line = raw.rstrip("\r")
        if head and not KERNEL.match(line):
            line, head = head + line, ""
        split = SPLIT.match(line)
        if split:
            head, line = split.group("head"), split.group("kernel")
        yield line
    if head:
        yield head


def parse(path):
    """(runs, alarms, exit line seen) of a serial log."""
    runs, alarms, current, ended, tolerant = [], [], None, False, False
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        text = file.read()
    for line in whole_lines(text):
        if EXPECTED in line:
            tolerant = True
        elif UNEXPECTED in line:
            tolerant = False
        elif PROGRAM_ENDED in line and tolerant:
            alarms.append(f"{line}: a test did not say where its expected warnings end")
            tolerant = False
        if ALARM.search(line) and not line.startswith("@") and not (tolerant and WARN.search(line)):
            alarms.append(line)
        words = line.split()
        if line.startswith("@begin ") and len(words) >= 4:
            current = Run(int(words[1]), words[2], " ".join(words[3:]))
            runs.append(current)
            current.left = sum(run.wanted("owned") for run in runs)
        elif line.startswith("@reset-failed"):
            alarms.append(line)
        elif line.startswith("@stat ") and current and len(words) == 7 and words[6].isdigit():
            current.stats[words[4]][words[5]] = int(words[6])
        elif line.startswith("@tsc ") and current and len(words) == 2:
            current.tsc = int(words[1])
        elif line.startswith("@end ") and current and len(words) >= 5:
            current.status = int(words[-1])
            current = None
        elif current and not KERNEL.match(line):
            current.lines.append(line)
            phase = re.fullmatch(r"(?:# *)?phase (\S+) (\d+)", line)
            if phase:
                current.phases[phase.group(1)] = int(phase.group(2))
            purpose = ON_PURPOSE.match(line)
            if purpose:
                pairs = purpose.group(1).split()
                for name, value in zip(pairs[::2], pairs[1::2]):
                    current.purpose[name] = current.wanted(name) + int(value)
        if line.startswith("vm: exit "):
            ended = True
    if tolerant:
        alarms.append("a test did not say where its expected warnings end")
    return runs, alarms, ended


def judge(run):
    """What is wrong with one execution."""
    emu, mirror = run.stats["tdx_emu"], run.stats["tdx_mirror"]
    found = []
    if run.status is None:
        return ["did not end"]
    passed, failed, skipped = run.cases()
    if failed or run.status not in (0, 4):
        found.append(f"failed: status {run.status}, {failed} test cases not ok")
    if run.status in (0, 4) and not passed + skipped:
        found.append("reported no test case")
    elif run.plan() not in (None, passed + failed + skipped):
        found.append(f"announced {run.plan()} test cases and reported {passed + failed + skipped}")
    if not emu.get("counters"):
        found.append("no counters of the software TDX module")
    owned = emu.get("pamt_pages_owned", 0) - run.left - run.wanted("owned")
    if owned:
        found.append(f"{owned} pages still belong to the TDX module")
    if emu.get("invariant_errors"):
        found.append(f"{emu['invariant_errors']} invariant errors in the TDX module")
    if mirror.get("tds_live"):
        found.append(f"{mirror['tds_live']} TDs still live in the mirror")
    for name in ("leaked", "quarantined"):
        if mirror.get(name, 0) != run.wanted(name):
            found.append(f"{mirror.get(name, 0)} pages {name}, {run.wanted(name)} of them on purpose")
    if run.mode == "on":
        if not mirror.get("counters"):
            found.append("no counters of the mirror")
        theirs, ours = emu.get("leaf_present_transitions", 0), mirror.get("leaf_transitions", 0)
        if theirs != ours:
            found.append(f"TDX module saw {theirs} leaf transitions to present, the mirror {ours}")
        if run.get("tdx_mirror", "mapped") != run.get("tdx_mirror", "zapped") + run.wanted("not_zapped"):
            found.append(f"{run.get('tdx_mirror', 'mapped')} leaves mapped, {run.get('tdx_mirror', 'zapped')} zapped")
        if emu.get("leaf_present_transitions") and not mirror.get("tds_created"):
            found.append("the TD did not use the mirror")
    elif run.mode == "off" and mirror.get("tds_created"):
        found.append("a TD used the mirror though it is off")
    return found


def compare_modes(runs):
    """Counters that must not depend on who keeps the mirror."""
    found, by_key = [], {}
    for run in runs:
        by_key.setdefault((run.number, run.program), {})[run.mode] = run
    for (number, program), modes in by_key.items():
        if set(modes) < {"on", "off"}:
            continue
        names = set(modes["on"].stats["tdx_emu"]) | set(modes["off"].stats["tdx_emu"])
        for name in sorted(names):
            if not SAME_CALLS.search(name) and name not in ("leaf_present_transitions", "leaf_removed"):
                continue
            on, off = modes["on"].get("tdx_emu", name), modes["off"].get("tdx_emu", name)
            if on != off:
                found.append(f"{program} round {number}: {name} is {on} with the mirror and {off} without")
    return found


def leaf_name(counter):
    """leaf_6_tdh_mem_page_aug_calls -> TDH.MEM.PAGE.AUG"""
    return re.sub(r"^leaf_\d+_(.*)_calls$", r"\1", counter).upper().replace("_", ".")


def table(runs):
    """Medians over the rounds, one column per mode."""
    def median(mode, value):
        values = [v for v in (value(run) for run in runs if run.mode == mode) if v is not None]
        return int(statistics.median(values)) if values else None

    rows = [
        ("pages mapped", lambda r: r.get("tdx_emu", "leaf_present_transitions")),
        ("pages zapped", lambda r: r.get("tdx_emu", "leaf_removed")),
        ("pages leaked", lambda r: r.get("tdx_emu", "pamt_pages_owned") + r.get("tdx_mirror", "leaked")),
        ("busy answers", lambda r: r.get("tdx_emu", "busy")),
        ("retries", lambda r: r.get("tdx_mirror", "retries") if r.mode == "on" else None),
        ("kicks", lambda r: r.get("tdx_mirror", "kicks") if r.mode == "on" else None),
        ("guest entries", lambda r: r.get("tdx_emu", "guest_entries")),
        ("TDCALLs", lambda r: r.get("tdx_emu", "guest_tdcalls")),
        ("instructions", lambda r: r.tsc),
    ]
    phases = list(dict.fromkeys(name for r in runs for name in r.phases))
    rows += [("  " + name, lambda r, n=name: r.phases.get(n)) for name in phases]
    leaves = sorted({n for r in runs for n in r.stats["tdx_emu"] if re.match(r"leaf_\d+_.*_calls$", n)},
                    key=lambda n: int(n.split("_")[1]))
    calls = [(leaf_name(n), lambda r, n=n: r.get("tdx_emu", n)) for n in leaves]
    rounds = len({r.number for r in runs})
    lines = [f"{'tdx_mirror=':30}{'on':>14}{'off':>14}{'on - off':>14}"]

    def add(name, value):
        on, off = median("on", value), median("off", value)
        if not on and not off and name not in ("pages leaked", "retries", "kicks", "busy answers"):
            return
        shown = [f"{v:,}" if v is not None else "-" for v in (on, off)]
        diff = f"{on - off:+,}" if on is not None and off is not None and on != off else ""
        lines.append(f"{name:30}{shown[0]:>14}{shown[1]:>14}{diff:>14}".rstrip())

    for name, value in rows:
        add(name, value)
    add("SEAMCALLs", lambda r: sum(r.get("tdx_emu", n) for n in leaves))
    for name, value in calls:
        add("  " + name, value)
    lines.append(f"(medians of {rounds} rounds in one boot; instructions are the advance of the time stamp "
                 "counter; off counts no retries and kicks)")
    return lines


# Values of parameters that the module must refuse to be loaded with, and what it then says.
REFUSED = {
    "fault_tries=0": "fault_tries=0 is not in 1..5",
    "fault_tries=6": "fault_tries=6 is not in 1..5",
    "zap_batch=0": "zap_batch=0 is not in 1..512",
    "zap_batch=513": "zap_batch=513 is not in 1..512",
    "vp_enter_policy=panic": "vp_enter_policy=panic is none of count, warn, kill",
}


def skip_reasons(runs):
    """Reason -> the test cases that were skipped for it, with the mode."""
    found = {}
    for run in runs:
        for case, reason in run.skips():
            found.setdefault(reason or "no reason given", []).append(f"{case} ({run.mode})")
    return found


def closing(name, lines, passed, failed, problems):
    """The problems and the closing line of one test module; the exit status."""
    if "vm: exit 0" not in lines:
        problems.append("the machine did not end well")
    for what in problems:
        print(f"tdx-mirror: problem: {what}")
    # What cannot be counted as a test case has failed once.
    failed = max(failed, 1) if problems else failed
    print(f"{name}: {passed} passed, {failed} failed")
    return 1 if failed else 0


def kernel_text(path):
    """The lines of a log without the kernel's time stamps."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return [re.sub(r"^\[[ .\d]+\] ", "", line.rstrip("\r")) for line in file.read().split("\n")]


def contract_result(said, refused=()):
    """(passed, failed, problems) of tdx_mirror_contract_test.ko, which prints TAP into the kernel log at each load."""
    # Tests break rules on purpose and count the WARNs that this must cause.
    problems = [line for line in said
                if ALARM.search(line) and not re.search("tdx_mirror_(warn|assert_held)_|Call Trace", line)]
    passed = failed = loads = 0
    cases = {}
    for line in said:
        # A line may be on the console twice: a warning flushes what is queued.
        case = re.match(r"tdx_mirror_contract_test: (not )?ok (\d+) - (.*)", line)
        plan = re.match(r"tdx_mirror_contract_test: 1\.\.(\d+)$", line)
        if case:
            cases[int(case.group(2))] = not case.group(1)
            if case.group(1):
                print(f"# failed: {case.group(3)}")
        elif plan and cases:
            loads += 1
            if sorted(cases) != list(range(1, int(plan.group(1)) + 1)):
                problems.append(f"load {loads} of the test module lacks cases")
            passed += sum(cases.values())
            failed += len(cases) - sum(cases.values())
            cases = {}
    if cases or not loads:
        problems.append("the test module did not come to its end")
    for value in refused:
        good = f"refused {value}" in said and any(line.startswith(f"tdx_mirror: {REFUSED[value]}") for line in said)
        passed, failed = passed + good, failed + (not good)
        if not good:
            print(f"# failed: {value} is not refused")
    return passed, failed, problems


def contract(path):
    """The log of the module of the C contract, and of bad parameters."""
    said = kernel_text(path)
    return closing("contract", said, *contract_result(said, REFUSED))


def testdev_result(lines):
    """(passed, failed, problems) of testdev and open_files, which print TAP on the console."""
    passed = failed = 0
    problems = [line for line in lines if ALARM.search(line)]
    for program in ("testdev", "open_files"):
        good = sum(bool(re.match(rf"ok \d+ {program}\.", line)) and "# SKIP" not in line for line in lines)
        bad = sum(bool(re.match(rf"not ok \d+ {program}\.", line)) for line in lines)
        passed, failed = passed + good, failed + bad
        if f"1..{good + bad}" not in lines or not good:
            problems.append(f"the program {program} did not come to its end, or skipped tests")
    return passed, failed, problems


def testdev(path):
    """The log of a run of the test device."""
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.rstrip("\r") for line in file.read().split("\n")]
    return closing("testdev", lines, *testdev_result(lines))


def kunit_result(lines):
    """(passed, failed, problems) of tdx_mirror_kunit.ko, whose suites print KTAP into the kernel log."""
    passed = failed = 0
    problems, suites, suite = [line for line in lines if ALARM.search(line)], {}, None
    for line in lines:
        subtest = re.match(r" +# Subtest: (tdx_mirror_\w+)$", line)
        plan = re.match(r" +1\.\.(\d+)$", line)
        case = re.match(r" +(not )?ok \d+ (\w+)(.*)", line)
        end = re.match(r"(not )?ok \d+ (tdx_mirror_\w+)", line)
        if subtest:
            suite = suites[subtest.group(1)] = {"plan": None, "cases": {}, "ended": False}
        elif plan and suite:
            suite["plan"] = int(plan.group(1))
        elif case and suite:
            good = not case.group(1) and "SKIP" not in case.group(3)
            suite["cases"][case.group(2)] = good
            if not good:
                print(f"# failed: {case.group(2)}")
        elif end and end.group(2) in suites:
            suites[end.group(2)]["ended"] = True
            suite = None
        elif suite and re.search(r"expected|Expected|FAILED", line):
            print(f"# {line.strip()}")
    for name, seen in suites.items():
        passed += sum(seen["cases"].values())
        failed += len(seen["cases"]) - sum(seen["cases"].values())
        if not seen["ended"] or seen["plan"] != len(seen["cases"]):
            problems.append(f"suite {name} did not come to its end")
    if not suites:
        problems.append("no suite ran")
    return passed, failed, problems


def kunit(path):
    """The log of a load of the module of KUnit suites."""
    lines = kernel_text(path)
    return closing("kunit", lines, *kunit_result(lines))


def kernel_alarms(path):
    """What the kernel found wrong, whoever ran."""
    found = [line for line in kernel_text(path) if ALARM.search(line)]
    for line in found:
        print(f"tdx-mirror: problem: kernel log: {line}")
    return 1 if found else 0


def main(argv):
    if len(argv) < 2 or argv[0] not in ("run", "selftests", "contract", "testdev", "kunit", "alarms") or \
            argv[2:] and argv[0] != "selftests":
        print(__doc__.strip(), file=sys.stderr)
        return 2
    if argv[0] == "alarms":
        return kernel_alarms(argv[1])
    if argv[0] == "contract":
        return contract(argv[1])
    if argv[0] == "testdev":
        return testdev(argv[1])
    if argv[0] == "kunit":
        return kunit(argv[1])
    runs, alarms, ended = parse(argv[1])
    problems = [f"kernel log: {line}" for line in alarms]
    if not ended:
        problems.append("the machine did not come to its end")
    if not runs:
        problems.append("no test program ran")
    for run in runs:
        problems += [f"{run.where()}: {what}" for what in judge(run)]
    for reason, cases in skip_reasons(runs).items():
        if reason == "no reason given":
            problems.append(f"skipped without a reason: {', '.join(cases)}")
    modes = {run.mode for run in runs}
    if runs and not set(argv[2:] or ("on", "off")) <= modes:
        problems.append(f"ran only with tdx_mirror={', '.join(sorted(modes))}")

    if argv[0] == "run":
        problems += compare_modes(runs)
        print("\n".join(table(runs)))
        mapped = sum(r.get("tdx_emu", "leaf_present_transitions") for r in runs if r.mode == "on")
        zapped = sum(r.get("tdx_emu", "leaf_removed") for r in runs if r.mode == "on")
        leaked = sum(r.get("tdx_mirror", "leaked") + r.get("tdx_emu", "pamt_pages_owned") for r in runs)
        if not mapped:
            problems.append("no page was mapped")
        for what in problems:
            print(f"tdx-mirror: problem: {what}")
        if problems:
            print(f"tdx-mirror: run failed: {len(problems)} problems")
            return 1
        print(f"tdx-mirror: run ok: {mapped} pages mapped, {zapped} zapped, {leaked} leaked")
        return 0

    passed = failed = skipped = 0
    for run in runs:
        ok, bad, skip = run.cases()
        passed, failed, skipped = passed + ok, failed + bad, skipped + skip
        print(f"# {run.where()}: {ok} ok, {bad} not ok, {skip} skipped; leaf transitions: TDX module "
              f"{run.get('tdx_emu', 'leaf_present_transitions')}"
              + (f", mirror {run.get('tdx_mirror', 'leaf_transitions')}" if run.mode == "on" else ""))
    for reason, cases in skip_reasons(runs).items():
        print(f"# skipped: {len(cases)}: {reason}: {', '.join(cases)}")
    for what in problems:
        print(f"tdx-mirror: problem: {what}")
    # A problem that no test case reported is a failure of its own.
    failed = max(failed, 1) if problems else failed
    print(f"selftests: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
