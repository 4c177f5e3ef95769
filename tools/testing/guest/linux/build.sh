#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Build what the Linux that boots as a TD has in its initramfs, and pack it.
# usage: build.sh [options] OUT
#   --kernel DIR      where the guest kernel was built (needed)
#   --cpus N          vCPUs that the tests must find, default 2
#   --leave MIB       memory that the tests leave alone, default 96
#   --rounds N        rounds of conversions to shared and back, default 16
#   --command FILE    shell commands to run instead of the tests
# Makes OUT/initramfs.gz. Runs in the tool root (gcc, make, busybox-static, cpio).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kernel='' cpus=2 leave=96 rounds=16 command=''
while [ $# -gt 1 ]; do
	case $1 in
	--kernel) kernel=$2 ;;
	--cpus) cpus=$2 ;;
	--leave) leave=$2 ;;
	--rounds) rounds=$2 ;;
	--command) command=$2 ;;
	*) echo "build.sh: unknown option $1" >&2; exit 2 ;;
	esac
	shift 2
done
if [ $# != 1 ] || [ ! -f "$kernel/Module.symvers" ]; then
	echo "build.sh: needs --kernel with a built kernel, and a folder for the result" >&2
	exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)

mkdir -p "$out/module"
make -s -C "$kernel" M="$here" MO="$out/module" modules
if [ ! "$out/td-work" -nt "$here/td-work.c" ]; then
	gcc -O2 -Wall -Wextra -Werror -static -pthread -o "$out/td-work" "$here/td-work.c"
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,dev,proc,sys,td}
cp "$(command -v busybox)" "$root/bin/busybox"
install -m 755 "$out/td-work" "$root/bin/td-work"
install -m 755 "$here/init" "$root/init"
strip --strip-debug -o "$root/td/tdx_share.ko" "$out/module/tdx_share.ko"
printf 'cpus=%s\nleave_mib=%s\nshare_rounds=%s\n' "$cpus" "$leave" "$rounds" >"$root/td/settings"
[ -z "$command" ] || cp "$command" "$root/td/command"
mknod -m 600 "$root/dev/console" c 5 1
(cd "$root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc --reproducible | gzip -n -1) >"$out/initramfs.new"
mv "$out/initramfs.new" "$out/initramfs.gz"
