#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Boot a kernel with an initramfs on an emulated machine, show its serial
# console and return the exit code of the commands that ran in it.
#
# Usage: boot.sh [options] 'shell commands'
#   --accel bochs|qemu   machine (default bochs; qemu is TCG, without VMX)
#   --kernel FILE        bzImage (needed)
#   --overlay DIR        files for the initramfs; may be given several times
#   --bochs PREFIX       where Bochs is installed (needed for bochs)
#   --cpus N             default 2
#   --memory MIB         default 256
#   --timeout SECONDS    wall clock limit, default 300
#   --append STRING      added to the kernel command line
#   --ips N              Bochs: emulated instructions per second, default 100000000
#   --qemu-cpu MODEL     default EPYC,+svm,+npt
#   --disk FILE          squashfs image (scripts/image), mounted at /image; the
#                        program in-image runs a command in it
#   --out DIR            what the commands leave in the machine's folder /out is
#                        found in DIR afterwards; the program save-out writes it
#                        to the disk before the end, which a panic loses
#   --log FILE           keep a copy of the serial console there
#   --quiet              do not show the console
#
# Exit code: that of the commands; 124 timeout, 125 the machine ended without
# a result or the kernel panicked, 126 wrong use.
#
# Runs in the tool root (needs cpio, gzip, xorriso, isolinux, busybox-static,
# script, qemu). Everything temporary is in a private directory, removed on exit.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
accel=bochs kernel='' bochs='' cpus=2 memory=256 timeout=300 append='' log='' quiet=0
disk='' out=''
ips=100000000
qemu_cpu=EPYC,+svm,+npt
overlays=()

die()
{
	echo "boot.sh: $*" >&2
	exit 126
}

while [ $# -gt 0 ]; do
	case $1 in
	--accel) accel=$2; shift 2 ;;
	--kernel) kernel=$2; shift 2 ;;
	--overlay) overlays+=("$2"); shift 2 ;;
	--bochs) bochs=$2; shift 2 ;;
	--cpus) cpus=$2; shift 2 ;;
	--memory) memory=$2; shift 2 ;;
	--timeout) timeout=$2; shift 2 ;;
	--append) append=$2; shift 2 ;;
	--ips) ips=$2; shift 2 ;;
	--qemu-cpu) qemu_cpu=$2; shift 2 ;;
	--disk) disk=$2; shift 2 ;;
	--out) out=$2; shift 2 ;;
	--log) log=$2; shift 2 ;;
	--quiet) quiet=1; shift ;;
	--) shift; break ;;
	-*) die "unknown option $1" ;;
	*) break ;;
	esac
done
[ $# -eq 1 ] || die "exactly one argument with the shell commands is needed"
command=$1
[ -r "$kernel" ] || die "kernel image '$kernel' is not readable (--kernel)"
[ "$accel" = bochs ] && { [ -x "$bochs/bin/bochs" ] || die "no bin/bochs in '$bochs' (--bochs)"; }
[ -z "$disk" ] || [ -r "$disk" ] || die "disk image '$disk' is not readable (--disk)"
[ -z "$out" ] || mkdir -p "$out" || die "folder '$out' cannot be made (--out)"

tmp=$(mktemp -d "${TMPDIR:-/tmp}/tdx-mirror-vm.XXXXXX") || die "mktemp failed"
tail_pid=''
launch_pid=''

stop_machine()
{
	local pid

	pid=$(cat "$tmp/pid" 2>/dev/null) && kill -KILL "$pid" 2>/dev/null
	[ -n "$launch_pid" ] && { kill "$launch_pid" 2>/dev/null; wait "$launch_pid" 2>/dev/null; }
	launch_pid=''
}

# The disk for /out begins with this until the machine writes its archive there.
out_label=tdx-mirror-out

make_out_disk()
{
	truncate -s 516096000 "$tmp/out.img" && printf '%s' "$out_label" |
		dd of="$tmp/out.img" conv=notrunc status=none
}

unpack_out_disk()
{
	[ -f "$tmp/out.img" ] || return
	if [ "$(head -c ${#out_label} "$tmp/out.img" | tr -d '\0')" = "$out_label" ]; then
		echo "boot.sh: the machine saved nothing from /out" >&2
		return
	fi
	tar -C "$out" --no-same-owner -xf "$tmp/out.img" || echo "boot.sh: the archive of /out is damaged" >&2
}

cleanup()
{
	stop_machine
	unpack_out_disk
	[ -n "$tail_pid" ] && kill "$tail_pid" 2>/dev/null
	[ -n "$log" ] && [ -f "$tmp/serial" ] && cp "$tmp/serial" "$log"
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

build_initramfs()
{
	local root=$tmp/root dir

	mkdir -p "$root"/{bin,dev,proc,sys,tmp,vm,etc,lib,image,out} || return
	cp "$(command -v busybox)" "$root/bin/busybox" &&
	cp "$here/inside/init" "$root/init" && cp "$here"/inside/{tdx-host,in-image,save-out} "$root/bin/" &&
	chmod 755 "$root/init" "$root"/bin/{tdx-host,in-image,save-out} || return
	for dir in "${overlays[@]}"; do
		[ -d "$dir" ] || { echo "boot.sh: overlay '$dir' is not a directory" >&2; return 1; }
		cp -rL "$dir/." "$root/" || return
	done
	find "$root" -name '*.ko' -exec strip --strip-debug {} + || return
	printf '%s\n' "$command" >"$root/vm/command"
	mknod -m 600 "$root/dev/console" c 5 1 || return
	(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$tmp/initramfs.gz"
}

build_iso()
{
	local iso=$tmp/iso

	mkdir -p "$iso/isolinux" &&
	cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$iso/isolinux/" &&
	cp "$kernel" "$iso/bzImage" && cp "$tmp/initramfs.gz" "$iso/initramfs.gz" || return
	cat >"$iso/isolinux/isolinux.cfg" <<-EOF
	default linux
	prompt 0
	timeout 0
	label linux
	kernel /bzImage
	append initrd=/initramfs.gz $cmdline
	EOF
	xorriso -as mkisofs -quiet -o "$tmp/boot.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat \
		-no-emul-boot -boot-load-size 4 -boot-info-table "$iso" >"$tmp/xorriso.log" 2>&1 ||
		{ cat "$tmp/xorriso.log" >&2; return 1; }
}

# More than one CPU: Bochs does not skip idle time, so a tick must come often
# and idle must be a plain HLT.
cmdline="console=ttyS0,115200 nohibernate idle=nomwait nohz=off panic=0 oops=panic $append"
# On a busy machine the check of the timer finds none.
[ "$accel" = qemu ] && cmdline="console=ttyS0 nohibernate no_timer_check panic=0 oops=panic $append"
# Probing for disks takes time, most of it idle.
[ -n "$disk$out" ] || cmdline+=" initcall_blacklist=piix_init"

start_bochs()
{
	build_iso || return
	cp "$here/msrs.def" "$tmp/msrs.def"
	sed -e "s|@CPUS@|$cpus|; s|@IPS@|$ips|; s|@MEMORY@|$memory|g; s|@TMP@|$tmp|g; s|@SHARE@|/usr/share|" \
		"$here/bochsrc.in" >"$tmp/bochsrc"
	[ ! -f "$tmp/out.img" ] || echo "ata0-slave: type=disk, mode=flat, path=\"$tmp/out.img\"" >>"$tmp/bochsrc"
	if [ -n "$disk" ]; then
		# Bochs puts a lock file beside an image.
		ln -s "$(readlink -f "$disk")" "$tmp/disk.img" || return
		echo "ata1-master: type=disk, mode=flat, path=\"$tmp/disk.img\"" >>"$tmp/bochsrc"
	fi
	: >"$tmp/serial"
	# The text display needs a terminal: script provides one.
	cat >"$tmp/launch" <<-EOF
	echo \$\$ >$tmp/pid
	export TERM=vt100
	stty rows 30 cols 100 2>/dev/null
	exec $bochs/bin/bochs -q -f $tmp/bochsrc
	EOF
	TERM=vt100 script -qec "sh $tmp/launch" /dev/null </dev/null >"$tmp/screen" 2>&1 &
	launch_pid=$!
}

start_qemu()
{
	local drives=()

	: >"$tmp/serial"
	[ ! -f "$tmp/out.img" ] || drives+=(-drive "if=ide,index=1,format=raw,file=$tmp/out.img")
	[ -z "$disk" ] || drives+=(-drive "if=ide,index=2,format=raw,snapshot=on,file=$disk")
	qemu-system-x86_64 -accel tcg,thread=multi -cpu "$qemu_cpu" -smp "$cpus" -m "$memory" "${drives[@]}" \
		-kernel "$kernel" -initrd "$tmp/initramfs.gz" -append "$cmdline" -display none -no-reboot \
		-monitor none -serial "file:$tmp/serial" </dev/null >"$tmp/screen" 2>&1 &
	launch_pid=$!
	echo "$launch_pid" >"$tmp/pid"
}

# Show the console, wait for the result line, the end of the machine or the
# time limit. Sets $result.
watch_console()
{
	local part='' line='' ended='' deadline=$((SECONDS + timeout)) panic=0

	exec 3< <(exec tail -c +1 -f "$tmp/serial" 2>/dev/null)
	tail_pid=$!
	result=''
	while :; do
		if IFS= read -r -t 1 -u 3 part; then
			line+=$part
			line=${line%$'\r'}
			[ "$quiet" = 1 ] || printf '%s\n' "$line"
			case $line in
			'vm: exit '[0-9]*) result=${line#vm: exit }; ended=$((SECONDS + 20)) ;;
			*'Kernel panic - not syncing'*) panic=1; ended=$((SECONDS + 3)) ;;
			esac
			line=''
			continue
		fi
		line+=$part
		if ! kill -0 "$launch_pid" 2>/dev/null; then
			# Drain what the machine wrote last.
			[ -n "$ended" ] && [ -z "$part" ] && break
			ended=${ended:-$SECONDS}
		fi
		[ -n "$ended" ] && [ "$SECONDS" -ge "$ended" ] && [ -z "$part" ] && break
		if [ "$SECONDS" -ge "$deadline" ]; then
			echo "boot.sh: no result after $timeout s: machine stopped" >&2
			result=124
			return
		fi
	done
	[ -n "$line" ] && [ "$quiet" = 0 ] && printf '%s\n' "$line"
	[ "$panic" = 1 ] && result=125
	if [ -z "$result" ]; then
		echo "boot.sh: the machine ended without a result" >&2
		[ -f "$tmp/bochs.log" ] && tail -n 5 "$tmp/bochs.log" >&2
		[ -f "$tmp/screen" ] && tail -n 5 "$tmp/screen" | tr -d '\033' >&2
		result=125
	fi
}

[ -z "$out" ] || make_out_disk || die "no disk for /out could be made in $tmp"
build_initramfs || die "building the initramfs failed"
case $accel in
bochs) start_bochs || die "Bochs could not be started" ;;
qemu) start_qemu ;;
*) die "--accel is bochs or qemu" ;;
esac
watch_console
exit "$result"
