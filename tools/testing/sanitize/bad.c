// SPDX-License-Identifier: GPL-2.0
/*
 * tdx_mirror_bad.ko: does, at insmod, the one thing that its parameter "what"
 * names, each of which a debug kernel must report.  Shows that a clean run of
 * the debug kernels means something.
 */

#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

#include "bad.h"

static char *what = "nothing";
module_param(what, charp, 0444);
MODULE_PARM_DESC(what, "Which bug");

#define SIZE	48
#define LEAKS	16

/* Never inlined: the report of KASAN names it. */
static noinline int read_past_end(bool rust)
{
	u8 *p = kmalloc(SIZE, GFP_KERNEL);
	u8 value;

	if (!p)
		return -ENOMEM;
	OPTIMIZER_HIDE_VAR(p);
	value = rust ? tdx_mirror_bad_rust_read(p, SIZE) : READ_ONCE(p[SIZE]);
	pr_debug("read %u\n", value);
	kfree(p);
	return 0;
}

static int past_end_c(void)
{
	return read_past_end(false);
}

static int past_end_rust(void)
{
	return read_past_end(true);
}

static int after_free_rust(void)
{
	u8 *p = kmalloc(SIZE, GFP_KERNEL);
	u8 value;

	if (!p)
		return -ENOMEM;
	kfree(p);
	OPTIMIZER_HIDE_VAR(p);
	/* Not as an argument: pr_debug() looks at none while it is off. */
	value = tdx_mirror_bad_rust_read(p, 0);
	pr_debug("read %u\n", value);
	return 0;
}

/* The only references are lost; one or another may still stand in some stack. */
static int leak(void)
{
	for (int i = 0; i < LEAKS; i++) {
		u8 *p = kmalloc(SIZE, GFP_KERNEL);

		OPTIMIZER_HIDE_VAR(p);
		if (!p)
			return -ENOMEM;
	}
	return 0;
}

static int sleep_atomic(void)
{
	static DEFINE_SPINLOCK(lock);

	spin_lock(&lock);
	might_sleep();
	spin_unlock(&lock);
	return 0;
}

static int rcu_unprotected(void)
{
	static int __rcu *shared;
	int *p = rcu_dereference(shared);

	OPTIMIZER_HIDE_VAR(p);
	return 0;
}

static int list_twice(void)
{
	LIST_HEAD(head);
	LIST_HEAD(entry);

	list_add(&entry, &head);
	list_add(&entry, &head);
	return 0;
}

static int lock_order(void)
{
	static DEFINE_MUTEX(first);
	static DEFINE_MUTEX(second);

	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);
	mutex_lock(&second);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
	return 0;
}

static unsigned long raced;

static int race_thread(void *unused)
{
	while (!kthread_should_stop()) {
		raced++;
		barrier();
		cond_resched();
	}
	return 0;
}

/* Two CPUs change a variable without a lock. */
static int race(void)
{
	struct task_struct *other = kthread_run(race_thread, NULL, "tdx_mirror_bad");
	unsigned long end = jiffies + 3 * HZ;

	if (IS_ERR(other))
		return PTR_ERR(other);
	while (time_before(jiffies, end)) {
		raced++;
		barrier();
		cond_resched();
	}
	return kthread_stop(other);
}

static int shift(void)
{
	int by = 40, value = 1;

	OPTIMIZER_HIDE_VAR(by);
	value <<= by;
	OPTIMIZER_HIDE_VAR(value);
	return 0;
}

/* An enum in what C and Rust both call: the same ABI, but another type for kCFI. */
enum bad_answer {
	BAD_ANSWER,
};

static enum bad_answer bad_c_answer(void)
{
	return BAD_ANSWER;
}

static int call_c(void)
{
	return tdx_mirror_bad_rust_call((void *)bad_c_answer);
}

static noinline int call_rust(void)
{
	enum bad_answer (*call)(void) = (void *)tdx_mirror_bad_rust_answer;

	OPTIMIZER_HIDE_VAR(call);
	return call();
}

/* Waits for ever, unkillable, with a lock held. */
static int hang(void)
{
	static DEFINE_MUTEX(tdx_mirror_hang_lock);
	static bool enough;

	mutex_lock(&tdx_mirror_hang_lock);
	while (!READ_ONCE(enough))
		schedule_timeout_uninterruptible(MAX_SCHEDULE_TIMEOUT);
	mutex_unlock(&tdx_mirror_hang_lock);
	return 0;
}

static const struct {
	const char *name;
	int (*run)(void);
} bugs[] = {
	{ "past_end_c", past_end_c },
	{ "past_end_rust", past_end_rust },
	{ "after_free_rust", after_free_rust },
	{ "leak", leak },
	{ "sleep_atomic", sleep_atomic },
	{ "rcu_unprotected", rcu_unprotected },
	{ "list_twice", list_twice },
	{ "lock_order", lock_order },
	{ "race", race },
	{ "shift", shift },
	{ "call_rust", call_rust },
	{ "call_c", call_c },
	{ "hang", hang },
};

static int __init bad_init(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(bugs); i++) {
		if (!strcmp(what, bugs[i].name))
			return bugs[i].run();
	}
	return -EINVAL;
}

static void __exit bad_exit(void)
{
}

module_init(bad_init);
module_exit(bad_exit);
MODULE_DESCRIPTION("What a debug kernel must report");
MODULE_LICENSE("GPL");
