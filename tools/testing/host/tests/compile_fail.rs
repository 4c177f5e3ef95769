// SPDX-License-Identifier: GPL-2.0

//! Programs that the compiler has to refuse, with the reason that it has to give.
//!
//! Each fixture is compiled as it is, and a second time with `--cfg control`, where the one wrong
//! line is put right: that must build, so that a fixture cannot fail for another reason.

use std::path::Path;
use std::process::Command;

/// Compiles a fixture; answers the error codes and messages, empty if it builds.
fn compile(name: &str, control: bool) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compile_fail");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{control}.rmeta"));
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut cmd = Command::new(rustc);
    cmd.args([
        "--edition=2021",
        "--crate-type=lib",
        "--emit=metadata",
        "-o",
    ])
    .arg(out)
    .arg(dir.join(format!("{name}.rs")));
    if control {
        cmd.args(["--cfg", "control"]);
    }
    let out = cmd.output().expect("rustc runs");
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    if out.status.success() {
        String::new()
    } else {
        assert!(text.contains("error"), "rustc failed oddly: {text}");
        text
    }
}

fn refused(name: &str, code: &str) {
    let control = compile(name, true);
    assert!(control.is_empty(), "{name}: the control fails: {control}");
    let errors = compile(name, false);
    assert!(
        errors.contains(&format!("error[{code}]")),
        "{name}: expected {code}, got: {errors}"
    );
    assert_eq!(errors.matches("error[").count(), 1, "{name}: {errors}");
}

/// Refused by a lint, which has no code: by what it says.
fn denied(name: &str, says: &str) {
    let control = compile(name, true);
    assert!(control.is_empty(), "{name}: the control fails: {control}");
    let errors = compile(name, false);
    assert!(errors.contains(&format!("error: {says}")), "{errors}");
    assert_eq!(errors.matches("error: unused").count(), 1, "{errors}");
}

// Shows: R41.
#[test]
fn the_result_of_a_map_must_be_used() {
    denied("result_ignored", "unused `Result` that must be used");
}

// Shows: R41.
#[test]
fn a_retry_must_be_seen() {
    denied("outcome_ignored", "unused `MapOutcome` that must be used");
}

// Shows: B12.
#[test]
fn zap_with_shared() {
    refused("zap_with_shared", "E0308");
}

// Shows: B12.
#[test]
fn map_without_token() {
    refused("map_without_token", "E0061");
}

// Shows: B12.
#[test]
fn map_with_exclusive() {
    refused("map_with_exclusive", "E0308");
}

// Shows: B12.
#[test]
fn token_needs_unsafe() {
    refused("token_needs_unsafe", "E0133");
}

// Shows: B12.
#[test]
fn token_stays_in_its_thread() {
    refused("token_stays_in_its_thread", "E0277");
}

// Shows: B14.
#[test]
fn assigned_page_cannot_be_given_back() {
    refused("assigned_page_given_back", "E0599");
}

// Shows: R17.
#[test]
fn frozen_spte_is_used_once() {
    refused("frozen_spte_used_twice", "E0382");
}

// Shows: B12.
#[test]
fn zap_slot_does_not_survive_a_yield() {
    refused("slot_survives_yield", "E0502");
}

// Shows: B12.
#[test]
fn token_is_not_lent_to_another_thread() {
    refused("shared_token_in_another_thread", "E0277");
}

// Shows: B12.
#[test]
fn map_under_rcu() {
    refused("map_under_rcu", "E0308");
}

// Shows: B12, B33.
#[test]
fn teardown_with_shared() {
    refused("teardown_with_shared", "E0308");
}

// Shows: R39.
#[test]
fn assigned_page_cannot_be_opened() {
    refused("assigned_page_opened", "E0616");
}

// Shows: B14.
#[test]
fn assigned_page_is_reclaimed_once() {
    refused("assigned_page_copied", "E0382");
}

// Shows: R35, B14.
#[test]
fn a_leaf_is_not_removed_before_it_is_blocked() {
    refused("remove_before_block", "E0271");
}

// Shows: B14.
#[test]
fn a_blocked_leaf_is_not_removed_before_the_track() {
    refused("remove_before_track", "E0271");
}

// Shows: B14.
#[test]
fn a_leaf_of_a_built_td_is_not_removed_at_once() {
    refused("remove_at_once_of_a_built_td", "E0271");
}

#[test]
fn no_leaf_is_blocked_while_the_td_is_built() {
    refused("block_while_building", "E0308");
}

// Shows: B21.
#[test]
fn a_leaf_is_blocked_once() {
    refused("block_twice", "E0382");
}

#[test]
fn a_blocked_leaf_is_not_blocked() {
    refused("block_of_a_blocked_entry", "E0308");
}

#[test]
fn a_blocked_leaf_is_removed_once() {
    refused("blocked_entry_removed_twice", "E0382");
}

#[test]
fn a_removed_leaf_is_not_quarantined() {
    refused("quarantine_after_remove", "E0382");
}

#[test]
fn a_table_is_unlinked_once() {
    refused("table_unlinked_twice", "E0382");
}

#[test]
fn a_leaf_is_not_unlinked() {
    refused("unlink_of_a_leaf", "E0308");
}

#[test]
fn a_slot_yields_one_entry() {
    refused("slot_opened_twice", "E0382");
}

// Shows: B12.
#[test]
fn an_entry_met_under_rcu_is_not_changed() {
    refused("entry_under_rcu", "E0599");
}

// Shows: B12.
#[test]
fn an_entry_does_not_survive_a_yield() {
    refused("entry_survives_yield", "E0502");
}

// Shows: B14.
#[test]
fn that_a_batch_is_tracked_cannot_be_claimed() {
    refused("token_made_without_a_batch", "E0423");
}

// Shows: R41.
#[test]
fn what_became_of_a_removal_must_be_seen() {
    denied(
        "removal_ignored",
        "unused `RemoveOutcome` that must be used",
    );
}

// Shows: R41.
#[test]
fn what_became_of_a_block_must_be_seen() {
    denied(
        "blocking_ignored",
        "unused `BlockOutcome` that must be used",
    );
}
