// SPDX-License-Identifier: GPL-2.0
//! Fault injection: makes chosen calls of a leaf fail without being executed.
//!
//! A script has one command a line; `#` starts a comment.
//! ```text
//! fail <leaf> <n> <status>          the nth call from now on, n from 1
//! fail <leaf> every <k> <status>    every kth call
//! clear                             forget all commands so far
//! ```
//! `<leaf>` is a number or a name such as `tdh_mem_page_aug`, `<status>` is
//! hexadecimal. A script is taken as a whole or not at all.

use core::sync::atomic::{AtomicU64, Ordering};

use super::abi::LEAF_NAMES;

/// Commands that can be active at once.
pub const MAX_RULES: usize = 16;

const ACTIVE: u64 = 1 << 63;
const EVERY: u64 = 1 << 62;

/// One command. `what` is written last and read first.
struct Rule {
    /// ACTIVE, EVERY, n or k in bits 47:16, leaf in bits 15:0.
    what: AtomicU64,
    status: AtomicU64,
    /// Calls of the leaf since the command was given.
    seen: AtomicU64,
}

/// The active commands.
pub struct InjectTable {
    rules: [Rule; MAX_RULES],
}

/// A script that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScriptError {
    /// Line number from 1.
    pub line: u32,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl core::fmt::Display for ScriptError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

#[derive(Clone, Copy)]
struct Command {
    what: u64,
    status: u64,
}

/// Commands of a script, and whether it forgets the older ones.
struct Script {
    clear: bool,
    commands: [Option<Command>; MAX_RULES],
    count: usize,
}

impl InjectTable {
    pub(crate) const fn new() -> InjectTable {
        InjectTable {
            rules: [const {
                Rule {
                    what: AtomicU64::new(0),
                    status: AtomicU64::new(0),
                    seen: AtomicU64::new(0),
                }
            }; MAX_RULES],
        }
    }

    /// Executes a script. On error nothing is changed. Not to be called from two
    /// places at once.
    pub fn load(&self, text: &[u8]) -> Result<(), ScriptError> {
        let mut script = Script {
            clear: false,
            commands: [None; MAX_RULES],
            count: 0,
        };
        let mut line = 0u32;
        let mut rest = text;
        while !rest.is_empty() {
            let (this, after) = cut(rest, |c| c == b'\n');
            rest = after;
            line = line.saturating_add(1);
            script
                .line(this)
                .map_err(|reason| ScriptError { line, reason })?;
        }
        let usable = |r: &&Rule| script.clear || !r.is_active();
        let free = self
            .rules
            .iter()
            .filter(usable)
            .fold(0usize, |n, _| n.saturating_add(1));
        if script.count > free {
            return Err(ScriptError {
                line,
                reason: "more than 16 commands are active",
            });
        }
        if script.clear {
            for r in &self.rules {
                r.what.store(0, Ordering::Release);
            }
        }
        let mut free = self.rules.iter().filter(|r| !r.is_active());
        for c in script.commands.iter().flatten() {
            if let Some(r) = free.next() {
                r.status.store(c.status, Ordering::Relaxed);
                r.seen.store(0, Ordering::Relaxed);
                r.what.store(c.what, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Whether this call of `leaf` shall fail, and how.
    pub(crate) fn check(&self, leaf: u16) -> Option<u64> {
        let mut hit = None;
        for r in &self.rules {
            let what = r.what.load(Ordering::Acquire);
            if what & ACTIVE == 0 || what as u16 != leaf {
                continue;
            }
            let n = (what >> 16) & 0xFFFF_FFFF;
            let seen = r.seen.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            let due = match what & EVERY {
                0 => seen == n,
                _ => seen.checked_rem(n) == Some(0),
            };
            if due {
                hit = Some(r.status.load(Ordering::Relaxed));
            }
            if seen == n && what & EVERY == 0 {
                r.what.store(0, Ordering::Release);
            }
        }
        hit
    }
}

impl Rule {
    fn is_active(&self) -> bool {
        self.what.load(Ordering::Relaxed) & ACTIVE != 0
    }
}

/// The part of `text` before the first byte that `ends` accepts, and what follows that
/// byte. Without any of `core`'s searchers, whose counting can panic.
fn cut(text: &[u8], ends: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    let mut rest = text;
    while let Some((&c, after)) = rest.split_first() {
        if ends(c) {
            let len = text.len().wrapping_sub(rest.len());
            return (text.get(..len).unwrap_or_default(), after);
        }
        rest = after;
    }
    (text, rest)
}

/// The next word of a line, which is cut off it.
fn word<'a>(line: &mut &'a [u8]) -> Option<&'a [u8]> {
    while let Some((&c, after)) = line.split_first() {
        if !c.is_ascii_whitespace() {
            let (word, after) = cut(line, |c| c.is_ascii_whitespace());
            *line = after;
            return Some(word);
        }
        *line = after;
    }
    None
}

/// A number without sign; `None` if it is none or too large.
fn number(word: &[u8], radix: u32) -> Option<u64> {
    if word.is_empty() {
        return None;
    }
    let mut value = 0u64;
    for &c in word {
        let digit = char::from(c).to_digit(radix)?;
        value = value
            .checked_mul(u64::from(radix))?
            .checked_add(u64::from(digit))?;
    }
    Some(value)
}

impl Script {
    fn line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let (mut line, _comment) = cut(line, |c| c == b'#');
        match word(&mut line) {
            None => return Ok(()),
            Some(b"clear") => {
                self.clear = true;
                self.commands = [None; MAX_RULES];
                self.count = 0;
            }
            Some(b"fail") => {
                let command = fail(&mut line)?;
                let slot = self.commands.get_mut(self.count);
                *slot.ok_or("more than 16 commands")? = Some(command);
                self.count = self.count.saturating_add(1);
            }
            Some(_) => return Err("unknown command: fail or clear expected"),
        }
        match word(&mut line) {
            None => Ok(()),
            Some(_) => Err("words after the end of the command"),
        }
    }
}

fn fail(line: &mut &[u8]) -> Result<Command, &'static str> {
    let leaf = leaf_number(word(line).ok_or("leaf is missing")?)?;
    let mut n = word(line).ok_or("number of the call is missing")?;
    let mut what = ACTIVE | u64::from(leaf);
    if n == b"every" {
        what |= EVERY;
        n = word(line).ok_or("period is missing after every")?;
    }
    let n = number(n, 10).filter(|&n| n >> 32 == 0);
    let n = n.ok_or("number of the call is not a number")?;
    if n == 0 {
        return Err("calls are counted from 1");
    }
    let status = word(line).ok_or("status is missing")?;
    let status = status.strip_prefix(b"0x").unwrap_or(status);
    let status = number(status, 16).ok_or("status is not hexadecimal")?;
    Ok(Command {
        what: what | (n << 16),
        status,
    })
}

fn leaf_number(word: &[u8]) -> Result<u16, &'static str> {
    let known = match number(word, 10) {
        Some(n) => LEAF_NAMES.iter().find(|l| u64::from(l.0) == n),
        None => LEAF_NAMES.iter().find(|l| l.1.as_bytes() == word),
    };
    known.map(|l| l.0).ok_or("no such leaf")
}
