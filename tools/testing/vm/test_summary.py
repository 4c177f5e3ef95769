#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of summary.py and sanitize.py; run by scripts/host-test."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as xml

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import sanitize  # noqa: E402
import summary  # noqa: E402

CONSOLE = """[    0.1] booting
[    0.100000] Running RCU self tests
@begin 1 on life_cycle
1..2
ok 1 life_cycle.build
[    1.000000] BUG: sleeping function called
not ok 2 life_cycle.end
@end 1 on life_cycle 1
@begin 1 off life_cycle
ok 1 life_cycle.build
ok 2 life_cycle.end # SKIP no mirror <here>
@end 1 off life_cycle 0
ok 1 refused.abi
vm: exit 1
"""
CARGO = """     Running unittests src/lib.rs (target/debug/deps/host-1)
test zap::bounded ... ok
test zap::lost ... FAILED
test_good_run (__main__.Report.test_good_run) ... ok
ok   layers: 12 files, 0.1 s
FAIL unsafe: 2 findings, 0.2 s
test result: FAILED. 1 passed; 1 failed; 0 ignored
"""
KUNIT = """[    1.0] KTAP version 1
    # Subtest: tdx_mirror_paths
    1..1
    ok 1 retry
ok 1 tdx_mirror_paths
"""


STAMP = "[    1.000001] "
PARTS = {
    "contract": "tdx_mirror_contract_test: ok 1 - size\ntdx_mirror_contract_test: 1..1\n",
    "testdev": "", "kunit": "    # Subtest: tdx_mirror_paths\n    1..1\n    ok 1 retry\nok 1 tdx_mirror_paths\n",
    "modules": "", "leaks": "",
    "bad past_end_c": "BUG: KASAN: slab-out-of-bounds in read_past_end+0x1/0x2 [tdx_mirror_bad]\n",
    "bad past_end_rust": "BUG: KASAN: slab-out-of-bounds in tdx_mirror_bad_rust_read+0x1/0x2 [tdx_mirror_bad]\n",
    "bad after_free_rust": "BUG: KASAN: slab-use-after-free in tdx_mirror_bad_rust_read+0x1/0x2 [tdx_mirror_bad]\n",
    "bad sleep_atomic": "BUG: sleeping function called from invalid context at bad.c:81\n",
    "bad rcu_unprotected": "WARNING: suspicious RCU usage\n",
    "bad list_twice": "list_add double add: new=1\n",
    "bad lock_order": "WARNING: possible circular locking dependency detected\n",
    "bad call_rust": "CFI failure at call_rust+0x1/0x2 [tdx_mirror_bad] (target: tdx_mirror_bad_rust_answer+0x0/0x3 "
                     "[tdx_mirror_bad]; expected type: 0x1)\n",
    "bad call_c": "CFI failure at tdx_mirror_bad_rust_call+0x1/0x2 [tdx_mirror_bad] (target: bad_c_answer+0x0/0x3 "
                  "[tdx_mirror_bad]; expected type: 0x1)\n",
    "bad leak": "", "end": "",
}
PROGRAMS = "ok 1 testdev.life_cycle\n1..1\nok 1 open_files.of_a_td\nok 1 modules.load_unload_10\n@leaks 0\n@leaks 1\nvm: exit 0\n"
RACE = "=" * 66 + "\nBUG: KCSAN: data-race in {0} / {0}\n\nread by task 1:\n {0}+0x1/0x2 {1}\n" + "=" * 66 + "\n"


def sanitized(programs=PROGRAMS, **changes):
    """A console of tdx-sanitize; a keyword is a part, with _ for the blank, and what the kernel says there."""
    text = "".join(f"@part {name}\n" + changes.get(name.replace(" ", "_"), said) for name, said in PARTS.items())
    return "".join(f"{STAMP}{line}\n" for line in text.split("\n") if line) + programs


class Sanitize(unittest.TestCase):
    def judge(self, text, flavour="kasan"):
        with tempfile.NamedTemporaryFile("w", suffix=".log") as file:
            file.write(text)
            file.flush()
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                status = sanitize.judge(flavour, file.name)
            return status, out.getvalue()

    def test_clean_run(self):
        status, out = self.judge(sanitized())
        self.assertEqual(status, 0, out)
        self.assertRegex(out, r"kasan: \d+ passed, 0 failed\n$")

    def test_report_in_clean_part(self):
        for part, said in (("testdev", "BUG: KASAN: slab-use-after-free in x\n"), ("modules", "WARNING: at foo\n"),
                           ("kunit", PARTS["kunit"] + "UBSAN: shift-out-of-bounds in x\n")):
            status, out = self.judge(sanitized(**{part: said}))
            self.assertEqual(status, 1)
            self.assertIn(f"kasan.{part}.no_report", out)
            self.assertIn(said.split("\n")[-2], out)

    def test_leak(self):
        status, out = self.judge(sanitized(PROGRAMS.replace("@leaks 0", "@leak unreferenced object 1\n@leaks 1")))
        self.assertEqual(status, 1)
        self.assertIn("# @leak unreferenced object 1", out)
        self.assertRegex(out, r"not ok \d+ kasan.no_leak")

    def test_blind_kernel(self):
        for bug in sanitize.DETECTS["kasan"]:
            if bug != "leak":
                status, out = self.judge(sanitized(**{f"bad_{bug}": ""}))
                self.assertEqual(status, 1)
                self.assertRegex(out, rf"not ok \d+ kasan.reports.{bug}\n")
        self.assertEqual(self.judge(sanitized(PROGRAMS.replace("@leaks 1\n", "@leaks 0\n")))[0], 1)

    def test_missing_end(self):
        self.assertEqual(self.judge(sanitized(PROGRAMS.replace("vm: exit 0\n", "")))[0], 1)
        self.assertEqual(self.judge("")[0], 1)

    def test_races_of_others(self):
        bugs = {"bad_race": RACE.format("race_thread", "[tdx_mirror_bad]"), "bad_shift": "UBSAN: shift-out-of-bounds\n"}
        text = sanitized(testdev=RACE.format("ksys_read", ""), **bugs).replace("bad past_end_c", "bad race").replace(
            "bad past_end_rust", "bad shift")
        text = text.replace(f"{STAMP}{PARTS['bad past_end_c']}", "".join(
            f"{STAMP}{line}\n" for line in bugs["bad_race"].split("\n")))
        text = text.replace(f"{STAMP}{PARTS['bad past_end_rust']}", f"{STAMP}{bugs['bad_shift']}")
        status, out = self.judge(text, "kcsan")
        self.assertIn("# a race of the kernel itself, 1 times: BUG: KCSAN: data-race in ksys_read", out)
        self.assertEqual(status, 0, out)
        status, out = self.judge(text.replace("ksys_read+0x1/0x2 ", "ksys_read+0x1/0x2 [tdx_mirror]"), "kcsan")
        self.assertRegex(out, r"not ok \d+ kcsan.testdev.no_report")


class Closing(unittest.TestCase):
    def test_part_that_looks_for_something(self):
        self.assertEqual(summary.closing(["planted: 15 of 16 planted bugs found"], [], 1), [15, 1, 0])
        self.assertEqual(summary.closing(["planted: 16 of 16 planted bugs found"], [], 0), [16, 0, 0])

    def test_part_that_counts_nothing(self):
        lines = ["failnth: 7 injections, 0 lost, 0 host faults"]
        self.assertEqual(summary.closing(lines, [], 0), [1, 0, 0])
        self.assertEqual(summary.closing(lines, [], 1), [0, 1, 0])


class Summary(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.dir = os.path.join(self.folder.name, "report")
        os.mkdir(self.dir)

    def tearDown(self):
        self.folder.cleanup()

    def path(self, name, text):
        path = os.path.join(self.folder.name, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def add(self, suite, output, console=None, status=0):
        args = ["add", self.dir, "--suite", suite, "--flavour", "debug", "--seconds", "7", "--status", str(status),
                "--output", self.path(f"test-{suite}.log", output)]
        if console:
            args += ["--console", self.path(f"{suite}.log", console)]
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self.assertEqual(summary.main(args), 0)
        return out.getvalue()

    def finish(self):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            status = summary.main(["finish", self.dir])
        return status, out.getvalue()

    def test_modes_have_rows(self):
        out = self.add("selftests", "tdx-mirror: problem: life_cycle failed\nselftests: 3 passed, 1 failed, 1 skipped\n",
                       CONSOLE, 1)
        self.assertIn("problem: life_cycle failed", out)
        self.add("a-suite-with-a-long-name", "1 passed, 0 failed\n")
        status, out = self.finish()
        self.assertEqual(status, 1)
        rows = [line.split() for line in out.split("\n")]
        self.assertIn(["selftests", "debug", "on", "1", "1", "0", "7", "s"], rows)
        columns = [line.index("debug") for line in out.split("\n") if " debug " in line]
        self.assertEqual(columns, [columns[0]] * 4)
        self.assertIn(["selftests", "debug", "off", "1", "0", "1", '"'], rows)
        self.assertIn(["selftests", "debug", "-", "1", "0", "0", '"'], rows)
        self.assertTrue(out.endswith("\n4 passed, 1 failed\n"), out)

    def test_junit_has_failure_and_kernel_log(self):
        self.add("selftests", "selftests: 3 passed, 1 failed, 1 skipped\n", CONSOLE, 1)
        self.finish()
        root = xml.parse(os.path.join(self.dir, "junit.xml")).getroot()
        case = root.find("testsuite[@name='selftests.debug.on']/testcase[@name='life_cycle: life_cycle.end']")
        self.assertIsNotNone(case.find("failure"))
        self.assertIn("sleeping function called", case.find("system-out").text)
        skipped = root.find("testsuite[@name='selftests.debug.off']//skipped")
        self.assertEqual(skipped.get("message"), "no mirror <here>")

    def test_console_of_a_failure_is_kept(self):
        self.add("selftests", "selftests: 3 passed, 1 failed\n", CONSOLE, 1)
        self.assertTrue(os.path.isfile(os.path.join(self.dir, "dmesg", "selftests-selftests.log")))

    def test_notations_of_the_host(self):
        self.add("host", CARGO, status=1)
        status, out = self.finish()
        self.assertEqual(status, 1)
        self.assertTrue(out.endswith("\n3 passed, 2 failed\n"), out)
        with open(os.path.join(self.dir, "results.ktap"), encoding="utf-8") as file:
            ktap = file.read()
        self.assertIn("    not ok 2 lib::zap::lost\n", ktap)
        self.assertIn("not ok 1 host.debug.-\n", ktap)

    def ktap(self):
        with open(os.path.join(self.dir, "results.ktap"), encoding="utf-8") as file:
            return file.read()

    def mixed(self):
        """Parts with cases, without any that passed and that failed, and one that skipped all."""
        self.add("kunit", "", KUNIT)
        self.add("soak", "soak: 10 steps\n")
        self.add("no-machine", "no machine\n", status=2)
        self.add("run-failed", "", KUNIT, status=1)
        self.add("skips", "", "@begin 1 on probe\nok 1 probe.one # SKIP no TDX\nok 2 probe.two # SKIP no #1\n@end 1 on probe 4\n")
        self.finish()

    def test_ktap_has_no_empty_suite(self):
        self.mixed()
        ktap = self.ktap()
        self.assertNotIn("1..0", ktap)
        for suite, lines in (("soak.debug.-", ["1..1", "ok 1 the run itself"]),
                             ("no-machine.debug.-", ["1..1", "not ok 1 the run itself"]),
                             ("run-failed.debug.-", ["1..2", "ok 1 retry", "not ok 2 the run itself"])):
            text = "".join(f"    {line}\n" for line in [f"# Subtest: {suite}", *lines])
            self.assertRegex(ktap, re.escape(text) + rf"{lines[-1].split(' 1')[0].split(' 2')[0]} \d+ {suite}\n")

    def test_ktap_skips_a_suite(self):
        self.mixed()
        self.assertRegex(self.ktap(), r"\n    ok 2 probe: probe.two # SKIP no #1\nok \d+ skips.debug.on # SKIP\b.*\n")

    def test_ktap_of_nothing(self):
        self.finish()
        self.assertEqual(self.ktap(), "KTAP version 1\n1..1\nnot ok 1 no part ran\n")

    def test_ktap_read_by_kunit(self):
        tool = os.path.join(os.environ.get("TDX_LINUX", ""), "src/tools/testing/kunit/kunit.py")
        if not os.path.isfile(tool):
            self.skipTest("no source of a kernel in TDX_LINUX")
        self.mixed()
        done = subprocess.run([sys.executable, "-B", tool, "parse", os.path.join(self.dir, "results.ktap")], check=False,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertIn("Ran 7 tests: passed: 3, failed: 2, skipped: 2\n", done.stdout)
        self.assertNotIn("ERROR", done.stdout)

    @unittest.skipIf(not shutil.which("prove"), "prove is not installed")
    def test_ktap_read_by_prove(self):
        self.mixed()
        done = subprocess.run(["prove", "--exec", "cat", os.path.join(self.dir, "results.ktap")], check=False,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertRegex(done.stdout, r"Failed tests:  3-4\n")
        self.assertIn("Failed 2/5 subtests", done.stdout)
        self.assertIn("(less 1 skipped subtest: 2 okay)", done.stdout)
        self.assertNotIn("Parse errors", done.stdout)

    def test_junit_of_a_part_without_cases(self):
        self.mixed()
        root = xml.parse(os.path.join(self.dir, "junit.xml")).getroot()
        for suite in root:
            self.assertEqual(int(suite.get("tests")), len(suite.findall("testcase")), suite.get("name"))
        self.assertIsNotNone(root.find("testsuite[@name='soak.debug.-']/testcase[@name='the run itself']"))

    def test_reasons_are_at_the_end(self):
        self.add("host", CARGO + "thread 'zap::lost' (77) panicked at tests/zap.rs:9:5:\nlost 3 pages\nnote: run\n", status=1)
        self.add("kunit", KUNIT)
        out = self.finish()[1]
        at = out.index("tdx-mirror: host failed:\n")
        self.assertGreater(at, out.index("kunit "))
        for line in ("test zap::lost ... FAILED", "thread 'zap::lost' (77) panicked at tests/zap.rs:9:5:", "lost 3 pages"):
            self.assertIn(f"    | {line}\n", out[at:])
        self.assertNotIn("note: run", out)
        self.assertNotIn("kunit failed", out)

    def test_kunit_counts_cases_only(self):
        self.add("kunit", "", KUNIT)
        self.assertTrue(self.finish()[1].endswith("\n1 passed, 0 failed\n"))

    def test_what_breaks_has_failed(self):
        self.add("kunit", "no machine\n", status=2)
        status, out = self.finish()
        self.assertEqual(status, 1)
        self.assertTrue(out.endswith("\n0 passed, 1 failed\n"), out)
        root = xml.parse(os.path.join(self.dir, "junit.xml")).getroot()
        self.assertIsNotNone(root.find("testsuite/testcase[@name='the run itself']/failure"))

    def test_nothing_is_no_success(self):
        self.assertEqual(self.finish()[0], 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
