#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of boot_report.py; run by scripts/host-test."""

import contextlib
import io
import json
import os
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import boot_report  # noqa: E402

EMU = {"leaf_6_tdh_mem_page_aug_calls": 9, "leaf_present_transitions": 9, "leaf_removed": 9, "guest_entries": 7,
       "counters": 3}
MIRROR = {"leaf_transitions": 9, "mapped": 9, "zapped": 9, "retries": 1, "kicks": 2, "tds_created": 1, "counters": 3}
CONSOLE = """\
[    0.000000] Linux version 7.3.4 (gcc 14)
[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009ffff] usable
[    0.010000] sched_clock: Marking stable (12345, 678)->(13000, -600)
[    0.500000] Run /init as init process
[    0.600000] [U] td: user space, Linux 7.3.4, up 0.61 s
[    0.700000] [U] unaccepted: 405504 kB
[    0.800000] [U] ok 1 - each vCPU has the flag tdx_guest
[    0.900000] [U] ok 2 - all vCPUs are online
[    0.950000] [U] 1..2
"""
VMM = {"status": 0, "outcome": "power-off", "exits": {"io_out": 400, "map_gpa": 3},
       "to_shared": {"conversions": 2, "bytes": 8192}, "to_private": {"conversions": 1, "bytes": 4096},
       "milestones": [{"name": "user space", "wall_us": 5, "tsc": 1234567}]}


class Machine:
    """What a run of td-linux leaves, to be spoiled."""

    def __init__(self, modes=("on", "off")):
        self.modes = modes
        self.console = {mode: CONSOLE for mode in modes}
        self.emu = {mode: dict(EMU) for mode in modes}
        self.mirror = {mode: dict(MIRROR) if mode == "on" else {"counters": 3} for mode in modes}
        self.status = {mode: 0 for mode in modes}
        self.host, self.end, self.saved = "", "vm: exit 0\n", True

    def log(self):
        text = "[    0.1] booting\n"
        for mode in self.modes:
            text += f"@boot {mode}\n"
            text += "".join(f"guest| {line}\r\n" for line in self.console[mode].splitlines())
            text += f"guest| @tsc 5000\n{self.host}"
            for part, values in (("tdx_emu", self.emu[mode]), ("tdx_mirror", self.mirror[mode])):
                text += "".join(f"@stat {mode} {part} {name} {value}\n" for name, value in values.items())
            text += f"@booted {mode} {self.status[mode]}\n"
        return text + self.end

    def report(self, *args):
        """(exit status, output)."""
        with tempfile.TemporaryDirectory() as folder:
            log = os.path.join(folder, "log")
            with open(log, "w", encoding="utf-8") as file:
                file.write(self.log())
            for mode in self.modes if self.saved else ():
                with open(os.path.join(folder, "console-" + mode), "w", encoding="utf-8") as file:
                    file.write(self.console[mode] + "@tsc 5000\n")
                with open(os.path.join(folder, f"vmm-{mode}.json"), "w", encoding="utf-8") as file:
                    json.dump(VMM, file)
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                status = boot_report.main([log, folder, *(args or self.modes)])
            return status, out.getvalue()


class Report(unittest.TestCase):
    def setUp(self):
        self.machine = Machine()

    def fails(self, word):
        status, out = self.machine.report()
        self.assertEqual(status, 1, out)
        self.assertIn(word, out)
        self.assertRegex(out, r"boot-linux: \d+ passed, [1-9]\d* failed\n$")

    def test_good(self):
        status, out = self.machine.report()
        self.assertEqual(status, 0, out)
        self.assertEqual(out.splitlines()[-1], "boot-linux: 12 passed, 0 failed")
        self.assertRegex(out, r"TDH\.MEM\.PAGE\.AUG +9 +9\n")
        self.assertRegex(out, r"until user space +1,234,567 +1,234,567\n")
        self.assertRegex(out, r"pages leaked +0 +0\n")

    def test_without_the_saved_files(self):
        self.machine.saved = False
        self.assertEqual(self.machine.report()[0], 0)

    def test_host_warned_in_the_middle_of_a_line_of_the_guest(self):
        good = self.machine.log()
        for text in ("guest| [    0.900000] [U] ok 2[   77.000001] WARNING: x\n", "guest| [   77.000001] WARNING: x\n"):
            self.machine.log = lambda t=text: good.replace("guest| [    0.900000] [U] ok 2", t + " ok 2", 1)
            self.fails("host log")

    def test_guest_test_failed(self):
        self.machine.console["on"] = CONSOLE.replace("ok 2", "not ok 2")
        self.fails("tdx_mirror=on: test failed: all vCPUs are online")

    def test_guest_did_not_finish(self):
        self.machine.console["off"] = CONSOLE.replace("1..2", "1..3")
        self.fails("announced 3 tests and reported 2")
        self.machine.console["off"] = CONSOLE.split("[    0.600000]")[0]
        self.fails("did not reach user space")

    def test_guest_warned(self):
        for line in ("WARNING: CPU: 1 PID: 1 at mm/x.c:7", "BUG: unable to handle page fault", "Unexpected #VE: 12",
                     "Kernel panic - not syncing: x", "tdx: TDG.MEM.PAGE.ACCEPT failed"):
            for mode in ("on", "off"):
                self.machine = Machine()
                self.machine.console[mode] += f"[    0.99] {line}\n"
                self.fails(f"tdx_mirror={mode}: guest log")

    def test_host_warned(self):
        self.machine.host = "[   9.000000] WARNING: possible circular locking dependency detected\n"
        self.fails("host log")

    def test_vmm_failed(self):
        self.machine.status["off"] = 3
        self.fails("the VMM ended with status 3")

    def test_machine_died(self):
        self.machine.end = ""
        self.fails("the machine did not come to its end")

    def test_mode_missing(self):
        self.machine = Machine(("on",))
        status, out = self.machine.report("on", "off")
        self.assertEqual(status, 1)
        self.assertIn("booted on instead of on off", out)

    def test_leak(self):
        self.machine.mirror["on"]["leaked"] = 2
        self.fails("the mirror counts leaked 2")
        self.machine = Machine()
        self.machine.emu["off"]["pamt_pages_owned"] = 4
        self.fails("4 pages still belong to the TDX module")

    def test_sides_differ(self):
        self.machine.mirror["on"]["leaf_transitions"] = 8
        self.fails("the mirror 8")
        self.machine = Machine()
        self.machine.mirror["on"]["zapped"] = 8
        self.fails("9 leaves mapped, 8 zapped")

    def test_mirror_of_the_wrong_side(self):
        self.machine.mirror["on"]["tds_created"] = 0
        self.fails("did not use the mirror")
        self.machine = Machine()
        self.machine.mirror["off"]["tds_created"] = 1
        self.fails("though it is off")

    def test_no_counters(self):
        self.machine.emu["on"] = {}
        self.fails("no counters of the software TDX module")

    def test_command(self):
        self.machine = Machine(("on",))
        self.machine.console["on"] = "[    0.600000] [U] td: user space, Linux\n[    0.7] [U] hello\n"
        self.assertEqual(self.machine.report("on", "--command")[0], 0)
        self.fails("announced None tests and reported 0")


class Normal(unittest.TestCase):
    """The normaliser hides times, addresses and what is left unaccepted, and nothing else."""

    def differences(self, line, other):
        machine = Machine()
        machine.console["on"] += line + "\n"
        machine.console["off"] += other + "\n"
        status, out = machine.report()
        return status, [text for text in out.splitlines() if "consoles differ" in text]

    def test_hides(self):
        for line, other in (
                ("[    1.000000] x", "[   22.123456] x"),
                ("[    1.000000] [U] [    0.900000] x", "[    1.000000] [U] [    0.911111] x"),
                ("[    1.0] up 0.61 s", "[    1.0] up 12.00 s"),
                ("[    1.000000] took 61 usecs", "[    1.000000] took 9 usecs"),
                ("[    1.000000] td-work: memory: 9 pages written and verified; unaccepted 45056 KiB",
                 "[    1.000000] td-work: memory: 9 pages written and verified; unaccepted 40960 KiB"),
                ("[    1.000000] td: memory at the end: unaccepted 8 kB",
                 "[    1.000000] td: memory at the end: unaccepted 4104 kB"),
                ("[    1.000000] at ffff888012345678 done", "[    1.000000] at ffffffff81000010 done"),
                ("[    1.000000] sched_clock: Marking stable (1, 2)->(3, -4)",
                 "[    2.000000] sched_clock: Marking stable (5, 6)->(7, 8)")):
            self.assertEqual(self.differences(line, other), (0, []))

    def test_shows(self):
        for line, other in (
                ("[    1.000000] Memory: 400000K/524164K available", "[    1.000000] Memory: 400004K/524164K available"),
                ("[    1.000000] unaccepted: 405504 kB", "[    1.000000] unaccepted: 0 kB"),
                ("[    1.000000] 9 pages written and verified; unaccepted 1 KiB",
                 "[    1.000000] 8 pages written and verified; unaccepted 1 KiB"),
                ("[    1.000000] smp: Brought up 1 node, 2 CPUs", "[    1.000000] smp: Brought up 1 node, 1 CPU"),
                ("[    1.000000] [mem 0x1000-0x2fff] reserved", "[    1.000000] [mem 0x1000-0x3fff] reserved"),
                ("[    1.000000] x", "[    1.000000] [U] x"),
                ("[    1.000000] td-work: 119000 pages", "[    1.000000] td-work: 119001 pages"),
                ("[    1.000000] version 1.2", "[    1.000000] version 1.3"),
                ("no stamp", "[    1.000000] no stamp")):
            status, found = self.differences(line, other)
            self.assertEqual((status, len(found)), (1, 4), (line, found))

    def test_missing_doubled_and_swapped_lines(self):
        for change in (lambda lines: lines[:3] + lines[4:], lambda lines: lines[:4] + lines[3:],
                       lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]]):
            machine = Machine()
            machine.console["off"] = "\n".join(change(CONSOLE.splitlines())) + "\n"
            status, out = machine.report()
            self.assertEqual(status, 1)
            self.assertIn("the consoles differ", out)

    def test_many_differences_are_cut(self):
        machine = Machine()
        machine.console["off"] += "".join(f"[    2.000000] line {n}\n" for n in range(100))
        status, out = machine.report()
        self.assertEqual(status, 1)
        self.assertRegex(out, r"the consoles differ: \d+ more lines")


if __name__ == "__main__":
    unittest.main(verbosity=2)
