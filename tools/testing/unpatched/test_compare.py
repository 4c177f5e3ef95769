#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of compare.py: it reads the records of tdx-calls, and finds what differs."""

import io
import os
import pathlib
import sys
import tempfile
import tomllib
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import compare  # noqa: E402

OUT = "TAP version 13\n1..3\nok 1 convert.one\nok 2 convert.two # SKIP why\nok 3 convert.three\n"


def line(tid, event, text, comm="convert"):
    return f"         {comm}-{tid}     [001] ..... 12.345678: {event}: {text}\n"


def fork(parent, child, comm="convert"):
    return line(parent, "sched_process_fork", f"comm={comm} pid={parent} child_comm={comm} child_pid={child}", comm)


def called(tid, name, arguments, status):
    return (line(tid, name, f"(symbol+0x0/0x10) {arguments}")
            + line(tid, name + "_ret", f"(caller+0x1/0x2 <- symbol) status={status}"))


TRACE = (
    "# tracer: nop\n#\n"
    + fork(7, 8, "tdx-calls")
    + fork(9, 10) + called(10, "vm_ioctl", "cmd=0x4020ae46 first=0x0", "0x0")
    + fork(9, 11) + fork(9, 12)
    + line(12, "vcpu_ioctl", "(symbol+0x0/0x10) cmd=0xc008aeba first=0x3")
    + called(12, "mem_page_aug", "gpa=0x5000 level=1", "0x0")
    + line(12, "vcpu_ioctl_ret", "(caller <- symbol) status=0xfffffffffffffff0")
    + line(12, "kvm_exit", "vcpu 0 reason EXTERNAL_INTERRUPT rip 0x0")
    + line(12, "kvm_exit", "vcpu 0 reason EPT_VIOLATION rip 0x0")
    + line(12, "kvm_userspace_exit", "reason KVM_EXIT_IO (2)")
)


class Folders:
    """Two folders as tdx-calls leaves them."""

    def __init__(self, ours, theirs, outs=(OUT, OUT)):
        self.temp = tempfile.TemporaryDirectory()
        self.paths = []
        for number, (trace, out) in enumerate(zip((ours, theirs), outs)):
            folder = pathlib.Path(self.temp.name) / str(number)
            folder.mkdir()
            (folder / "convert.trace").write_text(trace)
            (folder / "convert.out").write_text(out)
            self.paths.append(folder)

    def verdict(self, named=()):
        out = io.StringIO()
        table = {"programs": {"run": ["convert"]}, "difference": list(named)}
        counts = compare.compare(table, *self.paths, out=out)
        self.temp.cleanup()
        return counts, out.getvalue()


def verdict(ours, theirs, named=(), outs=(OUT, OUT)):
    return Folders(ours, theirs, outs).verdict(named)


class Test(unittest.TestCase):
    def test_records_belong_to_their_case(self):
        cases = compare.parse("convert", OUT, TRACE)
        self.assertEqual([(name, case.result) for name, case in cases.items()],
                         [("convert.one", "ok"), ("convert.two", "skip"), ("convert.three", "ok")])
        self.assertEqual(cases["convert.one"].sequences("results"), [[("vm_ioctl", "0x4020ae46", "", 0)]])
        three = cases["convert.three"]
        self.assertEqual(three.sequences("results"), [[("vcpu_ioctl", "0xc008aeba", "0x3", -16)]])
        self.assertEqual(three.sequences("SEAMCALLs"), [[("mem_page_aug", "0x5000", "1", "0x0")]])
        self.assertEqual(three.sequences("exits"), [["EPT_VIOLATION", "to the VMM: KVM_EXIT_IO"]])

    def test_equal(self):
        (passed, failed), text = verdict(TRACE, TRACE)
        self.assertEqual((passed, failed), (2, 0), text)

    def test_file_descriptors_and_counts_are_no_errno(self):
        other = TRACE.replace("status=0x0\n", "status=0x9\n", 1)
        self.assertEqual(verdict(TRACE, other)[0], (2, 0))

    def test_an_argument_that_cannot_be_read_is_none(self):
        fault = TRACE.replace("0xfffffffffffffff0", "0xfffffffffffffff2")
        self.assertEqual(verdict(fault, fault.replace("first=0x3", "first=0x2a7"))[0], (2, 0))

    def test_each_difference_is_found(self):
        for old, new in (("gpa=0x5000", "gpa=0x6000"), ("level=1", "level=2"), ("first=0x3", "first=0x4"),
                         ("0xfffffffffffffff0", "0xfffffffffffffffb"), ("EPT_VIOLATION", "TDCALL"),
                         ("KVM_EXIT_IO", "KVM_EXIT_MMIO"), ("mem_page_aug", "mem_page_add"),
                         ("symbol) status=0x0", "symbol) status=0xfffffffffffffff0")):
            self.assertIn(old, TRACE)
            (_, failed), text = verdict(TRACE, TRACE.replace(old, new))
            self.assertGreater(failed, 0, f"{old}\n{text}")

    def test_a_call_less_is_found(self):
        less = TRACE.replace(called(12, "mem_page_aug", "gpa=0x5000 level=1", "0x0"), "")
        self.assertEqual(verdict(TRACE, less)[0], (1, 1))
        self.assertEqual(verdict(less, TRACE)[0], (1, 1))

    def test_another_verdict_is_found(self):
        self.assertEqual(verdict(TRACE, TRACE, outs=(OUT, OUT.replace("ok 3", "not ok 3")))[0], (1, 1))
        self.assertEqual(verdict(TRACE, TRACE, outs=(OUT, OUT.replace("ok 3 convert.three\n", "")))[0], (1, 1))

    def test_a_named_difference_has_to_be_there(self):
        other = TRACE.replace("gpa=0x5000", "gpa=0x6000")
        named = {"case": "convert.three", "patch": 20, "in": ["SEAMCALLs"]}
        self.assertEqual(verdict(TRACE, other, [named])[0], (2, 0))
        self.assertEqual(verdict(TRACE, TRACE, [named])[0], (1, 1))
        self.assertEqual(verdict(TRACE, other, [named | {"in": ["results"]}])[0], (1, 1))
        self.assertEqual(verdict(TRACE, other, [named, named | {"case": "convert.gone"}])[0], (2, 1))

    def test_threads_are_compared_by_kind(self):
        two = TRACE + fork(12, 13) + called(13, "mem_page_aug", "gpa=0x5000 level=1", "0x0")
        more = two + called(13, "mem_page_aug", "gpa=0x5000 level=1", "0x0")
        self.assertEqual(verdict(two, more)[0], (2, 0))
        other = two + called(13, "mem_page_aug", "gpa=0x5000 level=1", "0x8000020000000001")
        self.assertEqual(verdict(two, other)[0], (1, 1))

    def test_the_table_names_cases_and_patches(self):
        here = pathlib.Path(__file__).parent
        table = tomllib.loads((here / "differences.toml").read_text())
        patches = here.parents[2] / "patches/kvm"
        for one in table.get("difference", []):
            self.assertEqual(len(list(patches.glob(f"{one['patch']:04}-*.patch"))), 1, one)
            self.assertTrue(one["why"] and set(one["in"]) <= {*compare.COLUMNS, "verdict"}, one)
            self.assertIn(one["case"].split(".")[0], [command.split()[0] for command in table["programs"]["run"]])


if __name__ == "__main__":
    unittest.main()
