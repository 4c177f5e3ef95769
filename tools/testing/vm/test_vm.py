#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of the scripts around the emulated host; run by scripts/host-test."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))
sys.path.insert(0, HERE)

import report  # noqa: E402

EMU = {"leaf_6_tdh_mem_page_aug_calls": 5, "leaf_6_tdh_mem_page_aug_ok": 4, "leaf_present_transitions": 4,
       "leaf_removed": 4, "pamt_pages_owned": 0, "busy": 1, "invariant_errors": 0, "guest_entries": 7, "counters": 9}
MIRROR = {"leaf_transitions": 4, "mapped": 4, "zapped": 4, "leaked": 0, "quarantined": 0, "retries": 1,
          "tds_live": 0, "tds_created": 1, "counters": 8}


def log(on=None, off=None, tap="ok 1 maps\n", status=0, kernel="", end="vm: exit 0\n"):
    """A serial log with one program in both modes; on and off change counters."""
    text = "[    0.1] booting\n"
    for mode, change in (("on", on or {}), ("off", off or {})):
        text += f"@begin 1 {mode} life_cycle\r\n{tap}{kernel}@tsc 1000\n"
        emu = {**EMU, **{k: v for k, v in change.items() if k in EMU}}
        mirror = {**MIRROR, **{k: v for k, v in change.items() if k in MIRROR}}
        if mode == "off":
            mirror = {**{name: 0 for name in MIRROR}, **{k: v for k, v in change.items() if k in MIRROR}}
        for part, values in (("tdx_emu", emu), ("tdx_mirror", mirror)):
            text += "".join(f"@stat 1 {mode} life_cycle {part} {k} {v}\n" for k, v in values.items())
        text += f"@end 1 {mode} life_cycle {status}\n"
    return text + end


def run_report(kind, text, modes=()):
    """(exit status, output) of the report on a log."""
    with tempfile.NamedTemporaryFile("w", suffix=".log") as file:
        file.write(text)
        file.flush()
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            status = report.main([kind, file.name, *modes])
        return status, out.getvalue()


class Report(unittest.TestCase):
    def fails(self, text, word, kinds=("run", "selftests")):
        for kind in kinds:
            status, out = run_report(kind, text)
            self.assertEqual(status, 1, out)
            self.assertIn(word, out)

    def test_good_run(self):
        status, out = run_report("run", log())
        self.assertEqual(status, 0, out)
        self.assertEqual(out.splitlines()[-1], "tdx-mirror: run ok: 4 pages mapped, 4 zapped, 0 leaked")
        self.assertIn("TDH.MEM.PAGE.AUG", out)

    def test_good_selftests(self):
        status, out = run_report("selftests", log())
        self.assertEqual(status, 0, out)
        self.assertEqual(out.splitlines()[-1], "selftests: 2 passed, 0 failed, 0 skipped")

    def test_one_mode(self):
        text = log()
        only_on = text[:text.index("@begin 1 off")] + text[text.rindex("@end 1 off"):].split("\n", 1)[1]
        self.fails(only_on, "ran only with tdx_mirror=on")
        status, out = run_report("selftests", only_on, ["on"])
        self.assertEqual(status, 0, out)
        status, out = run_report("selftests", only_on, ["off"])
        self.assertEqual(status, 1, out)

    def test_leak(self):
        self.fails(log(on={"leaked": 1}), "1 pages leaked")
        self.fails(log(off={"pamt_pages_owned": 3}), "3 pages still belong")

    def test_sides_differ(self):
        self.fails(log(on={"leaf_transitions": 5}), "the mirror 5")

    def test_modes_differ(self):
        self.fails(log(off={"leaf_removed": 3}), "leaf_removed is 4", kinds=("run",))

    def test_mirror_not_used(self):
        self.fails(log(on={"tds_created": 0}), "did not use the mirror")
        self.fails(log(off={"tds_created": 1}), "though it is off")

    def test_kernel_warned(self):
        for line in ("WARNING: CPU: 0 at mm", "BUG: sleeping", "WARNING: possible circular locking", "Oops: 0"):
            self.fails(log(kernel=f"[   1.0] {line}\n"), "kernel log")
    # Shows: R3.

    def test_a_sleep_in_a_fault_fails_the_run(self):
        for line in ("BUG: sleeping function called from invalid context at mm/slab.h:123", "BUG: scheduling while atomic",
                     "[ BUG: Invalid wait context ]"):
            self.fails(log(kernel=f"[   1.0] {line}\n"), "kernel log")
        # The kernel of every run looks for that.
        with open(os.path.join(HERE, "debug.config"), encoding="utf-8") as config:
            lines = config.read().split("\n")
        for option in ("DEBUG_ATOMIC_SLEEP", "PROVE_LOCKING"):
            self.assertIn(f"CONFIG_{option}=y", lines)

    def test_test_case_failed(self):
        self.fails(log(tap="not ok 1 maps\n", status=1), "failed")

    def test_died(self):
        self.fails(log(status=139), "failed: status 139")
        self.fails(log(end=""), "did not come to its end")
        self.fails("", "no test program ran")

    def test_no_test_case(self):
        self.fails(log(tap=""), "reported no test case")

    def test_skip_is_not_pass(self):
        _, out = run_report("selftests", log(tap="ok 1 maps # SKIP no firmware\n"))
        self.assertIn("0 passed, 0 failed, 2 skipped", out)
        self.assertIn("# skipped: 2: no firmware: maps (on), maps (off)\n", out)
        self.fails(log(tap="ok 1 maps # SKIP\n"), "without a reason", ["selftests"])

    def test_plan(self):
        self.fails(log(tap="1..2\nok 1 maps\n"), "announced 2 test cases and reported 1")
        status, out = run_report("selftests", log(tap="1..2\nok 1 maps\nok 2 zaps\n"))
        self.assertEqual(status, 0, out)

    def test_line_of_the_kernel_in_the_middle(self):
        status, out = run_report("selftests", log(tap="1..1\nok 1 ma[    1.000001] kvm: said\n[    1.000002] more\nps\n"))
        self.assertEqual(status, 0, out)

    BEGIN = "[    1.000001] tdx-mirror-test: warnings expected: it breaks\n"
    END = "[    1.000009] tdx-mirror-test: no more warnings expected\n"
    WARN = "[    1.000002] WARNING: kvm.c:7 at x\n[    1.000003] Call Trace:\n"

    def test_expected_warning(self):
        status, out = run_report("selftests", log(kernel=self.BEGIN + self.WARN + self.END))
        self.assertEqual(status, 0, out)
        self.fails(log(kernel=self.BEGIN + self.END + self.WARN), "WARNING: kvm.c:7")
        self.fails(log(kernel=self.BEGIN + self.WARN), "where its expected warnings end")
        ended = "[    1.000005] tdx-mirror-test: program ended\n"
        self.fails(log(kernel=self.BEGIN + ended + self.END), "where its expected warnings end")
        self.fails(log(kernel=self.BEGIN + "[    1.000002] BUG: sleeping function called\n" + self.END), "BUG: sleeping")

    def test_left_on_purpose(self):
        said = "# on purpose: not_removed 1 not_zapped 1 quarantined 1 leaked 1 owned 2\n"
        left = {"leaked": 1, "quarantined": 1, "zapped": 3}
        text = log(on={**left, "pamt_pages_owned": 2}, off={"pamt_pages_owned": 2})
        on, off = text.split("@begin 1 off")
        status, out = run_report("selftests", on.replace("ok 1", said + "ok 1") + "@begin 1 off" + off)
        self.assertEqual(status, 0, out)
        self.fails(text, "1 pages leaked, 0 of them on purpose", ["selftests"])
        self.fails(log(tap=said + "ok 1 maps\n"), "0 pages leaked, 1 of them on purpose", ["selftests"])


class Contract(unittest.TestCase):
    REFUSED = "".join(f"[    0.5] tdx_mirror: {message}: choose another\nrefused {value}\n"
                      for value, message in report.REFUSED.items())
    LOAD = ("[    1.0] tdx_mirror_contract_test: ok 1 - create\r\n[    1.1] WARNING: x at tdx_mirror_warn_bug+0x9\n"
            "[    1.0] tdx_mirror_contract_test: ok 1 - create\r\n[    1.2] tdx_mirror_contract_test: 1..1\n")
    GOOD = REFUSED + LOAD + "vm: exit 0\n"

    def test_good(self):
        cases = len(report.REFUSED) + 1
        self.assertEqual(run_report("contract", self.GOOD), (0, f"contract: {cases} passed, 0 failed\n"))
        twice = self.REFUSED + self.LOAD + self.LOAD + "vm: exit 0\n"
        self.assertEqual(run_report("contract", twice), (0, f"contract: {cases + 1} passed, 0 failed\n"))

    def test_bad(self):
        for text in (self.GOOD.replace("ok 1", "not ok 1"), self.GOOD.replace("1..1", "1..2"),
                     self.GOOD.replace("exit 0", "exit 1"), self.GOOD + "WARNING: elsewhere\n", "",
                     self.GOOD.replace("1..1", ""), self.GOOD.replace("refused zap_batch=0", ""),
                     self.GOOD.replace("zap_batch=513 is not", "zap_batch=513 is"), self.REFUSED + "vm: exit 0\n"):
            status, out = run_report("contract", text)
            self.assertEqual(status, 1, out)
            self.assertRegex(out, r"contract: \d+ passed, [1-9]\d* failed\n$")


class Kunit(unittest.TestCase):
    GOOD = ("[    1.0] KTAP version 1\r\n[    1.0] 1..1\r\n[    1.0]     KTAP version 1\r\n"
            "[    1.0]     # Subtest: tdx_mirror_spte\r\n[    1.0]     1..2\r\n[    1.0]     ok 1 one\r\n"
            "[    1.0]     ok 2 two\r\n[    1.0] ok 1 tdx_mirror_spte\r\nvm: exit 0\r\n")

    def test_good(self):
        self.assertEqual(run_report("kunit", self.GOOD), (0, "kunit: 2 passed, 0 failed\n"))

    def test_bad(self):
        for text in (self.GOOD.replace("    ok 2", "    not ok 2"), self.GOOD.replace("1..2", "1..3"),
                     self.GOOD.replace("ok 2 two", "ok 2 two # SKIP why"), self.GOOD.replace("exit 0", "exit 1"),
                     self.GOOD.replace("] ok 1 tdx", "] tdx"), self.GOOD + "WARNING: elsewhere\n", ""):
            status, out = run_report("kunit", text)
            self.assertEqual(status, 1, out)
            self.assertRegex(out, r"kunit: \d+ passed, [1-9]\d* failed\n$")


class TestDevice(unittest.TestCase):
    GOOD = "TAP version 13\n1..1\nok 1 testdev.parallel\r\nok 1 open_files.of_a_td\nvm: exit 0\n"

    def test_good(self):
        self.assertEqual(run_report("testdev", self.GOOD), (0, "testdev: 2 passed, 0 failed\n"))

    def test_bad(self):
        for text in (self.GOOD.replace("ok 1", "not ok 1"), self.GOOD.replace("1..1", "1..2"),
                     self.GOOD.replace("exit 0", "exit 1"), self.GOOD + "WARNING: elsewhere\n",
                     self.GOOD.replace("parallel", "parallel # SKIP no device"),
                     self.GOOD.replace("ok 1 open_files.of_a_td\n", ""), ""):
            status, out = run_report("testdev", text)
            self.assertEqual(status, 1, out)
            self.assertRegex(out, r"testdev: \d+ passed, [1-9]\d* failed\n$")


PATCH = """--- a/{name}
+++ b/{name}
@@ -1,2 +1,2 @@
 first
-{old}
+{new}
"""
NEW_FILE = """--- /dev/null
+++ b/sub/new
@@ -0,0 +1 @@
+hello
"""


class SyncPatches(unittest.TestCase):
    def setUp(self):
        self.temp = tempfile.TemporaryDirectory()
        self.dir = self.temp.name
        os.mkdir(os.path.join(self.dir, "src"))
        for name in ("one", "two"):
            self.write("src/" + name, "first\nsecond\n")
            os.utime(os.path.join(self.dir, "src", name), (1000, 1000))

    def tearDown(self):
        self.temp.cleanup()

    def write(self, name, text):
        with open(os.path.join(self.dir, name), "w", encoding="utf-8") as file:
            file.write(text)
        return os.path.join(self.dir, name)

    def read(self, name):
        with open(os.path.join(self.dir, "src", name), encoding="utf-8") as file:
            return file.read()

    def sync(self, *patches, ok=True):
        done = subprocess.run([os.path.join(TOP, "scripts/sync-patches"), self.dir, *patches], check=False,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(done.returncode == 0, ok, done.stdout)

    def mtime(self, name):
        return os.path.getmtime(os.path.join(self.dir, "src", name))

    def test_apply_change_and_take_back(self):
        first = self.write("1.patch", PATCH.format(name="one", old="second", new="changed") + NEW_FILE)
        self.sync(first)
        self.assertEqual(self.read("one"), "first\nchanged\n")
        self.assertEqual(self.read("sub/new"), "hello\n")
        self.assertEqual(self.mtime("two"), 1000)
        stamp = self.mtime("one")
        second = self.write("2.patch", PATCH.format(name="two", old="second", new="other"))
        self.sync(first, second)
        self.assertEqual(self.read("two"), "first\nother\n")
        self.assertEqual(self.mtime("one"), stamp)
        self.sync()
        self.assertEqual(self.read("one"), "first\nsecond\n")
        self.assertEqual(self.read("two"), "first\nsecond\n")
        self.assertFalse(os.path.exists(os.path.join(self.dir, "src/sub/new")))

    def test_patch_that_does_not_fit_changes_nothing(self):
        good = self.write("1.patch", PATCH.format(name="one", old="second", new="changed"))
        bad = self.write("2.patch", PATCH.format(name="two", old="missing", new="x"))
        self.sync(good, bad, ok=False)
        self.assertEqual(self.read("one"), "first\nsecond\n")
        self.sync(good)
        self.assertEqual(self.read("one"), "first\nchanged\n")


class Modules(unittest.TestCase):
    """What `make KDIR=... modules` says of trees that cannot build."""

    def setUp(self):
        self.temp = tempfile.TemporaryDirectory()
        self.dir = self.temp.name
        os.makedirs(os.path.join(self.dir, "include/config"))
        self.put("Makefile", "")
        self.put("include/config/kernel.release", "7.3.4\n")
        self.put("Module.symvers", "")

    def tearDown(self):
        self.temp.cleanup()

    def put(self, name, text):
        with open(os.path.join(self.dir, name), "w", encoding="utf-8") as file:
            file.write(text)

    def says(self, word, kdir=None, env=None):
        done = subprocess.run([os.path.join(TOP, "scripts/modules"), kdir or self.dir], check=False,
                              env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn(word, done.stdout)

    def test_missing(self):
        self.says("there is no folder", kdir=self.dir + "/none")
        self.says("not a built kernel tree")

    def test_no_rust(self):
        self.put("include/config/auto.conf", "CONFIG_MODULES=y\n")
        self.says("CONFIG_RUST is off")

    def test_old_kernel(self):
        self.put("include/config/auto.conf", "CONFIG_MODULES=y\nCONFIG_RUST=y\n")
        self.put("include/config/kernel.release", "6.18.2\n")
        self.says("for 7.3 and later")

    def test_no_metadata_and_other_compiler(self):
        self.put("include/config/auto.conf",
                 'CONFIG_MODULES=y\nCONFIG_RUST=y\nCONFIG_RUSTC_VERSION_TEXT="rustc 1.2.3"\n')
        self.says("rust/libcore.rmeta")
        self.says("the kernel was built with 'rustc 1.2.3'")
        self.says("there is no rustc", env={"RUSTC": "no-such-rustc"})


# A kernel tree that looks built. Its make says in the modules for which tree they are, and
# holds if it finds a file `hold`, until that is gone.
FAKE_TREE = """modules:
	@mkdir -p $(MO)/tdx_mirror; touch {dir}/began
	@while [ -e {dir}/hold ]; do sleep 0.05; done
	@for one in {names}; do echo {dir} >$(MO)/tdx_mirror/$$one.ko; echo tdx_mirror/$$one.o; done >$(MO)/modules.order
	@! [ -e {dir}/fail ]
"""
METADATA = ("rust/libcore.rmeta rust/libcompiler_builtins.rmeta rust/libkernel.rmeta rust/libbindings.rmeta rust/libuapi.rmeta "
            "rust/libffi.rmeta rust/libbuild_error.rmeta rust/libpin_init.rmeta rust/libmacros.so "
            "include/generated/rustc_cfg scripts/target.json include/linux/tdx_mirror.h Module.symvers").split()


class ModulesTogether(unittest.TestCase):
    """Several `make KDIR=... modules` in one checkout, at once and one after the other."""

    def setUp(self):
        temp = tempfile.TemporaryDirectory()
        self.addCleanup(temp.cleanup)
        self.dir = temp.name
        self.top = os.path.join(self.dir, "top")
        os.makedirs(os.path.join(self.top, "scripts"))
        shutil.copy(os.path.join(TOP, "scripts/modules"), os.path.join(self.top, "scripts"))
        for name, modules in (("one", "tdx_mirror tdx_emu"), ("two", "tdx_mirror")):
            for path in METADATA:
                self.put(f"{name}/{path}")
            self.put(f"{name}/include/config/kernel.release", "7.3.4\n")
            self.put(f"{name}/include/config/auto.conf", "CONFIG_MODULES=y\nCONFIG_RUST=y\nCONFIG_KVM_INTEL_TDX=y\n")
            self.put(f"{name}/Makefile", FAKE_TREE.format(dir=os.path.join(self.dir, name), names=modules))

    def put(self, name, text=""):
        path = os.path.join(self.dir, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def start(self, tree, **env):
        """A build for a tree, and the file that has its output."""
        path = os.path.join(self.dir, f"output-{time.monotonic_ns()}")
        env = {**{k: v for k, v in os.environ.items() if k != "MO"}, "RUSTC": "true", **env}
        with open(path, "w", encoding="utf-8") as out:
            run = subprocess.Popen([os.path.join(self.top, "scripts/modules"), os.path.join(self.dir, tree)], env=env,
                                   cwd=self.dir, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        self.addCleanup(run.kill)
        return run, path

    def build(self, tree, **env):
        """(status, output) of a build that runs to its end."""
        return self.end(self.start(tree, **env))

    def end(self, started):
        return started[0].wait(timeout=60), self.read(started[1])

    def read(self, *path):
        with open(os.path.join(self.dir, *path), encoding="utf-8") as file:
            return file.read()

    def until(self, ready):
        """Waits for what another process does."""
        for _ in range(1200):
            if ready():
                return
            time.sleep(0.05)
        self.fail("it does not come")

    def held(self, tree, **env):
        """A build that has begun and holds."""
        self.put(f"{tree}/hold")
        run = self.start(tree, **env)
        self.until(lambda: os.path.exists(os.path.join(self.dir, tree, "began")))
        return run

    def built(self, folder="top/build/modules"):
        """For which tree the modules there are."""
        return os.path.basename(self.read(folder, "tdx_mirror/tdx_mirror.ko").strip())

    def test_two_trees_at_once(self):
        first = self.held("one")
        second = self.start("two")
        self.until(lambda: "waiting for make KDIR=" in self.read(second[1]))
        os.unlink(os.path.join(self.dir, "one/hold"))
        status, said = self.end(second)
        self.assertEqual(self.end(first)[0], 0)
        # What the first was told is there has to be there when it looks.
        self.assertEqual(self.built(), "one")
        self.assertEqual(status, 1, said)
        self.assertRegex(said, r"error: for .*/one has just been built in .*\n.*MO=<folder>")
        # Afterwards the folder is the second's.
        self.assertEqual(self.build("two")[0], 0)
        self.assertEqual(self.built(), "two")

    def test_one_tree_at_once(self):
        first = self.held("one")
        second = self.start("one")
        self.until(lambda: "waiting for make KDIR=" in self.read(second[1]))
        os.unlink(os.path.join(self.dir, "one/hold"))
        for status, said in (self.end(first), self.end(second)):
            self.assertEqual(status, 0, said)

    def test_after_one_that_failed(self):
        self.put("one/fail")
        first = self.held("one")
        second = self.start("two")
        self.until(lambda: "waiting for make KDIR=" in self.read(second[1]))
        os.unlink(os.path.join(self.dir, "one/hold"))
        self.assertEqual(self.end(first)[0], 1)
        self.assertEqual(self.end(second)[0], 0)
        self.assertEqual(self.built(), "two")

    def test_folders_of_their_own(self):
        first = self.held("one", MO="for-one")
        second = self.held("two", MO=os.path.join(self.dir, "second"))
        for tree in ("one", "two"):
            os.unlink(os.path.join(self.dir, tree, "hold"))
        for run, tree, folder in ((first, "one", "for-one"), (second, "two", "second")):
            status, said = self.end(run)
            self.assertEqual(status, 0, said)
            self.assertNotIn("waiting", said)
            self.assertEqual(self.built(folder), tree)
            self.assertIn(f"/{folder}/tdx_mirror/tdx_mirror.ko\n", said)
        self.assertFalse(os.path.exists(os.path.join(self.top, "build/modules")))

    def test_lists_what_it_built(self):
        self.assertIn("build/modules/tdx_mirror/tdx_emu.ko\n", self.build("one")[1])
        status, said = self.build("two")
        self.assertEqual(status, 0, said)
        self.assertIn("build/modules/tdx_mirror/tdx_mirror.ko\n", said)
        self.assertNotIn("tdx_emu", said)

    @unittest.skipIf(os.geteuid() == 0 and not shutil.which("setpriv"), "root may write everywhere")
    def test_folder_of_another_user(self):
        os.makedirs(os.path.join(self.top, "build/modules"))
        self.put("top/build/.run", "make test (process 1)\n")
        os.chmod(self.dir, 0o755)
        command = [os.path.join(self.top, "scripts/modules"), os.path.join(self.dir, "one")]
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid=65534", "--clear-groups", *command]
        else:
            os.chmod(os.path.join(self.top, "build/.run"), 0o444)
        done = subprocess.run(command, check=False, env={**os.environ, "RUSTC": "true"}, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stdout, r"error: .*build cannot be written")
        self.assertNotIn("waiting", done.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
