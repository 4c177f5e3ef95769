/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Between the files in debugfs, which are C as the kernel crate's pin no module,
 * and the Rust that knows what is in them.
 */
#ifndef _TDX_MIRROR_WATCH_FFI_H
#define _TDX_MIRROR_WATCH_FFI_H

#include <linux/types.h>

/* files.c. A folder may be an error, and so may what is made in it. */
void *tdx_mirror_files_folder(const char *name, void *parent);
void tdx_mirror_files_text(const char *name, unsigned short mode, void *folder,
			   void *node);
void tdx_mirror_files_record(const char *name, void *folder);
void tdx_mirror_files_remove(void *folder);

/*
 * folder.rs. Results are negative for an errno. A row is that of start or of
 * next, 0 for none.
 */
int tdx_mirror_text_open(void *node, void **cursor);
void tdx_mirror_text_close(void *cursor);
int tdx_mirror_text_ready(void *cursor);
int tdx_mirror_text_start(void *cursor, u64 index);
int tdx_mirror_text_next(void *cursor, u64 index);
void tdx_mirror_text_show(void *cursor, void *seq_file);
void tdx_mirror_text_stop(void *cursor);
int tdx_mirror_text_write(void *cursor, const char *text, unsigned long len);
long tdx_mirror_record_read(void *user, unsigned long len, long long *offset);
int tdx_mirror_record_write(const char *text, unsigned long len);

#endif /* _TDX_MIRROR_WATCH_FFI_H */
