# SPDX-License-Identifier: GPL-2.0
# Entry points; the work is done by scripts/. Kbuild holds the module's rules.
#
## Start
# make run           an emulated TDX host, a TD on the Rust mirror and on KVM's own
# make boot-linux    Linux as a TD on the emulated host; MIRROR=rust|c|both CPUS= MEMORY= CMD= HELP=1
# make boot-qemu     QEMU and OVMF build and run a TD there; MIRROR=rust|c|both LINUX=1 HELP=1
# make vm            a boot of the emulated host: CMD='shell commands'
## Test
# make test          every test; the last line says how many passed and failed; PARTS='selftests kunit'
# make test-all      the same, and what takes too long for every change: the debug kernels, more fuzzing
# make host-test     the tests that run on this machine (cargo)
# make selftests     the kselftests on the emulated host in both modes, then testdev; TESTS='kill9'; LONG=1: more often, TD of 1 GiB
# make unpatched     KVM's own mirror against a KVM without the patches, call by call
# make failnth       each SEAMCALL and each allocation of a TD's life fails; QUICK=1: a part
# make testdev       the test device: mirror and software TDX module without KVM
# make contract      the C contract's test module, on an emulated PC
# make kunit         the unit tests of the mirror inside a kernel
# make planted       bugs planted into the module, each of which a test must find
# make mutants       does a test fail for each small change of the mirror's code; FILES='tdx_mirror/sept.rs ...'
# make loom          the mirror's source under every interleaving, to 2 preemptions
# make soak          10^7 random operations, mirror against S-EPT and oracle
# make replay        recorded calls of the TDX module against tdx_emu/module; TRACES='a.jsonl.gz ...'
# make fuzz          random calls of the test device and of KVM; SEED=, OPS=, SECONDS_MAX=, REPLAY=
# make sanitize      contract, test device, KUnit and fuzzing with lockdep, and that the kernel finds planted bugs
# make kasan         the same with a kernel that has KASAN, kCFI and kmemleak too
# make kcsan         the same with KCSAN and UBSAN
# make watchdog      a run that hangs is cut, with a dump
# make trace         trace-cmd, perf and bpftrace watch TDs, and agree with the figures
# make check         formatting, lints, layers, unsafe, panics, patches
## Look
# make requirements  each requirement with its tests; fails when one has none
# make stat          build tools/tdx-mirror-stat (build/stat), and try it in an emulated PC
# make bench         KVM's own mirror against tdx_mirror on the emulated host: table, json, plots
# make bench-host    nanoseconds of the mirror's operations, on this machine
# make bench-emu     calls per second of each leaf of tdx_emu/module, on one thread
## Build
# make modules       the modules; KDIR=<built kernel tree> for your own kernel, MO=<folder> for the result
# make in-tree       tdx_mirror/ as a part of a kernel tree: a copy of the cached one, two lines added, built
# make setup         only the tools, Bochs and the kernel
# make clean         remove build/ (the cache stays)

.DEFAULT_GOAL := help
.PHONY: help run boot-linux boot-qemu test test-all sanitize kasan kcsan fuzz watchdog selftests contract testdev stat kunit host-test loom soak replay bench bench-host bench-emu mutants requirements check modules in-tree vm setup clean failnth unpatched planted trace

# Other runs are told the target.
SESSION = TDX_RUN='make $@' scripts/session

help:
	@sed -n -e 's/^## \(.*\)/\n\1/p' -e 's/^# make /  make /p' $(firstword $(MAKEFILE_LIST)) | tail -n +2
	@echo
	@echo 'TDX_MIRROR_CACHE=<folder>  where tools and kernel are kept (default: ~/.cache/tdx-mirror)'
	@echo 'TDX_MIRROR_JOBS=<n>        parallel jobs of builds (default: CPUs + 1)'

run:
	@$(SESSION) scripts/run

# MIRROR, CPUS, MEMORY, CMD and the like come through the environment.
boot-linux:
	@$(SESSION) scripts/boot-linux $(if $(HELP),--help)

boot-qemu:
	@$(SESSION) scripts/boot-qemu $(if $(HELP),--help)

test:
	@$(SESSION) scripts/test $(PARTS)

test-all:
	@$(SESSION) scripts/test all

selftests:
	@$(SESSION) scripts/selftests $(if $(LONG),--long,$(TESTS))
	$(if $(LONG)$(TESTS),,@$(SESSION) scripts/testdev)

failnth:
	@$(SESSION) scripts/failnth $(if $(QUICK),--quick)

unpatched:
	@$(SESSION) scripts/unpatched

planted:
	@$(SESSION) scripts/planted $(BUGS)

contract:
	@$(SESSION) scripts/contract

testdev:
	@$(SESSION) scripts/testdev

stat:
	@$(SESSION) scripts/stat

kunit:
	@$(SESSION) scripts/kunit

sanitize:
	@$(SESSION) scripts/sanitize debug 20

kasan:
	@$(SESSION) scripts/sanitize kasan

kcsan:
	@$(SESSION) scripts/sanitize kcsan

fuzz:
	@$(SESSION) scripts/fuzz $(TARGETS)

watchdog:
	@$(SESSION) scripts/watchdog

trace:
	@$(SESSION) scripts/trace

host-test:
	@$(SESSION) scripts/host-test

loom:
	@$(SESSION) scripts/loom $(TESTS)

# A relative path is one from where make was started.
replay:
	@TDX_CALLER='$(PWD)' $(SESSION) scripts/replay $(TRACES)

bench:
	@$(SESSION) scripts/bench $(WORKLOADS)

bench-host:
	@$(SESSION) scripts/bench-host

bench-emu:
	@$(SESSION) scripts/bench-emu

mutants:
	@$(SESSION) scripts/mutants $(FILES)

requirements:
	@if command -v python3 >/dev/null; then scripts/check --requirements; \
	else $(SESSION) scripts/run-check --requirements; fi

soak:
	@$(SESSION) scripts/soak

check:
	@$(SESSION) scripts/run-check $(CHECKS)

modules:
ifeq ($(KDIR),)
	@$(SESSION) sh -c 'scripts/setup && scripts/build modules'
else
	@scripts/modules '$(KDIR)'
endif

in-tree:
	@$(SESSION) scripts/in-tree

vm:
	@$(SESSION) scripts/vm '$(CMD)'

setup:
	@$(SESSION) scripts/setup

clean:
	rm -rf build
