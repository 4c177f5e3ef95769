// SPDX-License-Identifier: GPL-2.0
/* /dev/tdx_mirror_test, see tdx_mirror_test/uapi/linux/tdx_mirror_test.h. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/build_bug.h>
#include <linux/compat.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rwsem.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "test.h"

/**
 * struct tdt_file - an open file
 * @lock: held for write by what changes the TD's state, for read by what uses it
 * @td: the TD, or NULL
 */
struct tdt_file {
	struct rw_semaphore lock;
	struct tdt_td *td;
};

static bool tdt_range_ok(struct tdt_td *td, u64 gfn, u64 nr)
{
	if (gfn == TDX_TEST_RESET_GFN)
		return nr == 1;
	return nr && gfn < td->nr_pages && nr <= td->nr_pages - gfn;
}

static int tdt_ioctl_create(struct tdt_file *f, void __user *arg)
{
	struct tdx_test_create c;
	struct tdt_td *td;

	if (copy_from_user(&c, arg, sizeof(c)))
		return -EFAULT;
	if (f->td)
		return -EEXIST;
	if (!c.nr_pages || c.nr_pages > TDX_TEST_MAX_PAGES ||
	    !c.nr_vcpus || c.nr_vcpus > TDX_TEST_MAX_VCPUS)
		return -EINVAL;

	td = tdt_create(c.nr_pages, c.nr_vcpus);
	if (IS_ERR(td))
		return PTR_ERR(td);
	f->td = td;
	return 0;
}

static int tdt_ioctl_build(struct tdt_td *td, void __user *arg)
{
	struct tdx_test_build b;
	u64 i;
	int ret = 0;

	if (copy_from_user(&b, arg, sizeof(b)))
		return -EFAULT;
	if (!tdt_range_ok(td, b.gfn, b.nr))
		return -EINVAL;
	if (td->finalized)
		return -EBUSY;
	for (i = 0; i < b.nr && !ret; i++)
		ret = tdt_build(td, b.gfn + i, u64_to_user_ptr(b.source + i * PAGE_SIZE));

	return ret;
}

static int tdt_ioctl_range(struct tdt_td *td, bool map, void __user *arg)
{
	struct tdx_test_range r;
	u64 i;
	int ret = 0;

	if (copy_from_user(&r, arg, sizeof(r)))
		return -EFAULT;
	if (!tdt_range_ok(td, r.gfn, r.nr))
		return -EINVAL;
	if (!td->finalized)
		return -EBUSY;

	r.changed = 0;
	r.retries = 0;
	if (!map)
		r.changed = tdt_zap(td, r.gfn, r.gfn + r.nr);
	for (i = 0; map && i < r.nr && ret >= 0; i++) {
		ret = tdt_prefault(td, r.gfn + i, &r.retries);
		r.changed += ret == TDX_MIRROR_MAP_FIXED;
		if (tdt_is_retry(ret))
			ret = -EAGAIN;
		else if (fatal_signal_pending(current))
			ret = -EINTR;
	}
	if (copy_to_user(arg, &r, sizeof(r)))
		return -EFAULT;
	if (READ_ONCE(td->bugged))
		return -EIO;

	return ret < 0 ? ret : 0;
}

static int tdt_ioctl_run(struct tdt_td *td, void __user *arg)
{
	struct tdx_test_run r;
	int ret;

	if (copy_from_user(&r, arg, sizeof(r)))
		return -EFAULT;
	if (!r.rounds)
		return -EINVAL;
	if (!td->finalized)
		return -EBUSY;

	r = (struct tdx_test_run){ .rounds = r.rounds };
	ret = tdt_run(td, &r);
	if (copy_to_user(arg, &r, sizeof(r)))
		return -EFAULT;

	return ret;
}

static int tdt_ioctl_stats(struct tdt_td *td, void __user *arg)
{
	struct tdx_test_stats s = {};

	tdt_stats(td, &s);
	return copy_to_user(arg, &s, sizeof(s)) ? -EFAULT : 0;
}

static int tdt_ioctl_inject(void __user *arg)
{
	static DEFINE_MUTEX(lock);
	struct tdx_test_inject i;
	char *text;
	int ret;

	if (copy_from_user(&i, arg, sizeof(i)))
		return -EFAULT;
	if (i.len > TDX_TEST_MAX_SCRIPT)
		return -E2BIG;

	text = memdup_user(u64_to_user_ptr(i.text), i.len);
	if (IS_ERR(text))
		return PTR_ERR(text);

	mutex_lock(&lock);
	ret = tdx_test_inject(text, i.len);
	mutex_unlock(&lock);
	kfree(text);
	return ret;
}

/* What changes the TD's state, with the file's lock held for write. */
static int tdt_change(struct tdt_file *f, unsigned int cmd, void __user *arg)
{
	if (cmd == TDX_TEST_CREATE)
		return tdt_ioctl_create(f, arg);
	if (!f->td)
		return -ENOENT;

	switch (cmd) {
	case TDX_TEST_BUILD:
		return tdt_ioctl_build(f->td, arg);
	case TDX_TEST_FINALIZE:
		return f->td->finalized ? -EBUSY : tdt_finalize(f->td);
	default:
		tdt_destroy(f->td);
		f->td = NULL;
		return 0;
	}
}

/* What uses the TD, with the file's lock held for read. */
static int tdt_use(struct tdt_file *f, unsigned int cmd, void __user *arg)
{
	if (cmd == TDX_TEST_STATS)
		return tdt_ioctl_stats(f->td, arg);
	if (!f->td)
		return -ENOENT;
	if (cmd == TDX_TEST_RUN)
		return tdt_ioctl_run(f->td, arg);
	return tdt_ioctl_range(f->td, cmd == TDX_TEST_MAP, arg);
}

static long tdt_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct tdt_file *f = file->private_data;
	void __user *user = (void __user *)arg;
	int ret;

	switch (cmd) {
	case TDX_TEST_INJECT:
		return tdt_ioctl_inject(user);
	case TDX_TEST_CREATE:
	case TDX_TEST_BUILD:
	case TDX_TEST_FINALIZE:
	case TDX_TEST_DESTROY:
		if (down_write_killable(&f->lock))
			return -EINTR;
		ret = tdt_change(f, cmd, user);
		up_write(&f->lock);
		return ret;
	case TDX_TEST_MAP:
	case TDX_TEST_ZAP:
	case TDX_TEST_RUN:
	case TDX_TEST_STATS:
		if (down_read_killable(&f->lock))
			return -EINTR;
		ret = tdt_use(f, cmd, user);
		up_read(&f->lock);
		return ret;
	default:
		return -ENOTTY;
	}
}

static int tdt_open(struct inode *inode, struct file *file)
{
	struct tdt_file *f = kzalloc(sizeof(*f), GFP_KERNEL_ACCOUNT);

	if (!f)
		return -ENOMEM;
	init_rwsem(&f->lock);
	file->private_data = f;
	return 0;
}

static int tdt_release(struct inode *inode, struct file *file)
{
	struct tdt_file *f = file->private_data;

	if (f->td)
		tdt_destroy(f->td);
	kfree(f);
	return 0;
}

static const struct file_operations tdt_fops = {
	.owner = THIS_MODULE,
	.open = tdt_open,
	.release = tdt_release,
	.unlocked_ioctl = tdt_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice tdt_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "tdx_mirror_test",
	.fops = &tdt_fops,
	.mode = 0600,
};

int tdx_test_init(void)
{
	int ret;

	tdt_ops = tdx_mirror_get_ops();
	if (tdt_ops->abi_version != TDX_MIRROR_ABI_VERSION ||
	    tdt_ops->size != sizeof(*tdt_ops))
		return -EINVAL;
	tdt_test_ops = tdx_mirror_get_test_ops();
	if (tdt_test_ops->version != TDX_MIRROR_TEST_OPS_VERSION ||
	    tdt_test_ops->size != sizeof(*tdt_test_ops))
		return -EINVAL;

	ret = tdt_pool_init();
	if (ret)
		return ret;
	ret = misc_register(&tdt_device);
	if (ret)
		tdt_pool_exit();

	return ret;
}

void tdx_test_exit(void)
{
	misc_deregister(&tdt_device);
	tdt_pool_exit();
}
