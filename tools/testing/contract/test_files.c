// SPDX-License-Identifier: GPL-2.0
/* The files of a TD in debugfs, as far as the contract says something of them. */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/kthread.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <asm/pgtable_types.h>

#include "fake.h"

#define FIGURES	"/sys/kernel/debug/tdx_mirror"
/* The module has not had as many TDs before. */
#define MAX_TDS	100000
#define PAGES	1000
#define TEXT	65536

static const char * const names[] = { "stats", "map", "audit", "frozen" };

static struct file *open_at(const char *folder, const char *name, int flags)
{
	char path[96];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return filp_open(path, flags, 0);
}

static int write_to(const char *folder, const char *name, const char *text)
{
	struct file *file = open_at(folder, name, O_WRONLY);
	loff_t pos = 0;
	ssize_t ret;

	if (IS_ERR(file))
		return PTR_ERR(file);
	ret = kernel_write(file, text, strlen(text), &pos);
	filp_close(file, NULL);
	return ret < 0 ? ret : 0;
}

/* The folder of the only TD that this process has. */
static bool find_folder(char folder[64])
{
	struct file *file;
	int td;

	for (td = 1; td < MAX_TDS; td++) {
		snprintf(folder, 64, FIGURES "/%d-%d", task_tgid_nr(current), td);
		file = open_at(folder, "stats", O_RDONLY);
		if (!IS_ERR(file)) {
			filp_close(file, NULL);
			return true;
		}
	}
	return false;
}

/* All of a file, or a negative errno. */
static ssize_t read_all(const char *folder, const char *name, char *text)
{
	struct file *file = open_at(folder, name, O_RDONLY);
	ssize_t n, len = 0;
	loff_t pos = 0;

	if (IS_ERR(file))
		return PTR_ERR(file);
	do {
		n = kernel_read(file, text + len, TEXT - 1 - len, &pos);
		len += n > 0 ? n : 0;
	} while (n > 0);
	filp_close(file, NULL);
	text[len] = 0;
	return n ? n : len;
}

/* All vCPUs are out while the S-EPT is read, and again in between two chunks. */
static void test_reads_hold_vcpus(void)
{
	char folder[64], *text = kvzalloc(TEXT, GFP_KERNEL);
	struct fake *f = fake_new();
	u64 gfn;

	if (!f || !text)
		return check(false, __func__);
	for (gfn = 0; gfn < PAGES; gfn++)
		RULE(f, fake_map(f, gfn, FAKE_PFN(gfn), PG_LEVEL_4K) == TDX_MIRROR_MAP_FIXED);
	check(find_folder(folder), "the TD has a folder");
	fake_mark(f);
	check(read_all(folder, "audit", text) > 0 && strstarts(text, "nothing compared: ") &&
	      !fake_calls(f, CALL_READ), "an audit that may not read says so");
	check(!write_to(FIGURES, "read_sept", "1\n"), "the S-EPT may be read");
	f->files = true;
	check(read_all(folder, "audit", text) > 0 && !strstr(text, "nothing compared"),
	      "an audit that may does not");
	check(fake_calls(f, CALL_READ) > PAGES && fake_kicks(f) > 1 &&
	      fake_kicks(f) <= fake_calls(f, CALL_READ) / 256,
	      "each entry was read, with one kick for each chunk");
	check(!f->held && !atomic_read(&f->errors), "vCPUs are out meanwhile and in afterwards");
	fake_mark(f);
	check(read_all(folder, "map", text) > 0 && fake_calls(f, CALL_READ) == PAGES,
	      "a map reads what is mapped");
	f->files = false;
	fake_end(f, "reads of a TD's files", 0);
	check(!write_to(FIGURES, "read_sept", "0"), "the S-EPT may not be read");
	kvfree(text);
}

/* end_files() ends the files that are open as well. */
static void test_files_end(void)
{
	struct file *file[ARRAY_SIZE(names)];
	struct fake *f = fake_new();
	char folder[64], byte[2];
	bool good = true, gone = true;
	loff_t pos;
	int i;

	if (!f)
		return check(false, __func__);
	fake_map(f, 5, FAKE_PFN(5), PG_LEVEL_4K);
	check(find_folder(folder), "the TD has a folder");
	for (i = 0; i < ARRAY_SIZE(names); i++) {
		file[i] = open_at(folder, names[i], O_RDONLY);
		pos = 0;
		/* Nothing is frozen. */
		good &= !IS_ERR(file[i]) && kernel_read(file[i], byte, 1, &pos) == (i < 3);
	}
	check(good, "files are read");
	fake_end_files(f);
	for (i = 0; i < ARRAY_SIZE(names); i++) {
		if (IS_ERR(file[i]))
			continue;
		pos = i < 3;
		gone &= kernel_read(file[i], byte, 1, &pos) == -ENODEV;
		pos = 0;
		gone &= kernel_read(file[i], byte, 1, &pos) == -ENODEV;
		filp_close(file[i], NULL);
		file[i] = open_at(folder, names[i], O_RDONLY);
		gone &= PTR_ERR(file[i]) == -ENOENT;
	}
	check(gone, "and then they are not");
	check(fake_zap(f, 0, U64_MAX, true) == 1, "the mirror is there still");
	fake_end(f, "end of the files", 0);
}

struct look {
	struct file *file;
	ssize_t ret;
	bool done;
};

static int map_stuck(void *data)
{
	fake_map(data, 9, FAKE_PFN(9), PG_LEVEL_4K);
	while (!kthread_should_stop())
		schedule_timeout_interruptible(1);
	return 0;
}

static int look_frozen(void *data)
{
	struct look *look = data;
	char text[64];
	loff_t pos = 0;

	allow_signal(SIGUSR1);
	look->ret = kernel_read(look->file, text, sizeof(text), &pos);
	/* Pairs with the loads in ended_by(): what was read is there. */
	smp_store_release(&look->done, true);
	flush_signals(current);
	while (!kthread_should_stop())
		schedule_timeout_uninterruptible(1);
	return 0;
}

/* A reader of what stays frozen, who waits for seconds, is ended by @how. */
static void ended_by(const char *what, void (*how)(struct fake *f, struct task_struct *reader),
		     ssize_t want)
{
	struct task_struct *mapper, *reader = NULL;
	struct fake *f = fake_new();
	struct look look = {};
	char folder[64];

	if (!f)
		return check(false, __func__);
	fake_map(f, 8, FAKE_PFN(8), PG_LEVEL_4K);
	check(find_folder(folder) && !write_to(folder, "frozen", "10000"),
	      "ten seconds are long");
	/* Here, as a kthread has another root. */
	look.file = open_at(folder, "frozen", O_RDONLY);
	check(!IS_ERR(look.file), "what is frozen can be seen");
	if (IS_ERR(look.file))
		return;
	f->stuck = true;
	mapper = kthread_run(map_stuck, f, "stuck");
	if (!IS_ERR(mapper)) {
		/* Until the entry is frozen. */
		while (!(test_ops->walk(f->mirror, 9, &(int){}) == TDX_MIRROR_SPTE_FROZEN))
			schedule_timeout_uninterruptible(1);
		reader = kthread_run(look_frozen, &look, "frozen");
	}
	if (!IS_ERR_OR_NULL(reader)) {
		/* Until it waits. Pairs with the store in look_frozen(). */
		while (!smp_load_acquire(&look.done) &&
		       READ_ONCE(reader->__state) != TASK_INTERRUPTIBLE)
			schedule_timeout_uninterruptible(1);
		how(f, reader);
		/* As above. */
		while (!smp_load_acquire(&look.done))
			schedule_timeout_uninterruptible(1);
		kthread_stop(reader);
	}
	WRITE_ONCE(f->stuck, false);
	if (!IS_ERR(mapper))
		kthread_stop(mapper);
	filp_close(look.file, NULL);
	check(look.ret == want, what);
	fake_end(f, what, 0);
}

static void by_end(struct fake *f, struct task_struct *reader)
{
	fake_end_files(f);
}

static void by_signal(struct fake *f, struct task_struct *reader)
{
	send_sig(SIGUSR1, reader, 0);
}

void test_files(void)
{
	test_reads_hold_vcpus();
	test_files_end();
	ended_by("the TD's end ends a reader that waits", by_end, -ENODEV);
	ended_by("a signal ends a reader that waits", by_signal, -ERESTARTSYS);
}
