/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The C contract between KVM and the module that owns a TD's mirror page table.
 *
 * KVM is the caller of struct tdx_mirror_ops, the module is the caller of
 * struct tdx_mirror_backend.  Both structures start with their size and the
 * version of this contract; tdx_mirror_ops.create() refuses a backend of
 * another size or version with -EINVAL.
 */
#ifndef _LINUX_TDX_MIRROR_H
#define _LINUX_TDX_MIRROR_H

#include <linux/types.h>

/* Raised with every change of a structure or of a meaning in this file. */
#define TDX_MIRROR_ABI_VERSION	2

/* The exported getter, looked up with symbol_get() by kvm_intel. */
#define TDX_MIRROR_GETTER	tdx_mirror_get_ops

/*
 * Exported (EXPORT_SYMBOL_GPL) by a kvm.ko that can delegate a mirror root:
 * TDX_MIRROR_ABI_VERSION of its build.  The module looks at it only to say at
 * load that the running KVM will never call it.
 */
extern const u32 kvm_mirror_provider_abi;

/*
 * The mirror's encoding of the SPTE values that KVM sees as well, see
 * FROZEN_SPTE, SHADOW_NONPRESENT_VALUE and SPTE_MMU_PRESENT_MASK in
 * arch/x86/kvm/mmu/spte.h.  create() refuses a KVM with other ones.
 */
#define TDX_MIRROR_SPTE_PRESENT		0x0000000000000800ULL
#define TDX_MIRROR_SPTE_NONPRESENT	0x8000000000000000ULL
#define TDX_MIRROR_SPTE_FROZEN		0x80000000000001a0ULL

struct tdx_mirror;

/**
 * struct tdx_mirror_err - what a SEAMCALL answered
 * @status: completion status as in RAX, 0 is success
 * @ext1: RCX on return (S-EPT entry, page type, ...), 0 if the leaf has none
 * @ext2: RDX on return (level and state, owner, ...), 0 if the leaf has none
 * @ext3: R8 on return (page size of a reclaim), 0 if the leaf has none
 */
struct tdx_mirror_err {
	u64 status;
	u64 ext1;
	u64 ext2;
	u64 ext3;
};

/**
 * struct tdx_mirror_backend - what kvm_intel gives the mirror of one TD
 * @size: sizeof(struct tdx_mirror_backend) of the caller
 * @abi_version: TDX_MIRROR_ABI_VERSION of the caller
 * @ctx: first argument of every hook; the module never looks inside
 * @mmu_lock: the rwlock_t that is mmu_lock of the VM.  The module never takes
 *	it, it only asserts with lockdep that the caller holds it.
 * @gfn_bits: number of bits of a private GFN; GFNs are below 1 << gfn_bits
 * @root_level: level of the root table, PG_LEVEL_512G (4) or PG_LEVEL_256T (5)
 * @spte_present_mask: KVM's MMU-present bit, to be equal to the mirror's
 * @spte_frozen: KVM's FROZEN_SPTE, to be equal to the mirror's
 * @spte_nonpresent: KVM's SHADOW_NONPRESENT_VALUE, to be equal to the mirror's
 *
 * Levels are KVM's enum pg_level (1 = 4K) and name the level of the entry that
 * is operated on.  A @gfn is aligned to the level's size.  No hook sleeps but
 * @alloc_root_spt and @yield; every other one may be called with the RCU read
 * lock held.  A hook that is called against its rules makes no SEAMCALL, bugs
 * the VM and answers with a software error (status bits 63 and 47:40 set).
 *
 * @link_external_spt: TDH.MEM.SEPT.ADD.  mmu_lock held for read.
 * @set_external_spte: TDH.MEM.PAGE.AUG, or PAGE.ADD before the TD is
 *	finalized.  mmu_lock held for read.  Called for exactly one transition:
 *	leaf, non-present to present.
 * @block_external_spte: TDH.MEM.RANGE.BLOCK, one try.  mmu_lock held for write.
 * @track_external: TDH.MEM.TRACK, one try.  mmu_lock held for write.
 * @remove_external_spte: TDH.MEM.PAGE.REMOVE, one try.  mmu_lock held for write.
 * @wbinvd_external_page: TDH.PHYMEM.PAGE.WBINVD of a page just removed, then
 *	clears it where an erratum asks for that.  mmu_lock held for write.
 * @free_external_spt: TDH.PHYMEM.PAGE.RECLAIM, one try, then clears the page
 *	where an erratum asks for that.  Only once the HKID is released, which
 *	flushed the caches.  The page itself stays the module's to put back.
 * @read_external_spte: TDH.MEM.SEPT.RD, one try.  On success @err->ext1 is the
 *	entry and @err->ext2 its level and state.  Taking the entry's lock clears
 *	the host-priority mark that a busy answer left there, which keeps the
 *	guest from accepting the page.  mmu_lock held for read or for write.
 * @reclaim_external_page: TDH.PHYMEM.PAGE.RECLAIM of a quarantined data page, one
 *	try, then clears the page where an erratum asks for that.  Only once the
 *	HKID is released.  The page itself stays the guest's backing.
 * @kick_vcpus: force all vCPUs out of the guest and wait until they are out.
 *	mmu_lock held for write.
 * @hold_vcpus: true: vCPUs may not enter the guest until called with false.
 *	mmu_lock held for write.
 * @bug_vm: the VM is unusable from now on; returns at once, never the host's end.
 * @is_finalized: whether TDH.MR.FINALIZE was done (leaves need BLOCK and TRACK)
 * @is_hkid_assigned: whether the TD's HKID is still assigned
 * @alloc_root_spt: a zeroed page for the mirror's root table, may sleep;
 *	charged to the VM's memcg.  NULL if there is none.
 * @take_spt: a page for a mirror table from @vcpu's pre-filled cache, each
 *	entry set to @spte_nonpresent.  Called by tdx_mirror_ops.map() only.
 *	The cache holds enough for one walk, NULL if it is used up.
 * @take_external_spt: the same for a page of an S-EPT table, content undefined
 * @put_spt: gives back a page that was linked in no table, or that no walk
 *	can reach any more
 * @put_external_spt: gives back a page that the TDX module does not own
 * @account: @nr more (or fewer) mirror table pages are in use.  @spt is still
 *	allocated.  Balanced when @teardown of struct tdx_mirror_ops returns.
 * @account_external: the same for pages of S-EPT tables, whose content is never
 *	looked at.  Pages that are lost leave the account as well.
 * @page_stats: @nr more (or fewer) leaves are mapped at @level
 * @need_resched: whether mmu_lock, held for write, should be yielded now
 * @yield: drops mmu_lock, held for write, reschedules and takes it again
 */
struct tdx_mirror_backend {
	u32 size;
	u32 abi_version;
	void *ctx;
	void *mmu_lock;
	u32 gfn_bits;
	u32 root_level;
	u64 spte_present_mask;
	u64 spte_frozen;
	u64 spte_nonpresent;

	void (*link_external_spt)(void *ctx, u64 gfn, int level,
				  void *external_spt, struct tdx_mirror_err *err);
	void (*set_external_spte)(void *ctx, u64 gfn, int level, u64 pfn,
				  struct tdx_mirror_err *err);
	void (*block_external_spte)(void *ctx, u64 gfn, int level,
				    struct tdx_mirror_err *err);
	void (*track_external)(void *ctx, struct tdx_mirror_err *err);
	void (*remove_external_spte)(void *ctx, u64 gfn, int level,
				     struct tdx_mirror_err *err);
	void (*wbinvd_external_page)(void *ctx, u64 pfn, int level,
				     struct tdx_mirror_err *err);
	void (*free_external_spt)(void *ctx, void *external_spt,
				  struct tdx_mirror_err *err);
	void (*read_external_spte)(void *ctx, u64 gfn, int level,
				   struct tdx_mirror_err *err);
	void (*reclaim_external_page)(void *ctx, u64 pfn, int level,
				      struct tdx_mirror_err *err);
	void (*kick_vcpus)(void *ctx);
	void (*hold_vcpus)(void *ctx, bool hold);
	void (*bug_vm)(void *ctx);
	bool (*is_finalized)(void *ctx);
	bool (*is_hkid_assigned)(void *ctx);
	void *(*alloc_root_spt)(void *ctx);
	void *(*take_spt)(void *ctx, void *vcpu);
	void *(*take_external_spt)(void *ctx, void *vcpu);
	void (*put_spt)(void *ctx, void *spt);
	void (*put_external_spt)(void *ctx, void *external_spt);
	void (*account)(void *ctx, void *spt, int nr);
	void (*account_external)(void *ctx, void *external_spt, int nr);
	void (*page_stats)(void *ctx, int level, long nr);
	bool (*need_resched)(void *ctx);
	void (*yield)(void *ctx);
};

/**
 * enum tdx_mirror_map_result - outcome of tdx_mirror_ops.map()
 * @TDX_MIRROR_MAP_RETRY: nothing changed, the caller retries the fault
 * @TDX_MIRROR_MAP_FIXED: the leaf is mapped now
 * @TDX_MIRROR_MAP_SPURIOUS: the leaf was mapped to that PFN already
 *
 * Errors are negative: -EIO after a bug (the VM is bugged), -EINVAL for a GFN
 * or level out of range, -EBUSY for contention before the TD is finalized.
 */
enum tdx_mirror_map_result {
	TDX_MIRROR_MAP_RETRY = 0,
	TDX_MIRROR_MAP_FIXED = 1,
	TDX_MIRROR_MAP_SPURIOUS = 2,
};

/**
 * struct tdx_mirror_vcpu - the notes on one vCPU that KVM and the module share
 * @faults: written by KVM: EPT violations of private GPAs since the last exit that
 *	shows that the guest's RIP moved, the last one included.  Interrupts,
 *	NMIs, SMIs, EPT violations of shared GPAs and VP.ENTERs that found an
 *	operand busy show nothing and leave it as it is.  An EPT violation of
 *	TDG.MEM.PAGE.ACCEPT for another GFN than the one before is the first
 *	again; every other exit zeroes it.  The guest's RIP is hidden from the
 *	host, so this is the host's upper bound of what the TDX module counts
 *	for its zero-step mitigation.
 * @rounds: written by the module: local retries of the fault under way
 * @gfn: written by the module: the GFN of the fault under way
 * @held: written by the module: @gfn is to be served before the next VP.ENTER,
 *	which would come too close to the zero-step threshold otherwise
 *
 * Zero at creation of the vCPU.  Used alone by the thread that holds the vCPU's
 * mutex.  A caller that maps on behalf of no guest's fault has notes of its own.
 * The module keeps no pointer to it.
 */
struct tdx_mirror_vcpu {
	u32 faults;
	u32 rounds;
	u64 gfn;
	bool held;
};

/*
 * Conditions that KVM reports to tdx_mirror_ops.fault_retry().
 *
 * SIGNAL: a signal is pending.  EVENT: an event is to be injected.  SLOT_GONE:
 * the memslot is being deleted or moved, which waits for this thread.  ROOT_GONE:
 * the root that the fault began with is obsolete.  VM_DEAD: the VM is dead or
 * bugged.  PREFAULT: the fault is not the guest's, no VP.ENTER follows.
 */
#define TDX_MIRROR_FAULT_SIGNAL		0x01
#define TDX_MIRROR_FAULT_EVENT		0x02
#define TDX_MIRROR_FAULT_SLOT_GONE	0x04
#define TDX_MIRROR_FAULT_ROOT_GONE	0x08
#define TDX_MIRROR_FAULT_VM_DEAD	0x10
#define TDX_MIRROR_FAULT_PREFAULT	0x20

/**
 * enum tdx_mirror_action - what a vCPU is to do next
 * @TDX_MIRROR_AGAIN: map once more, after cond_resched()
 * @TDX_MIRROR_ENTER: enter the guest, which faults again if need be.  Not with
 *	TDX_MIRROR_FAULT_PREFAULT.
 * @TDX_MIRROR_EXIT: return to userspace, -EINTR for a signal, else -EAGAIN
 * @TDX_MIRROR_KILL: the VM is dead, @bug_vm of struct tdx_mirror_backend was
 *	called for it now or before: -EIO
 */
enum tdx_mirror_action {
	TDX_MIRROR_AGAIN = 0,
	TDX_MIRROR_ENTER = 1,
	TDX_MIRROR_EXIT = 2,
	TDX_MIRROR_KILL = 3,
};

/**
 * struct tdx_mirror_stats - exact at a quiescent point of the TD
 * @mapped: leaves mapped since creation
 * @zapped: leaves zapped since creation
 * @leaf_transitions: leaf non-present to present transitions; equal to the
 *	successful calls of set_external_spte
 * @set_external_spte_calls: all calls of set_external_spte
 * @link_calls: calls of link_external_spt
 * @block_calls: calls of block_external_spte
 * @track_calls: calls of track_external
 * @remove_calls: calls of remove_external_spte
 * @wbinvd_calls: calls of wbinvd_external_page
 * @reclaim_calls: calls of free_external_spt and of reclaim_external_page
 * @busy: hook calls that answered with contention
 * @retries: hook calls that were repeated for contention
 * @giveups: operations that ended for contention
 * @kicks: calls of kick_vcpus
 * @frozen_seen: operations that bailed out at a frozen entry
 * @spurious: maps that found the leaf mapped
 * @quarantined: pages that the TDX module may still own, GFN blocked
 * @leaked: pages never given back to the allocator
 * @tables: mirror table pages in use, the root included
 * @external_tables: S-EPT pages in use, without the root, which is the TDX
 *	module's own
 * @resolved: quarantined pages that the teardown could reclaim after all
 * @zap_batches: batches of leaves that were zapped with one TRACK, or without
 *	one before the TD is finalized
 * @debts: host-priority marks that operations left when they gave up
 * @debts_paid: marks of these that are cleared again
 * @debts_lost: marks of these that nobody will clear, because there were too many
 *	or the TD ended
 * @read_calls: calls of read_external_spte
 * @local_retries: rounds of fault_retry() that answered TDX_MIRROR_AGAIN
 * @local_giveups: faults that fault_retry() ended without the page mapped
 * @held: vCPUs that were kept from VP.ENTER near the zero-step threshold
 * @vp_enter_busy: VP.ENTERs that found the S-EPT busy, which is a bug
 * @vp_enter_busy_other: VP.ENTERs that found something else busy
 * @killed: VMs that the policy ended (vp_enter_policy=kill), 0 or 1
 */
struct tdx_mirror_stats {
	u64 mapped, zapped, leaf_transitions, set_external_spte_calls;
	u64 link_calls, block_calls, track_calls, remove_calls;
	u64 wbinvd_calls, reclaim_calls, busy, retries, giveups, kicks;
	u64 frozen_seen, spurious, quarantined, leaked, tables;
	u64 external_tables, resolved, zap_batches, debts, debts_paid;
	u64 debts_lost, read_calls, local_retries, local_giveups, held;
	u64 vp_enter_busy, vp_enter_busy_other, killed;
};

/**
 * struct tdx_mirror_ops - entry points of the module
 * @size: sizeof(struct tdx_mirror_ops) of the module
 * @abi_version: TDX_MIRROR_ABI_VERSION of the module
 *
 * @create: a mirror for one TD.  @backend must live until @destroy returns.
 *	Sleeps.  Returns NULL and sets *@err to -EINVAL (size, version, levels,
 *	SPTE encoding or a missing hook) or -ENOMEM.
 * @map: maps @gfn to @pfn at @level (PG_LEVEL_4K).  mmu_lock held for read.
 *	Never loops, never allocates but by the page suppliers of @vcpu.
 * @zap_range: unmaps [@start, @end), a non-empty range of GFNs below
 *	1 << gfn_bits.  mmu_lock held for write; dropped and retaken through
 *	@yield only if @can_yield.  Cannot fail: what the TDX module may still
 *	own is quarantined and the VM bugged.  Returns the number of leaves that
 *	were zapped.
 * @teardown: gives back all tables.  HKID released, mmu_lock held for write,
 *	no walker left but RCU readers.  Leaks and counts on doubt.
 * @destroy: frees the mirror and puts back its tables, after @teardown or
 *	without a map before.  No other call is under way.  Sleeps.
 * @fault_retry: what to do after @map answered TDX_MIRROR_MAP_RETRY for a
 *	private @gfn, or KVM itself has to begin anew before it calls @map;
 *	@conditions are TDX_MIRROR_FAULT_*.  The answer is TDX_MIRROR_AGAIN a
 *	bounded number of times.  No lock held.
 * @fault_done: the fault at @gfn that had retries, or was held, was served or
 *	ended in an error: the notes begin anew.  No lock held.
 * @vp_enter_busy: TDH.VP.ENTER answered @status, TDX_OPERAND_BUSY with the
 *	operand in its low bits.  Answers TDX_MIRROR_ENTER or TDX_MIRROR_KILL.
 *	No lock held, interrupts enabled.
 * @walk: debug: the raw SPTE that maps @gfn and its *@level.  Takes RCU itself.
 * @stats: figures of one TD, from any context.
 */
struct tdx_mirror_ops {
	u32 size;
	u32 abi_version;

	struct tdx_mirror *(*create)(const struct tdx_mirror_backend *backend,
				     int *err);
	int (*map)(struct tdx_mirror *mirror, void *vcpu, u64 gfn, u64 pfn,
		   int level);
	u64 (*zap_range)(struct tdx_mirror *mirror, u64 start, u64 end,
			 bool can_yield);
	void (*teardown)(struct tdx_mirror *mirror);
	void (*destroy)(struct tdx_mirror *mirror);
	enum tdx_mirror_action (*fault_retry)(struct tdx_mirror *mirror,
					      struct tdx_mirror_vcpu *vcpu,
					      u64 gfn, u32 conditions);
	void (*fault_done)(struct tdx_mirror *mirror,
			   struct tdx_mirror_vcpu *vcpu, u64 gfn);
	enum tdx_mirror_action (*vp_enter_busy)(struct tdx_mirror *mirror,
						struct tdx_mirror_vcpu *vcpu,
						u64 status);
	u64 (*walk)(struct tdx_mirror *mirror, u64 gfn, int *level);
	void (*stats)(struct tdx_mirror *mirror, struct tdx_mirror_stats *stats);
};

/**
 * tdx_mirror_get_ops() - the one symbol that the module exports
 *
 * Look it up with symbol_get() and give it back with symbol_put(): the
 * reference is what keeps the module loaded while a TD uses it.
 *
 * Return: the entry points, never NULL.
 */
const struct tdx_mirror_ops *tdx_mirror_get_ops(void);

#endif /* _LINUX_TDX_MIRROR_H */
