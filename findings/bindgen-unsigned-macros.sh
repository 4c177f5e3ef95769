#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# bindgen works macros out in signed 64-bit integers, whatever type C gives them.
#
# Software:  bindgen 0.71.1 (crates.io), libclang 18.1.1 (PyPI)
# Input:     macros that are integer constant expressions of unsigned type
# Expected:  the value that C gives them, or no constant at all
# Behaviour: no error, no warning, and constants with another value: 0xffffffff + 1 does not wrap,
#            ~0 is minus one before it is divided or shifted. `1u << 31` is right, so that a
#            header of single bits shows nothing.
#
# Output seen:
#   macro    C           bindgen
#   SUM      0           4294967296
#   HALF     2147483647  0
#   SHIFTED  15          -1
#   TOP      2147483648  2147483648
#   bindgen said: nothing, status 0
#
# Exits 0 while that holds, 1 if it changed, 2 if the tools cannot be had.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
unavailable()
{
	echo "cannot try: $1 (needs python3 with venv, cargo, cc and their registries)" >&2
	exit 2
}
{ python3 -m venv venv && venv/bin/pip -q install libclang==18.1.1; } >&2 || unavailable "libclang 18.1.1"
cargo install --quiet --locked --root "$work/tools" bindgen-cli --version 0.71.1 >&2 || unavailable "bindgen 0.71.1"
LIBCLANG_PATH=$(dirname "$(find "$work/venv" -name 'libclang*.so*' | head -n 1)")
export LIBCLANG_PATH

cat >macros.h <<'END'
#define SUM	(0xffffffffu + 1u)
#define HALF	(~0u / 2)
#define SHIFTED	(~0u >> 28)
#define TOP	(1u << 31)
END
cat >values.c <<'END'
#include <stdio.h>
#include "macros.h"

int main(void)
{
	printf("SUM %lld\nHALF %lld\nSHIFTED %lld\nTOP %lld\n",
	       (long long)SUM, (long long)HALF, (long long)SHIFTED, (long long)TOP);
	return 0;
}
END
cc -o values values.c || unavailable "a C compiler"
./values >c.txt
status=0
tools/bin/bindgen macros.h >bindings.rs 2>said.txt || status=$?
sed -nE 's/^pub const (\w+): \w+ = (-?[0-9]+);$/\1 \2/p' bindings.rs >bindgen.txt

printf '%-8s %-11s %s\n' macro C bindgen
while read -r name value; do
	printf '%-8s %-11s %s\n' "$name" "$value" "$(sed -n "s/^$name //p" bindgen.txt)"
done <c.txt | tee table.txt
echo "bindgen said: $(grep . said.txt || echo nothing), status $status"

cat >seen.txt <<'END'
SUM      0           4294967296
HALF     2147483647  0
SHIFTED  15          -1
TOP      2147483648  2147483648
END
if cmp -s table.txt seen.txt && [ ! -s said.txt ] && [ "$status" = 0 ]; then
	exit 0
fi
echo "changed: not what bindgen 0.71.1 did when this was written"
exit 1
