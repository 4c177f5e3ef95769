// SPDX-License-Identifier: GPL-2.0
/*
 * One SEAMCALL of a TD's life fails: each of them in turn, in each of four ways.
 * The VMM is told as documented, what the TDX module keeps is reported, nothing
 * else is lost, and the next TD lives.
 *
 * usage: failnth [-e N] [-l LEAF]
 *	-e N	each Nth SEAMCALL only
 *	-l LEAF	only leaves whose name has that in it
 *
 * With kvm_intel.tdx_mirror=off it only compares: KVM's own mirror is known to give
 * pages back that the TDX module still maps, which breaks later TDs as well.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kselftest.h"
#include "life.h"
#include "probe.h"

#define INJECT_FILE		"/sys/kernel/debug/tdx_emu/inject"

/* Operand ids, beside those of probe.h. */
#define OP_TDVPR	0x82
#define OP_OP_STATE	0xac
#define OP_KOT		0xba
#define OP_KET		0xbb
#define OP_WBCACHE	0xbc

/* Leaf numbers, beside those of probe.h. */
enum {
	MNG_ADDCX = 1, KEY_CONFIG = 8, MNG_CREATE = 9, MNG_RD = 11, MR_FINALIZE = 17,
	VP_FLUSH = 18, VPFLUSHDONE = 19, MNG_INIT = 21, VP_INIT = 22, VP_RD = 26,
	CACHE_WB = 40, VP_WR = 43,
};

#define LIFECYCLE_STATE	0xc000060700000000ull
#define OP_STATE	0xc000060800000000ull
#define VCPU_STATE	0xc000070000000000ull

enum way {
	BUSY_ONCE,
	BUSY_EVER,	/* from that call on, for that page, TD or vCPU */
	FATAL,
	WRONG_STATE,
	WAYS,
};

static const char * const way_name[WAYS] = {
	"busy once", "busy for ever", "fatal", "wrong state",
};

/* Leaves that a TD's life has, with what they may find busy and in which state. */
static const struct leaf {
	unsigned int number;
	const char *name;
	__u64 busy;		/* operand id */
	__u64 state;
} leaves[] = {
	{ TD_VP_ENTER, "TDH.VP.ENTER", TD_OP_EPOCH, VCPU_STATE },
	{ MNG_ADDCX, "TDH.MNG.ADDCX", TD_OP_TDR, LIFECYCLE_STATE },
	{ TD_PAGE_ADD, "TDH.MEM.PAGE.ADD", TD_OP_SEPT_TREE, TD_ENTRY_STATE | TD_OP_RCX },
	{ TD_SEPT_ADD, "TDH.MEM.SEPT.ADD", TD_OP_SEPT_TREE, TD_ENTRY_STATE | TD_OP_RCX },
	{ TD_VP_ADDCX, "TDH.VP.ADDCX", OP_TDVPR, VCPU_STATE },
	{ TD_PAGE_AUG, "TDH.MEM.PAGE.AUG", TD_OP_RCX, TD_ENTRY_STATE | TD_OP_RCX },
	{ TD_RANGE_BLOCK, "TDH.MEM.RANGE.BLOCK", TD_OP_SEPT_TREE, TD_ENTRY_STATE | TD_OP_RCX },
	{ KEY_CONFIG, "TDH.MNG.KEY.CONFIG", OP_KET, LIFECYCLE_STATE },
	{ MNG_CREATE, "TDH.MNG.CREATE", OP_KOT, TD_PAGE_METADATA | TD_OP_RCX },
	{ TD_VP_CREATE, "TDH.VP.CREATE", TD_OP_TDR, OP_STATE },
	{ MNG_RD, "TDH.MNG.RD", OP_OP_STATE, OP_STATE },
	{ TD_MR_EXTEND, "TDH.MR.EXTEND", TD_OP_TDR, OP_STATE },
	{ MR_FINALIZE, "TDH.MR.FINALIZE", TD_OP_TDR, OP_STATE },
	{ VP_FLUSH, "TDH.VP.FLUSH", OP_TDVPR, VCPU_STATE },
	{ VPFLUSHDONE, "TDH.MNG.VPFLUSHDONE", OP_KOT, LIFECYCLE_STATE },
	{ TD_KEY_FREEID, "TDH.MNG.KEY.FREEID", OP_KOT, LIFECYCLE_STATE },
	{ MNG_INIT, "TDH.MNG.INIT", TD_OP_TDR, LIFECYCLE_STATE },
	{ VP_INIT, "TDH.VP.INIT", OP_TDVPR, VCPU_STATE },
	{ VP_RD, "TDH.VP.RD", OP_TDVPR, VCPU_STATE },
	{ TD_PAGE_RECLAIM, "TDH.PHYMEM.PAGE.RECLAIM", TD_OP_RCX, TD_PAGE_METADATA | TD_OP_RCX },
	{ TD_PAGE_REMOVE, "TDH.MEM.PAGE.REMOVE", TD_OP_RCX, TD_ENTRY_STATE | TD_OP_RCX },
	{ TD_TRACK, "TDH.MEM.TRACK", TD_OP_EPOCH, OP_STATE },
	{ CACHE_WB, "TDH.PHYMEM.CACHE.WB", OP_WBCACHE, LIFECYCLE_STATE },
	{ TD_PAGE_WBINVD, "TDH.PHYMEM.PAGE.WBINVD", TD_OP_RCX, TD_PAGE_METADATA | TD_OP_RCX },
	{ VP_WR, "TDH.VP.WR", OP_TDVPR, VCPU_STATE },
};

#define STEP(name)	(1u << LIFE_##name)
#define ANY		(~0u)
#define ONCE		(1u << BUSY_ONCE)
#define EVER		(1u << BUSY_EVER)
#define BROKEN		(1u << FATAL | 1u << WRONG_STATE)
#define ALL		(ONCE | EVER | BROKEN)

/* How the life goes on. */
enum result {
	GOES_ON,	/* nobody is told */
	AGAIN,		/* the step fails once with the error, and then succeeds */
	STAYS,		/* the step fails with the error as often as it is tried */
	ENDS,		/* the step fails with the error */
	VM_DEAD,	/* the step succeeds, whatever comes after it fails with EIO */
};

/* What the TDX module keeps, and what is said about it. */
enum loss {
	NOTHING,
	QUARANTINE,	/* pages that the end of the TD gives back */
	TABLE,		/* a page of the S-EPT, and so the TDR */
	CONTROL,	/* another page, and so the TDR */
	TDR,
	WHOLE_TD,	/* the HKID stays: all but the data */
};

/* The first one that fits counts. */
static const struct rule {
	unsigned int leaf, steps, ways;
	enum result result;
	int error;
	enum loss loss;
	const char *warns;	/* of tdx_mirror */
	unsigned int kvm_warns;	/* of kvm_intel and kvm */
} rules[] = {
	{ TD_VP_ENTER, ANY, ONCE, GOES_ON },
	{ TD_VP_ENTER, ANY, EVER, STAYS, -EINTR },
	{ TD_VP_ENTER, ANY, BROKEN, ENDS, -EIO },

	{ MNG_CREATE, ANY, ALL, ENDS, -EIO, .kvm_warns = 1 },
	{ KEY_CONFIG, ANY, ALL, ENDS, -EIO, .kvm_warns = 1 },
	{ MNG_ADDCX, ANY, ALL, ENDS, -EIO, .kvm_warns = 1 },
	/* KVM takes an invalid operand for one of the VMM. */
	{ MNG_INIT, ANY, 1u << FATAL, ENDS, -EINVAL },
	{ MNG_INIT, ANY, ALL, ENDS, -EIO, .kvm_warns = 1 },
	/* KVM does not look whether it could read the offset of the TSC. */
	{ MNG_RD, ANY, ALL, GOES_ON },
	{ TD_VP_CREATE, ANY, ALL, ENDS, -EIO, .kvm_warns = 1 },
	{ TD_VP_ADDCX, ANY, ALL, ENDS, -EIO, .kvm_warns = 1 },
	{ VP_INIT, ANY, ALL, ENDS, -EIO, .kvm_warns = 1 },
	{ VP_WR, STEP(INIT_VCPUS), ALL, VM_DEAD, .kvm_warns = 1 },
	{ VP_WR, ANY, ALL, ENDS, -EIO, .kvm_warns = 1 },

	{ TD_SEPT_ADD, STEP(ADD), ONCE, GOES_ON },
	{ TD_SEPT_ADD, STEP(ADD), EVER, STAYS, -EINTR },
	{ TD_PAGE_ADD, STEP(ADD), ONCE, GOES_ON },
	{ TD_PAGE_ADD, STEP(ADD), EVER, STAYS, -EINTR },
	{ TD_SEPT_ADD, STEP(ADD), BROKEN, ENDS, -EIO, NOTHING, "tdx_mirror_warn_bug" },
	{ TD_PAGE_ADD, STEP(ADD), BROKEN, ENDS, -EIO, NOTHING, "tdx_mirror_warn_bug" },
	{ TD_MR_EXTEND, ANY, ALL, ENDS, -EIO, .kvm_warns = 1 },
	{ MR_FINALIZE, ANY, ONCE, AGAIN, -EBUSY },
	{ MR_FINALIZE, ANY, EVER, STAYS, -EBUSY },
	{ MR_FINALIZE, ANY, BROKEN, ENDS, -EIO, .kvm_warns = 1 },

	{ TD_SEPT_ADD, ANY, ONCE, GOES_ON },
	{ TD_PAGE_AUG, ANY, ONCE, GOES_ON },
	{ TD_SEPT_ADD, ANY, EVER, STAYS, -EAGAIN },
	{ TD_PAGE_AUG, ANY, EVER, STAYS, -EAGAIN },
	{ TD_SEPT_ADD, ANY, BROKEN, ENDS, -EIO, NOTHING, "tdx_mirror_warn_bug" },
	{ TD_PAGE_AUG, ANY, BROKEN, ENDS, -EIO, NOTHING, "tdx_mirror_warn_bug" },

	{ TD_RANGE_BLOCK, ANY, ONCE, GOES_ON },
	{ TD_TRACK, ANY, ONCE, GOES_ON },
	{ TD_PAGE_REMOVE, ANY, ONCE, GOES_ON },
	{ TD_RANGE_BLOCK, ANY, ALL, VM_DEAD, 0, QUARANTINE, "tdx_mirror_warn_bug" },
	{ TD_TRACK, ANY, ALL, VM_DEAD, 0, QUARANTINE, "tdx_mirror_warn_bug" },
	{ TD_PAGE_REMOVE, ANY, ALL, VM_DEAD, 0, QUARANTINE, "tdx_mirror_warn_bug" },
	{ TD_PAGE_WBINVD, ANY, ALL, VM_DEAD, 0, QUARANTINE, "tdx_mirror_warn_bug" },

	{ VP_FLUSH, ANY, ALL, GOES_ON, 0, WHOLE_TD, NULL, 1 },
	{ VPFLUSHDONE, ANY, ALL, GOES_ON, 0, WHOLE_TD, NULL, 1 },
	{ CACHE_WB, ANY, ALL, GOES_ON, 0, WHOLE_TD, NULL, 2 },
	{ TD_KEY_FREEID, ANY, ALL, GOES_ON, 0, WHOLE_TD, NULL, 1 },
};

/* The pages of a TD are given back in this order; KVM warns once of all its own. */
static const struct rule reclaims[] = {
	[CONTROL] = { TD_PAGE_RECLAIM, ANY, ALL, GOES_ON, 0, CONTROL, NULL, 1 },
	[TABLE] = { TD_PAGE_RECLAIM, ANY, ALL, GOES_ON, 0, TABLE, NULL, 1 },
	[TDR] = { TD_PAGE_RECLAIM, ANY, ALL, GOES_ON, 0, TDR, NULL, 1 },
};

static const struct rule busy_table = {
	TD_PAGE_RECLAIM, ANY, ALL, GOES_ON, 0, TABLE, "tdx_mirror_warn_reclaim_busy", 1,
};

/* The last thing that is done with a TD; nobody's page is at stake. */
static const struct rule wbinvd_of_tdr = {
	TD_PAGE_WBINVD, ANY, ALL, GOES_ON, 0, NOTHING, NULL, 1,
};

/* Calls of each leaf in each step of a life in which nothing fails. */
static __u64 calls[TD_LEAVES][LIFE_STEPS];
static struct td_calls step_began;
static struct life life;
static bool mirror_on;

static __u64 calls_of(unsigned int leaf)
{
	__u64 sum = 0;
	int step;

	for (step = 0; step < LIFE_STEPS; step++)
		sum += calls[leaf][step];
	return sum;
}

static const struct rule *rule_of(const struct leaf *leaf, enum life_step step, enum way way,
				  __u64 n)
{
	__u64 vcpus = calls_of(TD_VP_CREATE) + calls_of(TD_VP_ADDCX);
	__u64 tables = vcpus + calls_of(TD_SEPT_ADD);
	unsigned int i;

	if (leaf->number == TD_PAGE_RECLAIM) {
		if (n == calls_of(TD_PAGE_RECLAIM))
			return &reclaims[TDR];
		if (n <= vcpus || n > tables)
			return &reclaims[CONTROL];
		return way == BUSY_ONCE || way == BUSY_EVER ? &busy_table : &reclaims[TABLE];
	}
	if (leaf->number == TD_PAGE_WBINVD && n == calls_of(TD_PAGE_WBINVD))
		return &wbinvd_of_tdr;
	for (i = 0; i < ARRAY_SIZE(rules); i++)
		if (rules[i].leaf == leaf->number && rules[i].steps & 1u << step &&
		    rules[i].ways & 1u << way)
			return &rules[i];
	return NULL;
}

/* What became of a life. */
struct outcome {
	enum life_step end;
	int first, ret;
	__u64 hits;
	long owned, leaked, quarantined, resolved, errors, tds;
	unsigned int kvm_warns, page_lines, hkid_lines, alarms;
	char warns[64];		/* the last function of tdx_mirror that warned */
	unsigned int nr_warns;
	char alarm[160];
};

static void count_before(struct life *life)
{
	td_calls_read(&step_began);
}

static void count_after(struct life *life)
{
	struct td_calls now;
	unsigned int i;

	td_calls_read(&now);
	for (i = 0; i < TD_LEAVES; i++)
		calls[i][life->step] += now.leaf[i] - step_began.leaf[i];
}

static __u64 hits_so_far(void)
{
	FILE *file = fopen(INJECT_FILE, "r");
	unsigned long long hits = 0;
	char line[256];
	char *at;

	while (file && fgets(line, sizeof(line), file)) {
		at = strstr(line, "hits=");
		if (at)
			sscanf(at, "hits=%llu", &hits);
	}
	if (file)
		fclose(file);
	return hits;
}

/* What no test provokes on purpose. */
static bool is_alarm(const char *line)
{
	static const char * const bad[] = {
		"BUG: ", "kernel BUG", "Oops", "general protection", "possible circular",
		"possible recursive", "possible irq lock", "INFO: ", "suspicious RCU",
		"inconsistent lock", "held lock freed", "bad unlock balance",
		"lock held when returning", "Invalid wait context", "sleeping function",
		"scheduling while atomic", "corruption", "Bad page", "invariant broken",
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++)
		if (strstr(line, bad[i]))
			return true;
	return false;
}

/* A line such as "WARNING: [file:line ]at function+0x1/0x2 [module], CPU#0: ..." */
static void read_warning(const char *line, struct outcome *out)
{
	const char *at = strstr(line, "at ");

	if (at && strstr(line, "[tdx_mirror]")) {
		out->nr_warns++;
		snprintf(out->warns, sizeof(out->warns), "%.*s", (int)strcspn(at + 3, "+"),
			 at + 3);
	} else if (strstr(line, "[kvm_intel]") || strstr(line, "[kvm]")) {
		out->kvm_warns++;
	} else {
		out->alarms++;
		snprintf(out->alarm, sizeof(out->alarm), "%.150s", line);
	}
}

static void read_log(struct outcome *out)
{
	const char *at = td_klog_text();
	char line[512];
	size_t length;

	while (*at) {
		length = strcspn(at, "\n");
		snprintf(line, sizeof(line), "%.*s", (int)length, at);
		at += length + !!at[length];
		if (strstr(line, "WARNING: "))
			read_warning(line, out);
		if (is_alarm(line)) {
			out->alarms++;
			snprintf(out->alarm, sizeof(out->alarm), "%.150s", line);
		}
		out->page_lines += !!strstr(line, "page leaked");
		out->hkid_lines += strstr(line, "HKID") && strstr(line, "is leaked");
	}
}

static int inject(const struct leaf *leaf, enum way way, __u64 n)
{
	__u64 status = way == WRONG_STATE ? leaf->state :
		       way == FATAL ? TD_OPERAND_INVALID | TD_OP_RCX :
		       TD_OPERAND_BUSY | leaf->busy;

	return td_inject("fail %u %s%llu %llx\n", leaf->number,
			 way == BUSY_EVER ? "stay " : "", n, status);
}

/* One life, in which the @n-th call of @leaf fails in @step, or nothing does. */
static void lead(const struct leaf *leaf, enum way way, __u64 n, enum life_step step,
		 struct outcome *out)
{
	struct td_counters before, after;

	memset(out, 0, sizeof(*out));
	td_counters_read(&before);
	if (td_klog_begin(leaf ? leaf->name : "none, nothing fails"))
		ksft_exit_fail_msg("the kernel log cannot be marked\n");
	if (leaf && inject(leaf, way, n))
		ksft_exit_fail_msg("the script of faults is refused\n");
	out->ret = life_lead(&life);
	out->end = life.end;
	out->first = life.first[step];
	out->hits = leaf ? hits_so_far() : 0;
	td_inject_clear();
	td_counters_read(&after);
	out->owned = after.emu_pages - before.emu_pages;
	out->leaked = after.leaked - before.leaked;
	out->quarantined = after.quarantined - before.quarantined;
	out->resolved = after.resolved - before.resolved;
	out->errors = after.emu_errors - before.emu_errors;
	out->tds = after.tds_live - before.tds_live;
	read_log(out);
	td_klog_end();
}

static const char *judge_result(const struct rule *rule, enum life_step step,
				const struct outcome *out)
{
	/* When vCPUs are interrupted is never the same, so the guest may be in the other step. */
	bool here = out->end == step ||
		    (rule->leaf == TD_VP_ENTER &&
		     (out->end == LIFE_RUN || out->end == LIFE_RUN_AGAIN));

	switch (rule->result) {
	case GOES_ON:
		return out->first || out->ret ? "the VMM was told" : NULL;
	case AGAIN:
		return out->first != rule->error ? "the step did not fail as documented" :
		       out->ret ? "the step did not succeed when tried again" : NULL;
	case STAYS:
	case ENDS:
		return out->ret != rule->error || !here ?
		       "the step did not fail as documented" : NULL;
	case VM_DEAD:
		/* What is left to do with the memory cannot fail. */
		if (step >= LIFE_DELETE)
			return out->ret ? "the end of a TD failed" : NULL;
		return out->ret != -EIO ? "the VM lives on" : NULL;
	}
	return "there is no rule";
}

/* Pages that the TDX module keeps for ever, and lines that say so. */
static const char *judge_loss(const struct rule *rule, const struct outcome *out, long *owned)
{
	long tables = calls_of(TD_SEPT_ADD);
	bool table = rule->loss == TABLE;
	long leaked = rule->loss == WHOLE_TD ? tables : table;
	/* The log gets the first ten of a TD. */
	long lines = leaked < 10 ? leaked : 10;

	*owned = rule->loss == WHOLE_TD ?
		 tables + calls_of(TD_VP_CREATE) + calls_of(TD_VP_ADDCX) +
		 calls_of(MNG_ADDCX) + 1 :
		 table || rule->loss == CONTROL ? 2 : rule->loss == TDR;
	if (out->owned != *owned)
		return "the TDX module has other pages";
	if (out->leaked != leaked || out->page_lines != lines)
		return "pages are leaked without a report";
	if (rule->loss == QUARANTINE ?
	    !out->quarantined || out->quarantined != out->resolved :
	    out->quarantined || out->resolved)
		return "the quarantine";
	return NULL;
}

static const char *judge(const struct rule *rule, enum life_step step,
			 const struct outcome *out, long *lost)
{
	const char *what, *loss;
	long owned = 0;

	if (!rule)
		return "there is no rule";
	what = judge_result(rule, step, out);
	loss = judge_loss(rule, out, &owned);
	*lost += out->owned > owned ? out->owned - owned : 0;
	if (out->errors || out->tds)
		return "an invariant of the TDX module is broken, or a TD lives";
	if (out->alarms)
		return out->alarm;
	if (out->kvm_warns != rule->kvm_warns || out->nr_warns != !!rule->warns ||
	    (rule->warns && strcmp(rule->warns, out->warns)))
		return "another kernel warning";
	return what ?: loss;
}

/* Totals over all ways. */
static struct {
	__u64 injections, not_reached, differ, next_failed;
	long lost, faults, kept;
} sum;

static void show(const struct leaf *leaf, enum way way, enum life_step step, __u64 n,
		 const struct outcome *out, const char *what)
{
	printf("# %s: %s, call %llu of %s, in %s: ended in %s, first error %d, last %d; ",
	       what, way_name[way], n, leaf->name, life_step_name(step),
	       life_step_name(out->end), out->first, out->ret);
	printf("%ld pages kept, %ld leaked, %ld quarantined, %ld resolved; ", out->owned,
	       out->leaked, out->quarantined, out->resolved);
	printf("%u warnings of KVM, %u of the mirror %s; %s\n", out->kvm_warns, out->nr_warns,
	       out->warns, td_error(&life.td));
}

/* Whether all is as documented. */
static bool one(const struct leaf *leaf, enum way way, enum life_step step, __u64 n)
{
	const struct rule *rule = rule_of(leaf, step, way, n);
	struct outcome out, next;
	const char *what;
	bool ok = true;

	lead(leaf, way, n, step, &out);
	if (!out.hits && leaf->number == TD_VP_ENTER) {
		sum.not_reached++;
		return true;
	}
	sum.injections++;
	what = out.hits ? judge(rule, step, &out, &sum.lost) : "never reached";
	sum.faults += out.alarms;
	sum.kept += out.owned;
	if (what) {
		show(leaf, way, step, n, &out, what);
		sum.differ++;
		ok = false;
	}
	if (!out.ret && !out.owned && !out.quarantined)
		return ok;
	/* Something ended early or is kept: what was given back must be good. */
	lead(NULL, way, 0, LIFE_CREATE, &next);
	if (next.ret || next.owned || next.errors || next.alarms || next.nr_warns ||
	    next.kvm_warns || next.leaked) {
		show(leaf, way, step, n, &next, "the next TD is not well");
		sum.faults += next.alarms;
		sum.next_failed++;
		ok = false;
	}
	return ok;
}

static void show_progress(enum way way, unsigned int done, const struct leaf *leaf,
			  enum life_step step)
{
	printf("# %s: %u done, at %s in %s\n", way_name[way], done, leaf->name,
	       life_step_name(step));
	fflush(stdout);
}

static __u64 index_of_call;

static bool one_way(enum way way, __u64 every, const char *only)
{
	unsigned int i, step, bad = 0, all = 0;
	__u64 n, seen;

	for (i = 0; i < ARRAY_SIZE(leaves); i++) {
		if (only && !strstr(leaves[i].name, only))
			continue;
		for (step = 0, seen = 0; step < LIFE_STEPS; step++) {
			for (n = 1; n <= calls[leaves[i].number][step]; n++) {
				if (index_of_call++ % every)
					continue;
				if (all && all % 40 == 0)
					show_progress(way, all, &leaves[i], step);
				all++;
				bad += !one(&leaves[i], way, step, seen + n);
			}
			seen += calls[leaves[i].number][step];
		}
		if (bad > 20 && mirror_on) {
			printf("# more than 20 differences: the rest is left out\n");
			return false;
		}
	}
	printf("# %s: %u of %u as documented\n", way_name[way], all - bad, all);
	fflush(stdout);
	return !bad;
}

/* A life in which nothing fails, to know which SEAMCALLs there are. */
static __u64 baseline(void)
{
	__u64 total = 0, known = 0;
	struct outcome out;
	unsigned int i, step;

	life.before = count_before;
	life.after = count_after;
	lead(NULL, 0, 0, LIFE_CREATE, &out);
	life.before = NULL;
	life.after = NULL;
	if (out.ret || out.owned || out.errors || out.alarms)
		ksft_exit_fail_msg("a life in which nothing fails ends in %s with %d: %s\n",
				   life_step_name(out.end), out.ret, td_error(&life.td));
	for (i = 0; i < TD_LEAVES; i++)
		total += calls_of(i);
	for (i = 0; i < ARRAY_SIZE(leaves); i++) {
		known += calls_of(leaves[i].number);
		if (!calls_of(leaves[i].number))
			continue;
		printf("# %s %llu:", leaves[i].name, calls_of(leaves[i].number));
		for (step = 0; step < LIFE_STEPS; step++)
			if (calls[leaves[i].number][step])
				printf(" %s %llu", life_step_name(step),
				       calls[leaves[i].number][step]);
		printf("\n");
	}
	if (known != total)
		ksft_exit_fail_msg("%llu SEAMCALLs of leaves that are not listed\n",
				   total - known);
	return total;
}

int main(int argc, char **argv)
{
	__u64 total, every = 1;
	const char *why, *only = NULL;
	struct td_counters now;
	enum way way;
	int option;
	bool ok;

	while ((option = getopt(argc, argv, "e:l:")) != -1) {
		if (option == 'e' && atoi(optarg) > 0)
			every = atoi(optarg);
		else if (option == 'l')
			only = optarg;
		else
			ksft_exit_fail_msg("usage: failnth [-e N] [-l LEAF]\n");
	}
	ksft_print_header();
	why = td_unsupported() ?: td_needs(NEEDS_EMULATOR | NEEDS_KLOG);
	if (why)
		ksft_exit_skip("%s\n", why);
	ksft_set_plan(WAYS);
	td_counters_read(&now);
	mirror_on = now.mode == TD_MODE_ON;
	total = baseline();
	for (way = 0; way < WAYS; way++) {
		ok = one_way(way, every, only);
		if (mirror_on)
			ksft_test_result(ok, "%s\n", way_name[way]);
		else
			ksft_test_result_pass("%s: compared only\n", way_name[way]);
	}
	if (sum.not_reached)
		printf("# %llu calls of TDH.VP.ENTER were not reached: interrupts differ\n",
		       sum.not_reached);
	printf("# the TDX module keeps %ld pages; ", sum.kept);
	printf("%llu lives differ from what is documented, %llu next TDs not well\n",
	       sum.differ, sum.next_failed);
	printf("failnth: %llu injections over %llu SEAMCALLs, %ld lost, %ld host faults\n",
	       sum.injections, total, sum.lost, sum.faults);
	fflush(stdout);
	ksft_finished();
}
