// SPDX-License-Identifier: GPL-2.0

//! Scripts of the fault injection: text to rules and back.
//!
//! A script has one rule a line; `#` starts a comment.
//! ```text
//! fail <leaf> <when> <status>                 the call answers <status>, unexecuted
//! delay <leaf> <when> <n>us|<n>insn           it commits late, with its locks held
//! interrupt <leaf> <when>                     a poll for interrupts finds one
//! hold tree|epoch|op_state|tdr [ex|sh]        a lock of a TD is held by nobody's vCPU
//! hold entry <gpa> <level> [guest|host]       the lock of an S-EPT entry
//! hold pamt <pa> <size> [ex|sh]               of a page's PAMT entry, size 0, 1 or 2
//! hold kot [ex|sh]                            of the key ownership table
//! clear                                       forget the rules above
//! ```
//! `<leaf>` is a number or a name such as `tdh_mem_page_aug`; TDCALLs are known as
//! `tdg_mem_page_accept` and so on. `<when>` is `<n>` (the nth time only), `every <k>`,
//! `prob <a>/<b> <seed>` (a times in b, at random), or, for `fail`, `stay <n>`: the nth
//! time and from then on each call with the same RCX. Status, GPA and PA are
//! hexadecimal, other numbers decimal; GPAs have 0 in their lower 12 bits. Each rule but
//! `pamt` and `kot` may end in `hkid=<n>`: only the TD with that HKID. `hold` may end in
//! `for=<n>`, `busy=<n>`: let go after n calls, n busy answers.

#![forbid(unsafe_code)]

use core::fmt;

use crate::module::numbers::{GUEST, GUEST_LEAF_NAMES, LEAF_NAMES};

/// Rules that can be active at once.
pub const MAX_RULES: usize = 32;

/// A script that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScriptError {
    /// Line number from 1.
    pub line: u32,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

/// What a rule does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    Fail,
    DelayUs,
    DelayInsn,
    Interrupt,
    Hold(Lock),
}

/// Which lock a rule holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lock {
    Tree,
    Epoch,
    OpState,
    Tdr,
    Entry,
    Pamt,
    Kot,
}

/// When a rule applies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum When {
    Nth,
    Every,
    Chance,
    Stay,
}

const LOCKS: [(Lock, &str); 7] = [
    (Lock::Tree, "tree"),
    (Lock::Epoch, "epoch"),
    (Lock::OpState, "op_state"),
    (Lock::Tdr, "tdr"),
    (Lock::Entry, "entry"),
    (Lock::Pamt, "pamt"),
    (Lock::Kot, "kot"),
];

/// One line of a script.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rule {
    pub(crate) what: What,
    pub(crate) when: When,
    /// Leaf number, with [`GUEST`] for a TDCALL.
    pub(crate) leaf: u16,
    /// `hold`: level of the entry, or size of the page.
    pub(crate) level: u8,
    /// `hold`: shared; of an entry: on the host's side.
    pub(crate) shared: bool,
    pub(crate) hkid: Option<u8>,
    /// n, k, or a of `prob a/b`; `hold`: `for`, 0 without.
    pub(crate) n: u32,
    /// b of `prob a/b`; `hold`: `busy`, 0 without.
    pub(crate) of: u32,
    pub(crate) seed: u64,
    /// Status, amount of a delay, GPA or PA.
    pub(crate) value: u64,
}

/// Longest delay in microseconds: interrupts are off meanwhile.
const MAX_DELAY_US: u64 = 1_000_000;
const MAX_DELAY_INSN: u64 = 1 << 32;

impl Rule {
    const fn new(what: What) -> Rule {
        Rule {
            what,
            when: When::Nth,
            leaf: 0,
            level: 0,
            shared: false,
            hkid: None,
            n: 0,
            of: 0,
            seed: 0,
            value: 0,
        }
    }

    /// As words for atomics; word 0 is never 0.
    pub(crate) fn pack(&self) -> [u64; 4] {
        let what: u64 = match self.what {
            What::Fail => 1,
            What::DelayUs => 2,
            What::DelayInsn => 3,
            What::Interrupt => 4,
            What::Hold(l) => 8 | l as u64,
        };
        let when = self.when as u64;
        let hkid = self.hkid.map_or(0, |h| 0x100 | u64::from(h));
        let head = what | (when << 8) | (u64::from(self.level) << 12);
        let head = head | (u64::from(self.shared) << 15) | (u64::from(self.leaf) << 16);
        [
            head | (hkid << 32),
            u64::from(self.n) | (u64::from(self.of) << 32),
            self.seed,
            self.value,
        ]
    }

    /// The inverse; `None` if `words` are no rule.
    pub(crate) fn unpack(words: [u64; 4]) -> Option<Rule> {
        let [head, counts, seed, value] = words;
        let what = match head & 0xFF {
            1 => What::Fail,
            2 => What::DelayUs,
            3 => What::DelayInsn,
            4 => What::Interrupt,
            n => What::Hold(LOCKS.get((n ^ 8) as usize)?.0),
        };
        let when = match (head >> 8) & 15 {
            0 => When::Nth,
            1 => When::Every,
            2 => When::Chance,
            _ => When::Stay,
        };
        Some(Rule {
            what,
            when,
            leaf: (head >> 16) as u16,
            level: ((head >> 12) & 7) as u8,
            shared: (head >> 15) & 1 != 0,
            hkid: ((head >> 40) & 1 != 0).then_some((head >> 32) as u8),
            n: counts as u32,
            of: (counts >> 32) as u32,
            seed,
            value,
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            What::Hold(lock) => return self.fmt_hold(f, lock),
            What::Fail => f.write_str("fail ")?,
            What::DelayUs | What::DelayInsn => f.write_str("delay ")?,
            What::Interrupt => f.write_str("interrupt ")?,
        }
        f.write_str(leaf_name(self.leaf))?;
        match self.when {
            When::Nth => write!(f, " {}", self.n)?,
            When::Every => write!(f, " every {}", self.n)?,
            When::Chance => write!(f, " prob {}/{} {}", self.n, self.of, self.seed)?,
            When::Stay => write!(f, " stay {}", self.n)?,
        }
        match self.what {
            What::Fail => write!(f, " {:x}", self.value)?,
            What::DelayUs => write!(f, " {}us", self.value)?,
            What::DelayInsn => write!(f, " {}insn", self.value)?,
            What::Interrupt | What::Hold(_) => {}
        }
        self.fmt_hkid(f)
    }
}

impl Rule {
    fn fmt_hkid(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.hkid.map_or(Ok(()), |h| write!(f, " hkid={h}"))
    }

    fn fmt_hold(&self, f: &mut fmt::Formatter<'_>, lock: Lock) -> fmt::Result {
        let name = LOCKS.iter().find(|l| l.0 == lock).map_or("", |l| l.1);
        write!(f, "hold {name}")?;
        if matches!(lock, Lock::Entry | Lock::Pamt) {
            write!(f, " {:x} {}", self.value, self.level)?;
        }
        f.write_str(match (lock, self.shared) {
            (Lock::Entry, false) => " guest",
            (Lock::Entry, true) => " host",
            (_, false) => " ex",
            (_, true) => " sh",
        })?;
        self.fmt_hkid(f)?;
        for (key, n) in [("for", self.n), ("busy", self.of)] {
            if n != 0 {
                write!(f, " {key}={n}")?;
            }
        }
        Ok(())
    }
}

fn leaf_name(leaf: u16) -> &'static str {
    let known = |l: &&(u16, &'static str)| l.0 == leaf;
    let host = LEAF_NAMES.iter().find(known);
    host.or_else(|| GUEST_LEAF_NAMES.iter().find(known))
        .map_or("?", |l| l.1)
}

/// The rules of a script.
pub(crate) struct Script {
    pub(crate) rules: [Option<Rule>; MAX_RULES],
    count: usize,
}

impl Script {
    pub(crate) fn parse(text: &[u8]) -> Result<Script, ScriptError> {
        let mut script = Script {
            rules: [None; MAX_RULES],
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
        Ok(script)
    }

    fn line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let (mut line, _comment) = cut(line, |c| c == b'#');
        let words = &mut line;
        let rule = match word(words) {
            None => return Ok(()),
            Some(b"clear") => {
                self.rules = [None; MAX_RULES];
                self.count = 0;
                return end(words);
            }
            Some(b"fail") => fail(words)?,
            Some(b"delay") => delay(words)?,
            Some(b"interrupt") => timed(What::Interrupt, words)?,
            Some(b"hold") => hold(words)?,
            Some(_) => {
                return Err("unknown command: fail, delay, interrupt, hold or clear expected")
            }
        };
        let slot = self.rules.get_mut(self.count);
        *slot.ok_or("more than 32 rules")? = Some(rule);
        self.count = self.count.saturating_add(1);
        Ok(())
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

fn end(line: &mut &[u8]) -> Result<(), &'static str> {
    match word(line) {
        None => Ok(()),
        Some(_) => Err("words after the end of the command"),
    }
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

fn hexadecimal(word: &[u8]) -> Option<u64> {
    number(word.strip_prefix(b"0x").unwrap_or(word), 16)
}

/// A count from 1.
fn count(word: Option<&[u8]>, missing: &'static str) -> Result<u32, &'static str> {
    let n = number(word.ok_or(missing)?, 10).and_then(|n| u32::try_from(n).ok());
    match n.ok_or("count is not a number")? {
        0 => Err("calls are counted from 1"),
        n => Ok(n),
    }
}

/// Leaf and `<when>`.
fn timed(what: What, line: &mut &[u8]) -> Result<Rule, &'static str> {
    let rule = timed_open(what, line)?;
    options(rule, line)
}

fn timed_open(what: What, line: &mut &[u8]) -> Result<Rule, &'static str> {
    let mut rule = Rule::new(what);
    rule.leaf = leaf_number(word(line).ok_or("leaf is missing")?)?;
    match word(line) {
        Some(b"every") => {
            rule.when = When::Every;
            rule.n = count(word(line), "period is missing after every")?;
        }
        Some(b"stay") if what == What::Fail => {
            rule.when = When::Stay;
            rule.n = count(word(line), "number of the call is missing after stay")?;
        }
        Some(b"prob") => {
            rule.when = When::Chance;
            let chance = word(line).ok_or("probability is missing after prob")?;
            let (a, b) = cut(chance, |c| c == b'/');
            (rule.n, rule.of) = (count(Some(a), "")?, count(Some(b), "")?);
            if rule.n > rule.of {
                return Err("probability is above one");
            }
            let seed = word(line).ok_or("seed is missing")?;
            rule.seed = number(seed, 10).ok_or("seed is not a number")?;
        }
        n => rule.n = count(n, "number of the call is missing")?,
    }
    Ok(rule)
}

fn fail(line: &mut &[u8]) -> Result<Rule, &'static str> {
    let mut rule = timed_open(What::Fail, line)?;
    let status = word(line).ok_or("status is missing")?;
    rule.value = hexadecimal(status).ok_or("status is not hexadecimal")?;
    options(rule, line)
}

fn delay(line: &mut &[u8]) -> Result<Rule, &'static str> {
    let mut rule = timed_open(What::DelayUs, line)?;
    let amount = word(line).ok_or("duration is missing")?;
    let (digits, max) = match (amount.strip_suffix(b"us"), amount.strip_suffix(b"insn")) {
        (Some(digits), _) => (digits, MAX_DELAY_US),
        (_, Some(digits)) => {
            rule.what = What::DelayInsn;
            (digits, MAX_DELAY_INSN)
        }
        _ => return Err("duration is neither <n>us nor <n>insn"),
    };
    rule.value = number(digits, 10).ok_or("duration is not a number")?;
    if rule.value > max {
        return Err("duration is above one second or 2^32 instructions");
    }
    options(rule, line)
}

fn hold(line: &mut &[u8]) -> Result<Rule, &'static str> {
    let name = word(line).ok_or("lock is missing")?;
    let known = LOCKS.iter().find(|l| l.1.as_bytes() == name);
    let lock = known.ok_or("no such lock")?.0;
    let mut rule = Rule::new(What::Hold(lock));
    if matches!(lock, Lock::Entry | Lock::Pamt) {
        let at = word(line).ok_or("address is missing")?;
        rule.value = hexadecimal(at).ok_or("address is not hexadecimal")?;
        if rule.value & 0xFFF != 0 || rule.value >> 52 != 0 {
            return Err("address is not that of a page");
        }
        let max = if lock == Lock::Entry { 4 } else { 2 };
        let level = word(line).ok_or("level is missing")?;
        let level = number(level, 10).filter(|&l| l <= max);
        rule.level = level.ok_or("level is out of range")? as u8;
    }
    options(rule, line)
}

/// What may follow any rule, in any order, up to the end of the line.
fn options(mut rule: Rule, line: &mut &[u8]) -> Result<Rule, &'static str> {
    const EXTRA: &str = "words after the end of the command";
    while let Some(option) = word(line) {
        let (key, value) = cut(option, |c| c == b'=');
        match (key, rule.what) {
            (b"hkid", What::Hold(Lock::Pamt | Lock::Kot)) => return Err(EXTRA),
            (b"hkid", _) => {
                let hkid = number(value, 10).and_then(|h| u8::try_from(h).ok());
                rule.hkid = Some(hkid.ok_or("hkid is not a number below 256")?);
            }
            (b"for", What::Hold(_)) => rule.n = count(Some(value), "")?,
            (b"busy", What::Hold(_)) => rule.of = count(Some(value), "")?,
            (b"guest", What::Hold(Lock::Entry)) => rule.shared = false,
            (b"host", What::Hold(Lock::Entry)) => rule.shared = true,
            (b"ex" | b"sh", What::Hold(Lock::Entry)) => return Err(EXTRA),
            (b"ex", What::Hold(_)) => rule.shared = false,
            (b"sh", What::Hold(_)) => rule.shared = true,
            _ => return Err(EXTRA),
        }
    }
    Ok(rule)
}

fn leaf_number(word: &[u8]) -> Result<u16, &'static str> {
    let known = match number(word, 10) {
        Some(n) => LEAF_NAMES.iter().find(|l| u64::from(l.0) == n),
        None => {
            let named = |l: &&(u16, &str)| l.1.as_bytes() == word;
            let host = LEAF_NAMES.iter().find(named);
            host.or_else(|| GUEST_LEAF_NAMES.iter().find(named))
        }
    };
    known.map(|l| l.0).ok_or("no such leaf")
}

// A TDCALL's number must stay apart from those of SEAMCALLs.
const _: () = assert!(GUEST > 255);
