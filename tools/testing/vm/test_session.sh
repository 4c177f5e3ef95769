#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Tests of scripts/session and the locks of scripts/lib.sh: what runs beside what,
# who is named, and what a killed run leaves. With a cache and a checkout of their
# own, which hold nothing else. The last line counts.
# usage: test_session.sh            (as root)
# shellcheck disable=SC2016 # what is in single quotes is for the session's shell
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd -P)
dir=$(mktemp -d "${TMPDIR:-/tmp}/test-session.XXXXXX")
top=$dir/top
mkdir -p "$top/scripts"
cp "$here"/scripts/{session,lib.sh} "$top/scripts/"
export TDX_MIRROR_CACHE=$dir/cache
unset TDX_SESSION TDX_OUT
passed=0 failed=0

# shellcheck disable=SC2317,SC2329 # called by the trap
clean_up()
{
	local job

	for job in $(jobs -p); do
		kill -KILL "$job" 2>/dev/null
	done
	rm -rf --one-file-system "$dir"
}
trap clean_up EXIT

# run NAME 'commands': a session of that name; lib.sh is there, and $dir.
run()
{
	TDX_RUN=$1 dir=$dir "$top/scripts/session" bash -c '. "$0/scripts/lib.sh"; eval "$1"' "$top" "$2"
}

# comes FILE: waits until a file is there, at most 20 seconds.
comes()
{
	local i

	for ((i = 0; i < 200; i++)); do
		[ ! -e "$1" ] || return 0
		sleep 0.1
	done
	return 1
}

# says WORDS FILE: waits until a text is in a file.
says()
{
	local i

	for ((i = 0; i < 200; i++)); do
		! grep -qF -- "$1" "$2" 2>/dev/null || return 0
		sleep 0.1
	done
	echo "# '$1' is not in: $(cat "$2" 2>/dev/null)"
	return 1
}

declare -fx comes

# judge STATUS WHAT: one line of TAP.
judge()
{
	if [ "$1" = 0 ]; then
		passed=$((passed + 1))
		echo "ok $((passed + failed)) $2"
	else
		failed=$((failed + 1))
		echo "not ok $((passed + failed)) $2"
	fi
}

two_overlap()
{
	local first second

	run one ': >"$dir/a"; comes "$dir/b"' &
	first=$!
	run two ': >"$dir/b"; comes "$dir/a"' >"$dir/two.out" &
	second=$!
	wait $first && wait $second && ! grep -q waiting "$dir/two.out"
}

outputs_differ()
{
	local first rc=0

	run 'make first' 'echo "$TDX_OUT" >"$dir/o1"; : >"$dir/o"; comes "$dir/o.end"' &
	first=$!
	comes "$dir/o" && run second 'echo "$TDX_OUT" >"$dir/o2"' >"$dir/o.out" || rc=1
	: >"$dir/o.end"
	wait $first && [ "$rc" = 0 ] && [ "$(cat "$dir/o1")" = "$top/build" ] &&
		[ "$(cat "$dir/o2")" = "$top/build/beside-2" ] && says 'build/ is used by make first (process ' "$dir/o.out"
}

change_waits()
{
	local first second rc=1

	run 'make first' 'lock_shared debug x; : >"$dir/c"; comes "$dir/c.end"' &
	first=$!
	comes "$dir/c" || return
	run second 'lock_alone cache "the tool root changes"; : >"$dir/c.alone"' >"$dir/c.out" &
	second=$!
	says "waiting for make first (process " "$dir/c.out" && says "the tool root changes" "$dir/c.out" &&
		[ ! -e "$dir/c.alone" ] && rc=0
	: >"$dir/c.end"
	wait $first && wait $second && [ "$rc" = 0 ] && [ -e "$dir/c.alone" ]
}

start_waits()
{
	local first second rc=1

	run 'make changes' 'lock_alone cache x; : >"$dir/s"; comes "$dir/s.end"' &
	first=$!
	comes "$dir/s" || return
	run second ': >"$dir/s.second"' >"$dir/s.out" &
	second=$!
	says "waiting for make changes (process " "$dir/s.out" && [ ! -e "$dir/s.second" ] && rc=0
	: >"$dir/s.end"
	wait $first && wait $second && [ "$rc" = 0 ] && [ -e "$dir/s.second" ]
}

kernels_apart()
{
	local first second rc=1

	run 'make first' 'lock_shared debug x; : >"$dir/k"; comes "$dir/k.end"' &
	first=$!
	comes "$dir/k" || return
	run other 'lock_alone kasan "kasan is built"' >"$dir/k.out" && ! grep -q waiting "$dir/k.out" && rc=0
	run second 'lock_shared debug x; lock_alone debug "debug is built"; : >"$dir/k.alone"' >"$dir/k2.out" &
	second=$!
	says "waiting for make first (process " "$dir/k2.out" && [ ! -e "$dir/k.alone" ] || rc=1
	: >"$dir/k.end"
	wait $first && wait $second && [ "$rc" = 0 ] && [ -e "$dir/k.alone" ]
}

one_at_a_time_waits()
{
	local first second rc=1

	run 'make first' 'one_at_a_time x bash -c ": >$dir/t; comes $dir/t.end"' &
	first=$!
	comes "$dir/t" || return
	run second 'one_at_a_time x touch "$dir/t.second"' >"$dir/t.out" &
	second=$!
	says "waiting for make first (process " "$dir/t.out" && [ ! -e "$dir/t.second" ] && rc=0
	: >"$dir/t.end"
	wait $first && wait $second && [ "$rc" = 0 ] && [ -e "$dir/t.second" ]
}

# Nothing of a killed run is left: not what it started, not its locks, not its folder.
killed_leaves_nothing()
{
	local first folder

	# Not through run(): the session itself is to be killed.
	TDX_RUN='make killed' dir=$dir "$top/scripts/session" bash -c '. "$0/scripts/lib.sh"
		lock_alone cache x; echo "$TDX_SESSION" >"$dir/folder"; : >"$dir/x"
		while :; do date +%s.%N >"$dir/alive"; sleep 0.1; done' "$top" &
	first=$!
	comes "$dir/x" || return
	folder=$(cat "$dir/folder")
	kill -KILL $first
	wait $first 2>/dev/null
	run after 'lock_alone cache "x"; : >"$dir/x.after"' >"$dir/x.out" || return
	[ -e "$dir/x.after" ] && [ ! -e "$folder" ] || return
	rm -f "$dir/alive"
	sleep 0.5
	[ ! -e "$dir/alive" ]
}

status_is_kept()
{
	run one 'exit 7'
	[ $? = 7 ] && [ -z "$(ls -d "$TDX_MIRROR_CACHE"/tmp/run.* 2>/dev/null)" ]
}

for name in two_overlap outputs_differ change_waits start_waits kernels_apart one_at_a_time_waits \
	killed_leaves_nothing status_is_kept; do
	status=0
	"$name" || status=$?
	judge "$status" "$name"
done
echo "session: $passed passed, $failed failed"
[ "$failed" = 0 ]
