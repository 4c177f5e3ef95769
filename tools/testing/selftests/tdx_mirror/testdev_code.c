// SPDX-License-Identifier: GPL-2.0
/* Code for the vCPUs of the test device's TDs, in the operations of tdx_emu/module/interp.rs. */
#include <string.h>

#include <linux/tdx_mirror_test.h>

#include "testdev_code.h"

/* TDCALL leaves. */
#define TDG_VP_VMCALL		0
#define TDG_VP_VEINFO_GET	3
#define TDG_MEM_PAGE_ACCEPT	6

static void put_short(struct code *c, enum opcode op, enum reg a, enum reg b)
{
	const uint8_t head[4] = { op, a, b };

	memcpy(c->bytes + c->len, head, sizeof(head));
	c->len += sizeof(head);
}

/* Returns where the immediate is. */
static size_t put(struct code *c, enum opcode op, enum reg a, enum reg b, uint64_t imm)
{
	size_t at = c->len + 4;

	put_short(c, op, a, b);
	memcpy(c->bytes + at, &imm, sizeof(imm));
	c->len += sizeof(imm);
	return at;
}

static void patch(struct code *c, size_t at, uint64_t imm)
{
	memcpy(c->bytes + at, &imm, sizeof(imm));
}

static void tdcall(struct code *c, uint64_t leaf)
{
	const uint8_t bytes[4] = { 0x66, 0x0f, 0x01, 0xcc };

	put(c, MOVI, RAX, 0, leaf);
	memcpy(c->bytes + c->len, bytes, sizeof(bytes));
	c->len += sizeof(bytes);
}

static void vmcall(struct code *c, uint64_t what)
{
	put(c, MOVI, RCX, 0, 0xfc00);
	put(c, MOVI, R10, 0, 0);
	put(c, MOVI, R11, 0, what);
	tdcall(c, TDG_VP_VMCALL);
}

/*
 * One operation on a random page: accept it, or store its address there (the
 * handler of #VE accepts where that faulted) and load that back.  The page may
 * have been taken away and given back between the two, and then is zero again;
 * any other value is not of this TD.
 */
static void operation(struct code *c, struct rng *r)
{
	uint64_t gpa = (DATA_GFN + below(r, DATA_PAGES)) * PAGE;
	size_t good, zero;

	put(c, MOVI, R14, 0, gpa);
	if (below(r, 3) == 0) {
		put(c, MOVI, RCX, 0, gpa);
		tdcall(c, TDG_MEM_PAGE_ACCEPT);
	}
	if (below(r, 2))
		put(c, STORE, R14, R14, 0);
	put(c, LOAD, R13, R14, 0);
	good = put(c, JEQ, R13, R14, 0);
	zero = put(c, JEQ, R13, RBP, 0);
	vmcall(c, TDX_TEST_VMCALL_BAD);
	put(c, MOVI, RBP, 0, 0);
	patch(c, good, c->len);
	patch(c, zero, c->len);
}

void random_program(struct code *c, uint64_t seed)
{
	size_t handler, start[VCPUS];
	int v, i;

	c->len = 0;
	handler = put(c, SETVE, 0, 0, 0);
	for (v = 0; v < VCPUS; v++) {
		put(c, MOVI, R13, 0, v);
		start[v] = put(c, JEQ, RSI, R13, 0);
	}
	put_short(c, FAULT, 0, 0);

	for (v = 0; v < VCPUS; v++) {
		struct rng rng = { seed + v };
		size_t round = c->len;

		patch(c, start[v], round);
		put(c, MOVI, RBP, 0, 0);
		for (i = 0; i < OPS; i++)
			operation(c, &rng);
		vmcall(c, TDX_TEST_VMCALL_ROUND);
		put(c, JMP, 0, 0, round);
	}

	/* #VE: a page that is not accepted.  Whoever loses the race tries again. */
	patch(c, handler, c->len);
	tdcall(c, TDG_VP_VEINFO_GET);
	put_short(c, MOV, RCX, R9);
	tdcall(c, TDG_MEM_PAGE_ACCEPT);
	put_short(c, VERIP, RDX, 0);
	put(c, RETVE, RDX, 0, 0);
}

void endless_program(struct code *c)
{
	c->len = 0;
	tdcall(c, TDG_VP_VEINFO_GET);
	put(c, JMP, 0, 0, 0);
}
