// SPDX-License-Identifier: GPL-2.0
/*
 * The files in debugfs. Their file_operations name the module, so that an open
 * file pins it. Nothing of debugfs stands between them and the reader, hence a
 * file that is open outlives its folder and says by itself that its TD is gone:
 * what is behind a cursor is the reader's own.
 */

#include <linux/debugfs.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/uio.h>

#include "ffi.h"

static void *tdx_mirror_row(struct seq_file *m, int ret)
{
	if (ret < 0)
		return ERR_PTR(ret);
	return ret ? m->private : NULL;
}

static void *tdx_mirror_seq_start(struct seq_file *m, loff_t *pos)
{
	return tdx_mirror_row(m, tdx_mirror_text_start(m->private, *pos));
}

static void *tdx_mirror_seq_next(struct seq_file *m, void *row, loff_t *pos)
{
	++*pos;
	return tdx_mirror_row(m, tdx_mirror_text_next(m->private, *pos));
}

static void tdx_mirror_seq_stop(struct seq_file *m, void *row)
{
	tdx_mirror_text_stop(m->private);
}

static int tdx_mirror_seq_show(struct seq_file *m, void *row)
{
	tdx_mirror_text_show(m->private, m);
	return 0;
}

static const struct seq_operations tdx_mirror_seq_ops = {
	.start	= tdx_mirror_seq_start,
	.next	= tdx_mirror_seq_next,
	.stop	= tdx_mirror_seq_stop,
	.show	= tdx_mirror_seq_show,
};

/* debugfs keeps @inode's node until this returns. */
static int tdx_mirror_fops_open(struct inode *inode, struct file *file)
{
	struct seq_file *m;
	void *cursor;
	int ret;

	ret = tdx_mirror_text_open(inode->i_private, &cursor);
	if (ret)
		return ret;

	ret = seq_open(file, &tdx_mirror_seq_ops);
	if (ret) {
		tdx_mirror_text_close(cursor);
		return ret;
	}

	m = file->private_data;
	m->private = cursor;
	return 0;
}

static int tdx_mirror_fops_release(struct inode *inode, struct file *file)
{
	struct seq_file *m = file->private_data;

	tdx_mirror_text_close(m->private);
	return seq_release(inode, file);
}

/* What the seq_file has left of a TD that has ended is not shown either. */
static ssize_t tdx_mirror_fops_read(struct kiocb *iocb, struct iov_iter *to)
{
	struct seq_file *m = iocb->ki_filp->private_data;
	int ret = tdx_mirror_text_ready(m->private);

	return ret ?: seq_read_iter(iocb, to);
}

/* The beginning of what is written, which is enough for a number. */
static ssize_t tdx_mirror_take(struct iov_iter *from, char text[16])
{
	size_t len = min(iov_iter_count(from), 16);

	return copy_from_iter(text, len, from) == len ? len : -EFAULT;
}

static ssize_t tdx_mirror_fops_write(struct kiocb *iocb, struct iov_iter *from)
{
	struct seq_file *m = iocb->ki_filp->private_data;
	size_t all = iov_iter_count(from);
	char text[16];
	ssize_t ret = tdx_mirror_take(from, text);

	if (ret >= 0)
		ret = tdx_mirror_text_write(m->private, text, ret);
	return ret ?: all;
}

static const struct file_operations tdx_mirror_text_fops = {
	.owner		= THIS_MODULE,
	.open		= tdx_mirror_fops_open,
	.read_iter	= tdx_mirror_fops_read,
	.write_iter	= tdx_mirror_fops_write,
	.llseek		= seq_lseek,
	.release	= tdx_mirror_fops_release,
};

static ssize_t tdx_mirror_record_fops_read(struct file *file, char __user *to,
					   size_t len, loff_t *pos)
{
	return tdx_mirror_record_read((__force void *)to, len, pos);
}

static ssize_t tdx_mirror_record_fops_write(struct kiocb *iocb,
					    struct iov_iter *from)
{
	size_t all = iov_iter_count(from);
	char text[16];
	ssize_t ret = tdx_mirror_take(from, text);

	if (ret >= 0)
		ret = tdx_mirror_record_write(text, ret);
	return ret ?: all;
}

static const struct file_operations tdx_mirror_record_fops = {
	.owner		= THIS_MODULE,
	.read		= tdx_mirror_record_fops_read,
	.write_iter	= tdx_mirror_record_fops_write,
	.llseek		= default_llseek,
};

void *tdx_mirror_files_folder(const char *name, void *parent)
{
	return debugfs_create_dir(name, parent);
}

/* @node is the module's until tdx_mirror_files_remove() returns. */
void tdx_mirror_files_text(const char *name, unsigned short mode, void *folder,
			   void *node)
{
	debugfs_create_file_unsafe(name, mode, folder, node,
				   &tdx_mirror_text_fops);
}

void tdx_mirror_files_record(const char *name, void *folder)
{
	debugfs_create_file_unsafe(name, 0600, folder, NULL,
				   &tdx_mirror_record_fops);
}

void tdx_mirror_files_remove(void *folder)
{
	debugfs_remove(folder);
}
