#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=dash
# Inside a test machine with the image `tools`: trace-cmd, perf and bpftrace all
# watch the same TDs, those of the contract's test module and of the test
# device. What they saw, and the figures, are in /out afterwards.
# usage: observe.sh
modules=/lib/modules-flat
folder=/sys/kernel/debug/tdx_mirror
done=/tmp/observed

# What perf and bpftrace run, as they watch for as long as that runs.
if [ "$1" = wait ]; then
	until [ -e $done ]; do
		/host/bin/busybox sleep 1
	done
	exit
fi
watch="/host/bin/busybox sh /host/tests/observe.sh wait"

say()
{
	read -r up _ </proc/uptime
	echo "trace: $up s: $*"
}

# Copies what trace-cmd saw, as text.
report()
{
	in-image trace-cmd stop && in-image trace-cmd extract -o /tmp/trace.dat &&
		in-image trace-cmd report -i /tmp/trace.dat >"/out/$1.txt" && in-image trace-cmd reset
}

say "the tools begin to watch"
insmod $modules/tdx_mirror.ko || exit
# shellcheck disable=SC2086
in-image perf stat -a -x, -o /tmp/perf.csv -e 'tdx_mirror:*' $watch >/out/perf.log 2>&1 &
in-image bpftrace -f json -c "$watch" /host/tests/watch.bt >/out/bpftrace.json 2>/out/bpftrace.log &
bpf=$!
tries=0
until grep -q watching /out/bpftrace.json; do
	sleep 1
	tries=$((tries + 1))
	if [ $tries -gt 300 ] || ! kill -0 $bpf; then
		cat /out/bpftrace.log
		exit 1
	fi
done

# What goes wrong, which the fakes of the contract's test provoke.
say "the contract's test"
in-image trace-cmd start -b 4096 -e tdx_mirror:tdx_mirror_bug -e tdx_mirror:tdx_mirror_leak \
	-e tdx_mirror:tdx_mirror_quarantine >/out/trace-cmd.log 2>&1 || exit
echo "tdx-mirror-test: warnings expected" >/dev/kmsg
insmod $modules/tdx_mirror_contract_test.ko && rmmod tdx_mirror_contract_test || exit
echo "tdx-mirror-test: no more warnings expected" >/dev/kmsg
cat $folder/stats >/out/stats.wrong
report wrong >>/out/trace-cmd.log 2>&1 || exit
echo 1 >$folder/reset

# A TD's life.
say "a TD's life"
in-image trace-cmd start -b 16384 -e tdx_mirror >>/out/trace-cmd.log 2>&1 || exit
echo 1 >$folder/timing
insmod $modules/tdx_mirror_test.ko && /tests/testdev -t life_cycle -t bad_input && rmmod tdx_mirror_test || exit
cat $folder/stats >/out/stats.life
report life >>/out/trace-cmd.log 2>&1 || exit

touch $done
wait
cp /tmp/perf.csv /out/
say "observed"
