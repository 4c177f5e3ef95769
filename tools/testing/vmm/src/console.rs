// SPDX-License-Identifier: GPL-2.0
//! Where the TD's serial port writes to and reads from.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmm_sys_util::terminal::Terminal;

use crate::stats::Stats;

/// Console lines that are milestones when they contain this text.
const MILESTONES: &[(&str, &str)] = &[
    ("Linux version ", "kernel"),
    ("Run /init as init process", "init"),
];

/// The choice of `--console`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// to standard output, and standard input to the TD
    Stdio,
    /// to standard output
    Output,
    None,
    File(PathBuf),
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "" => return Err("stdio, output, none or a file name".into()),
            "stdio" => Self::Stdio,
            "output" => Self::Output,
            "none" => Self::None,
            file => Self::File(Path::new(file).to_path_buf()),
        })
    }
}

/// Output of the serial port.
pub struct Console {
    out: Box<dyn Write + Send>,
    /// flush each byte: someone types
    interactive: bool,
    line: String,
    any: bool,
    stats: Arc<Stats>,
}

/// Bytes of a line that are searched for milestones.
const LINE_MAX: usize = 256;

impl Console {
    pub fn new(choice: &Choice, stats: Arc<Stats>) -> io::Result<Self> {
        let out: Box<dyn Write + Send> = match choice {
            Choice::Stdio | Choice::Output => Box::new(io::stdout()),
            Choice::None => Box::new(io::sink()),
            Choice::File(path) => Box::new(io::BufWriter::new(File::create(path)?)),
        };
        Ok(Self {
            out,
            interactive: *choice == Choice::Stdio,
            line: String::new(),
            any: false,
            stats,
        })
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.any && !bytes.is_empty() {
            self.any = true;
            self.stats.milestone("console");
        }
        self.out.write_all(bytes)?;
        for byte in bytes {
            if *byte == b'\n' {
                for (text, name) in MILESTONES {
                    if self.line.contains(text) {
                        self.stats.milestone(name);
                    }
                }
                self.line.clear();
                self.out.flush()?;
            } else if self.line.len() < LINE_MAX {
                self.line.push(char::from(*byte));
            }
        }
        Ok(bytes.len())
    }

    /// The serial port flushes after each byte; here a line is enough unless someone
    /// waits for a prompt.
    fn flush(&mut self) -> io::Result<()> {
        match self.interactive {
            true => self.out.flush(),
            false => Ok(()),
        }
    }
}

/// Makes the terminal, if standard input is one, hand on each key; to be undone by
/// [`restore`] before the program ends.
pub fn set_raw() {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let _ = stdin.lock().set_raw_mode();
    }
}

/// Undoes [`set_raw`].
pub fn restore() {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let _ = stdin.lock().set_canon_mode();
    }
}

/// Hands standard input on until it ends; ^A x ends the program.
pub fn read_input(mut key: impl FnMut(&[u8]), mut quit: impl FnMut()) {
    const ESCAPE: u8 = 1;
    let mut escaped = false;
    let mut byte = [0u8];
    let mut stdin = io::stdin();
    while let Ok(1) = stdin.read(&mut byte) {
        if std::mem::take(&mut escaped) {
            match byte[0] {
                b'x' => quit(),
                _ => key(&byte),
            }
        } else if byte[0] == ESCAPE {
            escaped = true;
        } else {
            key(&byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milestones_are_found_in_lines() {
        let stats = Arc::new(Stats::new(1));
        let mut console = Console::new(&Choice::None, stats.clone()).unwrap();
        for byte in b"[0] Linux version 7\n[1] Run /init as init process\nother\n" {
            console.write_all(&[*byte]).unwrap();
        }
        let json = stats.json(0, "");
        let at = |text: &str| json.find(&format!("\"name\": \"{text}\"")).unwrap();
        assert!(at("console") < at("kernel") && at("kernel") < at("init"));
        assert_eq!(json.matches("\"name\":").count(), 3);
    }

    #[test]
    fn console_choices() {
        assert_eq!("stdio".parse(), Ok(Choice::Stdio));
        assert_eq!("out.log".parse(), Ok(Choice::File("out.log".into())));
        assert!("".parse::<Choice>().is_err());
    }
}
