// SPDX-License-Identifier: GPL-2.0
/*
 * For a Linux that runs as a TD: convert memory to shared and back, again and
 * again, and check what the conversions did to the content.
 *
 * insmod tdx_share.ko rounds=N order=O blocks=B
 *
 * Each round converts B blocks of 2^O pages and back. The load fails with -EIO
 * if the content of a page is not what it must be, with the error of
 * set_memory_decrypted() or set_memory_encrypted() if a conversion fails, and
 * with -ENOMEM without memory. Pages whose state is not known after such a
 * failure are never given back to the allocator. When all rounds are good, the
 * module stays loaded and has done nothing else.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/set_memory.h>
#include <linux/slab.h>

#define BLOCKS_MAX 256
#define WORDS_PER_PAGE (PAGE_SIZE / sizeof(u64))

static unsigned int rounds = 16;
module_param(rounds, uint, 0444);
MODULE_PARM_DESC(rounds, "how often the blocks are converted and back (default 16)");

static unsigned int order;
module_param(order, uint, 0444);
MODULE_PARM_DESC(order, "a block has 2^order pages, 0..9 (default 0)");

static unsigned int blocks = 4;
module_param(blocks, uint, 0444);
MODULE_PARM_DESC(blocks, "number of blocks, 1..256 (default 4)");

/* A word that is never zero and differs between pages, rounds and states. */
static u64 pattern(void *page, unsigned int round, u64 state)
{
	return (virt_to_phys(page) << 16 | (u64)round << 4 | state) ^ 0x5a5a5a5a00000000ULL;
}

static void fill(void *block, unsigned int round, u64 state)
{
	unsigned int page, word;

	for (page = 0; page < 1U << order; page++) {
		u64 *words = block + page * PAGE_SIZE;
		u64 value = pattern(words, round, state);

		for (word = 0; word < WORDS_PER_PAGE; word++)
			WRITE_ONCE(words[word], value);
	}
}

/* How many words of the block are the ones that fill() wrote. */
static unsigned int matching(void *block, unsigned int round, u64 state)
{
	unsigned int page, word, found = 0;

	for (page = 0; page < 1U << order; page++) {
		u64 *words = block + page * PAGE_SIZE;
		u64 value = pattern(words, round, state);

		for (word = 0; word < WORDS_PER_PAGE; word++)
			found += READ_ONCE(words[word]) == value;
	}
	return found;
}

static unsigned int not_zero(const void *block)
{
	const u64 *words = block;
	unsigned int word, found = 0;

	for (word = 0; word < WORDS_PER_PAGE << order; word++)
		found += READ_ONCE(words[word]) != 0;
	return found;
}

static int wrong(void *block, unsigned int round, unsigned int words, const char *what)
{
	pr_err("page %#llx, round %u: %u words %s\n", (u64)virt_to_phys(block), round, words, what);
	return -EIO;
}

enum { PRIVATE = 1, SHARED = 2, PRIVATE_AGAIN = 3 };

/*
 * One block, to shared and back. *known says whether the block is private at
 * the end, which a failed conversion leaves open.
 */
static int convert(void *block, unsigned int round, bool *known)
{
	const unsigned int all = WORDS_PER_PAGE << order;
	unsigned int found;
	int ret;

	fill(block, round, PRIVATE);

	*known = false;
	ret = set_memory_decrypted((unsigned long)block, 1 << order);
	if (ret) {
		pr_err("page %#llx, round %u: set_memory_decrypted: %d\n",
		       (u64)virt_to_phys(block), round, ret);
		return ret;
	}
	/* What the TD wrote into private memory must not be seen in shared memory. */
	found = matching(block, round, PRIVATE);
	if (found)
		ret = wrong(block, round, found, "of private memory are visible in shared memory");
	fill(block, round, SHARED);
	found = matching(block, round, SHARED);
	if (found != all)
		ret = wrong(block, round, all - found, "of shared memory are not what was written");

	if (set_memory_encrypted((unsigned long)block, 1 << order)) {
		pr_err("page %#llx, round %u: set_memory_encrypted failed\n",
		       (u64)virt_to_phys(block), round);
		return ret ?: -EIO;
	}
	*known = true;
	/* TDG.MEM.PAGE.ACCEPT clears the page. */
	found = not_zero(block);
	if (found)
		ret = wrong(block, round, found, "of a page just accepted are not zero");
	fill(block, round, PRIVATE_AGAIN);
	found = matching(block, round, PRIVATE_AGAIN);
	if (found != all)
		ret = wrong(block, round, all - found, "of accepted memory are not as written");
	return ret;
}

static int run(void **block, bool *known)
{
	unsigned int round, i;
	int ret;

	for (round = 0; round < rounds; round++) {
		for (i = 0; i < blocks; i++) {
			ret = convert(block[i], round, &known[i]);
			if (ret)
				return ret;
		}
		cond_resched();
	}
	return 0;
}

static int __init tdx_share_init(void)
{
	bool known[BLOCKS_MAX];
	unsigned int i, lost = 0;
	void **block;
	int ret = -ENOMEM;

	if (order > 9 || !blocks || blocks > BLOCKS_MAX) {
		pr_err("order is not in 0..9, or blocks not in 1..%u\n", BLOCKS_MAX);
		return -EINVAL;
	}
	block = kcalloc(blocks, sizeof(*block), GFP_KERNEL);
	if (!block)
		return ret;
	for (i = 0; i < blocks; i++) {
		known[i] = true;
		block[i] = (void *)__get_free_pages(GFP_KERNEL, order);
		if (!block[i])
			goto out;
	}
	ret = run(block, known);
	if (!ret)
		pr_info("%u conversions of %u pages to shared and back are good\n",
			rounds * blocks, 1U << order);
out:
	for (i = 0; i < blocks && block[i]; i++) {
		if (known[i])
			free_pages((unsigned long)block[i], order);
		else
			lost += 1U << order;
	}
	if (lost)
		pr_err("%u pages are lost, their state is not known\n", lost);
	kfree(block);
	return ret;
}
module_init(tdx_share_init);

static void __exit tdx_share_exit(void)
{
}
module_exit(tdx_share_exit);

MODULE_DESCRIPTION("Conversions of a TD's memory between private and shared");
MODULE_LICENSE("GPL");
