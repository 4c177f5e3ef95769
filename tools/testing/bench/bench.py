#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Figures of the benchmark program on the emulated host, and of the host benchmarks.

usage: bench.py progress               console in, progress lines out
       bench.py report OUT LOG... [--host FILE]

report writes OUT/bench.json and OUT/bench.txt, prints the table and each goal as met or missed.
Exit status 1 if a sample is missing or a figure is beyond its bound: the goal, give or take its
tolerance, or what Documentation/performance.rst says of a goal that is out of reach.

Ticks are those of the TSC, on the emulator an instruction each. What SEAMCALLs took is taken out,
and of conversions what the same one takes where nothing is mapped: a sample NAME_base.
"""

import json
import re
import statistics
import sys

SAMPLE = re.compile(r"@bench (\S+) (\S+) (\d+) (.*)$")
TABLES = re.compile(r"@tables (\S+) mib=(\d+) mirror=(\d+) external=(\d+)")
CLOCK = re.compile(r"@clock ticks_per_us=(\d+)")
DONE = re.compile(r"@done (\S+) (-?\d+)")

VP_ENTER, TRACK = 0, 38
MODES = {"off": "c", "on": "rust"}
# These wait for other threads (RCU, work queues): the thread's own time counts.
WAITING = re.compile(r"memslot|.*teardown")
PAGE = 4096

# Two runs differ by less: the machine with one CPU by next to nothing, that with three by the
# order in which the CPUs come, the host by what else it does.
TOLERANCE = 0.03
# Path in bench.json, relation, goal, and the bound beyond which the run fails, or None: the goal
# with the tolerance.
GOALS = (
    ("fault_seq.ratio", "<=", 1.0, None),
    ("fault_rand.ratio", "<=", 1.0, None),
    ("prefault.ratio", "<=", 1.0, None),
    ("zap_512.seamcalls", "==", 1537, None),
    ("zap_512.tracks", "==", 1, None),
    ("zap_512.kicks", "==", 1, None),
    ("zap_512.ratio", "<=", 0.5, None),
    ("zap_idle_512.ratio", "<=", 0.5, 0.85),
    ("convert_64m.ratio", "<=", 0.2, 0.4),
    ("mem.bytes_per_gib.mirror", "==", "mem.formula_bytes_per_gib", None),
    ("mem.bytes_per_gib.external", "==", "mem.formula_bytes_per_gib", None),
    ("host.scale2", ">=", 1.9, None),
)


class Sample:
    """One line of the benchmark program."""

    def __init__(self, text, clock):
        self.leaves, self.field = {}, {}
        for word in text.split():
            name, value = word.split("=", 1)
            if name.startswith("leaf"):
                self.leaves[int(name[4:])] = int(value.split(":")[0])
            else:
                self.field[name] = int(value)
        self.ops = self.field["ops"]
        self.traced = "traced_kicks" in self.field
        self.clock = clock

    def kicks(self):
        return self.field["traced_kicks" if self.traced else "kicks"]

    def calls(self):
        """SEAMCALLs but TDH.VP.ENTER, which vCPUs make for reasons of their own."""
        return sum(n for leaf, n in self.leaves.items() if leaf != VP_ENTER)

    def ticks(self, waiting):
        """Without SEAMCALLs."""
        took = self.field["thread_ns"] * self.clock / 1000 if waiting else self.field["tsc"]
        return took - self.field["seamcall"]


def read(logs):
    """Samples by workload and mode, sizes of the tables, workloads that failed."""
    samples, tables, failed = {}, {}, []
    for path in logs:
        clock, begun = 1000, False
        with open(path, encoding="utf-8", errors="replace") as log:
            for line in log:
                line = line.rstrip("\r\n")
                if match := CLOCK.search(line):
                    clock, begun = int(match[1]), True
                elif match := SAMPLE.search(line):
                    sample = Sample(match[4], clock)
                    samples.setdefault(match[1], {}).setdefault(match[2], []).append(sample)
                elif match := TABLES.search(line):
                    tables[match[1], int(match[2])] = int(match[3]), int(match[4])
                elif (match := DONE.search(line)) and match[2] != "0":
                    failed.append(f"{match[1]} ended with {match[2]}")
        if not begun:
            failed.append(f"{path}: the benchmark program did not start")
    return samples, tables, failed


def quartiles(values):
    """Median and the range of the middle half."""
    if len(values) < 4:
        return statistics.median(values), min(values), max(values)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def mode_figures(name, samples, base):
    """Of one workload in one mode; base is the samples of what KVM does beside it, or none."""
    timed = [s for s in samples if not s.traced]
    counted = [s for s in samples if s.traced]
    waiting = bool(WAITING.match(name))
    beside = statistics.median(s.ticks(waiting) / s.ops for s in base) if base else 0
    middle, low, high = quartiles([s.ticks(waiting) / s.ops - beside for s in timed])
    last = timed[-1]
    figures = {
        "ticks_per_op": round(middle, 1), "low": round(low, 1), "high": round(high, 1), "samples": len(timed),
        "ticks_per_op_beside": round(beside, 1),
        "ticks_per_op_with_seamcalls": round(statistics.median(
            (s.ticks(waiting) + s.field["seamcall"]) / s.ops for s in timed), 1),
        "seamcalls": statistics.median(s.calls() for s in timed),
        "tracks": statistics.median(s.leaves.get(TRACK, 0) for s in timed),
        "busy": last.field["busy"],
    }
    if counted:
        figures["kicks"] = counted[-1].kicks()
        # Two witnesses: the kernel's tracer and the mirror's counter.
        figures["kicks_counted"] = counted[-1].field["kicks"]
    return figures


def workload_figures(name, by_mode, base=None):
    """Of one workload: both modes, and Rust's own counts on top."""
    result = {"ops": by_mode["on"][0].ops}
    for mode, key in MODES.items():
        result[key] = mode_figures(name, by_mode[mode], (base or {}).get(mode))
    for count in ("seamcalls", "tracks", "kicks"):
        if count in result["rust"]:
            result[count] = result["rust"][count]
    result["ratio"] = round(result["rust"]["ticks_per_op"] / result["c"]["ticks_per_op"], 4)
    whole = [result[key]["ticks_per_op"] + result[key]["ticks_per_op_beside"] for key in ("rust", "c")]
    result["ratio_with_beside"] = round(whole[0] / whole[1], 4)
    result["ratio_with_seamcalls"] = round(
        result["rust"]["ticks_per_op_with_seamcalls"] / result["c"]["ticks_per_op_with_seamcalls"], 4)
    return result


def table_figures(tables):
    """Bytes of both tables for the largest size that was mapped, per GiB."""
    sizes = [mib for mode, mib in tables if mode == "on" and mib]
    if not sizes:
        return {}
    mib = max(sizes)
    before, after = tables["on", 0], tables["on", mib]
    # A table of 4K entries for 2 MiB, one of 2M entries for each GiB begun: the memory starts at
    # such a border, and what is above is there already or serves 512 GiB.
    pages = mib // 2 + -(-mib // 1024)
    per_gib = [(after[n] - before[n]) * PAGE * 1024 // mib for n in (0, 1)]
    return {"mib": mib, "bytes_per_gib": {"mirror": per_gib[0], "external": per_gib[1]},
            "formula_bytes_per_gib": pages * PAGE * 1024 // mib}


def growth_figures(samples):
    """Ticks per page against MiB."""
    result = {}
    for name, by_mode in samples.items():
        match = re.fullmatch(r"grow_(\w+)_(\d+)", name)
        if match and set(by_mode) >= set(MODES):
            figures = workload_figures(name, by_mode)
            result.setdefault(match[1], {})[int(match[2])] = {
                key: figures[key]["ticks_per_op"] for key in MODES.values()}
    return {what: {str(mib): sizes[mib] for mib in sorted(sizes)} for what, sizes in result.items()}


def lookup(figures, path):
    """The value at a dotted path, or None."""
    for part in path.split("."):
        if not isinstance(figures, dict) or part not in figures:
            return None
        figures = figures[part]
    return figures


def holds(value, relation, wanted):
    return {"<=": value <= wanted, "==": value == wanted, ">=": value >= wanted}[relation]


def judge(figures):
    """Each goal with its value, whether it is met and whether the bound is kept; None where it was
    not measured."""
    result = []
    for path, relation, goal, bound in GOALS:
        value = lookup(figures, path)
        wanted = lookup(figures, goal) if isinstance(goal, str) else goal
        if bound is None:
            bound = {"<=": 1 + TOLERANCE, "==": 1, ">=": 1 - TOLERANCE}[relation] * (wanted or 0)
        met = kept = None
        if value is not None and wanted is not None:
            met, kept = holds(value, relation, wanted), holds(value, relation, bound)
        result.append({"goal": f"{path} {relation} {wanted}", "value": value, "bound": bound, "met": met,
                       "kept": kept})
    return result


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def per_op(value, ops):
    each = value / ops
    return f"{each:.0f}" if each == int(each) else f"{each:.2f}" if each >= 0.01 else f"{each:.4f}"


def print_table(figures, out):
    """A row for each workload."""
    aside = lookup(figures, "host.aside") or {}
    head = ("workload", "ops", "C", "Rust", "ratio", "spread", "SEAMCALLs C", "Rust", "TRACKs C", "Rust",
            "kicks C", "Rust", "aside")
    rows = [head]
    for name, figure in figures.items():
        if not isinstance(figure, dict) or "ratio" not in figure:
            continue
        c, rust, ops = figure["c"], figure["rust"], figure["ops"]
        spread = max((f["high"] - f["low"]) / f["ticks_per_op"] for f in (c, rust)) * 100
        kicks = [number(f["kicks"]) if "kicks" in f else "" for f in (c, rust)]
        rows.append((name, number(ops), number(c["ticks_per_op"]), number(rust["ticks_per_op"]),
                     f"{figure['ratio']:.2f}", f"{spread:.1f} %", per_op(c["seamcalls"], ops),
                     per_op(rust["seamcalls"], ops), number(c["tracks"]), number(rust["tracks"]), *kicks,
                     f"{aside[name]:.2f}" if name in aside else ""))
    widths = [max(len(row[n]) for row in rows) for n in range(len(head))]
    for row in rows:
        print("  ".join(word.ljust(w) if n == 0 else word.rjust(w)
                        for n, (word, w) in enumerate(zip(row, widths))).rstrip(), file=out)
    print("\nC, Rust: ticks (emulated instructions) of an operation, a page each, without SEAMCALLs; median.\n"
          "zap and convert: two vCPUs run, zap_idle: none; without the conversion's work where nothing is mapped.\n"
          "spread: the middle half of the samples, of the larger of both. SEAMCALLs: per operation, without\n"
          "TDH.VP.ENTER. TRACKs and kicks: of the whole stretch. aside: management off to the side with one\n"
          "lock, time against the Rust mirror's on the machine itself (make bench-host), not on the emulator.", file=out)


def report(out, logs, host):
    samples, tables, failed = read(logs)
    figures = {}
    for name, by_mode in samples.items():
        if name.startswith("grow_") or name.endswith("_base"):
            continue
        if set(by_mode) >= set(MODES) and all(any(not s.traced for s in by_mode[m]) for m in MODES):
            figures[name] = workload_figures(name, by_mode, samples.get(f"{name}_base"))
        else:
            failed.append(f"{name}: not measured in both modes")
    figures["growth"] = growth_figures(samples)
    figures["mem"] = table_figures(tables)
    if host:
        with open(host, encoding="utf-8") as file:
            figures["host"] = json.load(file)
    figures["goals"] = judge(figures)
    with open(f"{out}/bench.json", "w", encoding="utf-8") as file:
        json.dump(figures, file, indent=1)
        file.write("\n")
    with open(f"{out}/bench.txt", "w", encoding="utf-8") as file:
        print_table(figures, file)
    print_table(figures, sys.stdout)
    print()
    for goal in figures["goals"]:
        state = {True: "met", False: "missed", None: "not measured"}[goal["met"]]
        if goal["met"] is False:
            state += f", within the bound {goal['bound']:.4g}" if goal["kept"] else f", BEYOND {goal['bound']:.4g}"
        print(f"goal {goal['goal']}: {goal['value']}: {state}")
    for what in failed:
        print(f"failed: {what}")
    return 1 if failed or any(goal["kept"] is False for goal in figures["goals"]) else 0


def progress():
    """One line when a workload is done; what the machine says about trouble."""
    for line in sys.stdin:
        if match := DONE.search(line):
            print(f"    {match[1]}: {'done' if match[2] == '0' else 'failed'}", flush=True)
        elif re.search(r"^bench: |WARNING: |BUG: |Kernel panic|boot.sh: ", line):
            print(line.rstrip(), flush=True)
    return 0


def main(argv):
    if argv[1:] == ["progress"]:
        return progress()
    if len(argv) > 3 and argv[1] == "report":
        logs, host = argv[3:], None
        if "--host" in logs:
            at = logs.index("--host")
            host = logs[at + 1]
            del logs[at:at + 2]
        return report(argv[2], logs, host)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))
