#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Make a squashfs image from unpacked packages: programs with exactly the shared
# libraries that they load, and files. What is not among the packages is taken
# from the root in which this runs.
# usage: image.sh PACKAGES OUTPUT ITEM...      (in the tool root)
#   PACKAGES  folder with the unpacked packages; gives mksquashfs, too
#   ITEM      /path of a program, library, file or folder in the image;
#             TARGET=/path puts a file of this machine at TARGET
set -euo pipefail

packages=$(cd "$1" && pwd) output=$2
shift 2
libs=/usr/lib/x86_64-linux-gnu
tree=$packages.tree
loader=/lib64/ld-linux-x86-64.so.2

# The loader's search path; set for ldd and mksquashfs only.
with_libs()
{
	env LD_LIBRARY_PATH="$packages$libs:$packages$libs/perf" "$@"
}

# where PATH: the file of that name, among the packages first.
where()
{
	if [ -e "$packages$1" ]; then
		echo "$packages$1"
	elif [ -e "$1" ]; then
		echo "$1"
	else
		echo "image.sh: neither a package nor the tool root has $1" >&2
		return 1
	fi
}

# Copy the libraries that a program or library loads.
add_libraries()
{
	local line lib

	while read -r line; do
		case $line in
		*'not found'*) echo "image.sh: $1: $line" >&2; return 1 ;;
		*'=> /'*)
			lib=${line#*=> }
			lib=${lib% (*}
			cp -Ln "$lib" "$tree$libs/" ;;
		esac
	done < <(with_libs ldd "$1")
}

add()
{
	local target=$1 source

	case $target in
	*=*) source=${target#*=} target=${target%%=*} ;;
	*) source=$(where "$target") ;;
	esac
	mkdir -p "$tree$(dirname "$target")"
	cp -rL --no-target-directory "$source" "$tree$target"
	if [ -f "$source" ] && [ "$(head -c 4 "$source" | tr -d '\0')" = $'\x7fELF' ]; then
		add_libraries "$source"
	fi
}

rm -rf "$tree"
mkdir -p "$tree"/usr/{bin,sbin,lib64} "$tree$libs" "$tree"/{dev,proc,sys,tmp,host,etc,root,var/tmp}
for dir in bin sbin lib lib64; do
	ln -s "usr/$dir" "$tree/$dir"
done
cp -L "$loader" "$tree/usr/lib64/"
cp -L "$(command -v busybox)" "$tree/usr/bin/busybox"
for name in sh cat ls env sleep kill; do
	ln -s busybox "$tree/usr/bin/$name"
done
echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
echo 'root:x:0:' >"$tree/etc/group"
for item in "$@"; do
	add "$item"
done
rm -f "$output.new"
# Uncompressed: an emulated CPU would do the decompression.
with_libs "$(where /usr/bin/mksquashfs)" "$tree" "$output.new" -quiet -no-progress -noappend -all-root \
	-no-xattrs -noI -noD -noF -noX
# Whole cylinders, as the machines' BIOS counts them.
size=$(stat -c %s "$output.new")
truncate -s $(((size + 516095) / 516096 * 516096)) "$output.new"
mv "$output.new" "$output"
rm -rf "$tree"
echo "$(du -k "$output" | cut -f1) KiB in $output"
