#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Collect what the parts of `make test` report, as one table, JUnit XML and KTAP.

usage: summary.py add DIR --suite S --flavour F --seconds N --status N --output LOG [--console LOG ...]
       summary.py finish DIR

`add` reads the test cases of one part from its output and from the serial
consoles of its machines, prints its closing line, and if something failed what
and why.  `finish` prints the table, writes DIR/junit.xml and DIR/results.ktap;
its last line counts, its exit status is 1 if a case failed.  The console of a
part that failed is kept in DIR/dmesg.
"""

import argparse
import json
import os
import re
import shutil
import sys
import xml.etree.ElementTree as xml

TIMESTAMP = re.compile(r"^\[ *\d+\.\d{6}\] ")
CONTROL = re.compile(r"[^\t\n -~\u00a0-\ud7ff]")
TAP = re.compile(r"^(?P<indent> *)(?P<bad>not )?ok (?P<number>\d+)(?: -)? (?P<name>[^#]*?)\s*(?:#\s*(?P<more>.*))?$")
CARGO = re.compile(r"^test (?P<name>\S+)(?: - should panic)? \.\.\. (?P<how>ok|FAILED|ignored)")
BINARY = re.compile(r"^ *(?:Running (?:unittests )?|Doc-tests )(?P<name>\S+)(?: \(target|$)")
PYTHON = re.compile(r"^test_\w+ \((?:\w+\.)*?(?P<name>\w+\.\w+)\).* \.\.\. (?P<how>ok|FAIL|ERROR|skipped)(?P<more>.*)")
CHECK = re.compile(r"^(?P<how>ok  |FAIL) (?P<name>[a-z-]+): (?P<more>.*)")
CLOSING = re.compile(r"^[a-zA-Z][\w -]*: (?P<passed>\d+)(?: \w+)? passed, (?P<failed>\d+) failed(?:, (?P<skipped>\d+) skipped)?")
# Of a part that looks for something.
SHARE = re.compile(r"^[a-zA-Z][\w -]*: (\d+) of (\d+) .* found$")
BEGIN = re.compile(r"^@begin \d+ (?P<mode>\S+) (?P<program>.*)")
# Printed when the part has something else to say than test cases.
REASON = re.compile(r"^(tdx-mirror: (problem|error|warning)|not ok |FAIL|ERROR: |# failed|# skipped|test .* FAILED)")
# The line after it says what it is about.
PANIC = re.compile(r"^thread '.*' (\(\d+\) )?panicked at |^error(\[E\d+\])?: ")
# So many of each part are repeated at the end.
MOST_REASONS = 15


class Cases:
    """The test cases of a text, in the notations of cargo, unittest, scripts/check and TAP."""

    def __init__(self):
        self.found = []
        self.mode, self.place, self.kernel = "-", "", []

    def add(self, name, status, message=""):
        self.found.append({"mode": self.mode, "name": f"{self.place}{name}", "status": status,
                           "message": (message or "").strip(),
                           "kernel": self.kernel[-200:] if status == "failed" else []})

    def tap(self, match):
        more = match["more"] or ""
        if match["bad"]:
            status = "failed"
        elif more.upper().startswith("SKIP"):
            status, more = "skipped", more[4:]
        else:
            status, more = "passed", ""
        self.add(match["name"] or match["number"], status, more)

    def line(self, raw):
        """Looks at one line; what the kernel said is kept for the case that fails next."""
        line = TIMESTAMP.sub("", raw)
        if line != raw:
            self.kernel.append(raw)
        line = re.sub(r"^tdx_mirror_contract_test: ", "", line)
        begin = BEGIN.match(line)
        if begin:
            self.mode, self.place, self.kernel = begin["mode"], begin["program"] + ": ", []
            return
        if line.startswith("@end "):
            self.mode, self.place = "-", ""
            return
        binary = BINARY.match(raw)
        if binary:
            self.place = re.sub(r"^.*/|\.rs$", "", binary["name"]) + "::"
            return
        match = TAP.match(line)
        # Only leaves of nested KTAP count: the suites sum them up.
        if match and not (not match["indent"] and re.match(r"tdx_mirror_\w+$", match["name"])):
            self.tap(match)
            return
        for pattern, words in ((CARGO, {"ok": "passed", "ignored": "skipped"}),
                               (PYTHON, {"ok": "passed", "skipped": "skipped"}), (CHECK, {"ok  ": "passed"})):
            match = pattern.match(line)
            if match:
                status = words.get(match["how"], "failed")
                self.add(match["name"], status, match.groupdict().get("more", "") if status != "passed" else "")
                return


def read(path):
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        return CONTROL.sub("", file.read().replace("\r", "")).split("\n")


def cases_of(consoles, output):
    """Those of the consoles; the output, which repeats what a console says, only if they have none."""
    found = []
    for path in consoles or [output]:
        cases = Cases()
        for line in read(path):
            cases.line(line)
        found += cases.found
    return found or (cases_of([], output) if consoles else [])


def closing(lines, cases, status):
    """(passed, failed, skipped): what the part says, else what was found; without either, its status."""
    counts = [sum(case["status"] == how for case in cases) for how in ("passed", "failed", "skipped")]
    for line in lines:
        match = CLOSING.match(line)
        if match:
            counts = [int(match[how] or 0) if how != "skipped" or match[how] else counts[2]
                      for how in ("passed", "failed", "skipped")]
        match = SHARE.match(line)
        if match:
            counts[:2] = [int(match[1]), int(match[2]) - int(match[1])]
    if status and not counts[1]:
        counts[1] = 1
    # One that judges itself as a whole.
    if not status and not any(counts):
        counts[0] = 1
    return counts


def reasons(lines):
    """The lines that say why a part failed."""
    return [line for before, line in zip([""] + lines, lines)
            if REASON.match(line) or PANIC.match(line) or PANIC.match(before)][-60:]


def add(args):
    lines = read(args.output)
    args.console = [path for path in args.console if os.path.isfile(path)]
    cases = cases_of(args.console, args.output)
    passed, failed, skipped = closing(lines, cases, args.status)
    # A judgement on a whole machine is in the output only.
    if len(cases) < passed + failed + skipped and args.console:
        names = {case["name"] for case in cases}
        cases += [case for case in cases_of([], args.output) if case["name"] not in names]
    part = {"suite": args.suite, "flavour": args.flavour, "seconds": args.seconds, "passed": passed,
            "failed": failed, "skipped": skipped, "cases": cases, "reasons": []}
    print(f"tdx-mirror: ---- {args.suite}: {passed} passed, {failed} failed"
          f"{f', {skipped} skipped' if skipped else ''}, {args.seconds} s; {os.path.relpath(args.output)}")
    if failed:
        part["reasons"] = reasons(lines)
        for line in part["reasons"] + ["(the end of its output)"] + lines[-40:]:
            print(f"    | {line}")
        os.makedirs(os.path.join(args.dir, "dmesg"), exist_ok=True)
        for path in args.console:
            kept = os.path.join(args.dir, "dmesg", f"{args.suite}-{os.path.basename(path)}")
            shutil.copyfile(path, kept)
            print(f"    console kept: {os.path.relpath(kept)}")
    number = len(os.listdir(args.dir))
    with open(os.path.join(args.dir, f"part-{number:03}.json"), "w", encoding="utf-8") as file:
        json.dump(part, file, indent=1)
    return 0


def rows(part):
    """(mode, passed, failed, skipped, cases): one for each mode, and one for what has none."""
    names = [mode for mode in dict.fromkeys(case["mode"] for case in part["cases"]) if mode != "-"]
    found, rest = [], [part["passed"], part["failed"], part["skipped"]]
    for mode in names:
        cases = [case for case in part["cases"] if case["mode"] == mode]
        counts = [sum(case["status"] == how for case in cases) for how in ("passed", "failed", "skipped")]
        rest = [max(0, left - count) for left, count in zip(rest, counts)]
        found.append((mode, *counts, cases))
    if any(rest) or not names:
        found.append(("-", *rest, [case for case in part["cases"] if case["mode"] == "-"]))
    return [(mode, passed, failed, skipped, cases + the_run_itself(passed, failed, cases))
            for mode, passed, failed, skipped, cases in found]


def the_run_itself(passed, failed, cases):
    """A case for what no case tells: a part without any, one that failed otherwise."""
    if cases and failed <= sum(case["status"] == "failed" for case in cases):
        return []
    status = "failed" if failed else "passed" if passed else "skipped"
    return [{"name": "the run itself", "status": status, "message": "", "kernel": []}]


def print_table(parts):
    wide = max([14] + [len(part["suite"]) + 1 for part in parts])
    print(f"{'suite':{wide}}{'kernel':10}{'mode':8}{'passed':>8}{'failed':>8}{'skipped':>9}{'time':>9}")
    for part in parts:
        took = f"{part['seconds']} s"
        for mode, passed, failed, skipped, _ in rows(part):
            print(f"{part['suite']:{wide}}{part['flavour'].replace('none', '-'):10}{mode:8}"
                  f"{passed:8}{failed:8}{skipped:9}{took:>9}")
            took = '"'


def write_junit(path, parts):
    root = xml.Element("testsuites")
    for part in parts:
        took = str(part["seconds"])
        for mode, passed, failed, skipped, cases in rows(part):
            suite = xml.SubElement(root, "testsuite", name=f"{part['suite']}.{part['flavour']}.{mode}", time=took,
                                   tests=str(passed + failed + skipped), failures=str(failed), skipped=str(skipped))
            took = "0"
            for case in cases:
                node = xml.SubElement(suite, "testcase", classname=suite.get("name"), name=case["name"])
                if case["status"] == "failed":
                    xml.SubElement(node, "failure", message=case["message"] or "failed").text = "\n".join(part["reasons"])
                    xml.SubElement(node, "system-out").text = "\n".join(case["kernel"])
                elif case["status"] == "skipped":
                    xml.SubElement(node, "skipped", message=case["message"])
    xml.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def write_ktap(path, parts):
    suites = [(f"{part['suite']}.{part['flavour']}.{mode}", failed, skipped and not passed, cases)
              for part in parts for mode, passed, failed, skipped, cases in rows(part)]
    # No plan for zero tests: readers take it for an error, or for all skipped.
    lines = ["KTAP version 1", f"1..{len(suites)}"] if suites else ["KTAP version 1", "1..1", "not ok 1 no part ran"]
    for number, (name, failed, all_skipped, cases) in enumerate(suites, 1):
        lines += ["    KTAP version 1", f"    # Subtest: {name}", f"    1..{len(cases)}"]
        for at, case in enumerate(cases, 1):
            skip = f" # SKIP {case['message']}" if case["status"] == "skipped" else ""
            lines.append(f"    {'not ok' if case['status'] == 'failed' else 'ok'} {at} "
                         f"{case['name'].replace('#', ' ')}{skip}")
        skip = f" # SKIP all {len(cases)} skipped" if all_skipped and not failed else ""
        lines.append(f"{'not ok' if failed else 'ok'} {number} {name}{skip}")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def print_reasons(parts):
    """Why parts failed, where whoever reads the end of a long output finds it."""
    for part in parts:
        if part["failed"]:
            # Without a skipped test's reason, and each once: a console is in the output too.
            why = list(dict.fromkeys(line for line in part["reasons"] if not line.startswith("# skipped")))
            print(f"tdx-mirror: {part['suite']} failed" + (":" if why else ", and does not say why"))
            for line in why[:MOST_REASONS]:
                print(f"    | {line[:300]}")


def finish(directory):
    parts = []
    for name in sorted(os.listdir(directory)):
        if name.endswith(".json"):
            with open(os.path.join(directory, name), encoding="utf-8") as file:
                parts.append(json.load(file))
    print_table(parts)
    print_reasons(parts)
    write_junit(os.path.join(directory, "junit.xml"), parts)
    write_ktap(os.path.join(directory, "results.ktap"), parts)
    passed, failed = (sum(part[how] for part in parts) for how in ("passed", "failed"))
    print(f"tdx-mirror: report in {os.path.relpath(directory)}: junit.xml, results.ktap"
          + (", dmesg" if os.path.isdir(os.path.join(directory, "dmesg")) else ""))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("add")
    one.add_argument("dir")
    one.add_argument("--suite", required=True)
    one.add_argument("--flavour", required=True)
    one.add_argument("--seconds", type=int, required=True)
    one.add_argument("--status", type=int, required=True)
    one.add_argument("--output", required=True)
    one.add_argument("--console", action="append", default=[])
    commands.add_parser("finish").add_argument("dir")
    args = parser.parse_args(argv)
    return add(args) if args.command == "add" else finish(args.dir)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
