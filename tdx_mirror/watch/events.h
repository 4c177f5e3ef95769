/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Events of the mirror page table of TDX guests.
 *
 * Every event begins with @td, the number of the TD since the module was
 * loaded, which is the second part of the name of its debugfs directory. GPAs
 * lack the shared bit. Levels are KVM's enum pg_level, those of the entry.
 *
 * Names begin with tdx_mirror_, since a symbol __tracepoint_<name> and a
 * function trace_<name>() are those of the kernel as a whole.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM tdx_mirror

#if !defined(_TRACE_TDX_MIRROR_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_TDX_MIRROR_H

#include <linux/math64.h>
#include <linux/tracepoint.h>
#include <asm/tsc.h>

/*
 * How a fault ended: TDX_MIRROR_MAP_*, a retry with TDX_MIRROR_RETRY_*, errors
 * as they are.
 */
#define TDX_MIRROR_TRACE_OUTCOMES			\
	{ 0x0100, "retry_frozen" },			\
	{ 0x0200, "retry_no_page" },			\
	{ 0x1000, "retry_sept_tree" },			\
	{ 0x1100, "retry_sept_entry" },		\
	{ 0x1200, "retry_td_epoch" },			\
	{ 0x1300, "retry_previous_epoch" },		\
	{ 0x1400, "retry_tdr" },			\
	{ 0x1500, "retry_other" },			\
	{ 1, "fixed" },					\
	{ 2, "spurious" },				\
	{ -5, "bugged" },				\
	{ -22, "invalid" }

/* The leaves of tdx_mirror/tdx/leaf.rs, whether a mirror calls them or not. */
#define TDX_MIRROR_TRACE_LEAVES				\
	{ 0, "VP.ENTER" },				\
	{ 1, "MNG.ADDCX" },				\
	{ 2, "MEM.PAGE.ADD" },				\
	{ 3, "MEM.SEPT.ADD" },				\
	{ 4, "VP.ADDCX" },				\
	{ 6, "MEM.PAGE.AUG" },				\
	{ 7, "MEM.RANGE.BLOCK" },			\
	{ 8, "MNG.KEY.CONFIG" },			\
	{ 9, "MNG.CREATE" },				\
	{ 10, "VP.CREATE" },				\
	{ 15, "MEM.PAGE.DEMOTE" },			\
	{ 16, "MR.EXTEND" },				\
	{ 17, "MR.FINALIZE" },				\
	{ 18, "VP.FLUSH" },				\
	{ 19, "MNG.VPFLUSHDONE" },			\
	{ 20, "MNG.KEY.FREEID" },			\
	{ 21, "MNG.INIT" },				\
	{ 22, "VP.INIT" },				\
	{ 23, "MEM.PAGE.PROMOTE" },			\
	{ 24, "PHYMEM.PAGE.RDMD" },			\
	{ 25, "MEM.SEPT.RD" },				\
	{ 27, "MNG.KEY.RECLAIMID" },			\
	{ 28, "PHYMEM.PAGE.RECLAIM" },			\
	{ 29, "MEM.PAGE.REMOVE" },			\
	{ 30, "MEM.SEPT.REMOVE" },			\
	{ 38, "MEM.TRACK" },				\
	{ 39, "MEM.RANGE.UNBLOCK" },			\
	{ 40, "PHYMEM.CACHE.WB" },			\
	{ 41, "PHYMEM.PAGE.WBINVD" }

/* What may be contended, enum Operand of tdx_mirror/base/td.rs. */
#define TDX_MIRROR_TRACE_OPERANDS			\
	{ 0, "none" },					\
	{ 1, "sept_tree" },				\
	{ 2, "sept_entry" },				\
	{ 3, "td_epoch" },				\
	{ 4, "previous_epoch" },			\
	{ 5, "tdr" },					\
	{ 6, "other" }

/* A change of the mirror, once the external table has followed. */
TRACE_EVENT(tdx_mirror_spte_changed,
	TP_PROTO(u32 td, u64 gpa, u32 level, u64 old_spte, u64 new_spte),
	TP_ARGS(td, gpa, level, old_spte, new_spte),
	TP_STRUCT__entry(
		__field(u32, td)
		__field(u32, level)
		__field(u64, gpa)
		__field(u64, old_spte)
		__field(u64, new_spte)
	),
	TP_fast_assign(
		__entry->td = td;
		__entry->level = level;
		__entry->gpa = gpa;
		__entry->old_spte = old_spte;
		__entry->new_spte = new_spte;
	),
	TP_printk("td %u gpa 0x%llx level %u old 0x%016llx new 0x%016llx",
		  __entry->td, __entry->gpa, __entry->level,
		  __entry->old_spte, __entry->new_spte)
);

/* The end of a map: a fault, a prefault or a page of the initial image. */
TRACE_EVENT(tdx_mirror_fault,
	TP_PROTO(u32 td, u64 gfn, u64 pfn, u32 level, int outcome),
	TP_ARGS(td, gfn, pfn, level, outcome),
	TP_STRUCT__entry(
		__field(u32, td)
		__field(u32, level)
		__field(u64, gfn)
		__field(u64, pfn)
		__field(int, outcome)
	),
	TP_fast_assign(
		__entry->td = td;
		__entry->level = level;
		__entry->gfn = gfn;
		__entry->pfn = pfn;
		__entry->outcome = outcome;
	),
	TP_printk("td %u gfn 0x%llx pfn 0x%llx level %u %s",
		  __entry->td, __entry->gfn, __entry->pfn, __entry->level,
		  __print_symbolic(__entry->outcome, TDX_MIRROR_TRACE_OUTCOMES))
);

/* The end of a zap of [start, end); @zapped leaves were removed. */
TRACE_EVENT(tdx_mirror_zap,
	TP_PROTO(u32 td, u64 start, u64 end, u64 zapped),
	TP_ARGS(td, start, end, zapped),
	TP_STRUCT__entry(
		__field(u32, td)
		__field(u64, start)
		__field(u64, end)
		__field(u64, zapped)
	),
	TP_fast_assign(
		__entry->td = td;
		__entry->start = start;
		__entry->end = end;
		__entry->zapped = zapped;
	),
	TP_printk("td %u gfns 0x%llx-0x%llx zapped %llu",
		  __entry->td, __entry->start, __entry->end, __entry->zapped)
);

/*
 * A SEAMCALL that the mirror asked for. @leaf is the leaf's number, @gpa and
 * @level are 0 where it names no entry, @pa is the data page that it takes, 0
 * where it takes none. @status is RAX, @operand the operand in it if it is
 * OPERAND_BUSY or OPERAND_INVALID. The time is that of KVM's hook as a whole.
 */
TRACE_EVENT(tdx_mirror_seamcall,
	TP_PROTO(u32 td, u32 leaf, u64 gpa, u32 level, u64 pa, u64 status, u64 cycles),
	TP_ARGS(td, leaf, gpa, level, pa, status, cycles),
	TP_STRUCT__entry(
		__field(u32, td)
		__field(u32, leaf)
		__field(u64, gpa)
		__field(u64, pa)
		__field(u64, status)
		__field(u64, cycles)
		__field(u64, ns)
		__field(u32, level)
		__field(u32, operand)
	),
	TP_fast_assign(
		u32 class = status >> 32;

		__entry->td = td;
		__entry->leaf = leaf;
		__entry->gpa = gpa;
		__entry->pa = pa;
		__entry->status = status;
		__entry->cycles = cycles;
		__entry->ns = tsc_khz ?
			mul_u64_u32_div(cycles, USEC_PER_SEC, tsc_khz) : 0;
		__entry->level = level;
		__entry->operand = class == 0x80000200 || class == 0xc0000100 ?
			(u32)status : 0;
	),
	TP_printk("td %u %s gpa 0x%llx level %u pa 0x%llx status 0x%016llx operand 0x%x cycles %llu ns %llu",
		  __entry->td,
		  __print_symbolic(__entry->leaf, TDX_MIRROR_TRACE_LEAVES),
		  __entry->gpa, __entry->level, __entry->pa, __entry->status,
		  __entry->operand, __entry->cycles, __entry->ns)
);

/*
 * An answer that is contention. @left is the number of tries that are left of
 * the budget: 0 is a give-up.
 */
TRACE_EVENT(tdx_mirror_busy,
	TP_PROTO(u32 td, u32 leaf, u64 gpa, u32 level, u32 operand, u32 left),
	TP_ARGS(td, leaf, gpa, level, operand, left),
	TP_STRUCT__entry(
		__field(u32, td)
		__field(u32, leaf)
		__field(u64, gpa)
		__field(u32, level)
		__field(u32, operand)
		__field(u32, left)
	),
	TP_fast_assign(
		__entry->td = td;
		__entry->leaf = leaf;
		__entry->gpa = gpa;
		__entry->level = level;
		__entry->operand = operand;
		__entry->left = left;
	),
	TP_printk("td %u %s gpa 0x%llx level %u operand %s tries left %u",
		  __entry->td,
		  __print_symbolic(__entry->leaf, TDX_MIRROR_TRACE_LEAVES),
		  __entry->gpa, __entry->level,
		  __print_symbolic(__entry->operand, TDX_MIRROR_TRACE_OPERANDS),
		  __entry->left)
);

/* All vCPUs were forced out of the guest, in @cycles of the TSC. */
TRACE_EVENT(tdx_mirror_kick,
	TP_PROTO(u32 td, u64 cycles),
	TP_ARGS(td, cycles),
	TP_STRUCT__entry(
		__field(u32, td)
		__field(u64, cycles)
	),
	TP_fast_assign(
		__entry->td = td;
		__entry->cycles = cycles;
	),
	TP_printk("td %u cycles %llu", __entry->td, __entry->cycles)
);

/* A try of TDH.MEM.TRACK. */
TRACE_EVENT(tdx_mirror_track,
	TP_PROTO(u32 td, u64 status),
	TP_ARGS(td, status),
	TP_STRUCT__entry(
		__field(u32, td)
		__field(u64, status)
	),
	TP_fast_assign(
		__entry->td = td;
		__entry->status = status;
	),
	TP_printk("td %u status 0x%016llx", __entry->td, __entry->status)
);

/* A page that the TDX module may still own is kept from the allocator. */
TRACE_EVENT(tdx_mirror_quarantine,
	TP_PROTO(u32 td, u64 gpa, u32 level, u64 pfn),
	TP_ARGS(td, gpa, level, pfn),
	TP_STRUCT__entry(
		__field(u32, td)
		__field(u32, level)
		__field(u64, gpa)
		__field(u64, pfn)
	),
	TP_fast_assign(
		__entry->td = td;
		__entry->level = level;
		__entry->gpa = gpa;
		__entry->pfn = pfn;
	),
	TP_printk("td %u gpa 0x%llx level %u pfn 0x%llx", __entry->td,
		  __entry->gpa, __entry->level, __entry->pfn)
);

/* A page is never given back; @pfn is 0 for a page of the S-EPT itself. */
TRACE_EVENT(tdx_mirror_leak,
	TP_PROTO(u32 td, u64 gpa, u32 level, u64 pfn, u64 status),
	TP_ARGS(td, gpa, level, pfn, status),
	TP_STRUCT__entry(
		__field(u32, td)
		__field(u32, level)
		__field(u64, gpa)
		__field(u64, pfn)
		__field(u64, status)
	),
	TP_fast_assign(
		__entry->td = td;
		__entry->level = level;
		__entry->gpa = gpa;
		__entry->pfn = pfn;
		__entry->status = status;
	),
	TP_printk("td %u gpa 0x%llx level %u pfn 0x%llx status 0x%016llx",
		  __entry->td, __entry->gpa, __entry->level, __entry->pfn,
		  __entry->status)
);

/*
 * A broken invariant. @kind: 0 a change without a meaning, from @value to
 * @other; 1 an entry with a @value that it cannot have there; 2 the external
 * table refused with the status @value and RCX @other; 3 an entry that is not
 * there.
 */
TRACE_EVENT(tdx_mirror_bug,
	TP_PROTO(u32 td, u32 kind, u64 gpa, u32 level, u64 value, u64 other),
	TP_ARGS(td, kind, gpa, level, value, other),
	TP_STRUCT__entry(
		__field(u32, td)
		__field(u32, kind)
		__field(u64, gpa)
		__field(u64, value)
		__field(u64, other)
		__field(u32, level)
	),
	TP_fast_assign(
		__entry->td = td;
		__entry->kind = kind;
		__entry->gpa = gpa;
		__entry->value = value;
		__entry->other = other;
		__entry->level = level;
	),
	TP_printk("td %u %s gpa 0x%llx level %u value 0x%016llx other 0x%llx",
		  __entry->td,
		  __print_symbolic(__entry->kind,
				   { 0, "transition" },
				   { 1, "unexpected" },
				   { 2, "external" },
				   { 3, "no_entry" }),
		  __entry->gpa, __entry->level, __entry->value, __entry->other)
);

#endif /* _TRACE_TDX_MIRROR_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE events

/* This part must be outside protection */
#include <trace/define_trace.h>
