/* SPDX-License-Identifier: GPL-2.0 */
/* SHA-384 (FIPS 180-4), for the measurement of a TD. */
#ifndef TDX_MIRROR_SHA384_H
#define TDX_MIRROR_SHA384_H

#include <linux/types.h>
#include <stddef.h>

#define SHA384_SIZE	48
#define SHA384_BLOCK	128

struct sha384 {
	__u64 state[8];
	__u64 bytes;
	__u8 block[SHA384_BLOCK];
};

void sha384_init(struct sha384 *ctx);
void sha384_update(struct sha384 *ctx, const void *data, size_t len);
void sha384_final(struct sha384 *ctx, __u8 digest[SHA384_SIZE]);

#endif /* TDX_MIRROR_SHA384_H */
