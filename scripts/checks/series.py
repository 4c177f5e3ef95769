# SPDX-License-Identifier: GPL-2.0
"""The patches as a reviewer takes them, and copies that must stay equal."""

import difflib
import os
import re

import lib

HEADER = "include/linux/tdx_mirror.h"
PREFIXES = {
    # What concerns no part of KVM, i.e. virt/kvm, has none, then.
    "patches/kvm/": r"(?:KVM: (?:(?:x86/mmu|x86|TDX|VMX|selftests|guest_memfd): )?|x86/virt/tdx: )[A-Z]",
    "patches/emu/": r"(?:x86/virt/tdx|x86/tdx|virt/tdx|KVM: TDX|KVM: x86|tdx_mirror: patches/emu)[:/] ?",
}


def header_of(text, field):
    """A mail header of a patch, folded lines joined."""
    found = re.search(rf"^{field}: (.*(?:\n[ \t].*)*)", text.split("\n---\n")[0], re.M)
    return re.sub(r"\s*\n\s*", " ", found.group(1)) if found else ""


def series(result):
    """Subjects, changelogs and tags."""
    names = lib.files("patches/*.patch")
    for folder in PREFIXES:
        if not any(n.startswith(folder) for n in names):
            result.missing(f"{folder}*.patch", "run this in a whole checkout")
    for name in names:
        text = lib.read(name)
        subject = re.sub(r"^\[[^]]*\]\s*", "", header_of(text, "Subject"))
        message = text.split("\n---\n")[0].split("diff --git")[0]
        body = message.split("\n\n", 1)[1] if "\n\n" in message else ""
        prefix = next((p for f, p in PREFIXES.items() if name.startswith(f)), "")
        if not subject:
            result.bad(f"{name}: no Subject line")
            continue
        if len(subject) > 75:
            result.bad(f"{name}: subject of {len(subject)} characters, at most 75")
        if subject.endswith("."):
            result.bad(f"{name}: subject ends with a dot")
        if prefix and not re.match(prefix, subject):
            result.bad(f"{name}: subject does not begin with a prefix of its subsystem: {subject}")
        if len(body.split()) < 8:
            result.bad(f"{name}: no changelog")
        if re.search(r"\bthis patch\b|\b(?:We|we|I)\b(?! ?/)", body):
            result.bad(f"{name}: changelog says `this patch`, `we` or `I`")
        if re.search(r"^Signed-off-by:", body, re.M):
            result.bad(f"{name}: signed off by a tool; the human who sends it does that")
    result.note = f"{len(names)} patches"
    result.todo = "imperative subject, what first and then why, no sign-off by a tool"


# Parts of the project that are not called as their folder is.
CALLED = {"check": "scripts/checks", "docs": "Documentation", "README": "README.md", "emu": "tdx_emu", "testdev": "tdx_mirror_test",
          "host tests": "tools/testing/host", "stat": "tools/tdx-mirror-stat", "dkms": "dkms.conf", "Kbuild": "Kbuild",
          "Makefile": "Makefile", "MAINTAINERS": "MAINTAINERS", "header": "include/linux/tdx_mirror.h"}
SUBJECT = re.compile(r"tdx_mirror: ((?:[\w/-]+(?: tests)?(?:, )?)+): \S")


def parts():
    """What may stand in a subject after `tdx_mirror:`."""
    folders = {os.path.dirname(name) for name in lib.files()}
    found = {f.split("/")[1] for f in folders if f.startswith(lib.MODULES) and "/" in f}
    found |= {f.split("/")[2] for f in folders if f.startswith("tools/testing/") and f.count("/") >= 2}
    found |= {f for f in folders if f.startswith("patches/")} | {f for f in folders if f and "/" not in f}
    return found | {called for called, place in CALLED.items() if os.path.exists(os.path.join(lib.TOP, place))}


def subject_findings(subject, allowed):
    found = []
    if len(subject) > 75:
        found.append(f"{len(subject)} characters, at most 75: {subject}")
    match = SUBJECT.match(subject)
    unknown = [p for p in match.group(1).split(", ") if p not in allowed] if match else []
    if not match:
        found.append(f"not `tdx_mirror: part: what`: {subject}")
    elif unknown:
        found.append(f"there is no part {', '.join(unknown)}: {subject}")
    if subject.endswith("."):
        found.append(f"ends with a dot: {subject}")
    return found


def subjects(result):
    """Subjects of the commits that are not in the branch yet that this one follows."""
    git = ["git", "-c", f"safe.directory={lib.TOP}"]
    status, upstream = lib.run([*git, "rev-parse", "--abbrev-ref", "--symbolic-full-name", "@{upstream}"])
    if status:
        result.note = "no branch is followed"
        return
    _, out = lib.run([*git, "log", "--format=%h %s", f"{upstream.strip()}.."])
    lines, allowed = [line for line in out.split("\n") if line], parts()
    for line in lines:
        commit, _, subject = line.partition(" ")
        for finding in subject_findings(subject, allowed):
            result.bad(f"{commit}: {finding}")
    result.note = f"{len(lines)} commits that {upstream.strip()} lacks"
    result.todo = f"tdx_mirror: part: what, in the imperative; parts are {', '.join(sorted(allowed))}"


def contract(result):
    """The series brings the very header that the module is built with."""
    patches = [n for n in lib.files("patches/kvm/*.patch") if f"b/{HEADER}" in lib.read(n)]
    if not patches:
        result.missing(f"a patch in patches/kvm that adds {HEADER}", "generate the series again")
        return
    if not lib.need(result, "patch", "patch"):
        return
    with lib.temp() as folder:
        for name in patches:
            # Only what the patch does to the header.
            parts = re.split(r"^(?=diff --git )", lib.read(name), flags=re.M)
            piece = os.path.join(folder, "piece.patch")
            with open(piece, "w", encoding="utf-8") as f:
                f.write("".join(p for p in parts if p.startswith(f"diff --git a/{HEADER} ")))
            status, out = lib.run(lib.in_root(["patch", "-s", "-p1", "-d", folder, "-i", piece]))
            if status:
                result.bad(f"{name} does not apply: {out.strip()}")
                return
        path = os.path.join(folder, HEADER)
        if not os.path.exists(path):
            result.bad(f"{HEADER} does not come out of {', '.join(patches)}")
            return
        with open(path, encoding="utf-8") as f:
            theirs = f.read()
    ours = lib.read(HEADER)
    if ours != theirs:
        changed = [ln for ln in difflib.unified_diff(theirs.split("\n"), ours.split("\n"), "series", HEADER, n=0)]
        result.bad(f"the series and {HEADER} differ: " + " | ".join(changed[2:8])[:300])
    result.note = f"{len(patches)} patches"
    result.todo = f"copy {HEADER} into the series and write its patches again"


def bindings(result):
    """The committed bindings equal what bindgen makes of the headers now."""
    scripts = lib.of_product("bindings/*.sh")
    if not scripts:
        result.missing("tdx_mirror/bindings/*.sh", "run this in a whole checkout")
        return
    if not lib.need(result, "bindgen", "bindgen") or not lib.need(result, "rustfmt", "rustfmt"):
        return
    for script in scripts:
        status, out = lib.run(lib.in_root(["sh", script, "--check"]))
        if status:
            result.bad(f"{script}: {out.strip()[-500:]}")
    result.note = f"{len(scripts)} scripts"
    result.todo = f"run {' '.join(scripts)} in the tool root, and commit what it writes"
