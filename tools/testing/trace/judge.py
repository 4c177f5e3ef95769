#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Judge what trace-cmd, perf and bpftrace saw of the same TDs.

usage: judge.py FOLDER       what observe.sh left in /out of the machine

Three tools, and the figures of debugfs, which do not come from tracepoints,
must tell the same: how often each event came, and with which values.
"""

import json
import os
import re
import sys
from collections import Counter

# Each name begins with tdx_mirror_ in the kernel.
EVENTS = ("spte_changed", "fault", "zap", "seamcall", "busy", "kick", "track", "quarantine", "leak", "bug")
PAGE = 4096
# The part of an SPTE that is the page's address.
ADDRESS = 0x000ffffffffff000
PRESENT = 1 << 11
LEVELS = {1: PAGE, 2: PAGE << 9, 3: PAGE << 18, 4: PAGE << 27, 5: PAGE << 36}
# Result of map() -> the figure that counts it: TDX_MIRROR_MAP_* and, for retries, TDX_MIRROR_RETRY_*.
OUTCOMES = {"1": "fixed", "2": "spurious", "256": "frozen", "512": "no_page",
            **{str(n): "contended" for n in range(0x1000, 0x1600, 0x100)},
            "-5": "bugged", "-22": "invalid"}
OPERANDS = {"1": "sept_tree", "2": "sept_entry", "3": "td_epoch", "4": "previous_epoch", "5": "tdr",
            "6": "other"}
TDX = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../tdx_mirror/tdx")


def table_of_calls():
    """Leaf number -> name in the trace, label of the figures: of the calls in tdx_mirror/tdx/call.rs."""
    with open(os.path.join(TDX, "leaf.rs"), encoding="utf-8") as file:
        numbers = {leaf: (number, name) for leaf, number, name in
                   re.findall(r'^    (\w+) = (\d+), "TDH\.([\w.]+)";$', file.read(), re.M)}
    with open(os.path.join(TDX, "call.rs"), encoding="utf-8") as file:
        table = file.read().split("\ncalls! {\n")[1].split("\n}\n")[0]
    found = {}
    for label, calls in re.findall(r"^    (\w+) \{\n(.*?)^    \}$", table, re.M | re.S):
        for leaf in re.findall(r"\} = (\w+),$", calls, re.M):
            number, name = numbers[leaf]
            found[number] = (name, label)
    return found


LEAVES = table_of_calls()
LINE = re.compile(r"^\s*\S.*-(\d+)\s+\[\d+\]\s.*?\s(\d+\.\d+):\s+tdx_mirror_(\w+):\s+(td \d+.*)$")


def figures(text):
    """`name value` per line."""
    return Counter({name: int(value) for name, value in (line.split() for line in text.splitlines() if line)})


def number(word):
    try:
        return int(word, 0)
    except ValueError:
        return word


def events(text):
    """[(event, fields)] of a report of trace-cmd; a word without a name is `what`."""
    found = []
    for line in text.splitlines():
        if not (parts := LINE.match(line)):
            continue
        words, fields = parts.group(4).replace("tries left", "left").split(), {}
        while words:
            if len(words) == 1 or words[0] not in ("td", "gpa", "level", "pa", "status", "operand", "cycles", "ns", "old",
                                                   "new", "gfn", "gfns", "pfn", "zapped", "left", "value", "other"):
                fields["what"] = words.pop(0)
            else:
                name, value, *words = words
                fields[name] = number(value)
        found.append((parts.group(3), fields))
    return found


def of_perf(text):
    """event -> times, of `perf stat -x,`."""
    rows = (line.split(",") for line in text.splitlines())
    return {row[2].removeprefix("tdx_mirror:tdx_mirror_"): int(row[0])
            for row in rows if len(row) > 2 and row[0].isdigit()}


def of_bpftrace(text):
    """map -> its value or dictionary, of `bpftrace -f json`."""
    found = {}
    for line in text.splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            if row.get("type") == "map":
                found.update(row["data"])
    return found


class Judge:
    def __init__(self):
        self.passed = self.failed = 0

    def that(self, name, good, seen=""):
        self.passed, self.failed = self.passed + bool(good), self.failed + (not good)
        print(f"{'ok' if good else 'not ok'} - {name}{'' if good else f': {seen}'}")

    def same(self, name, one, other):
        self.that(f"{name}: {one}", one == other, f"{other} by the figures")


def calls(stats, op):
    return sum(stats[f"seamcall_{op}_{kind}"] for kind in ("success", "busy", "failed", "noted"))


def wanted(stats):
    """event -> how often it came by the figures; zap and bug have none."""
    return {
        "fault": sum(stats[f"faults_{n}"] for n in set(OUTCOMES.values())),
        "seamcall": sum(calls(stats, op) for op in {op for _, op in LEAVES.values()}),
        "busy": stats["busy"], "kick": stats["kicks"], "track": stats["track_calls"],
        "quarantine": stats["quarantined"], "leak": stats["leaked"],
    }


def judge_faults(judge, faults, stats):
    for name in dict.fromkeys(OUTCOMES.values()):
        judge.same(f"bpftrace: faults {name}", sum(faults.get(n, 0) for n, of in OUTCOMES.items() if of == name),
                   stats[f"faults_{name}"])
    judge.that("bpftrace: each outcome of a fault is a known one", not set(faults) - set(OUTCOMES), sorted(faults))


def judge_counts(judge, perf, bpf, both):
    for event, times in wanted(both).items():
        judge.same(f"perf: {event}", perf.get(event), times)
    for event in EVENTS:
        judge.that(f"perf: {event} came", perf.get(event, 0) > 0, perf.get(event))
    for event in ("kick", "track", "quarantine", "leak"):
        judge.same(f"bpftrace: {event}", bpf.get(f"@{event}"), wanted(both)[event])
    judge_faults(judge, bpf.get("@fault", {}), both)
    leaves = bpf.get("@seamcall", {})
    for op in sorted({op for _, op in LEAVES.values()}):
        judge.same(f"bpftrace: {op}", sum(leaves.get(n, 0) for n, (_, of) in LEAVES.items() if of == op), calls(both, op))
    judge.same("bpftrace: MEM.PAGE.ADD", leaves.get("2", 0), both["seamcall_page_add"])
    for operand, name in OPERANDS.items():
        judge.same(f"bpftrace: {name} busy", bpf.get("@busy", {}).get(operand, 0),
                   sum(v for k, v in both.items() if re.fullmatch(rf"(retries|giveups)_\w+_{name}", k)
                       and not (name == "sept_entry" and k.endswith("_tree"))))
    judge.same("bpftrace: pages zapped", bpf.get("@zapped"), both["zapped"])
    for event in ("spte_changed", "bug"):
        judge.same(f"bpftrace and perf: {event}", sum(bpf.get(f"@{event}", {}).values()), perf.get(event))


def judge_life(judge, seen, stats):
    """What trace-cmd saw of the TDs of the test device: each value."""
    times = Counter(event for event, _ in seen)
    for event, count in wanted(stats).items():
        judge.same(f"trace-cmd: {event}", times[event], count)
    of = {event: [f for e, f in seen if e == event] for event in EVENTS}
    names = Counter(f["what"] for f in of["seamcall"])
    for name, op in sorted(LEAVES.values()):
        if name not in ("MEM.PAGE.ADD", "MEM.PAGE.AUG"):
            judge.same(f"trace-cmd: {name}", names[name], calls(stats, op))
    judge.same("trace-cmd: MEM.PAGE.ADD", names["MEM.PAGE.ADD"], stats["seamcall_page_add"])
    judge.same("trace-cmd: MEM.PAGE.AUG", names["MEM.PAGE.AUG"], calls(stats, "page_map") - stats["seamcall_page_add"])
    outcomes = Counter(f["what"] for f in of["fault"])
    judge.same("trace-cmd: faults fixed, spurious", (outcomes["fixed"], outcomes["spurious"]),
               (stats["faults_fixed"], stats["faults_spurious"]))
    judge.same("trace-cmd: pages zapped", sum(f["zapped"] for f in of["zap"]), stats["zapped"])
    bad = [f for e in ("seamcall", "spte_changed") for f in of[e] if f["level"] and f["gpa"] % LEVELS[f["level"]]]
    judge.that("each GPA is that of an entry of the level", not bad, bad[:3])

    # A page: the SEAMCALL gave it to the TDX module, then the mirror has it, then the fault is fixed.
    given, mirrored, bad = {}, {}, []
    for event, f in seen:
        key = (f["td"], f.get("gpa", f.get("gfn", 0) * PAGE))
        if event == "seamcall" and f["what"] in ("MEM.PAGE.ADD", "MEM.PAGE.AUG") and f["status"] == 0:
            given[key] = f["pa"]
        elif event == "spte_changed" and f["level"] == 1 and f["new"] & PRESENT:
            mirrored[key] = f["new"] & ADDRESS
        elif event == "fault" and f["what"] == "fixed" and not (
                given.pop(key, None) == mirrored.pop(key, None) == f["pfn"] * PAGE):
            bad.append(f)
    judge.that("each page that a fault fixed is that of the SEAMCALL and of the mirror", not bad, bad[:3])

    # Leaves of the mirror come and go in turn.
    state, bad, gone = {}, [], 0
    for f in of["spte_changed"]:
        key = (f["td"], f["gpa"], f["level"])
        if state.get(key, f["old"]) != f["old"]:
            bad.append(f)
        state[key] = f["new"]
        gone += f["level"] == 1 and not f["new"] & PRESENT and f["new"] & ADDRESS == 0
    judge.that("each entry changes from what it changed to before", not bad, bad[:3])
    judge.same("leaves that became non-present", gone, stats["zapped"])

    khz = stats["tsc_khz"]
    bad = [f for f in of["seamcall"] if f["cycles"] <= 0 or abs(f["ns"] - f["cycles"] * 10**6 / khz) > 1]
    judge.that("SEAMCALLs took time, ns are that of the cycles", of["seamcall"] and not bad, bad[:3])
    bad = [f for f in of["kick"] if f["cycles"] <= 0]
    judge.that("kicks took time", of["kick"] and not bad, bad[:3])
    freezes = sum(v for k, v in stats.items() if k.startswith("freeze_cycles_"))
    tables = sum(f["level"] > 1 and f["new"] & PRESENT > 0 for f in of["spte_changed"])
    judge.same("freezes that were timed", freezes, stats["mapped"] + tables)


def judge_wrong(judge, seen, stats, bpf):
    """What trace-cmd saw of what the contract's test provokes."""
    of = {event: [f for e, f in seen if e == event] for event in EVENTS}
    for event in ("quarantine", "leak"):
        judge.same(f"trace-cmd: {event}", len(of[event]), wanted(stats)[event])
    judge.same("trace-cmd and bpftrace: bug", len(of["bug"]), sum(bpf.get("@bug", {}).values()))
    kinds = ["transition", "unexpected", "external", "no_entry"]
    for kind, times in bpf.get("@bug", {}).items():
        judge.same(f"trace-cmd and bpftrace: bug {kinds[int(kind)]}", sum(f["what"] == kinds[int(kind)] for f in of["bug"]),
                   times)
    bad = [f for f in of["bug"] if f["what"] == "transition" and
           not (f["value"] & f["other"] & PRESENT and f["value"] & ADDRESS != f["other"] & ADDRESS)]
    judge.that("a bad transition is from one page to another", not bad, bad[:3])
    bad = [f for f in of["bug"] if f["what"] == "external" and not f["value"] >> 63]
    judge.that("a bug of the S-EPT has the status of an error", not bad, bad[:3])
    judge.that("a leak has the status of an error", all(f["status"] >> 62 for f in of["leak"]), of["leak"][:3])


def main(folder):
    def text(name):
        with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as f:
            return f.read()

    judge = Judge()
    wrong, life = figures(text("stats.wrong")), figures(text("stats.life"))
    both = wrong + life
    bpf = of_bpftrace(text("bpftrace.json"))
    judge_counts(judge, of_perf(text("perf.csv")), bpf, both)
    judge_wrong(judge, events(text("wrong.txt")), wrong, bpf)
    judge_life(judge, events(text("life.txt")), life)
    print(f"trace: {judge.passed} passed, {judge.failed} failed")
    return 1 if judge.failed or not judge.passed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
