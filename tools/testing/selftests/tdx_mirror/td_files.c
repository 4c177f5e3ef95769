// SPDX-License-Identifier: GPL-2.0
/* Payloads, firmware and the counters in debugfs. */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "td.h"

#define MIRROR_STATS	TD_MIRROR_STATS
#define EMU_STATS	"/sys/kernel/debug/tdx_emu/stats"
#define EMU_TDS		"/sys/kernel/debug/tdx_emu/tds"
#define PARAMETER	"/sys/module/kvm_intel/parameters/tdx_mirror"

static void *read_path(const char *path, size_t *size)
{
	FILE *file = fopen(path, "r");
	struct stat st;
	void *data;

	if (!file)
		return NULL;
	data = fstat(fileno(file), &st) ? NULL : malloc(st.st_size + 1);
	if (data)
		*size = fread(data, 1, st.st_size, file);
	fclose(file);
	return data;
}

/* The folder of the running program, with a slash at its end. */
static void own_folder(char *path, size_t size)
{
	ssize_t n = readlink("/proc/self/exe", path, size - 1);
	char *slash;

	path[n > 0 ? n : 0] = 0;
	slash = strrchr(path, '/');
	if (slash)
		slash[1] = 0;
}

static void *read_beside(const char *name, size_t *size, char path[256])
{
	const char *folder = getenv("TDX_GUEST_DIR");
	char own[192];
	void *data = NULL;

	if (folder) {
		snprintf(path, 256, "%s/%s", folder, name);
		data = read_path(path, size);
	}
	if (!data) {
		own_folder(own, sizeof(own));
		snprintf(path, 256, "%s%s", own, name);
		data = read_path(path, size);
	}
	return data;
}

void *td_read_file(const char *name, size_t *size)
{
	char path[256];

	return read_beside(name, size, path);
}

void *td_read_firmware(size_t *size, char path[256])
{
	static const char * const usual[] = {
		"/usr/share/ovmf/OVMF.inteltdx.fd",
		"/usr/share/ovmf/OVMF.fd",
	};
	const char *named = getenv("TDX_FIRMWARE");
	void *data;
	size_t i;

	if (named) {
		snprintf(path, 256, "%s", named);
		return read_path(path, size);
	}
	data = read_beside("OVMF.fd", size, path);
	for (i = 0; !data && i < sizeof(usual) / sizeof(*usual); i++) {
		snprintf(path, 256, "%s", usual[i]);
		data = read_path(path, size);
	}
	return data;
}

/* The value of @name in the text of a file of counters. */
static __u64 counter_in(const char *text, const char *name, bool *found)
{
	size_t length = strlen(name);
	const char *at = text;

	*found = false;
	while (at && *at) {
		if (!strncmp(at, name, length) && at[length] == ' ') {
			*found = true;
			return strtoull(at + length, NULL, 10);
		}
		at = strchr(at, '\n');
		at = at ? at + 1 : NULL;
	}
	return 0;
}

/* Of the size of a file in debugfs nothing is known beforehand. */
static char *read_counters(const char *path, char *text, size_t size)
{
	FILE *file = fopen(path, "r");

	text[file ? fread(text, 1, size - 1, file) : 0] = 0;
	if (file)
		fclose(file);
	return text;
}

__u64 td_counter(const char *path, const char *name, bool *found)
{
	char text[16384];

	return counter_in(read_counters(path, text, sizeof(text)), name, found);
}

static enum td_mode read_mode(void)
{
	FILE *file = fopen(PARAMETER, "r");
	char word[32] = "";
	bool found;

	if (!file)
		return TD_MODE_UNPATCHED;
	if (!fgets(word, sizeof(word), file))
		word[0] = 0;
	fclose(file);
	word[strcspn(word, "\n")] = 0;
	if (!strcmp(word, "on"))
		return TD_MODE_ON;
	if (!strcmp(word, "off"))
		return TD_MODE_OFF;
	/* auto: on if the module is there */
	td_counter(MIRROR_STATS, "leaf_transitions", &found);
	return found ? TD_MODE_ON : TD_MODE_OFF;
}

void td_counters_read(struct td_counters *c)
{
	char text[16384];
	bool found;

	memset(c, 0, sizeof(*c));
	c->mode = read_mode();
	read_counters(MIRROR_STATS, text, sizeof(text));
	c->leaf_transitions = counter_in(text, "leaf_transitions", &c->has_mirror);
	c->set_calls = counter_in(text, "set_external_spte_calls", &found);
	c->mapped = counter_in(text, "mapped", &found);
	c->zapped = counter_in(text, "zapped", &found);
	c->leaked = counter_in(text, "leaked", &found);
	c->quarantined = counter_in(text, "quarantined", &found);
	c->resolved = counter_in(text, "resolved", &found);
	c->tables = counter_in(text, "tables", &found);
	c->tds_live = counter_in(text, "tds_live", &found);
	read_counters(EMU_STATS, text, sizeof(text));
	c->emu_present = counter_in(text, "leaf_present_transitions", &c->has_emu);
	c->emu_removed = counter_in(text, "leaf_removed", &found);
	c->emu_pages = counter_in(text, "pamt_pages_owned", &found);
	c->emu_errors = counter_in(text, "invariant_errors", &found);
}

const char *td_counters_note(const struct td_counters *c)
{
	if (!c->has_mirror && !c->has_emu)
		return "no debugfs counters of the mirror or the emulator here";
	if (!c->has_emu)
		return "counters of the mirror only: no emulator here";
	if (!c->has_mirror)
		return "counters of the emulator only: tdx_mirror is not loaded";
	return c->mode == TD_MODE_ON ? "counters of mirror and emulator compared" :
				       "counters of the emulator: the mirror is off";
}

static void say(char *text, size_t size, const char *name, __u64 got, __u64 want)
{
	size_t used = strlen(text);

	if (got != want)
		snprintf(text + used, size - used, "%s%s is %llu, not %llu",
			 used ? ", " : "", name, (unsigned long long)got,
			 (unsigned long long)want);
}

int td_counters_check(const struct td_counters *before, char *text, size_t size)
{
	struct td_counters now;
	__u64 mapped;
	int turns;

	/* A killed VMM's files are closed before it is reaped, mostly. */
	for (turns = 0; turns < 1000; turns++) {
		td_counters_read(&now);
		if (now.has_emu == before->has_emu && now.emu_pages == before->emu_pages &&
		    now.has_mirror == before->has_mirror && now.tds_live == before->tds_live)
			break;
		sched_yield();
	}

	text[0] = 0;
	/* Nothing that cannot be read any more counts as right. */
	say(text, size, "counters of the emulator", now.has_emu, before->has_emu);
	say(text, size, "counters of the mirror", now.has_mirror, before->has_mirror);
	if (now.has_emu) {
		say(text, size, "pamt_pages_owned", now.emu_pages, before->emu_pages);
		say(text, size, "leaf_removed", now.emu_removed - before->emu_removed,
		    now.emu_present - before->emu_present);
		say(text, size, "invariant_errors", now.emu_errors, before->emu_errors);
	}
	if (now.has_mirror) {
		mapped = now.leaf_transitions - before->leaf_transitions;
		say(text, size, "mapped", now.mapped - before->mapped, mapped);
		say(text, size, "zapped", now.zapped - before->zapped, mapped);
		say(text, size, "leaked", now.leaked, before->leaked);
		say(text, size, "quarantined", now.quarantined, before->quarantined);
		say(text, size, "tables", now.tables, before->tables);
		say(text, size, "tds_live", now.tds_live, before->tds_live);
		if (now.set_calls - before->set_calls < mapped)
			say(text, size, "set_external_spte_calls",
			    now.set_calls - before->set_calls, mapped);
		if (now.has_emu)
			say(text, size, "leaf_transitions", mapped,
			    now.mode == TD_MODE_ON ?
			    now.emu_present - before->emu_present : 0);
	}
	return text[0] != 0;
}

int td_mrtd_known(const __u8 digest[SHA384_SIZE])
{
	char hex[2 * SHA384_SIZE + 1], line[512];
	FILE *file = fopen(EMU_TDS, "r");
	const char *at;
	int ret = 0;

	if (!file)
		return -ENOENT;
	mrtd_to_hex(digest, hex);
	while (!ret && fgets(line, sizeof(line), file)) {
		at = strstr(line, "mrtd=");
		ret = at && !strncasecmp(at + 5, hex, sizeof(hex) - 1);
	}
	fclose(file);
	return ret;
}
