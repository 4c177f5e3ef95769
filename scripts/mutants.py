#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Mutation tests: does a test fail for each small change of the mirror's code?

usage: make mutants [FILES='tdx_mirror/sept/retry.rs ...']
       scripts/session scripts/mutants [--list] [--again] [--jobs N] [FILE...]

cargo-mutants changes tdx_mirror/{base,mirror,sept,tdx}, one change at a time,
and runs the host's tests on each.  They are built as one crate, without what
tools/testing/host/mutants.toml leaves out, and with fewer random cases.

  --list    prints the mutants and runs none
  --again   forgets what earlier runs on the same sources and tests found
  --jobs N  mutants at a time (default: the number of CPUs, at most 4)
  FILE      only the mutants of these files

A test that has no end within the time limit has noticed the mutant; those are
listed.  mutants.toml names the mutants that no test can notice, each with the
reason; one that is noticed after all, or that is not there, is an error.  It
also names, for the requirements about guards, the mutant without the guard, which
must be noticed by a test that shows the requirement (`// Shows: R27.` above it).

Results are kept in build/mutants by the content of sources and tests: a run that
was interrupted goes on where it was.  The last line is `mutants: K of V viable
killed`; V does not count the mutants that no test can notice.  The exit status
is 1 if K is below 95 % of V or mutants.toml is wrong, 2 if nothing could be run.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(TOP, "scripts", "checks"))
import coverage  # noqa: E402 # pylint: disable=wrong-import-position
HOST = "tools/testing/host"
PRODUCT = "tdx_mirror"
LISTED = f"{HOST}/mutants.toml"
OUT = os.path.join(TOP, "build", "mutants")
FLOOR = 95
TEST_SECONDS = 20
# A mutant that loops over an allocation must not take the machine with it.
MEMORY_KIB = 6 << 20
# What is mutated: the folders that are built on the host.
PURE = ("base", "mirror", "sept", "tdx")
# Tests that the kernel runs as well.
TESTS_OF_BOTH = "tdx_mirror/kunit"
# Stand-ins for the atomics that another build uses.
NOT_BUILT = ("tdx_mirror/base/sys/kernel.rs", "tdx_mirror/base/sys/loom.rs")
ENVIRONMENT = {
    "RUSTFLAGS": "-Clink-arg=-fuse-ld=lld --cap-lints=allow",
    "RUST_TEST_THREADS": "1",
    "RUST_BACKTRACE": "0",
    # Whether a test fails, not the smallest input on which it does.
    "PROPTEST_CASES": "32",
    "PROPTEST_MAX_SHRINK_ITERS": "0",
    "PROPTEST_FAILURE_PERSISTENCE": "off",
    "TDX_MIRROR_STEPS": "2000",
}
CRATES = """[package]
name = "crates"
version = "0.1.0"
edition = "2021"
rust-version = "1.85"
resolver = "3"

[workspace]

[profile.dev]
opt-level = 1
debug = false

"""
PROFILE = """
[lib]
path = "tdx_mirror/lib.rs"
doctest = false

[profile.dev]
opt-level = 0
debug = 0
incremental = true
overflow-checks = true
debug-assertions = true
"""
# Runs a test program, the long tests only if no short one has failed.
RUNNER = """#!/bin/sh
"$@" {skip} || exit
[ -z "{last}" ] || exec "$@" {last}
"""
KILLED, MISSED, TIMEOUT, UNVIABLE = "killed", "missed", "timeout", "unviable"
FILES_OF = {"caught.txt": KILLED, "missed.txt": MISSED, "timeout.txt": TIMEOUT, "unviable.txt": UNVIABLE}
NAME = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+):\d+: (?P<what>.*)$")


class Wrong(Exception):
    """What the user is told before the run ends with status 2."""


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def say(text):
    print(f"mutants: {text}", flush=True)


def sections(toml):
    """The sections of a Cargo.toml as text, by header."""
    found = {}
    for part in re.split(r"^(?=\[)", toml, flags=re.M):
        header = part.split("\n", 1)[0].strip()
        if header.startswith("["):
            found[header] = part
    return found


def host_modules():
    """Lines of a crate's root in the product's folder that has the modules of the host crate."""
    lines, inside = ["extern crate self as tdx_mirror_host;"], None
    for line in read(os.path.join(TOP, HOST, "src/lib.rs")).split("\n"):
        line = line.strip()
        if found := re.match(r'#\[path = "([^"]+)"\]', line):
            inside = os.path.normpath(os.path.join(HOST, "src", found.group(1)))
            if inside != PRODUCT:
                raise Wrong(f"{HOST}/src/lib.rs: {inside} is not {PRODUCT}")
        elif re.match(r"mod \w+ \{", line):
            # An attribute of the folder's modules as a whole; each has its own.
            if lines[-1] == "#[macro_use]":
                lines.pop()
        elif line == "}":
            inside = None
        elif found := re.match(r"pub mod (\w+);", line):
            if not inside:
                lines.append(f'#[path = "../{HOST}/src/{found.group(1)}.rs"]')
            lines.append(line)
        elif line.startswith("pub use product::"):
            # They are at the root already.
            while lines[-1].startswith("#["):
                lines.pop()
        elif line and not line.startswith("//"):
            lines.append(line)
    return lines


def test_modules(left_out):
    """Names of the files of tests that are built."""
    tests = sorted(n[:-3] for n in os.listdir(os.path.join(TOP, HOST, "tests")) if n.endswith(".rs"))
    for name in left_out:
        if name.split("::")[0] not in tests:
            raise Wrong(f"{LISTED}: left_out names {name}, and there is no {HOST}/tests/{name}.rs")
    return [name for name in tests if name not in left_out]


def digest_of(tree, *starts):
    """A key over the content of the files below some folders of the tree."""
    digest = hashlib.sha256()
    for start in starts:
        top = os.path.join(tree, start)
        found = [top] if os.path.isfile(top) else sorted(
            os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names)
        for path in found:
            with open(path, "rb") as f:
                digest.update(os.path.relpath(path, tree).encode() + b"\0" + hashlib.sha256(f.read()).digest())
    return digest.hexdigest()[:16]


class Tree:
    """The sources in which the mutants are built, as one crate."""

    def __init__(self, path, left_out, last):
        self.path = path
        # What was built of other crates stays.
        for name in os.listdir(path) if os.path.isdir(path) else []:
            there = os.path.join(path, name)
            if name != "target":
                shutil.rmtree(there) if os.path.isdir(there) else os.remove(there)
        lines = host_modules()
        for name in (PRODUCT, f"{HOST}/src", f"{HOST}/tests"):
            shutil.copytree(os.path.join(TOP, name), os.path.join(path, name))
        self.modules = test_modules(left_out)
        for name in self.modules:
            lines += ["#[cfg(test)]", f'#[path = "../{HOST}/tests/{name}.rs"]', f"mod test_{name};"]
        write(os.path.join(path, PRODUCT, "lib.rs"), "\n".join(lines) + "\n")
        parts = sections(read(os.path.join(TOP, HOST, "Cargo.toml")))
        write(os.path.join(path, "Cargo.toml"), "".join(parts.get(k, "").rstrip() + "\n\n" for k in (
            "[package]", "[lints.rust]")) + PROFILE)
        # The crates that the tests use, built once: cargo would build them again in each copy of the tree.
        crates = os.path.join(path, "crates")
        write(os.path.join(crates, "Cargo.toml"), CRATES + parts.get("[dev-dependencies]", "").replace("dev-", "", 1))
        write(os.path.join(crates, "src", "lib.rs"), "")
        if os.path.exists(os.path.join(TOP, HOST, "Cargo.lock")):
            shutil.copy(os.path.join(TOP, HOST, "Cargo.lock"), crates)
        self.wanted = list(tomllib.loads(read(os.path.join(TOP, HOST, "Cargo.toml"))).get("dev-dependencies", {}))
        runner = os.path.join(path, "runner")
        write(runner, RUNNER.format(skip=" ".join(f"--skip {t}" for t in last), last=" ".join(last)))
        write(os.path.join(path, ".cargo", "config.toml"), f"[target.'cfg(unix)']\nrunner = [\"sh\", \"{runner}\"]\n")
        pure = [f"{PRODUCT}/{name}" for f in PURE for name in (f, f + ".rs")]
        # What every result rests on, and what those of one file of tests rest on.
        self.base = digest_of(path, *pure, f"{HOST}/src", "Cargo.toml", "crates/Cargo.toml")
        self.tests = {name: digest_of(path, f"{HOST}/tests/{name}.rs", *([TESTS_OF_BOTH] if name == "kunit" else []))
                      for name in self.modules}


    def flags(self):
        """Builds the crates that the tests use; answers what rustc needs to find them."""
        crates, built = os.path.join(self.path, "crates"), os.path.join(self.path, "target", "crates")
        done = subprocess.run(["cargo", "build", "--message-format=json", "--target-dir", built], cwd=crates,
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise Wrong(f"the crates that the tests use do not build: {done.stderr.strip()[-3000:]}")
        found = {}
        for line in done.stdout.split("\n"):
            message = json.loads(line) if line.startswith("{") else {}
            if message.get("reason") == "compiler-artifact" and message["target"]["name"] in self.wanted:
                found[message["target"]["name"]] = next(f for f in message["filenames"] if f.endswith(".rlib"))
        if lacks := [name for name in self.wanted if name not in found]:
            raise Wrong(f"no library of the crate {lacks[0]} was built")
        return f" -Ldependency={built}/debug/deps" + "".join(f" --extern={n}={f}" for n, f in found.items())


def command(*more):
    return ["cargo", "mutants", "--no-config", "--colors", "never", *more]


def chosen(tree, wanted):
    """Arguments for the files to mutate."""
    if not wanted:
        return [a for f in PURE for g in (f"{PRODUCT}/{f}.rs", f"{PRODUCT}/{f}/**") for a in ("-f", g)] + \
            [a for g in NOT_BUILT for a in ("-e", g)]
    for name in wanted:
        ours = any(name == f"{PRODUCT}/{f}.rs" or name.startswith(f"{PRODUCT}/{f}/") for f in PURE)
        if not ours or not os.path.isfile(os.path.join(tree, name)):
            raise Wrong(f"{name} is no file of {', '.join(f'{PRODUCT}/{f}' for f in PURE)}")
    return [a for name in wanted for a in ("-f", name)]


def listed(tree, files):
    done = subprocess.run(command("--list", *files), cwd=tree, capture_output=True, text=True, check=False)
    names = [line for line in done.stdout.split("\n") if NAME.match(line)]
    if done.returncode or not names:
        raise Wrong(f"no mutant can be made: {(done.stderr or done.stdout).strip()[-2000:]}")
    return names


class Results:
    """Outcome of each mutant by name, and the tests that noticed it."""

    def __init__(self, tree, again):
        self.path = os.path.join(OUT, f"{tree.base}.json")
        self.tests = tree.tests
        self.of = {}
        if not os.path.exists(self.path) or again:
            return
        kept = json.loads(read(self.path))
        same = {name for name, key in kept["tests"].items() if tree.tests.get(name) == key}
        all_same = kept["tests"] == tree.tests
        for name, result in kept["of"].items():
            # A test that noticed a mutant does so again as long as it is the same test; that no test
            # did holds for the same tests only.  What does not build has met none.
            noticed = {re.sub(r"^test_(\w+)::.*", r"\1", test) for test in result["failed"]}
            if all_same or result["outcome"] == UNVIABLE or result["outcome"] == KILLED and noticed & same:
                self.of[name] = result

    def take(self, folder):
        """Adds what a run left in `folder`."""
        for name, outcome in FILES_OF.items():
            path = os.path.join(folder, name)
            for line in read(path).split("\n") if os.path.exists(path) else []:
                if NAME.match(line):
                    self.of[line] = {"outcome": outcome, "failed": []}
        logs = os.path.join(folder, "log")
        for log in os.listdir(logs) if os.path.isdir(logs) else []:
            with open(os.path.join(logs, log), encoding="utf-8", errors="replace") as f:
                text = f.read()
            found = re.search(r"^\*\*\* (\S+:\d+:\d+: .*)$", text, re.M)
            if found and found.group(1) in self.of:
                failed = re.findall(r"^test (\S+)(?: - should panic)? \.\.\. FAILED", text, re.M)
                # One that took the whole program with it has no result line.
                failed += re.findall(r"^thread '([\w:]+)' panicked", text, re.M)
                self.of[found.group(1)]["failed"] = sorted(set(failed))
        write(self.path, json.dumps({"tests": self.tests, "of": self.of}, indent=0))

    def outcome(self, name):
        return self.of.get(name, {}).get("outcome")


def progress(folder, total, before, started):
    counts = {}
    for name, outcome in FILES_OF.items():
        path = os.path.join(folder, name)
        counts[outcome] = len(read(path).split("\n")) - 1 if os.path.exists(path) else 0
    done = sum(counts.values())
    todo = total - before
    eta = f", {(time.monotonic() - started) / done * (todo - done) / 60:.1f} min to go" if done > 4 else ""
    say(f"{before + done}/{total}, {counts[MISSED]} missed, {counts[TIMEOUT]} without an end{eta}")


def run(made, files, names, results, jobs, skipped):
    """Runs what has no result yet."""
    folder = os.path.join(OUT, "mutants.out")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder + ".old", ignore_errors=True)
    left = [n for n in names if results.outcome(n) is None]
    if not left:
        say("every result is there already (--again runs them again)")
        return
    known = [n for n in names if results.outcome(n) is not None]
    if known:
        # What cargo-mutants skips with --iterate.
        write(os.path.join(folder, "caught.txt"), "".join(n + "\n" for n in known))
        for name in ("missed.txt", "timeout.txt", "unviable.txt", "previously_caught.txt"):
            write(os.path.join(folder, name), "")
        write(os.path.join(folder, "mutants.json"), "[]")
        write(os.path.join(folder, "lock.json"), "{}")
    say(f"{len(left)} of {len(names)} mutants to run, {jobs} at a time")
    say("building what the tests need, and the tests on the unchanged sources")
    environment = {**os.environ, **ENVIRONMENT, "RUSTFLAGS": ENVIRONMENT["RUSTFLAGS"] + made.flags()}
    argv = command("-o", OUT, "--no-shuffle", "--timeout", str(TEST_SECONDS), "-j", str(jobs),
                   *(["--iterate"] if known else []), *files,
                   *([] if not skipped else ["--", "--"] + [a for test in skipped for a in ("--skip", test)]))
    log = os.path.join(OUT, "run.log")
    # The lists of the run before are gone once the baseline is built.
    started, begun, last = time.monotonic(), None, 0.0
    with open(log, "w", encoding="utf-8") as out:
        child = subprocess.Popen(
            ["/bin/sh", "-c", f'ulimit -v {MEMORY_KIB}; exec "$@"', "sh", *argv],
            cwd=made.path, env=environment, stdout=out, stderr=subprocess.STDOUT)
        try:
            while child.poll() is None:
                time.sleep(0.5)
                if begun is None:
                    if os.path.exists(os.path.join(folder, "log")) and re.search(r"^ok +Unmutated baseline", read(log), re.M):
                        begun = time.monotonic()
                        say(f"the tests pass on the unchanged sources ({begun - started:.0f} s)")
                elif time.monotonic() - last >= 10:
                    last = time.monotonic()
                    progress(folder, len(names), len(known), begun)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
            if begun is not None:
                results.take(folder)
    # 0 all noticed, 2 some missed, 3 some without an end.
    if child.returncode not in (0, 2, 3):
        raise Wrong(f"cargo-mutants ended with status {child.returncode}; {log}:\n{read(log)[-4000:]}")


def source_line(tree, name):
    found = NAME.match(name)
    return read(os.path.join(tree, found["file"])).split("\n")[int(found["line"]) - 1].strip()


def matches(tree, entry, name):
    found = NAME.match(name)
    return (found["file"] == entry["file"] and found["what"] == entry["mutant"]
            and entry.get("at", "") in source_line(tree, name))


def judge(tree, config, names, results, whole):
    """Compares the results with mutants.toml; answers (equivalent mutants with reasons, errors)."""
    equivalent, errors = {}, []
    covered = {NAME.match(n)["file"] for n in names}
    for entry in config.get("equivalent", []):
        text = f"{entry['file']}: {entry['mutant']}" + (f" (at `{entry['at']}`)" if "at" in entry else "")
        found = [n for n in names if matches(tree, entry, n)]
        if not found and (whole or entry["file"] in covered):
            errors.append(f"{LISTED}: there is no mutant {text}")
        for name in found:
            if results.outcome(name) in (KILLED, TIMEOUT):
                errors.append(f"{LISTED}: not equivalent, {' '.join(results.of[name]['failed'][:3]) or 'a test'} "
                              f"notices {name}")
            elif results.outcome(name) == MISSED:
                equivalent[name] = entry["reason"]
    for entry in config.get("guard", []):
        text = f"{entry['requirement']}: {entry['file']}: {entry['mutant']}"
        found = [n for n in names if matches(tree, entry, n)]
        if not found and (whole or entry["file"] in covered):
            errors.append(f"{LISTED}: there is no mutant for the guard of {text}")
        for name in found:
            if not any(entry["requirement"] in shown_by(tree, test) for test in results.of[name]["failed"]):
                errors.append(f"guard of {text}: no test of {entry['requirement']} notices that it lacks"
                              f" ({results.outcome(name)} by {' '.join(results.of[name]['failed'][:4]) or 'none'})")
    return equivalent, errors


def shown_by(tree, test):
    """The requirements that stand above a test, given as `test_FILE::CASE` or `test_kunit::SUITE::CASE`."""
    file, *_, case = test.split("::")
    names = [f"{HOST}/tests/{file.removeprefix('test_')}.rs"]
    if file == "test_kunit":
        names += [f"{TESTS_OF_BOTH}/{n}" for n in sorted(os.listdir(os.path.join(tree, TESTS_OF_BOTH))) if n.endswith(".rs")]
    found = [coverage.shown_in(n, read(os.path.join(tree, n)))[0] for n in names if os.path.exists(os.path.join(tree, n))]
    return {number for of in found for number in of.get(case, [])}


def report(tree, config, names, results, whole):
    equivalent, errors = judge(tree, config, names, results, whole)
    columns = ("mutants", "unviable", "killed", "no end", "equivalent", "missed")
    table = {}
    for name in names:
        row = table.setdefault(NAME.match(name)["file"], dict.fromkeys(columns, 0))
        row["mutants"] += 1
        outcome = results.outcome(name)
        row["equivalent" if name in equivalent else
            {KILLED: "killed", TIMEOUT: "no end", MISSED: "missed", UNVIABLE: "unviable"}[outcome]] += 1
    width = max(len(f) for f in table) + 2
    print("\n" + "file".ljust(width) + "".join(c.rjust(11) for c in columns))
    for file, row in table.items():
        print(file.ljust(width) + "".join(str(row[c]).rjust(11) for c in columns))
    print()
    for name in names:
        if results.outcome(name) == TIMEOUT:
            print(f"no end      {name}")
    for name, reason in equivalent.items():
        print(f"equivalent  {name}\n            {reason}")
    for name in names:
        if results.outcome(name) == MISSED and name not in equivalent:
            print(f"missed      {name}\n            at: {source_line(tree, name)}")
    for error in errors:
        print(f"error       {error}")
    killed_list = os.path.join(OUT, "killed.txt")
    killed = [n for n in names if results.outcome(n) in (KILLED, TIMEOUT)]
    write(killed_list, "".join(f"{n}\n    {' '.join(results.of[n]['failed'][:4]) or results.outcome(n)}\n" for n in killed))
    say(f"which test killed which: {os.path.relpath(killed_list, TOP)}")
    viable = [n for n in names if results.outcome(n) != UNVIABLE]
    guards = len(config.get("guard", []))
    say(f"{len(names)} mutants, {len(viable)} build, {len(killed)} killed "
        f"({100 * len(killed) / max(1, len(viable)):.1f} % with the {len(equivalent)} equivalent ones counted as missed); "
        f"{guards} guards in {LISTED}, {len(errors)} errors")
    counted = len(viable) - len(equivalent)
    print(f"mutants: {len(killed)} of {counted} viable killed", flush=True)
    return 1 if errors or 100 * len(killed) < FLOOR * counted else 0


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n\n")[0], add_help=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--jobs", type=int, default=max(1, min(4, os.cpu_count() or 1)))
    parser.add_argument("--tree", default=os.path.join(OUT, "tree"), help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*")
    args = parser.parse_args()
    if args.help:
        print(__doc__.strip())
        return 0
    config = tomllib.loads(read(os.path.join(TOP, LISTED)))
    for kind, needed in (("equivalent", "file mutant reason"), ("guard", "requirement file mutant"),
                         ("left_out", "test reason"), ("last", "test")):
        for entry in config.get(kind, []):
            if lacks := [k for k in needed.split() if not entry.get(k)]:
                raise Wrong(f"{LISTED}: an entry of [[{kind}]] lacks {lacks[0]}: {entry}")
    left_out = [entry["test"] for entry in config.get("left_out", [])]
    tree = Tree(args.tree, left_out, [entry["test"] for entry in config.get("last", [])])
    files = chosen(tree.path, args.files)
    names = listed(tree.path, files)
    if args.list:
        print("\n".join(names))
        return 0
    os.makedirs(OUT, exist_ok=True)
    results = Results(tree, args.again)
    run(tree, files, names, results, args.jobs, [test for test in left_out if "::" in test])
    if lacking := [n for n in names if results.outcome(n) is None]:
        raise Wrong(f"{len(lacking)} mutants have no result, the first: {lacking[0]}")
    return report(tree.path, config, names, results, not args.files)


if __name__ == "__main__":
    # As Ctrl-C: what runs is ended and what was found is kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except Wrong as wrong:
        print(f"mutants: error: {wrong}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("mutants: interrupted; what was found is kept for the next run", file=sys.stderr)
        sys.exit(130)
