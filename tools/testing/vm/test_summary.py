#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of summary.py and sanitize.py; run by scripts/host-test."""

import contextlib
import io
import os
import sys
import tempfile
import unittest
import xml.etree.ElementTree as xml

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

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
test zap::r4_bounded ... ok
test zap::r5_lost ... FAILED
test_good_run (__main__.Report.test_good_run) ... ok
ok   layers: 12 files, 0.1 s
FAIL unsafe: 2 findings, 0.2 s
test result: FAILED. 1 passed; 1 failed; 0 ignored
"""
KUNIT = """[    1.0] KTAP version 1
    # Subtest: tdx_mirror_paths
    1..1
    ok 1 b3_retry
ok 1 tdx_mirror_paths
"""


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
        status, out = self.finish()
        self.assertEqual(status, 1)
        rows = [line.split() for line in out.split("\n")]
        self.assertIn(["selftests", "debug", "on", "1", "1", "0", "7", "s"], rows)
        self.assertIn(["selftests", "debug", "off", "1", "0", "1", '"'], rows)
        self.assertIn(["selftests", "debug", "-", "1", "0", "0", '"'], rows)
        self.assertTrue(out.endswith("\n3 passed, 1 failed\n"), out)

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
        self.assertIn("    not ok 2 lib::zap::r5_lost\n", ktap)
        self.assertIn("not ok 1 host.debug.-\n", ktap)

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
