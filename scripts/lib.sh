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
# A session says which, see scripts/session.
[ -n "${TDX_SESSION:-}" ] && [ -n "${TDX_OUT:-}" ] || TDX_OUT=$TDX_TOP/build
# Where the output of steps is kept; those that change the cache keep it there.
TDX_LOG=$TDX_OUT/log
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

# Locks of the cache, open in every process of a session, so that they last as
# long as it does. Each is held by all who use something and by nobody who changes
# it, or by the one who changes it:
#   cache     tool root, Bochs, the source of the kernels with its patches
#   FLAVOUR   the kernel of that flavour
# They are taken in this order, `cache` for writing without any of the others.
# shellcheck disable=SC2034 # for scripts/setup
tdx_locks=(cache debug plain kasan kcsan guest stock)
declare -A tdx_lock_fd=([cache]=9 [debug]=8 [plain]=7 [kasan]=6 [kcsan]=5 [guest]=4 [stock]=13)

open_locks()
{
	exec 9>>"$TDX_CACHE/lock" 8>>"$TDX_CACHE/lock.debug" 7>>"$TDX_CACHE/lock.plain" 6>>"$TDX_CACHE/lock.kasan" \
		5>>"$TDX_CACHE/lock.kcsan" 4>>"$TDX_CACHE/lock.guest" 13>>"$TDX_CACHE/lock.stock"
}

# run_lives FOLDER: whether the run whose folder it is goes on: it has .run locked.
run_lives()
{
	[ -f "$1/.run" ] && ! flock --nonblock --shared "$1/.run" true 2>/dev/null
}

# The other runs that have a lock, each as it calls itself.
users_of()
{
	local dir found=''

	for dir in "$TDX_CACHE"/tmp/run.*; do
		if [ "$dir" != "${TDX_SESSION:-}" ] && [ -e "$dir/.lock.$1" ] && run_lives "$dir"; then
			found+="${found:+, }$(cat "$dir/.run")"
		fi
	done
	printf '%s' "${found:-another run}"
}

# lock_shared LOCK WHY, lock_alone LOCK WHY: takes a lock, and says at once whom it
# has to wait for. One that is held already is converted: what it guards may have
# changed in between.
lock_shared()
{
	take_lock shared "$@"
}

lock_alone()
{
	take_lock exclusive "$@"
}

take_lock()
{
	local how=$1 lock=$2 why=$3

	if ! flock --nonblock "--$how" "${tdx_lock_fd[$lock]}"; then
		say "waiting for $(users_of "$lock"): $why"
		flock "--$how" "${tdx_lock_fd[$lock]}"
	fi
	[ -z "${TDX_SESSION:-}" ] || : >"$TDX_SESSION/.lock.$lock"
}

drop_lock()
{
	flock --unlock "${tdx_lock_fd[$1]}"
	rm -f "$TDX_SESSION/.lock.$1"
}

# one_at_a_time NAME command...: for what several runs may use, and one at a time changes.
one_at_a_time()
{
	local lock=$TDX_CACHE/lock.one-$1
	shift

	(
		exec 3>>"$lock"
		if ! flock --nonblock 3; then
			say "waiting for $(cat "$lock")"
			flock 3
		fi
		cat "$TDX_SESSION/.run" >"$lock"
		"$@" 3>&-
	)
}

# step NAME 'title' 'what to do if it fails' command...
# Runs a command with its output in a log, shows that it is alive and how long
# it took. The steps that last say something every 20 seconds.
step()
{
	local name=$1 title=$2 hint=$3 log=$TDX_LOG/$1.log
	local start=$SECONDS shown=$SECONDS pid rc=0 took
	shift 3

	mkdir -p "$TDX_LOG"
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
	if [ -e /etc/resolv.conf ] && ! cmp -s /etc/resolv.conf "$TDX_ROOT/etc/resolv.conf"; then
		cp -L /etc/resolv.conf "$TDX_ROOT/etc/resolv.conf.$$"
		mv "$TDX_ROOT/etc/resolv.conf.$$" "$TDX_ROOT/etc/resolv.conf"
	fi
}

# in_root command...: run it in the tool root, in the same folder.
in_root()
{
	mount_root
	"$TDX_TOP/scripts/in-root" "$@"
}
