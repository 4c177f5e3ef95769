#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Judge a run of td-qemu: did QEMU build the TD that its firmware asks for, and
did the firmware run?

usage: boot_qemu.py LOG OVMF.fd CPUS [--linux FOLDER] MODE...
  --linux FOLDER   Linux was booted through the firmware; its consoles are
                   FOLDER/serial-MODE, and its tests must have passed

What is expected is read from the firmware image: the pages of its TDVF sections
and the measurement (MRTD) of a TD built from them. One PASS or FAIL line for each
judgement; the last line counts them.
"""

import hashlib
import pathlib
import re
import struct
import sys

HERE = pathlib.Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2] / "vm"), str(HERE.parents[1] / "linux")]
# pylint: disable=wrong-import-position
import boot_report  # noqa: E402
from report import ALARM, whole_lines  # noqa: E402

PAGE = 4096
CHUNK = 256
# Of the table of GUIDed entries before the image's last 32 bytes.
FOOTER = bytes.fromhex("de82b596b21ff745baeaa366c55a082d")
METADATA = bytes.fromhex("35657ae44a989847865e4685a7bf8ec2")
ENTRY_TAIL = 18
MR_EXTEND, PAGE_AUG = 1, 2


def metadata_offset(image):
    """Where the TDVF metadata begins: the table is read backwards, its footer first."""
    end = len(image) - 32
    length, guid = struct.unpack_from("<H16s", image, end - ENTRY_TAIL)
    if guid != FOOTER:
        raise ValueError("no table of GUIDed entries")
    first, at = end - length, end - ENTRY_TAIL
    while at > first:
        length, guid = struct.unpack_from("<H16s", image, at - ENTRY_TAIL)
        if guid == METADATA:
            return len(image) - struct.unpack_from("<I", image, at - length)[0]
        at -= length
    raise ValueError("no TDX metadata")


def sections(image):
    """(data offset, data size, address, size, type, attributes) of each section."""
    at = metadata_offset(image)
    signature, _, version, count = struct.unpack_from("<4sIII", image, at)
    if signature != b"TDVF" or version != 1:
        raise ValueError("no TDX metadata of version 1")
    found = [struct.unpack_from("<IIQQII", image, at + 16 + 32 * i) for i in range(count)]
    # In the code of a split image the offsets are the whole's.
    if any(data + data_size > len(image) for data, data_size, *_ in found):
        raise ValueError("data of a section lies outside of the image; the whole OVMF.fd is wanted, not a part of a split one")
    return found


def expected(image):
    """(pages added, pages measured, MRTD) of a TD built from the image."""
    digest, added, measured = hashlib.sha384(), 0, 0

    def block(name, gpa):
        digest.update(name.ljust(16, b"\0") + struct.pack("<Q", gpa) + bytes(104))

    for data, data_size, address, size, _, attributes in sections(image):
        if attributes & PAGE_AUG:
            continue
        content = image[data:data + data_size].ljust(size, b"\0")
        for at in range(0, size, PAGE):
            added += 1
            block(b"MEM.PAGE.ADD", address + at)
            if attributes & MR_EXTEND:
                measured += 1
                for chunk in range(at, at + PAGE, CHUNK):
                    block(b"MR.EXTEND", address + chunk)
                    digest.update(content[chunk:chunk + CHUNK])
    return added, measured, digest.hexdigest()


class Mode:
    """What was seen of one TD."""

    def __init__(self):
        self.stats, self.mrtd, self.status, self.why = {}, [], None, None

    def get(self, when, part, name):
        return self.stats.get((when, part, name), 0)

    def emu(self, name, when="launch"):
        return self.get(when, "tdx_emu", name)

    def calls(self, name, when="launch"):
        """Successful calls of a leaf."""
        return sum(value for (seen, part, counter), value in self.stats.items()
                   if seen == when and part == "tdx_emu" and re.fullmatch(rf"leaf_\d+_tdh_{name}_ok", counter))


def parse(text):
    """(version of QEMU, modes, alarms, exit line seen)"""
    version, modes, alarms, ended = "", {}, [], False
    for line in whole_lines(text):
        words = line.split()
        if line.startswith("@qemu "):
            version = line[6:]
        elif line.startswith("@begin ") and len(words) == 2:
            modes[words[1]] = Mode()
        elif line.startswith("@stat ") and len(words) == 6 and words[1] in modes and words[5].isdigit():
            modes[words[1]].stats[tuple(words[2:5])] = int(words[5])
        elif line.startswith("@mrtd ") and len(words) == 3 and words[1] in modes:
            modes[words[1]].mrtd.append(words[2])
        elif line.startswith("@end ") and len(words) == 4 and words[1] in modes:
            modes[words[1]].status, modes[words[1]].why = int(words[2]), words[3]
        elif line.startswith("@reset-failed") or ALARM.search(line):
            alarms.append(line)
        ended = ended or line == "vm: exit 0"
    return version, modes, alarms, ended


class Judge:
    """Prints and counts judgements."""

    def __init__(self):
        self.passed = self.failed = 0

    def say(self, good, what):
        print(f"{'PASS' if good else 'FAIL'}: {what}")
        if good:
            self.passed += 1
        else:
            self.failed += 1

    def equal(self, what, seen, wanted):
        self.say(seen == wanted, f"{what}: {seen}" + ("" if seen == wanted else f", wanted {wanted}"))


def launch(judge, name, mode, image, cpus):
    """The TD as QEMU built it, and its first steps."""
    added, measured, mrtd = expected(image)
    tell = f"tdx_mirror={name}: "
    for leaf, wanted, what in (
            ("mng_create", 1, "TDs created"), ("mng_init", 1, "TDs initialized"),
            ("vp_init", cpus, "vCPUs initialized"),
            ("mem_page_add", added, "pages added (TDH.MEM.PAGE.ADD)"),
            ("mr_extend", measured * PAGE // CHUNK, f"chunks of {measured} pages measured (TDH.MR.EXTEND)"),
            ("mr_finalize", 1, "measurements finalized")):
        judge.equal(tell + what, mode.calls(leaf), wanted)
    judge.equal(tell + "MRTD as computed from the firmware image", mode.mrtd, [mrtd])
    judge.say(mode.calls("vp_enter") > 0, f"{tell}the firmware runs: {mode.calls('vp_enter')} entries, "
              f"{mode.emu('guest_tdcalls')} TDCALLs")
    judge.say(mode.emu("guest_accepts") > 0, f"{tell}it accepts the memory that QEMU's TD HOB lists: "
              f"{mode.emu('guest_accepts')} pages, {mode.calls('mem_page_aug')} given (TDH.MEM.PAGE.AUG)")


def linux(judge, name, folder):
    """What the guest said that the firmware started."""
    tell, boot = f"tdx_mirror={name}: Linux ", boot_report.Boot(name)
    path = folder / f"serial-{name}"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    boot.console = [line.rstrip("\r") for line in text.split("\n")]
    judge.say(any("efi: EFI v" in line for line in boot.console), f"{tell}is started by the firmware")
    user = [line for line in boot.said() if line.startswith("td: user space")]
    judge.say(bool(user), f"{tell}gets to user space: {user[0] if user else 'no'}")
    for line in boot.said():
        found = re.match(r"(not )?ok \d+ - (.*)", line)
        if found:
            judge.say(not found.group(1), f"{tell}test: {found.group(2)}")
    passed, failed, plan = boot.tests()
    judge.say(bool(plan) and plan == passed + len(failed), f"{tell}runs all its tests: {passed + len(failed)} of {plan}")
    alarms = [line for line in boot.console if boot_report.GUEST_ALARM.search(line)]
    for line in alarms:
        print(f"tdx-mirror: problem: guest log: {line}")
    judge.equal(tell + "finds nothing wrong: lines of its log that tell of a problem", len(alarms), 0)


def end(judge, name, mode, reasons):
    """What is left when QEMU is gone, which had to end for one of the reasons."""
    tell = f"tdx_mirror={name}: "
    judge.say(mode.status == 0 and mode.why in reasons, f"{tell}QEMU ended with status {mode.status} ({mode.why})")
    judge.equal(tell + "pages that still belong to the TDX module", mode.emu("pamt_pages_owned", "end"), 0)
    judge.equal(tell + "invariant errors in the TDX module", mode.emu("invariant_errors", "end"), 0)

    def mirror(counter):
        return mode.get("end", "tdx_mirror", counter)

    if name == "on":
        judge.say(0 < mirror("mapped") == mirror("zapped"),
                  f"{tell}leaves of the mirror: {mirror('mapped')} mapped, {mirror('zapped')} zapped")
        judge.equal(tell + "pages leaked, TDs left", [mirror("leaked"), mirror("tds_live")], [0, 0])
    else:
        judge.equal(tell + "TDs on the Rust mirror", mirror("tds_created"), 0)


def main(argv):
    if len(argv) < 4:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    log, firmware, cpus, names = argv[0], argv[1], int(argv[2]), argv[3:]
    folder = None
    if names[0] == "--linux":
        folder, names = pathlib.Path(names[1]), names[2:]
    text = pathlib.Path(log).read_text(encoding="utf-8", errors="replace")
    image = pathlib.Path(firmware).read_bytes()
    version, modes, alarms, ended = parse(text)
    judge = Judge()
    try:
        expected(image)
    except ValueError as error:
        judge.say(False, f"{firmware}: {error}")
        names = []
    judge.say(version.startswith("QEMU emulator version"), f"QEMU starts on the emulated host: {version or 'no'}")
    for name in names:
        if name not in modes:
            judge.say(False, f"tdx_mirror={name}: no TD was started")
            continue
        launch(judge, name, modes[name], image, cpus)
        if folder:
            linux(judge, name, folder)
            end(judge, name, modes[name], ("ended",))
        else:
            end(judge, name, modes[name], ("accepted", "ended"))
    for line in alarms:
        print(f"tdx-mirror: problem: kernel log: {line}")
    judge.equal("lines of the kernel log that tell of a problem", len(alarms), 0)
    judge.say(ended, "the emulated host came to its end")
    print(f"boot-qemu: {judge.passed} passed, {judge.failed} failed")
    return 1 if judge.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
