// SPDX-License-Identifier: GPL-2.0
/*
 * Fuzzes /dev/tdx_mirror_test: the mirror of tdx_mirror.ko over the software TDX
 * module, without KVM.  Two open files, a TD each, are used by all threads; calls
 * come in and out of order, with good and bad arguments, while vCPUs run.  Each
 * answer must be one that the interface documents, and when all is quiet the
 * mirror, the S-EPT and their figures must agree; at the end nothing is left.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/tdx_mirror_test.h>

#include "fuzz.h"

#define DEVICE "/dev/tdx_mirror_test"
#define PAGE 4096UL
#define FILES 2
#define MAX_PAGES 40
#define CODE_PAGES 2
#define RESET_OFFSET 0xff0

enum { CREATE, BUILD, FINALIZE, MAP, ZAP, RUN, STATS, DESTROY, OTHER, NR_KINDS };

static const char *const kinds[NR_KINDS] = {
	"create", "build", "finalize", "map", "zap", "run", "stats", "destroy", "other",
};

/* Operations and registers of the interpreter, tdx_emu/module/interp.rs. */
enum { MOVI = 1, MOV, LOAD = 4, STORE, JMP, SETVE = 9, RETVE, VERIP };
enum { RAX, RCX, RDX, R9 = 9, R10, R11, R14 = 14 };

static int files[FILES] = { -1, -1 };
static struct tdx_test_stats before;
static __u8 code[CODE_PAGES * PAGE], reset_page[PAGE], zero_page[PAGE];

static size_t put(size_t at, int op, int a, int b, __u64 imm, bool has_imm)
{
	const __u8 head[4] = { op, a, b };

	memcpy(code + at, head, sizeof(head));
	if (has_imm)
		memcpy(code + at + 4, &imm, sizeof(imm));
	return at + (has_imm ? 12 : 4);
}

static size_t tdcall(size_t at, __u64 leaf)
{
	at = put(at, MOVI, RAX, 0, leaf, true);
	memcpy(code + at, "\x66\x0f\x01\xcc", 4);
	return at + 4;
}

/*
 * Every vCPU stores to all pages behind the code, reports, and begins again; its
 * #VE handler accepts.
 */
static void program(void)
{
	size_t at = put(0, SETVE, 0, 0, 0, true), loop = at, handler;
	__u64 gfn;

	for (gfn = CODE_PAGES; gfn < CODE_PAGES + 14; gfn++) {
		at = put(at, MOVI, R14, 0, gfn * PAGE, true);
		at = put(at, STORE, R14, R14, 0, true);
	}
	at = put(at, MOVI, RCX, 0, 0xfc00, true);
	at = put(at, MOVI, R10, 0, 0, true);
	at = put(at, MOVI, R11, 0, TDX_TEST_VMCALL_ROUND, true);
	at = tdcall(at, 0);
	at = put(at, JMP, 0, 0, loop, true);
	handler = at;
	at = tdcall(at, 3);
	at = put(at, MOV, RCX, R9, 0, false);
	at = tdcall(at, 6);
	at = put(at, VERIP, RDX, 0, 0, false);
	put(at, RETVE, RDX, 0, 0, true);
	memcpy(code + 4, &handler, sizeof(handler));
	/* An immediate of zero: the program begins at GPA 0. */
	reset_page[RESET_OFFSET] = JMP;
}

/* A GFN and a number of pages: mostly inside, sometimes at an edge or absurd. */
static void make_range(struct fuzz_rng *rng, __u64 *gfn, __u64 *nr)
{
	static const __u64 odd[] = { 0,
				     1,
				     TDX_TEST_RESET_GFN,
				     TDX_TEST_RESET_GFN - 1,
				     TDX_TEST_RESET_GFN + 1,
				     TDX_TEST_MAX_PAGES,
				     1ull << 35,
				     1ull << 52,
				     ~0ull,
				     ~0ull - 1,
				     MAX_PAGES };
	const __u64 nr_odd = ARRAY_SIZE(odd);

	*gfn = fuzz_below(rng, MAX_PAGES);
	*nr = 1 + fuzz_below(rng, fuzz_below(rng, 3) ? 4 : MAX_PAGES);
	if (!fuzz_below(rng, 12))
		*gfn = odd[fuzz_below(rng, nr_odd)];
	if (!fuzz_below(rng, 12))
		*nr = odd[fuzz_below(rng, nr_odd)];
}

/* arg[0]: file, and above bit 8 a variant; arg[1], arg[2]: as the call says. */
static void make(struct fuzz_rng *rng, unsigned int index, struct fuzz_op *op)
{
	static const __u8 weights[NR_KINDS] = { 3, 5, 3, 30, 22, 10, 8, 2, 2 };
	/* Most episodes begin with TDs that can run, built by one thread. */
	static const __u8 prefix[] = { CREATE, BUILD, BUILD, FINALIZE };
	__u64 pick = fuzz_below(rng, 85);
	bool bad = !fuzz_below(rng, 10);

	memset(op->arg, 0, sizeof(op->arg));
	if (index < sizeof(prefix) * FILES && fuzz_below(rng, 20)) {
		op->thread = 0;
		op->kind = prefix[index % sizeof(prefix)];
		op->arg[0] = index / sizeof(prefix);
		if (op->kind == CREATE) {
			op->arg[1] = 20 + fuzz_below(rng, MAX_PAGES - 20);
			op->arg[2] = 1 + fuzz_below(rng, 2);
		} else if (op->kind == BUILD) {
			op->arg[1] = index & 1 ? 0 : TDX_TEST_RESET_GFN;
			op->arg[2] = index & 1 ? CODE_PAGES : 1;
		}
		return;
	}
	for (op->kind = 0; pick >= weights[op->kind]; op->kind++)
		pick -= weights[op->kind];
	op->arg[0] = fuzz_below(rng, FILES) | (bad ? (1 + fuzz_below(rng, 2)) << 8 : 0);
	switch (op->kind) {
	case CREATE:
		op->arg[1] = fuzz_below(rng, bad ? 1200 : MAX_PAGES + 1);
		op->arg[2] = fuzz_below(rng, TDX_TEST_MAX_VCPUS + 2);
		break;
	case RUN:
		op->arg[1] = fuzz_below(rng, 4);
		break;
	case OTHER:
		op->arg[1] = fuzz_below(rng, 512);
		break;
	default:
		make_range(rng, &op->arg[1], &op->arg[2]);
	}
}

static const char *begin(__u64 variant)
{
	int i;

	for (i = 0; i < FILES; i++) {
		files[i] = open(DEVICE, O_RDWR);
		if (files[i] < 0)
			return fuzz_say(DEVICE ": %s", strerror(errno));
	}
	if (ioctl(files[0], TDX_TEST_STATS, &before))
		return fuzz_say("statistics: %s", strerror(errno));
	return NULL;
}

/* The answer is 0 or one of @allowed, which ends with 0. */
static const char *answer(int ret, const int *allowed)
{
	static const int always[] = { ENOENT, EFAULT, EINTR, ENOMEM, EINVAL, 0 };
	int error = errno, i;

	if (!ret)
		return NULL;
	for (i = 0; always[i]; i++)
		if (error == always[i])
			return NULL;
	for (i = 0; allowed[i]; i++)
		if (error == allowed[i])
			return NULL;
	return fuzz_say("error %d, %s, is not documented for it", error, strerror(error));
}

static const char *run_vcpus(int fd, const struct fuzz_op *op, void *bad)
{
	struct tdx_test_run run = { .rounds = op->arg[1] };
	int ret = ioctl(fd, TDX_TEST_RUN, bad ?: &run);
	const char *wrong = answer(ret, (const int[]){ EBUSY, EPROTO, 0 });

	if (!wrong && !bad && run.bad)
		return fuzz_say("%llu calls of a guest report wrong memory", run.bad);
	return wrong;
}

static const char *range(int fd, const struct fuzz_op *op, void *bad)
{
	struct tdx_test_range r = { .gfn = op->arg[1], .nr = op->arg[2] };
	int ret = ioctl(fd, op->kind == MAP ? TDX_TEST_MAP : TDX_TEST_ZAP, bad ?: &r);
	const char *wrong = answer(ret, (const int[]){ EBUSY, op->kind == MAP ? EAGAIN : 0, 0 });

	if (!wrong && !ret && r.changed > r.nr)
		return fuzz_say("%llu of %llu pages changed", r.changed, r.nr);
	return wrong;
}

static const char *run(const struct fuzz_op *op)
{
	int fd = files[op->arg[0] % FILES];
	/* An argument that is not there, or that ends at an unmapped page. */
	void *bad = op->arg[0] >> 8 ? (void *)(op->arg[0] >> 8 == 1 ? 8ul : ~0ul - 64) : NULL;

	switch (op->kind) {
	case CREATE: {
		struct tdx_test_create c = { op->arg[1], op->arg[2] };

		return answer(ioctl(fd, TDX_TEST_CREATE, bad ?: &c),
			      (const int[]){ EEXIST, ENOSPC, 0 });
	}
	case BUILD: {
		struct tdx_test_build b = { op->arg[1], op->arg[2], (unsigned long)zero_page };

		if (b.gfn == TDX_TEST_RESET_GFN)
			b.source = (unsigned long)reset_page;
		else if (b.gfn == 0 && b.nr <= CODE_PAGES)
			b.source = (unsigned long)code;
		else if (b.nr != 1)
			b.source = 4096; /* nothing is mapped there */
		return answer(ioctl(fd, TDX_TEST_BUILD, bad ?: &b),
			      (const int[]){ EBUSY, EEXIST, 0 });
	}
	case FINALIZE:
		return answer(ioctl(fd, TDX_TEST_FINALIZE), (const int[]){ EBUSY, 0 });
	case MAP:
	case ZAP:
		return range(fd, op, bad);
	case RUN:
		return run_vcpus(fd, op, bad);
	case STATS: {
		struct tdx_test_stats s;

		return answer(ioctl(fd, TDX_TEST_STATS, bad ?: &s), (const int[]){ 0 });
	}
	case DESTROY:
		return answer(ioctl(fd, TDX_TEST_DESTROY), (const int[]){ 0 });
	default:
		return answer(ioctl(fd, _IO('T', op->arg[1] & 0xff), bad),
			      (const int[]){ ENOTTY, EBUSY, EEXIST, 0 });
	}
}

/* Both sides of one TD, while nothing runs. */
static const char *agree(int file)
{
	struct tdx_test_stats s;

	if (ioctl(files[file], TDX_TEST_STATS, &s))
		return fuzz_say("TD %d: statistics: %s", file, strerror(errno));
	if (s.audit || s.quarantined || s.leaked || s.emu_errors != before.emu_errors)
		return fuzz_say("TD %d: audit %llu, quarantined %llu, leaked %llu, errors %llu",
				file, s.audit, s.quarantined, s.leaked, s.emu_errors);
	if (s.lost != before.lost)
		return fuzz_say("TD %d: %llu pages lost", file, s.lost);
	if (s.leaf_transitions != s.set_ok || s.mapped != s.leaf_transitions ||
	    s.present != s.mapped - s.zapped)
		return fuzz_say("TD %d: present %llu, set %llu, mapped %llu, zapped %llu, now %llu",
				file, s.leaf_transitions, s.set_ok, s.mapped, s.zapped, s.present);
	return NULL;
}

static const char *end(void)
{
	struct tdx_test_stats s;
	const char *wrong = NULL;
	int i, fd;

	for (i = 0; i < FILES; i++) {
		wrong = wrong ?: agree(i);
		close(files[i]);
	}
	fd = open(DEVICE, O_RDWR);
	if (fd < 0 || ioctl(fd, TDX_TEST_STATS, &s))
		return wrong ?: fuzz_say(DEVICE ": %s", strerror(errno));
	close(fd);
	if (!wrong && (s.emu_owned || s.lost != before.lost ||
		       s.emu_present - before.emu_present != s.emu_removed - before.emu_removed))
		wrong = fuzz_say("no TD: %llu owned, %llu lost, %llu to present, %llu removed",
				 s.emu_owned, s.lost, s.emu_present - before.emu_present,
				 s.emu_removed - before.emu_removed);
	return wrong;
}

int main(int argc, char **argv)
{
	static const struct fuzz_target target = {
		.name = "testdev",
		.kinds = kinds,
		.nr_kinds = ARRAY_SIZE(kinds),
		.make = make,
		.begin = begin,
		.run = run,
		.end = end,
	};

	program();
	return fuzz_main(argc, argv, &target);
}
