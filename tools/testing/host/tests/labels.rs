// SPDX-License-Identifier: GPL-2.0

//! Labels of SEAMCALLs and operands in what reads the figures and the trace.

use tdx_mirror_host::base::td::Operand;
use tdx_mirror_host::tdx::call::FIGURES;

const FIGURES_RST: &str = include_str!("../../../../Documentation/figures.rst");
const JUDGE: &str = include_str!("../../trace/judge.py");

#[test]
fn the_text_on_figures_names_all_labels() {
    for label in FIGURES {
        assert!(FIGURES_RST.contains(&format!("``{label}``")), "{label}");
    }
}

#[test]
fn the_judge_of_the_trace_knows_the_operands() {
    for operand in Operand::ALL {
        let entry = format!("\"{}\": \"{}\"", operand.index() + 1, operand.label());
        assert!(JUDGE.contains(&entry), "{entry}");
    }
}
