// SPDX-License-Identifier: GPL-2.0

//! Replays recorded calls of the real TDX module and compares everything that a
//! recording says: status, registers, S-EPT entry, counters, zero-step state, final
//! S-EPT and PAMT, MRTD. What the replayer does not understand is an error.

use std::fmt;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::panic::{catch_unwind, AssertUnwindSafe};

use crate::host::Host;
use crate::instruments::kit::Watched;
use crate::instruments::Instrumented;
use crate::module::entered::Entered;
use crate::module::interp::Interpreter;
use crate::module::mem::Page;
use crate::module::td::{tdcs_word, tdr_word};
use crate::module::tree::Root;

mod dump;
mod fields;
mod machine;
mod ops;
mod update;

use dump::Dumps;
use fields::Fields;
use machine::{machine, Header, Release, LPS};

/// A difference between recording and emulator.
pub struct Mismatch {
    /// `#index name` of a call, or the kind of another record.
    pub index: String,
    pub field: String,
    pub expected: String,
    pub got: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch {
            index,
            field,
            expected,
            got,
        } = self;
        write!(f, "{index} {field}: expected {expected} got {got}")
    }
}

/// Result of a recording.
#[derive(Default)]
pub struct Outcome {
    pub calls: u64,
    pub mismatches: Vec<Mismatch>,
    /// Why the recording could not be replayed to its end.
    pub error: Option<String>,
}

struct Replay<'m> {
    module: &'m Instrumented<Host, Interpreter>,
    header: Header,
    entered: [Option<Entered<'m>>; LPS],
    dumps: Dumps,
    /// What the module can do by its version.
    module_is: Release,
    /// RIP that VP.ENTER sampled last on each processor.
    sampled: [u64; LPS],
    /// TSC after the last guest operation, and whether it may have jumped since.
    tsc: u64,
    jumped: bool,
    out: Outcome,
}

/// Replays one recording, compressed by gzip or not.
pub fn replay(mut file: impl Read) -> Outcome {
    let mut out = Outcome::default();
    let mut magic = [0; 2];
    let start = match file.read_exact(&mut magic) {
        Ok(()) => Cursor::new(magic).chain(file),
        Err(e) => {
            out.error = Some(format!("no recording: {e}"));
            return out;
        }
    };
    let lines: Box<dyn BufRead + '_> = match magic {
        [0x1F, 0x8B] => Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(start))),
        _ => Box::new(BufReader::new(start)),
    };
    // What the emulator cannot stand, with a machine that the header made up, is an error of
    // that recording and must not hide the others.
    let all = catch_unwind(AssertUnwindSafe(|| replay_lines(lines, &mut out)));
    match all {
        Ok(Ok(())) => {}
        Ok(Err(e)) => out.error = Some(e),
        Err(_) => out.error = Some(format!("replay broke off after call {}", out.calls)),
    }
    out
}

fn replay_lines(lines: impl BufRead, out: &mut Outcome) -> Result<(), String> {
    let at = |n: usize, e: String| format!("line {}: {e}", n + 1);
    let mut lines = lines.lines().enumerate();
    let Some((n, first)) = lines.next() else {
        return Err("the recording is empty".into());
    };
    let first = first.map_err(|e| at(n, e.to_string()))?;
    let header = Fields::parse(&first).map_err(|e| at(n, e))?;
    let (header, release, module) = machine(header).map_err(|e| at(n, e))?;
    let mut r = Replay {
        module: &module,
        header,
        entered: [None, None, None],
        dumps: Dumps::default(),
        module_is: release,
        sampled: [0; LPS],
        tsc: 0,
        jumped: true,
        out: Outcome::default(),
    };
    let mut result = Ok(());
    for (n, line) in lines {
        let done = line
            .map_err(|e| e.to_string())
            .and_then(|line| r.record(Fields::parse(&line)?));
        if let Err(e) = done {
            result = Err(at(n, e));
            break;
        }
    }
    if result.is_ok() {
        result = r.end();
    }
    out.calls = r.out.calls;
    out.mismatches = std::mem::take(&mut r.out.mismatches);
    result
}

impl<'m> Replay<'m> {
    fn m(&self) -> &'m Watched<Host> {
        self.module.machine()
    }

    fn host(&self) -> &'m Host {
        self.module.platform()
    }

    fn page(&self, pa: u64) -> Result<Page<'m>, String> {
        Page::at(self.host(), pa).ok_or_else(|| format!("no memory at {pa:#x}"))
    }

    fn mismatch(
        &mut self,
        index: &str,
        field: &str,
        expected: impl fmt::Display,
        got: impl fmt::Display,
    ) {
        self.out.mismatches.push(Mismatch {
            index: index.into(),
            field: field.into(),
            expected: expected.to_string(),
            got: got.to_string(),
        });
    }

    fn compare(&mut self, index: &str, field: &str, want: u64, got: u64) {
        if want != got {
            self.mismatch(index, field, format!("{want:#x}"), format!("{got:#x}"));
        }
    }

    fn record(&mut self, mut f: Fields) -> Result<(), String> {
        match f.text("type")?.as_str() {
            "op" => self.op(f),
            "mrtd" => self.mrtd(f),
            "final_septe" => self.dumps.septe(f),
            "final_pamt" => self.dumps.pamt(f),
            "final_bitmap" => self.dumps.bitmap(f),
            "module_update" => self.module_update(f),
            "lps_initialised" => self.lps_initialised(f),
            "module_ready" => self.module_ready(f),
            "final" => {
                f.end()?;
                self.end_of_first_dump()
            }
            "teardown" => {
                f.end()?;
                self.dumps.start_teardown()
            }
            other => Err(format!("unknown record type {other}")),
        }
    }

    /// The file ends here.
    fn end(&mut self) -> Result<(), String> {
        if self.dumps.is_cut_short() {
            return Err("the recording ends before its final record".into());
        }
        self.end_of_last_dump()
    }

    fn mrtd(&mut self, mut f: Fields) -> Result<(), String> {
        let want: [u64; 6] = f.nums("qwords_le")?;
        f.end()?;
        for (i, want) in want.into_iter().enumerate() {
            let got = self.tdcs_word(tdcs_word::MRTD + i)?;
            self.compare("mrtd", &format!("qwords_le[{i}]"), want, got);
        }
        Ok(())
    }

    fn tdcx(&self, i: usize) -> Result<Option<u64>, String> {
        let tdr = self.page(self.header.tdr)?;
        Ok((tdr.get(tdr_word::NUM_TDCX) >= 6).then(|| tdr.get(tdr_word::TDCX + i)))
    }

    /// A word of the TDCS, 0 while there is none.
    fn tdcs_word(&self, w: usize) -> Result<u64, String> {
        match self.tdcx(0)? {
            None => Ok(0),
            Some(pa) => Ok(self.page(pa)?.get(w)),
        }
    }

    fn root(&self) -> Result<Option<Root>, String> {
        let level = self.tdcs_word(tdcs_word::ROOT_LEVEL)? as u8;
        let pa = self.tdcx(3)?.filter(|_| level != 0);
        let hkid = self.page(self.header.tdr)?.get(tdr_word::HKID);
        let format = self.m().format(hkid);
        Ok(pa.map(|pa| Root { pa, level, format }))
    }
}
