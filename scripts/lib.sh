# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Shared by the scripts of the emulated TDX host: where things are, messages,
# timed steps, stamps, the tool root. Sourced, never run.
set -euo pipefail

TDX_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
TDX_CACHE=${TDX_MIRROR_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/tdx-mirror}
mkdir -p "$TDX_CACHE"/{log,stamp,tmp}
TDX_CACHE=$(cd "$TDX_CACHE" && pwd -P)
TDX_ROOT=$TDX_CACHE/root
TDX_BOCHS=$TDX_CACHE/bochs
TDX_LINUX=$TDX_CACHE/linux
TDX_OUT=$TDX_TOP/build
TDX_JOBS=${TDX_MIRROR_JOBS:-$(($(nproc) + 1))}
# Which kernel, see scripts/setup; and what scripts/build makes for it.
TDX_FLAVOUR=${TDX_FLAVOUR:-debug}
TDX_BUILT=$TDX_OUT
[ "$TDX_FLAVOUR" = debug ] || TDX_BUILT=$TDX_OUT/$TDX_FLAVOUR
export TDX_TOP TDX_CACHE TDX_ROOT TDX_BOCHS TDX_LINUX TDX_OUT TDX_JOBS TDX_FLAVOUR TDX_BUILT

# The folder where the kernel of a flavour is built.
kernel_build()
{
	case $1 in
	debug) echo "$TDX_LINUX/build" ;;
	*) echo "$TDX_LINUX/build-$1" ;;
	esac
}

# is_ready FLAVOUR...: a calling script has set them up and built for them, and
# says so in TDX_READY, so that nothing is looked at again, or changed while
# another part uses it.
is_ready()
{
	local flavour

	for flavour in "$@"; do
		case " ${TDX_READY:-} " in
		*" $flavour "*) ;;
		*) return 1 ;;
		esac
	done
}

say()
{
	printf 'tdx-mirror: %s\n' "$*"
}

warn()
{
	printf 'tdx-mirror: warning: %s\n' "$*" >&2
}

# die WHAT [WHAT TO DO]
die()
{
	printf 'tdx-mirror: error: %s\n' "$1" >&2
	[ $# -lt 2 ] || printf 'tdx-mirror: what to do: %s\n' "$2" >&2
	exit 1
}

# A key over the content of files and further words.
content_key()
{
	local arg

	for arg in "$@"; do
		if [ -f "$arg" ]; then
			sha256sum <"$arg"
		else
			printf '%s\n' "$arg"
		fi
	done | sha256sum | cut -c1-16
}

# Stamps are written only after a step succeeded, and atomically.
stamp_is()
{
	[ -f "$TDX_CACHE/stamp/$1" ] && [ "$(cat "$TDX_CACHE/stamp/$1")" = "$2" ]
}

stamp_set()
{
	printf '%s\n' "$2" >"$TDX_CACHE/stamp/$1.new"
	mv "$TDX_CACHE/stamp/$1.new" "$TDX_CACHE/stamp/$1"
}

stamp_get()
{
	cat "$TDX_CACHE/stamp/$1" 2>/dev/null || true
}

# step NAME 'title' 'what to do if it fails' command...
# Runs a command with its output in a log, shows that it is alive and how long
# it took. The steps that last say something every 20 seconds.
step()
{
	local name=$1 title=$2 hint=$3 log=$TDX_CACHE/log/$1.log
	local start=$SECONDS shown=$SECONDS pid rc=0 took
	shift 3

	printf '==> %s: %s\n' "$name" "$title"
	("$@") >"$log" 2>&1 </dev/null &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		if [ $((SECONDS - shown)) -ge 20 ]; then
			shown=$SECONDS
			printf '    %s: %d s: %s\n' "$name" $((SECONDS - start)) \
				"$(tail -n 1 "$log" | tr -cd '[:print:]' | sed 's/^ *//' | cut -c1-70)"
		fi
	done
	wait "$pid" || rc=$?
	took=$((SECONDS - start))
	if [ "$rc" != 0 ]; then
		tail -n 25 "$log" | sed 's/^/    | /' >&2
		printf 'tdx-mirror: log: %s\n' "$log" >&2
		die "step $name failed with status $rc after $took s" "$hint"
	fi
	[ "$took" -lt 2 ] || printf '    %s: done in %d s\n' "$name" "$took"
}

# The authorities of a proxy that this machine may stand behind. The tool root has the file
# only after its packages are there, which is in the middle of the very first session.
mount_authorities()
{
	local file=/etc/ssl/certs/ca-certificates.crt

	[ -e "$file" ] && [ -e "$TDX_ROOT$file" ] || return 0
	cmp -s "$file" "$TDX_ROOT$file" || mount --bind "$file" "$TDX_ROOT$file"
}

# Put what a command in the tool root needs under it. Only inside a session:
# the mounts are in its own mount namespace and go when it ends.
mount_root()
{
	local dir

	[ -n "${TDX_SESSION:-}" ] || die "the tool root is used outside a session" "start it through make"
	mount_authorities
	mountpoint -q "$TDX_ROOT/proc" && return
	mount -t proc proc "$TDX_ROOT/proc"
	mount --rbind /sys "$TDX_ROOT/sys"
	mount --rbind /dev "$TDX_ROOT/dev"
	if [ ! -c "$TDX_ROOT/dev/pts/ptmx" ]; then
		mkdir -p "$TDX_ROOT/dev/pts"
		mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$TDX_ROOT/dev/pts"
		mount --bind "$TDX_ROOT/dev/pts/ptmx" "$TDX_ROOT/dev/ptmx"
	fi
	mount --bind "$TDX_SESSION" "$TDX_ROOT/tmp"
	for dir in "$TDX_CACHE" "$TDX_TOP"; do
		mkdir -p "$TDX_ROOT$dir"
		mount --bind "$dir" "$TDX_ROOT$dir"
	done
	# The network as this machine sees it.
	[ ! -e /etc/resolv.conf ] || cp -L /etc/resolv.conf "$TDX_ROOT/etc/resolv.conf"
}

# in_root command...: run it in the tool root, in the same folder.
in_root()
{
	mount_root
	"$TDX_TOP/scripts/in-root" "$@"
}
