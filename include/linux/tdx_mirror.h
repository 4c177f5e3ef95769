/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The C contract between KVM and the module that owns a TD's mirror page table.
 *
 * KVM is the caller of struct tdx_mirror_ops, the module is the caller of
 * struct tdx_mirror_backend. Both structures start with their size and the
 * version of this contract; tdx_mirror_ops.create() refuses a backend of
 * another size or version with -EINVAL.
 */
#ifndef _LINUX_TDX_MIRROR_H
#define _LINUX_TDX_MIRROR_H

#include <linux/types.h>

/* Raised with every change of a structure or of a meaning in this file. */
#define TDX_MIRROR_ABI_VERSION	4

/*
 * The mirror's encoding of the SPTE values that KVM sees as well, see
 * FROZEN_SPTE, SHADOW_NONPRESENT_VALUE and SPTE_MMU_PRESENT_MASK in
 * arch/x86/kvm/mmu/spte.h. create() refuses a KVM with other ones.
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
 * @mmu_lock: the rwlock_t that is mmu_lock of the VM. No entry point takes it,
 *	the module asserts with lockdep that the caller holds it. Only the
 *	module's files in debugfs take it, for write and in task context, to
 *	read a part of the tables, until tdx_mirror_ops.end_files() returns.
 * @gfn_bits: number of bits of a private GFN; GFNs are below 1 << gfn_bits
 * @root_level: level of the root table, PG_LEVEL_512G (4) or PG_LEVEL_256T (5)
 * @spte_present_mask: KVM's MMU-present bit, to be equal to the mirror's
 * @spte_frozen: KVM's FROZEN_SPTE, to be equal to the mirror's
 * @spte_nonpresent: KVM's SHADOW_NONPRESENT_VALUE, to be equal to the mirror's
 *
 * Levels are KVM's enum pg_level (1 = 4K) and name the level of the entry that
 * is operated on. A @gfn is aligned to the level's size. No hook sleeps but
 * @alloc_root_spt and @yield; every other one may be called with the RCU read
 * lock held. A hook that is called against its rules makes no SEAMCALL, bugs
 * the VM and answers with a software error (status bits 63 and 47:40 set).
 *
 * @link_external_spt: TDH.MEM.SEPT.ADD. mmu_lock held for read.
 * @set_external_spte: TDH.MEM.PAGE.AUG, or PAGE.ADD before the TD is
 *	finalized. mmu_lock held for read. Called for exactly one transition:
 *	leaf, non-present to present.
 * @block_external_spte: TDH.MEM.RANGE.BLOCK, one try. mmu_lock held for write.
 * @track_external: TDH.MEM.TRACK, one try. mmu_lock held for write.
 * @remove_external_spte: TDH.MEM.PAGE.REMOVE, one try. mmu_lock held for write.
 * @wbinvd_external_page: TDH.PHYMEM.PAGE.WBINVD of a page just removed, then
 *	clears it where an erratum asks for that. mmu_lock held for write.
 * @free_external_spt: TDH.PHYMEM.PAGE.RECLAIM, one try, then clears the page
 *	where an erratum asks for that. Only once the HKID is released, which
 *	flushed the caches. The page itself stays the module's to put back.
 * @read_external_spte: TDH.MEM.SEPT.RD, one try. On success @err->ext1 is the
 *	entry and @err->ext2 its level and state. Taking the entry's lock clears
 *	the host-priority mark that a busy answer left there, which keeps the
 *	guest from accepting the page. mmu_lock held for read or for write.
 * @reclaim_external_page: TDH.PHYMEM.PAGE.RECLAIM of a quarantined data page, one
 *	try, then clears the page where an erratum asks for that. Only once the
 *	HKID is released. The page itself stays the guest's backing.
 * @kick_vcpus: force all vCPUs out of the guest and wait until they are out.
 *	mmu_lock held for write.
 * @hold_vcpus: true: vCPUs may not enter the guest until called with false.
 *	mmu_lock held for write.
 * @bug_vm: the VM is unusable from now on; returns at once, never the host's end.
 * @is_finalized: whether TDH.MR.FINALIZE was done (leaves need BLOCK and TRACK).
 *	Becomes true with mmu_lock held for write only: asked once while the lock
 *	is held, and again after @yield.
 * @is_hkid_assigned: whether the TD's HKID is still assigned
 * @alloc_root_spt: a zeroed page for the mirror's root table, may sleep;
 *	charged to the VM's memcg. NULL if there is none.
 * @take_spt: a page for a mirror table from @vcpu's pre-filled cache, each
 *	entry set to @spte_nonpresent. Called by tdx_mirror_ops.map() only.
 *	The cache holds enough for one walk, NULL if it is used up.
 * @take_external_spt: the same for a page of an S-EPT table, content undefined
 * @put_spt: gives back a page that was linked in no table, or that no walk
 *	can reach any more
 * @put_external_spt: gives back a page that the TDX module does not own
 * @account: @nr more (or fewer) mirror table pages are in use. @spt is still
 *	allocated. Balanced when @teardown of struct tdx_mirror_ops returns.
 * @account_external: the same for pages of S-EPT tables, whose content is never
 *	looked at. Pages that are lost leave the account as well.
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

/*
 * What tdx_mirror_ops.map() returns if it is no error.
 *
 * RETRY: not mapped, the caller retries the fault; bits TDX_MIRROR_MAP_REASON say
 * why. FIXED: the leaf is mapped now. SPURIOUS: the leaf was mapped to that PFN
 * already.
 *
 * Errors are negative: -EIO after a bug (the VM is bugged), -EINVAL for a GFN
 * or level out of range.
 */
#define TDX_MIRROR_MAP_RETRY		0x0000
#define TDX_MIRROR_MAP_FIXED		0x0001
#define TDX_MIRROR_MAP_SPURIOUS		0x0002
#define TDX_MIRROR_MAP_OUTCOME		0x00ff
#define TDX_MIRROR_MAP_REASON		0xff00

/*
 * Why a fault is to be retried, in the bits TDX_MIRROR_MAP_REASON.
 *
 * INVALIDATION: KVM's own reason, map() was not asked: an invalidation that covers
 * the GFN is under way, or one elsewhere as KVM merges ranges, or the memslot or
 * the root changed. map() never returns it with RETRY. FROZEN: another thread
 * holds an entry. NO_PAGE: the caches of the vCPU had no page for a table. The
 * others name what the TDX module was busy with for the whole budget of tries;
 * OTHER is something that no TDX module was known to lock there.
 */
#define TDX_MIRROR_RETRY_INVALIDATION	0x0000
#define TDX_MIRROR_RETRY_FROZEN		0x0100
#define TDX_MIRROR_RETRY_NO_PAGE	0x0200
#define TDX_MIRROR_RETRY_SEPT_TREE	0x1000
#define TDX_MIRROR_RETRY_SEPT_ENTRY	0x1100
#define TDX_MIRROR_RETRY_TD_EPOCH	0x1200
#define TDX_MIRROR_RETRY_PREVIOUS_EPOCH	0x1300
#define TDX_MIRROR_RETRY_TDR		0x1400
#define TDX_MIRROR_RETRY_OTHER		0x1500

/**
 * struct tdx_mirror_vcpu - the notes on one vCPU that KVM and the module share
 * @faults: written by KVM: EPT violations of private GPAs since the last exit that
 *	shows that the guest's RIP moved, the last one included, but those of
 *	TDG.MEM.PAGE.ACCEPT, which the TDX module doesn't count. Interrupts, NMIs,
 *	SMIs, EPT violations of shared GPAs and VP.ENTERs that found an operand
 *	busy show nothing and leave it as it is; every other exit zeroes it. The
 *	guest's RIP is hidden from the host, so this is the host's upper bound of
 *	what the TDX module counts for its zero-step mitigation.
 * @repeats: written by KVM: EPT violations of one private GFN in a row, those of
 *	TDG.MEM.PAGE.ACCEPT as well. One of another GFN is the first again; what
 *	zeroes @faults zeroes it.
 * @rounds: written by the module: local retries of the fault under way
 * @waits: written by the module: those of them that were KVM's own
 * @gfn: written by the module: the GFN of the fault under way
 * @spurious: written by the module: faults in a row on @gfn that found it mapped
 * @accept: written by KVM: the last EPT violation of a private GPA was one of
 *	TDG.MEM.PAGE.ACCEPT
 * @held: written by the module: @gfn is to be served before the next VP.ENTER,
 *	which would be in vain, or too close to the zero-step threshold
 *
 * Zero at creation of the vCPU. Used alone by the thread that holds the vCPU's
 * mutex. A caller that maps on behalf of no guest's fault has notes of its own.
 * The module keeps no pointer to it.
 */
struct tdx_mirror_vcpu {
	u32 faults;
	u32 repeats;
	u32 rounds;
	u32 waits;
	u64 gfn;
	u32 spurious;
	bool accept;
	bool held;
};

/*
 * Conditions that KVM reports to tdx_mirror_ops.fault_retry().
 *
 * SIGNAL: a signal is pending. EVENT: an event is to be injected that no VP.ENTER
 * took yet. SLOT_GONE: the memslot is being deleted or moved, which waits for this
 * thread. VM_DEAD: the VM is dead or bugged. PREFAULT: the fault is not the
 * guest's, no VP.ENTER follows.
 *
 * A root that became obsolete is none of them: KVM reloads it before it maps
 * again.
 */
#define TDX_MIRROR_FAULT_SIGNAL		0x01
#define TDX_MIRROR_FAULT_EVENT		0x02
#define TDX_MIRROR_FAULT_SLOT_GONE	0x04
#define TDX_MIRROR_FAULT_VM_DEAD	0x10
#define TDX_MIRROR_FAULT_PREFAULT	0x20

/*
 * What a vCPU is to do next.
 *
 * AGAIN: map once more, after cond_resched(). ENTER: enter the guest, which faults
 * again if need be; not with TDX_MIRROR_FAULT_PREFAULT. EXIT: return to userspace,
 * -EINTR for a signal, else -EAGAIN. KILL: the VM is dead, @bug_vm of struct
 * tdx_mirror_backend was called for it now or before: -EIO.
 */
#define TDX_MIRROR_AGAIN		0
#define TDX_MIRROR_ENTER		1
#define TDX_MIRROR_EXIT			2
#define TDX_MIRROR_KILL			3

/**
 * struct tdx_mirror_ops - entry points of the module
 * @size: sizeof(struct tdx_mirror_ops) of the module
 * @abi_version: TDX_MIRROR_ABI_VERSION of the module
 *
 * @create: a mirror for one TD. @backend must live until @destroy returns.
 *	Sleeps. Returns NULL and sets *@err to -EINVAL (size, version, levels,
 *	SPTE encoding or a missing hook) or -ENOMEM.
 * @map: maps @gfn to @pfn at @level (PG_LEVEL_4K). mmu_lock held for read.
 *	Never loops, never allocates but by the page suppliers of @vcpu.
 *	Returns TDX_MIRROR_MAP_* with, for a retry, TDX_MIRROR_RETRY_*, or an
 *	errno.
 * @zap_range: unmaps [@start, @end), a non-empty range of GFNs below
 *	1 << gfn_bits. mmu_lock held for write; dropped and retaken through
 *	@yield only if @can_yield. Cannot fail: what the TDX module may still
 *	own is quarantined and the VM bugged. Returns the number of leaves that
 *	were zapped.
 * @teardown: gives back all tables. HKID released, mmu_lock held for write and
 *	yielded, no walker left but RCU readers. Leaks and counts on doubt.
 * @destroy: frees the mirror and puts back its tables, after @teardown or
 *	without a map before. No other call is under way. Sleeps.
 * @fault_retry: what to do after @map returned TDX_MIRROR_MAP_RETRY for a
 *	private @gfn, or KVM itself has to begin anew before it calls @map.
 *	@conditions are TDX_MIRROR_FAULT_*, @reason is the TDX_MIRROR_RETRY_*
 *	that @map returned or TDX_MIRROR_RETRY_INVALIDATION. Returns
 *	TDX_MIRROR_AGAIN, a bounded number of times, or one of the other three.
 *	No lock held.
 * @fault_done: the fault at @gfn was served or ended in an error. @outcome is an
 *	errno, TDX_MIRROR_MAP_SPURIOUS or TDX_MIRROR_MAP_FIXED; the latter is told
 *	of a fault that had retries or was held, the others always. @conditions
 *	may have TDX_MIRROR_FAULT_EVENT if userspace got an error for this fault
 *	before. Returns TDX_MIRROR_ENTER, which with an error is to enter the
 *	guest for the event, or TDX_MIRROR_EXIT: userspace gets the error. No lock
 *	held.
 * @vp_enter_busy: TDH.VP.ENTER answered @status, TDX_OPERAND_BUSY with the
 *	operand in its low bits. Returns TDX_MIRROR_ENTER or TDX_MIRROR_KILL.
 *	No lock held, interrupts enabled.
 * @end_files: takes the TD's files in debugfs away, before the HKID is released:
 *	a read of the S-EPT, which is what they may call for, takes the TDR
 *	shared, so that a call that wants the TDR alone would find it busy. No
 *	vCPU runs any more. Sleeps until a read that is under way has ended,
 *	512 entries later at most; none begins afterwards. No lock held. Called
 *	once, or not at all if there never was an HKID.
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
	u32 (*fault_retry)(struct tdx_mirror *mirror,
			   struct tdx_mirror_vcpu *vcpu, u64 gfn,
			   u32 conditions, u32 reason);
	u32 (*fault_done)(struct tdx_mirror *mirror,
			  struct tdx_mirror_vcpu *vcpu, u64 gfn,
			  u32 conditions, int outcome);
	u32 (*vp_enter_busy)(struct tdx_mirror *mirror,
			     struct tdx_mirror_vcpu *vcpu, u64 status);
	void (*end_files)(struct tdx_mirror *mirror);
};

/**
 * tdx_mirror_get_ops() - the one symbol that the module exports to KVM
 *
 * Look it up with symbol_get() and give it back with symbol_put(): the
 * reference is what keeps the module loaded while a TD uses it.
 *
 * Return: the entry points, never NULL.
 */
const struct tdx_mirror_ops *tdx_mirror_get_ops(void);

#endif /* _LINUX_TDX_MIRROR_H */
