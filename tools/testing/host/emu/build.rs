// SPDX-License-Identifier: GPL-2.0
//! Puts the shipped locks on loom's atomics for tests/loom.rs: the same source, with one
//! path replaced.

use std::path::Path;

const LOCKS: &str = "../../../../rust/emu/lock.rs";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={LOCKS}");
    let source = std::fs::read_to_string(LOCKS).expect("rust/emu/lock.rs");
    assert!(source.contains("core::sync::atomic"));
    let on_loom: String = source
        .lines()
        .filter(|l| !l.starts_with("//!"))
        .map(|l| l.replace("core::sync::atomic", "loom::sync::atomic") + "\n")
        .collect();
    let out = std::env::var_os("OUT_DIR").expect("OUT_DIR");
    std::fs::write(Path::new(&out).join("lock_on_loom.rs"), on_loom).expect("a file in OUT_DIR");
}
