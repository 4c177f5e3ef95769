# SPDX-License-Identifier: GPL-2.0
"""Rust source as text: blanking of comments and literals, `use` trees, paths."""

import functools
import re

IDENT = r"(?:r#)?[A-Za-z_][A-Za-z0-9_]*"


# What may begin a comment or a literal: a raw string not at the end of a longer name, a
# character that is no lifetime.
BEGIN = re.compile(r"""//[^\n]*|/\*|(?<!\w)(?:b|c)?r(#*)"|"|'(?:\\(?:x[0-9a-fA-F]{2}|u\{[^}]*\}|.)|[^\\'\n])'""")
COMMENT_PART = re.compile(r"/\*|\*/")
STRING_END = re.compile(r'(?:[^"\\]|\\.)*"?', re.S)


@functools.lru_cache(maxsize=None)
def blank(text, keep_comments=False):
    """Replaces comments, strings and characters by blanks; keeps every newline.

    With keep_comments only the literals go.
    """
    out, i = [], 0
    while found := BEGIN.search(text, i):
        out.append(text[i:found.start()])
        begin, end = found.group(0), found.end()
        if begin == "/*":
            depth = 1
            while depth and (part := COMMENT_PART.search(text, end)):
                depth, end = depth + (1 if part.group(0) == "/*" else -1), part.end()
            end = len(text) if depth else end
        elif begin == '"':
            end = STRING_END.match(text, end).end()
        elif begin.endswith('"'):
            close = text.find('"' + found.group(1), end)
            end = len(text) if close < 0 else close + 1 + len(found.group(1))
        piece = text[found.start():end]
        out.append(piece if keep_comments and begin.startswith("/") else re.sub(r"[^\n]", " ", piece))
        i = end
    out.append(text[i:])
    return "".join(out)


def matching(text, start, opening="{", closing="}"):
    """The place after the bracket that closes the one at start."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] == opening:
            depth += 1
        elif text[i] == closing:
            depth -= 1
            if not depth:
                return i + 1
    return len(text)


TEST_ONLY = re.compile(r"#\[\s*cfg\s*\(\s*(?:test|all\s*\(\s*test\b[^]]*)\s*\)\s*\]")


def without_tests(text):
    """Blanks items under #[cfg(test)]; expects text from blank()."""
    while True:
        found = TEST_ONLY.search(text)
        if not found:
            return text
        rest = re.compile(r"[;{]").search(text, found.end())
        if not rest:
            end = len(text)
        elif rest.group(0) == ";":
            end = rest.end()
        else:
            end = matching(text, rest.start())
        text = text[:found.start()] + re.sub(r"[^\n]", " ", text[found.start():end]) + text[end:]


def line_of(text, place):
    return text.count("\n", 0, place) + 1


def split_top(text):
    """Splits at the commas that are in no bracket."""
    parts, depth, last = [], 0, 0
    for i, c in enumerate(text):
        if c in "{(":
            depth += 1
        elif c in "})":
            depth -= 1
        elif c == "," and not depth:
            parts.append(text[last:i])
            last = i + 1
    parts.append(text[last:])
    return [p.strip() for p in parts if p.strip()]


def expand(tree):
    """A use tree as a list of (path segments, name that it binds)."""
    tree = tree.strip()
    brace = tree.find("{")
    if brace >= 0:
        prefix = [s for s in tree[:brace].replace(" ", "").split("::") if s]
        found = []
        for part in split_top(tree[brace + 1:tree.rfind("}")]):
            for path, name in expand(part):
                if path == ["self"]:
                    path, name = [], (prefix[-1] if prefix and name == "self" else name)
                found.append((prefix + path, name))
        return found
    parts = re.split(r"\s+as\s+", tree)
    path = [s.strip() for s in parts[0].split("::") if s.strip()]
    name = parts[1].strip() if len(parts) > 1 else (path[-1] if path else "")
    return [(path, name)]


USE = re.compile(r"^\s*(pub(?:\s*\([^)]*\))?\s+)?use\s+((?:[^;])*);", re.M)
PATH = re.compile(rf"(?<![\w:>])((?:::\s*)?{IDENT}(?:\s*::\s*{IDENT})+)")


INLINE = re.compile(rf"\bmod\s+({IDENT})\s*(?=\{{)")


def inline_modules(text):
    """(first place, last place, name) of each `mod name { .. }`, outer ones first."""
    return [(m.end(), matching(text, m.end()), m.group(1)) for m in INLINE.finditer(text)]


def references(text):
    """Paths in a text from blank(): (line, segments, bound name or None, is public, inline modules)."""
    found, inline = [], inline_modules(text)

    def inside(place):
        return [name for first, last, name in inline if first <= place < last]

    def take(match):
        line = line_of(text, match.start(2))
        other = "::" if match.group(2).startswith("::") else ""
        for path, name in expand(match.group(2).lstrip(":").strip()):
            path = [other + path[0], *path[1:]] if path else path
            found.append((line, path, name, bool(match.group(1)), inside(match.start(2))))
        return re.sub(r"[^\n]", " ", match.group(0))

    rest = USE.sub(take, text)
    for match in PATH.finditer(rest):
        words = re.sub(r"\s", "", match.group(1)).split("::")
        # `::name` is another crate.
        words = words if words[0] else ["::" + words[1], *words[2:]]
        found.append((line_of(rest, match.start()), words, None, False, inside(match.start())))
    return found
