// SPDX-License-Identifier: GPL-2.0
/* What the module under test says in the kernel log. */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kmsg_dump.h>
#include <linux/string.h>

#include "fake.h"

static u64 log_from;

/* Lines from here on count. */
void log_mark(void)
{
	struct kmsg_dump_iter iter;

	kmsg_dump_rewind(&iter);
	log_from = iter.next_seq;
}

/* Lines since the mark that hold all of up to three texts; NULL for any. */
unsigned int log_lines(const char *a, const char *b, const char *c)
{
	static char line[1024];
	struct kmsg_dump_iter iter;
	unsigned int lines = 0;
	size_t len;

	kmsg_dump_rewind(&iter);
	iter.cur_seq = log_from;
	while (kmsg_dump_get_line(&iter, false, line, sizeof(line) - 1, &len)) {
		line[len] = 0;
		/* Not what this module says itself. */
		if (strstr(line, KBUILD_MODNAME))
			continue;
		lines += (!a || strstr(line, a)) && (!b || strstr(line, b)) &&
			 (!c || strstr(line, c));
	}
	return lines;
}

/* Warnings since the mark that came from @site. */
unsigned int log_warnings(const char *site)
{
	return log_lines("WARNING: ", site, NULL);
}
