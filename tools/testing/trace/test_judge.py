#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of judge.py: it reads what the tools write, and finds what differs."""

import contextlib
import io
import os
import re
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import judge  # noqa: E402

HEAD = "         testdev-219   [000] ...1.    63.834979: "
LIFE = [
    "tdx_mirror_seamcall: td 50 MEM.PAGE.AUG gpa 0x5000 level 1 pa 0x9000 status 0x0000000000000000 operand 0x0 "
    "cycles 2000 ns 1000",
    "tdx_mirror_spte_changed: td 50 gpa 0x5000 level 1 old 0x8000000000000000 new 0x8000000000009837",
    "tdx_mirror_fault: td 50 gfn 0x5 pfn 0x9 level 1 fixed",
    "tdx_mirror_kick: td 50 cycles 7",
    "tdx_mirror_spte_changed: td 50 gpa 0x5000 level 1 old 0x8000000000009837 new 0x8000000000000000",
    "tdx_mirror_zap: td 50 gfns 0x0-0x100 zapped 1",
]
FIGURES = ("mapped 1\nzapped 1\nfaults_fixed 1\nseamcall_page_map_success 1\nkicks 1\ntsc_khz 2000000\n"
           "freeze_cycles_4096 1\n")


def verdict(lines, figures=FIGURES):
    j = judge.Judge()
    with contextlib.redirect_stdout(io.StringIO()):
        judge.judge_life(j, judge.events("".join(f"{HEAD}{line}\n" for line in lines)), judge.figures(figures))
    return j.passed, j.failed


class Test(unittest.TestCase):
    def test_leaves_are_those_of_the_table(self):
        self.assertEqual(judge.LEAVES["7"], ("MEM.RANGE.BLOCK", "range_block"))
        for number in ("2", "6"):
            self.assertEqual(judge.LEAVES[number][1], "page_map")
        # Two calls of the table are one leaf.
        self.assertEqual(judge.LEAVES["28"], ("PHYMEM.PAGE.RECLAIM", "page_reclaim"))
        self.assertGreaterEqual(len(judge.LEAVES), 9)

    def test_good_life_passes(self):
        passed, failed = verdict(LIFE)
        self.assertEqual(failed, 0)
        self.assertGreater(passed, 15)

    def test_a_lost_event_is_found(self):
        for n in range(len(LIFE)):
            self.assertGreater(verdict(LIFE[:n] + LIFE[n + 1:])[1], 0, LIFE[n])

    def test_a_wrong_value_is_found(self):
        for n, old, new in ((0, "pa 0x9000", "pa 0x8000"), (0, "gpa 0x5000", "gpa 0x5008"), (0, "ns 1000", "ns 2000"),
                            (0, "PAGE.AUG", "PAGE.ADD"), (1, "9837", "8837"), (2, "pfn 0x9", "pfn 0x8"),
                            (2, "fixed", "spurious"), (3, "cycles 7", "cycles 0"), (4, "old 0x80000000", "old 0x80000001"),
                            (5, "zapped 1", "zapped 2")):
            self.assertIn(old, LIFE[n])
            lines = LIFE[:n] + [LIFE[n].replace(old, new)] + LIFE[n + 1:]
            self.assertGreater(verdict(lines)[1], 0, (LIFE[n], new))

    def test_outcomes_of_faults(self):
        figures = judge.figures("faults_fixed 3\nfaults_frozen 2\nfaults_contended 5\n")
        for faults, failed in (({"1": 3, "256": 2, "4096": 4, "5376": 1}, 0), ({"1": 3, "256": 2, "4096": 4}, 1),
                               ({"1": 3, "0": 2, "4352": 5}, 2)):
            j = judge.Judge()
            with contextlib.redirect_stdout(io.StringIO()):
                judge.judge_faults(j, faults, figures)
            self.assertEqual(j.failed, failed, faults)

    def test_outcomes_are_those_of_the_contract(self):
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../include/linux/tdx_mirror.h"),
                  encoding="utf-8") as file:
            values = dict(re.findall(r"^#define TDX_MIRROR_((?:MAP|RETRY)_\w+)\s+(0x\w+)$", file.read(), re.M))
        del values["MAP_RETRY"], values["MAP_OUTCOME"], values["MAP_REASON"], values["RETRY_INVALIDATION"]
        self.assertEqual({str(int(v, 0)) for v in values.values()}, {n for n in judge.OUTCOMES if int(n) > 0})

    def test_words_of_events(self):
        found = judge.events(HEAD + "tdx_mirror_busy:   td 3 MEM.TRACK gpa 0x0 level 0 operand td_epoch tries left 4\n")
        self.assertEqual(found, [("busy", {"td": 3, "what": "MEM.TRACK", "gpa": 0, "level": 0, "operand": "td_epoch",
                                           "left": 4})])

    def test_perf_and_bpftrace(self):
        self.assertEqual(judge.of_perf("# started\n\n44,,tdx_mirror:tdx_mirror_bug,1185,100.00,,\n"), {"bug": 44})
        self.assertEqual(judge.of_bpftrace('\n{"type": "map", "data": {"@fault": {"-5": 3}}}\nwatching\n'),
                         {"@fault": {"-5": 3}})


if __name__ == "__main__":
    unittest.main()
