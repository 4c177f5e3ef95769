# SPDX-License-Identifier: GPL-2.0
"""The bugs of `make planted` can still be planted."""

import re

import lib


def planted(result):
    """Each patch names its bug and its test, and applies."""
    names = lib.files("tools/testing/planted/*.patch")
    if not names:
        result.missing("tools/testing/planted/*.patch", "run this in a whole checkout")
        return
    if not lib.need(result, "patch", "patch"):
        return
    for name in names:
        head = lib.read(name).split("\n--- ")[0]
        for field in ("Bug", "Test"):
            if not re.search(rf"^{field}: \S", head, re.M):
                result.bad(f"{name}: no line `{field}:` in its head")
        status, out = lib.run(lib.in_root(["patch", "-p1", "-s", "-f", "-F2", "--dry-run", "-i", name]))
        if status:
            result.bad(f"{name} does not apply: {' '.join(out.split())[:200]}")
    result.note = f"{len(names)} bugs"
    result.todo = "make the patch anew against the sources as they are"
