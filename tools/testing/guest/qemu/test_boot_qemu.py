#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of boot_qemu.py; run by scripts/host-test."""

import contextlib
import hashlib
import io
import os
import struct
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import boot_qemu  # noqa: E402

PAGE = boot_qemu.PAGE
CODE = bytes(range(256)) * 32
# Two pages of code, measured; one of zeros, not; one that is not added at all.
SECTIONS = ((0, len(CODE), 0xFFFFE000, len(CODE), 0, boot_qemu.MR_EXTEND),
            (0, 0, 0x80000, PAGE, 2, 0),
            (0, 0, 0x90000, PAGE, 3, boot_qemu.PAGE_AUG))


def firmware(sections=SECTIONS, signature=b"TDVF", version=1):
    """An image: code, metadata, the table of GUIDed entries, 32 bytes of reset code."""
    metadata = struct.pack("<4sIII", signature, 16 + 32 * len(sections), version, len(sections))
    metadata += b"".join(struct.pack("<IIQQII", *section) for section in sections)
    entry = bytes(7) + struct.pack("<H16s", 25, b"another entry!!!")
    tail_length = 22 + len(entry) + boot_qemu.ENTRY_TAIL
    from_end = len(metadata) + tail_length + 32
    table = entry + struct.pack("<IH16s", from_end, 22, boot_qemu.METADATA)
    table += struct.pack("<H16s", tail_length, boot_qemu.FOOTER)
    return CODE + metadata + table + bytes(32)


def measurement():
    """MRTD of a TD with the code above, written down step by step."""
    stream = b""
    for at in (0, PAGE):
        stream += b"MEM.PAGE.ADD\0\0\0\0" + struct.pack("<Q", 0xFFFFE000 + at) + bytes(104)
        for chunk in range(at, at + PAGE, 256):
            stream += b"MR.EXTEND\0\0\0\0\0\0\0" + struct.pack("<Q", 0xFFFFE000 + chunk) + bytes(104)
            stream += CODE[chunk:chunk + 256]
    stream += b"MEM.PAGE.ADD\0\0\0\0" + struct.pack("<Q", 0x80000) + bytes(104)
    return hashlib.sha384(stream).hexdigest()


EMU = {"leaf_9_tdh_mng_create_ok": 1, "leaf_21_tdh_mng_init_ok": 1, "leaf_22_tdh_vp_init_ok": 2,
       "leaf_2_tdh_mem_page_add_ok": 3, "leaf_16_tdh_mr_extend_ok": 32, "leaf_17_tdh_mr_finalize_ok": 1,
       "leaf_0_tdh_vp_enter_ok": 50, "leaf_6_tdh_mem_page_aug_ok": 9, "guest_tdcalls": 40, "guest_accepts": 9}
MIRROR = {"mapped": 12, "zapped": 12, "tds_created": 1}


def log(modes=("on", "off"), emu=(), end=(), mirror=(), mrtd=None, line="", status=0, why="accepted",
        last="vm: exit 0"):
    """A serial log; emu, end and mirror change counters of every mode."""
    text = "[    0.1] booting\n@qemu QEMU emulator version 11.1.3 (Debian)\n"
    for mode in modes:
        text += f"@begin {mode}\r\n{line}"
        counters = {**EMU, **dict(emu)}
        text += "".join(f"@stat {mode} launch tdx_emu {name} {value}\n" for name, value in counters.items())
        text += f"@mrtd {mode} {mrtd or measurement()}\nqemu| a warning\n"
        counters.update(dict(end))
        text += "".join(f"@stat {mode} end tdx_emu {name} {value}\n" for name, value in counters.items())
        kept = {**MIRROR, **dict(mirror)} if mode == "on" else dict(mirror)
        text += "".join(f"@stat {mode} end tdx_mirror {name} {value}\n" for name, value in kept.items())
        text += f"@end {mode} {status} {why}\n"
    return text + last + "\n"


CONSOLE = """[    0.000000] efi: EFI v2.7 by Debian distribution of EDK II
[    2.100000] [U] td: user space, Linux 7.3.4, up 2.10 s
[    2.200000] [U] ok 1 - each vCPU has the flag tdx_guest
[    2.300000] [U] ok 2 - all vCPUs are online
[    2.400000] [U] 1..2
[    2.500000] [U] td: all tests passed
"""


def judge(text, image=None, modes=("on", "off"), console=None):
    """(exit status, output); with a console, of a run that booted Linux."""
    with tempfile.TemporaryDirectory() as folder:
        option = []
        if console is not None:
            option = ["--linux", folder]
            for mode in modes:
                with open(os.path.join(folder, "serial-" + mode), "w", encoding="utf-8", newline="\r\n") as file:
                    file.write(console)
        paths = [os.path.join(folder, name) for name in ("log", "fd")]
        for path, content in zip(paths, (text.encode(), image or firmware())):
            with open(path, "wb") as file:
                file.write(content)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            status = boot_qemu.main([*paths, "2", *option, *modes])
        return status, out.getvalue()


class Firmware(unittest.TestCase):
    def test_pages_and_measurement(self):
        self.assertEqual(boot_qemu.expected(firmware()), (3, 2, measurement()))

    def test_no_metadata(self):
        for image in (firmware(signature=b"NONE"), firmware(version=2), firmware()[:-1]):
            with self.assertRaises(ValueError):
                boot_qemu.expected(image)

    def test_code_of_a_split_image(self):
        """Its offsets are those of the whole, with the variables before it."""
        whole = bytes(PAGE) + firmware(((PAGE, len(CODE), 0xFFFFE000, len(CODE), 0, boot_qemu.MR_EXTEND), *SECTIONS[1:]))
        self.assertEqual(boot_qemu.expected(whole), (3, 2, measurement()))
        with self.assertRaisesRegex(ValueError, "OVMF.fd"):
            boot_qemu.expected(whole[PAGE:])
        status, out = judge(log(), image=whole[PAGE:])
        self.assertEqual(status, 1)
        self.assertRegex(out, "(?m)^FAIL: .*OVMF.fd")


class Launch(unittest.TestCase):
    def fails(self, word, **change):
        status, out = judge(log(**change))
        self.assertEqual(status, 1, out)
        self.assertRegex(out, f"(?m)^FAIL: .*{word}")
        self.assertNotIn(" 0 failed", out)

    def test_good(self):
        status, out = judge(log())
        self.assertEqual(status, 0, out)
        self.assertRegex(out, r"\nboot-qemu: \d+ passed, 0 failed\n$")
        self.assertNotIn("FAIL", out)

    def test_one_mode(self):
        self.assertEqual(judge(log(modes=("off",)), modes=("off",))[0], 0)
        self.assertEqual(judge(log(modes=("off",)))[0], 1)

    def test_each_count(self):
        for name in EMU:
            if name != "guest_tdcalls" and name != "leaf_6_tdh_mem_page_aug_ok":
                with self.subTest(name):
                    self.fails("tdx_mirror=on", emu={name: 0})

    def test_measurement(self):
        self.fails("MRTD", mrtd="00" * 48)

    def test_end(self):
        self.fails("QEMU ended", status=1)
        self.fails("QEMU ended", why="timeout")
        self.fails("belong to the TDX module", end={"pamt_pages_owned": 1})
        self.fails("invariant errors", end={"invariant_errors": 1})

    def test_mirror(self):
        self.fails("12 mapped, 11 zapped", mirror={"zapped": 11})
        self.fails("leaked", mirror={"leaked": 1})
        self.fails("TDs on the Rust mirror", mirror={"tds_created": 1})

    def test_kernel_log(self):
        self.fails("kernel log", line="[    3.0] WARNING: CPU: 0 PID: 7 at arch/x86/kvm/vmx/tdx.c:1\n")
        self.fails("came to its end", last="")

    def test_linux(self):
        run = log(why="ended")
        status, out = judge(run, console=CONSOLE)
        self.assertEqual(status, 0, out)
        self.assertIn("PASS: tdx_mirror=off: Linux test: all vCPUs are online\n", out)
        for find, instead, word in (("efi: EFI", "nothing", "started by the firmware"),
                                    ("td: user space", "", "gets to user space: no"),
                                    ("ok 2", "not ok 2", "all vCPUs are online"),
                                    ("1..2", "1..3", "all its tests: 2 of 3"),
                                    ("[U] 1..2", "WARNING: CPU: 0", "all its tests: 2 of None"),
                                    ("[U] td: all", "BUG: all", "finds nothing wrong")):
            with self.subTest(word):
                status, out = judge(run, console=CONSOLE.replace(find, instead))
                self.assertEqual(status, 1)
                self.assertRegex(out, f"(?m)^FAIL: .*{word}")

    def test_linux_end(self):
        for change in ({"status": 3, "why": "ended"}, {"why": "accepted"}, {"why": "timeout"}):
            status, out = judge(log(**change), console=CONSOLE)
            self.assertEqual(status, 1)
            self.assertRegex(out, "(?m)^FAIL: .*QEMU ended")

    def test_nothing_ran(self):
        status, out = judge("")
        self.assertEqual(status, 1)
        self.assertIn("FAIL: QEMU starts", out)


if __name__ == "__main__":
    unittest.main()
