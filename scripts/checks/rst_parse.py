# SPDX-License-Identifier: GPL-2.0
"""Parses RST files with docutils; knows the directives of the kernel's Sphinx."""

import os
import sys

from docutils import core, nodes
from docutils.parsers.rst import Directive, directives, roles


class KernelDoc(Directive):
    """`.. kernel-doc:: file`: the file must exist and hold kernel-doc."""

    required_arguments = 1
    option_spec = {
        o: directives.unchanged
        for o in ("doc", "functions", "identifiers", "no-identifiers", "export", "internal", "module")
    }

    def run(self):
        path = self.arguments[0]
        if not os.path.exists(path):
            raise self.error(f"kernel-doc of {path}, which is not there")
        with open(path, encoding="utf-8") as f:
            if "/**" not in f.read():
                raise self.error(f"{path} holds no kernel-doc")
        return []


class Ignored(Directive):
    """A directive of Sphinx whose content needs no look here."""

    has_content = True
    optional_arguments = 9
    final_argument_whitespace = True
    option_spec = {o: directives.unchanged for o in ("maxdepth", "caption", "name", "linenos", "numbered")}

    def run(self):
        return []


def role(name, rawtext, text, lineno, inliner, options=None, content=None):
    return [nodes.literal(rawtext, text)], []


def main(names):
    directives.register_directive("kernel-doc", KernelDoc)
    for name in ("toctree", "code-block", "c:function", "flat-table"):
        directives.register_directive(name, Ignored)
    for name in ("c:func", "c:type", "c:struct", "c:member", "c:macro", "c:enum", "ref", "doc", "file", "manpage"):
        roles.register_local_role(name, role)
    failed = 0
    for name in names:
        with open(name, encoding="utf-8") as f:
            text = f.read()
        log = []
        settings = {"report_level": 2, "halt_level": 5, "warning_stream": Stream(log), "file_insertion_enabled": False}
        core.publish_doctree(text, source_path=name, settings_overrides=settings)
        failed += bool(log)
        for line in log:
            print(line.strip().replace("\n", " "))
    return 1 if failed else 0


class Stream:
    """Collects what docutils would print."""

    def __init__(self, log):
        self.log = log

    def write(self, text):
        if text.strip():
            self.log.append(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
