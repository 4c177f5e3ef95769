# SPDX-License-Identifier: GPL-2.0
"""Layer rules of rust/: who may use whom, purity, and no circles.

The arrows are those of Documentation/design.rst.  An arrow is transitive: who
may use the table may also name the entry that it is made of.
"""

import os
import re

import lib
import rust_text as rt

# Module (longest prefix wins): what it may use besides core.
ARROWS = {
    "mirror::sys::kernel": ["kernel"],
    "mirror::sys::loom": ["loom"],
    "mirror::sys::host": [],
    "mirror::sys": ["mirror::sys"],
    "mirror::addr": ["mirror::level"],
    "mirror::level": ["mirror::addr"],
    "mirror::stats": ["mirror::sys"],
    "mirror::lock": [],
    "mirror::spte": ["mirror::addr", "mirror::level"],
    "mirror::cell": ["mirror::spte", "mirror::sys", "mirror::lock"],
    "mirror::external": ["mirror::addr", "mirror::level", "mirror::lock", "mirror::stats"],
    "mirror::error": ["mirror::spte", "mirror::external"],
    "mirror::table": ["mirror::cell", "mirror::lock", "mirror::external", "mirror::error"],
    "mirror::frozen": ["mirror::cell", "mirror::lock", "mirror::external", "mirror::table"],
    "mirror::cursor": ["mirror::cell", "mirror::lock", "mirror::external", "mirror::table", "mirror::frozen"],
    "mirror": ["mirror"],
    "tdx": ["tdx", "mirror::addr", "mirror::level"],
    "sept": ["mirror::external", "mirror::addr", "mirror::level", "mirror::lock", "tdx"],
    "emu": ["emu", "tdx", "mirror::addr", "mirror::level"],
    "glue": ["glue", "mirror", "tdx", "sept", "kernel", "bindings"],
    "emu_vmx": ["emu_vmx", "emu", "tdx", "mirror::addr", "kernel", "bindings"],
    "emu_glue": ["emu_glue", "emu_vmx", "emu", "tdx", "mirror::addr", "kernel", "bindings"],
    "test_glue": ["test_glue", "emu", "tdx", "mirror::addr", "kernel", "bindings"],
    "kunit": ["kunit", "mirror", "tdx", "sept"],
    "bindings": ["kernel"],
    "main": ["glue", "emu", "emu_vmx", "emu_glue", "test_glue", "kunit", "kernel", "bindings"],
}

# Layers that build unchanged in the kernel and on a host.
PURE = ("mirror", "tdx", "sept", "emu", "kunit")

# Crates that a path can begin with; everything else is a name of this crate.
CRATES = {"core", "alloc", "std", "kernel", "loom", "pin_init", "macros", "ffi", "libc", "zerocopy"}


def module_of(name):
    """Module of a file below rust/: `mirror/addr.rs` is mirror::addr."""
    path = name[:-len(".rs")].split("/")
    if len(path) == 1 and path[0].endswith("_main"):
        return "main"
    if path[-1] == "mod":
        path = path[:-1]
    if path[0].startswith("bindings"):
        return "bindings"
    return "::".join(path)


def longest(module, table):
    while module:
        if module in table:
            return module
        module = module.rpartition("::")[0]
    return None


def closure(arrows):
    """For each rule everything that it reaches along the arrows."""
    reach = {}
    for rule in arrows:
        seen, work = set(), list(arrows[rule])
        while work:
            target = work.pop()
            if target in seen:
                continue
            seen.add(target)
            # A whole folder brings no rights of its parts: `mirror` as a
            # target already covers every module of it.
            work += arrows.get(target, [])
        reach[rule] = seen
    return reach


class Crate:
    """The modules of a folder of Rust files and what they use."""

    def __init__(self, sources):
        """sources: file name relative to rust/ -> text"""
        self.sources = sources
        self.modules = {module_of(n): n for n in sources if module_of(n) != "main"}
        self.parsed = {}
        self.exports = {}
        for name, text in sources.items():
            refs = rt.references(rt.without_tests(rt.blank(text)))
            self.parsed[name] = refs
            module = module_of(name)
            for _, path, bound, public, inline in refs:
                if public and bound and not inline:
                    self.exports.setdefault(module, {})[bound] = path

    def absolute(self, module, path, aliases, inline=()):
        """Segments of a path from the crate root, or None for a local name."""
        head = path[0]
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
        if "::".join(here + [head]) in self.modules:
            return here + path
        if head in CRATES:
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
                onward = self.absolute(name or "main", inner, {})
                if onward and onward != path:
                    found = self.target(onward, depth + 1)
                    # Who offers a type of another crate as its own answers for it.
                    return name if found.startswith("::") else found
        return name or "crate"

    def uses(self):
        """(file, line, own module, used module) of every path to another module."""
        for name, refs in self.parsed.items():
            module = module_of(name)
            aliases = {b: p for _, p, b, _, inline in refs if b and not inline}
            for line, path, _, _, inline in refs:
                if not path:
                    continue
                full = self.absolute(module, path, aliases, inline)
                if full is None:
                    continue
                used = self.target(full)
                if used != module:
                    yield name, line, module, used


def node_of(module):
    """What a circle is made of: each file of mirror/ and tdx/, else a whole folder.

    The files of the emulator and of the glue are parts of one implementation.
    """
    if module in ("mirror::addr", "mirror::level"):
        return "mirror::{addr,level}"  # one vocabulary in two files
    return module if module.split("::")[0] in ("mirror", "tdx") else module.split("::")[0]


def circles(edges):
    """One list of modules for each circle among the edges."""
    found, state, stack = [], {}, []

    def visit(node):
        state[node] = 1
        stack.append(node)
        for onward in sorted(edges.get(node, ())):
            if state.get(onward) == 1:
                found.append(stack[stack.index(onward):] + [onward])
            elif onward not in state:
                visit(onward)
        stack.pop()
        state[node] = 2

    for node in sorted(edges):
        if node not in state:
            visit(node)
    return found


EXTERN = re.compile(r"\bextern\s+(?:crate\b|\{)|#\[\s*no_mangle|\basm!")


def check_sources(sources):
    """Findings in a crate: file name relative to rust/ -> text."""
    findings, edges, reach = [], {}, closure(ARROWS)
    crate = Crate(sources)
    for name, line, module, used in crate.uses():
        rule = longest(module, ARROWS)
        pure = module.split("::")[0] in PURE
        if rule is None:
            findings.append(f"rust/{name}: the module {module} has no layer: add it to scripts/checks/layers.py "
                            "and Documentation/design.rst")
            continue
        if used.startswith("::"):
            crate_name = used[2:]
            if crate_name == "core" or (not pure and crate_name in ("kernel", "pin_init", "ffi", "macros")):
                continue
            if crate_name in reach[rule]:
                continue
            findings.append(f"rust/{name}:{line}: {module} uses the crate {crate_name}")
            continue
        if used == "crate":
            # A name at the root of the crate: only the main files define some.
            if pure:
                findings.append(f"rust/{name}:{line}: {module} names something at the root of the crate")
            continue
        # A parent and its own mod.rs: the parent's re-exports were followed.
        allowed = any(used == a or used.startswith(a + "::") for a in reach[rule] if a not in ("kernel",)) \
            or longest(used, ARROWS) == rule and rule != "main"
        if not allowed:
            findings.append(f"rust/{name}:{line}: {module} uses {used}, and no arrow of the design leads there")
        elif module != "main" and not used.startswith(module + "::") and not module.startswith(used + "::"):
            one, other = node_of(module), node_of(used)
            if one != other:
                edges.setdefault(one, set()).add(other)
    for circle in circles(edges):
        findings.append("circle of modules: " + " -> ".join(circle))
    for name, text in sources.items():
        if module_of(name).split("::")[0] not in PURE:
            continue
        plain = rt.without_tests(rt.blank(text))
        for found in EXTERN.finditer(plain):
            findings.append(f"rust/{name}:{rt.line_of(plain, found.start())}: `{found.group(0).strip()}` in a pure layer")
    return sorted(set(findings))


def layers(result):
    names = [n for n in lib.files("rust/*.rs")]
    if not names:
        result.missing("rust/*.rs", "run this in a whole checkout")
        return
    sources = {os.path.relpath(n, "rust"): lib.read(n) for n in names}
    for finding in check_sources(sources):
        result.bad(finding)
    result.note = f"{len(names)} files"
    result.todo = "use what the arrow allows, or move the code to the layer it belongs to"
