// SPDX-License-Identifier: GPL-2.0
//! How a run ends, and the exit status for it.

use std::fmt;

/// Largest exit status that stands for the TD's own result.
pub const RESULT_MAX: u8 = 63;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The TD powered off; its result, if it reported one.
    PowerOff(Option<u8>),
    /// The TD died.
    Crash(String),
    /// KVM or the host failed, or asked for what is not supported.
    Error(String),
    Timeout(u64),
    /// By the user.
    Quit,
}

impl Outcome {
    /// See `--help`.
    pub fn status(&self) -> i32 {
        match self {
            Self::PowerOff(Some(result)) => (*result).min(RESULT_MAX).into(),
            Self::Error(_) => 65,
            Self::Crash(_) => 66,
            Self::PowerOff(None) => 67,
            Self::Timeout(_) => 68,
            Self::Quit => 69,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff(Some(0)) => write!(f, "the TD powered off and reported success"),
            Self::PowerOff(Some(n)) => write!(f, "the TD powered off and reported failure {n}"),
            Self::PowerOff(None) => write!(f, "the TD powered off without a result (port f4)"),
            Self::Crash(why) => write!(f, "the TD died: {why}"),
            Self::Error(why) => write!(f, "{why}"),
            Self::Timeout(seconds) => write!(f, "the TD did not end within {seconds} s"),
            Self::Quit => write!(f, "ended by the user"),
        }
    }
}

/// The text of a fatal-error report, registers in the order of their numbers. Of a
/// message the bytes are in R14, R15, RBX, RDI, RSI, R8, R9, RDX.
pub fn fatal_error(regs: &[u64]) -> String {
    const MESSAGE: [usize; 8] = [14, 15, 3, 7, 6, 8, 9, 2];
    let reg = |n: usize| regs.get(n).copied().unwrap_or(0);
    let bytes = MESSAGE.iter().flat_map(|n| reg(*n).to_le_bytes());
    let text: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    let printable = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    match String::from_utf8(text) {
        Ok(text) if !text.is_empty() && text.bytes().all(|byte| printable(&byte)) => {
            format!("fatal error {:#x}: {text}", reg(12))
        }
        _ => format!(
            "fatal error {:#x}, R13 {:#x}, R14 {:#x}",
            reg(12),
            reg(13),
            reg(14)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_status() {
        assert_eq!(Outcome::PowerOff(Some(0)).status(), 0);
        assert_eq!(Outcome::PowerOff(Some(9)).status(), 9);
        // A result is never taken for another outcome.
        for result in 64..=255 {
            assert_eq!(Outcome::PowerOff(Some(result)).status(), 63);
        }
        let mut others: Vec<i32> = [
            Outcome::Error(String::new()),
            Outcome::Crash(String::new()),
            Outcome::PowerOff(None),
            Outcome::Timeout(1),
            Outcome::Quit,
        ]
        .iter()
        .map(Outcome::status)
        .collect();
        others.dedup();
        assert_eq!(others.len(), 5);
        assert!(others.iter().all(|status| *status > 64 && *status < 126));
    }

    #[test]
    fn fatal_error_text_is_in_eight_registers() {
        let mut regs = [0u64; 16];
        regs[12] = 0x1;
        let text = b"TD misconfiguration: SEPT #VE disable";
        for (n, part) in [14, 15, 3, 7, 6, 8, 9, 2].iter().zip(text.chunks(8)) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            regs[*n] = u64::from_le_bytes(word);
        }
        assert_eq!(
            fatal_error(&regs),
            "fatal error 0x1: TD misconfiguration: SEPT #VE disable"
        );
    }

    #[test]
    fn fatal_error_without_text_shows_registers() {
        let mut regs = [0u64; 16];
        (regs[12], regs[13], regs[14]) = (0x201, 0xc000_0b0a, 0x1000);
        assert_eq!(
            fatal_error(&regs),
            "fatal error 0x201, R13 0xc0000b0a, R14 0x1000"
        );
        assert_eq!(fatal_error(&[]), "fatal error 0x0, R13 0x0, R14 0x0");
    }
}
