// SPDX-License-Identifier: GPL-2.0
/* What debugfs shows of TDs, and that who reads it is in nobody's way. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "test.h"

#define PAGES	64ull

TD_FIXTURE(figures);

struct reader {
	pthread_t thread;
	char folder[300];
	bool stop;
	int error, audits;
};

/* Audits without a pause, until the TD ends. */
static void *audit(void *data)
{
	static __thread char text[4096];
	struct reader *r = data;
	int fd = -1, n = 0;

	while (!__atomic_load_n(&r->stop, __ATOMIC_SEQ_CST) && !r->error) {
		fd = td_folder_open(r->folder, "audit");
		if (fd < 0) {
			r->error = fd;
			break;
		}
		while ((n = read(fd, text, sizeof(text))) > 0)
			;
		if (n < 0)
			r->error = -errno;
		else
			__atomic_add_fetch(&r->audits, 1, __ATOMIC_SEQ_CST);
		close(fd);
	}
	return NULL;
}

/*
 * The TDX module's lock of the TD is taken for each read of the S-EPT, and wanted alone when
 * the key is released. Each read lasts, and there are two readers, one of whom has mmu_lock
 * as soon as the other or the TD's end lets go of it, so that nearly always one reads.
 */
TEST_F_TIMEOUT(figures, a_td_ends_while_its_s_ept_is_read, 60)
{
	struct reader reader[2] = {};
	struct td_calls before;
	char folder[300];
	int i;

	REQUIRE(NEEDS_EMULATOR | NEEDS_MIRROR);
	ASSERT_TD_OK(&self->td, td_build(&self->td, &(struct td_config){ .no_measure = true }));
	td_op(&self->td.vcpu[0], GUEST_ACCEPT, TD_RAM_GPA, PAGES, 0);
	ASSERT_TD_OK(&self->td, td_ops_run(&self->td.vcpu[0]));
	ASSERT_TRUE(td_folder(folder, sizeof(folder)));
	ASSERT_EQ(0, td_mirror_write("read_sept", "1"));
	ASSERT_EQ(0, td_inject("delay tdh_mem_sept_rd every 1 200us"));
	td_calls_read(&before);
	for (i = 0; i < 2; i++) {
		snprintf(reader[i].folder, sizeof(folder), "%s", folder);
		ASSERT_EQ(0, pthread_create(&reader[i].thread, NULL, audit, &reader[i]));
	}
	while (td_calls_since(&before, TD_SEPT_RD) < 600 &&
	       !__atomic_load_n(&reader[0].error, __ATOMIC_SEQ_CST))
		usleep(100);
	td_destroy(&self->td);
	for (i = 0; i < 2; i++) {
		pthread_join(reader[i].thread, NULL);
		/* The file was open, or it was to be opened. */
		EXPECT_TRUE(reader[i].error == -ENODEV || reader[i].error == -ENOENT)
			TH_LOG("%s", strerror(-reader[i].error));
	}
	td_inject_clear();
	EXPECT_EQ(0, td_mirror_write("read_sept", "0"));
}

/* Whom an audit keeps out goes on afterwards, and loses no page that it accepts. */
TEST_F_TIMEOUT(figures, a_guest_accepts_while_its_s_ept_is_read, 60)
{
	const struct td_config config = { .no_measure = true, .ram_size = 512 * TD_PAGE };
	struct reader reader = {};
	__u64 left;
	int i;

	REQUIRE(NEEDS_EMULATOR | NEEDS_MIRROR);
	ASSERT_TD_OK(&self->td, td_build(&self->td, &config));
	ASSERT_TRUE(td_folder(reader.folder, sizeof(reader.folder)));
	ASSERT_EQ(0, td_mirror_write("read_sept", "1"));
	ASSERT_EQ(0, pthread_create(&reader.thread, NULL, audit, &reader));
	/* Pages that are there already: the guest accepts one after the other. */
	for (i = 0; i < 4; i++) {
		__u64 gpa = TD_RAM_GPA + i * PAGES * TD_PAGE;

		ASSERT_EQ(0, td_prefault(&self->td.vcpu[0], gpa, PAGES * TD_PAGE, &left));
		td_ops_clear(&self->td.vcpu[0]);
		td_op(&self->td.vcpu[0], GUEST_ACCEPT, gpa, PAGES, 0);
		td_op(&self->td.vcpu[0], GUEST_STORE, gpa, PAGES, 1);
		EXPECT_TD_OK(&self->td, td_ops_run(&self->td.vcpu[0]));
	}
	while (!__atomic_load_n(&reader.audits, __ATOMIC_SEQ_CST) &&
	       !__atomic_load_n(&reader.error, __ATOMIC_SEQ_CST))
		usleep(100);
	__atomic_store_n(&reader.stop, true, __ATOMIC_SEQ_CST);
	pthread_join(reader.thread, NULL);
	EXPECT_EQ(0, td_mirror_write("read_sept", "0"));
	EXPECT_EQ(0, reader.error);
	TH_LOG("%d audits", reader.audits);
}

TEST_HARNESS_MAIN
