// SPDX-License-Identifier: GPL-2.0

//! The mirror page table of one TD and the protocol that keeps it equal to the Secure EPT.
//!
//! Everything here is pure: it needs `core` alone, builds unchanged in the kernel and on the
//! host, and reaches the world through the traits [`external::ExternalPt`], [`mmu::Vm`] and
//! [`table::PageMap`].
//!
//! Two protocols exist and the evidence tokens of [`lock`] keep them apart. With mmu_lock held
//! for read, an entry is frozen with cmpxchg, the external table is updated, and the entry is
//! thawed to the new value or rolled back to the old one. With mmu_lock held for write nothing
//! is frozen, and a frozen entry is a bug.
//!
//! # DOC: Language of the mirror
//!
//! * mirror - The page table that KVM reads in place of the S-EPT: one entry for each of its
//!   entries.
//! * external - What belongs to the S-EPT: external table, external entry, external page. The
//!   mirror knows it as [`external::ExternalPt`] only.
//! * S-EPT - Secure EPT, the page table of private memory that the TDX module keeps.
//! * GFN, PFN - Frame number of the guest, without the shared bit, and of the host, without HKID.
//! * level - What one entry maps, 4K to 256T, by KVM's numbers.
//! * SPTE - The value of an entry, in KVM's encoding; see [`spte::SpteKind`] for what it can be.
//! * position - Which entry: a level and the first GFN that it covers.
//! * leaf - An entry that maps a page, and the page that it maps.
//! * table - 512 entries in a page, and the entry that links to it. The root is linked by none.
//! * companion - The S-EPT page of a table, kept with the mirror's page. To *pair* a table is to
//!   keep its companion with it, to *unpair* it to take both apart.
//! * freeze - To take a non-present entry by cmpxchg, with mmu_lock held for read.
//! * thaw - To end a freeze with a new value. To *roll back* is to end it with the old one.
//! * map - To make a leaf of a non-present entry, and tables above it where there are none.
//! * spurious - A map that finds the page mapped already.
//! * zap - To make leaves non-present, with mmu_lock held for write.
//! * block - To keep vCPUs from new translations of a leaf: TDH.MEM.RANGE.BLOCK.
//! * track - To begin a new TLB epoch, after which a kick makes sure that no vCPU uses what was
//!   blocked: TDH.MEM.TRACK.
//! * kick - To force all vCPUs out of the guest. To *hold* them is to let none in again.
//! * batch - Leaves that are blocked one after the other, tracked once and then removed.
//! * remove - To take a blocked and tracked page away from the TD: TDH.MEM.PAGE.REMOVE.
//! * reclaim - To get a page back from a TD whose HKID is released: TDH.PHYMEM.PAGE.RECLAIM.
//! * quarantined - Of a page that the TDX module may still own because a removal failed. It is
//!   *held*: a reference keeps it from the allocator. Its entry refuses every change.
//! * leaked - Of a page that is never given back, since no reclaim will be tried again.
//! * mark - What a SEAMCALL of the host leaves at an entry whose lock it finds held: the guest's
//!   accept of it fails until the host has locked the entry.
//! * debt - A mark that an operation has left behind when it gave up. It is *noted* in the *book*
//!   and *paid* by the next SEAMCALL that locks the entry.
//! * contention - An operand that another legitimate actor may hold is busy. Any other failure
//!   is a bug of the VM, which ends.
//! * budget - The number of tries that contention is worth.
//! * build, run - The phases of a TD: until TDH.MR.FINALIZE, and from then on.

mod audit;
pub mod cell;
pub mod cursor;
pub mod entry;
pub mod error;
pub mod external;
pub mod frozen;
pub mod lock;
mod map;
pub mod mmu;
pub mod spte;
pub mod stats;
pub mod survey;
pub mod table;
mod teardown;
mod zap;

pub use self::audit::Compared;
