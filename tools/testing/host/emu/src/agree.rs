// SPDX-License-Identifier: GPL-2.0

//! The two tables of the TDX interface, the product's and the emulator's, were written
//! separately; here they are compared.

use crate::module::numbers::{op, st, LEAF_NAMES};
use crate::module::tree::{details, State};
use crate::module::Regs;
use crate::tdx::leaf::Leaf;
use crate::tdx::sept::{EntryInfo, SeptState};
use crate::tdx::status::{OperandId, TdxStatus};

#[test]
fn leaf_numbers() {
    let mut compared = 0;
    for number in 0..=255u16 {
        let ours = LEAF_NAMES.iter().find(|l| l.0 == number).map(|l| l.1);
        let theirs = Leaf::new(number)
            .name()
            .map(|n| n.to_lowercase().replace('.', "_"));
        if let Some(theirs) = theirs {
            assert_eq!(ours, Some(theirs.as_str()), "leaf {number}");
            compared += 1;
        }
    }
    assert!(compared > 20);
}

macro_rules! same_status {
    ($($name:ident)*) => { $(assert_eq!(st::$name, TdxStatus::$name.raw(), stringify!($name));)* };
}

#[test]
fn completion_status() {
    same_status! {
        SUCCESS NON_RECOVERABLE_VCPU INTERRUPTED_RESTARTABLE OPERAND_INVALID
        OPERAND_ADDR_RANGE_ERROR OPERAND_BUSY PREVIOUS_TLB_EPOCH_BUSY SYS_BUSY RND_NO_ENTROPY
        HOST_PRIORITY_BUSY_TIMEOUT PAGE_METADATA_INCORRECT TD_ASSOCIATED_PAGES_EXIST
        SYS_NOT_READY SYS_SHUTDOWN TD_FATAL TDCS_NOT_ALLOCATED LIFECYCLE_STATE_INCORRECT
        OP_STATE_INCORRECT NO_VCPUS VCPU_STATE_INCORRECT VCPU_ASSOCIATED VCPU_NOT_ASSOCIATED
        TD_KEYS_NOT_CONFIGURED EPT_WALK_FAILED EPT_ENTRY_NOT_PRESENT GPA_RANGE_NOT_BLOCKED
        GPA_RANGE_ALREADY_BLOCKED TLB_TRACKING_NOT_DONE EPT_INVALID_PROMOTE_CONDITIONS
        PAGE_ALREADY_ACCEPTED PAGE_SIZE_MISMATCH EPT_ENTRY_STATE_INCORRECT EPT_PAGE_NOT_FREE
    }
}

#[test]
fn operands() {
    for (ours, theirs) in [
        (op::RAX, OperandId::RAX),
        (op::RCX, OperandId::RCX),
        (op::RDX, OperandId::RDX),
        (op::R8, OperandId::R8),
        (op::TDR, OperandId::TDR),
        (op::SEPT_TREE, OperandId::SEPT_TREE),
        (op::TD_EPOCH, OperandId::TD_EPOCH),
        (op::OP_STATE, OperandId::OP_STATE),
        (op::KOT, OperandId::KOT),
    ] {
        assert_eq!(ours, u64::from(theirs.as_u32()));
    }
}

#[test]
fn reported_entries() {
    for (raw, state) in [
        (0x80E0_0000_0000_0000, SeptState::FREE),
        (0x8000_0000_1234_5007, SeptState::NL_MAPPED),
        (0x8080_0000_1234_5000, SeptState::NL_BLOCKED),
        (0x8000_0000_1234_50F7, SeptState::MAPPED),
        (0x8080_0000_1234_50F0, SeptState::BLOCKED),
        (0x8100_0000_1234_50F0, SeptState::PENDING),
        (0x8180_0000_1234_50F0, SeptState::PENDING_BLOCKED),
    ] {
        let mut r = Regs::default();
        details(&mut r, raw, 1);
        let seen = EntryInfo::decode(r.rcx, r.rdx);
        assert_eq!(seen.state, state);
        assert_eq!(
            State::of(raw).map(State::code),
            Some(u64::from(state.as_u8()))
        );
        assert_eq!(seen.level.map(|l| l as u64), Some(2));
    }
}
