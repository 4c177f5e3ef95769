#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Compares two runs of the selftests call by call: what KVM was asked and did.

usage: compare.py --programs DIFFERENCES
       compare.py DIFFERENCES PATCHED STOCK

PATCHED and STOCK are folders of the program tdx-calls: KVM's own mirror with patches/kvm,
and KVM as it is upstream. Each test case has to be equal in both, but for those in
DIFFERENCES, which have to differ as they say. The first form lists the programs to run.
"""
import collections
import errno as errno_of
import pathlib
import re
import sys
import tomllib

LINE = re.compile(r"^\s*(?P<comm>.+)-(?P<tid>\d+)\s+(?:\(\s*(?:\d+|-+)\)\s+)?\[\d+\]\s+\S+\s+[\d.]+: "
                  r"(?P<event>\w+): (?P<text>.*)$")
WORD = re.compile(r"(\w+)=(\S+)")
FORK = re.compile(r"comm=(.*?) pid=(\d+) child_comm=.*? child_pid=(\d+)")
EXIT = re.compile(r"reason (\S+)")
CASE = re.compile(r"^(not ok|ok) \d+ (\S+)(?: # (SKIP))?", re.M)
# An interrupt of the host, whose time is nobody's choice.
HOST = {"EXTERNAL_INTERRUPT", "EXCEPTION_NMI"}
IOCTLS = {"dev_ioctl", "vm_ioctl", "vcpu_ioctl"}
ENCRYPT_OP = "0xc008aeba"
COLUMNS = ("SEAMCALLs", "exits", "results")


class Case:
    """What one test case did."""

    def __init__(self, result="none"):
        self.result = result
        # By column and thread, in the order in which the threads first do something.
        self.did = {column: collections.OrderedDict() for column in COLUMNS}

    def add(self, column, thread, what):
        self.did[column].setdefault(thread, []).append(what)

    def threads(self):
        return len({thread for of in self.did.values() for thread in of})

    def sequences(self, column):
        return list(self.did[column].values())

    def kinds(self, column):
        return {what for sequence in self.sequences(column) for what in sequence}

    def count(self, column):
        return sum(map(len, self.sequences(column)))


def errno(text):
    """The value of a register that holds an int."""
    value = int(text, 0) & 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def parse(program, output, trace):
    """The cases of one program by name, from its output and the records of its run."""
    names = [(name, "skip" if skip else result) for result, name, skip in CASE.findall(output)]
    cases = collections.OrderedDict((name, Case(result)) for name, result in names)
    of_process = {}
    main = None
    open_calls = collections.defaultdict(list)
    for line in trace.splitlines():
        found = LINE.match(line)
        if not found:
            continue
        event, text = found["event"], found["text"]
        if event == "sched_process_fork":
            comm, parent, child = FORK.search(text).groups()
            if main is None and comm == program[:15]:
                main = parent
            # The harness forks once for each case, in the order of their results.
            if parent == main and names:
                of_process[child] = names.pop(0)[0]
            elif parent in of_process:
                of_process.setdefault(child, of_process[parent])
            continue
        thread = found["tid"]
        name = of_process.get(thread)
        if name is None:
            continue
        note(cases[name], thread, event, dict(WORD.findall(text)), text, open_calls[thread])
    return cases


def note(case, thread, event, words, text, calls):
    """Adds one record to a case; `calls` are the calls of that thread that did not return yet."""
    if event == "kvm_exit":
        reason = EXIT.search(text)[1]
        if reason not in HOST:
            case.add("exits", thread, reason)
    elif event == "kvm_userspace_exit":
        case.add("exits", thread, f"to the VMM: {EXIT.search(text)[1]}")
    elif not event.endswith("_ret"):
        calls.append((event, words))
    elif calls and calls[-1][0] == event.removesuffix("_ret"):
        called, given = calls.pop()
        if called in IOCTLS:
            result = min(errno(words["status"]), 0)
            # Where the argument cannot be read, what the record has of it means nothing.
            sub = given["first"] if given["cmd"] == ENCRYPT_OP and result != -errno_of.EFAULT else ""
            case.add("results", thread, (called, given["cmd"], sub, result))
        elif called == "gmem_fallocate":
            case.add("results", thread, (called, given["mode"], "", errno(words["status"])))
        else:
            case.add("SEAMCALLs", thread, (called, given.get("gpa", ""), given.get("level", ""), words["status"]))


def first_difference(ours, theirs):
    """Where two lists of sequences part, in words."""
    for number, (a, b) in enumerate(zip(ours, theirs)):
        for at, (x, y) in enumerate(zip(a, b)):
            if x != y:
                return f"thread {number}, {at}: {x} | {y}"
        if len(a) != len(b):
            rest = a[len(b):] or b[len(a):]
            return f"thread {number}: {len(a)} | {len(b)}, then {rest[0]}"
    return f"{len(ours)} | {len(theirs)} threads"


def differences(ours, theirs):
    """By column, what is not the same in two cases."""
    found = {}
    if ours.result != theirs.result:
        found["verdict"] = f"{ours.result} | {theirs.result}"
    exact = max(ours.threads(), theirs.threads()) <= 1
    for column in COLUMNS:
        if exact and ours.sequences(column) != theirs.sequences(column):
            found[column] = first_difference(ours.sequences(column), theirs.sequences(column))
        elif not exact and ours.kinds(column) != theirs.kinds(column):
            odd = sorted(map(str, ours.kinds(column) ^ theirs.kinds(column)))
            found[column] = f"one has {odd[0]}"
    return found


def read(folder, program):
    folder = pathlib.Path(folder)
    return parse(program, (folder / f"{program}.out").read_text(errors="replace"),
                 (folder / f"{program}.trace").read_text(errors="replace"))


def compare(table, patched, stock, out=sys.stdout):
    """Prints the table; returns how many cases are as they have to be, and how many are not."""
    named = {one["case"]: one for one in table.get("difference", [])}
    met, passed, failed = set(), 0, 0
    print(f"{'test case':<52} {'SEAMCALLs':>9} {'exits':>7} {'results':>7}  compared", file=out)
    for command in table["programs"]["run"]:
        program = command.split()[0]
        ours, theirs = read(patched, program), read(stock, program)
        for name in list(ours) + [name for name in theirs if name not in ours]:
            a, b = ours.get(name, Case()), theirs.get(name, Case())
            if a.result == b.result == "skip":
                continue
            found = differences(a, b)
            how = "each call" if max(a.threads(), b.threads()) <= 1 else "each kind"
            verdict, good = f"equal ({how})", not found
            if name in named:
                met.add(name)
                wanted = set(named[name]["in"])
                good = set(found) == wanted
                verdict = f"differs by patch {named[name]['patch']}" if good else "differs otherwise than named"
            elif found:
                verdict = "DIFFERENT"
            print(f"{name:<52} {a.count('SEAMCALLs'):>9} {a.count('exits'):>7} {a.count('results'):>7}  {verdict}", file=out)
            if not good or name in named:
                for column, text in found.items():
                    print(f"    {column}: {text}", file=out)
            passed, failed = passed + good, failed + (not good)
    for name in sorted(set(named) - met):
        print(f"{name}: named as a difference, but no such case ran", file=out)
        failed += 1
    return passed, failed


def main(arguments):
    if len(arguments) not in (2, 3):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    if arguments[0] == "--programs":
        table = tomllib.loads(pathlib.Path(arguments[1]).read_text())
        print("\n".join(table["programs"]["run"]))
        return 0
    table = tomllib.loads(pathlib.Path(arguments[0]).read_text())
    passed, failed = compare(table, arguments[1], arguments[2])
    print(f"unpatched: {passed} passed, {failed} failed")
    return int(failed != 0 or passed == 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
