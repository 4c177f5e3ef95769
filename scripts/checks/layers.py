# SPDX-License-Identifier: GPL-2.0
"""Layer rules of the modules' folders: who may use whom, purity, and no circles.

The arrows are those of Documentation/design.rst, from folder to folder.  Within
a folder each file may use each other one, as long as no circle comes of it.
"""

import os
import re

import lib
import rust_text as rt

# The crates, by folder.  Part of a crate (longest prefix wins): what it may use besides core and
# itself; a name with `::` before it is another crate.
CRATES = {
    "tdx_mirror": {
        "base": [],
        "base::sys::kernel": ["::kernel"],
        "base::sys::loom": ["::loom"],
        "tdx": ["base"],
        "mirror": ["base"],
        "sept": ["base", "tdx", "mirror::external", "mirror::lock"],
        "kunit": ["base", "tdx", "mirror", "sept"],
        "bindings": ["::kernel"],
        "kernel": ["base", "mirror::lock", "bindings", "::kernel"],
        "kvm": ["base", "tdx", "mirror", "sept", "kernel", "watch::trace", "watch::record", "bindings", "::kernel"],
        "kvm::entry": ["base", "mirror", "kernel", "kvm", "watch", "bindings", "::kernel"],
        "kvm::test_ops": ["base", "mirror", "kvm", "watch", "bindings", "::kernel"],
        "watch": ["base", "tdx", "mirror", "sept", "kernel", "kvm::td", "kvm::vm", "bindings", "::kernel"],
        "watch::record": ["base", "kernel", "::kernel"],
        "watch::trace": ["base", "tdx", "mirror", "::kernel"],
        "main": ["kvm", "watch", "kunit", "bindings", "::kernel"],
    },
    "tdx_emu": {
        "module": [],
        "instruments": ["module"],
        "vmx": ["module", "::kernel"],
        "kernel": ["module", "instruments", "vmx", "::kernel"],
        "main": ["kernel", "::kernel"],
    },
    "tdx_mirror_test": {
        "device": ["module", "instruments", "::kernel"],
        "main": ["device", "::kernel"],
    },
}
# Whose modules a crate may build a second time, at its root.
BORROWED = {
    "tdx_mirror_test": ("tdx_emu",),
}

# What builds unchanged in the kernel and on a host.
PURE = {
    "tdx_mirror": ("base", "tdx", "mirror", "sept", "kunit"),
    "tdx_emu": ("module", "instruments"),
    "tdx_mirror_test": (),
}

# What a path can begin with when it names another crate; `kernel` brings the next ones along.
OTHERS = {"core", "alloc", "std", "kernel", "loom", "pin_init", "macros", "ffi", "libc", "zerocopy"}
WITH_KERNEL = ("pin_init", "ffi", "macros")


def module_of(name):
    """Module of a file below a crate's folder: `mirror/addr.rs` is mirror::addr."""
    path = name[:-len(".rs")].split("/")
    if len(path) == 1 and path[0].endswith("_main"):
        return "main"
    return "::".join(path)


def longest(module, table):
    while module:
        if module in table:
            return module
        module = module.rpartition("::")[0]
    return None


class Crate:
    """The modules of a folder of Rust files and what they use."""

    def __init__(self, sources):
        """sources: file name relative to the crate's folder -> text"""
        self.sources = sources
        self.modules = {module_of(n): n for n in sources if module_of(n) != "main"}
        self.parsed = {}
        self.exports = {}
        self.declared = {}
        for name, text in sources.items():
            plain = rt.without_tests(rt.blank(text))
            refs = rt.references(plain)
            self.parsed[name] = refs
            module = module_of(name)
            if module == "main":
                self.declared[name] = set(DECLARED.findall(plain))
            # A private `use` is one for the modules below.
            for _, path, bound, public, inline in refs:
                if bound and not inline and module != "main":
                    self.exports.setdefault(module, {})[bound] = (path, public)

    def absolute(self, module, path, aliases, inline=(), file=None):
        """Segments of a path from the crate root, or None for a local name."""
        head = path[0]
        if head.startswith("::"):
            return path
        here = ([] if module == "main" else module.split("::")) + list(inline)
        if head == "crate":
            return path[1:]
        if head in ("self", "super"):
            while path and path[0] in ("self", "super"):
                if path[0] == "super":
                    here = here[:-1]
                path = path[1:]
            return here + path
        if head in aliases and aliases[head] != path:
            base = self.absolute(module, aliases[head], {})
            return None if base is None else base + path[1:]
        if "::".join(here + [head]) in self.modules and head in self.declared.get(file, [head]):
            return here + path
        if head in OTHERS:
            return ["::" + head] + path[1:]
        if module == "main" and any(m.split("::")[0] == head for m in self.modules):
            return path
        return None

    def target(self, path, depth=0):
        """The module that a path from the crate root leads to."""
        if path and path[0].startswith("::"):
            return path[0]
        module = []
        for segment in path:
            if "::".join(module + [segment]) not in self.modules \
                    and not any(m.startswith("::".join(module + [segment]) + "::") for m in self.modules):
                break
            module = module + [segment]
        name = "::".join(module)
        rest = path[len(module):]
        # Follow `pub use` of the module to where the item is defined.
        if rest and depth < 8:
            inner = self.exports.get(name, {}).get(rest[0])
            if inner:
                onward = self.absolute(name, inner[0], {})
                if onward and onward != path:
                    found = self.target(onward, depth + 1)
                    # Who offers a type of another crate as its own answers for it.
                    return name if found.startswith("::") and inner[1] else found
        return name or "crate"

    def uses(self):
        """(file, line, own module, used module) of every path to another module."""
        for name, refs in self.parsed.items():
            module = module_of(name)
            aliases = {b: p for _, p, b, _, inline in refs if b and not inline}
            for line, path, _, _, inline in refs:
                if not path:
                    continue
                full = self.absolute(module, path, aliases, inline, name)
                if full is None:
                    continue
                used = self.target(full)
                if used != module:
                    yield name, line, module, used


def shortest_circle(edges, node, within):
    """The shortest way from a node back to itself, among some nodes."""
    ways, seen = [[node]], set()
    while ways:
        way = ways.pop(0)
        for onward in sorted(edges.get(way[-1], set()) & within):
            if onward == node:
                return way + [node]
            if onward not in seen:
                seen.add(onward)
                ways.append(way + [onward])
    return []


def circles(edges):
    """(the nodes that all reach each other, a shortest circle) for each knot of the edges."""
    reach = {}
    for node in edges:
        seen, work = set(), [node]
        while work:
            more = edges.get(work.pop(), set()) - seen
            seen |= more
            work += more
        reach[node] = seen
    knots = {frozenset(m for m in reach if m in reach[node] and node in reach[m])
             for node in reach if node in reach[node]}
    return sorted((sorted(k), min((shortest_circle(edges, n, k) for n in sorted(k)), key=len)) for k in knots)


DECLARED = re.compile(r"^\s*(?:pub(?:\([^)]*\))?\s+)?mod\s+(\w+)\s*[;{]", re.M)
# Literals and comments are blank where this is asked, but for the path.
PATH_OF = re.compile(r'#\[path = "([^"]+)"\]')
EXTERN = re.compile(r"\bextern\s+(?:crate\b|\{)|#\[\s*no_mangle|\basm!")


def check_sources(folder, sources, borrowed=(), whole=True):
    """Findings in a crate: file name relative to its folder -> text.

    borrowed: names in sources that belong to another crate, which answers for them.
    whole: whether all of the crate is there, so that each arrow must be used.
    """
    findings, edges, arrows, pure, needed = [], {}, CRATES[folder], PURE[folder], set()
    crate = Crate(sources)
    for name in sources:
        if name not in borrowed and longest(module_of(name), arrows) is None:
            findings.append(f"{folder}/{name}: the module {module_of(name)} has no layer: add it to "
                            "scripts/checks/layers.py and Documentation/design.rst")
    for name, line, module, used in crate.uses():
        rule = longest(module, arrows)
        if name in borrowed or rule is None:
            continue
        where = f"{folder}/{name}:{line}: {module}"
        allowed = arrows[rule]
        if used.startswith("::"):
            others = {"::core", *allowed, *("::" + w for w in WITH_KERNEL if "::kernel" in allowed)}
            if used not in others:
                findings.append(f"{where} uses the crate {used[2:]}")
        elif used == "crate":
            # A name at the root of the crate: only the main files define some.
            if module.split("::")[0] in pure:
                findings.append(f"{where} names something at the root of the crate")
        elif longest(used, arrows) != rule and not any(used == a or used.startswith(a + "::") for a in allowed) \
                and not (used + "::").startswith(rule + "::"):
            findings.append(f"{where} uses {used}, and no arrow of the design leads there")
        else:
            edges.setdefault(module, set()).add(used)
            needed.update((rule, a) for a in allowed if used == a or used.startswith(a + "::"))
    findings += [f"{folder}: no file of {rule} uses {a}: take the arrow out of scripts/checks/layers.py and "
                 "Documentation/design.rst" for rule in arrows for a in arrows[rule] 
                 if whole and not a.startswith("::") and (rule, a) not in needed]
    for knot, circle in circles(edges):
        rest = f", in a knot of {len(knot)}: {' '.join(knot)}" if len(knot) > len(circle) - 1 else ""
        findings.append(f"{folder}: circle of modules: {' -> '.join(circle)}{rest}")
    for name, text in sources.items():
        if module_of(name).split("::")[0] not in pure or name in borrowed:
            continue
        plain = rt.without_tests(rt.blank(text))
        for found in EXTERN.finditer(plain):
            findings.append(f"{folder}/{name}:{rt.line_of(plain, found.start())}: `{found.group(0).strip()}` in a pure layer")
    return sorted(set(findings))


def borrowed_by(folder, sources, read_folder):
    """({file: text} of other folders' modules at the crate's root, findings)."""
    found, findings = {}, []
    for name, text in sources.items():
        for match in PATH_OF.finditer(text):
            other = os.path.basename(match.group(1))
            if match.group(1) != f"../{other}" or other not in BORROWED.get(folder, ()) or module_of(name) != "main":
                findings.append(f"{folder}/{name}:{rt.line_of(text, match.start())}: builds {match.group(1)}: "
                                "each folder stands alone")
                continue
            body = text[text.index("{", match.end()):]
            wanted = DECLARED.findall(rt.blank(body[:rt.matching(body, 0)]))
            found.update({n: t for n, t in read_folder(other).items() if module_of(n).split("::")[0] in wanted})
    return found, findings


def sources_in(folder):
    return {os.path.relpath(n, folder): lib.read(n) for n in lib.files(f"{folder}/*.rs")}


def examine(folder, read_folder=sources_in, whole=True):
    """Findings in the crate of a folder."""
    sources = read_folder(folder)
    borrowed, findings = borrowed_by(folder, sources, read_folder)
    return findings + check_sources(folder, {**borrowed, **sources}, borrowed.keys() - sources.keys(), whole)


def layers(result):
    count = 0
    for folder in CRATES:
        count += len(sources_in(folder))
        if not sources_in(folder):
            result.missing(f"{folder}/*.rs", "run this in a whole checkout")
            continue
        for finding in examine(folder):
            result.bad(finding)
    result.note = f"{count} files"
    result.todo = "use what the arrow allows, or move the code to the layer it belongs to"
