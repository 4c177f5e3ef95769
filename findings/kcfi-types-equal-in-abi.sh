#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# A Rust function whose arguments have C's ABI may have another kCFI type id than C's prototype.
#
# Software:  rustc 1.85.1 (rustup), clang 19.1.7 (ziglang 0.14.0 of PyPI), both with the flags of a kernel
#            with CONFIG_CFI and CONFIG_RUST: -fsanitize=kcfi, integers normalised
# Input:     extern "C" functions of one argument, each type passed as C's is, none of which
#            improper_ctypes_definitions warns about
# Expected:  ids follow the ABI: what may be called through C's pointer has its id
# Behaviour: references, Option of a reference, of NonNull or of a function pointer (bindgen's form of
#            each callback), and an enum of fixed size against C's enum have ids of their own: C's
#            indirect call of such a function is a CFI failure. NonNull has the id of the const
#            pointer. repr(transparent) and repr(C) enums of the same name have C's.
#
# Output seen:
#   C type                 Rust type                     id
#   struct thing *         *mut thing                    equal
#   struct thing *         &mut thing                    differs
#   struct thing *         Option<&mut thing>            differs
#   struct thing *         NonNull<thing>                differs
#   struct thing *         Option<NonNull<thing>>        differs
#   struct thing *         Wrapper, transparent          equal
#   const struct thing *   *const thing                  equal
#   const struct thing *   &thing                        differs
#   const struct thing *   NonNull<thing>                equal
#   void (*)(int)          extern "C" fn(c_int)          equal
#   void (*)(int)          Option<extern "C" fn(c_int)>  differs
#   enum color             enum color, repr(C)           equal
#   enum color             enum number, repr(u32)        differs
#   enum color             u32                           differs
#   rustc said: nothing, status 0
#
# Exits 0 while that holds, 1 if it changed, 2 if the tools cannot be had.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
unavailable()
{
	echo "cannot try: $1 (needs python3 with venv, rustup and their registries)" >&2
	exit 2
}
{ python3 -m venv venv && venv/bin/pip -q install ziglang==0.14.0; } >&2 || unavailable "ziglang 0.14.0"
export RUSTUP_HOME="$work/rustup"
rustup -q toolchain install 1.85.1 --profile minimal --no-self-update >log.txt 2>&1 ||
	{ cat log.txt >&2; unavailable "rustc 1.85.1"; }

# Name, C type, and a Rust type that is passed in the same way.
cat >types.txt <<'END'
ptr|struct thing *|*mut thing
ptr_ref|struct thing *|&mut thing
ptr_opt_ref|struct thing *|Option<&mut thing>
ptr_nonnull|struct thing *|NonNull<thing>
ptr_opt_nonnull|struct thing *|Option<NonNull<thing>>
ptr_wrapper|struct thing *|Wrapper, transparent
cptr|const struct thing *|*const thing
cptr_ref|const struct thing *|&thing
cptr_nonnull|const struct thing *|NonNull<thing>
fn|void (*)(int)|extern "C" fn(c_int)
fn_opt|void (*)(int)|Option<extern "C" fn(c_int)>
enum_c|enum color|enum color, repr(C)
enum_fixed|enum color|enum number, repr(u32)
enum_u32|enum color|u32
END
{
	echo 'enum color { RED, GREEN }; struct thing { int x; };'
	while IFS='|' read -r name c _; do
		case $c in
		*'(*)'*) echo "void f_$name(void (*arg)(int)) { (void)arg; }" ;;
		*) echo "void f_$name($c arg) { (void)arg; }" ;;
		esac
	done <types.txt
} >types.c
{
	cat <<'END'
#![crate_type = "lib"]
#![no_std]
#![allow(non_camel_case_types)]
#![warn(improper_ctypes_definitions)]
use core::{ffi::c_int, ptr::NonNull};
#[repr(C)]
pub enum color { RED, GREEN }
#[repr(u32)]
pub enum number { RED, GREEN }
#[repr(C)]
pub struct thing { x: c_int }
#[repr(transparent)]
pub struct Wrapper(*mut thing);
END
	while IFS='|' read -r name _ rust; do
		case $rust in
		enum*) rust=${rust#enum } ;;
		esac
		echo "#[no_mangle] pub extern \"C\" fn f_$name(_arg: ${rust%, *}) {}"
	done <types.txt
} >types.rs

venv/bin/python -m ziglang cc -target x86_64-linux-gnu -O1 -fno-sanitize=undefined -fsanitize=kcfi \
	-fsanitize-cfi-icall-experimental-normalize-integers -S -o c.s types.c >&2 || unavailable "clang 19.1.7"
status=0
# Sanitizers are unstable options, which the kernel allows itself in the same way.
RUSTC_BOOTSTRAP=1 rustup run 1.85.1 rustc -O -Zmerge-functions=disabled -Zsanitizer=kcfi \
	-Zsanitizer-cfi-normalize-integers -Cpanic=abort --emit asm -o rust.s types.rs 2>said.txt || status=$?
ids()
{
	awk '/^__cfi_f_.*:/ { sub("__cfi_f_", ""); sub(":", ""); name = $1 }
	     /movl.*\$[0-9]+, %eax/ && name { print name, $2; name = "" }' "$1" | sort
}
ids c.s >c.ids
ids rust.s >rust.ids

{
	printf '%-22s %-29s %s\n' 'C type' 'Rust type' id
	while IFS='|' read -r name c rust; do
		id=$(grep "^$name " c.ids) || id="none in C"
		if grep -qxF "$id" rust.ids; then id=equal; else id=differs; fi
		printf '%-22s %-29s %s\n' "$c" "$rust" "$id"
	done <types.txt
	echo "rustc said: $(grep . said.txt || echo nothing), status $status"
} | tee table.txt

# Both compilers gave every function an id, and the table is the one above.
if [ "$(wc -l <c.ids)" != 14 ] || [ "$(wc -l <rust.ids)" != 14 ]; then
	echo "changed: not every function has an id"
	exit 1
fi
cat >seen.txt <<'END'
C type                 Rust type                     id
struct thing *         *mut thing                    equal
struct thing *         &mut thing                    differs
struct thing *         Option<&mut thing>            differs
struct thing *         NonNull<thing>                differs
struct thing *         Option<NonNull<thing>>        differs
struct thing *         Wrapper, transparent          equal
const struct thing *   *const thing                  equal
const struct thing *   &thing                        differs
const struct thing *   NonNull<thing>                equal
void (*)(int)          extern "C" fn(c_int)          equal
void (*)(int)          Option<extern "C" fn(c_int)>  differs
enum color             enum color, repr(C)           equal
enum color             enum number, repr(u32)        differs
enum color             u32                           differs
rustc said: nothing, status 0
END
if cmp -s table.txt seen.txt; then
	exit 0
fi
echo "changed: not what rustc 1.85.1 and clang 19.1.7 did when this was written"
exit 1
