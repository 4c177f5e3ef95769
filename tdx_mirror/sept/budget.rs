// SPDX-License-Identifier: GPL-2.0

//! How often something is tried again, each number with what it follows from.

#![forbid(unsafe_code)]

/// EPT-violation exits at one guest RIP after which the TDX module lists the GPA and makes each
/// VP.ENTER walk the S-EPT under the exclusive tree lock.
pub const ZERO_STEP_THRESHOLD: u32 = 6;

/// VP.ENTERs in a row at one guest RIP that may end in an EPT violation: one more would reach the
/// threshold.
pub const MAX_ENTERS: u32 = ZERO_STEP_THRESHOLD - 1;

/// Tries of one SEAMCALL while the TD is built. There is no guest that an entry could starve and no
/// threshold: KVM maps again until a signal comes, with mmu_lock let go of in between.
pub const BUILD_TRIES: u32 = 1;

/// Tries of one SEAMCALL inside the freeze of a fault.
///
/// A fault that gives up may send the vCPU back into the guest, where it faults at the same RIP
/// and so counts towards the threshold. With fewer tries than the threshold, even a caller that
/// re-entered the guest once for each of them could not make the module list the GPA: whatever
/// contention these tries wait out, zero-step mitigation did not cause it.
pub const FAULT_TRIES: u32 = 5;

/// Tries of TDH.MEM.SEPT.RD after a fault has given up on an entry's lock, to clear the mark that
/// it left there. The entry is frozen as long, so it is the same budget again.
pub const PAY_TRIES: u32 = FAULT_TRIES;

/// Tries of one SEAMCALL of a zap: one beside running vCPUs, one with all of them out and held
/// out. Nobody is left then who could hold a lock, so a third one could not end otherwise.
pub const ZAP_TRIES: u32 = 2;

/// Tries of one SEAMCALL of the teardown: nobody uses the TD any more, so that whatever is busy
/// then shows that somebody does.
pub const TEARDOWN_TRIES: u32 = 1;

/// Pages that TDG.MEM.PAGE.ACCEPT of 2M clears with the lock of one S-EPT entry held. Nothing
/// that the guest does keeps such a lock for longer.
const ACCEPT_PAGES: u32 = 512;

/// Rounds in which a vCPU repeats a fault without entering the guest: with [`FAULT_TRIES`] tries
/// in each, one try for each page that the longest ACCEPT clears, and a SEAMCALL that finds a lock
/// held takes about as long as clearing one page.
///
/// Who meets a frozen entry makes no SEAMCALL, so its rounds are shorter. What they wait for is
/// shorter too: a mapper thaws after [`FAULT_TRIES`] and [`PAY_TRIES`] SEAMCALLs at most.
pub const LOCAL_ROUNDS: u32 = ACCEPT_PAGES.div_ceil(FAULT_TRIES);

/// Rounds for a vCPU that may not enter the guest before its fault is served, the first
/// [`LOCAL_ROUNDS`] included: as many as [`MAX_ENTERS`] faults have.
pub const HOLD_ROUNDS: u32 = MAX_ENTERS * LOCAL_ROUNDS;

/// Rounds of a fault that KVM itself lets begin anew, as for an invalidation under way. The vCPU
/// holds `kvm->srcu` meanwhile, for which an update of the memslots waits: no longer than for
/// contention.
pub const WAIT_ROUNDS: u32 = HOLD_ROUNDS;

/// Faults in a row that find their page mapped after which the page is taken for one that the TDX
/// module has listed. A race of two vCPUs for a page brings about one of them, a translation that
/// the CPU had cached another one.
pub const LISTED_AFTER: u32 = 3;

const _: () = {
    assert!(BUILD_TRIES == 1 && TEARDOWN_TRIES == 1);
    assert!(FAULT_TRIES >= BUILD_TRIES && FAULT_TRIES < ZERO_STEP_THRESHOLD);
    assert!(PAY_TRIES < ZERO_STEP_THRESHOLD);
    // One try before the kick and one after it.
    assert!(ZAP_TRIES == 2);
    // A vCPU may enter at least once, and one that is held waits longer than one that is not.
    assert!(MAX_ENTERS >= 1 && HOLD_ROUNDS > LOCAL_ROUNDS);
    // The rounds outlast the longest ACCEPT, and one fewer would not.
    assert!(LOCAL_ROUNDS * FAULT_TRIES >= ACCEPT_PAGES);
    assert!((LOCAL_ROUNDS - 1) * FAULT_TRIES < ACCEPT_PAGES);
    assert!(LOCAL_ROUNDS > FAULT_TRIES + PAY_TRIES);
    // A vCPU that may not enter without its page may enter for one event.
    assert!(MAX_ENTERS < ZERO_STEP_THRESHOLD);
};
