/* SPDX-License-Identifier: GPL-2.0 */
/* Code for the vCPUs of the test device's TDs, and the memory that they share. */
#ifndef TDX_MIRROR_TESTDEV_CODE_H
#define TDX_MIRROR_TESTDEV_CODE_H

#include <stddef.h>
#include <stdint.h>

#define PAGE		4096UL

/* GFNs of the RAM: the code, then the data that everybody fights for. */
#define CODE_PAGES	16UL
#define DATA_GFN	CODE_PAGES
#define DATA_PAGES	16UL
#define RAM_PAGES	(DATA_GFN + DATA_PAGES)
#define RESET_OFFSET	0xff0

#define VCPUS		2
#define OPS		192	/* operations of a vCPU in one round */

/* Operations and registers of the interpreter, tdx_emu/module/interp.rs. */
enum opcode {
	MOVI = 1, MOV, ADDI, LOAD, STORE, JMP, JEQ, JNE, SETVE, RETVE, VERIP, FAULT = 13,
};

enum reg { RAX, RCX, RDX, RBX, RBP = 5, RSI, R8 = 8, R9, R10, R11, R12, R13, R14 };

struct code {
	uint8_t bytes[CODE_PAGES * PAGE];
	size_t len;
};

struct rng {
	uint64_t state;
};

static inline uint64_t below(struct rng *r, uint64_t n)
{
	r->state = r->state * 6364136223846793005ULL + 1442695040888963407ULL;
	return (r->state >> 33) % n;
}

/*
 * Every vCPU repeats a sequence of its own, which @seed chooses: it accepts pages
 * of DATA_GFN.., writes and reads them, and reports a value that is not its TD's.
 */
void random_program(struct code *c, uint64_t seed);

/* One TDCALL after the other, for ever. */
void endless_program(struct code *c);

#endif
