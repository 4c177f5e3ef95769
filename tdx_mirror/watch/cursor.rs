// SPDX-License-Identifier: GPL-2.0

//! What the files in debugfs show, and where in it the reader of one is.

use core::fmt;
use kernel::{
    prelude::*,
    seq_file::SeqFile,
    sync::Arc, //
};

use super::access::{
    Access,
    Visit, //
};
use super::figures;
use super::rows::{
    Frozen,
    Scan,
    Text, //
};
use crate::kernel::uaccess::number;
use crate::mirror::survey::{
    Audit,
    Map, //
};

/// A file of a TD.
#[derive(Clone, Copy)]
pub(crate) enum TdFile {
    /// Its figures.
    Stats,
    /// What is mapped.
    Map,
    /// Mirror and S-EPT compared.
    Audit,
    /// What stays frozen.
    Frozen,
}

/// What a file in debugfs is about.
#[derive(Clone)]
pub(crate) enum Node {
    /// A file of the module: writes what it shows, takes what is written to it.
    Module {
        /// Writes a short text.
        show: fn(&mut fmt::Formatter<'_>) -> fmt::Result,
        /// Takes a text.
        store: fn(&[u8]) -> Result,
    },
    /// A file of a TD.
    Td(TdFile, Arc<Access>),
}

impl Node {
    /// Whether there may be something to read.
    ///
    /// # Errors
    ///
    /// `ENODEV`: the TD has ended.
    pub(crate) fn is_ready(&self) -> Result {
        match self {
            Self::Module { .. } => Ok(()),
            Self::Td(_, access) => access.is_open(),
        }
    }

    /// Takes what was written. Sleeps.
    ///
    /// # Errors
    ///
    /// `EINVAL`, or what the file says.
    pub(crate) fn store(&self, text: &[u8]) -> Result {
        match self {
            Self::Module { store, .. } => store(text),
            Self::Td(TdFile::Frozen, access) => {
                access.is_open()?;
                access.set_threshold(number(text)?)
            }
            Self::Td(..) => Err(EINVAL),
        }
    }
}

enum Rows {
    Text(Text),
    Map(Scan<Map>),
    Audit(Scan<Audit>),
    Frozen(Frozen),
}

/// Where in a file a reader is. Used by one thread at a time.
pub(crate) struct Cursor {
    node: Node,
    /// The rows, once a first one was asked for.
    rows: Option<Rows>,
    /// The number of the row.
    index: u64,
    /// The row is there, not yet to be looked for.
    has_row: bool,
    /// There is no row any more.
    at_end: bool,
    /// The TD, from the start of a read to its stop.
    visit: Option<Visit>,
}

impl Cursor {
    /// The start of the file that is about `node`.
    pub(crate) fn new(node: Node) -> Self {
        Self {
            node,
            rows: None,
            index: 0,
            has_row: false,
            at_end: false,
            visit: None,
        }
    }

    fn visit(&self) -> Result<&Visit> {
        self.visit.as_ref().ok_or(ENODEV)
    }

    fn begin(&self) -> Result<Rows> {
        Ok(match &self.node {
            Node::Module { show, .. } => Rows::Text(Text::new(show)?),
            Node::Td(TdFile::Stats, _) => {
                let td = self.visit()?.td();
                Rows::Text(Text::new(|f| figures::write_td(td, f))?)
            }
            Node::Td(TdFile::Map, _) => Rows::Map(Scan::new(Map::default())?),
            Node::Td(TdFile::Audit, _) => Rows::Audit(Scan::new(Audit::default())?),
            Node::Td(TdFile::Frozen, _) => Rows::Frozen(Frozen::new(self.visit()?)?),
        })
    }

    /// Moves on to the next row, if there is one.
    fn advance(&mut self) -> Result<bool> {
        if self.rows.is_none() {
            self.rows = Some(self.begin()?);
        }
        let visit = self.visit.as_ref().ok_or(ENODEV);
        self.has_row = match &mut self.rows {
            None => false,
            Some(Rows::Text(text)) => text.advance(),
            Some(Rows::Map(scan)) => scan.advance(visit?)?,
            Some(Rows::Audit(scan)) => scan.advance(visit?)?,
            Some(Rows::Frozen(frozen)) => frozen.advance(),
        };
        self.at_end = !self.has_row;
        Ok(self.has_row)
    }

    /// Begins a read with the row `index`, which is the one that the last read came to or, from the
    /// start, the first one. Returns whether it is there. [`stop()`](Self::stop) follows. Sleeps.
    ///
    /// # Errors
    ///
    /// Why it cannot be had; a later read goes on.
    pub(crate) fn start(&mut self, index: u64) -> Result<bool> {
        if let Node::Td(_, access) = &self.node {
            self.visit = Some(access.enter()?);
        }
        if index == 0 && (self.index != 0 || self.at_end) {
            self.rows = None;
            self.index = 0;
            self.has_row = false;
            self.at_end = false;
        }
        // A seq_file that had no room for the row asks for it again.
        if self.has_row || self.at_end {
            return Ok(self.has_row);
        }
        self.advance()
    }

    /// Moves on to the next row, `index`, and returns whether there is one. Sleeps.
    ///
    /// # Errors
    ///
    /// Why it cannot be had; a later read goes on.
    pub(crate) fn next(&mut self, index: u64) -> Result<bool> {
        self.index = index;
        self.has_row = false;
        self.advance()
    }

    /// Writes the row.
    pub(crate) fn show(&self, to: &SeqFile) {
        match &self.rows {
            Some(Rows::Text(text)) => to.call_printf(format_args!("{}", text.row())),
            Some(Rows::Map(scan)) => {
                if let Some(row) = scan.row() {
                    to.call_printf(format_args!("{row}"));
                }
            }
            Some(Rows::Audit(scan)) => {
                if let Some(row) = scan.row() {
                    to.call_printf(format_args!("{row}"));
                }
            }
            Some(Rows::Frozen(frozen)) => to.call_printf(format_args!("{frozen}")),
            None => (),
        }
    }

    /// Ends a read.
    pub(crate) fn stop(&mut self) {
        self.visit = None;
    }
}
