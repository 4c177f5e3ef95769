# SPDX-License-Identifier: GPL-2.0
"""What all checks share: the files of the project, tools, and results."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# The modules, each with its crate roots, its C and its Kbuild; the first is the product.
PRODUCT = "tdx_mirror/"
MODULES = (PRODUCT, "tdx_emu/", "tdx_mirror_test/")

# Never part of the project, even in an unpacked tarball without git.
NOT_OURS = ("build/", ".git/", "target/")
BUILT = ("*.o", "*.ko", "*.mod", "*.mod.c", "*.cmd", "*.order", "Module.symvers", "*.pyc", "*.rmeta")


class Result:
    """Findings of one check.  No finding means that it passed."""

    def __init__(self):
        self.findings = []
        self.todo = ""
        self.note = ""

    def bad(self, text):
        self.findings.append(text)

    def missing(self, what, todo):
        """A tool or a folder is not there: the check fails, it is never skipped."""
        self.findings.append(f"{what} is missing")
        self.todo = todo


def files(*patterns):
    """Files of the checkout that match a pattern, also those not yet in git."""
    names = None
    if os.path.exists(os.path.join(TOP, ".git")):
        # The checkout may belong to another user than the one who checks it.
        status, out = run(["git", "-c", f"safe.directory={TOP}", "ls-files", "-z", "-co", "--exclude-standard"])
        if status == 0:
            names = [n for n in out.split("\0") if n]
    if names is None:
        names = []
        for folder, _, leaves in os.walk(TOP):
            names += [os.path.relpath(os.path.join(folder, leaf), TOP) for leaf in leaves
                      if not any(fnmatch.fnmatch(leaf, p) for p in BUILT)]
    names = [
        n for n in sorted(set(names))
        if not n.startswith(NOT_OURS) and "/target/" not in n
        and os.path.isfile(os.path.join(TOP, n)) and not os.path.islink(os.path.join(TOP, n))
    ]
    if not patterns:
        return names
    return [n for n in names if any(fnmatch.fnmatch(n, p) for p in patterns)]


def of_modules(*endings):
    """Files of all modules whose names end so: `.rs`."""
    return files(*(f"{folder}*{ending}" for folder in MODULES for ending in endings))


def of_product(*endings):
    return files(*(f"{PRODUCT}*{ending}" for ending in endings))


def read(name):
    with open(os.path.join(TOP, name), encoding="utf-8", errors="replace") as f:
        return f.read()


def build_dir(*parts):
    # A run beside another one has another folder for what it builds.
    path = os.path.join(os.environ.get("TDX_OUT") or os.path.join(TOP, "build"), "check", *parts)
    os.makedirs(path, exist_ok=True)
    return path


def run(argv, cwd=TOP, env=None, timeout=1800, text=None):
    """Runs a command on a text and returns (exit status, output and errors together)."""
    try:
        done = subprocess.run(
            argv, cwd=cwd, env=env, timeout=timeout, errors="replace",
            input=text or "", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
    except FileNotFoundError:
        return 127, f"{argv[0]}: not found"
    except subprocess.TimeoutExpired:
        return 124, f"{argv[0]}: no end after {timeout} s"
    return done.returncode, done.stdout


def in_root(argv):
    """The command line that runs argv in the tool root (IN_ROOT), else on this machine."""
    return shlex.split(os.environ.get("IN_ROOT", "")) + list(argv)


def have(tool):
    """Whether a tool is there, in the tool root if there is one."""
    if not os.environ.get("IN_ROOT"):
        return shutil.which(tool) is not None
    return run(in_root(["sh", "-c", 'command -v "$0"', tool]))[0] == 0


def need(result, tool, package):
    """False, and a finding, if a tool is not there."""
    if have(tool):
        return True
    where = "the tool root" if os.environ.get("IN_ROOT") else "this machine"
    result.missing(f"the tool {tool}", f"install the package {package} in {where} (`make setup` does)")
    return False


def kernel_build():
    """The built kernel tree, or None."""
    path = os.environ.get("KDIR", "")
    return path if path and os.path.exists(os.path.join(path, "Makefile")) else None


def kernel_source():
    """The source of the kernel tree, or None.

    A tree built out of its source names the source in its Makefile.
    """
    path = os.environ.get("KSRC", "")
    if not path and kernel_build():
        path = kernel_build()
        with open(os.path.join(path, "Makefile"), encoding="utf-8", errors="replace") as f:
            found = re.search(r"^include (\S+)/Makefile$", f.read(4096), re.M)
        if found:
            path = os.path.normpath(os.path.join(path, found.group(1)))
    return path if path and os.path.exists(os.path.join(path, "scripts/checkpatch.pl")) else None


class Exceptions:
    """A list of exceptions; one that nothing needs is a finding of the check that has it."""

    def __init__(self, entries):
        self.entries = entries
        self.needed = set()

    def hold(self, matches):
        """Whether an entry matches."""
        found = [entry for entry in self.entries if matches(entry)]
        self.needed.update(found)
        return bool(found)

    def unneeded(self):
        return [f"the exception {entry!r} matches nothing: take it out" for entry in self.entries if entry not in self.needed]


NO_KERNEL = "set KDIR to a built kernel tree (and KSRC to its source); `make check` does both"


def temp():
    """A folder for one check, under build/ so that the tool root sees it."""
    return tempfile.TemporaryDirectory(dir=build_dir("tmp"))
