# SPDX-License-Identifier: GPL-2.0
"""Checks that other tools do: rustfmt, clippy, checkpatch, kernel-doc, docutils."""

import glob
import os
import re
import shlex
import shutil

import lib


def rustfmt(result):
    names = lib.files("*.rs")
    if not lib.need(result, "rustfmt", "rustfmt"):
        return
    status, out = lib.run(lib.in_root(
        ["rustfmt", "--check", "--edition", "2021", "--config-path", ".rustfmt.toml", *names]))
    seen = re.findall(r"^Diff in (\S+?):(\d+):?", out, re.M)
    for name, line in list(dict.fromkeys(seen))[:60]:
        result.bad(f"{os.path.relpath(name, lib.TOP) if os.path.isabs(name) else name}:{line}: not formatted")
    if status and not seen:
        result.bad(out.strip()[-400:])
    result.note = f"{len(names)} files"
    result.todo = "rustfmt --edition 2021 FILE"


def warnings_of(out):
    """The first line and the place of each warning and error of rustc."""
    found = []
    for match in re.finditer(r"^(?:warning|error)(?:\[\w+\])?: (.*)\n(?:\s*-->\s*(\S+))?", out, re.M):
        if re.match(r"(?:\d+ warnings? emitted|aborting due|`[^`]*` \(|could not compile|build failed)", match.group(1)):
            continue
        found.append(f"{match.group(2) or ''}: {match.group(1)}".lstrip(": "))
    return found


def clippy_kernel(result):
    """Clippy over the modules with the kernel's own flags, built on the side."""
    if not lib.kernel_build():
        result.missing("a built kernel tree", lib.NO_KERNEL)
        return
    if not lib.need(result, "clippy-driver", "rust-clippy"):
        return
    # A copy, so that neither objects nor command files of the real build change.
    copy = lib.build_dir("clippy")
    for name in lib.files("Kbuild", "Makefile", *(f"{m}*" for m in lib.MODULES), "include/*"):
        target = os.path.join(copy, name)
        source = os.path.join(lib.TOP, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target) or os.path.getmtime(target) != os.path.getmtime(source):
            shutil.copy2(source, target)
    # Clippy speaks only when it runs: have it look at every crate again.
    for leaf in glob.glob(os.path.join(copy, "*", "*_main.o")):
        os.unlink(leaf)
    flags = shlex.split(os.environ.get("KMAKE_FLAGS", ""))
    status, out = lib.run(lib.in_root(
        ["make", "-C", lib.kernel_build(), f"M={copy}", "CLIPPY=1", *flags, "modules"]))
    found = warnings_of(out)
    for line in found[:60]:
        result.bad(line.replace(copy + "/", ""))
    if status and not found:
        result.bad("make CLIPPY=1 modules: " + out.strip()[-600:])
    if not re.search(r"\bCLIPPY\b", out) and not result.findings:
        result.bad("clippy did not run: " + out.strip()[-300:])
    result.todo = "do what clippy says; #[expect(lint, reason = ...)] where it is wrong"


def clippy_host(result):
    """Clippy over the crates that run on the host."""
    crates = lib.files("*Cargo.toml")
    if not crates:
        result.missing("a Cargo.toml", "run this in a whole checkout")
        return
    # The machine's own toolchain if it has clippy, else the one of the tool root.
    prefix = []
    if lib.run(["cargo", "clippy", "--version"])[0]:
        prefix = lib.in_root([])
        if lib.run(prefix + ["cargo", "clippy", "--version"])[0]:
            result.missing("cargo with clippy", "install cargo and rust-clippy, here or in the tool root")
            return
    # Where one is named it may be full already: most of the time goes into the libraries.
    target = os.environ.get("CARGO_TARGET_DIR") or lib.build_dir("target", "root" if prefix else "host")
    env = ["env", "CARGO_TERM_COLOR=never", f"CLIPPY_CONF_DIR={lib.TOP}", f"CARGO_TARGET_DIR={target}"]
    if prefix and os.environ.get("TDX_CACHE"):
        env.append(f"CARGO_HOME={os.environ['TDX_CACHE']}/cargo")
    done = 0
    for crate in crates:
        if re.search(r"^\[lib\]|^\[package\]", lib.read(crate), re.M) is None:
            continue
        locked = ["--locked"] if os.path.exists(os.path.join(lib.TOP, os.path.dirname(crate), "Cargo.lock")) else []
        status, out = lib.run(
            [*prefix, *env, "cargo", "clippy", "--quiet", *locked, "--all-targets", "--manifest-path", crate,
             # The kernel's flags allow this lint as well; what it asks for changed between versions.
             "--", "-D", "warnings", "-A", "clippy::precedence"])
        found = warnings_of(out)
        for line in found[:60]:
            result.bad(line)
        if status and not found:
            result.bad(f"{crate}: {out.strip()[-400:]}")
        done += 1
    result.note = f"{done} crates"
    result.todo = "do what clippy says; #[expect(lint, reason = ...)] where it is wrong"


# What checkpatch says and this project does not follow, and why.
IGNORED = {
    # The human who sends a series signs it; a tool must not.
    "patch": ["MISSING_SIGN_OFF",
              # The entry is in MAINTAINERS of this project.
              "FILE_PATH_CHANGES",
              # The kernel's history, which `Fixes:` refers to, is not here.
              "UNKNOWN_COMMIT_ID"],
}
# The same for single files, and for folders (with a slash at the end).
IGNORED_IN = {
    # The names of tests are what TAP shows.
    "tools/testing/": ["EMBEDDED_FUNCTION_NAME"],
    # Programs of userspace, where there is no bits.h.
    "tools/testing/selftests/": ["BIT_MACRO"],
    # Macros that wrap those of kselftest_harness.h define functions, not values.
    "tools/testing/selftests/tdx_mirror/test.h": [
        "COMPLEX_MACRO", "MULTISTATEMENT_MACRO_USE_DO_WHILE", "MACRO_ARG_REUSE", "MACRO_WITH_FLOW_CONTROL"],
    # `asm goto` needs its labels in the macro, and is read as C there.
    "tdx_emu/vmx/vmx.c": ["MACRO_WITH_FLOW_CONTROL", "SPACING"],
    # Macros of the tracepoints take lists and blocks, in the layout of the kernel's own headers.
    "tdx_mirror/watch/events.h": ["COMPLEX_MACRO", "PARENTHESIS_ALIGNMENT", "OPEN_ENDED_LINE"],
    # The exported function is in Rust, not above the macro.
    "tdx_mirror/kvm/exports.c": ["EXPORT_SYMBOL"],
    # bindgen reads this without the kernel's headers, so C's own types appear.
    "tdx_mirror/bindings/bindings_helper.h": ["CAMELCASE"],
}


def said(out):
    """(file, type, whole line) of each line that checkpatch says something in."""
    for line in out.split("\n"):
        if found := re.match(r"-?(?:([^:]*):)?(?:\d+: )?.*?\b(?:ERROR|WARNING|CHECK):(\w+): ", line):
            yield found.group(1) or "", found.group(2), line


def judged(kind, out, exceptions, name=None):
    """Lines of checkpatch's output for which there is no exception."""
    found = []
    for file, what, line in said(out):
        file = name or os.path.relpath(file, lib.TOP)
        if not exceptions.hold(lambda e: e[1] == what and (
                e[0] in (kind, file) or e[0].endswith("/") and file.startswith(e[0]))):
            found.append((name + ":" if name else "") + line.removeprefix("-:").replace(lib.TOP + "/", ""))
    return found


def checkpatch(result):
    source = lib.kernel_source()
    if not source:
        result.missing("the kernel source", lib.NO_KERNEL)
        return
    if not lib.need(result, "perl", "perl"):
        return
    sources = lib.files("*.c", "*.h", "*.S")
    patches = lib.files("patches/*.patch")
    # Away from the checkout, where it would leave a cache and ask git about each file.
    cwd = lib.build_dir("checkpatch")
    tool = ["env", "GIT_DIR=/nonexistent", "perl", os.path.join(source, "scripts/checkpatch.pl"), "--strict",
            "--no-tree", "--no-summary", "--terse", "--show-types"]

    def report(what, lines, status, out):
        for line in lines:
            result.bad(line)
        if status and not list(said(out)):
            result.bad(f"{what}: checkpatch ended with {status}: {out.strip()[-200:]}")

    exceptions = lib.Exceptions([(where, what) for table in (IGNORED, IGNORED_IN) for where, types in table.items()
                                 for what in types])
    status, out = lib.run(lib.in_root([*tool, "-f", *(os.path.join(lib.TOP, n) for n in sources)]), cwd=cwd)
    report("the sources", judged("file", out, exceptions), status, out)
    for name in patches:
        status, out = lib.run(lib.in_root([*tool, "-"]), cwd=cwd, text=lib.read(name))
        report(name, judged("patch", out, exceptions, name), status, out)
    for finding in exceptions.unneeded():
        result.bad(finding)
    result.note = f"{len(sources)} files, {len(patches)} patches"
    result.todo = "follow Documentation/process/coding-style.rst of the kernel"


def shell(result):
    """shellcheck over every shell script, known by its name or its first line."""
    names = [n for n in lib.files()
             if n.endswith(".sh") or re.match(r"#!\s*/(?:usr/)?bin/(?:env )?(?:ba|da)?sh\b", lib.read(n)[:40])]
    if not lib.need(result, "shellcheck", "shellcheck"):
        return
    # SC2317 and its successor take functions that a trap or a callback runs for dead code.
    status, out = lib.run(lib.in_root(
        ["shellcheck", "--format=gcc", "--external-sources", "--exclude=SC2317,SC2329", *names]))
    for line in out.strip().split("\n"):
        if status and line:
            result.bad(line)
    result.note = f"{len(names)} scripts"
    result.todo = "follow shellcheck; a directive with its reason where it is wrong"


def kernel_doc(result):
    source = lib.kernel_source()
    if not source:
        result.missing("the kernel source", lib.NO_KERNEL)
        return
    if not lib.need(result, "python3", "python3"):
        return
    names = lib.files("include/*.h") + [n for n in lib.of_product(".h") if "/**" in lib.read(n)]
    if not names:
        result.missing("include/*.h", "run this in a whole checkout")
        return
    for name in names:
        if "/**" not in lib.read(name) and "/uapi/" not in name:
            result.bad(f"{name}: no kernel-doc in it")
            continue
        status, out = lib.run(lib.in_root(
            ["python3", os.path.join(source, "scripts/kernel-doc"), "-none", "-Wall", "-Werror", name]))
        for line in out.strip().split("\n"):
            if status and line.strip():
                result.bad(line.strip())
    result.note = f"{len(names)} headers"
    result.todo = "document what kernel-doc names"


def rst(result):
    names = lib.files("Documentation/*.rst")
    for name in ("tdx-mirror", "design", "testing", "unsafe"):
        if f"Documentation/{name}.rst" not in names:
            result.missing(f"Documentation/{name}.rst", "write it")
    if lib.run(lib.in_root(["python3", "-c", "import docutils"]))[0]:
        where = "the tool root" if os.environ.get("IN_ROOT") else "this machine"
        result.missing("docutils", f"install the package python3-docutils in {where}")
        return
    status, out = lib.run(lib.in_root(["python3", "scripts/checks/rst_parse.py", *names]))
    for line in out.strip().split("\n"):
        if status and line:
            result.bad(line)
    result.note = f"{len(names)} documents"
    result.todo = "correct the markup"
