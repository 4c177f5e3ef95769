// SPDX-License-Identifier: GPL-2.0

//! Puts shipped sources on loom's atomics for tests/loom.rs: the same text, with one path
//! replaced.

use std::path::Path;

/// Locks, S-EPT entries, TD epochs, and the numbers that they name.
const SOURCES: [&str; 4] = ["lock", "tree", "epoch", "numbers"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let out = std::env::var_os("OUT_DIR").expect("OUT_DIR");
    for name in SOURCES {
        let path = format!("../../../../tdx_emu/module/{name}.rs");
        println!("cargo:rerun-if-changed={path}");
        let source = std::fs::read_to_string(&path).expect("a source of tdx_emu/module");
        assert!(name == "numbers" || source.contains("core::sync::atomic"));
        let on_loom: String = source
            .lines()
            .filter(|l| !l.starts_with("//!") && !l.starts_with("#!["))
            .map(|l| l.replace("core::sync::atomic", "loom::sync::atomic") + "\n")
            .collect();
        let file = Path::new(&out).join(format!("{name}_on_loom.rs"));
        std::fs::write(file, on_loom).expect("a file in OUT_DIR");
    }
}
